"""Parts drawn by hand: which polygon a pixel lies in says what it is for.

The polygons are read as those of labels are, by `vector_file`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.drawing import BLOCK_PX, draw_shapes, outline_block
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import NO_PART, PARTS, PartIds
from cropseg.sites.tiling import iterate_cells
from cropseg.sites.vector_file import (
    POLYGON_ENDINGS,
    check_start,
    read_table,
    stamp_files,
)

_POLYGON_TYPES: Final = {"Polygon", "MultiPolygon"}
_MAX_BLOCKS: Final = 128  # 8 MB in all


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
        stamp = stamp_files(self.regions_path)
        regions = _index_regions(self.regions_path, stamp, grid.crs)
        parts = np.full((window.height, window.width), NO_PART, np.uint8)
        for block in iterate_cells(window, BLOCK_PX):
            common = block.intersect(window)
            drawn = _draw_block(regions, grid, block)[common.slices_in(block)]
            parts[common.slices_in(window)] = drawn
        return parts

    def read_regions(self) -> Any:
        """Return the polygons as a table of geopandas with a column `part`.

        What was read is kept until the file changes.
        """
        return _read_regions(self.regions_path, stamp_files(self.regions_path))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Regions:
    """Regions in the CRS of a grid, in the order of the file."""

    tree: Any
    """Index of the polygons, by position."""
    shapes: npt.NDArray[np.object_]
    """The polygons."""
    parts: npt.NDArray[np.uint8]
    """The part of each."""


@functools.lru_cache(maxsize=8)
def _index_regions(path: Path, stamp: Any, crs: CRS) -> _Regions:
    import shapely

    regions = _read_regions(path, stamp).to_crs(crs)
    shapes = regions.geometry.to_numpy()
    parts = np.array([PARTS.index(part) for part in regions["part"]], np.uint8)
    return _Regions(tree=shapely.STRtree(shapes), shapes=shapes, parts=parts)


@functools.lru_cache(maxsize=_MAX_BLOCKS)
def _draw_block(regions: _Regions, grid: Grid, block: Window) -> PartIds:
    found = np.sort(regions.tree.query(outline_block(grid, block)))
    if not len(found):
        return np.full((block.height, block.width), NO_PART, np.uint8)
    shapes = zip(regions.shapes[found], regions.parts[found].tolist(), strict=True)
    return draw_shapes(shapes, grid, block, fill=NO_PART, dtype=np.uint8)


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
