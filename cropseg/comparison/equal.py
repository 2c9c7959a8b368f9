"""Measuring what makes modes equal: the steps that `scratch` needs, and their pace.

Only training losses and times are looked at, never a score. Both are measured once:
the numbers stay in the folder of the comparison, and later calls read them.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.comparison.cells import Cell
from cropseg.comparison.prepare import ComparisonJob
from cropseg.comparison.steps import PACE_NAME, STEPS_NAME, read_document
from cropseg.files import write_json
from cropseg.progress import ShowProgress
from cropseg.sites.budget import Budget
from cropseg.training.fit import fit_model
from cropseg.training.fit_job import FitResult
from cropseg.training.run import RunStart, prepare_fit
from cropseg.training.settings import TrainSettings
from cropseg.transfer.prepare import TransferJob
from cropseg.transfer.transfer import start_job

LEAST_GAIN = 0.05
"""`scratch` is flat where twice the steps lower its final loss by less than this
share."""

MOST_DOUBLINGS = 3
"""How often the steps are doubled at most."""

WARM_UP_STEPS = 4
"""Steps of each phase that its pace leaves out: tracing, first tiles."""

PACE_STEPS = 12
"""Steps of each phase that its pace is measured over."""

_TENTH = 10

_log = logging.getLogger(__name__)


def settle_steps(
    job: ComparisonJob, folder: Path, show_progress: ShowProgress
) -> ComparisonJob:
    """Measure what the steps of the modes depend on, as far as that is not done.

    Args:
        job: The comparison.
        folder: Its folder, claimed by the caller.
        show_progress: Called after every step.

    Returns:
        The comparison, with the steps of every mode.
    """
    if job.design.until_flat:
        _find_flat(job, folder, show_progress)
        job = job.take_steps(folder)
    if job.design.equal == "time":
        _measure_paces(job, folder, show_progress)
        job = job.take_steps(folder)
    return job


def _find_flat(job: ComparisonJob, folder: Path, show_progress: ShowProgress) -> None:
    """Double the steps of `scratch` until its training loss gains little by it."""
    path = folder / STEPS_NAME
    document = read_document(path)
    if "epochs" in document:
        return
    tried: list[dict[str, Any]] = document.get("tried", [])
    for doubling in range(len(tried), MOST_DOUBLINGS + 1):
        epochs = job.settings.epochs * 2**doubling
        steps = epochs * job.settings.steps_per_epoch
        state = folder / "steps" / f"{steps}.npz"
        loss = _train_scratch(job, epochs, state, show_progress)
        tried.append({"epochs": epochs, "steps": steps, "final_loss": loss})
        is_flat = doubling and loss > (1 - LEAST_GAIN) * tried[-2]["final_loss"]
        found: dict[str, Any] = {"mode": "scratch", "labels": str(job.budgets[-1])}
        if is_flat or doubling == MOST_DOUBLINGS:
            chosen = tried[-2] if is_flat else tried[-1]
            found |= {"epochs": chosen["epochs"], "steps": chosen["steps"]}
            found["is_flat"] = bool(is_flat)
        write_json(path, found | {"tried": tried})
        if is_flat:
            break
    else:
        _log.warning(
            "scratch still gains by more steps: its training loss was %s after %s "
            "steps. Give more --epochs.",
            ", ".join(f"{item['final_loss']:.3f}" for item in tried),
            ", ".join(str(item["steps"]) for item in tried),
        )
    shutil.rmtree(folder / "steps", ignore_errors=True)


def _train_scratch(
    job: ComparisonJob, epochs: int, state: Path, show_progress: ShowProgress
) -> float:
    """Return the mean training loss of the last tenth of the steps."""
    cell = _choose_cell(job, "scratch", job.budgets[-1])
    prepared = _prepare(replace(job, settings=job.settings.change(epochs=epochs)), cell)
    start = start_job(prepared)

    def show(done: int, total: int, text: str) -> None:
        show_progress(done, total, f"steps of scratch: {text}")

    fitted = _fit(start, prepared.settings, state, show)
    last = max(1, len(fitted.losses) // _TENTH)
    return round(float(np.mean(fitted.losses[-last:])), 6)


def _measure_paces(
    job: ComparisonJob, folder: Path, show_progress: ShowProgress
) -> None:
    """Measure the seconds of a step of each mode, and give each as many as fit."""
    path = folder / PACE_NAME
    document = read_document(path)
    trained = [
        contender.mode
        for contender in job.contenders
        if contender.plan is not None and contender.plan.trains
    ]
    if not trained:
        return
    modes: dict[str, Any] = document.get("modes", {})
    reference = document.get("reference") or ("full" if "full" in trained else None)
    reference = reference or trained[0]
    epochs = job.steps.epochs or job.settings.epochs
    per_epoch = job.settings.steps_per_epoch
    for index, mode in enumerate(sorted(trained, key=lambda item: item != reference)):
        if mode in modes:
            continue
        show_progress(index, len(trained), f"pace of {mode}")
        pace = measure_pace(_prepare(job, _choose_cell(job, mode, job.budgets[-1])))
        steps = per_epoch
        if mode != reference:
            steps = max(1, round(per_epoch * _get_pace(modes, reference) / pace))
        modes[mode] = {
            "seconds_per_step": round(pace, 6),
            "steps_per_epoch": steps,
            "steps": steps * epochs,
        }
        write_json(path, {"reference": reference, "modes": modes})


def _get_pace(modes: dict[str, Any], mode: str) -> float:
    return float(modes[mode]["seconds_per_step"])


def measure_pace(job: TransferJob) -> float:
    """Return the seconds of a step of a transfer, by a short run that is forgotten.

    Every phase runs for some steps, the first of which do not count. Features that
    are computed before the first step belong to the steps; what comes once a run,
    such as a search of a learning rate, does not.

    Args:
        job: The transfer.

    Returns:
        The mean over its steps, in s.
    """
    total = WARM_UP_STEPS + PACE_STEPS
    start = start_job(job)
    shares = [phase.num_steps for phase in start.phases if phase.trains]
    fitted = _run_shortly(start, job.settings, total)
    paces = fitted.paces
    if start.caches_features:
        short = _run_shortly(start_job(job), job.settings, WARM_UP_STEPS)
        more = (fitted.prepared - short.prepared) / PACE_STEPS
        paces = [pace + max(0.0, more) for pace in paces]
    return float(np.average(paces, weights=shares))


class _ShortRun:
    """When each step of a short run ended."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._times: list[list[tuple[int, float]]] = []
        self.prepared = 0.0

    def note(self, done: int, _total: int, _text: str) -> None:
        if (done - 1) // self._steps >= len(self._times):
            self._times.append([])
        self._times[-1].append((done, time.perf_counter()))

    @property
    def paces(self) -> list[float]:
        """Seconds of a step of each phase: the median, as other work interferes."""
        return [
            float(
                np.median(
                    [
                        (end - begin) / (after - before)
                        for (before, begin), (after, end) in pairwise(times)
                        if before % self._steps >= WARM_UP_STEPS
                    ]
                )
            )
            for times in self._times
        ]


def _run_shortly(start: RunStart, settings: TrainSettings, steps: int) -> _ShortRun:
    """Run every phase for a few steps."""
    run = _ShortRun(steps)
    short = replace(
        start,
        phases=tuple(
            replace(phase, num_steps=steps, searches_rate=False)
            for phase in start.phases
            if phase.trains
        ),
    )
    # One epoch a phase, so that nothing is saved or validated in between.
    fitted = _fit(short, settings.change(steps_per_epoch=steps), None, run.note)
    run.prepared = sum(phase.prepare_seconds for phase in fitted.phases)
    return run


def _fit(
    start: RunStart, settings: TrainSettings, state: Path | None, show: ShowProgress
) -> FitResult:
    job = prepare_fit(start, settings, checkpoint_path=state, show_progress=show)
    return fit_model(job)


def _choose_cell(job: ComparisonJob, mode: str, budget: Budget) -> Cell:
    fold = None if job.folds is None else 0
    return Cell(mode=mode, budget=budget, draw=0, seed=job.settings.seed, fold=fold)


def _prepare(job: ComparisonJob, cell: Cell) -> TransferJob:
    given = {item.mode: item.given for item in job.contenders}
    prepared = job.prepare_mode(given.get(cell.mode, cell.mode), cell)
    assert isinstance(prepared, TransferJob)  # noqa: S101 - never asked for the forest
    return prepared
