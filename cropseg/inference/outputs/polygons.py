"""Polygons of a map: one for each connected area of a class.

A map is read square by square. What reaches over the edge of a square is put together
from its pieces, so that no border of a square or tile is in the polygons. All corners
are corners of pixels until the last step, and so whole numbers: putting together is
exact, and neighbours share their borders, simplified or not. Where a third one begins
on a straight border, the first has no corner.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import UsageError
from cropseg.inference.outputs.components import (
    Components,
    find_components,
    iterate_squares,
    measure_sides_m,
)
from cropseg.inference.outputs.finished import (
    FinishedMap,
    MapReader,
    open_map,
    read_common_classes,
)
from cropseg.inference.outputs.vector_writer import check_ending, write_frames
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window

LAYER: Final = "polygons"
"""Name of the layer in a GeoPackage."""

_BATCH: Final = 20_000
"""Polygons that are written at a time."""

Shapes = npt.NDArray[np.object_]
Ids = npt.NDArray[np.int64]


def write_polygons(
    maps: Sequence[FinishedMap],
    out_path: Path,
    *,
    min_area_m2: float = 0,
    simplify_m: float = 0,
) -> int:
    """Write the connected areas of maps as polygons, to one file.

    Columns: `scene`, `class`, `class_id`, `area_m2` and, where every map has it,
    `confidence`, the mean over the pixels. `area_m2` is that of the pixels, whatever
    `simplify_m` is, so that it adds up to the hectares of the summary. Pixels that
    meet at a corner only are two polygons. Polygons of another CRS than that of the
    first map are brought to it.

    Memory does not grow with the pixels, but with the areas: about 200 bytes for each,
    40 for each border of a small one, and the polygons that reach into squares which
    are still to be read. One that spans a whole map is in memory whole at last. A
    square of pure noise, 540,000 areas, takes 1 GB, and 2.5 GB where it is simplified.

    Args:
        maps: Finished maps of one model. Each is read twice.
        out_path: The file, `.gpkg`, `.parquet` or `.geoparquet`.
        min_area_m2: Smaller areas go to the neighbour with the longest border, and are
            dropped where they have none; see `dissolve_small`.
        simplify_m: Corners whose triangle with their neighbours is smaller than the
            square of this are cut off, the smallest first. Neighbours stay without
            gaps and overlaps. The edges of the squares in which a map is read stay
            where they are crossed.

    Returns:
        The number of polygons.

    Raises:
        UsageError: If the ending is unknown, or a number is negative.
        DataError: If a map cannot be read, or they are of several models.
        ResourceError: If the file cannot be written whole. Nothing is left behind.
    """
    check_ending(out_path)
    for name, value in (("min_area_m2", min_area_m2), ("simplify_m", simplify_m)):
        if not 0 <= value < np.inf:
            raise UsageError(f"`{name}` is {value:g}; it must be 0 or more.")
    read_common_classes(maps)
    has_confidence = all(finished.confidence_path is not None for finished in maps)
    num_polygons, crs = 0, None
    with write_frames(out_path, layer=LAYER, geometry_type="Polygon") as writer:
        for finished in maps:
            with open_map(finished) as reader:
                components = find_components(reader, min_area_m2=min_area_m2)
                found = trace_polygons(reader, components, simplify_m=simplify_m)
                batches = _build_frames(finished.scene, reader, components, found)
                for frame in batches:
                    crs = crs or frame.crs
                    columns = (
                        frame if has_confidence else frame.drop(columns="confidence")
                    )
                    writer.write(columns.to_crs(crs))
                    num_polygons += len(frame)
    return num_polygons


def trace_polygons(
    reader: MapReader, components: Components, *, simplify_m: float = 0
) -> Iterator[tuple[int, Any]]:
    """Trace the areas of a map.

    Args:
        reader: The map.
        components: Its areas.
        simplify_m: See `write_polygons`.

    Yields:
        The number of an area, and its polygon in pixels: columns and rows.
    """
    import shapely

    open_pieces: dict[int, list[Any]] = {}
    is_in_one = components.num_squares == 1
    for square, window, numbers, groups in iterate_squares(reader, components):
        is_empty = components.class_ids[groups] == IGNORE
        pieces, places = _trace_square(
            numbers, window, is_empty if not simplify_m else None
        )
        if simplify_m:
            pieces = _simplify(pieces, measure_sides_m(reader.grid), simplify_m)
        for piece, group in zip(pieces, groups[places].tolist(), strict=True):
            if components.class_ids[group] == IGNORE:
                continue
            if is_in_one[group]:
                yield group, piece
            else:
                open_pieces.setdefault(group, []).append(piece)
        for group in groups[components.last_squares[groups] == square].tolist():
            if group in open_pieces:
                whole = np.array([shapely.union_all(open_pieces.pop(group))])
                yield group, drop_straight_corners(whole)[0]


def _trace_square(
    numbers: npt.NDArray[np.int32], window: Window, is_empty: Any
) -> tuple[Shapes, Ids]:
    """Trace the areas of a square.

    Args:
        numbers: A number for each pixel, (height, width).
        window: Where it lies.
        is_empty: Which numbers are left out; None for none.

    Returns:
        Polygons in pixels, and the number of each.
    """
    from affine import Affine
    from rasterio.features import shapes

    mask = None if is_empty is None else ~is_empty[numbers]
    transform = Affine.translation(window.col, window.row)
    rings: list[Any] = []
    owners: list[int] = []
    places: list[int] = []
    for geometry, number in shapes(numbers, mask, 4, transform):
        rings += geometry["coordinates"]
        owners += [len(places)] * len(geometry["coordinates"])
        places.append(int(number))
    # All at once: one by one, shapely takes ten times as long.
    corners = np.array(list(itertools.chain.from_iterable(rings))).reshape(-1, 2)
    index = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    polygons = _build_polygons(corners, index, np.array(owners, np.int64))
    return polygons, np.array(places, np.int64)


def _simplify(
    pieces: Shapes, sides_m: tuple[float, float], simplify_m: float
) -> Shapes:
    """Simplify the polygons of a square together, but for the edge of the square.

    References:
        Visvalingam and Whyatt (1993), Line generalisation by repeated elimination of
        points, doi:10.1179/000870493786962263.
    """
    import shapely

    # Neighbours must have the same corners, also where a third one begins.
    dense = shapely.segmentize(pieces, 1.0)
    sides = np.array(sides_m)
    in_metres = shapely.transform(dense, lambda corners: np.rint(corners) * sides)
    simple = shapely.coverage_simplify(in_metres, simplify_m, simplify_boundary=False)
    # What is left are corners of pixels, all of them along the edge of the square.
    in_pixels = shapely.transform(simple, lambda corners: np.rint(corners / sides))
    return drop_straight_corners(in_pixels)


def drop_straight_corners(polygons: Shapes) -> Shapes:
    """Return polygons of whole numbers without corners at which no edge turns."""
    import shapely

    rings, owners = shapely.get_rings(polygons, return_index=True)
    corners, index = shapely.get_coordinates(rings, return_index=True)
    is_last = np.append(index[1:] != index[:-1], True)[: len(index)]
    corners, index = corners[~is_last], index[~is_last]  # it is the first again
    starts = np.searchsorted(index, np.arange(len(rings)))
    ends = np.append(starts[1:], len(index)) - 1
    before, after = np.arange(len(index)) - 1, np.arange(len(index)) + 1
    before[starts], after[ends] = ends, starts
    (x, y), (next_x, next_y) = (
        (corners - corners[before]).T,
        (corners[after] - corners).T,
    )
    turns = x * next_y != y * next_x
    return _build_polygons(corners[turns], index[turns], owners)


def _build_polygons(
    corners: npt.NDArray[np.float64], index: Ids, owners: Ids
) -> Shapes:
    """Build polygons.

    Args:
        corners: Of all rings, one ring behind the other, (n, 2).
        index: The ring of each corner.
        owners: The polygon of each ring, of which the first is the shell.
    """
    import shapely

    if not len(owners):
        return np.empty(0, object)
    rings = shapely.linearrings(corners, indices=index)
    return np.asarray(shapely.polygons(rings, indices=owners))


def _build_frames(
    scene: str,
    reader: MapReader,
    components: Components,
    found: Iterator[tuple[int, Any]],
) -> Iterator[Any]:
    """Put polygons into tables, the last of which may be empty."""
    while True:
        rows = list(itertools.islice(found, _BATCH))
        yield _build_frame(scene, reader, components, rows)
        if len(rows) < _BATCH:
            return


def _build_frame(
    scene: str, reader: MapReader, components: Components, rows: list[tuple[int, Any]]
) -> Any:
    import geopandas
    import pandas as pd
    import shapely

    t = reader.grid.transform

    def place(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        cols, rows = corners.T
        return np.stack(
            [t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f], axis=1
        )

    shapes = np.empty(len(rows), object)
    shapes[:] = [polygon for _, polygon in rows]
    index = np.array([group for group, _ in rows], np.int64)
    class_ids = components.class_ids[index]
    names = np.array([item.name for item in reader.classes], object)
    columns = {
        "scene": pd.Series([scene] * len(index), dtype="str"),
        "class": pd.Series(names[class_ids], dtype="str"),
        "class_id": class_ids.astype(np.int32),
        "area_m2": components.areas_m2[index],
        "confidence": components.confidences[index],
    }
    return geopandas.GeoDataFrame(
        columns, geometry=shapely.transform(shapes, place), crs=reader.grid.crs.to_wkt()
    )
