"""Hectares of each class on a map.

In a projected CRS a pixel has the area that its projection gives it, as in the
attribute tables of GIS software. UTM is off by -0.08 % in the middle of a zone and by
0.2 % at its edge on the equator. Where a projection is off by more than 1 %, as Web
Mercator is (it doubles areas at 45 degrees), and where the CRS has degrees, a pixel has
its area on the ellipsoid, by row.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError
from cropseg.files import write_text
from cropseg.inference.outputs.finished import FinishedMap, open_map
from cropseg.sites.grid import Grid

M2_PER_HECTARE: Final = 10_000
MAX_DISTORTION: Final = 0.01
"""How far the area scale of a projection may be from 1 before it is corrected for."""

TOTAL: Final = "total"
"""What stands for the scene in the lines of `summary.csv` that sum up all scenes."""

_NUM_SAMPLES: Final = 33
"""Rows, and columns, at which the scale of a projection is looked at."""

_STEP_M: Final = 500.0
"""Half of the distance over which that scale is measured."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MappedArea:
    """How much of a map is one class."""

    scene: str
    """Name of the scene."""
    class_name: str
    """Name of the class."""
    num_pixels: int
    """Pixels of the class."""
    hectares: float
    """Their area, in hectares."""


def measure_areas(finished: FinishedMap) -> tuple[MappedArea, ...]:
    """Measure how much of a map is each of its classes.

    Args:
        finished: The map. It is read once, in squares.

    Returns:
        An entry for each class, in their order, also for those without a pixel.

    Raises:
        DataError: If the map cannot be read.
    """
    with open_map(finished) as reader:
        num_classes = len(reader.classes)
        pixels = np.zeros(num_classes, np.int64)
        areas_m2 = np.zeros(num_classes)
        row_areas_m2 = measure_pixels_m2(reader.grid)
        for window in reader.iterate_chunks():
            ids = reader.read_classes(window)
            counts = np.stack([np.bincount(row, minlength=256) for row in ids])
            counts = counts[:, :num_classes]
            pixels += counts.sum(axis=0)
            areas_m2 += row_areas_m2[window.row : window.row_end] @ counts
        names = [item.name for item in reader.classes]
    return tuple(
        MappedArea(
            scene=finished.scene,
            class_name=name,
            num_pixels=count,
            hectares=area_m2 / M2_PER_HECTARE,
        )
        for name, count, area_m2 in zip(
            names, pixels.tolist(), areas_m2.tolist(), strict=True
        )
    )


def write_summary(path: Path, areas: Iterable[MappedArea]) -> None:
    """Write hectares as a CSV file: `scene,class,pixels,hectares`.

    The last lines, with the scene `total`, sum up each class over all scenes.

    Args:
        path: The CSV file.
        areas: Of all scenes, those of one together.

    Raises:
        ResourceError: If the file cannot be written.
    """
    lines: list[tuple[str, str, int, float]] = []
    totals: dict[str, tuple[int, float]] = {}
    for area in areas:
        lines.append((area.scene, area.class_name, area.num_pixels, area.hectares))
        pixels, hectares = totals.get(area.class_name, (0, 0.0))
        totals[area.class_name] = pixels + area.num_pixels, hectares + area.hectares
    lines += [(TOTAL, name, *total) for name, total in totals.items()]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["scene", "class", "pixels", "hectares"])
    table.writerows((*line[:3], f"{line[3]:.4f}") for line in lines)
    write_text(path, text.getvalue())


def measure_pixels_m2(grid: Grid) -> Floats:
    """Return the area of a pixel of each row, (height,), in square metres.

    Raises:
        DataError: If the grid has no place on the Earth.
    """
    problem = grid.describe_misplacement()
    if problem:
        raise DataError(f"No area can be measured on a raster with {problem}.")
    area = abs(grid.transform.determinant)
    if not grid.crs.is_geographic:
        planar_m2 = float(grid.crs.linear_units_factor[1]) ** 2
        return area * planar_m2 / _measure_distortion(grid, planar_m2)
    cols = np.full(grid.height, grid.width / 2)
    _, latitudes = _locate(grid, cols, np.arange(0.5, grid.height))
    return area * _measure_square_unit_m2(_open_crs(grid), latitudes)


def _measure_square_unit_m2(crs: Any, latitudes: Floats) -> Floats:
    """Return the area on the ellipsoid of a square degree, as it is at latitudes.

    The product of the radii of curvature, M N cos(latitude), per square radian. Some
    CRS, such as NTF (Paris), have grads for degrees.

    Args:
        crs: A geographic CRS of pyproj.
        latitudes: In its units.

    References:
        Snyder (1987), Map Projections: A Working Manual, equations 4-18 and 4-20,
        doi:10.3133/pp1395.
    """
    ellipsoid = crs.ellipsoid
    radians = crs.axis_info[0].unit_conversion_factor
    axis_m = ellipsoid.semi_major_metre
    flattening = 1 / ellipsoid.inverse_flattening if ellipsoid.inverse_flattening else 0
    squared = flattening * (2 - flattening)  # eccentricity
    angles = latitudes * radians
    per_radian = axis_m**2 * (1 - squared) * np.cos(angles)
    per_radian /= (1 - squared * np.sin(angles) ** 2) ** 2
    return np.asarray(per_radian * radians**2)


def _measure_distortion(grid: Grid, planar_m2: float) -> Floats:
    """Return how many times larger each row is on the plane than on the ellipsoid.

    1 where the projection is nowhere off by more than `MAX_DISTORTION`.

    Args:
        grid: A grid in a projected CRS.
        planar_m2: Area of a square unit of its CRS.
    """
    rows, cols = np.meshgrid(
        np.linspace(0, grid.height, _NUM_SAMPLES),
        np.linspace(0, grid.width, _NUM_SAMPLES),
        indexing="ij",
    )
    crs = _open_crs(grid)
    step = _STEP_M / math.sqrt(planar_m2)
    angles, latitudes = _measure_angles(crs, *_locate(grid, cols, rows), step=step)
    units_m2 = _measure_square_unit_m2(crs.geodetic_crs, latitudes)
    scales = planar_m2 / (angles * units_m2)
    if not np.isfinite(scales).all() or np.abs(scales - 1).max() <= MAX_DISTORTION:
        return np.ones(grid.height)
    by_row = scales.mean(axis=1)
    return np.interp(np.arange(grid.height) + 0.5, rows[:, 0], by_row)


def _measure_angles(
    crs: Any, x: Floats, y: Floats, *, step: float
) -> tuple[Floats, Floats]:
    """Return how much longitude times latitude a square unit is, and the latitude.

    PROJ's own factors take the Earth for a sphere where Web Mercator does.

    Args:
        crs: A projected CRS of pyproj.
        x: Places, in its units.
        y: Likewise.
        step: Half of the distance over which it is measured, likewise.

    Returns:
        Both in the units of its geographic CRS.
    """
    import pyproj

    geographic = crs.geodetic_crs
    turn = 2 * math.pi / geographic.axis_info[0].unit_conversion_factor
    transformer = pyproj.Transformer.from_crs(crs, geographic, always_xy=True)

    def measure(dx: float, dy: float) -> tuple[Floats, Floats]:
        east, north = transformer.transform(x + dx, y + dy)
        west, south = transformer.transform(x - dx, y - dy)
        along = (east - west + turn / 2) % turn - turn / 2  # across the 180th meridian
        return along / (2 * step), (north - south) / (2 * step)

    lon_x, lat_x = measure(step, 0.0)
    lon_y, lat_y = measure(0.0, step)
    _, latitudes = transformer.transform(x, y)
    return np.abs(lon_x * lat_y - lon_y * lat_x), latitudes


def _open_crs(grid: Grid) -> Any:
    import pyproj

    return pyproj.CRS.from_wkt(grid.crs.to_wkt())


def _locate(grid: Grid, cols: Floats, rows: Floats) -> tuple[Floats, Floats]:
    t = grid.transform
    return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
