"""Pixels of train and test of different scenes that share their ground."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.checks.occupancy import (
    CELL_PX,
    READ_PX,
    TEST,
    TRAIN,
    LabelledScene,
    locate_centers,
)
from cropseg.sites.grid import Grid, Window

_BORDER_PX: Final = 2
"""What a window is grown by in another grid: edges may bulge in another CRS."""

_Indexes = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


def count_shared_pixels(
    ours: Sequence[LabelledScene], theirs: Sequence[LabelledScene]
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Count training pixels that share their ground with a test pixel.

    Of two such pixels, the centre of one lies in the other. Pixels of one scene never
    do, as a pixel has one part.

    Args:
        ours: Scenes whose training pixels count. Their boxes are known.
        theirs: Scenes whose test pixels count. Their boxes are known.

    Returns:
        How many training pixels, and the pairs of scenes (training, test).
    """
    num_shared = 0
    scenes: dict[tuple[str, str], None] = {}
    for scene in ours:
        others = [other for other in theirs if other is not scene]
        for window in _iterate_occupied(scene, others):
            is_train = scene.read_parts(window) == TRAIN
            shared = np.zeros_like(is_train)
            for other in others:
                here = _find_shared(scene.grid, window, is_train, other)
                if here.any():
                    shared |= here
                    scenes[scene.name, other.name] = None
            num_shared += int(shared.sum())
    return num_shared, tuple(scenes)


def _iterate_occupied(
    scene: LabelledScene, others: Sequence[LabelledScene]
) -> Iterator[Window]:
    """Cut what has training pixels and may share ground into windows.

    A finer grid makes them smaller, as it is read in the same places.
    """
    if not others:
        return
    finest = min(other.grid.gsd_m / scene.grid.gsd_m for other in others)
    size = min(max(int(READ_PX * finest), CELL_PX), READ_PX)
    boxes = scene.get_boxes(TRAIN) // size
    corners = boxes[:, [0, 1, 0, 3, 2, 1, 2, 3]].reshape(-1, 2)
    for row, col in np.unique(corners, axis=0).tolist():
        window = Window(row=row * size, col=col * size, height=size, width=size)
        window = window.clip(height=scene.grid.height, width=scene.grid.width)
        covers = (_cover(scene.grid, window, other.grid) for other in others)
        if any(cover.height and cover.width for cover in covers):
            yield window


def _find_shared(
    grid: Grid, window: Window, is_train: _Mask, other: LabelledScene
) -> _Mask:
    """Return which training pixels of a window share ground with `other`'s test."""
    shared = np.zeros_like(is_train)
    there = _cover(grid, window, other.grid)
    boxes = other.get_boxes(TEST)
    occupied = (boxes[:, :2] < [there.row_end, there.col_end]).all(axis=1)
    occupied &= (boxes[:, 2:] >= [there.row, there.col]).all(axis=1)
    if not occupied.any():
        return shared
    is_test = other.read_parts(there) == TEST
    # Training pixels whose centre lies in a test pixel.
    rows, cols = np.nonzero(is_train)
    mapped = _map_pixels(grid, window, (rows, cols), other.grid)
    hits, _ = _look_up(is_test, there, mapped)
    shared[rows[hits], cols[hits]] = True
    # Training pixels in which the centre of a test pixel lies.
    mapped = _map_pixels(other.grid, there, np.nonzero(is_test), grid)
    hits, (rows, cols) = _look_up(is_train, window, mapped)
    shared[rows[hits], cols[hits]] = True
    return shared


def _cover(grid: Grid, window: Window, other: Grid) -> Window:
    """Return the window of another grid that holds all that a window shares."""
    rows = np.linspace(window.row, window.row_end, 9) - 0.5
    cols = np.linspace(window.col, window.col_end, 9) - 0.5
    rows, cols = (axis.ravel() for axis in np.meshgrid(rows, cols))
    x, y = locate_centers(grid, rows, cols, other.crs)
    cols, rows = ~other.transform @ (x, y)
    row, col = math.floor(rows.min()), math.floor(cols.min())
    height, width = math.ceil(rows.max()) - row, math.ceil(cols.max()) - col
    whole = Window(row=row, col=col, height=height, width=width).grow(_BORDER_PX)
    return whole.clip(height=other.height, width=other.width)


def _map_pixels(
    grid: Grid, window: Window, pixels: tuple[_Indexes, ...], other: Grid
) -> tuple[_Indexes, _Indexes]:
    """Return row and column of the other grid's pixels that hold pixel centres."""
    rows, cols = pixels
    x, y = locate_centers(
        grid,
        (rows + window.row).astype("float64"),
        (cols + window.col).astype("float64"),
        other.crs,
    )
    mapped_cols, mapped_rows = ~other.transform @ (x, y)
    return (
        np.floor(mapped_rows).astype("int64"),
        np.floor(mapped_cols).astype("int64"),
    )


def _look_up(
    mask: _Mask, window: Window, pixels: tuple[_Indexes, _Indexes]
) -> tuple[_Mask, tuple[_Indexes, _Indexes]]:
    """Say which pixels lie in a window and are set there, and their place in it."""
    rows, cols = pixels[0] - window.row, pixels[1] - window.col
    hits = (rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width)
    hits[hits] = mask[rows[hits], cols[hits]]
    return hits, (rows, cols)
