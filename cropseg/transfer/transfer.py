"""Transferring a model to another site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cropseg.files import claim_out_dir
from cropseg.models.bundle import Bundle, add_normalization, load_bundle
from cropseg.models.card import Lineage, read_card
from cropseg.models.zoo import build_network, find_stages
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import start_run
from cropseg.sites.budget import LabelPool, parse_budget
from cropseg.sites.site import Site
from cropseg.sites.statistics import BandStatistics
from cropseg.training.run import Run, RunStart, execute_run, find_finished_run
from cropseg.transfer.plan import TransferPlan, get_plan
from cropseg.transfer.target import (
    choose_pool,
    choose_settings,
    describe_transfer,
    prepare_target,
)
from cropseg.transfer.weights import load_weights, lock_layers


def transfer_to_site(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    model_path: str | Path,
    *,
    mode: str,
    out_dir: str | Path,
    labels: str | None = None,
    draw: int = 0,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> Run:
    """Transfer a model to another site.

    Nothing is tuned on the target: the schedule is fixed and the last weights are
    kept. Calling it again with the same settings goes on where it was interrupted,
    or returns the finished run.

    Args:
        site: The target site.
        model_path: The source model, a bundle.
        mode: One of `PLANS`.
        out_dir: The run's folder.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.
        **settings: Fields of `TrainSettings`; architecture, encoder and tile size
            come from the source model.

    Returns:
        The run, with `model_path` and `metrics`.

    Raises:
        UsageError: If the mode or a setting cannot be used.
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the model does not fit the site.
        ConflictError: If the folder holds a run with other settings.
        DivergedError: If the loss is not a number at some step.
    """
    plan = get_plan(mode)
    card = read_card(model_path)
    chosen = choose_settings(card, settings)
    site = prepare_target(site, card)
    budget = parse_budget(labels) if labels else None
    what = {"mode": mode, "labels": str(budget) if budget else None, "draw": draw}
    record = describe_transfer(site, model_path, chosen, what)
    pool = choose_pool(site, chosen.tile_size, budget, draw=draw)
    folder = Path(out_dir)
    with claim_out_dir(folder, record, overwrite=overwrite):
        finished = find_finished_run(folder)
        if finished is not None:
            return finished
        start_run(chosen.seed)
        source = load_bundle(model_path)
        lineage = Lineage(
            mode=mode,
            source_sha256=record["from_sha256"],
            source_site=card.site,
            labels=record["labels"],
            draw=draw if budget else None,
        )
        start = start_transfer(source, pool, plan, lineage=lineage)
        return execute_run(start, chosen, folder, show_progress)


def start_transfer(
    source: Bundle, pool: LabelPool, plan: TransferPlan, *, lineage: Lineage
) -> RunStart:
    """Build the target's model, load what the plan reuses and lock what it locks.

    The normalisation of the source is kept in every mode, so that a comparison of
    modes compares nothing else.

    Raises:
        ModelError: If the weights do not match.
    """
    card, classes = source.card, pool.site.classes
    bands = BandStatistics(mean=card.band_mean, std=card.band_std)
    network = build_network(
        card.architecture,
        card.encoder,
        num_bands=len(card.bands),
        num_classes=len(classes),
    )
    model = add_normalization(network, mean=bands.mean, std=bands.std)
    stages = find_stages(model, card.architecture, card.encoder)
    report = load_weights(
        model, stages, source.model, card=card, classes=classes, plan=plan
    )
    return RunStart(
        model=model,
        stages=stages,
        bands=bands,
        report=report,
        lineage=lineage,
        pool=pool,
        inference_norms=lock_layers(model, stages, plan),
        trains=plan.trains,
    )
