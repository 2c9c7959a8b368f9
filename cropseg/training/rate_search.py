"""A learning-rate range test: how fast can this network be trained?

The rate rises from step to step while the loss is watched. The test is a look and
no training: every variable is as it was before, to the bit.

References:
    Smith 2017, Cyclical learning rates for training neural networks,
    arXiv:1506.01186, section 3.3.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from cropseg.errors import DivergedError, UsageError
from cropseg.files import write_text, write_whole
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import keras

_log = logging.getLogger(__name__)

FIRST_RATE = 1e-6
LAST_RATE = 1.0

LEAST_RATE = 1e-5
"""What is suggested where the loss does not fall: the smallest rate with which a
training of a few hundred steps moves weights at all."""

DEFAULT_STEPS = 60
"""Ten steps for each power of ten."""

_MIN_STEPS = 12
_MAX_RISE = 4.0
"""The test ends where the smoothed loss exceeds this many times its lowest value."""

_MEMORY = 0.8
"""Share of the mean so far in the next smoothed loss: a mean over about 9 losses."""

_WINDOW_SHARE = 0.25
"""Share of the steps that a line is laid through: one and a half powers of ten."""

_START_SHARE = 1 / 6
"""Share of the steps that show level and noise of the loss before anything moves."""

_MIN_FALL = 6.0
"""How far the loss must fall, in standard deviations of the smoothed loss. Of 4,000
curves of pure noise about 3 in 100 fell that far."""


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """What a range test saw."""

    rates: tuple[float, ...]
    """Learning rate of each step, rising."""
    losses: tuple[float, ...]
    """Training loss of each step, before its update."""
    suggestion: float
    """The learning rate to use as the highest of a training."""
    is_clear: bool = True
    """Whether the loss fell. If not, the suggestion is `LEAST_RATE`."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "suggestion": self.suggestion,
            "is_clear": self.is_clear,
            "rates": list(self.rates),
            "losses": list(self.losses),
        }


def search_rate(
    build_trainer: Callable[[Any], Any],
    batches: Any,
    *,
    num_steps: int = DEFAULT_STEPS,
    first_index: int = 0,
    show_progress: ShowProgress = show_nothing,
) -> RateSearch:
    """Find a learning rate by raising it from 1e-6 to 1, a little with every batch.

    It ends early where the smoothed loss exceeds four times its lowest value or is
    not finite. The same batches and weights give the same answer. Every variable of
    the trainer, weights, statistics and random states, has its old value at the end,
    also after an error.

    Args:
        build_trainer: Returns a compiled model for a learning rate, which is a number
            or a schedule. It may share variables with the model that is trained.
        batches: Gives (inputs, labels) by index.
        num_steps: Batches, 12 or more.
        first_index: Index of the first batch.
        show_progress: Called after every step.

    Returns:
        Rates, losses and the suggestion, by the rule of `suggest_rate`.

    Raises:
        UsageError: If there are too few steps.
        DivergedError: If the first loss is not finite.
    """
    if num_steps < _MIN_STEPS:
        raise UsageError(
            f"A range test has {num_steps} steps; give {_MIN_STEPS} or more, or a "
            "learning rate of your own."
        )
    rates = np.geomspace(FIRST_RATE, LAST_RATE, num_steps)
    schedule = keras.optimizers.schedules.ExponentialDecay(
        FIRST_RATE, decay_steps=num_steps - 1, decay_rate=LAST_RATE / FIRST_RATE
    )
    losses: list[float] = []
    with _keep_random_state():
        trainer = build_trainer(schedule)
        with _keep_variables(trainer):
            for step in range(num_steps):
                images, labels = batches[first_index + step]
                loss = trainer.train_on_batch(images, labels, return_dict=True)["loss"]
                if not math.isfinite(loss):
                    break
                losses.append(float(loss))
                show_progress(step + 1, num_steps, f"rate {rates[step]:.1e}")
                smoothed = smooth_losses(losses)
                if smoothed[-1] > _MAX_RISE * smoothed.min():
                    break
    if not losses:
        raise DivergedError(
            f"The loss is {loss} at the first step of the range test, before anything "
            "was trained. Look at the data with `cropseg check`."
        )
    tried = tuple(rates[: len(losses)].tolist())
    found = suggest_rate(tried, losses, num_steps=num_steps)
    if found is None:
        _log.warning(
            "The loss did not fall in the range test of %d steps, so the smallest "
            "rate, %g, is suggested. Look at its plot, or choose a rate of your own.",
            *(len(losses), LEAST_RATE),
        )
    return RateSearch(
        rates=tried,
        losses=tuple(losses),
        suggestion=LEAST_RATE if found is None else found,
        is_clear=found is not None,
    )


def smooth_losses(losses: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the exponential mean of losses, corrected for its start at 0.

    Args:
        losses: Losses of the steps.

    References:
        Kingma and Ba 2015, arXiv:1412.6980, section 3, for the correction.
    """
    smoothed, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        smoothed.append(mean / (1 - _MEMORY**count))
    return np.array(smoothed)


def suggest_rate(
    rates: Sequence[float], losses: Sequence[float], *, num_steps: int
) -> float | None:
    """Return the rate at which the loss falls most steeply, or None if it does not.

    Lines are laid through the losses over the logarithm of the rate, each through a
    quarter of the test's steps, none beyond the lowest point of the smoothed loss.
    The suggestion is the rate in the middle of the steepest. A line smooths as the
    exponential mean does, but does not lag behind it.

    The loss counts as falling if the smoothed loss ends up six of its standard
    deviations below the level at which it starts.

    Args:
        rates: Learning rates, rising by equal factors.
        losses: Their losses.
        num_steps: Steps that were planned; there may be fewer losses.
    """
    window = round(_WINDOW_SHARE * num_steps)
    smoothed = smooth_losses(losses)
    lowest = int(smoothed.argmin())
    if lowest + 1 < window:
        return None
    start = np.asarray(losses[: max(2, round(_START_SHARE * num_steps))])
    # Of an exponential mean of independent values, after many of them.
    noise = start.std(ddof=1) * math.sqrt((1 - _MEMORY) / (1 + _MEMORY))
    if start.mean() - smoothed[lowest] <= _MIN_FALL * noise:
        return None
    views = np.lib.stride_tricks.sliding_window_view(losses[: lowest + 1], window)
    slopes = views @ (np.arange(window) - (window - 1) / 2)
    steepest = int(slopes.argmin())
    if slopes[steepest] >= 0:
        return None
    middle = np.log(rates[steepest : steepest + window]).mean()
    return float(f"{math.exp(middle):.2g}")  # more digits would say nothing


@contextlib.contextmanager
def _keep_random_state() -> Iterator[None]:
    """Put back what Keras draws the seeds of new layers from."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _keep_variables(trainer: Any) -> Iterator[None]:
    """Put back the value of every variable, seeds of dropout included."""
    kept = [
        (variable, np.array(keras.ops.convert_to_numpy(variable)))
        for variable in trainer.variables
    ]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def write_rate_search(search: RateSearch, path: Path) -> None:
    """Write rate, loss and smoothed loss of each step as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["learning_rate", "loss", "smoothed_loss"])
    smoothed = smooth_losses(search.losses).tolist()
    table.writerows(zip(search.rates, search.losses, smoothed, strict=True))
    write_text(path, text.getvalue())


def plot_rate_search(search: RateSearch, title: str, path: Path) -> None:
    """Draw the loss over the learning rate, the suggestion marked, as PNG.

    Args:
        search: What the test saw.
        title: Title of the plot.
        path: A PNG file.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    smoothed = smooth_losses(search.losses)
    label = "loss of a step"
    axes.plot(search.rates, search.losses, color="0.75", linewidth=0.8, label=label)
    axes.plot(search.rates, smoothed, color="tab:blue", label="smoothed")
    text = f"suggestion: {search.suggestion:g}"
    if not search.is_clear:
        text = f"{text}, for want of a fall"
    axes.axvline(search.suggestion, color="tab:orange", linestyle="--", label=text)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.set_title(title, parse_math=False)  # a site's name is no formula
    # What the loss is before it rises fills the plot; the rise may leave it.
    settled = search.losses[: int(smoothed.argmin()) + 1]
    low, high = min(search.losses), max(*settled, 1.5 * min(smoothed))
    margin = 0.1 * max(high - low, 1e-6)
    axes.set_ylim(low - margin, high + margin)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with write_whole(path) as part:
        figure.savefig(part, dpi=110)
