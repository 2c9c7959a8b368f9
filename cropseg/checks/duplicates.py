"""Content that is there twice: the same pixels under two names, or at two places.

A copy of a scene puts the same pixels into train and test, and the score is too good.
A few pixels of one band are hashed at every place, and the blocks are kept that begin
where this hash is divisible by a number. So the content alone decides which (Broder
1997, doi:10.1109/SEQUEN.1997.666900): a copy is found at any offset and under any
coordinates, and memory is bounded. Its values have to be equal. A resampled or
recoloured copy is not found, but the footprints may overlap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from rasterio.crs import CRS

from cropseg.errors import DataError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import NO_PART, PARTS, PartIds

BLOCK_PX: Final = 16
"""Side of a block, in pixels. With that much context no block of a tile is lost."""

# A block with fewer changes from pixel to pixel is as good as constant.
_MIN_CHANGES: Final = BLOCK_PX * (BLOCK_PX - 1) // 4
_ANCHOR_SHAPE: Final = (2, 4)
_WANTED_BLOCKS: Final = 512
_STRIDES: Final = (64, 4096)
_MAX_BLOCKS: Final = 2**20
_MAX_BYTES: Final = 2**24  # of blocks hashed at once; some copies of them are made
_MAX_STRIDE: Final = 2**40
_MAX_COPIES: Final = 64
_EDGE_POINTS: Final = 20

_TRAIN: Final = 1 << PARTS.index("train")
_TEST: Final = 1 << PARTS.index("test")
_MASK_32: Final = 2**32 - 1
# Odd numbers without pattern: the constants of SplitMix64 (Steele 2014,
# doi:10.1145/2660193.2660195).
_FACTORS: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.void]
_BLOCK: Final = np.dtype(
    [("hash", "u8"), ("scene", "i4"), ("row", "i4"), ("col", "i4"), ("parts", "u1")]
)


@dataclass(frozen=True, kw_only=True)
class SharedContent:
    """Blocks of pixels that two scenes share, or that one scene has twice."""

    scene_a: int
    """Position of one scene in the site."""
    scene_b: int
    """Position of the other, the same where a scene has content twice."""
    num_blocks: int
    """Distinct blocks that are shared, of those that were kept."""
    share_a: float
    """Share of the distinct blocks of scene a, 0 to 1."""
    share_b: float
    """Share of the distinct blocks of scene b, 0 to 1."""
    num_train_test: int
    """Shared blocks that are in train at one place and in test at another."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Ground that two scenes both show."""

    scene_a: int
    """Position of one scene in the site."""
    scene_b: int
    """Position of the other, a larger number."""
    share_a: float
    """Share of the area of scene a, 0 to 1."""
    share_b: float
    """Share of the area of scene b, 0 to 1."""


class ContentIndex:
    """Takes the tiles of all scenes one by one, then tells what is there twice."""

    def __init__(self, smallest_px: int = 0) -> None:
        """Start with nothing seen.

        Args:
            smallest_px: Pixels of the smallest scene. The more, the fewer blocks are
                kept of as many pixels.
        """
        low, high = _STRIDES
        self._anchor_stride = low
        while self._anchor_stride < min(high, smallest_px // _WANTED_BLOCKS):
            self._anchor_stride *= 2
        self._stride = 1
        self._found: list[Rows] = []
        self._num_blocks = 0

    def add(
        self,
        scene: int,
        window: Window,
        *,
        values: npt.NDArray[Any],
        valid: npt.NDArray[np.bool_],
        parts: PartIds | None = None,
    ) -> None:
        """Add the pixels of a window. Windows of a scene may overlap.

        Args:
            scene: Position of the scene in the site, from 0.
            window: Where the pixels lie in it.
            values: (height, width, bands). Equal numbers are equal in every dtype.
            valid: (height, width), True where the image recorded something. Blocks
                with an invalid pixel are left out, as are constant ones.
            parts: Part of every pixel, (height, width), as `Split.read_parts` gives
                them. A block is in the part of the pixel at its middle.

        Raises:
            DataError: If the shapes do not fit together.
        """
        shape = (window.height, window.width)
        parts = np.full(shape, NO_PART, "uint8") if parts is None else parts
        if not values.shape[:2] == valid.shape == parts.shape == shape:
            raise DataError(
                f"A window of {shape} pixels (rows, columns) has values "
                f"{values.shape}, validity {valid.shape} and parts {parts.shape}; "
                "expected that size for each."
            )
        if min(shape) < BLOCK_PX or not valid.any():
            return
        rows, cols = np.nonzero(_find_anchors(values[..., 0], self._anchor_stride))
        block_bytes = BLOCK_PX**2 * values.shape[2] * np.dtype(np.float64).itemsize
        step = max(1, _MAX_BYTES // block_bytes)
        some = [
            _hash_blocks(values, valid, rows[i : i + step], cols[i : i + step])
            for i in range(0, max(1, len(rows)), step)
        ]
        rows, cols, hashes = (
            np.concatenate(column) for column in zip(*some, strict=True)
        )
        kept = hashes % np.uint64(self._stride) == 0
        rows, cols = rows[kept], cols[kept]
        found = np.empty(len(rows), _BLOCK)
        found["hash"] = hashes[kept]
        found["scene"] = scene
        found["row"], found["col"] = rows + window.row, cols + window.col
        middle = parts[rows + BLOCK_PX // 2, cols + BLOCK_PX // 2]
        found["parts"] = np.where(middle < len(PARTS), 1 << middle % len(PARTS), 0)
        self._found.append(found)
        self._num_blocks += len(found)
        if self._num_blocks > _MAX_BLOCKS:
            self._thin_out()

    def list_shared(self) -> tuple[SharedContent, ...]:
        """List the pairs of scenes that share content, and scenes that repeat theirs.

        Returns:
            The pairs, by position. Where more than 64 scenes share a block, not all
            of their pairs are listed.
        """
        blocks, num_places = _merge_places(self._gather())
        sizes = Counter(blocks["scene"].tolist())
        shared: Counter[tuple[int, int]] = Counter()
        leaking: Counter[tuple[int, int]] = Counter()
        for first, second in _iterate_copies(blocks, num_places):
            leaks = _are_apart(first["parts"], second["parts"])
            _count_pairs(shared, first["scene"], second["scene"])
            _count_pairs(leaking, first["scene"][leaks], second["scene"][leaks])
        return tuple(
            SharedContent(
                scene_a=a,
                scene_b=b,
                num_blocks=count,
                share_a=count / sizes[a],
                share_b=count / sizes[b],
                num_train_test=leaking[a, b],
            )
            for (a, b), count in sorted(shared.items())
        )

    def _gather(self) -> Rows:
        self._found = [np.concatenate([np.empty(0, _BLOCK), *self._found])]
        return self._found[0]

    def _thin_out(self) -> None:
        blocks = self._gather()
        while len(blocks) > _MAX_BLOCKS // 2 and self._stride < _MAX_STRIDE:
            self._stride *= 2
            blocks = blocks[blocks["hash"] % np.uint64(self._stride) == 0]
        self._found, self._num_blocks = [blocks], len(blocks)


def list_overlaps(grids: Sequence[Grid]) -> tuple[Overlap, ...]:
    """List the pairs of scenes whose footprints overlap.

    Args:
        grids: Grid of each scene. Those in another CRS than the first are transformed.

    Returns:
        The pairs, by position. Neighbours that touch, or overlap by less than a pixel,
        are not among them.
    """
    if not grids:
        return ()
    import geopandas

    crs = grids[0].crs
    footprints = geopandas.GeoSeries(
        [_locate_footprint(grid, crs) for grid in grids], crs=crs
    )
    areas = [float(footprint.area) for footprint in footprints]
    sides = [
        math.sqrt(area / (grid.height * grid.width))
        for area, grid in zip(areas, grids, strict=True)
    ]
    overlaps = []
    for a, b in sorted(zip(*footprints.sindex.query(footprints).tolist(), strict=True)):
        if a >= b:
            continue
        common = footprints.iloc[a].intersection(footprints.iloc[b])
        if not common.buffer(-min(sides[a], sides[b]) / 2).is_empty:
            overlaps.append(
                Overlap(
                    scene_a=a,
                    scene_b=b,
                    share_a=common.area / areas[a],
                    share_b=common.area / areas[b],
                )
            )
    return tuple(overlaps)


def _locate_footprint(grid: Grid, crs: CRS) -> Any:
    """Return the outline in a CRS, empty where it lies outside of that CRS."""
    import geopandas

    outline = geopandas.GeoSeries.from_wkt([_write_outline(grid)], crs=grid.crs)
    if grid.crs != crs:
        outline = outline.to_crs(crs)
    if not np.isfinite(outline.total_bounds).all():
        outline = geopandas.GeoSeries.from_wkt(["POLYGON EMPTY"])
    return outline.iloc[0]


def _write_outline(grid: Grid) -> str:
    """Return the outline as WKT, with points on its edges: they bend in another CRS."""
    steps = np.linspace(0, 1, _EDGE_POINTS, endpoint=False)
    cols = np.concatenate([steps, steps * 0 + 1, 1 - steps, steps * 0]) * grid.width
    rows = np.concatenate([steps * 0, steps, steps * 0 + 1, 1 - steps]) * grid.height
    points = [
        grid.transform @ point
        for point in zip(cols.tolist(), rows.tolist(), strict=True)
    ]
    ring = ", ".join(f"{x!r} {y!r}" for x, y in [*points, points[0]])
    return f"POLYGON (({ring}))"


def _find_anchors(band: npt.NDArray[Any], stride: int) -> npt.NDArray[np.bool_]:
    """Mark where a block begins that may be kept: at one place in `stride`."""
    # Adding 0 makes -0.0 the 0.0 that it equals.
    bits = (band.astype(np.float32) + np.float32(0)).view(np.uint32)
    height, width = (size - BLOCK_PX + 1 for size in band.shape)
    num_rows, num_cols = _ANCHOR_SHAPE
    by_col, by_row, last = (np.uint32(factor & _MASK_32) for factor in _FACTORS)
    lines = bits[: height + num_rows - 1, :width].copy()
    for col in range(1, num_cols):
        lines *= by_col
        lines += bits[: height + num_rows - 1, col : col + width]
    hashes = lines[:height].copy()
    for row in range(1, num_rows):
        hashes *= by_row
        hashes += lines[row : row + height]
    hashes ^= hashes >> np.uint32(15)
    hashes *= last
    anchors = (hashes >> np.uint32(16)) & np.uint32(stride - 1) == 0
    # Where nothing changes, every place would be one or none.
    anchors &= bits[:height, :width] != bits[:height, 1 : width + 1]
    return np.asarray(anchors)


def _hash_blocks(
    values: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Hashes]:
    """Return where blocks begin that are valid and not constant, and their hashes."""
    size = (BLOCK_PX, BLOCK_PX)
    is_valid = sliding_window_view(valid, size)[rows, cols].all(axis=(1, 2))
    rows, cols = rows[is_valid], cols[is_valid]
    blocks = sliding_window_view(values, size, axis=(0, 1))[rows, cols]
    changes = (blocks[..., 1:] != blocks[..., :-1]).any(axis=1).sum(axis=(1, 2))
    varied = changes >= _MIN_CHANGES
    rows, cols, blocks = rows[varied], cols[varied], blocks[varied]
    bits = (blocks.astype(np.float64) + 0.0).view(np.uint64)
    weights = _mix(np.arange(1, bits[:1].size + 1, dtype=np.uint64)) | np.uint64(1)
    weighted = _mix(bits) * weights.reshape(-1, *bits.shape[1:])
    return rows, cols, _mix(weighted.sum(axis=(1, 2, 3), dtype=np.uint64))


def _mix(hashes: Hashes) -> Hashes:
    """Spread every bit over all others, so that the lowest can choose blocks."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(_FACTORS[1])
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(_FACTORS[2])
    return hashes ^ (hashes >> np.uint64(31))


def _merge_places(blocks: Rows) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Return one row a hash and scene, with the parts of all places, and their number.

    Places that were added twice, by windows that overlap, count once.
    """
    keys = ("col", "row", "scene", "hash")
    blocks = blocks[np.lexsort([blocks[key] for key in keys])]
    is_new = np.ones(len(blocks), np.bool_)
    is_new[1:] = np.any([blocks[key][1:] != blocks[key][:-1] for key in keys], axis=0)
    blocks = blocks[is_new]
    is_first = np.ones(len(blocks), np.bool_)
    is_first[1:] = np.any(
        [blocks[key][1:] != blocks[key][:-1] for key in keys[2:]], axis=0
    )
    starts = np.flatnonzero(is_first)
    merged = blocks[starts]
    if len(starts):
        merged["parts"] = np.bitwise_or.reduceat(blocks["parts"], starts)
    return merged, np.diff(starts, append=len(blocks))


def _iterate_copies(
    blocks: Rows, num_places: npt.NDArray[np.int64]
) -> Iterator[tuple[Rows, Rows]]:
    """Yield aligned rows of equal blocks, first those that one scene has twice.

    Rows are sorted by hash and scene, so copies lie behind one another.
    """
    twice = blocks[num_places > 1]
    yield twice, twice
    for lag in range(1, min(_MAX_COPIES, len(blocks))):
        first, second = blocks[:-lag], blocks[lag:]
        same = first["hash"] == second["hash"]
        if not same.any():
            return
        yield first[same], second[same]


def _are_apart(a: Any, b: Any) -> npt.NDArray[np.bool_]:
    """Whether train is on one side and test on the other."""
    one = (a & _TRAIN > 0) & (b & _TEST > 0)
    return np.asarray(one | ((a & _TEST > 0) & (b & _TRAIN > 0)))


def _count_pairs(counter: Counter[tuple[int, int]], a: Any, b: Any) -> None:
    pairs, counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
    for one, other, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        counter[one, other] += count
