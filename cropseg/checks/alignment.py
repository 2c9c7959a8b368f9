"""Whether labels are shifted against their image, by a pixel or a few.

Fields have edges in the image where their labels have boundaries. Edge strength and
boundaries are correlated over all shifts of up to `MAX_SHIFT_PX`; for labels that fit
no shift is best. Only sums are kept, so that memory does not grow with the scene, and
the tiling changes nothing but the order in which they are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE, Labels

MAX_SHIFT_PX: Final = 3
"""Largest shift that is looked for, in pixels, along rows and along columns."""

MARGIN_PX: Final = MAX_SHIFT_PX + 1
"""Context of a tile, in pixels: its outermost pixels are looked at, not counted."""

MIN_BOUNDARY_PX: Final = 500
"""Boundary pixels below which there is no verdict."""

MIN_CONFIDENCE: Final = 5.0
"""Standard errors by which a shift has to fit better than no shift."""

MIN_GAIN: Final = 0.05
"""How much better it has to fit, as a share of its correlation."""

# Correlated neighbours lie in one cell, and cells are dealt out to groups in turn,
# so that leaving out one group after the other gives a standard error.
_CELL_PX: Final = 64
_NUM_GROUPS: Final = 20
_MIN_GROUPS: Final = 4

_SIDE: Final = 2 * MAX_SHIFT_PX + 1
_NO_SHIFT: Final = _SIDE**2 // 2

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How far the labels of a scene are shifted against its image."""

    rows: int
    """Rows that the labels lie too low, in pixels; negative where too high."""
    cols: int
    """Columns that the labels lie too far right, in pixels; negative for left."""
    correlation: float
    """Of edges and boundaries if the labels are moved back, -1 to 1."""
    correlation_unmoved: float
    """Of edges and boundaries as they are, -1 to 1."""
    correlation_lowest: float
    """The lowest of all shifts, -1 to 1."""
    confidence: float
    """Standard errors by which the shift fits better than no shift, or than the
    opposite shift if that is less; 0 where no shift fits best."""
    num_boundary_px: int
    """Pixels at a label boundary that were compared."""

    @property
    def has_verdict(self) -> bool:
        """Whether there are enough boundaries, and edges lie on them.

        Where labels keep clear of the edges (shrunk polygons), some shift goes
        clearly against them. Then no shift can be told from their distance.
        """
        return (
            self.num_boundary_px >= MIN_BOUNDARY_PX
            and self.correlation > -2 * self.correlation_lowest
        )

    @property
    def is_shifted(self) -> bool:
        """Whether a shift fits better than none, clearly and surely."""
        gain = self.correlation - self.correlation_unmoved
        return (
            self.has_verdict
            and self.confidence >= MIN_CONFIDENCE
            and gain >= MIN_GAIN * self.correlation
        )


def measure_shift(tiles: Iterable[tuple[Values, Mask, Labels]]) -> Shift:
    """Measure how far the labels of a scene are shifted against its image.

    Args:
        tiles: Values, validity and class ids of each tile, as `ShiftMeter.add` takes
            them.

    Returns:
        The shift.

    Raises:
        DataError: If a tile's shapes do not fit together.
    """
    meter = ShiftMeter()
    for values, valid, labels in tiles:
        meter.add(values, valid, labels)
    return meter.finish()


class ShiftMeter:
    """Takes the tiles of one scene one by one, then tells the shift."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._sums: _Sums | None = None
        self._num_cells = 0

    def add(self, values: Values, valid: Mask, labels: Labels) -> None:
        """Add a tile. Its outermost `MARGIN_PX` pixels are context.

        With `iterate_tiles(area, core_size=..., context=MARGIN_PX)` each pixel is
        counted once. A tile without context loses its rim and nothing else.

        Args:
            values: Image, (height, width, bands), in any unit.
            valid: (height, width), True where the image recorded something.
            labels: Class ids, (height, width), 255 where unknown.

        Raises:
            DataError: If the shapes or the number of bands do not fit together.
        """
        if self._sums is None:
            self._sums = _Sums(values.shape[-1])
        num_bands = self._sums.num_bands
        shape = values.shape[:2]
        if not shape == valid.shape == labels.shape or values.shape[2:] != (num_bands,):
            raise DataError(
                f"A tile has values {values.shape}, validity {valid.shape} and labels "
                f"{labels.shape}; expected (height, width, {num_bands}) and twice "
                "(height, width). Use one meter for each scene."
            )
        if min(shape) <= 2 * MARGIN_PX:
            return
        counted = _find_counted(valid, labels)
        if not counted.any():
            return
        edges = _measure_edges(np.where(valid[..., None], values, 0))
        edges[~counted] = 0
        # (rows of the shift, columns of the shift, height, width)
        moved = np.lib.stride_tricks.sliding_window_view(
            _find_boundaries(labels).astype(edges.dtype), counted.shape
        )
        for row in range(0, counted.shape[0], _CELL_PX):
            for col in range(0, counted.shape[1], _CELL_PX):
                cell = slice(row, row + _CELL_PX), slice(col, col + _CELL_PX)
                if counted[cell].any():
                    group = self._num_cells % _NUM_GROUPS
                    self._sums.add(
                        group, edges[cell], moved[:, :, *cell], counted[cell]
                    )
                    self._num_cells += 1

    def finish(self) -> Shift:
        """Return the shift that fits best to all tiles added so far."""
        correlations = self._sums.correlate() if self._sums else np.zeros(_SIDE**2)
        best = int(correlations.argmax())
        if correlations[best] <= correlations[_NO_SHIFT]:
            best = _NO_SHIFT
        rows, cols = divmod(best, _SIDE)
        return Shift(
            rows=rows - MAX_SHIFT_PX,
            cols=cols - MAX_SHIFT_PX,
            correlation=float(correlations[best]),
            correlation_unmoved=float(correlations[_NO_SHIFT]),
            correlation_lowest=float(correlations.min()),
            confidence=self._measure_confidence(best),
            num_boundary_px=self._sums.count_boundary_px() if self._sums else 0,
        )

    def _measure_confidence(self, best: int) -> float:
        if best == _NO_SHIFT or self._sums is None or self._num_cells < _MIN_GROUPS:
            return 0.0
        groups = range(min(self._num_cells, _NUM_GROUPS))
        whole = self._sums.correlate()
        rest = np.array([self._sums.correlate(without=group) for group in groups])
        # Labels that were shrunk or grown have two equal peaks on opposite sides and
        # are not shifted. The opposite shift is the same position counted backwards.
        others = (_NO_SHIFT, _SIDE**2 - 1 - best)
        return min(
            _divide_by_error(whole[best] - whole[other], rest[:, best] - rest[:, other])
            for other in others
        )


class _Sums:
    """Sums of all that a correlation needs, for each group of cells."""

    def __init__(self, num_bands: int) -> None:
        self.num_bands = num_bands
        self._num_px = np.zeros(_NUM_GROUPS)
        self._edges = np.zeros((_NUM_GROUPS, num_bands))
        self._squares = np.zeros((_NUM_GROUPS, num_bands))
        self._boundaries = np.zeros((_NUM_GROUPS, _SIDE**2))
        self._products = np.zeros((_NUM_GROUPS, num_bands, _SIDE**2))

    def add(self, group: int, edges: Values, moved: Values, counted: Mask) -> None:
        """Add a cell: edges (height, width, bands), 0 where not counted."""
        table = np.concatenate([edges, counted[..., None]], axis=-1, dtype=edges.dtype)
        table = table.reshape(counted.size, -1)
        products = moved.reshape(_SIDE**2, -1) @ table
        totals = np.ones(counted.size, edges.dtype) @ table
        self._num_px[group] += totals[-1]
        self._edges[group] += totals[:-1]
        self._squares[group] += np.einsum("hwb,hwb->b", edges, edges, dtype=np.float64)
        self._products[group] += products[:, :-1].T
        self._boundaries[group] += products[:, -1]

    def count_boundary_px(self) -> int:
        return int(self._boundaries[:, _NO_SHIFT].sum())

    def correlate(self, *, without: int | None = None) -> Floats:
        """Return the correlation of each shift, the mean of all bands.

        It is not a number where values are so large that their squares overflow.
        """
        kept = np.arange(_NUM_GROUPS) != without
        num_px = self._num_px[kept].sum()
        edges = self._edges[kept].sum(axis=0)
        boundaries = self._boundaries[kept].sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            covariance = num_px * self._products[kept].sum(axis=0)
            covariance -= edges[:, None] * boundaries
            edge_variance = num_px * self._squares[kept].sum(axis=0) - edges**2
        # A boundary pixel is 1 and every other 0, so squaring changes nothing.
        boundary_variance = num_px * boundaries - boundaries**2
        scale = np.sqrt(np.maximum(edge_variance[:, None] * boundary_variance, 0))
        usable = scale > 0
        correlations = np.divide(covariance, scale, where=usable, out=covariance * 0)
        return np.asarray(correlations.mean(axis=0))


def _find_counted(valid: Mask, labels: Labels) -> Mask:
    """Return which inner pixels count: (height - 2 margins, width - 2 margins).

    The set is the same for every shift. All around a counted pixel the image is
    valid, so that the edge of the data is no edge of a field, and some label is known.
    """
    from scipy import ndimage

    size = 2 * MARGIN_PX + 1
    inner = slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX)
    whole = ndimage.minimum_filter(valid, size)
    known = ndimage.maximum_filter(labels != IGNORE, size)
    return np.asarray((whole & known)[inner])


def _measure_edges(values: Values) -> Values:
    """Return how steep each band is at inner pixels, (height, width, bands).

    The square root of the gradient keeps few strong edges (water, roofs) from
    deciding alone. It keeps the ratio of any two pixels at any gain, so that bands
    need no common unit.
    """
    dtype = np.float32 if np.issubdtype(values.dtype, np.integer) else np.float64
    values = values[MARGIN_PX - 1 : 1 - MARGIN_PX, MARGIN_PX - 1 : 1 - MARGIN_PX]
    values = values.astype(dtype)
    down = np.abs(values[2:, 1:-1] - values[:-2, 1:-1])
    right = np.abs(values[1:-1, 2:] - values[1:-1, :-2])
    return np.sqrt(down + right)


def _find_boundaries(labels: Labels) -> Mask:
    """Return which pixels differ from a neighbour, without the outermost ones.

    Both pixels of a boundary are marked, as the gradient marks both of an edge: one
    alone would be a shift of half a pixel. "Unknown" counts as a class: polygons
    seldom touch, and their outlines are all that they have.
    """
    middle = labels[1:-1, 1:-1]
    return np.asarray(
        (middle != labels[:-2, 1:-1])
        | (middle != labels[2:, 1:-1])
        | (middle != labels[1:-1, :-2])
        | (middle != labels[1:-1, 2:])
    )


def _divide_by_error(difference: float, without_group: Floats) -> float:
    """Return a difference in standard errors (grouped jackknife, Tukey 1958)."""
    num_groups = len(without_group)
    spread = ((without_group - without_group.mean()) ** 2).mean()
    error = math.sqrt((num_groups - 1) * spread)
    return float(difference / error) if error else math.inf
