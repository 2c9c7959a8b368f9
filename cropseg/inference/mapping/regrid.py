"""Bringing a map back from the grid that it is predicted on to that of its scene.

A scene of another GSD or CRS is predicted on a grid at the model's. Its map belongs on
the pixels of the scene: each takes what is stored at the nearest pixel, in all layers
the same one, so that a class and its probability stay together.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from cropseg.inference.mapping.jobs import BandJob, SceneJob, cut_scene
from cropseg.inference.mapping.parts import blame_part
from cropseg.inference.outputs.layers import Layer
from cropseg.inference.outputs.writer import RAW
from cropseg.inference.scenes.region import GridRegion
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.raster import RasterReader, open_raster
from cropseg.sites.tiling import iterate_tiles
from cropseg.sites.warp import warp_labels

_WINDOW_PX: Final = 1024
_MAX_OPEN_PARTS: Final = 4

Bytes = npt.NDArray[np.uint8]


def iterate_regridded(
    scene: SceneJob,
) -> Iterator[tuple[Window, dict[Layer, Bytes]]]:
    """Read the layers of a scene on its own grid, from its part files.

    Args:
        scene: A scene whose bands are all done.

    Yields:
        Windows that partition the scene's grid, and what is stored there for each
        layer, (height, width, num_bands); 255 where the scene has no data or no class
        is wanted.

    Raises:
        DataError: If the scene or a part cannot be read.
    """
    native = scene.out_grid
    region = None if scene.region is None else scene.region.on_grid(native)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(scene.scene.open_native())
        parts = {
            layer: stack.enter_context(contextlib.closing(_Parts(scene, layer)))
            for layer in scene.layers
        }
        for tile in iterate_tiles(native.window, core_size=_WINDOW_PX):
            window = tile.core.clip(height=native.height, width=native.width)
            wanted = _find_wanted(region, window)
            if wanted.any():
                wanted &= source.read_pixels(window).valid
            yield (
                window,
                {
                    layer: _regrid(scene, parts[layer], window, wanted)
                    for layer in scene.layers
                },
            )


def _find_wanted(region: GridRegion | None, window: Window) -> npt.NDArray[np.bool_]:
    shape = (window.height, window.width)
    if region is None:
        return np.ones(shape, np.bool_)
    return region.read(window) if region.touches(window) else np.zeros(shape, np.bool_)


def _regrid(
    scene: SceneJob, parts: _Parts, window: Window, wanted: npt.NDArray[np.bool_]
) -> Bytes:
    num_bands = parts.layer.num_bands
    values = np.full((window.height, window.width, num_bands), IGNORE, np.uint8)
    if not wanted.any():
        return values
    for band in range(num_bands):
        near = warp_labels(
            partial(parts.read_widened, band),
            scene.grid,
            scene.out_grid,
            window,
            resampling=Resampling.nearest,
        )
        np.copyto(values[..., band], near, where=wanted)
    return values


class _Parts:
    """Reads windows of a layer from the part files of its bands."""

    def __init__(self, scene: SceneJob, layer: Layer) -> None:
        self.layer = layer
        self._grid = scene.grid
        self._bands: Sequence[BandJob] = cut_scene(scene, in_parts=True)
        self._open: OrderedDict[int, tuple[contextlib.ExitStack, RasterReader]]
        self._open = OrderedDict()

    def read_widened(self, band: int, window: Window) -> Bytes:
        """Read a window, (height, width), with its pixels without data filled.

        Where a scene is finer than the model's GSD, a pixel at the edge of its data
        may lie in a larger one whose centre has no data. So a pixel without data has
        what a neighbour has.
        """
        outer = window.grow(1)
        inside = outer.clip(height=self._grid.height, width=self._grid.width)
        found = np.full((outer.height, outer.width), IGNORE, np.uint8)
        for job in self._bands:
            part = job.window.intersect(inside)
            if part.height and part.width:
                place = replace(part, row=part.row - job.window.row)
                with blame_part(job.get_part_path(self.layer)):
                    pixels = self._get_reader(job).read(place, [band])
                found[part.slices_in(outer)] = pixels.values[..., 0]
        return _widen(found)

    def close(self) -> None:
        """Close what is open."""
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()

    def _get_reader(self, job: BandJob) -> RasterReader:
        if job.index not in self._open:
            if len(self._open) == _MAX_OPEN_PARTS:
                _, (oldest, _) = self._open.popitem(last=False)
                oldest.close()
            stack = contextlib.ExitStack()
            path = job.get_part_path(self.layer)
            self._open[job.index] = stack, stack.enter_context(open_raster(path, RAW))
        self._open.move_to_end(job.index)
        return self._open[job.index][1]


def _widen(values: Bytes) -> Bytes:
    """Give pixels without data the value of a neighbour, and cut the outer ring off."""
    height, width = values.shape
    widened = values[1:-1, 1:-1].copy()
    for row, col in ((1, 0), (1, 2), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)):
        beside = values[row : row + height - 2, col : col + width - 2]
        np.copyto(widened, beside, where=widened == IGNORE)
    return widened
