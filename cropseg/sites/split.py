"""Which pixels are for training, for validation and for the test.

Every split answers per pixel, from its coordinates alone. So a new scene moves no
old pixel from test to train, and overlapping scenes agree.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError
from cropseg.sites.grid import Grid, Window

PARTS: Final = ("train", "val", "test")
"""The parts of a split; a part's id is its position."""

NO_PART: Final = 255
"""The id of a pixel that belongs to no part: a gap, or outside all regions."""

SQUARE: Final = 5
"""Blocks on a side of the square in which the shares of a `BlockSplit` hold."""

_MIN_FOLDS: Final = 2
_ID_STEP: Final = 2**24
"""Columns of blocks that the numbering of blocks has room for."""

PartIds = npt.NDArray[np.uint8]
BlockIds = npt.NDArray[np.int64]


class Split(Protocol):
    """Answers for every pixel which part it belongs to."""

    @property
    def block_m(self) -> float:
        """Side of a block, the unit of scoring, in metres."""

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return the part of every pixel of a window, (height, width)."""


class WholeBlocks(Split, Protocol):
    """A split that puts every block whole into one part."""

    @property
    def gap_m(self) -> float:
        """How far a part keeps from the stricter ones, in metres."""

    def choose_part(self, *, row: int, col: int) -> int:
        """Return the part of a block, of which the gap may take a margin."""


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
        return _read_block_parts(self, grid, window)

    def choose_part(self, *, row: int, col: int) -> int:
        """Return the part of a block.

        Blocks are ranked at random within squares of 5 x 5, so that the shares hold
        in every neighbourhood and not only on average.
        """
        ranks = _rank_cell(col // SQUARE, row // SQUARE, self.seed)
        share = (ranks[row % SQUARE][col % SQUARE] + 0.5) / SQUARE**2
        if share < self.train:
            return PARTS.index("train")
        return PARTS.index("val" if share < self.train + self.val else "test")


@dataclass(frozen=True, kw_only=True)
class FoldSplit:
    """One of several folds: its blocks are for the test, all others for training.

    Every block is for the test in just one fold. Nothing is for validation.
    """

    block_m: float
    """Side of a block, in metres."""
    gap_m: float
    """How far train keeps from test, in metres."""
    folds: int
    """Number of folds, 2 or more."""
    fold: int
    """Which fold is for the test, counted from 0."""
    seed: int
    """Which of the possible partitions into folds. It is one for all folds."""

    def __post_init__(self) -> None:
        """Check that there is such a fold."""
        if self.folds < _MIN_FOLDS or not 0 <= self.fold < self.folds:
            raise DataError(
                f"Got fold {self.fold} of {self.folds} folds; expected at least "
                f"{_MIN_FOLDS} folds, and a fold from 0 to the number of folds less 1."
            )

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return the part of every pixel of a window, (height, width)."""
        return _read_block_parts(self, grid, window)

    def choose_part(self, *, row: int, col: int) -> int:
        """Return the part of a block.

        In a square of as many blocks on a side as there are folds, each row and each
        column has a block of every fold. So a small site, too, has them all.
        """
        size = self.folds
        rows, cols = _shuffle_cell(col // size, row // size, self.seed, size)
        fold = (rows[row % size] + cols[col % size]) % size
        return PARTS.index("test" if fold == self.fold else "train")


def _read_block_parts(split: WholeBlocks, grid: Grid, window: Window) -> PartIds:
    x, y = locate_in_metres(grid, window)
    parts = _look_up(split, x, y)
    if not split.gap_m:
        return parts
    # A square of half side `gap_m` that is no larger than a block meets just the
    # blocks of its corners and edge middles.
    strictest = parts
    for dx in (-split.gap_m, 0.0, split.gap_m):
        for dy in (-split.gap_m, 0.0, split.gap_m):
            strictest = np.maximum(strictest, _look_up(split, x + dx, y + dy))
    return np.where(strictest == parts, parts, NO_PART).astype("uint8")


def _look_up(
    split: WholeBlocks, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> PartIds:
    col = np.floor(x / split.block_m).astype("int64")
    row = np.floor(y / split.block_m).astype("int64")
    first_col, first_row = int(col.min()), int(row.min())
    table = np.array(
        [
            [
                split.choose_part(row=r, col=c)
                for c in range(first_col, int(col.max()) + 1)
            ]
            for r in range(first_row, int(row.max()) + 1)
        ],
        "uint8",
    )
    row, col = row - first_row, col - first_col
    if row.shape[1] == 1 and col.shape[0] == 1:
        return table.take(row[:, 0], axis=0).take(col[0], axis=1)
    return table[row, col]


@functools.lru_cache(maxsize=4096)
def _rank_cell(col: int, row: int, seed: int) -> tuple[tuple[int, ...], ...]:
    ranks = _seed_cell(col, row, seed).permutation(SQUARE**2)
    return tuple(tuple(line) for line in ranks.reshape(SQUARE, SQUARE).tolist())


@functools.lru_cache(maxsize=4096)
def _shuffle_cell(
    col: int, row: int, seed: int, size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rng = _seed_cell(col, row, seed)
    return tuple(rng.permutation(size).tolist()), tuple(rng.permutation(size).tolist())


def _seed_cell(col: int, row: int, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{col}:{row}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


@dataclass(frozen=True, kw_only=True)
class NoSplit:
    """No pixel is in any part: for reading a site that has no split."""

    block_m: float = math.inf
    """There are no blocks."""

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return `NO_PART` for every pixel of a window, (height, width)."""
        return np.full((window.height, window.width), NO_PART, "uint8")


def locate_in_metres(
    grid: Grid, window: Window
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x and y of the pixel centres of a window, in metres.

    Together they have the window's shape; where the grid is not rotated, x is one row
    and y one column.

    Raises:
        DataError: If the CRS is not projected, so that it has no metres.
    """
    if not grid.crs.is_projected:
        raise DataError(
            f"Blocks are cut in metres, but the scene's CRS "
            f"({grid.crs.to_string()}) is not projected. Give the manifest `crs`, such "
            "as the area's UTM zone, and `gsd_m`, and the scene is resampled."
        )
    _, metres_per_unit = grid.crs.linear_units_factor
    x, y = grid.locate_pixels(window)
    if not grid.transform.b and not grid.transform.d:
        x, y = x[:1], y[:, :1]
    return x * metres_per_unit, y * metres_per_unit


def index_blocks(
    split: Split, grid: Grid, window: Window
) -> tuple[BlockIds, npt.NDArray[np.int64]]:
    """Return the numbers of the blocks under a window, and which one each pixel has.

    A block has the same number in all scenes; `locate_blocks` says where it lies.

    Returns:
        The numbers, (blocks,), of which some may have no pixel, and the position of
        each pixel's block in them, (height, width).

    Raises:
        DataError: If the CRS is not projected.
    """
    x, y = locate_in_metres(grid, window)
    col = np.floor(x / split.block_m).astype("int64")
    row = np.floor(y / split.block_m).astype("int64")
    first_row, first_col = row.min(), col.min()
    num_rows, num_cols = row.max() - first_row + 1, col.max() - first_col + 1
    rows = np.arange(first_row, first_row + num_rows)
    cols = np.arange(first_col, first_col + num_cols)
    ids = (rows[:, None] * _ID_STEP + cols).ravel()
    return ids, (row - first_row) * num_cols + (col - first_col)


def locate_blocks(block_ids: BlockIds) -> tuple[BlockIds, BlockIds]:
    """Return row and column of blocks from the numbers of `index_blocks`.

    A block reaches from its row times `block_m` upwards and from its column times
    `block_m` to the right, in metres of the CRS.
    """
    col = (block_ids + _ID_STEP // 2) % _ID_STEP - _ID_STEP // 2
    return (block_ids - col) // _ID_STEP, col
