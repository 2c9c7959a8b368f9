"""Parts drawn by hand: which polygon a pixel lies in says what it is for.

The polygons are read as those of labels are, by `vector_file`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.drawing import draw_shapes
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import NO_PART, PARTS, PartIds
from cropseg.sites.vector_file import (
    POLYGON_ENDINGS,
    check_start,
    read_table,
    stamp_files,
)

_POLYGON_TYPES: Final = {"Polygon", "MultiPolygon"}


@dataclass(frozen=True, kw_only=True)
class RegionSplit:
    """Polygons of a vector file, each with the part that its pixels belong to."""

    regions_path: Path
    """GeoJSON, GeoPackage, Shapefile or GeoParquet, by its ending, with a field
    `part`: train, val or test."""
    block_m: float
    """Side of a block, the unit of scoring, in metres."""

    def __post_init__(self) -> None:
        """Check that the file is there, and that its content is what it says."""
        path = self.regions_path
        if not path.is_file():
            raise DataFileNotFoundError(
                f"No region file at {path}, which `split` names."
            )
        check_start(path)
        if path.suffix.lower() not in POLYGON_ENDINGS:
            raise DataError(
                f"{path} ends in {path.suffix or 'nothing'}; expected one of "
                f"{', '.join(POLYGON_ENDINGS)}. Write the regions again as GeoPackage."
            )

    def read_parts(self, grid: Grid, window: Window) -> PartIds:
        """Return the part of every pixel of a window, (height, width)."""
        regions = self.read_regions().to_crs(grid.crs)
        parts = map(PARTS.index, regions["part"])
        shapes = zip(regions.geometry, parts, strict=True)
        return draw_shapes(shapes, grid, window, fill=NO_PART, dtype=np.uint8)

    def read_regions(self) -> Any:
        """Return the polygons as a table of geopandas with a column `part`.

        What was read is kept until the file changes.
        """
        return _read_regions(self.regions_path, stamp_files(self.regions_path))


@functools.lru_cache(maxsize=8)
def _read_regions(path: Path, _stamp: Any) -> Any:
    import geopandas

    check_start(path)
    try:
        table = read_table(path, fields=["part"])
        regions = geopandas.GeoDataFrame(
            dict(table.columns), geometry=table.shapes, crs=table.crs
        )
    # JSON of another kind does no harm here, and pyproj's errors are RuntimeErrors.
    except (DataError, RuntimeError, UnsafeFileError) as error:
        raise DataError(
            f"`regions` of `split` is no readable vector file of polygons with a "
            f"field `part`: {error}"
        ) from error
    unknown = [part for part in regions["part"] if part not in PARTS]
    if unknown:
        raise DataError(
            f"{path} needs a field `part` with train, val or test for every polygon; "
            f"its parts are {sorted(set(map(str, regions['part'])))}."
        )
    types = {
        "Empty" if is_empty else kind
        for kind, is_empty in zip(regions.geom_type, regions.is_empty, strict=True)
    }
    if not types or not types <= _POLYGON_TYPES:
        raise DataError(
            f"{path} needs a polygon in every row, and one at least; it has "
            f"{len(regions)} rows of {', '.join(map(str, types)) or 'nothing'}. Draw "
            "the parts as polygons."
        )
    return regions
