"""The crop of every field: what most of its pixels are on the maps of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, UsageError, join_problems
from cropseg.inference.outputs.finished import (
    FinishedMap,
    MapReader,
    open_map,
    read_common_classes,
)
from cropseg.inference.outputs.legend import MapClass
from cropseg.inference.outputs.vector_writer import (
    check_ending,
    find_free_name,
    write_frames,
)
from cropseg.sites.classes import IGNORE
from cropseg.sites.drawing import draw_shapes
from cropseg.sites.geometry import POINT_TYPES, prepare_shapes
from cropseg.sites.grid import Grid, Window
from cropseg.sites.vector_file import read_table
from cropseg.sites.vector_table import VectorTable

LAYER: Final = "fields"
"""Name of the layer in a GeoPackage."""

COLUMNS: Final = (
    "predicted_crop",
    "predicted_share",
    "predicted_confidence",
    "predicted_pixels",
)
"""Columns that a field gets."""

_NO_FIELD: Final = -1

Ids = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def write_parcels(
    fields_path: Path,
    maps: Sequence[FinishedMap],
    out_path: Path,
    *,
    layer: str | None = None,
) -> int:
    """Write the fields of a file with the crop that the maps show in each.

    A field may lie on several maps: their pixels are added up, and ground that two maps
    show counts twice. A pixel is in a field whose polygon holds its centre; where
    fields overlap, in each of them. Rows, columns, geometry and CRS are those of the
    file. Added are `predicted_crop`, the class with the most pixels (of equal ones the
    first of the legend), `predicted_share`, its share of the field's pixels with data,
    `predicted_confidence`, the mean over these pixels, where every map has it, and
    `predicted_pixels`, how many they are. Fields without such a pixel have no crop.

    Args:
        fields_path: A GeoPackage, GeoJSON, Shapefile or GeoParquet file with polygons.
        maps: Finished maps of one model.
        out_path: The file, `.gpkg`, `.parquet` or `.geoparquet`.
        layer: The layer, which a file with several must be given.

    Returns:
        The number of fields that have a crop.

    Raises:
        UsageError: If the ending of the output is unknown, or it is the file itself.
        DataError: If the fields or a map cannot be read, or the file has a column that
            could not be kept.
        ResourceError: If the file cannot be written whole. Nothing is left behind.
    """
    check_ending(out_path)
    if out_path.exists() and out_path.samefile(fields_path):
        raise UsageError(
            f"{out_path} is the file of the fields itself, which would be replaced. "
            "Give another file to write to."
        )
    table = read_table(fields_path, fields=None, layer=layer)
    _check_table(table, fields_path, out_path)
    classes = read_common_classes(maps)
    tally = _Tally.make(len(table.shapes), len(classes))
    located: dict[str, _Located] = {}
    for finished in maps:
        with open_map(finished) as reader:
            crs = reader.grid.crs
            key = crs.to_wkt()
            if key not in located:
                located[key] = _locate(table, crs, fields_path)
            _count_map(reader, located[key], tally)
    has_confidence = all(finished.confidence_path is not None for finished in maps)
    frame = _build_frame(table, tally, classes, has_confidence=has_confidence)
    with write_frames(out_path, layer=LAYER, geometry_type="MultiPolygon") as writer:
        writer.write(frame)
    return int((tally.counts.sum(axis=1) > 0).sum())


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """What was counted in each field."""

    counts: Ids
    """Pixels, (fields, classes)."""
    sums: Floats
    """Sum of the confidence, (fields,)."""
    num_known: Ids
    """Pixels with a confidence, (fields,)."""

    @classmethod
    def make(cls, num_fields: int, num_classes: int) -> _Tally:
        return cls(
            counts=np.zeros((num_fields, num_classes), np.int64),
            sums=np.zeros(num_fields),
            num_known=np.zeros(num_fields, np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class _Located:
    """The fields in the CRS of some maps."""

    shapes: npt.NDArray[np.object_]
    """Valid polygons."""
    rows: Ids
    """The row of each."""
    tree: Any
    """Finds them by place."""


def _check_table(table: VectorTable, path: Path, out_path: Path) -> None:
    import shapely

    problems = []
    known = Counter(name.casefold() for name in table.columns)
    taken = [name for name in COLUMNS if name in known]
    if taken:
        problems.append(
            f"It has the column(s) {', '.join(taken)} already, which are added here. "
            "Rename or remove them."
        )
    twice = [name for name in table.columns if known[name.casefold()] > 1]
    if twice and out_path.suffix.lower() == ".gpkg":
        problems.append(
            f"A GeoPackage does not tell its columns {', '.join(twice)} apart. Rename "
            "all but one."
        )
    shaped = [
        name
        for name, values in table.columns.items()
        if any(isinstance(value, shapely.Geometry) for value in values)
    ]
    if shaped:
        problems.append(
            f"Beside its polygons it holds geometries in {', '.join(shaped)}. "
            "Remove them."
        )
    types = set(shapely.get_type_id(table.shapes).tolist())
    if types & set(POINT_TYPES):
        problems.append("It holds points; fields are polygons.")
    if problems:
        raise DataError(join_problems(f"{path} cannot be given crops", problems))


def _locate(table: VectorTable, crs: Any, path: Path) -> _Located:
    import shapely

    shapes, has_place, _ = prepare_shapes(
        table.shapes, table.crs, crs, path=path, options=()
    )
    return _Located(
        shapes=shapes, rows=np.flatnonzero(has_place), tree=shapely.STRtree(shapes)
    )


def _count_map(reader: MapReader, fields: _Located, tally: _Tally) -> None:
    """Count the pixels of a map in each field. Squares without a field are not read."""
    import shapely

    for window in reader.iterate_chunks():
        found = np.sort(fields.tree.query(_outline(reader.grid, window)))
        found = found[shapely.area(fields.shapes[found]) > 0]
        if len(found):
            square = _Square(
                grid=reader.grid,
                window=window,
                ids=reader.read_classes(window),
                confidence=reader.read_confidence(window),
            )
            for owners, places in square.draw(fields.shapes, found):
                square.count(fields.rows, owners, places, tally)


@dataclass(frozen=True, kw_only=True)
class _Square:
    """A square of a map."""

    grid: Grid
    window: Window
    ids: Bytes
    confidence: npt.NDArray[np.float32] | None

    def draw(
        self, shapes: npt.NDArray[np.object_], found: Ids
    ) -> Iterator[tuple[npt.NDArray[np.int32], tuple[slice, slice]]]:
        """Draw fields, each pixel of each field once.

        Args:
            shapes: All fields.
            found: Positions of those to draw.

        Yields:
            The field of each pixel, -1 for none, and where in the square they are.
        """
        # Pixels of several fields are those at which the order matters.
        pairs = [(shapes[index], index) for index in found.tolist()]
        first = self._draw(pairs, self.window)
        is_shared = first != self._draw(pairs[::-1], self.window)
        alone: list[int] = []
        if is_shared.any():
            for shape, index in pairs:
                window = _find_window(self.grid, shape).intersect(self.window)
                places = window.slices_in(self.window)
                if is_shared[places].any():
                    alone.append(index)
                    yield self._draw([(shape, index)], window), places
        everywhere = slice(0, self.window.height), slice(0, self.window.width)
        yield np.where(np.isin(first, alone), _NO_FIELD, first), everywhere

    def count(
        self,
        rows: Ids,
        owners: npt.NDArray[np.int32],
        places: tuple[slice, slice],
        tally: _Tally,
    ) -> None:
        """Count pixels of fields, of which no two share one."""
        ids = self.ids[places]
        counts = (owners != _NO_FIELD) & (ids != IGNORE)
        np.add.at(tally.counts, (rows[owners[counts]], ids[counts]), 1)
        if self.confidence is not None:
            confidence = self.confidence[places]
            counts &= np.isfinite(confidence)
            np.add.at(tally.sums, rows[owners[counts]], confidence[counts])
            np.add.at(tally.num_known, rows[owners[counts]], 1)

    def _draw(
        self, pairs: Sequence[tuple[Any, int]], window: Window
    ) -> npt.NDArray[np.int32]:
        return draw_shapes(pairs, self.grid, window, fill=_NO_FIELD, dtype=np.int32)


def _outline(grid: Grid, window: Window) -> Any:
    """Return the window as a polygon in the CRS of its grid."""
    import shapely

    corners = [
        (window.col, window.row),
        (window.col_end, window.row),
        (window.col_end, window.row_end),
        (window.col, window.row_end),
    ]
    return shapely.Polygon([grid.transform @ corner for corner in corners])


def _find_window(grid: Grid, shape: Any) -> Window:
    """Return the smallest window that holds a polygon, and a pixel around it."""
    left, bottom, right, top = shape.bounds
    to_pixels = ~grid.transform
    corners = np.array(
        [to_pixels @ (x, y) for x in (left, right) for y in (bottom, top)]
    )
    col, row = np.floor(corners.min(axis=0)).astype(int).tolist()
    col_end, row_end = np.ceil(corners.max(axis=0)).astype(int).tolist()
    return Window(row=row, col=col, height=row_end - row, width=col_end - col).grow(1)


def _build_frame(
    table: VectorTable,
    tally: _Tally,
    classes: tuple[MapClass, ...],
    *,
    has_confidence: bool,
) -> Any:
    import geopandas
    import pandas as pd
    import shapely

    columns = {name: _build_column(values) for name, values in table.columns.items()}
    frame = pd.DataFrame(columns, index=range(len(table.shapes)))
    num_pixels = tally.counts.sum(axis=1)
    is_mapped = num_pixels > 0
    names = np.array([item.name for item in classes], object)
    best = tally.counts.argmax(axis=1)
    with np.errstate(invalid="ignore"):
        shares = tally.counts.max(axis=1) / num_pixels
        confidences = tally.sums / tally.num_known
    frame[COLUMNS[0]] = pd.Series(np.where(is_mapped, names[best], None), dtype="str")
    frame[COLUMNS[1]] = shares
    if has_confidence:
        frame[COLUMNS[2]] = confidences
    frame[COLUMNS[3]] = num_pixels
    name = find_free_name("geometry", frame.columns)
    frame[name] = geopandas.GeoSeries(shapely.force_2d(table.shapes), crs=table.crs)
    return geopandas.GeoDataFrame(frame, geometry=name)


def _build_column(values: Sequence[Any]) -> Any:
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds in ({int}, {bool}):  # also with gaps, which pandas fills with NaN else
        dtype = "Int64" if kinds == {int} else "boolean"
        return pd.Series(list(values), dtype=dtype)
    return pd.Series(values, dtype=object).infer_objects()
