"""Polygons and ground points as labels, drawn on a grid.

A window holds what the same crop of the whole scene holds. Fields are drawn in
blocks that lie fixed on the grid, so that no rounding depends on the window.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import DataError
from cropseg.sites.classes import write_value
from cropseg.sites.drawing import BLOCK_PX, draw_shapes, outline_block
from cropseg.sites.geometry import (
    DRAWING_OPTIONS,
    POINT_TYPES,
    measure_areas_m2,
    prepare_shapes,
)
from cropseg.sites.grid import Grid, Window
from cropseg.sites.tiling import iterate_cells
from cropseg.sites.vector_file import read_table, stamp_files
from cropseg.sites.vector_table import VectorTable, join_names

NO_FIELD: Final = -1
"""The field id of a pixel that no field labels."""

_MAX_BLOCKS: Final = 128  # 32 MB in all
_OVERLAP_SHARE: Final = 0.01

FieldIds = npt.NDArray[np.int32]
Filter = tuple[tuple[str, tuple[str | float, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class VectorSource:
    """What a manifest says of a vector file that holds labels."""

    path: Path
    """A GeoPackage, GeoJSON, Shapefile, GeoParquet or CSV file."""
    field: str
    """The field that holds the label value."""
    layer: str | None = None
    """The layer, which a file with several must be given."""
    filter: Filter = ()
    """Fields and the values that they may have; other rows are left out."""
    all_touched: bool = False
    """Whether a polygon labels all pixels that it touches, or those whose centre it
    holds."""
    edge_buffer_m: float = 0.0
    """Pixels whose centre is nearer than this to the border of their field are
    unknown."""
    buffer_m: float = 0.0
    """A point labels the pixels whose centre is within this distance, and always the
    pixel that holds it."""

    def __post_init__(self) -> None:
        """Check that the options go together."""
        for key in ("edge_buffer_m", "buffer_m"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                raise DataError(f"`{key}` is {value:g}; it must be 0 or more metres.")
        if self.all_touched and self.edge_buffer_m:
            raise DataError(
                "`all_touched` adds the pixels of a field's border and `edge_buffer_m` "
                f"({self.edge_buffer_m:g}) takes them away. Leave one of them out."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fields:
    """The labelled features of a vector file. Get them from `open_fields`.

    A field's id is its position. May be used by several threads.
    """

    source: VectorSource
    """What they were opened from."""
    crs: CRS
    """CRS of the geometries."""
    values: tuple[str | None, ...]
    """Label value of each field, or None where the file has none."""
    geometries: npt.NDArray[np.object_]
    """Valid polygons, or points, of each field; it may have several."""
    areas_m2: npt.NDArray[np.float64]
    """Area of each field; of points the area of their discs. Measured on the plane
    of the CRS, as pixels are, and in an equal-area projection where it has degrees."""
    num_repaired: int
    """How many polygons were invalid and are drawn repaired."""
    num_dropped: int
    """How many rows have no geometry, an empty one, or one with no place in the CRS."""
    num_left_out: int
    """How many rows the filter left out."""

    @property
    def num_unlabelled(self) -> int:
        """How many fields have no value; their pixels are unknown."""
        return self.values.count(None)

    @property
    def are_points(self) -> bool:
        """Whether the fields are points."""
        import shapely

        return int(shapely.get_type_id(self.geometries[0])) in POINT_TYPES

    def count_values(self) -> Counter[str]:
        """Count the fields of every label value."""
        return Counter(value for value in self.values if value is not None)

    def count_overlaps(self) -> int:
        """Count the polygons that share area with another.

        Neighbours drawn by hand share slivers: an overlap counts from one hundredth
        of the smaller field.
        """
        import shapely

        if self.are_points:
            return 0
        shapes = self.geometries
        first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        is_pair = first < second
        first, second = first[is_pair], second[is_pair]
        shared = shapely.area(shapely.intersection(shapes[first], shapes[second]))
        areas = shapely.area(shapes)
        counts = shared > _OVERLAP_SHARE * np.minimum(areas[first], areas[second])
        return len(np.union1d(first[counts], second[counts]))

    def rasterize(self, grid: Grid, window: Window) -> FieldIds:
        """Return the field of every pixel of a window.

        Where polygons overlap, the smaller one wins; of two of the same size, the
        later in the file. Where points of different values meet, no field is known.

        Args:
            grid: The grid of an image, in the CRS of the fields.
            window: What to draw. It may reach over the edge of the grid.

        Returns:
            Field ids, (window.height, window.width). `NO_FIELD` where there is none,
            where its value is missing, nearer than `edge_buffer_m` to its border, and
            outside the grid.

        Raises:
            DataError: If the grid has another CRS.
        """
        if grid.crs != self.crs:
            raise DataError(
                f"The fields of {self.source.path} were opened in {_name(self.crs)}, "
                f"but the grid is in {_name(grid.crs)}. Open them in the grid's CRS."
            )
        ids = np.full((window.height, window.width), NO_FIELD, np.int32)
        inside = window.clip(height=grid.height, width=grid.width)
        for block in iterate_cells(inside, BLOCK_PX):
            common = block.intersect(inside)
            drawn = _draw_block(self, grid, block)[common.slices_in(block)]
            ids[common.slices_in(window)] = drawn
        return ids

    @functools.cached_property
    def _pieces(self) -> _Pieces:
        return _cut_points(self) if self.are_points else _cut_polygons(self)


def open_fields(source: VectorSource, crs: CRS) -> Fields:
    """Read the fields of a vector file and bring them to the CRS of an image.

    What was read is kept until the file changes.

    Args:
        source: The file and how to read it.
        crs: The CRS wanted.

    Returns:
        The fields.

    Raises:
        DataFileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not of the format that its ending names.
        DataError: If it cannot be read, has no CRS, several layers and none is named,
            no such layer or field, no row that the filter keeps, lines, or polygons
            and points; or if metres are asked for in a CRS of degrees.
    """
    return _open_fields(source, crs, stamp_files(source.path))


@functools.lru_cache(maxsize=8)
def _open_fields(source: VectorSource, crs: CRS, _stamp: Any) -> Fields:
    metres_per_unit = _get_metres_per_unit(source, crs)
    with np.errstate(invalid="ignore"):  # corners that are NaN: dropped and counted
        table = read_table(
            source.path,
            fields=[source.field, *(name for name, _ in source.filter)],
            layer=source.layer,
            crs=crs,
        )
        kept = _filter_rows(source, table)
        shapes, has_place, num_repaired = prepare_shapes(
            table.shapes[kept],
            table.crs,
            crs,
            path=source.path,
            options=[key for key in DRAWING_OPTIONS if getattr(source, key)],
        )
    values = compress(compress(table.columns[source.field], kept), has_place)
    return Fields(
        source=source,
        crs=crs,
        values=tuple(map(_write_label, values)),
        geometries=shapes,
        areas_m2=measure_areas_m2(shapes, crs, source.buffer_m, metres_per_unit),
        num_repaired=num_repaired,
        num_dropped=int((~has_place).sum()),
        num_left_out=int((~kept).sum()),
    )


def _get_metres_per_unit(source: VectorSource, crs: CRS) -> float:
    """Return the length of a unit of a CRS, or NaN where a unit is a degree."""
    if crs.is_projected:
        return float(crs.linear_units_factor[1])
    for key in ("edge_buffer_m", "buffer_m"):
        if getattr(source, key):
            raise DataError(
                f"`{key}` of {source.path} is in metres, but the image's CRS "
                f"({_name(crs)}) has none. Set `crs` in the manifest to a projected "
                "one, such as the UTM zone of the site."
            )
    return math.nan


def _write_label(value: Any) -> str | None:
    """Return the text of a label value, or None for a null, a NaN or a blank."""
    if value is None or value != value:  # noqa: PLR0124 - NaN alone is not itself
        return None
    return write_value(value) or None


def _filter_rows(source: VectorSource, table: VectorTable) -> npt.NDArray[np.bool_]:
    if not len(table.shapes):
        raise DataError(
            f"{source.path} has no rows. Draw fields in it, or leave it out."
        )
    kept = np.ones(len(table.shapes), np.bool_)
    found = []
    for field, values in source.filter:
        wanted = {write_value(value) for value in values}
        texts = list(map(_write_label, table.columns[field]))
        kept &= np.array([text in wanted for text in texts], np.bool_)
        found.append(f"`{field}` is {join_names(text or 'empty' for text in texts)}")
    if not kept.any():
        raise DataError(
            f"`filter` keeps none of the {len(kept)} rows of {source.path}, where "
            f"{'; '.join(found)}. Correct the values."
        )
    return kept


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """What is drawn of the fields, in the order in which it is drawn."""

    tree: Any
    """Index of the polygons or points, by position."""
    shapes: npt.NDArray[np.object_]
    """Single polygons or points."""
    ids: npt.NDArray[np.int64]
    """The field of each."""
    codes: npt.NDArray[np.int64]
    """A number for the value of each field; -1 where it has none."""
    reach: float = 0.0
    """How far a point labels, in units of the CRS."""


def _cut_polygons(fields: Fields) -> _Pieces:
    import shapely

    order = np.argsort(-fields.areas_m2, kind="stable")
    shapes, ids = fields.geometries[order], order
    if fields.source.edge_buffer_m:
        # A field blots out what lies below it, then its core is drawn.
        distance = fields.source.edge_buffer_m / fields.crs.linear_units_factor[1]
        cores = shapely.buffer(shapes, -distance, quad_segs=32)
        shapes = np.stack([shapes, cores], axis=1).ravel()
        ids = np.stack([np.full_like(ids, NO_FIELD), ids], axis=1).ravel()
    parts, owners = shapely.get_parts(shapes, return_index=True)
    return _Pieces(
        tree=shapely.STRtree(parts),
        shapes=parts,
        ids=ids[owners],
        codes=_number_values(fields.values),
    )


def _cut_points(fields: Fields) -> _Pieces:
    import shapely

    points, owners = shapely.get_parts(fields.geometries, return_index=True)
    reach = 0.0
    if fields.source.buffer_m:
        reach = fields.source.buffer_m / fields.crs.linear_units_factor[1]
    return _Pieces(
        tree=shapely.STRtree(points),
        shapes=points,
        ids=owners,
        codes=_number_values(fields.values),
        reach=reach,
    )


def _number_values(values: Sequence[str | None]) -> npt.NDArray[np.int64]:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([-1 if v is None else numbers[v] for v in values], np.int64)


@functools.lru_cache(maxsize=_MAX_BLOCKS)
def _draw_block(fields: Fields, grid: Grid, block: Window) -> FieldIds:
    pieces = fields._pieces  # noqa: SLF001 - one of its methods, but for the cache
    found = np.sort(pieces.tree.query(outline_block(grid, block, pieces.reach)))
    draw = _draw_points if fields.are_points else _draw_polygons
    ids = draw(fields, found, grid, block) if len(found) else _draw_nothing(block)
    ids[(ids != NO_FIELD) & (pieces.codes[ids] == -1)] = NO_FIELD
    return ids


def _draw_nothing(block: Window) -> FieldIds:
    return np.full((block.height, block.width), NO_FIELD, np.int32)


def _draw_polygons(
    fields: Fields, found: npt.NDArray[np.int64], grid: Grid, block: Window
) -> FieldIds:
    pieces = fields._pieces  # noqa: SLF001 - see `_draw_block`
    return draw_shapes(
        zip(pieces.shapes[found], pieces.ids[found].tolist(), strict=True),
        grid,
        block,
        fill=NO_FIELD,
        dtype=np.int32,
        all_touched=fields.source.all_touched,
    )


def _draw_points(
    fields: Fields, found: npt.NDArray[np.int64], grid: Grid, block: Window
) -> FieldIds:
    import shapely

    pieces = fields._pieces  # noqa: SLF001 - see `_draw_block`
    ids = _draw_nothing(block)
    clash = np.zeros(ids.shape, np.bool_)
    x, y = grid.locate_pixels(block)
    to_pixels = ~grid.transform
    half_width = pieces.reach * math.hypot(to_pixels.a, to_pixels.b)
    half_height = pieces.reach * math.hypot(to_pixels.d, to_pixels.e)
    places = shapely.get_coordinates(pieces.shapes[found]).tolist()
    for (px, py), owner in zip(places, pieces.ids[found].tolist(), strict=True):
        col, row = to_pixels @ (px, py)
        col, row = col - block.col, row - block.row
        rows = slice(max(0, math.floor(row - half_height)), _after(row + half_height))
        cols = slice(max(0, math.floor(col - half_width)), _after(col + half_width))
        near = np.hypot(x[rows, cols] - px, y[rows, cols] - py) <= pieces.reach
        if 0 <= row < block.height and 0 <= col < block.width:
            near[math.floor(row) - rows.start, math.floor(col) - cols.start] = True
        before = ids[rows, cols]
        other = pieces.codes[before] != pieces.codes[owner]
        clash[rows, cols] |= near & (before != NO_FIELD) & other
        before[near] = owner
    ids[clash] = NO_FIELD
    return ids


def _after(position: float) -> int:
    """Return the end of a slice that holds the pixel at a position."""
    return max(0, math.floor(position) + 1)


def _name(crs: CRS) -> str:
    return str(crs.to_string())
