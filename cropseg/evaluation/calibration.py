"""How far the probability of the predicted class can be believed.

Of the pixels that a model is 80 % sure of, 80 % should be right. Pixels are sorted
into bins by the probability of their predicted class. A bin holds whole numbers, so
that bins add up over tiles, blocks and runs as confusion counts do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE

NUM_BINS: Final = 15
"""Bins of equal width, as Guo et al. (2017) take them."""

CONFIDENCE_UNIT: Final = 10_000
"""Probabilities are rounded to one part in so many before they are counted."""

_PIXELS, _RIGHT, _CONFIDENCE = range(3)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The pixels whose predicted class has a probability in an interval."""

    low: float
    """Lower end of the interval, 0 to 1; not in it."""
    high: float
    """Upper end of the interval, 0 to 1; in it."""
    share: float
    """Share of all pixels that are in it, 0 to 1."""
    confidence: float | None
    """Mean probability of the predicted class, 0 to 1. None without a pixel."""
    accuracy: float | None
    """Share of its pixels that are right, 0 to 1. None without a pixel."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the probabilities of a prediction compare with how often it was right."""

    ece: float
    """Expected calibration error, 0 to 1. 0 is best."""
    bins: tuple[ReliabilityBin, ...]
    """The reliability curve, from low to high probabilities."""

    def to_json(self) -> dict[str, Any]:
        """Return `ece` and `bins`."""
        return {"ece": self.ece, "bins": [asdict(item) for item in self.bins]}


def count_reliability(
    labels: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    confidence: NDArray[np.floating],
    blocks: NDArray[np.integer],
    *,
    num_blocks: int,
) -> NDArray[np.int64]:
    """Count right pixels by the probability of the predicted class, block by block.

    Args:
        labels: Class ids, 255 for unknown. Any shape.
        prediction: Class ids of the same shape. One that no label has is wrong.
        confidence: Probability of the predicted class, 0 to 1, of the same shape.
        blocks: Block ids of the same shape, 0 to `num_blocks - 1`.
        num_blocks: Number of blocks.

    Returns:
        (num_blocks, `NUM_BINS`, 3): pixels with a known label, those of them that are
        right, and the sum of their probabilities in 1 / `CONFIDENCE_UNIT`. Bin m holds
        probabilities above m / `NUM_BINS`, up to (m + 1) / `NUM_BINS`.

    Raises:
        DataError: If a probability is not 0 to 1.

    Example:
        >>> found = count_reliability(
        ...     np.array([0, 0, 1, 255], np.uint8),
        ...     np.array([0, 1, 1, 1], np.uint8),
        ...     np.array([0.98, 0.97, 0.5, 0.9]),
        ...     np.zeros(4, int),
        ...     num_blocks=1,
        ... )
        >>> found[0, 14].tolist(), found[0, 7].tolist(), int(found[0, :, 0].sum())
        ([2, 1, 19500], [1, 1, 5000], 3)
    """
    known = labels != IGNORE
    values = confidence[known]
    if values.size and not (values.min() >= 0 and values.max() <= 1 + _TOLERANCE):
        raise DataError(
            f"Probabilities run from {values.min():g} to {values.max():g}; expected 0 "
            "to 1. Give those of a softmax, and not its input."
        )
    units = np.rint(values * CONFIDENCE_UNIT).astype(np.intp)
    np.minimum(units, CONFIDENCE_UNIT, out=units)  # a softmax may end at 1.0000001
    index = blocks[known].astype(np.intp) * NUM_BINS + _BIN_OF_UNITS[units]
    length = num_blocks * NUM_BINS
    is_right = labels[known] == prediction[known]
    counts = np.empty((length, 3), np.int64)
    counts[:, _PIXELS] = np.bincount(index, minlength=length)
    counts[:, _RIGHT] = np.bincount(index[is_right], minlength=length)
    # Sums of whole numbers below 2^53 are exact in float64.
    counts[:, _CONFIDENCE] = np.bincount(index, weights=units, minlength=length)
    return counts.reshape(num_blocks, NUM_BINS, 3)


_TOLERANCE: Final = 1e-3
"""How far bfloat16 may let a probability exceed 1."""

_BIN_OF_UNITS: Final = np.maximum(
    (np.arange(CONFIDENCE_UNIT + 1) * NUM_BINS - 1) // CONFIDENCE_UNIT, 0
)
"""The bin of each number of units: above its lower end, up to its upper one."""


def compute_calibration(reliability: NDArray[np.integer]) -> Calibration:
    """Compute the reliability curve and its distance from the diagonal.

    With n pixels in all, in bin m: n_m pixels, acc_m the share that is right and
    conf_m the mean probability, ECE = sum over m of n_m / n * abs(acc_m - conf_m).

    It depends on the number of bins, and says nothing of a single pixel: a model
    that gives every pixel the overall accuracy as its probability has an ECE of 0.

    Args:
        reliability: Counts, of shape (bins, 3) as `count_reliability` gives them, or
            with any further axes in front, over which they are summed.

    Returns:
        The curve and its ECE.

    Raises:
        DataError: If there is no pixel, or the shape is another.

    Example:
        Four pixels at 90 %, of which three are right, and one at 30 %, wrong.

        >>> counts = np.zeros((15, 3), int)
        >>> counts[13], counts[4] = (4, 3, 36000), (1, 0, 3000)
        >>> found = compute_calibration(counts)
        >>> round(found.ece, 4)  # 4/5 x 0.15 + 1/5 x 0.3
        0.18
        >>> found.bins[13].accuracy, found.bins[13].confidence, found.bins[13].share
        (0.75, 0.9, 0.8)

    References:
        Guo, Pleiss, Sun, Weinberger (2017), "On calibration of modern neural
        networks", ICML, equations 1 to 3 (arXiv:1706.04599).
    """
    if reliability.ndim < 2 or reliability.shape[-1] != 3:  # noqa: PLR2004
        raise DataError(
            f"Reliability counts have the shape {reliability.shape}; expected (bins, "
            "3), or with blocks in front: pixels, right pixels, sum of probabilities."
        )
    counts = reliability.reshape(-1, *reliability.shape[-2:]).sum(axis=0).astype("f8")
    pixels = counts[:, _PIXELS]
    if not pixels.any():
        raise DataError(
            "No pixel to measure calibration on: all bins are empty. Choose a split or "
            "an area that holds labels."
        )
    shares = pixels / pixels.sum()
    # An empty bin has no accuracy and no weight.
    accuracy = counts[:, _RIGHT] / np.maximum(pixels, 1)
    confidence = counts[:, _CONFIDENCE] / np.maximum(pixels, 1) / CONFIDENCE_UNIT
    edges = np.linspace(0, 1, len(pixels) + 1).tolist()
    bins = tuple(
        ReliabilityBin(
            low=edges[m],
            high=edges[m + 1],
            share=float(shares[m]),
            confidence=float(confidence[m]) if pixels[m] else None,
            accuracy=float(accuracy[m]) if pixels[m] else None,
        )
        for m in range(len(pixels))
    )
    return Calibration(
        ece=float((shares * np.abs(accuracy - confidence)).sum()), bins=bins
    )
