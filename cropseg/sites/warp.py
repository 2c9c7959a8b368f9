"""Bringing pixels from one grid to another: GSD, CRS, or both.

Images are interpolated (bilinear), or averaged where the new pixels are more than
1.5 times as large. Labels are never mixed: each pixel takes the nearest class, or
above 1.5 times the class of the majority, with "unknown" as a class like any other.

GDAL's warper puts pixels by interpolating along each line of its output, right to an
eighth of a pixel. So between CRSs, from turned grids, and labels always, everything is
warped in cells of 128 pixels at fixed places: a pixel then does not depend on the
window that it is read in. Only an image that keeps its CRS and direction is warped at
once, and may differ from window to window by the rounding of float32. GDAL is told how
wide to interpolate: left to itself it takes the ratio of the two windows' sides, which
between turned grids is another one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio._err import CPLE_BaseError  # what `transform` raises
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE, Labels
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.tiling import iterate_cells

GSD_TOLERANCE: Final = 0.01
"""How far GSDs may differ and still count as equal, as a share."""

_COARSE: Final = 1.5
"""Above this ratio of GSDs, pixels are averaged and labels take the majority."""

_CELL_PX: Final = 128
_EDGE_POINTS: Final = 21
_MAX_SOURCE_PX: Final = 2**25
_MAX_COVER_PX: Final = 2**28  # with the margin around it
_FREE_PX: Final = 2**30
_MAX_FINER: Final = 1000
"""How many pixels may stand for one of the file, above `_FREE_PX`."""


class BandSource(Protocol):
    """Reads bands of an image in a window of its grid."""

    @property
    def grid(self) -> Grid:
        """The grid."""

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        """Read a window, which may reach over the edge."""


@dataclass(frozen=True, kw_only=True)
class WarpedSource:
    """An image, read on another grid than its own."""

    source: BandSource
    """The image."""
    grid: Grid
    """The grid on which it is read."""

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        """Read a window of the new grid, as float32.

        A pixel is valid where the source pixel at its centre is, or where it is an
        average, where any source pixel in it is; in every band.
        """

        def warp(source: Window, target: Window) -> npt.NDArray[np.float32]:
            pixels = self.source.read(source, bands)
            with np.errstate(over="ignore"):  # a nodata value of float64, for one
                values = pixels.values.astype(np.float32)
            values[~pixels.valid] = np.nan
            return self._warp(values, source, target)

        empty = np.full((window.height, window.width, len(bands)), np.nan, np.float32)
        grid = self.source.grid
        at_once = _is_straight(grid, self.grid)
        values = _warp_window(
            warp, grid, self.grid, window=window, filled=empty, at_once=at_once
        )
        valid = np.isfinite(values).all(axis=-1)
        values[~valid] = 0
        return Pixels(values=values, valid=valid)

    def _warp(
        self, values: npt.NDArray[np.float32], source: Window, target: Window
    ) -> npt.NDArray[np.float32]:
        coarse = self.grid.gsd_m > _COARSE * self.source.grid.gsd_m
        warped = np.full((values.shape[-1], target.height, target.width), np.nan)
        warped = warped.astype(np.float32)
        reproject(
            np.ascontiguousarray(np.moveaxis(values, -1, 0)),
            warped,
            src_transform=self.source.grid.get_window_transform(source),
            src_crs=self.source.grid.crs,
            src_nodata=np.nan,
            dst_transform=self.grid.get_window_transform(target),
            dst_crs=self.grid.crs,
            dst_nodata=np.nan,
            resampling=Resampling.average if coarse else Resampling.bilinear,
            XSCALE=self._scales[0],
            YSCALE=self._scales[1],
        )
        return np.moveaxis(warped, 0, -1)

    @functools.cached_property
    def _scales(self) -> tuple[float, float]:
        """Pixels of the grid on a column and on a row of the image, at its middle."""
        cols = np.array([0.0, 1.0, 0.0]) + self.grid.width / 2
        rows = np.array([0.0, 0.0, 1.0]) + self.grid.height / 2
        xs, ys = place_points(self.grid.transform, cols, rows)
        xs, ys = move_points(xs, ys, self.grid.crs, self.source.grid.crs)
        cols, rows = place_points(~self.source.grid.transform, xs, ys)
        x_scale, y_scale = (
            1 / math.hypot(axis[1] - axis[0], axis[2] - axis[0])
            for axis in (cols, rows)
        )
        return x_scale, y_scale


def warp_labels(
    read: Callable[[Window], Labels],
    source_grid: Grid,
    grid: Grid,
    window: Window,
    *,
    resampling: Resampling | None = None,
) -> Labels:
    """Read class ids on another grid than that of their file.

    Args:
        read: Reads class ids in a window of `source_grid`, 255 outside of it.
        source_grid: The grid of the file.
        grid: The grid on which they are wanted.
        window: What to read, in `grid`.
        resampling: `nearest` or `mode`; None to choose by the ratio of GSDs.

    Returns:
        Class ids, (window.height, window.width); 255 where the file ends. No value
        is there that the source does not have.
    """
    if resampling is None:
        coarse = grid.gsd_m > _COARSE * source_grid.gsd_m
        resampling = Resampling.mode if coarse else Resampling.nearest

    def warp(source: Window, target: Window) -> Labels:
        warped = np.full((target.height, target.width), IGNORE, np.uint8)
        reproject(
            read(source),
            warped,
            src_transform=source_grid.get_window_transform(source),
            src_crs=source_grid.crs,
            dst_transform=grid.get_window_transform(target),
            dst_crs=grid.crs,
            resampling=resampling,
            init_dest_nodata=False,
        )
        return warped

    empty = np.full((window.height, window.width), IGNORE, np.uint8)
    return _warp_window(
        warp, source_grid, grid, window=window, filled=empty, at_once=False
    )


def _warp_window(
    warp: Callable[[Window, Window], npt.NDArray[Any]],
    source_grid: Grid,
    grid: Grid,
    *,
    window: Window,
    filled: npt.NDArray[Any],
    at_once: bool,
) -> npt.NDArray[Any]:
    """Warp a window into `filled` and return it, untouched where nothing is below."""
    for part in _cut(source_grid, grid, window, at_once=at_once):
        source = _cover(source_grid, grid, part)
        inside = source.clip(height=source_grid.height, width=source_grid.width)
        if not inside.height or not inside.width:
            continue
        if source.height * source.width > _MAX_COVER_PX:
            raise DataError(
                f"Reading {part.height} x {part.width} pixels of {grid.gsd_m:.4g} m "
                f"would take {source.height} x {source.width} pixels of "
                f"{source_grid.gsd_m:.4g} m at once. Choose a `gsd_m` nearer to that "
                "of the image, or correct the transform of the file."
            )
        overlap = part.intersect(window)
        warped = warp(source, part)
        filled[overlap.slices_in(window)] = warped[overlap.slices_in(part)]
    return filled


def _cut(
    source_grid: Grid, grid: Grid, window: Window, *, at_once: bool
) -> Iterator[Window]:
    """Cut a window into the parts that are warped, or leave it whole if it is small."""
    ratio = max(1.0, grid.gsd_m / source_grid.gsd_m)
    most = max(1, int(math.sqrt(_MAX_SOURCE_PX) / ratio))
    if at_once and max(window.height, window.width) <= most:
        yield window
        return
    yield from iterate_cells(window, min(_CELL_PX, most))


def _is_straight(source_grid: Grid, grid: Grid) -> bool:
    """Whether the rows of one grid run along those of the other."""
    between = ~source_grid.transform @ grid.transform
    return bool(source_grid.crs == grid.crs and between.b == 0 and between.d == 0)


def _cover(source_grid: Grid, grid: Grid, window: Window) -> Window:
    """Return the source pixels that a window of another grid needs."""
    xs, ys = _walk_edge(grid.get_window_transform(window), window.height, window.width)
    xs, ys = move_points(xs, ys, grid.crs, source_grid.crs)
    cols, rows = place_points(~source_grid.transform, xs, ys)
    # What bilinear reads around a point, and what an average reads in a pixel.
    margin = 3 + math.ceil(grid.gsd_m / source_grid.gsd_m)
    row, col = math.floor(rows.min()) - margin, math.floor(cols.min()) - margin
    return Window(
        row=row,
        col=col,
        height=math.ceil(rows.max()) + margin - row,
        width=math.ceil(cols.max()) + margin - col,
    )


def _walk_edge(
    where: Affine, height: int, width: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return points on the edge of an array, so that a curved edge is covered."""
    way = np.linspace(0, 1, _EDGE_POINTS)
    zero, one = np.zeros_like(way), np.ones_like(way)
    cols = np.concatenate([way, way, zero, one]) * width
    rows = np.concatenate([zero, one, way, way]) * height
    return place_points(where, cols, rows)


def place_points(
    where: Affine, cols: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x and y of points given by column and row."""
    x = where.a * cols + where.b * rows + where.c
    y = where.d * cols + where.e * rows + where.f
    return x, y


def move_points(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], crs: CRS, target: CRS
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return points in another CRS.

    Raises:
        DataError: If a point has no place there.
    """
    if crs == target:
        return x, y
    try:
        moved_x, moved_y = map(np.asarray, transform(crs, target, x, y))
        if np.isfinite(moved_x).all() and np.isfinite(moved_y).all():
            return moved_x, moved_y
        reason = "infinitely far away"
    except CPLE_BaseError as error:  # where every point is outside
        reason = str(error)
    raise DataError(
        f"The image cannot be brought from {crs.to_string()} to {target.to_string()}: "
        f"not every part of it has a place there ({reason}). Choose a `crs` that is "
        "made for this area, such as its UTM zone."
    )


def choose_grid(native: Grid, *, crs: CRS | None, gsd_m: float | None) -> Grid:
    """Return the grid on which an image is read.

    Args:
        native: The image's own grid.
        crs: The site's CRS, or None for the image's.
        gsd_m: The site's GSD in metres, or None for the image's.

    Returns:
        The image's own grid where it fits, else a north-up grid over it whose lines
        lie on multiples of `gsd_m`, so that all scenes of a site share them.

    Raises:
        DataError: If the image is to be resampled in a CRS without metres, or to far
            more pixels than it has.
    """
    same_crs = crs is None or crs == native.crs
    side_m = gsd_m or native.gsd_m
    if same_crs and abs(native.gsd_m / side_m - 1) <= GSD_TOLERANCE:
        return native
    target = crs or native.crs
    if not target.is_projected:
        raise DataError(
            f"An image with a GSD of {native.gsd_m:.4g} m is to be resampled to "
            f"{side_m:.4g} m, but {target.to_string()} is not projected. Give the "
            "manifest a projected `crs`, such as the area's UTM zone."
        )
    xs, ys = _walk_edge(native.transform, native.height, native.width)
    xs, ys = move_points(xs, ys, native.crs, target)
    _, metres_per_unit = target.linear_units_factor
    side = side_m / metres_per_unit
    left, top = math.floor(xs.min() / side), math.ceil(ys.max() / side)
    height = max(1, top - math.floor(ys.min() / side))
    width = max(1, math.ceil(xs.max() / side) - left)
    if height * width > max(_FREE_PX, native.height * native.width * _MAX_FINER):
        raise DataError(
            f"At a `gsd_m` of {side_m:.4g} an image of {native.height:,} x "
            f"{native.width:,} pixels of {native.gsd_m:.4g} m would have {height:,} x "
            f"{width:,}, and take absurd time to read. Give metres, nearer to those of "
            "the image."
        )
    return Grid(
        height=height,
        width=width,
        transform=Affine(side, 0, left * side, 0, -side, top * side),
        crs=target,
    )
