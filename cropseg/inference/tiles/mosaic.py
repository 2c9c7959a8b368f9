"""Predicting the tiles of a scene: read, fill, predict, crop to the core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.inference.engines.engine import Engine, fill_nodata
from cropseg.inference.tiles.tile_shape import TileShape
from cropseg.sites.classes import IGNORE, Labels
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.tiling import Tile, iterate_tiles

Keep = Callable[[Window], npt.NDArray[np.bool_]]
"""Says where in a window inside the raster a class is wanted, (height, width)."""


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
    """Where the scene has data and a class is wanted, (height, width); None if
    nowhere."""
    probabilities: npt.NDArray[np.floating] | None
    """Of each class of the model, 0 to 1, (height, width, classes), also where the
    scene has no data; None where nothing is valid, as nothing was computed then."""

    @cached_property
    def classes(self) -> Labels:
        """Class ids of the model, (height, width); 255 where there is no data.

        Raises:
            ModelError: If a probability is not a number.
        """
        return self._best[0]

    @cached_property
    def confidence(self) -> npt.NDArray[np.floating]:
        """Probability of that class, 0 to 1, (height, width); 0 where it is 255."""
        return self._best[1]

    @cached_property
    def _best(self) -> tuple[Labels, npt.NDArray[np.floating]]:
        shape = (self.window.height, self.window.width)
        if self.valid is None or self.probabilities is None:
            return np.full(shape, IGNORE, np.uint8), np.zeros(shape, np.float32)
        classes, best = _find_best(self.probabilities)
        if (np.isnan(best) & self.valid).any():
            raise ModelError(
                f"The model gives probabilities that are not numbers, from row "
                f"{self.window.row}, column {self.window.col} on. Its weights are "
                "damaged, or values of the scene are far too large for it."
            )
        classes[~self.valid] = IGNORE
        return classes, np.where(self.valid, best, 0)


def predict_area(  # noqa: PLR0913 - what, where, and two ways to do it
    engine: Engine,
    reader: PixelReader,
    grid: Grid,
    area: Window,
    *,
    shape: TileShape,
    blend: bool = False,
    keep: Keep | None = None,
) -> Iterator[PredictedTile]:
    """Predict an area of a scene.

    Args:
        engine: The model.
        reader: The open scene, with the model's bands.
        grid: The scene's grid.
        area: Whole tile rows of the scene. Its upper edge lies on a multiple of the
            core's side.
        shape: Shape of the tiles.
        blend: Whether tiles overlap more and are averaged, weighted.
        keep: Where a class is wanted; by default everywhere.

    Yields:
        Pieces that partition the area. Any two areas agree where they overlap, bit
        for bit.
    """
    if blend:
        from cropseg.inference.tiles.blend import blend_tiles

        yield from blend_tiles(engine, reader, grid, area, shape=shape, keep=keep)
        return
    tiles = iterate_tiles(area, core_size=shape.core_size, context=shape.context)
    yield from predict_tiles(
        engine, reader, grid, tiles, margin=shape.context, keep=keep
    )


def predict_tiles(
    engine: Engine,
    reader: PixelReader,
    grid: Grid,
    tiles: Iterable[Tile],
    *,
    margin: int = 0,
    keep: Keep | None = None,
) -> Iterator[PredictedTile]:
    """Predict tiles of a scene.

    Args:
        engine: The model.
        reader: The open scene, with the model's bands.
        grid: The scene's grid.
        tiles: What to predict, all of one shape.
        margin: Pixels on every side of a tile that are in no core, so that an engine
            may leave them out.
        keep: Where a class is wanted; by default everywhere. Other pixels become 255,
            and are context like any other. A tile of which nothing is wanted is not
            read.

    Yields:
        The core of each tile. A tile without valid pixels is not computed, and may
        come before some that stand in front of it.
    """
    empty: deque[Window] = deque()

    def read_tiles() -> Iterator[
        tuple[tuple[Tile, Window, npt.NDArray[np.bool_]], npt.NDArray[np.float32]]
    ]:
        for tile in tiles:
            core = tile.core.clip(height=grid.height, width=grid.width)
            wanted = keep(core) if keep else np.True_
            if not wanted.any():
                empty.append(core)
                continue
            pixels = read_mirrored(reader, grid, tile.window)
            valid = pixels.valid[core.slices_in(tile.window)] & wanted
            if valid.any():
                yield (tile, core, valid), fill_nodata(pixels, engine.card)
            else:
                empty.append(core)

    found = engine.stream(read_tiles(), margin=margin)
    for (tile, core, valid), probabilities in found:
        while empty:
            yield _leave_empty(empty.popleft())
        inside = probabilities[core.slices_in(tile.window.grow(-margin))]
        yield PredictedTile(window=core, valid=valid, probabilities=inside)
    yield from map(_leave_empty, empty)


def read_mirrored(reader: PixelReader, grid: Grid, window: Window) -> Pixels:
    """Read a window; beyond the edge of the raster it holds the mirror image."""
    inside = window.clip(height=grid.height, width=grid.width)
    pixels = reader.read_pixels(inside)
    if inside == window:
        return pixels
    rows = (inside.row - window.row, window.row_end - inside.row_end)
    cols = (inside.col - window.col, window.col_end - inside.col_end)
    return Pixels(
        values=np.pad(pixels.values, (rows, cols, (0, 0)), mode="reflect"),
        valid=np.pad(pixels.valid, (rows, cols), mode="reflect"),
    )


def _leave_empty(core: Window) -> PredictedTile:
    return PredictedTile(window=core, valid=None, probabilities=None)


def _find_best(
    probabilities: npt.NDArray[np.floating],
) -> tuple[Labels, npt.NDArray[np.floating]]:
    """Return the class of the highest probability, the first of equal ones, and it.

    `argmax` and `max` over the short last axis take ten times as long, which is a
    fifth of the time of a fast engine. What is not a number stays so.
    """
    planes = np.ascontiguousarray(np.moveaxis(probabilities, -1, 0))
    best = planes[0]
    classes = np.zeros(best.shape, np.uint8)
    for class_id, plane in enumerate(planes[1:], 1):
        higher = plane > best
        classes *= ~higher
        classes += higher * np.uint8(class_id)
        best = np.maximum(best, plane)
    return classes, best
