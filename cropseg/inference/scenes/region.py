"""Where scenes are mapped at all: the polygons of a file.

A window holds what the same crop of the whole scene holds: polygons are drawn in
blocks that lie fixed on the grid, so that no rounding depends on the window. They are
cut to the scene before they are brought to its CRS, so that the fields of a country
cost a scene no more than its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.errors import CRSError

from cropseg.errors import DataError, DataFileNotFoundError, join_problems
from cropseg.files import hash_file, hash_settings
from cropseg.sites.drawing import BLOCK_PX, draw_shapes
from cropseg.sites.grid import Grid, Window
from cropseg.sites.tiling import iterate_cells
from cropseg.sites.vector_file import (
    POLYGON_ENDINGS,
    list_files,
    read_table,
    stamp_files,
)
from cropseg.sites.warp import move_points, place_points

_MAX_BLOCKS: Final = 256  # 16 MiB of cache
_MAX_SHOWN: Final = 5
_MAX_VERTICES: Final = 512
"""Larger polygons are cut: drawing one goes through all its vertices."""

_MAX_DEPTH: Final = 24
_OVERLAP: Final = 1e-3  # of a piece: metres where edges bend by centimetres
_MARGIN_PX: Final = 2
_EDGE_POINTS: Final = 33
_MAX_EDGE_DEGREES: Final = 0.01
_MAX_EDGE_M: Final = 1000.0
"""Longer edges get vertices between, as a straight line bends in another CRS. A chord
of 1 km is 2 cm from its arc."""

_POLYGONS: Final = (3, 6)  # shapely's numbers of Polygon and MultiPolygon

Shapes = npt.NDArray[np.object_]


@dataclass(frozen=True, kw_only=True)
class Region:
    """The polygons of a file. It can be pickled, as what was read is not part of it."""

    path: Path
    """GeoPackage, GeoJSON, Shapefile or GeoParquet, by its ending."""
    layer: str | None
    """Its layer, or None for the only one."""
    stamp: tuple[tuple[int, int], ...]
    """When its files were written, in ns, and how many bytes they have."""

    @property
    def fingerprint(self) -> str:
        """What changes with the content of the file: 12 hexadecimal digits."""
        hashes = [hash_file(path) for path in list_files(self.path)]
        return hash_settings([hashes, self.layer])

    def on_grid(self, grid: Grid) -> GridRegion:
        """Return the region on the pixels of a scene."""
        return GridRegion(region=self, grid=grid)


@dataclass(frozen=True, kw_only=True)
class GridRegion:
    """A region on the pixels of a scene. It can be pickled and used by threads."""

    region: Region
    """The region."""
    grid: Grid
    """The grid of the scene, in any CRS."""

    def touches(self, window: Window) -> bool:
        """Whether a window may hold a pixel of the region.

        If not, `read` is False everywhere. It costs some microseconds.

        Raises:
            DataError: If the scene has no place in the CRS of the region.
        """
        import shapely

        inside = window.clip(height=self.grid.height, width=self.grid.width)
        if not inside.height or not inside.width:
            return False
        outline = shapely.polygons(_walk_edge(self.grid, inside, num_points=2))
        return bool(self._pieces.find(outline).size)

    def read(self, window: Window) -> npt.NDArray[np.bool_]:
        """Return which pixels of a window have their centre in a polygon.

        Args:
            window: What to read. It may reach over the edge of the grid.

        Returns:
            (window.height, window.width); False outside the grid.

        Raises:
            DataError: If the scene has no place in the CRS of the region.
        """
        found = np.zeros((window.height, window.width), np.bool_)
        inside = window.clip(height=self.grid.height, width=self.grid.width)
        for block in _list_blocks(inside):
            common = block.intersect(inside)
            drawn = self._draw(block)[common.slices_in(block)]
            found[common.slices_in(window)] = drawn
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # What was read and drawn is no part of it.
        return Region.on_grid, (self.region, self.grid)

    @functools.cached_property
    def _pieces(self) -> _Pieces:
        return _cut_pieces(self.region, self.grid)

    @functools.cached_property
    def _draw(self) -> Callable[[Window], npt.NDArray[np.bool_]]:
        # A cache of its own: hashing a grid takes longer than drawing a block.
        draw = functools.partial(_draw_block, self._pieces, self.grid)
        return functools.lru_cache(maxsize=_MAX_BLOCKS)(draw)


def open_region(path: str | Path, *, layer: str | None = None) -> Region:
    """Open the polygons outside of which nothing is mapped.

    Args:
        path: A GeoPackage, GeoJSON, Shapefile or GeoParquet file, in any CRS.
        layer: The layer of a GeoPackage that has several.

    Returns:
        The region. It was read and is fit for use.

    Raises:
        DataFileNotFoundError: If there is no such file.
        UnsafeFileError: If it is not of the format that its ending names.
        DataError: If it cannot be read, or has no polygon, one that is invalid or
            empty, or something else than polygons. All such rows are counted.
    """
    path = Path(path)
    if not path.is_file():
        raise DataFileNotFoundError(
            f"No region at {path} (looked in {path.parent.absolute()}). Give a file "
            f"with polygons: {', '.join(POLYGON_ENDINGS)}."
        )
    if path.suffix.lower() not in POLYGON_ENDINGS:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'}; a region is read from files "
            f"that end in {', '.join(POLYGON_ENDINGS)}. Convert it with ogr2ogr."
        )
    region = Region(path=path, layer=layer, stamp=stamp_files(path))
    _read_polygons(region)
    return region


@functools.lru_cache(maxsize=4)
def _read_polygons(region: Region) -> tuple[_Pieces, CRS]:
    """Return the polygons of a file, in pieces of few vertices, and their CRS."""
    import shapely

    path = region.path
    table = read_table(path, fields=(), layer=region.layer)
    try:
        crs = CRS.from_user_input(table.crs)
    except CRSError as error:
        raise DataError(
            f"The CRS of {path} is not known: {error}. Write it again in a CRS with "
            "an EPSG code."
        ) from error
    shapes = table.shapes
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    other = ~empty & ~np.isin(shapely.get_type_id(shapes), _POLYGONS)
    broken = ~(empty | other | shapely.is_valid(shapes))
    problems = [
        *_list_rows("has no geometry, or an empty one", empty),
        *_list_rows("is no polygon", other, [s.geom_type for s in shapes[other]]),
        *_list_rows("is invalid", broken, shapely.is_valid_reason(shapes[broken])),
    ]
    if not len(shapes):
        problems = ["It has no rows."]
    if problems:
        problems.append(
            "Mend it in QGIS (Fix geometries), or with ogr2ogr -makevalid -skipfailures"
            " -nlt PROMOTE_TO_MULTI."
        )
        raise DataError(join_problems(f"{path} cannot be used as a region", problems))
    flat = _keep_polygons(shapely.force_2d(shapes))
    pieces = _to_array([piece for shape in flat for piece in _split(shape)])
    return _Pieces(tree=shapely.STRtree(pieces), shapes=pieces), crs


def _list_rows(
    what: str, is_wrong: npt.NDArray[np.bool_], reasons: Any = ()
) -> Iterator[str]:
    rows = (np.flatnonzero(is_wrong) + 1).tolist()
    if rows:
        shown = [
            f"row {row}" + (f" ({reason})" if reason else "")
            for row, reason in zip(
                rows[:_MAX_SHOWN], [*reasons, *[""] * _MAX_SHOWN], strict=False
            )
        ]
        more = ", ..." if len(rows) > _MAX_SHOWN else ""
        yield f"{len(rows)} of {len(is_wrong)} rows: {', '.join(shown)}{more} {what}."


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Polygons and an index of them."""

    tree: Any
    """Index of them, by position."""
    shapes: Shapes
    """Single polygons, which may overlap."""

    def find(self, outline: Any) -> npt.NDArray[np.int64]:
        """Return the places of the pieces that an outline touches."""
        return np.sort(self.tree.query(outline, predicate="intersects"))


def _cut_pieces(region: Region, grid: Grid) -> _Pieces:
    """Return what of a region lies on a grid, in the CRS of the grid."""
    import shapely

    pieces, crs = _read_polygons(region)
    around = grid.window.grow(_MARGIN_PX)
    x, y = _walk_edge(grid, around, num_points=_EDGE_POINTS).T
    try:
        x, y = move_points(x, y, grid.crs, crs)
    except DataError as error:
        raise DataError(
            f"A scene in {grid.crs.to_string()} has no place in {crs.to_string()}, the "
            f"CRS of {region.path}, so it is not known whether it lies in the "
            "region. Write the region again in EPSG:4326."
        ) from error
    # A curved edge bulges between two of its points, by far less than this.
    margin = 0.01 * max(np.ptp(x), np.ptp(y))
    box = shapely.box(
        x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin
    )
    near = pieces.shapes[pieces.find(box)]
    crosses = ~shapely.covers(box, shapely.box(*shapely.bounds(near).T))
    near[crosses] = shapely.intersection(near[crosses], box)
    near = _keep_polygons(near)
    if crs != grid.crs:
        near = _move(near, crs, grid.crs)
    return _Pieces(tree=shapely.STRtree(near), shapes=near)


def _move(shapes: Shapes, crs: CRS, target: CRS) -> Shapes:
    """Bring polygons to another CRS, with vertices enough for edges that bend."""
    import shapely

    longest = _MAX_EDGE_DEGREES
    if crs.is_projected:
        longest = _MAX_EDGE_M / float(crs.linear_units_factor[1])
    dense = shapely.segmentize(shapes, longest)
    if not dense.size:
        return dense
    places = shapely.get_coordinates(dense)
    moved = np.stack(move_points(places[:, 0], places[:, 1], crs, target), axis=1)
    found = shapely.set_coordinates(dense, moved)
    broken = ~shapely.is_valid(found)
    found[broken] = shapely.make_valid(
        found[broken], method="structure", keep_collapsed=False
    )
    return _keep_polygons(found)


def _split(shape: Any, depth: int = 0) -> Iterator[Any]:
    """Halve a polygon of many vertices until its pieces have few.

    Halves overlap by a little, so that no pixel falls between them by a rounding.
    """
    import shapely

    if depth == _MAX_DEPTH or shapely.get_num_coordinates(shape) <= _MAX_VERTICES:
        yield shape
        return
    left, bottom, right, top = shape.bounds
    if right - left >= top - bottom:
        middle, overlap = (left + right) / 2, _OVERLAP * (right - left)
        halves = [
            shapely.box(left, bottom, middle + overlap, top),
            shapely.box(middle - overlap, bottom, right, top),
        ]
    else:
        middle, overlap = (bottom + top) / 2, _OVERLAP * (top - bottom)
        halves = [
            shapely.box(left, bottom, right, middle + overlap),
            shapely.box(left, middle - overlap, right, top),
        ]
    for piece in _keep_polygons(shapely.intersection(shape, np.array(halves))):
        yield from _split(piece, depth + 1)


def _keep_polygons(shapes: Shapes) -> Shapes:
    """Return single polygons, without the lines and points where others touched."""
    import shapely

    parts = shapely.get_parts(shapes)
    while (shapely.get_type_id(parts) > _POLYGONS[0]).any():  # parts with parts
        parts = shapely.get_parts(parts)
    is_polygon = shapely.get_type_id(parts) == _POLYGONS[0]
    return np.asarray(parts[is_polygon & ~shapely.is_empty(parts)])


def _to_array(shapes: Sequence[Any]) -> Shapes:
    array = np.empty(len(shapes), np.object_)
    array[:] = shapes
    return array


def _walk_edge(
    grid: Grid, window: Window, *, num_points: int
) -> npt.NDArray[np.float64]:
    """Return the outline of a window in the grid's CRS, a closed ring, (points, 2)."""
    way = np.linspace(0, 1, num_points)[:-1]
    zero, one = np.zeros_like(way), np.ones_like(way)
    cols = window.col + window.width * np.concatenate([way, one, 1 - way, zero, [0]])
    rows = window.row + window.height * np.concatenate([zero, way, one, 1 - way, [0]])
    return np.stack(place_points(grid.transform, cols, rows), axis=1)


def _list_blocks(inside: Window) -> Iterator[Window]:
    if inside.height and inside.width:
        yield from iterate_cells(inside, BLOCK_PX)


def _draw_block(pieces: _Pieces, grid: Grid, block: Window) -> npt.NDArray[np.bool_]:
    import shapely

    outline = shapely.polygons(_walk_edge(grid, block, num_points=2))
    found = pieces.find(outline)
    if not len(found):
        return np.zeros((block.height, block.width), np.bool_)
    shapes = ((shape, 1) for shape in pieces.shapes[found])
    drawn = draw_shapes(shapes, grid, block, fill=0, dtype=np.uint8)
    return drawn.astype(np.bool_)
