"""What comes before the first step of a phase: batch statistics, a learning rate."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

import numpy as np

from cropseg.sites.unlabelled import list_unlabelled_tiles
from cropseg.training.adapt import recompute_statistics
from cropseg.training.checkpoint import PhaseRecord
from cropseg.training.fit_job import FitJob
from cropseg.training.l2sp import hold_weights
from cropseg.training.phases import FitPhase
from cropseg.training.rate_search import RateSearch, plot_rate_search, search_rate
from cropseg.training.trainer import build_trainer

_MAX_RATE_FACTOR = 10.0
"""How far above the learning rate of the settings a search may go."""


def prepare_phase(
    job: FitJob, index: int, batches: Any, *, first_index: int
) -> PhaseRecord:
    """Do what comes before the first step of a phase, and return its record.

    Args:
        job: The training; the layers of its model are locked as the phase has it.
        index: The phase.
        batches: The batches of the training.
        first_index: Number of the first batch of the phase.
    """
    phase = job.phases[index]
    begun_at = time.perf_counter()
    measure_statistics(job, phase)
    rate = job.settings.learning_rate
    if index == 0 and job.resumed:
        rate = job.resumed.learning_rate
    if phase.searches_rate and phase.trains:
        rate = _find_rate(job, index, batches, first_index=first_index)
    trained = sum(int(np.prod(v.shape)) for v in job.model.trainable_variables)
    is_prepared = phase.recomputed_norms or phase.searches_rate
    return PhaseRecord(
        name=phase.name,
        steps=phase.num_steps,
        learning_rate=rate if phase.trains else None,
        trained_parameters=trained if phase.trains else 0,
        prepare_seconds=time.perf_counter() - begun_at if is_prepared else 0.0,
    )


def measure_statistics(job: FitJob, phase: FitPhase) -> None:
    """Measure the batch statistics that a phase asks for, on tiles without labels."""
    if phase.recomputed_norms:
        recompute_statistics(
            job.model,
            phase.recomputed_norms,
            list_unlabelled_tiles(job.pool.site, job.pool.tile_size),
            batch_size=job.settings.batch_size,
            fill=job.statistics[0],
        )


def search_phase_rate(
    job: FitJob, phase: FitPhase, batches: Any, **how: Any
) -> RateSearch:
    """Test learning rates on what a phase starts with.

    Args:
        job: The training.
        phase: The phase.
        batches: The batches of the training.
        **how: What else `search_rate` takes.
    """
    build = partial(
        build_trainer,
        job.model,
        phase,
        settings=job.settings,
        pool=job.pool,
        source_tiles=job.source_tiles,
    )
    with hold_weights(job.model, job.penalty):  # a copy in bfloat16 is not held
        return search_rate(build, batches, **how)


def _find_rate(job: FitJob, index: int, batches: Any, *, first_index: int) -> float:
    """Find the learning rate of a phase by a range test on the batches to come."""
    phase = job.phases[index]
    search = search_phase_rate(job, phase, batches, first_index=first_index)
    if job.plots_dir:
        title = f"{job.pool.site.name}: {phase.name}"
        # Stages may be called anything, as `../up`, and phases are called like them.
        name = re.sub(r"[^\w-]+", "_", phase.name)
        path = job.plots_dir / f"rate_search_{index + 1}_{name}.png"
        plot_rate_search(search, title, path)
    if not search.is_clear:  # its suggestion is only what does no harm
        return job.settings.learning_rate
    return min(search.suggestion, _MAX_RATE_FACTOR * job.settings.learning_rate)
