"""Predicting the tiles of a scene: read, fill, batch, predict, crop to the core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cropseg.errors import UsageError
from cropseg.inference.engine import KerasEngine
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.tiling import Tile

DEFAULT_TILE_SIZE = 512
"""Side of a tile with its context, in pixels."""

DEFAULT_CONTEXT = 64
"""Pixels of context around a core, on every side."""


class PixelReader(Protocol):
    """Reads the model's bands, in the model's order."""

    def read_pixels(self, window: Window) -> Pixels:
        """Read a window inside the raster."""


@dataclass(frozen=True, kw_only=True)
class TileShape:
    """The one shape in which a scene is read and predicted."""

    size: int
    """Side of a tile with its context, in pixels."""
    context: int
    """Pixels of context on every side of the core."""

    @property
    def core_size(self) -> int:
        """Side of the core, in pixels."""
        return self.size - 2 * self.context


@dataclass(frozen=True, kw_only=True)
class PredictedTile:
    """The core of a tile, predicted."""

    window: Window
    """Its core, inside the raster."""
    classes: npt.NDArray[np.uint8]
    """Class ids of the model, (height, width); 255 where the scene has no data."""
    confidence: npt.NDArray[np.floating]
    """Probability that the model gives to that class, 0 to 1, (height, width); 0
    where the scene has no data."""


def choose_tile_shape(
    multiple: int,
    *,
    size: int | None = None,
    context: int | None = None,
) -> TileShape:
    """Choose a tile shape that keeps tile origins on multiples of the stride.

    Args:
        multiple: What the network needs the side of a tile to be a multiple of.
        size: Side of a tile in pixels; the default is the multiple nearest to 512.
        context: Context in pixels; the default is 64, or a quarter of a small tile.

    Raises:
        UsageError: If a size is no multiple, or no core is left.
    """
    if size is None:
        size = max(1, round(DEFAULT_TILE_SIZE / multiple)) * multiple
    if context is None:
        context = min(DEFAULT_CONTEXT, size // 4) // multiple * multiple
    if size % multiple or context % multiple or size <= 2 * context:
        raise UsageError(
            f"Tile size {size} with context {context} does not fit this model: both "
            f"must be multiples of {multiple}, and a tile wider than two contexts."
        )
    return TileShape(size=size, context=context)


def predict_tiles(
    engine: KerasEngine, reader: PixelReader, grid: Grid, tiles: Iterable[Tile]
) -> Iterator[PredictedTile]:
    """Predict tiles of a scene.

    Args:
        engine: The model.
        reader: The open scene, with the model's bands.
        grid: The scene's grid.
        tiles: What to predict, all of one shape.

    Yields:
        The core of each tile. A tile without data is not computed, and comes before
        those that wait for their batch to fill up.
    """
    waiting: list[tuple[Tile, npt.NDArray[np.float32], npt.NDArray[np.bool_]]] = []
    for tile in tiles:
        pixels = _read_mirrored(reader, grid, tile.window)
        core = tile.core.clip(height=grid.height, width=grid.width)
        valid = pixels.valid[core.slices_in(tile.window)]
        if not valid.any():
            yield PredictedTile(
                window=core,
                classes=np.full(valid.shape, IGNORE, np.uint8),
                confidence=np.zeros(valid.shape, np.float32),
            )
            continue
        waiting.append((tile, engine.fill_nodata(pixels), valid))
        if len(waiting) == engine.batch_size:
            yield from _predict_batch(engine, grid, waiting)
            waiting = []
    if waiting:
        yield from _predict_batch(engine, grid, waiting)


def _predict_batch(
    engine: KerasEngine,
    grid: Grid,
    batch: list[tuple[Tile, npt.NDArray[np.float32], npt.NDArray[np.bool_]]],
) -> Iterator[PredictedTile]:
    probabilities = engine.predict([values for _, values, _ in batch])
    for (tile, _, valid), tile_probabilities in zip(batch, probabilities, strict=True):
        core = tile.core.clip(height=grid.height, width=grid.width)
        inside = tile_probabilities[core.slices_in(tile.window)]
        classes = inside.argmax(axis=-1)
        confidence = np.take_along_axis(inside, classes[..., np.newaxis], axis=-1)
        yield PredictedTile(
            window=core,
            classes=np.where(valid, classes, IGNORE).astype(np.uint8),
            confidence=np.where(valid, confidence[..., 0], 0),
        )


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
