"""The split as a map: `split.gpkg`, for QGIS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import ResourceError
from cropseg.files import write_whole
from cropseg.sites.regions import RegionSplit
from cropseg.sites.split import PARTS, WholeBlocks, locate_blocks

LAYER: Final = "split"
"""The layer of the file."""

_M2_PER_HA: Final = 10_000.0
_DATE: Final = "2000-01-01T00:00:00.000Z"
"""What the file says of its age, so that one split is always one file."""

PartPixels = npt.NDArray[np.int64]
"""Pixels of each part and class, (parts, classes)."""
ClassPixels = npt.NDArray[np.int64]
"""Pixels of each class, (rows of the table, classes)."""


def write_split(
    path: Path,
    split: WholeBlocks | RegionSplit,
    *,
    counts: Mapping[int, PartPixels],
    class_names: Sequence[str],
    crs: CRS,
    pixel_m2: float,
) -> None:
    """Write a split as polygons, with what is labelled in each.

    A block is one square polygon, also where it reaches over a scene. Of regions there
    is one polygon a part. Fields: `block_id` (as `index_blocks` numbers; not for
    regions), `part`, `labelled_ha` and `pixels_<class>` for every class. Labelled
    pixels in a gap, or outside all regions, are in no part and so not counted.

    Args:
        path: A file that ends in `.gpkg`. What is there is replaced.
        split: The split.
        counts: For every block over a scene (there is at least one) the labelled
            pixels of each part and class, (parts, classes).
        class_names: The classes, in the order of their ids.
        crs: CRS of the scenes, projected.
        pixel_m2: Area of a pixel, in square metres.

    Raises:
        ResourceError: If the file cannot be written.
    """
    import pyogrio
    from pyogrio.errors import DataSourceError

    if isinstance(split, RegionSplit):
        frame, pixels = _list_regions(split, counts, crs)
    else:
        frame, pixels = _list_blocks(split, counts, crs)
    frame["labelled_ha"] = pixels.sum(axis=1) * pixel_m2 / _M2_PER_HA
    for name, column in zip(_name_columns(class_names), pixels.T, strict=True):
        frame[name] = column

    def verify(part: Path) -> None:
        found = pyogrio.read_info(part, layer=LAYER)["features"]
        if found != len(frame):
            raise ResourceError(
                f"Of {len(frame)} polygons {found} are in {path}. Is the disk full?"
            )

    with write_whole(path, verify=verify) as part:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
        try:
            pyogrio.write_dataframe(frame, part, layer=LAYER, driver="GPKG")
        except DataSourceError as error:
            raise ResourceError(
                f"Cannot write {path}: {error}. Choose a folder that you may write to, "
                "on a disk with free space."
            ) from error
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _name_columns(class_names: Sequence[str]) -> list[str]:
    """Name a column for each class. Names that differ only in case get a number."""
    names = [f"pixels_{name}" for name in class_names]
    folded = [name.casefold() for name in names]
    return [
        f"{name}_{class_id}" if folded.count(name.casefold()) > 1 else name
        for class_id, name in enumerate(names)
    ]


def _list_blocks(
    split: WholeBlocks, counts: Mapping[int, PartPixels], crs: CRS
) -> tuple[Any, ClassPixels]:
    """Return a table of the blocks, and the pixels of each block and class."""
    from geopandas import GeoDataFrame, GeoSeries

    ids = np.array(sorted(counts), "int64")
    rows, cols = (axis.tolist() for axis in locate_blocks(ids))
    places = list(zip(rows, cols, strict=True))
    _, metres_per_unit = crs.linear_units_factor
    side = split.block_m / metres_per_unit
    squares = [_write_square(row, col, side) for row, col in places]
    parts = [split.choose_part(row=row, col=col) for row, col in places]
    frame = GeoDataFrame(
        {"block_id": ids, "part": [PARTS[part] for part in parts]},
        geometry=GeoSeries.from_wkt(squares),
        crs=crs.to_wkt(),
    )
    return frame, np.stack([counts[block].sum(axis=0) for block in ids.tolist()])


def _write_square(row: int, col: int, side: float) -> str:
    west, east, south, north = (
        col * side,
        (col + 1) * side,
        row * side,
        (row + 1) * side,
    )
    corners = ((west, south), (east, south), (east, north), (west, north))
    ring = ", ".join(f"{x!r} {y!r}" for x, y in (*corners, corners[0]))
    return f"POLYGON (({ring}))"


def _list_regions(
    split: RegionSplit, counts: Mapping[int, PartPixels], crs: CRS
) -> tuple[Any, ClassPixels]:
    """Return a table of the parts, and the pixels of each part and class."""
    regions = split.read_regions()[["part", "geometry"]].to_crs(crs.to_wkt())
    frame = regions.dissolve("part").reset_index()
    frame = frame.sort_values("part", key=lambda part: part.map(PARTS.index))
    pixels = np.stack(list(counts.values())).sum(axis=0)
    return frame, pixels[[PARTS.index(part) for part in frame["part"]]]
