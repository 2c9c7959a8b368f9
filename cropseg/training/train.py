"""Training a first model of a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cropseg.errors import UsageError
from cropseg.files import claim_out_dir
from cropseg.models.bundle import add_normalization
from cropseg.models.card import Lineage
from cropseg.models.weight_report import report_initialized
from cropseg.models.zoo import build_network, find_stages, get_tile_multiple
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import start_run
from cropseg.sites.budget import open_pool
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.finished import Run, find_finished_run
from cropseg.training.locks import build_full_phase
from cropseg.training.run import RunStart, execute_run
from cropseg.training.settings import TrainSettings, describe_training


def train_site(
    site: Site,
    *,
    out_dir: str | Path,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> Run:
    """Train a model of a site from random weights.

    The best epoch on the val part is kept; without a val part, the last. Calling it
    again with the same settings goes on where it was interrupted, or returns the
    finished run.

    Args:
        site: The site, with labels and a split.
        out_dir: The run's folder.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.
        **settings: Fields of `TrainSettings`.

    Returns:
        The run, with `model_path` and `metrics`.

    Raises:
        UsageError: If a setting cannot be used.
        DataError: If the site cannot be trained on.
        ConflictError: If the folder holds a run with other settings.
        DivergedError: If the loss is not a number at some step.
    """
    chosen = TrainSettings(**settings)
    check_tile_size(chosen)
    survey = survey_site(site, chosen.tile_size)
    require_trainable(site, survey)
    record = describe_training(site, chosen)
    folder = Path(out_dir)
    with claim_out_dir(folder, record, overwrite=overwrite):
        finished = find_finished_run(folder)
        if finished is not None:
            return finished
        start_run(chosen.seed)
        bands = survey.bands
        assert bands is not None  # noqa: S101 - `require_trainable` saw to it
        network = build_network(
            chosen.architecture,
            chosen.encoder,
            num_bands=len(site.bands),
            num_classes=len(site.classes),
        )
        model = add_normalization(network, mean=bands.mean, std=bands.std)
        stages = find_stages(model, chosen.architecture, chosen.encoder)
        start = RunStart(
            model=model,
            stages=stages,
            bands=bands,
            report=report_initialized(model, stages),
            lineage=Lineage(mode="train"),
            pool=open_pool(site, chosen.tile_size),
            tile_multiple=get_tile_multiple(chosen.architecture, chosen.encoder),
            phases=(build_full_phase(model, chosen.num_steps),),
            validates=bool(survey.class_pixels[PARTS.index("val")].any()),
        )
        return execute_run(start, chosen, folder, show_progress)


def check_tile_size(settings: TrainSettings) -> None:
    """Check that the network can take tiles of that size.

    Raises:
        UsageError: If architecture or encoder are unknown, or the size does not fit.
    """
    multiple = get_tile_multiple(settings.architecture, settings.encoder)
    if settings.tile_size % multiple:
        raise UsageError(
            f"Tile size {settings.tile_size} does not fit {settings.architecture} "
            f"with encoder {settings.encoder}: it must be a multiple of {multiple}."
        )
