"""A learning rate for a site: the range test on what a training would start with.

Model, labels, batches and seed are those of `train` or `transfer` with the same
settings. Nothing is kept of the test but what it saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cropseg.errors import UsageError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import start_run
from cropseg.sites.budget import LabelPool, parse_budget
from cropseg.sites.site import Site
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.batches import TileBatches
from cropseg.training.fit_job import FitJob
from cropseg.training.locks import build_full_phase
from cropseg.training.phase_start import measure_statistics, search_phase_rate
from cropseg.training.phases import FitPhase
from cropseg.training.rate_search import DEFAULT_STEPS, RateSearch
from cropseg.training.run import prepare_fit
from cropseg.training.settings import TrainSettings
from cropseg.training.train import check_tile_size
from cropseg.transfer.prepare import TransferJob, prepare_transfer
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions, choose_pool
from cropseg.transfer.transfer import start_job


def find_learning_rate(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    model_path: str | Path | None = None,
    *,
    mode: str = "full",
    labels: str | None = None,
    draw: int = 0,
    description: Any = None,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    num_steps: int = DEFAULT_STEPS,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> RateSearch:
    """Find a learning rate for training on a site, by a range test.

    Args:
        site: The site that is to be trained on.
        model_path: A model to start from, as `transfer_to_site` takes it; None for a
            new network, as `train_site` builds it.
        mode: How the model is reused. Of several phases the first that trains is
            tested.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        description: A `ForeignDescription` of a model that is no bundle.
        reuse: How the model is fitted to the site.
        source_site: The site of the model, for `joint`.
        num_steps: Batches of the test.
        show_progress: Called after every step.
        **settings: Fields of `TrainSettings`.

    Returns:
        Rates, losses and the suggestion.

    Raises:
        UsageError: If the mode or a setting cannot be used, or nothing is trained.
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the model does not fit the site.
        DivergedError: If the first loss is not a number.
    """
    how: dict[str, Any] = {"num_steps": num_steps, "show_progress": show_progress}
    if model_path is None:
        chosen = TrainSettings(**settings)
        pool = prepare_pool(site, chosen, labels=labels, draw=draw)
        return search_new_network(pool, chosen, **how)
    job = prepare_transfer(
        site,
        find_source(model_path, description=description, site=site),
        mode=mode,
        labels=labels,
        draw=draw,
        reuse=reuse,
        source_site=source_site,
        **settings,
    )
    return search_transfer(job, **how)


def prepare_pool(
    site: Site, settings: TrainSettings, *, labels: str | None, draw: int
) -> LabelPool:
    """Return the labels that a new network is tested on.

    Args:
        site: The site.
        settings: How it would be trained.
        labels: A budget, or None for all labels of the training part.
        draw: Which draw of the budget.

    Raises:
        UsageError: If the labels are no budget, or the tile size does not fit.
        DataError: If the site cannot be trained on, or has fewer labels.
    """
    budget = parse_budget(labels) if labels else None
    check_tile_size(settings)
    require_trainable(site, survey_site(site, settings.tile_size))
    return choose_pool(site, settings.tile_size, budget, draw=draw)


def search_new_network(
    pool: LabelPool,
    settings: TrainSettings,
    *,
    num_steps: int = DEFAULT_STEPS,
    show_progress: ShowProgress = show_nothing,
) -> RateSearch:
    """Test a network with random weights, as `train_site` builds it.

    Args:
        pool: The labels.
        settings: Architecture, encoder, batches, loss and seed.
        num_steps: Batches of the test.
        show_progress: Called after every step.
    """
    bands = survey_site(pool.site, settings.tile_size).bands
    assert bands is not None  # noqa: S101 - a site with labels has pixels
    start_run(settings.seed)
    network = build_network(
        settings.architecture,
        settings.encoder,
        num_bands=len(pool.site.bands),
        num_classes=len(pool.site.classes),
    )
    model = add_normalization(network, mean=bands.mean, std=bands.std)
    job = FitJob(
        model=model,
        phases=(build_full_phase(model, settings.num_steps),),
        pool=pool,
        settings=settings,
        statistics=(bands.mean, bands.std),
    )
    return _search(job, job.phases[0], num_steps, show_progress)


def search_transfer(
    transfer: TransferJob,
    *,
    num_steps: int = DEFAULT_STEPS,
    show_progress: ShowProgress = show_nothing,
) -> RateSearch:
    """Test the first phase of a transfer that trains.

    A mode that first trains the encoder without labels is tested before that.

    Args:
        transfer: The transfer, prepared.
        num_steps: Batches of the test.
        show_progress: Called after every step.

    Raises:
        UsageError: If the mode trains nothing, or goes on at its source's rate.
        ModelError: If the weights do not match.
    """
    plan, settings = transfer.plan, transfer.settings
    if plan.optimizer == "source":
        raise UsageError(
            f"Mode {plan.mode} goes on at the learning rate of its source, so there "
            "is none to find. `full` starts a schedule of its own."
        )
    if not plan.trains:
        raise UsageError(
            f"Mode {plan.mode} trains nothing, so there is no learning rate to find."
        )
    job = prepare_fit(start_job(transfer), settings)
    # Also what comes before the first step of the first phase that trains.
    for phase in job.phases:
        measure_statistics(job, phase)
        if phase.trains:
            break
    return _search(job, phase, num_steps, show_progress)


def _search(
    job: FitJob, phase: FitPhase, num_steps: int, show_progress: ShowProgress
) -> RateSearch:
    """Test a phase on the first batches that a training would see."""
    settings = job.settings
    batches = TileBatches(
        job.pool,
        batch_size=settings.batch_size,
        seed=settings.seed,
        statistics=job.statistics,
        source_tiles=job.source_tiles,
    )
    return search_phase_rate(
        job, phase, batches, num_steps=num_steps, show_progress=show_progress
    )
