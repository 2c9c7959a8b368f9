"""What a training did, step by step: the record, its files, and whether it is done."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cropseg.files import write_text, write_whole

_TAIL = 0.1
_MAX_FALL = 0.05


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of a training."""

    epoch: int
    """Its number, counted from 1."""
    step: int
    """Steps done at its end."""
    loss: float
    """Mean training loss over its batches."""
    learning_rate: float
    """Learning rate of its last step."""
    val_miou: float | None
    """Mean IoU on the val part at its end, or None where nothing is validated."""
    seconds: float
    """Wall-clock time that it took, in s."""


def has_converged(losses: Sequence[float]) -> bool:
    """Say whether a training was done when it stopped.

    It was not, if a line through the losses of the last tenth of its steps falls over
    that tenth by more than 5 % of their mean, and by its standard error more: batches
    differ, so that a line through few of them falls by chance. The learning rate is
    near 0 by then, so this says that the schedule ran out, not that more steps would
    not have helped.

    Args:
        losses: Training loss of every step.

    Example:
        >>> has_converged([1.0 - 0.005 * step for step in range(100)])
        False
        >>> has_converged([0.5] * 100)
        True
    """
    if len(losses) < 2:  # noqa: PLR2004 - a line has two points
        return False
    tail = np.asarray(losses[-max(2, round(_TAIL * len(losses))) :])
    steps = np.arange(len(tail)) - (len(tail) - 1) / 2
    slope = steps @ tail / (steps @ steps)
    noise = tail - tail.mean() - slope * steps
    error = math.sqrt(noise @ noise / max(1, len(tail) - 2) / (steps @ steps))
    return bool((-slope - error) * (len(tail) - 1) < _MAX_FALL * tail.mean())


def write_history(epochs: Sequence[Epoch], path: Path) -> None:
    """Write one row an epoch as CSV."""
    text = io.StringIO()
    names = [field.name for field in fields(Epoch)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in epochs)
    write_text(path, text.getvalue())


def plot_curves(
    losses: Sequence[float], epochs: Sequence[Epoch], title: str, path: Path
) -> None:
    """Draw training loss and validation mIoU against steps, as PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(1, len(losses) + 1)
    starts = [0, *(item.step for item in epochs[:-1])]
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of a step")
    axes.plot(
        [(start + item.step) / 2 for start, item in zip(starts, epochs, strict=True)],
        [item.loss for item in epochs],
        color="tab:blue",
        label="mean loss of an epoch",
    )
    axes.set(xlabel="step", ylabel="training loss")
    axes.set_title(title, parse_math=False)  # a site's name is no formula
    axes.set_ylim(0, float(np.percentile(losses, 99)) * 1.1)
    handles, labels = axes.get_legend_handles_labels()
    scored = [(e.step, e.val_miou) for e in epochs if e.val_miou is not None]
    if scored:
        right = axes.twinx()
        right.plot(*zip(*scored, strict=True), color="tab:orange", label="val mIoU")
        right.set(ylabel="val mIoU", ylim=(0, 1))
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    with write_whole(path) as part:
        figure.savefig(part, dpi=120)
