"""Blending: neighbouring tiles fade into each other instead of meeting at a line.

The tiles are the same as without blending, so nothing more is computed. Around each
border between two cores lies a seam, half on either side, in which the weight of one
tile rises linearly from 0 to 1 and that of the other falls. Along one axis two tiles
meet in a seam, so at most four at a pixel, and their weights sum to 1.

Seams lie at fixed places of the scene, and what tiles say is added in one order.
So a pixel has the same bits whatever area it is asked for in. In memory are the
tiles under way and the seam below one row of tiles.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cropseg.inference.engines.engine import Engine, fill_nodata
from cropseg.inference.tiles.mosaic import PixelReader, PredictedTile, read_mirrored
from cropseg.inference.tiles.tile_shape import TileShape
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels

KeepPixels = Callable[[Window], npt.NDArray[np.bool_]]
"""Tells which pixels of a window inside the scene are wanted, (height, width)."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Rows or columns of a scene, cut into cores with seams between them."""

    length: int
    """Rows or columns of the scene."""
    core: int
    """Rows or columns of a core."""
    seam: int
    """Rows or columns of a seam, even, and not more than a core has."""

    @property
    def num_cores(self) -> int:
        return math.ceil(self.length / self.core)

    def start(self, index: int) -> int:
        """Return where the support of a tile starts, in pixels of the scene.

        What lies before it is finished once the tiles before it are.
        """
        if index >= self.num_cores:
            return self.length
        return max(0, index * self.core - self.seam // 2)

    def end(self, index: int) -> int:
        """Return where the support of a tile ends: that of its weights above 0."""
        return min(self.length, (index + 1) * self.core + self.seam // 2)

    def list_touching(self, first: int, last: int) -> range:
        """Return the tiles whose support has a pixel in [first, last)."""
        half = self.seam // 2
        lowest = max(0, (first - half) // self.core)
        highest = min(self.num_cores - 1, (last - 1 + half) // self.core)
        return range(lowest, highest + 1)

    def weigh(self, index: int) -> Floats:
        """Return the weights of a tile over its support."""
        start, end = self.start(index), self.end(index)
        weights = np.ones(end - start, np.float32)
        if not self.seam:
            return weights
        rising = (np.arange(self.seam, dtype=np.float32) + 0.5) / np.float32(self.seam)
        if index > 0:
            part = weights[: self.seam]
            part[:] = rising[: part.size]
        if index < self.num_cores - 1:
            part = weights[self.start(index + 1) - start :]
            part[:] = 1 - rising[: part.size]
        return weights


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A tile on its way."""

    row: int
    """Its place among the rows of tiles."""
    col: int
    """Its place in its row."""
    tile: Window
    """What is read: core and context."""
    support: Window
    """Where its weights are above 0, inside the scene."""
    finished: Window
    """What is final once it was added: the upper left part of its support. These
    windows partition the scene."""
    valid: npt.NDArray[np.bool_] | None = None
    """Where its support has data and is wanted; None if the tile is not computed."""


def blend_tiles(
    engine: Engine,
    reader: PixelReader,
    grid: Grid,
    area: Window,
    *,
    shape: TileShape,
    keep: KeepPixels | None = None,
) -> Iterator[PredictedTile]:
    """Predict an area of a scene from overlapping tiles.

    Args:
        engine: The model.
        reader: The open scene, with the model's bands.
        grid: The scene's grid.
        area: What to predict, inside the scene. For whole rows of tiles one more
            above and one more below it are computed, as their seams reach into it.
        shape: Shape of the tiles. Tiles without context are not blended.
        keep: Which pixels are wanted; None for all.

    Yields:
        Windows that partition the area. A tile whose weight falls on no wanted pixel
        with data is not computed, and not read if none is wanted there.
    """
    yield from _Blender(engine, reader, grid, area, shape=shape, keep=keep).run()


class _Blender:
    """Adds tiles, row by row and in a row from left to right."""

    def __init__(
        self,
        engine: Engine,
        reader: PixelReader,
        grid: Grid,
        area: Window,
        *,
        shape: TileShape,
        keep: KeepPixels | None,
    ) -> None:
        self._engine, self._reader, self._grid = engine, reader, grid
        self._area, self._shape, self._keep = area, shape, keep
        self._margin = shape.find_margin(blend=True)
        self._cells: deque[_Cell] = deque()
        # What tiles add to the seam that they share with the next one, by its place.
        self._beside: dict[tuple[int, int], Floats] = {}
        self._above: dict[int, Floats] = {}

    @cached_property
    def _axes(self) -> tuple[_Axis, _Axis]:
        shape = self._shape
        rows, cols = (
            _Axis(length=length, core=shape.core_size, seam=shape.seam)
            for length in (self._grid.height, self._grid.width)
        )
        return rows, cols

    def run(self) -> Iterator[PredictedTile]:
        found = self._engine.stream(self._read_tiles(), margin=self._margin)
        for cell, probabilities in found:
            while (skipped := self._cells.popleft()) is not cell:
                yield from self._skip(skipped)
            yield from self._add(cell, probabilities)
        while self._cells:
            yield from self._skip(self._cells.popleft())

    def _read_tiles(self) -> Iterator[tuple[_Cell, Floats]]:
        for place in self._list_cells():
            cell, pixels = self._read(place)
            self._cells.append(cell)
            if pixels is not None:
                yield cell, fill_nodata(pixels, self._engine.card)

    def _list_cells(self) -> Iterator[_Cell]:
        rows, cols = self._axes
        side, context = self._shape.core_size, self._shape.context
        for row in rows.list_touching(self._area.row, self._area.row_end):
            for col in cols.list_touching(self._area.col, self._area.col_end):
                core = Window(row=row * side, col=col * side, height=side, width=side)
                top, left = rows.start(row), cols.start(col)
                yield _Cell(
                    row=row,
                    col=col,
                    tile=core.grow(context),
                    support=_span(top, rows.end(row), left, cols.end(col)),
                    finished=_span(top, rows.start(row + 1), left, cols.start(col + 1)),
                )

    def _read(self, cell: _Cell) -> tuple[_Cell, Pixels | None]:
        """Read a tile, if a wanted pixel in its support has data."""
        wanted_area = cell.support.intersect(self._area)
        wanted = np.zeros((cell.support.height, cell.support.width), np.bool_)
        wanted[wanted_area.slices_in(cell.support)] = (
            True if self._keep is None else self._keep(wanted_area)
        )
        if not wanted.any():
            return cell, None
        pixels = read_mirrored(self._reader, self._grid, cell.tile)
        valid = wanted & pixels.valid[cell.support.slices_in(cell.tile)]
        return (replace(cell, valid=valid), pixels) if valid.any() else (cell, None)

    def _add(self, cell: _Cell, probabilities: Floats) -> Iterator[PredictedTile]:
        rows, cols = self._axes
        row, col, finished = cell.row, cell.col, cell.finished
        weights = rows.weigh(row)[:, None] * cols.weigh(col)
        inside = probabilities[cell.support.slices_in(cell.tile.grow(-self._margin))]
        added = inside * weights[..., None]
        beside = self._beside.pop((row, col), None)
        if beside is not None:
            added[:, : beside.shape[1]] += beside
        self._beside = {(row, col + 1): added[:, finished.width :].copy()}
        done = added[:, : finished.width]
        above = self._above.pop(col, None)
        if above is not None:
            done[: above.shape[0]] += above
        self._above[col] = done[finished.height :].copy()
        yield from self._give(cell, done[: finished.height])

    def _skip(self, cell: _Cell) -> Iterator[PredictedTile]:
        # Its seams hold no wanted pixel, so what others added there is not needed.
        self._beside = {}
        self._above.pop(cell.col, None)
        yield from self._give(cell, None)

    def _give(self, cell: _Cell, done: Floats | None) -> Iterator[PredictedTile]:
        window = cell.finished.intersect(self._area)
        if not window.height or not window.width:
            return
        if done is not None and cell.valid is not None:
            valid = cell.valid[window.slices_in(cell.support)]
            if valid.any():
                found = done[window.slices_in(cell.finished)]
                yield PredictedTile(window=window, valid=valid, probabilities=found)
                return
        yield PredictedTile(window=window, valid=None, probabilities=None)


def _span(row: int, row_end: int, col: int, col_end: int) -> Window:
    return Window(row=row, col=col, height=row_end - row, width=col_end - col)
