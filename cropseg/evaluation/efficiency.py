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
    given = (values, *(nothing if ends is None else ends for ends in (lows, highs)))
    curves = [np.asarray(item) for item in given]
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
