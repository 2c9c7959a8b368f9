"""How many labels a mode needs to reach a score.

Scores are interpolated between budgets along the logarithm of the labels: doubling
the labels is one step. Nothing is extrapolated. A curve that does not reach the score
within the largest budget has not reached it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError
from cropseg.evaluation.intervals import find_quantile

_NUM_POINTS = 2001
"""Points of the grid along log labels, on which a crossing is looked for."""


@dataclass(frozen=True, kw_only=True)
class LabelsNeeded:
    """The labels at which a mode first reaches a score."""

    reached: bool
    """Whether the mean curve reaches the score within the largest budget."""
    labels: float | None
    """Labels where the mean curve first reaches the score, in the budgets' unit. None
    where it does not. The smallest budget means: that many or fewer."""
    low: float | None
    """Lower end of the interval. None where even the smallest budget may do, and
    where there is no interval. The largest budget where even that does not do."""
    high: float | None
    """Upper end of the interval. None where the largest budget may not do, and where
    there is no interval."""


def find_labels_needed(
    amounts: Sequence[float],
    scores: NDArray[np.float64],
    target: float | NDArray[np.float64],
    *,
    confidence: float = 0.95,
) -> LabelsNeeded:
    """Find the labels that a mode needs, with an interval over draws.

    The interval holds the amounts at which the t interval of the mean over draws of
    (score - target) holds 0: a t test turned round. Draws that never reach the target
    count as they are, and nothing is assumed of the labels that they would need. The
    interval is for these test blocks: for blocks too, give the intervals of
    differences to `find_crossing`.

    Args:
        amounts: Labels of the budgets, rising, above 0, in one unit.
        scores: Shape (budgets, D). Column d is the same draw at all budgets.
        target: The score to reach: one number, or one a draw, shape (D,), of another
            mode at the same draws.
        confidence: Share of intervals that hold the truth.

    Returns:
        The labels needed. With one draw there is no interval.

    Raises:
        DataError: If the shapes do not fit, or if the amounts do not rise.

    Example:
        >>> curve = np.array([[0.40, 0.42], [0.50, 0.52]])
        >>> needed = find_labels_needed([2, 8], curve, 0.46)
        >>> round(needed.labels, 6)
        4.0
        >>> find_labels_needed([2, 8], curve, 0.6).reached
        False
    """
    scores = np.asarray(scores, dtype=float)
    goal = np.asarray(target, dtype=float)
    if scores.ndim != 2 or len(scores) != len(amounts) or scores.size == 0:  # noqa: PLR2004
        raise DataError(
            f"Scores have the shape {scores.shape} for {len(amounts)} budgets. "
            "Expected (budgets, draws)."
        )
    num_draws = scores.shape[1]
    if goal.shape not in ((), (num_draws,)):
        raise DataError(
            f"The target has the shape {goal.shape}. Give one score, or one for each "
            f"of the {num_draws} draws."
        )
    gaps = scores - goal
    # Of draws interpolated one by one, as the spread between budgets is not the
    # interpolated spread.
    log_amounts = _check_amounts(amounts)
    grid = np.linspace(log_amounts[0], log_amounts[-1], _NUM_POINTS)
    lines = np.stack([np.interp(grid, log_amounts, gap) for gap in gaps.T])
    mean = lines.mean(axis=0)
    if num_draws == 1:
        nothing = np.full_like(mean, np.nan)
        return _cross(grid, mean, nothing, nothing)
    error = lines.std(axis=0, ddof=1) / num_draws**0.5
    half = find_quantile(num_draws - 1, confidence) * error
    return _cross(grid, mean, mean - half, mean + half)


def find_crossing(
    amounts: Sequence[float],
    values: Sequence[float],
    lows: Sequence[float] | None = None,
    highs: Sequence[float] | None = None,
) -> LabelsNeeded:
    """Find the labels at which differences to a target first reach 0.

    For intervals over draws and blocks: `values`, `lows` and `highs` are those of
    `estimate_difference` between the mode at each budget and the target.

    Args:
        amounts: Labels of the budgets, rising, above 0.
        values: Difference at each budget: score of the mode minus the target.
        lows: Lower ends of the differences' intervals, or None for no interval.
        highs: Upper ends, or None.

    Returns:
        The labels needed. The interval reaches from where the upper ends reach 0 to
        where the lower ends do.

    Raises:
        DataError: If the lengths differ, or if the amounts do not rise.

    Example:
        >>> needed = find_crossing([1, 10], [-0.1, 0.1], [-0.2, 0.0], [0.0, 0.2])
        >>> needed.low is None, round(needed.labels, 2), round(needed.high, 6)
        (True, 3.16, 10.0)
    """
    log_amounts = _check_amounts(amounts)
    nothing = [np.nan] * len(amounts)
    curves = [np.asarray(item) for item in (values, lows or nothing, highs or nothing)]
    if any(curve.shape != log_amounts.shape for curve in curves):
        raise DataError(
            f"{len(amounts)} budgets need as many differences and ends of intervals; "
            f"received {[len(curve) for curve in curves]}."
        )
    return _cross(log_amounts, *curves)


def _check_amounts(amounts: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(amounts, dtype=float)
    if values.size == 0 or not (values[0] > 0 and np.all(np.diff(values) > 0)):
        raise DataError(
            f"The amounts of labels are {list(amounts)}. Give amounts above 0 in "
            "rising order, each once."
        )
    return np.log(values)


def _cross(
    log_amounts: NDArray[np.float64],
    mean: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> LabelsNeeded:
    labels = _find_first(log_amounts, mean)
    latest = _find_first(log_amounts, low)
    # An upper curve that starts at or above 0 leaves the lower end open. One that
    # never gets there says that the labels needed are beyond all budgets.
    earliest = None if high[0] >= 0 else _find_first(log_amounts, high)
    if (high < 0).all():
        earliest = float(np.exp(log_amounts[-1]))
    return LabelsNeeded(
        reached=labels is not None, labels=labels, low=earliest, high=latest
    )


def _find_first(
    log_amounts: NDArray[np.float64], gap: NDArray[np.float64]
) -> float | None:
    """Return the amount at which a piecewise straight curve first reaches 0."""
    above = np.flatnonzero(gap >= 0)
    if above.size == 0:
        return None
    index = int(above[0])
    if index == 0:
        return float(np.exp(log_amounts[0]))
    before, after = gap[index - 1], gap[index]
    share = -before / (after - before)
    step = log_amounts[index] - log_amounts[index - 1]
    return float(np.exp(log_amounts[index - 1] + share * step))
