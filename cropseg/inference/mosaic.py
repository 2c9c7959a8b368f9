"""Predicting the tiles of a scene: read, fill, predict, crop to the core."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cropseg.inference.engine import Engine, fill_nodata
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.tiling import Tile


class PixelReader(Protocol):
    """Reads the model's bands, in the model's order."""

    def read_pixels(self, window: Window) -> Pixels:
        """Read a window inside the raster."""


@dataclass(frozen=True, kw_only=True)
class PredictedTile:
    """The core of a tile, predicted."""

    window: Window
    """Its core, inside the raster."""
    valid: npt.NDArray[np.bool_] | None
    """Where the scene has data, (height, width); None if nowhere."""
    probabilities: npt.NDArray[np.floating] | None
    """Of each class of the model, 0 to 1, (height, width, classes), also where the
    scene has no data; None if it has none at all, as nothing was computed then."""

    @cached_property
    def classes(self) -> npt.NDArray[np.uint8]:
        """Class ids of the model, (height, width); 255 where there is no data."""
        if self.valid is None or self.probabilities is None:
            return np.full((self.window.height, self.window.width), IGNORE, np.uint8)
        best = self.probabilities.argmax(axis=-1)
        return np.where(self.valid, best, IGNORE).astype(np.uint8)

    @cached_property
    def confidence(self) -> npt.NDArray[np.floating]:
        """Probability of that class, 0 to 1, (height, width); 0 where it is 255."""
        if self.valid is None or self.probabilities is None:
            return np.zeros((self.window.height, self.window.width), np.float32)
        return np.where(self.valid, self.probabilities.max(axis=-1), 0)


def predict_tiles(
    engine: Engine, reader: PixelReader, grid: Grid, tiles: Iterable[Tile]
) -> Iterator[PredictedTile]:
    """Predict tiles of a scene.

    Args:
        engine: The model.
        reader: The open scene, with the model's bands.
        grid: The scene's grid.
        tiles: What to predict, all of one shape.

    Yields:
        The core of each tile. A tile without data is not computed, and may come
        before some that stand in front of it.
    """
    empty: deque[Window] = deque()

    def read_tiles() -> Iterator[
        tuple[tuple[Tile, Window, npt.NDArray[np.bool_]], npt.NDArray[np.float32]]
    ]:
        for tile in tiles:
            pixels = _read_mirrored(reader, grid, tile.window)
            core = tile.core.clip(height=grid.height, width=grid.width)
            valid = pixels.valid[core.slices_in(tile.window)]
            if valid.any():
                yield (tile, core, valid), fill_nodata(pixels, engine.card)
            else:
                empty.append(core)

    for (tile, core, valid), probabilities in engine.stream(read_tiles()):
        while empty:
            yield _leave_empty(empty.popleft())
        inside = probabilities[core.slices_in(tile.window)]
        yield PredictedTile(window=core, valid=valid, probabilities=inside)
    yield from map(_leave_empty, empty)


def _leave_empty(core: Window) -> PredictedTile:
    return PredictedTile(window=core, valid=None, probabilities=None)


def _read_mirrored(reader: PixelReader, grid: Grid, window: Window) -> Pixels:
    """Read a window; beyond the edge of the raster it holds the mirror image."""
    inside = window.clip(height=grid.height, width=grid.width)
    pixels = reader.read_pixels(inside)
    rows = (inside.row - window.row, window.row_end - inside.row_end)
    cols = (inside.col - window.col, window.col_end - inside.col_end)
    return Pixels(
        values=np.pad(pixels.values, (rows, cols, (0, 0)), mode="reflect"),
        valid=np.pad(pixels.valid, (rows, cols), mode="reflect"),
    )
