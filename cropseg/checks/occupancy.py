"""Where train and test lie in a scene: the boxes of its labelled pixels.

What proofs about a split are computed from, without all pixels in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import NO_PART, PARTS, PartIds
from cropseg.sites.tiling import iterate_tiles

TRAIN: Final = PARTS.index("train")
TEST: Final = PARTS.index("test")

CELL_PX: Final = 32
"""Side of a cell, of which only the box of its labelled pixels is kept."""
READ_PX: Final = 1024
"""Side of the windows in which a scene is read."""

Boxes = npt.NDArray[np.int64]
"""First row, first column, last row and last column of boxes, (boxes, 4)."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LabelledScene:
    """A scene, seen as the parts of its labelled pixels."""

    name: str
    """Its name, for the result."""
    grid: Grid
    """Its grid."""
    read_parts: Callable[[Window], PartIds]
    """Gives the part of every labelled pixel of a window inside the grid, (height,
    width), and `NO_PART` where a pixel has no label or no part."""
    boxes: Mapping[int, Boxes] | None = None
    """For train and test the boxes of their pixels, as `find_boxes` finds them in
    windows that partition the scene. None: the scene is read for them."""

    def get_boxes(self, part: int) -> Boxes:
        """Return the boxes of a part, once they are known."""
        return self.boxes[part] if self.boxes else np.empty((0, 4), "int64")


def find_boxes(parts: PartIds, window: Window) -> dict[int, Boxes]:
    """Find where train and test lie in a window, cell by cell.

    A survey that reads a scene anyway calls it for each of its windows, and joins
    the arrays of each part for `LabelledScene.boxes`.

    Args:
        parts: The parts of labelled pixels, (height, width), `NO_PART` elsewhere.
        window: Where they lie in the scene.

    Returns:
        For each part the tight boxes around its pixels in cells of 32 pixels.
    """
    num_rows, num_cols = (math.ceil(size / CELL_PX) for size in parts.shape)
    whole = np.full((num_rows * CELL_PX, num_cols * CELL_PX), NO_PART, "uint8")
    whole[: window.height, : window.width] = parts
    last = CELL_PX - 1
    cells = whole.reshape(num_rows, CELL_PX, num_cols, CELL_PX)
    boxes = {}
    for part in (TRAIN, TEST):
        mask = cells == part
        in_rows, in_cols = mask.any(axis=3).swapaxes(1, 2), mask.any(axis=1)
        row, col = np.nonzero(in_rows.any(axis=2))
        rows, cols = in_rows[row, col], in_cols[row, col]
        top, left = window.row + row * CELL_PX, window.col + col * CELL_PX
        found = (
            top + rows.argmax(axis=1),
            left + cols.argmax(axis=1),
            top + last - rows[:, ::-1].argmax(axis=1),
            left + last - cols[:, ::-1].argmax(axis=1),
        )
        boxes[part] = np.stack(found, axis=-1).astype("int64")
    return boxes


def complete_boxes(scene: LabelledScene) -> LabelledScene:
    """Return a scene with its boxes, reading it once if it has none."""
    if scene.boxes is not None:
        return scene
    found = []
    for tile in iterate_tiles(scene.grid.window, core_size=READ_PX):
        window = tile.core.clip(height=scene.grid.height, width=scene.grid.width)
        found.append(find_boxes(scene.read_parts(window), window))
    boxes = {
        part: np.concatenate([each[part] for each in found]) for part in (TRAIN, TEST)
    }
    return replace(scene, boxes=boxes)


def locate_centers(
    grid: Grid, rows: Numbers, cols: Numbers, crs: CRS
) -> tuple[Numbers, Numbers]:
    """Return x and y of the centres of single pixels, in any CRS."""
    t, rows, cols = grid.transform, rows + 0.5, cols + 0.5
    x = t.a * cols + t.b * rows + t.c
    y = t.d * cols + t.e * rows + t.f
    if grid.crs == crs or not x.size:
        return x, y
    warped = transform_points(grid.crs, crs, x.ravel(), y.ravel())
    return np.reshape(warped[0], x.shape), np.reshape(warped[1], y.shape)
