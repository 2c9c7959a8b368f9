"""Geometries of a vector file, made fit for drawing: of one kind, valid, in one CRS."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import DataError

POINT_TYPES: Final = {0: "Point", 4: "MultiPoint"}
"""Points, by the numbers of their types in shapely."""

DRAWING_OPTIONS: Final = ("all_touched", "edge_buffer_m", "buffer_m")
"""Options of a vector file that go with polygons alone, or with points alone."""

_EQUAL_AREA: Final = "EPSG:6933"
_POLYGON_TYPES: Final = {3: "Polygon", 6: "MultiPolygon"}


def prepare_shapes(
    shapes: npt.NDArray[np.object_],
    source_crs: Any,
    crs: CRS,
    *,
    path: Path,
    options: Collection[str],
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.bool_], int]:
    """Make polygons or points valid and bring them to a CRS.

    Args:
        shapes: The geometry of each row, or None.
        source_crs: Their CRS, as geopandas understands it.
        crs: The CRS wanted.
        path: Their file, for messages.
        options: Those of `DRAWING_OPTIONS` that are set.

    Returns:
        The shapes that have a place, which rows have one, and how many were repaired.

    Raises:
        DataError: If none has a place, there is no way to the CRS, they are lines, or
            both polygons and points, or an option does not go with them.
    """
    import geopandas
    import shapely

    has_place = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    _check_types(shapes[has_place], path, options)
    try:
        flat = shapely.force_2d(shapes[has_place])
        series = geopandas.GeoSeries(flat, crs=source_crs).to_crs(crs)
    except RuntimeError as error:  # pyproj's errors are
        raise DataError(
            f"There is no way from the CRS of {path} to {crs.to_string()}: {error}. "
            "Write it again in a CRS with an EPSG code."
        ) from error
    found = series.to_numpy().copy()
    corners, owners = shapely.get_coordinates(found, return_index=True)
    found[owners[~np.isfinite(corners).all(axis=1)]] = None  # bounds skip a NaN
    broken = ~(shapely.is_valid(found) | shapely.is_missing(found))
    found[broken] = shapely.make_valid(
        found[broken], method="structure", keep_collapsed=False
    )
    is_left = ~(shapely.is_missing(found) | shapely.is_empty(found))
    has_place[has_place] = is_left
    if not is_left.any():
        raise DataError(
            f"None of the {len(shapes)} rows of {path} has a polygon or a point with "
            f"a place in {crs.to_string()}. Look at it in QGIS."
        )
    return found[is_left], has_place, int((broken & is_left).sum())


def _check_types(
    shapes: npt.NDArray[np.object_], path: Path, options: Collection[str]
) -> None:
    import shapely

    types = set(shapely.get_type_id(shapes).tolist())
    for known, noun, keys in (
        (_POLYGON_TYPES, "polygons", ("buffer_m",)),
        (POINT_TYPES, "points", ("edge_buffer_m", "all_touched")),
    ):
        if types <= set(known):
            given = [key for key in keys if types and key in options]
            if given:
                raise DataError(
                    f"{path} holds {noun}, with which `{given[0]}` does not go. "
                    "Leave it out."
                )
            return
    counts = Counter(shape.geom_type for shape in shapes)
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    raise DataError(
        f"{path} holds {found}; expected polygons alone or points alone. Keep one kind "
        "in a file or a layer, and turn lines into polygons."
    )


def measure_areas_m2(
    shapes: npt.NDArray[np.object_], crs: CRS, buffer_m: float, metres_per_unit: float
) -> npt.NDArray[np.float64]:
    """Return the area of each field, of points that of their discs.

    Args:
        shapes: Polygons, or points.
        crs: Their CRS.
        buffer_m: Radius of a point's disc.
        metres_per_unit: Length of a unit of the CRS, NaN where it is a degree.
    """
    import geopandas
    import shapely

    if int(shapely.get_type_id(shapes[0])) in POINT_TYPES:
        num_points = shapely.get_num_geometries(shapes)
        return np.asarray(num_points * math.pi * buffer_m**2, np.float64)
    if math.isnan(metres_per_unit):
        plane = geopandas.GeoSeries(shapes, crs=crs).to_crs(_EQUAL_AREA)
        return np.asarray(plane.area, np.float64)
    return np.asarray(shapely.area(shapes) * metres_per_unit**2, np.float64)
