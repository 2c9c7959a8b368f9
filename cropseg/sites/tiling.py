"""Cutting a raster into tiles: a core that is kept, and its context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cropseg.sites.grid import Window


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One cell of a tile grid."""

    core: Window
    """What is kept of it. Cores of a grid partition the raster."""
    context: int
    """Pixels that are read around the core, on every side."""

    @property
    def window(self) -> Window:
        """What is read: the core and its context."""
        return self.core.grow(self.context)


def iterate_tiles(area: Window, *, core_size: int, context: int = 0) -> Iterator[Tile]:
    """Cut a raster into tiles whose cores partition it.

    Args:
        area: The whole raster.
        core_size: Side of a core, in pixels.
        context: Pixels around a core, on every side.

    Yields:
        Tiles, row by row. All have the same size; those at the right and lower edge
        reach over it.
    """
    for row in range(area.row, area.row_end, core_size):
        for col in range(area.col, area.col_end, core_size):
            core = Window(row=row, col=col, height=core_size, width=core_size)
            yield Tile(core=core, context=context)


def iterate_cells(window: Window, side: int) -> Iterator[Window]:
    """Cut a raster at multiples of a length, and yield what a window touches.

    The cells do not depend on the window. What is computed for whole cells is the same
    in every window, also where it is rounded.

    Args:
        window: What is wanted; it may reach over the edge of its raster.
        side: Side of a cell, in pixels.

    Yields:
        Whole cells, row by row.
    """
    for row in range(window.row // side * side, window.row_end, side):
        for col in range(window.col // side * side, window.col_end, side):
            yield Window(row=row, col=col, height=side, width=side)
