"""The window of the test part in which a report shows what each mode predicts.

It is chosen from the image and its labels alone, before any run, and for all runs
alike: nobody picks the place where the favourite looks best. No Keras.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.checks.quicklook import QuickLook, choose_bands
from cropseg.files import write_whole
from cropseg.inference.measure import Panel
from cropseg.sites.grid import Window
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.tiling import iterate_tiles

SIDES_PX: Final = (256, 192, 128, 96, 64, 48, 32, 16)
"""Sides that a panel may have, in pixels: multiples of the last one."""

_CELL_PX: Final = SIDES_PX[-1]
_READ_PX: Final = 512
_MIN_SHARE: Final = 0.005
"""Share of a window's pixels from which on a class can be seen in it."""
_TEST: Final = PARTS.index("test")


def choose_panel(site: Site) -> Panel | None:
    """Choose the window of the test part that shows most classes.

    Windows are squares of the `SIDES_PX` whose every pixel is valid and for the test,
    from half the largest that there is. Of these the one with most classes is taken,
    then the largest, then the one with most labelled pixels, then the first.

    Args:
        site: The site, with labels and a split.

    Returns:
        The panel, the same for the same site; None where no square fits into the test
        part, or none has a label.
    """
    cells = [
        (index, _count_cells(site, index))
        for index, scene in enumerate(site.scenes)
        if scene.labels is not None
    ]
    found: list[_Ranked] = []
    for side in SIDES_PX:
        if found and side < found[0].panel.window.height / 2:
            break
        best_of_side = [_find_best(index, counts, side) for index, counts in cells]
        found += [item for item in best_of_side if item is not None]
    best = max(found, key=lambda item: item.rank, default=None)
    return best.panel if best and best.rank[0] else None


def write_panel(site: Site, panel: Panel, path: Path) -> None:
    """Write the image and the labels of a panel.

    Args:
        site: The site.
        panel: The panel.
        path: The NPZ file. `image` is red, green and blue, (height, width, 3), uint8,
            stretched from the panel's 2 % to its 98 % quantile, or three other bands
            where the site has no such names; white where there is no data. `labels`
            are class ids, (height, width), 255 where unknown.
    """
    scene = site.scenes[panel.scene]
    with site.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(panel.window)
    values = pixels.values[..., choose_bands(site)].astype(np.float32)
    values[~pixels.valid] = np.nan
    look = QuickLook(
        scene=scene,
        colors=site.classes.colors,
        step_px=1,
        values=values,
        labels=labels,
        parts=site.require_split().read_parts(scene.grid, panel.window),
    )
    with write_whole(path) as part:
        np.savez_compressed(part, image=look.image, labels=labels)


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """A window that could be shown."""

    rank: tuple[int, int, int]
    """Number of classes that can be seen, side in pixels, number of labelled pixels."""
    panel: Panel
    """The window."""


def _count_cells(site: Site, index: int) -> npt.NDArray[np.int64]:
    """Count the pixels of each cell of a scene that has some for the test.

    Returns:
        (rows, columns, classes + 1): pixels of each class, of any part, and valid test
        pixels. A cell that reaches over the edge is left out.
    """
    scene, split = site.scenes[index], site.require_split()
    num_rows, num_cols = scene.grid.height // _CELL_PX, scene.grid.width // _CELL_PX
    num_classes = len(site.classes)
    counts = np.zeros((num_rows, num_cols, num_classes + 1), np.int64)
    area = Window(row=0, col=0, height=num_rows * _CELL_PX, width=num_cols * _CELL_PX)
    with site.open_scene(scene) as reader:
        for tile in iterate_tiles(area, core_size=_READ_PX):
            window = tile.core.intersect(area)
            is_test = split.read_parts(scene.grid, window) == _TEST
            if not is_test.any():
                continue
            pixels, labels = reader.read_valid_labels(window)
            place = (
                slice(window.row // _CELL_PX, window.row_end // _CELL_PX),
                slice(window.col // _CELL_PX, window.col_end // _CELL_PX),
            )
            for class_id in range(num_classes):
                counts[(*place, class_id)] = _sum_cells(labels == class_id)
            counts[(*place, num_classes)] = _sum_cells(is_test & pixels.valid)
    return counts


def _sum_cells(is_counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    height, width = is_counted.shape
    cells = is_counted.reshape(
        height // _CELL_PX, _CELL_PX, width // _CELL_PX, _CELL_PX
    )
    total: npt.NDArray[np.int64] = cells.sum(axis=(1, 3))
    return total


def _find_best(scene: int, counts: npt.NDArray[np.int64], side: int) -> _Ranked | None:
    """Return the best window of a side whose every pixel is valid and for the test."""
    reach = side // _CELL_PX
    num_rows, num_cols, _ = counts.shape
    if num_rows < reach or num_cols < reach:
        return None
    # Sums over windows are differences of sums from the corner.
    corner = np.pad(counts, ((1, 0), (1, 0), (0, 0))).cumsum(axis=0).cumsum(axis=1)
    sums = (
        corner[reach:, reach:]
        - corner[:-reach, reach:]
        - corner[reach:, :-reach]
        + corner[:-reach, :-reach]
    )
    visible = (sums[..., :-1] >= _MIN_SHARE * side**2).sum(axis=-1)
    labelled = sums[..., :-1].sum(axis=-1)
    fits = sums[..., -1] == side**2
    if not fits.any():
        return None
    order = np.where(fits, visible * (side**2 + 1) + labelled, -1)
    row, col = np.unravel_index(order.argmax(), order.shape)  # the first of equals
    window = Window(
        row=int(row) * _CELL_PX, col=int(col) * _CELL_PX, height=side, width=side
    )
    return _Ranked(
        rank=(int(visible[row, col]), side, int(labelled[row, col])),
        panel=Panel(scene=scene, window=window),
    )
