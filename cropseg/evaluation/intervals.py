"""How precisely a score is known: over draws of labels, and over test blocks.

A score has two sources of chance: which labels were drawn, and which blocks are the
test. Both count, and so does the part that is neither (draws that do well on other
blocks). This is the two-way random-effects model of multi-reader, multi-case
studies, with draws as readers and blocks as cases.

Invariant: scores are computed from sums of counts over one fixed class set, never
from means over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cropseg.errors import DataError

Counts: TypeAlias = NDArray[np.float64 | np.int64]
"""Pixels, of shape (..., C, C + 1): rows labels, last column other."""

ScoreFunction: TypeAlias = Callable[[Counts], NDArray[np.float64]]
"""From counts (..., C, C + 1) to scores (...), 0 to 1."""

MIN_BLOCKS = 8
"""Below so many blocks there is no interval: say the range over draws instead. A
class whose labels lie in fewer blocks than this is thin (`find_thin_classes`)."""

MIN_DRAWS = 3
"""Between one draw and so many there is no interval either: two draws leave one degree
of freedom, and with it intervals that tell nothing, or by luck too much."""

_TRACE = 1e-9
"""The weight that a deleted block keeps. With 0, a class that lies in that block
alone would have no score."""

_COUNTS_NDIM = 5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score, and how precisely it is known."""

    value: float
    """Mean over draws and seeds of the score of all blocks together, 0 to 1. NaN
    where the score does not exist: a class without a label."""
    low: float | None
    """Lower end of the interval, or None with fewer than `MIN_BLOCKS` blocks. A score
    near 0 or 1 can have an end beyond it: clip where it is shown."""
    high: float | None
    """Upper end of the interval, or None."""
    standard_error: float | None
    """Standard error over draws and blocks, or None."""
    dof: float | None
    """Degrees of freedom: between draws - 1 and blocks - 1, or None."""


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """A score by draw, and the part that each block has in it."""

    scores: NDArray[np.float64]
    """Shape (D,): score of all blocks together, mean over the seeds of a draw."""
    pseudo_values: NDArray[np.float64]
    """Shape (D, B): jackknife pseudo-values, B f - (B - 1) f without the block."""


def make_mean_iou(classes: Sequence[int]) -> ScoreFunction:
    """Return the mean IoU over a fixed class set.

    Args:
        classes: Class ids, the same for all runs that are compared.

    Returns:
        The score function. A class without a label pixel is left out of the mean, as
        in `cropseg.evaluation.scores`; without any, the score is NaN.

    Raises:
        DataError: If there is no class, or one twice.

    Example:
        >>> counts = np.array([[3, 1, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0]])
        >>> float(make_mean_iou([0, 1, 2])(counts))
        0.5
    """
    if not classes or len(set(classes)) != len(classes) or min(classes) < 0:
        raise DataError(
            f"The class set is {list(classes)}. Give the ids of one or more "
            "classes, each once, counted from 0."
        )
    ids = np.asarray(classes)

    def score(counts: Counts) -> NDArray[np.float64]:
        iou = _compute_iou(counts, ids)
        num_known = np.sum(~np.isnan(iou), axis=-1)
        total = np.nansum(iou, axis=-1)
        return np.where(num_known > 0, total / np.maximum(num_known, 1), np.nan)

    return score


def make_class_iou(class_id: int) -> ScoreFunction:
    """Return the IoU of one class. It is NaN where the class has no label pixel."""
    return make_mean_iou([class_id])


def compute_accuracy(counts: Counts) -> NDArray[np.float64]:
    """Return the share of the labelled pixels that are right, or NaN without any.

    Args:
        counts: Pixels, of shape (..., C, C + 1).

    Returns:
        Shape (...), 0 to 1.
    """
    right = np.trace(counts[..., :-1], axis1=-2, axis2=-1)
    total = counts.sum(axis=(-2, -1))
    return np.where(total > 0, right / np.where(total > 0, total, 1), np.nan)


def estimate_score(
    counts: Counts, score: ScoreFunction, *, confidence: float = 0.95
) -> Estimate:
    """Estimate a score with an interval over draws and blocks.

    The interval is for the score to be expected of other draws from the same label
    pool on as many other blocks like these. It does not cover another area, year or
    sensor, another source model, or labels that are wrong; neighbouring blocks are
    taken for independent. Mean IoU rises a little with the number of blocks (in the
    simulations by 0.002 from 64 blocks to all, by 0.006 from 16), which differences
    hardly feel. Where draws differ most, five draws give intervals of little more than
    half the length that three give.

    Args:
        counts: Shape (D, S, B, C, C + 1): draws, seeds of a draw, blocks. With one
            draw, the seeds stand for it, and the interval is for these labels; with
            one run in all, for this very model.
        score: The score, over a class set that is the same for all runs.
        confidence: Share of intervals that hold the truth, over many experiments.

    Returns:
        The estimate.

    Raises:
        DataError: If the shape is another.
    """
    (replicates,) = jackknife([counts], score)
    value = float(replicates.scores.mean())
    precision = measure_precision(replicates)
    if precision is None:
        return Estimate(value=value, low=None, high=None, standard_error=None, dof=None)
    error, dof = precision
    half = find_quantile(dof, confidence) * error
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        standard_error=error,
        dof=dof,
    )


def jackknife(
    counts_by_mode: Sequence[Counts], score: ScoreFunction
) -> list[Replicates]:
    """Compute the score of every draw of every mode, and without each block in turn.

    A deleted block keeps a billionth of its weight, so that a class which lies in
    that block alone keeps a score.

    Args:
        counts_by_mode: Shape (D, S, B, C, C + 1) each. Where all have one draw, their
            seeds stand for draws.
        score: The score.

    Returns:
        The replicates of each mode.

    Raises:
        DataError: If a shape is another.
    """
    for counts in counts_by_mode:
        _check_counts(counts)
    if all(len(counts) == 1 for counts in counts_by_mode):
        counts_by_mode = [counts.swapaxes(0, 1) for counts in counts_by_mode]
    return [_jackknife_mode(counts, score) for counts in counts_by_mode]


def _jackknife_mode(counts: Counts, score: ScoreFunction) -> Replicates:
    num_blocks = counts.shape[2]
    scores, pseudo_values = [], []
    for runs in counts:  # a draw at a time bounds the memory
        totals = runs.sum(axis=1)
        whole = score(totals)
        without = score((totals[:, np.newaxis] - runs) + _TRACE * runs)
        pseudo = num_blocks * whole[:, np.newaxis] - (num_blocks - 1) * without
        scores.append(whole.mean())
        pseudo_values.append(pseudo.mean(axis=0))
    return Replicates(scores=np.array(scores), pseudo_values=np.array(pseudo_values))


def _check_counts(counts: Counts) -> None:
    if (
        counts.ndim != _COUNTS_NDIM
        or counts.shape[-1] != counts.shape[-2] + 1
        or 0 in counts.shape
    ):
        raise DataError(
            f"Counts have the shape {counts.shape}. Expected (draws, seeds, blocks, "
            "classes, classes + 1), each at least 1. Stack the counts of the runs."
        )


def measure_precision(replicates: Replicates) -> tuple[float, float] | None:
    """Return the standard error of the mean over draws, and its degrees of freedom.

    With `a` the variance of the scores over draws divided by D, `b` the jackknife
    variance of their mean over blocks, and `e` the interaction of the two:

        variance = a + c, with c = max(b - e, 0)
        1 / dof = a / variance / (D - 1) + c / variance / (B - 1)

    `a` and `b` each hold the interaction once, so one is taken off: the variance of
    Obuchowski and Rockette. Satterthwaite's degrees of freedom weight with squared
    shares. With 3 draws these are too many whenever `a` happens to be small, and up
    to 8 % of the intervals miss; with plain shares 3 to 6 % do. The method was chosen
    by simulation on real counts (docs/decisions/0015-intervals.md has the figures): at
    3 draws and 64 blocks an A/A test rejects in 5 %, and intervals cover in 94 to
    97 %, where a percentile bootstrap over draws covers in 40 to 75 %.

    Args:
        replicates: Of one mode, or the difference of two.

    Returns:
        Standard error and degrees of freedom, or None with fewer than `MIN_BLOCKS`
        blocks, with several but fewer than `MIN_DRAWS` draws, or without a score.

    References:
        Obuchowski, Rockette 1995, doi:10.1080/03610919508813243.
        Hillis 2007, doi:10.1002/sim.2532.
        Satterthwaite 1946, doi:10.2307/3002019.
    """
    scores, pseudo = replicates.scores, replicates.pseudo_values
    num_draws, num_blocks = pseudo.shape
    if num_blocks < MIN_BLOCKS or 1 < num_draws < MIN_DRAWS or np.isnan(scores).any():
        return None
    blocks = float(pseudo.mean(axis=0).var(ddof=1)) / num_blocks
    if num_draws == 1:
        return blocks**0.5, float(num_blocks - 1)
    draws = float(scores.var(ddof=1)) / num_draws
    rest = center_both(pseudo)
    cells = (num_draws - 1) * (num_blocks - 1)
    interaction = float((rest**2).sum()) / cells / (num_draws * num_blocks)
    blocks = max(blocks - interaction, 0.0)
    variance = draws + blocks
    if variance == 0:
        return 0.0, num_draws - 1.0
    share = draws / variance
    dof = 1 / (share / (num_draws - 1) + (1 - share) / (num_blocks - 1))
    return variance**0.5, dof


def center_both(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the means of the last two axes off: what is neither draw nor block."""
    return (
        values
        - values.mean(axis=-1, keepdims=True)
        - values.mean(axis=-2, keepdims=True)
        + values.mean(axis=(-2, -1), keepdims=True)
    )


def find_quantile(dof: float, confidence: float) -> float:
    """Return the t quantile of a two-sided interval.

    Raises:
        DataError: If the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise DataError(f"The confidence is {confidence}; give a share such as 0.95.")
    return float(stats.t.ppf((1 + confidence) / 2, dof))


def find_thin_classes(counts: Counts) -> tuple[int, ...]:
    """Find the classes whose labels lie in too few blocks for an interval.

    The variance over blocks of such a class cannot be seen in the blocks at hand, and
    intervals that include it are too short: in the simulations, differences of mean IoU
    missed in up to 15 % with one such class of eight. Say so beside them.

    The number of blocks is the effective one, (sum n)^2 / sum n^2 of the label pixels
    n of a block: a class with all but a few pixels in one block counts as one.

    Args:
        counts: Pixels, of shape (..., B, C, C + 1). Labels are the same in all runs.

    Returns:
        Ids of the classes that have labels, in fewer than `MIN_BLOCKS` effective
        blocks.
    """
    labels = counts.reshape(-1, *counts.shape[-3:])[0].sum(axis=-1).astype(float)
    total = labels.sum(axis=0)
    squares = (labels**2).sum(axis=0)
    thin = (total > 0) & (total**2 < MIN_BLOCKS * squares)
    return tuple(int(index) for index in np.flatnonzero(thin))


def _compute_iou(counts: Counts, ids: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the IoU of classes: shape (..., len(ids)), NaN without a label."""
    right = counts[..., ids, ids]
    labelled = counts.sum(axis=-1)[..., ids]
    union = labelled + counts.sum(axis=-2)[..., ids] - right
    known = labelled > 0
    return np.where(known, right / np.where(known, union, 1), np.nan)
