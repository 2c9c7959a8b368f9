"""Which pixels are for training, for validation and for the test.

Both splits answer per pixel, from its coordinates alone. So a new scene moves no
old pixel from test to train, and overlapping scenes agree.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from rasterio.features import rasterize

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.grid import Grid, Window

PARTS: Final = ("train", "val", "test")
"""The parts of a split; a part's id is its position."""

NO_PART: Final = 255
"""The id of a pixel that belongs to no part: a gap, or outside all regions."""

_CELL: Final = 5
"""Blocks on a side of the square in which shares are met exactly."""

PartIds = npt.NDArray[np.uint8]
BlockIds = npt.NDArray[np.int64]


class Split(Protocol):
    """Answers for every pixel which part it belongs to."""

    @property
    def block_m(self) -> float:
        """Side of a block, the unit of scoring, in metres."""

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return the part of every pixel of a window, (height, width)."""


@dataclass(frozen=True, kw_only=True)
class BlockSplit:
    """Square blocks at absolute coordinates, each whole in one part."""

    block_m: float
    """Side of a block, in metres."""
    gap_m: float
    """How far train keeps from val and test, and val from test, in metres."""
    train: float
    """Share of the blocks for training, 0 to 1."""
    val: float
    """Share of the blocks for validation, 0 to 1."""
    seed: int
    """Which of the possible splits."""

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return the part of every pixel of a window, (height, width)."""
        x, y = locate_in_metres(grid, window)
        parts = self._look_up(x, y)
        if not self.gap_m:
            return parts
        # A square of half side `gap_m` that is no larger than a block meets just
        # the blocks of its corners and edge middles.
        strictest = parts
        for dx in (-self.gap_m, 0.0, self.gap_m):
            for dy in (-self.gap_m, 0.0, self.gap_m):
                strictest = np.maximum(strictest, self._look_up(x + dx, y + dy))
        return np.where(strictest == parts, parts, NO_PART).astype("uint8")

    def _look_up(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> PartIds:
        col = np.floor(x / self.block_m).astype("int64")
        row = np.floor(y / self.block_m).astype("int64")
        first_col, first_row = int(col.min()), int(row.min())
        table = np.array(
            [
                [self._choose(c, r) for c in range(first_col, int(col.max()) + 1)]
                for r in range(first_row, int(row.max()) + 1)
            ],
            "uint8",
        )
        return table[row - first_row, col - first_col]

    def _choose(self, col: int, row: int) -> int:
        """Return the part of one block.

        Blocks are ranked at random within squares of 5 x 5, so that the shares hold
        in every neighbourhood and not only on average.
        """
        ranks = _rank_cell(col // _CELL, row // _CELL, self.seed)
        share = (ranks[row % _CELL][col % _CELL] + 0.5) / _CELL**2
        if share < self.train:
            return PARTS.index("train")
        return PARTS.index("val" if share < self.train + self.val else "test")


@functools.lru_cache(maxsize=4096)
def _rank_cell(col: int, row: int, seed: int) -> tuple[tuple[int, ...], ...]:
    digest = hashlib.sha256(f"{seed}:{col}:{row}".encode()).digest()
    ranks = np.random.default_rng(int.from_bytes(digest[:8])).permutation(_CELL**2)
    return tuple(tuple(line) for line in ranks.reshape(_CELL, _CELL).tolist())


@dataclass(frozen=True, kw_only=True)
class RegionSplit:
    """Polygons of a vector file, each with the part that its pixels belong to."""

    regions_path: Path
    """A vector file with a field `part`: train, val or test."""
    block_m: float
    """Side of a block, the unit of scoring, in metres."""

    def __post_init__(self) -> None:
        """Check that the file is there."""
        if not self.regions_path.is_file():
            raise DataFileNotFoundError(
                f"No region file at {self.regions_path}, which `split` names."
            )

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return the part of every pixel of a window, (height, width)."""
        changed = self.regions_path.stat().st_mtime_ns
        regions = _read_regions(self.regions_path, changed).to_crs(grid.crs)
        shapes = [
            (shape, PARTS.index(part))
            for shape, part in zip(regions.geometry, regions["part"], strict=True)
        ]
        return np.asarray(
            rasterize(
                shapes,
                out_shape=(window.height, window.width),
                fill=NO_PART,
                transform=grid.get_window_transform(window),
                dtype="uint8",
            )
        )


@dataclass(frozen=True, kw_only=True)
class NoSplit:
    """No pixel is in any part: for reading a site that has no split."""

    block_m: float = math.inf
    """There are no blocks."""

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return `NO_PART` for every pixel of a window, (height, width)."""
        return np.full((window.height, window.width), NO_PART, "uint8")


@functools.lru_cache(maxsize=8)
def _read_regions(path: Path, _changed_ns: int) -> Any:
    # Imported here: they take most of the start of `cropseg --help`.
    import geopandas
    from pyogrio.errors import DataSourceError

    try:
        regions = geopandas.read_file(path)
    except DataSourceError as error:
        raise DataError(f"{path} is no readable vector file: {error}.") from error
    if "part" not in regions or not set(regions["part"]) <= set(PARTS):
        found = sorted(set(map(str, regions.get("part", ()))))
        raise DataError(
            f"{path} needs a field `part` with train, val or test for every polygon; "
            f"its fields are {', '.join(regions.columns)}, its parts {found}."
        )
    shapes = getattr(regions, "geometry", None)
    if shapes is None or shapes.crs is None or not len(shapes) or shapes.isna().any():
        raise DataError(
            f"{path} needs a CRS and a polygon in every row. Write it again as "
            "GeoJSON or GeoPackage."
        )
    return regions


def locate_in_metres(
    grid: Grid, window: Window
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x and y of the pixel centres of a window, in metres.

    Raises:
        DataError: If the CRS is not projected, so that it has no metres.
    """
    if not grid.crs.is_projected:
        raise DataError(
            f"Blocks are cut in metres, but the scene's CRS "
            f"({grid.crs.to_string()}) is not projected. Reproject the scene, "
            "to its UTM zone for example."
        )
    _, metres_per_unit = grid.crs.linear_units_factor
    x, y = grid.locate_pixels(window)
    return x * metres_per_unit, y * metres_per_unit


def read_block_ids(split: Split, grid: Grid, window: Window) -> BlockIds:
    """Return a number for the block of every pixel, the same in all scenes."""
    x, y = locate_in_metres(grid, window)
    col = np.floor(x / split.block_m).astype("int64")
    row = np.floor(y / split.block_m).astype("int64")
    return row * 2**24 + col
