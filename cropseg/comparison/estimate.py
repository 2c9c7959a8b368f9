"""How long a comparison takes, and what is left of it. No Keras.

What is known best counts first: runs of the same mode in this folder, then those of
other modes, then the training of the source model, whose network the runs share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cropseg.comparison.cells import Cell
from cropseg.comparison.prepare import ComparisonJob
from cropseg.comparison.steps import read_document
from cropseg.models.card import CardStage
from cropseg.transfer.phases import select_layers
from cropseg.transfer.plan import TransferPlan, phase_trains

_BACKWARD = 2
"""What a step back through a layer costs, in steps forward through it: it computes
the gradients of its inputs and of its weights."""

_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True, kw_only=True)
class ExperimentPlan:
    """What a comparison is going to do."""

    runs: int
    """All runs: modes x budgets x draws x seeds x folds, and once a fold for a mode
    that sees no labels."""
    finished: int
    """Those of them that are finished already."""
    modes: tuple[str, ...]
    """The modes."""
    labels: tuple[str, ...]
    """The budgets."""
    draws: int
    """Draws of each budget."""
    seeds: int
    """Seeds of each draw."""
    folds: int | None
    """Folds of the site; None where it is tested on one part."""
    validation: str
    """What chooses the best epoch."""
    equal: str
    """What is equal for all modes."""
    settings: Mapping[str, Any]
    """The settings of every run."""
    seconds: float | None
    """Training time of the runs that are left, in s; None where nothing is known."""
    bytes: int | None
    """Disk that the runs that are left take; None where nothing is known."""
    notes: tuple[str, ...]
    """What else is worth knowing before it starts."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    def to_lines(self) -> list[str]:
        """Return the plan as lines of text."""
        grid = (
            f"{len(self.modes)} modes x {len(self.labels)} budgets "
            f"({', '.join(self.labels)}) x {self.draws} draws"
        )
        if self.seeds > 1:
            grid += f" x {self.seeds} seeds"
        if self.folds:
            grid += f" x {self.folds} folds"
        left = self.runs - self.finished
        rest = f", {self.finished} finished, {left} to do" if self.finished else ""
        names = ("epochs", "steps_per_epoch", "batch_size", "learning_rate", "loss")
        settings = ", ".join(f"{name} {self.settings[name]}" for name in names)
        size = "unknown" if self.bytes is None else f"about {_say_bytes(self.bytes)}"
        return [
            f"{grid} = {self.runs} runs{rest}",
            f"modes: {', '.join(self.modes)}",
            f"settings: {settings}; validation {self.validation}; equal {self.equal}",
            f"training time: {self.describe_time()}; disk: {size}",
            *self.notes,
        ]

    def describe_time(self) -> str:
        """Return the time in words."""
        if self.seconds is None:
            return "unknown until the first run is done"
        return f"about {say_seconds(self.seconds)}"


def say_seconds(seconds: float) -> str:
    """Return a duration in words, such as `12 min`."""
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    if seconds >= _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds:.0f} s"


def _say_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"  # noqa: PLR2004


def plan_experiment(
    job: ComparisonJob, folder: Path, *, overwrite: bool = False
) -> ExperimentPlan:
    """Say what a comparison is going to do in a folder, and what it takes.

    Args:
        job: The comparison.
        folder: Its folder, which need not be there.
        overwrite: Whether it starts again, whatever the folder holds.
    """
    done: dict[Cell, Path] = {}
    if not overwrite:
        job = job.take_steps(folder)
        done = find_done(job, folder)
    left = [cell for cell in job.cells if cell not in done]
    pace = Pace(job, done)
    seconds = [pace.estimate(cell) for cell in left]
    known = [value for value in seconds if value is not None]
    sizes = [_measure_run(path) for path in list(done.values())[:20]]
    if not sizes and job.source.run_dir is not None:
        sizes = [_measure_run(job.source.run_dir)]
    size = sum(sizes) / len(sizes) if sizes else 0
    return ExperimentPlan(
        runs=len(job.cells),
        finished=len(done),
        modes=tuple(contender.mode for contender in job.contenders),
        labels=tuple(map(str, job.budgets)),
        draws=job.design.draws,
        seeds=job.design.seeds,
        folds=job.folds,
        validation=job.design.validation,
        equal=job.design.equal,
        settings=job.settings.to_json(),
        seconds=round(sum(known), 1) if len(known) == len(seconds) else None,
        bytes=round(size * len(left)) or (None if left else 0),
        notes=tuple(_list_notes(job)),
    )


def find_done(job: ComparisonJob, folder: Path) -> dict[Cell, Path]:
    """Return the runs of a comparison that are finished, and their folders."""
    paths = {cell: folder / "runs" / name for cell, name in job.run_names.items()}
    return {cell: path for cell, path in paths.items() if find_metrics(path).exists()}


def find_metrics(run_dir: Path) -> Path:
    """Return the file that says that a run is finished, be it there or not."""
    return run_dir / "metrics.json"


def _list_notes(job: ComparisonJob) -> list[str]:
    notes = []
    if job.folds:
        asked = "" if job.design.folds == job.folds else " (--folds none: no folds)"
        notes.append(
            f"every run is repeated in each of {job.folds} folds, so that all blocks "
            f"are tested on: the cost is {job.folds} times that of one test part{asked}"
        )
    if job.design.until_flat and job.steps.epochs is None:
        notes.append(
            "before that, scratch is trained with 1, 2, 4 and up to 8 times the steps "
            "until it is flat; then all runs take as many"
        )
    if job.design.equal == "time" and not job.steps.per_epoch:
        notes.append("before that, the pace of each mode is measured in a short run")
    if job.design.validation == "oracle":
        notes.append(
            "oracle: labels of the val part, beyond every budget, choose the epoch"
        )
    return notes


class Pace:
    """Seconds of a run, by what is known of others."""

    def __init__(self, job: ComparisonJob, done: Mapping[Cell, Path]) -> None:
        """Read what finished runs, and that of the source, took.

        Args:
            job: The comparison.
            done: Its finished runs, and their folders.
        """
        self._job = job
        self._plans = {item.mode: item.plan for item in job.contenders}
        found: dict[str, list[float]] = {}
        for cell, path in done.items():
            training = read_document(find_metrics(path)).get("training", {})
            found.setdefault(cell.mode, []).append(float(training.get("seconds", 0)))
        self._known = {mode: sum(s) / len(s) for mode, s in found.items()}
        self._full = _time_full_run(job)
        if self._full is None:
            self._full = self._scale_others()

    def estimate(self, cell: Cell) -> float | None:
        """Return the training time of a run, in s; None where nothing is known."""
        if cell.mode in self._known:
            return self._known[cell.mode]
        plan = self._plans[cell.mode]
        if plan is None or not plan.trains:
            return 0.0
        if self._full is None:
            return None
        if self._job.design.equal == "time":
            return self._full
        return self._full * estimate_share(plan, self._job.source.card.stages)

    def _scale_others(self) -> float | None:
        """Return what a run that trains all layers takes, by runs of other modes."""
        stages = self._job.source.card.stages
        full = [
            seconds / estimate_share(plan, stages)
            for mode, seconds in self._known.items()
            if (plan := self._plans[mode]) is not None and plan.trains
        ]
        return sum(full) / len(full) if full else None


def _time_full_run(job: ComparisonJob) -> float | None:
    """Return what a run that trains all layers takes, by the training of the source."""
    folder = job.source.run_dir
    if folder is None:
        return None
    training = read_document(find_metrics(folder)).get("training") or {}
    if not training.get("steps"):
        return None
    pace = float(training["seconds"]) / training["steps"]
    try:
        record = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        pace *= job.settings.batch_size / record["settings"]["batch_size"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        pass  # the pace of another batch size is better than none
    epochs = job.steps.epochs or job.settings.epochs
    return pace * epochs * job.settings.steps_per_epoch


def estimate_share(plan: TransferPlan, stages: Sequence[CardStage]) -> float:
    """Estimate the time of a step of a plan, as a share of one that trains all layers.

    Every layer costs a forward pass. The backward pass reaches down to the first
    stage that is trained.

    Args:
        plan: What is trained.
        stages: The stages of the network, from input to output.

    Returns:
        Above 0, at most 1: 1 where the first stage is trained.
    """
    shares, weights = [], []
    for phase in plan.phases:
        if not phase_trains(phase):
            continue
        chosen = select_layers(phase.trained, stages) - select_layers(
            phase.locked, stages
        )
        parts = {
            part for part, item in phase.batch_norm.items() if item.affine == "trained"
        }
        reached = [
            index
            for index, stage in enumerate(stages)
            if chosen & set(stage.layers) or stage.part in parts
        ]
        depth = (len(stages) - min(reached)) / len(stages) if reached else 0.0
        if phase.each_encoder_stage:  # it goes down from the last stage to the first
            depth = (1 + depth) / 2
        shares.append((1 + _BACKWARD * depth) / (1 + _BACKWARD))
        weights.append(phase.share)
    if not shares:
        return 1.0
    pairs = zip(shares, weights, strict=True)
    return sum(share * weight for share, weight in pairs) / sum(weights)


def _measure_run(folder: Path) -> int:
    """Return the size of what a run leaves, in bytes."""
    files = [*folder.glob("*"), *folder.glob("checkpoints/*")]
    return sum(path.stat().st_size for path in files if path.is_file())


@dataclass(kw_only=True)
class GridClock:
    """Says how long the runs that are left take, by those that were done."""

    pending: list[Cell]
    """The runs that are left, the one in progress first. None of them is finished."""
    guess: Callable[[Cell], float | None] = lambda _cell: None
    """Returns the seconds of a run of which no other of its mode was timed."""
    now: Callable[[], float] = time.monotonic
    """The clock."""
    _spent: dict[str, list[float]] = field(default_factory=dict)
    _begun_at: float = 0.0

    def begin(self) -> None:
        """Note that a run begins."""
        self._begun_at = self.now()

    def end(self, cell: Cell, *, counts: bool = True) -> None:
        """Note that a run has ended.

        Args:
            cell: The run.
            counts: Whether its time says anything: not where it failed.
        """
        self.pending.remove(cell)
        if counts:
            self._spent.setdefault(cell.mode, []).append(self.now() - self._begun_at)

    def estimate_left(self, share: float = 0.0) -> float | None:
        """Return the seconds that are left; None where nothing is known.

        Args:
            share: How much of the run in progress is done, 0 to 1.
        """
        every = [value for values in self._spent.values() for value in values]
        total = 0.0
        for index, cell in enumerate(self.pending):
            times = self._spent.get(cell.mode, [])
            seconds = sum(times) / len(times) if times else self.guess(cell)
            if seconds is None:
                if not every:
                    return None
                seconds = sum(every) / len(every)
            total += seconds * (1 - share if index == 0 else 1)
        return total
