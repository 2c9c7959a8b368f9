"""Hectares of each crop, corrected for what the map confuses.

A map that takes a tenth of the maize for wheat shows too much wheat. The labelled
pixels say how much of each mapped class is really which crop, and the hectares follow
from that. The classes of the map are the strata, the labelled pixels in them the
sample. The formulas hold for a sample that was drawn at random; see `explain_design`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError

_Z_95: Final = 1.96
"""The paper's factor from a standard error to a 95 % interval."""

_MOST: Final = 0.99


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """The area of one class."""

    mapped_ha: float
    """What the map shows, in hectares."""
    adjusted_ha: float
    """What the labels make of it, in hectares."""
    standard_error_ha: float
    """Standard error of `adjusted_ha`, as if the labelled pixels were drawn at random
    one by one. Neighbouring pixels are alike, so it is too small where they come in
    blocks or fields: see `estimate_block_errors`."""
    interval_ha: tuple[float, float]
    """95 % interval of `adjusted_ha` from `standard_error_ha`, not below 0."""


def estimate_areas(
    confusion: NDArray[np.integer], mapped_pixels: NDArray[np.integer], pixel_ha: float
) -> tuple[ClassArea, ...]:
    """Estimate the area of each class from a map and a sample of labels.

    With W_i the share of the map that is class i, and n_ij the labelled pixels of
    class j in it, n_i in all:

    - share of class j: p_j = sum over i of W_i n_ij / n_i (equations 4, 8 and 9)
    - its variance: sum over i of W_i^2 (n_ij / n_i) (1 - n_ij / n_i) / (n_i - 1)
      (equation 10)
    - area and standard error: those times the whole area (equation 11)

    A mapped class without a labelled pixel cannot be corrected. It is taken as the map
    has it, and adds nothing to the standard error; `find_unchecked_share` says how
    much of the map that is.

    Args:
        confusion: Labelled pixels, (C, C + 1): a row a label, a column a class of the
            map, the last one for other (`count_confusion`).
        mapped_pixels: Pixels of the map in each class and in other, (C + 1,).
        pixel_ha: Area of a pixel, in hectares.

    Returns:
        The area of each of the C classes.

    Raises:
        DataError: If the shapes do not fit, or the map is empty.

    References:
        Olofsson, Foody, Herold, Stehman, Woodcock, Wulder (2014), "Good practices for
        estimating area and assessing accuracy of land change", Remote Sensing of
        Environment 148, 42-57, doi:10.1016/j.rse.2014.02.015. The paper's matrix has
        a row for a class of the map and a column for a label.
    """
    weights = _weigh(confusion, mapped_pixels)
    total_ha = float(mapped_pixels.sum()) * pixel_ha
    shares = _estimate_shares(confusion, weights)
    rates, num_sampled = _compute_rates(confusion)
    freedom = np.maximum(num_sampled - 1, 1)[:, np.newaxis]
    variance = (weights[:, np.newaxis] ** 2 * rates * (1 - rates) / freedom).sum(axis=0)
    errors_ha = np.sqrt(variance) * total_ha
    return tuple(
        ClassArea(
            mapped_ha=float(mapped) * pixel_ha,
            adjusted_ha=share * total_ha,
            standard_error_ha=error,
            interval_ha=(
                max(0.0, share * total_ha - _Z_95 * error),
                share * total_ha + _Z_95 * error,
            ),
        )
        for mapped, share, error in zip(
            mapped_pixels[:-1].tolist(),
            shares.tolist(),
            errors_ha.tolist(),
            strict=True,
        )
    )


def estimate_block_errors(
    counts: NDArray[np.integer], mapped_pixels: NDArray[np.integer], pixel_ha: float
) -> NDArray[np.float64]:
    """Estimate the standard error of adjusted areas from how blocks differ.

    Pixels of a block are alike, so there are fewer independent ones than labels. The
    jackknife leaves the labels of one block out at a time. The map stays: all of it
    is known. With B blocks and a_b the area without block b, the variance is
    (B - 1) / B * sum of (a_b - mean of a_b)^2.

    Args:
        counts: Labelled pixels, (B, C, C + 1), as `estimate_areas` takes them.
        mapped_pixels: Pixels of the whole map in each class and in other, (C + 1,).
        pixel_ha: Area of a pixel, in hectares.

    Returns:
        The standard error of each class in hectares, (C,). NaN with less than two
        blocks that have a label.

    Raises:
        DataError: As `estimate_areas`.

    References:
        Efron, Stein (1981), "The jackknife estimate of variance", Annals of
        Statistics 9, 586-596, doi:10.1214/aos/1176345462.
    """
    counts = counts[counts.any(axis=(1, 2))]
    num_blocks = len(counts)
    total = counts.sum(axis=0)
    weights = _weigh(total, mapped_pixels)
    if num_blocks < 2:  # noqa: PLR2004 - what does not vary has no variance
        return np.full(len(total), np.nan)
    without = np.stack([_estimate_shares(total - one, weights) for one in counts])
    deviations = without - without.mean(axis=0)
    variance = (num_blocks - 1) / num_blocks * (deviations**2).sum(axis=0)
    errors: NDArray[np.float64] = (
        np.sqrt(variance) * float(mapped_pixels.sum()) * pixel_ha
    )
    return errors


def find_unchecked_share(
    confusion: NDArray[np.integer], mapped_pixels: NDArray[np.integer]
) -> float:
    """Return the share of the map in classes without a labelled pixel, 0 to 1."""
    weights = _weigh(confusion, mapped_pixels)
    return float(weights[confusion.sum(axis=0) == 0].sum())


def explain_design(
    *, has_random_blocks: bool, share_labelled: float
) -> tuple[bool, str]:
    """Say whether the standard errors rest on how the labels were chosen.

    Args:
        has_random_blocks: Whether the blocks of the part were drawn at random, and
            not by a person.
        share_labelled: Share of the part's pixels that have a label, 0 to 1.

    Returns:
        Whether the estimate is design-based, and a sentence or two for a reader. It
        is so only where blocks were drawn at random and labelled as a whole.
    """
    reasons = []
    if not has_random_blocks:
        reasons.append("the blocks were chosen by hand and are no probability sample")
    if share_labelled < _MOST:
        reasons.append(
            f"{share_labelled:.0%} of their pixels have a label, and which ones was "
            "not left to chance"
        )
    if not reasons:
        return True, (
            "The blocks were drawn at random and are labelled as a whole. The standard "
            "errors are by jackknife over blocks."
        )
    return False, (
        f"Not design-based: {'; '.join(reasons)}. The areas hold if the map errs "
        "elsewhere as it does at the labels; the standard errors do not cover it if "
        "it does not."
    )


def _weigh(
    confusion: NDArray[np.integer], mapped_pixels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the share of each class of the map, other included (C + 1,)."""
    num_classes = len(confusion)
    if confusion.shape != (num_classes, num_classes + 1) or mapped_pixels.shape != (
        num_classes + 1,
    ):
        raise DataError(
            f"Confusion counts have the shape {confusion.shape} and mapped pixels "
            f"{mapped_pixels.shape}; expected (C, C + 1) and (C + 1,) for C classes. "
            "Sum counts over blocks first."
        )
    total = mapped_pixels.sum()
    if not total:
        raise DataError(
            "The map has no pixel, so there is no area to estimate. Choose a part "
            "that holds valid pixels."
        )
    weights: NDArray[np.float64] = mapped_pixels / total
    return weights


def _compute_rates(
    confusion: NDArray[np.integer],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what each class of the map really is, and how many pixels tell it.

    Returns:
        Shares of labels, (C + 1, C), and labelled pixels, (C + 1,). A class without
        one is what the map says.
    """
    num_sampled = confusion.sum(axis=0)
    rates = confusion.T / np.maximum(num_sampled, 1)[:, np.newaxis]
    num_strata, num_classes = rates.shape
    unchecked = num_sampled == 0
    rates[unchecked] = np.eye(num_strata, num_classes)[unchecked]
    return rates, num_sampled


def _estimate_shares(
    confusion: NDArray[np.integer], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    rates, _ = _compute_rates(confusion)
    shares: NDArray[np.float64] = weights @ rates
    return shares
