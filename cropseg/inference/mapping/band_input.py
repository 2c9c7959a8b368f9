"""What the reading thread reads of a scene: its pixels, and where they are wanted."""

from __future__ import annotations

import contextlib
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from cropseg.inference.mapping.jobs import SceneJob
from cropseg.inference.scenes.region import GridRegion
from cropseg.inference.tiles.mosaic import Keep, PixelReader
from cropseg.sites.grid import Window
from cropseg.sites.raster import Pixels


class BandInput:
    """Opens a scene when it is first read, in the thread that reads it.

    `close` must be called in that thread too (HAZARDS 4).
    """

    def __init__(self, scene: SceneJob) -> None:
        """Open nothing yet."""
        self._scene = scene
        self._opened = contextlib.ExitStack()

    def read_pixels(self, window: Window) -> Pixels:
        """Read the model's bands in a window inside the scene."""
        return self._reader.read_pixels(window)

    @property
    def keep(self) -> Keep | None:
        """Says where a class is wanted; None where it is everywhere."""
        return None if self._scene.region is None else self._find_wanted

    def close(self) -> None:
        """Close what is open."""
        self._opened.close()

    @cached_property
    def _reader(self) -> PixelReader:
        return self._opened.enter_context(self._scene.scene.open())

    @cached_property
    def _region(self) -> GridRegion:
        assert self._scene.region is not None  # noqa: S101 - `keep` saw to that
        return self._scene.region.on_grid(self._scene.grid)

    def _find_wanted(self, window: Window) -> npt.NDArray[np.bool_]:
        """Tell where a class is wanted in the grid on which the scene is predicted.

        A map that is brought back to another grid takes the class of the nearest
        pixel, whose centre may lie outside where that of the finer pixel is inside.
        So a pixel more around the region is wanted, and cut off on the other grid.
        """
        margin = 1 if self._scene.returns_to_grid else 0
        grown = window.grow(margin)
        if not self._region.touches(grown):
            return np.zeros((window.height, window.width), np.bool_)
        inside = self._region.read(grown)
        side = 1 + 2 * margin
        squares = sliding_window_view(inside, (side, side))
        return np.any(squares, axis=(-2, -1), out=None)
