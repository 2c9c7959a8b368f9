"""Differences between modes: how large, how sure, and what could have been found.

Modes are compared on the same blocks, and on the same draws where both have draws:
what is hard for both falls out. Tests are many, so p values are corrected by Holm's
method. The probability of being best stands apart from the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from cropseg.errors import DataError
from cropseg.evaluation.intervals import (
    MIN_BLOCKS,
    MIN_DRAWS,
    Counts,
    Replicates,
    ScoreFunction,
    center_both,
    find_quantile,
    jackknife,
    measure_precision,
)

_NUM_SAMPLES = 20_000
"""Samples of the true scores. A probability is then right to about 0.004."""

_POWER_NODES = 2000
"""Points of the chi-square distribution that the power is summed over."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The score of one mode minus that of another."""

    value: float
    """Mean difference over draws and seeds, -1 to 1. NaN without a score."""
    low: float | None
    """Lower end of the interval, or None with fewer than `MIN_BLOCKS` blocks."""
    high: float | None
    """Upper end of the interval, or None."""
    standard_error: float | None
    """Standard error over draws and blocks, or None."""
    dof: float | None
    """Degrees of freedom of the standard error."""
    p_value: float | None
    """Two-sided p value of no difference, before any correction, or None."""


def estimate_difference(
    counts: Counts, other: Counts, score: ScoreFunction, *, confidence: float = 0.95
) -> Difference:
    """Estimate the score of `counts` minus the score of `other`.

    Paired over blocks, and over draws where both have several. A mode with one run
    (`zero_shot`) is compared with every draw of the other. The variance is that of
    `cropseg.evaluation.intervals.measure_precision`, of the paired difference.

    Args:
        counts: Shape (D, S, B, C, C + 1), of the same blocks as `other`.
        other: Shape (D or 1, any, B, C, C + 1), of the same draws in the same order.
        score: The score, over a class set that is the same for all runs.
        confidence: Share of intervals that hold the truth, over many experiments.

    Returns:
        The difference. Its interval leaves 0 out just where `p_value` is below
        1 - confidence.

    Raises:
        DataError: If the blocks or the draws do not fit each other.
    """
    difference = _subtract(*jackknife([counts, other], score))
    value = float(difference.scores.mean())
    precision = measure_precision(difference)
    if precision is None:
        return Difference(
            value=value,
            low=None,
            high=None,
            standard_error=None,
            dof=None,
            p_value=None,
        )
    error, dof = precision
    half = find_quantile(dof, confidence) * error
    return Difference(
        value=value,
        low=value - half,
        high=value + half,
        standard_error=error,
        dof=dof,
        p_value=_compute_p_value(value, error, dof),
    )


def compute_power(
    difference: float, standard_error: float, dof: float, *, alpha: float = 0.05
) -> float:
    """Compute how probably a t test finds a true difference.

    Args:
        difference: The true difference, of either sign.
        standard_error: Standard error of the estimated difference, above 0.
        dof: Its degrees of freedom.
        alpha: Level of the two-sided test.

    Returns:
        Probability that the p value is below `alpha`, 0 to 1: `alpha` itself for no
        difference.

    Raises:
        DataError: If the standard error or the level is out of range.

    Example:
        >>> round(compute_power(0.03, 0.01, 10.0), 2)
        0.77
    """
    if not standard_error > 0 or not dof > 0:
        raise DataError(
            f"The standard error is {standard_error} with {dof} degrees of freedom; "
            "both must be above 0."
        )
    limit = find_quantile(dof, 1 - alpha)
    shift = abs(difference) / standard_error
    # The sum over the variance of a chi-square, instead of scipy's noncentral t,
    # which gives NaN for large shifts.
    share = (np.arange(_POWER_NODES) + 0.5) / _POWER_NODES
    scale = limit * np.sqrt(stats.chi2.ppf(share, dof) / dof)
    found = stats.norm.sf(scale - shift) + stats.norm.cdf(-scale - shift)
    return float(found.mean())


def find_smallest_difference(
    standard_error: float, dof: float, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Find the difference that a test at this precision finds with this probability.

    Args:
        standard_error: Standard error of a difference, 0 or above.
        dof: Its degrees of freedom.
        power: Probability of finding it, between `alpha` and 1.
        alpha: Level of the two-sided test.

    Returns:
        The difference, in units of the score.

    Raises:
        DataError: If the power or the level is out of range.

    Example:
        >>> round(find_smallest_difference(0.01, 10.0), 4)
        0.0311
    """
    if not 0 < alpha < power < 1:
        raise DataError(
            f"The power is {power} at the level {alpha}. Give a power between the "
            "level and 1, such as 0.8 at 0.05."
        )
    if standard_error == 0:
        return 0.0

    def missing(difference: float) -> float:
        return compute_power(difference, 1.0, dof, alpha=alpha) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return standard_error * float(optimize.brentq(missing, 0.0, high, xtol=1e-6))


def pool_precision(differences: Sequence[Difference]) -> tuple[float, float]:
    """Pool the precision of several differences, for one statement about them all.

    The standard error of one difference over three draws is itself known to a factor
    of two or so, and a power stated from it is as vague. From several differences of
    one experiment it holds (tests/evaluation/test_coverage.py).

    Args:
        differences: Differences of one experiment. Those without a standard error
            are left out.

    Returns:
        Root mean square of the standard errors, and harmonic mean of the degrees of
        freedom, as `compute_power` and `find_smallest_difference` take them.

    Raises:
        DataError: If none has a standard error.
    """
    known = [
        (item.standard_error, item.dof)
        for item in differences
        if item.standard_error is not None and item.dof is not None
    ]
    if not known:
        raise DataError(
            f"None of the {len(differences)} differences has a standard error. They "
            f"need {MIN_BLOCKS} test blocks or more."
        )
    errors, dofs = np.array(known).T
    return float(np.sqrt(np.mean(errors**2))), float(1 / np.mean(1 / dofs))


def adjust_holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p values of a family of tests by Holm's step-down method.

    Args:
        p_values: p values, 0 to 1, in any order.

    Returns:
        Corrected p values in the same order: a test counts at a level where its
        corrected value is below it, and the probability of one or more false finds
        in the family stays below that level, whatever the tests share.

    Raises:
        DataError: If a value is not between 0 and 1.

    Example:
        >>> adjust_holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)

    References:
        Holm 1979, Scandinavian Journal of Statistics 6 (2), 65-70.
    """
    values = np.asarray(p_values, dtype=float)
    if not np.all((values >= 0) & (values <= 1)):
        raise DataError(f"p values lie between 0 and 1; received {list(p_values)}.")
    order = np.argsort(values, kind="stable")
    steps = (len(values) - np.arange(len(values))) * values[order]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return tuple(float(value) for value in adjusted)


def estimate_best(
    counts_by_mode: Mapping[str, Counts], score: ScoreFunction, *, seed: int = 0
) -> dict[str, float]:
    """Estimate for each mode the probability that its true score is the highest.

    The true scores are drawn around the measured ones, all modes together: with the
    covariance over draws, as a t distribution with D - 1 degrees of freedom, plus the
    covariance over blocks without the interaction, as a normal one. That is what the
    data alone say, with no opinion beforehand. It is no test: with equal modes, one
    has a high probability now and then, as a p value is low now and then.

    Args:
        counts_by_mode: Counts by mode, each of shape (D or 1, any, B, C, C + 1), of
            the same blocks and draws.
        score: The score.
        seed: Seed of the draws.

    Returns:
        Probabilities that add up to 1. Empty with fewer than `MIN_BLOCKS` blocks, with
        several but fewer than `MIN_DRAWS` draws, or without a score.

    Raises:
        DataError: If the blocks or the draws do not fit each other.
    """
    replicates = jackknife(list(counts_by_mode.values()), score)
    if not replicates:
        return {}
    num_draws = max(len(item.scores) for item in replicates)
    widest = next(item for item in replicates if len(item.scores) == num_draws)
    for item in replicates:
        _check_pair(widest, item)
    num_blocks = widest.pseudo_values.shape[1]
    scores = np.stack([np.broadcast_to(item.scores, num_draws) for item in replicates])
    is_few = num_blocks < MIN_BLOCKS or 1 < num_draws < MIN_DRAWS
    if is_few or np.isnan(scores).any():
        return {}
    pseudo = np.stack(
        [
            np.broadcast_to(item.pseudo_values, (num_draws, num_blocks))
            for item in replicates
        ]
    )
    generator = np.random.default_rng(seed)
    over_draws, over_blocks = _measure_covariances(scores, pseudo)
    samples = scores.mean(axis=1) + _sample(over_blocks, generator)
    if num_draws > 1:
        spread = generator.chisquare(num_draws - 1, _NUM_SAMPLES) / (num_draws - 1)
        samples += _sample(over_draws, generator) / np.sqrt(spread)[:, np.newaxis]
    # Modes of equal counts share what they win.
    best = samples >= samples.max(axis=1, keepdims=True) - 1e-12  # rounding
    shares = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return dict(zip(counts_by_mode, shares.tolist(), strict=True))


def _subtract(first: Replicates, second: Replicates) -> Replicates:
    _check_pair(first, second)
    return Replicates(
        scores=first.scores - second.scores,
        pseudo_values=first.pseudo_values - second.pseudo_values,
    )


def _check_pair(first: Replicates, second: Replicates) -> None:
    draws, blocks = first.pseudo_values.shape
    other_draws, other_blocks = second.pseudo_values.shape
    if blocks != other_blocks:
        raise DataError(
            f"One mode has counts of {blocks} blocks and another of {other_blocks}. "
            "Modes are compared on the same blocks: leave out the runs that lack some."
        )
    if draws != other_draws and 1 not in (draws, other_draws):
        raise DataError(
            f"One mode has {draws} draws and another {other_draws}. Modes are compared "
            "on the same draws: leave out the draws that only one of them has."
        )


def _compute_p_value(value: float, error: float, dof: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, dof))


def _measure_covariances(
    scores: NDArray[np.float64], pseudo: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the covariances of the mean scores, (M, M) each: over draws, over blocks.

    Args:
        scores: Shape (M, D).
        pseudo: Shape (M, D, B).
    """
    num_modes, num_draws, num_blocks = pseudo.shape
    blocks = np.cov(pseudo.mean(axis=1)).reshape(num_modes, num_modes) / num_blocks
    if num_draws == 1:
        return np.zeros_like(blocks), blocks
    draws = np.cov(scores).reshape(num_modes, num_modes) / num_draws
    rest = center_both(pseudo).reshape(num_modes, -1)
    cells = (num_draws - 1) * (num_blocks - 1)
    interaction = rest @ rest.T / cells / (num_draws * num_blocks)
    return draws, blocks - interaction


def _sample(
    covariance: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw from a centred normal: (samples, M). Negative variances become 0."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = generator.standard_normal((_NUM_SAMPLES, len(values)))
    return np.asarray(normal @ root.T)
