"""The model at the start of a transfer: built, filled with weights, and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.errors import ModelError
from cropseg.models.bundle import Bundle, add_normalization
from cropseg.models.card import Card, Lineage, fit_site_to_card, match_card_classes
from cropseg.models.imagenet import INPUT_NORM, load_imagenet_encoder
from cropseg.models.rebuild import rebuild_network
from cropseg.models.stages import Stage
from cropseg.models.weight_report import WeightReport, WeightRow
from cropseg.models.zoo import build_network, list_pairs
from cropseg.sites.budget import LabelPool, open_pool
from cropseg.sites.classes import IGNORE, ClassMap
from cropseg.sites.site import Site, match_classes
from cropseg.sites.statistics import BandStatistics
from cropseg.training.batches import SourceTiles
from cropseg.training.locks import list_norms
from cropseg.training.optimizer_state import OptimizerState, read_optimizer_state
from cropseg.training.run import RunStart
from cropseg.transfer.head import SUMS_LAYER, mask_classes, sum_classes
from cropseg.transfer.normalization import choose_statistics
from cropseg.transfer.phases import resolve_phases
from cropseg.transfer.plan import Start, TransferPlan
from cropseg.transfer.rows import needs_sums, refuse_shared_rows
from cropseg.transfer.target import ReuseOptions
from cropseg.transfer.weights import (
    Donor,
    Match,
    Target,
    convert_slots,
    copy_weights,
    match_weights,
    report_matches,
)


def start_transfer(  # noqa: PLR0913 - keyword-only, and all decide the start
    source: Bundle,
    pool: LabelPool,
    plan: TransferPlan,
    *,
    num_steps: int,
    lineage: Lineage,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    source_dir: Path | None = None,
) -> RunStart:
    """Build the target's model, load what the plan reuses and resolve what it trains.

    Args:
        source: The model to start from.
        pool: The labels that the run may see, of the site as the new model reads it.
        plan: What is reused, and what is trained.
        num_steps: Batches of the training.
        lineage: Where the weights come from, for the new card.
        reuse: How the model is fitted to the site.
        source_site: The site of the source, for plans that train on its tiles too.
        source_dir: Folder of the source's run, for plans that go on with it.

    Raises:
        ModelError: If the weights do not match.
        UsageError: If the plan does not fit the network.
    """
    reuse = reuse or ReuseOptions()
    card, site = source.card, pool.site
    resumed = None
    if plan.optimizer == "source" and source_dir is not None:
        resumed = _read_state(source, source_dir)
    bands = choose_statistics(reuse.normalization, card, site, pool.tile_size)
    target = _build_target(source, site, plan, bands)
    donors = _list_donors(source, plan, reuse, resumed)
    matches = match_weights(target, donors, plan)
    copy_weights(target.model, matches)
    report = report_matches(
        matches, target, donors["source"] if plan.start["head"] == "source" else None
    )
    model = target.model
    if not plan.trains:
        model, report = _limit_classes(target, source, site.classes, report)
    phases = resolve_phases(
        plan, target.stages, list_norms(target.model), num_steps=num_steps
    )
    return RunStart(
        model=model,
        stages=target.stages,
        bands=bands,
        report=report,
        lineage=lineage,
        pool=pool,
        tile_multiple=card.tile_multiple,
        phases=phases,
        l2sp=plan.l2sp,
        new_classes=frozenset(
            index
            for index, name in enumerate(site.classes.names)
            if name not in target.matches
        ),
        source_tiles=_open_source_tiles(source_site, card, pool, plan),
        resumed=_convert_state(resumed, matches),
        caches_features=plan.caches_features,
        pretrains=plan.pretrains,
    )


def _read_state(source: Bundle, source_dir: Path) -> OptimizerState:
    """Read the state of the training that a model comes from.

    Raises:
        ModelError: If there is none, or it is that of another model: its weights would
            silently be taken in place of those of the model.
    """
    state = read_optimizer_state(source_dir)
    ours = source.model.get_weights()
    if len(ours) != len(state.kept) or not all(map(np.array_equal, ours, state.kept)):
        raise ModelError(
            f"The training whose state lies in {source_dir / 'checkpoints'} did not "
            "make this model: it saved other weights. Give the model.keras that it "
            "wrote there, or choose mode full."
        )
    return state


def _build_target(
    source: Bundle, site: Site, plan: TransferPlan, bands: BandStatistics
) -> Target:
    card = source.card
    matches = match_card_classes(card, site.classes)
    classes = site.classes.names
    if not plan.trains and needs_sums(matches):
        # Probabilities are summed behind a head of the source's classes.
        classes, matches = card.class_names, {name: [name] for name in card.class_names}
    sizes = {"num_bands": len(site.bands), "num_classes": len(classes)}
    if (card.architecture, card.encoder) in list_pairs():
        network = build_network(card.architecture, card.encoder, **sizes)
    else:
        network = rebuild_network(source.model, **sizes)
    return Target(
        model=add_normalization(network, mean=bands.mean, std=bands.std),
        stages=tuple(Stage(**dict(stage)) for stage in card.stages),
        bands=site.bands,
        classes=classes,
        matches=matches,
        fate="initialised" if plan.trains else "never predicted",
    )


def _list_donors(
    source: Bundle,
    plan: TransferPlan,
    reuse: ReuseOptions,
    resumed: OptimizerState | None,
) -> dict[Start, Donor]:
    card = source.card
    arrays = {v.path: np.asarray(v) for v in source.model.weights}
    donors: dict[Start, Donor] = {
        "source": Donor(
            title="the source model",
            # What the slots of the optimizer belong to, where they go on.
            arrays=resumed.weights if resumed else arrays,
            bands=card.bands,
            classes=card.class_names,
        )
    }
    if "imagenet" in plan.start.values():
        encoder = load_imagenet_encoder(
            card.architecture, card.encoder, reuse.imagenet_weights
        )
        donors["imagenet"] = Donor(
            title="ImageNet",
            arrays=encoder.arrays,
            bands=encoder.bands,
            replaced={INPUT_NORM: "the normalisation of the bands takes its place"},
        )
    return donors


def _limit_classes(
    target: Target, source: Bundle, classes: ClassMap, report: WeightReport
) -> tuple[Any, WeightReport]:
    """Make a model that is not trained predict the site's classes and no others."""
    card = source.card
    matches = match_card_classes(card, classes)
    refuse_shared_rows(matches)
    if target.classes == classes.names and not needs_sums(matches):
        mask_classes(target.model, [target.classes.index(name) for name in matches])
        return target.model, report
    kept = {name for names in matches.values() for name in names}
    mask_classes(target.model, [card.class_names.index(name) for name in kept])
    model = sum_classes(
        target.model, matches, source=card.class_names, target=classes.names
    )
    sums = WeightRow(
        variable=f"{SUMS_LAYER}/kernel",
        part="head",
        shape=(1, 1, len(card.classes), len(classes)),
        action="initialised",
        reason="sums the probabilities of the source's classes",
    )
    return model, WeightReport(rows=(*report.rows, sums))


def _open_source_tiles(
    site: Site | None, card: Card, pool: LabelPool, plan: TransferPlan
) -> SourceTiles | None:
    """Return the labels of the source's site, as classes of the target."""
    if site is None or not plan.needs_source_site:
        return None
    fitted = fit_site_to_card(site, card).select_bands(pool.site.bands)
    ids = np.full(256, IGNORE, np.uint8)
    matches = match_classes(fitted.classes.names, pool.site.classes)
    names = [name for found in matches.values() for name in found]
    for name, found in matches.items():
        for item in found:
            if names.count(item) == 1:  # else it could be either class
                ids[fitted.classes.names.index(item)] = pool.site.classes.names.index(
                    name
                )
    return SourceTiles(
        pool=open_pool(fitted, pool.tile_size),
        class_ids=ids,
        share=plan.source_share,
    )


def _convert_state(
    state: OptimizerState | None, matches: tuple[Match, ...]
) -> OptimizerState | None:
    """Bring the slots of the source's optimizer into the shapes of the new model."""
    if state is None:
        return None
    convert: Mapping[str, Any] = {
        name: convert_slots(matches, getattr(state, name))
        for name in ("weights", "momentums", "velocities")
    }
    return replace(state, **convert)
