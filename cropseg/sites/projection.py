"""How true a grid is to the ground, and a projection that is.

A CRS may call its units metres and yet stretch them: Web Mercator makes a metre 1.56
long at 50 degrees of latitude. The ground is measured on the ellipsoid of WGS 84.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import DataError, ModelError
from cropseg.sites.grid import Grid
from cropseg.sites.warp import move_points, place_points

MAX_STRETCH: Final = 0.05
"""How far the sides of a pixel may be from what the CRS says, as a share."""

_MAX_SPAN_DEGREES: Final = 30
"""15 degrees from the middle of a zone a transverse Mercator is 3.5 % too long."""

_UTM_LATS: Final = (-80, 84)
_EDGE_POINTS: Final = 21


def measure_pixel(grid: Grid) -> tuple[float, float]:
    """Measure the sides of a pixel in the middle of a grid, on the ground.

    Args:
        grid: A grid with a place on the Earth.

    Returns:
        Width along a row and height along a column, in metres.

    Raises:
        DataError: If its middle has no place on the Earth.
    """
    step = max(1.0, max(grid.width, grid.height) / 100)  # not lost in a rounding
    cols = grid.width / 2 + np.array([-step, step, 0, 0])
    rows = grid.height / 2 + np.array([0, 0, -step, step])
    lons, lats = locate(grid, cols, rows)
    *_, lengths = _geodesics().inv(lons[::2], lats[::2], lons[1::2], lats[1::2])
    width, height = (float(length) / (2 * step) for length in lengths)
    return width, height


def is_true_to_scale(grid: Grid) -> bool:
    """Whether pixels of a projected grid are on the ground what its CRS says.

    One whose middle has no place on the Earth is believed.
    """
    t = grid.transform
    unit_m = float(grid.crs.linear_units_factor[1])
    said = (math.hypot(t.a, t.d) * unit_m, math.hypot(t.b, t.e) * unit_m)
    try:
        found = measure_pixel(grid)
    except DataError:
        return True
    return all(
        abs(side / length - 1) <= MAX_STRETCH
        for side, length in zip(found, said, strict=True)
    )


def find_utm_zone(grid: Grid, noun: str) -> CRS:
    """Return the UTM zone of the middle of a grid; beyond 84 N and 80 S, UPS.

    Args:
        grid: Where an image lies.
        noun: What to call the image.

    Raises:
        ModelError: If the grid is too wide for one zone.
        DataError: If a corner of it has no place on the Earth.
    """
    way = np.linspace(0, 1, _EDGE_POINTS)
    ends = np.repeat([0.0, 1.0], _EDGE_POINTS)
    cols = np.concatenate([np.tile(way, 2), ends]) * grid.width
    rows = np.concatenate([ends, np.tile(way, 2)]) * grid.height
    lons, _ = locate(grid, cols, rows)
    (lon,), (lat,) = locate(
        grid, np.array([grid.width / 2]), np.array([grid.height / 2])
    )
    if not _UTM_LATS[0] <= lat <= _UTM_LATS[1]:
        return CRS.from_epsg(32661 if lat > 0 else 32761)
    # From the middle, so that a scene across the 180th meridian is no wider than it is.
    span = float(np.ptp((lons - lon + 180) % 360))
    if span > _MAX_SPAN_DEGREES:
        raise ModelError(
            f"{noun} is {span:.0f} degrees of longitude wide, and would be read in "
            f"one UTM zone; at most {_MAX_SPAN_DEGREES} are true to scale. Cut it "
            "into pieces with gdal_translate -projwin."
        )
    zone = int((lon + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def locate(
    grid: Grid, cols: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return longitude and latitude of places given by column and row, in degrees.

    Raises:
        DataError: If one has none.
    """
    xs, ys = place_points(grid.transform, cols, rows)
    lons, lats = move_points(xs, ys, grid.crs, _degrees())
    if (np.abs(lats) > 90).any():  # noqa: PLR2004 - the pole
        raise DataError(
            f"A grid in {grid.crs.to_string()} reaches to a latitude of "
            f"{lats[np.abs(lats).argmax()]:.6g}. Correct its transform or its CRS."
        )
    return lons, lats


@functools.cache
def _degrees() -> CRS:
    return CRS.from_epsg(4326)


@functools.cache
def _geodesics():  # type: ignore[no-untyped-def]  # noqa: ANN202 - pyproj's
    from pyproj import Geod

    return Geod(ellps="WGS84")
