"""Reading of GeoJSON and CSV files, without GDAL."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, UnsafeFileError, join_problems
from cropseg.sites.vector_table import (
    MAX_LISTED,
    SHOWN_BYTES,
    VectorRequest,
    VectorTable,
    describe_damage,
    join_names,
    refuse_start,
)

_DEGREES: Final = "EPSG:4326"
_MAX_LAT: Final = 90


def read_geojson(request: VectorRequest) -> VectorTable:
    """Read a GeoJSON file; raises as `read_table` does."""
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    path = request.path
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("{"):
        raise refuse_start(path, text[:SHOWN_BYTES], "{")
    try:
        document = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise describe_damage(path, error) from error
    if document.get("type") != "FeatureCollection":
        raise UnsafeFileError(
            f"{path} is JSON of type {document.get('type')!r}; expected a "
            "FeatureCollection. Convert it to GeoJSON with ogr2ogr."
        )
    shapes: list[Any] = []
    rows: list[Mapping[str, Any]] = []
    try:
        for feature in document["features"]:
            geometry = feature["geometry"]
            shapes.append(shape(geometry) if geometry else None)
            rows.append(dict(feature["properties"] or {}))
        known = list(dict.fromkeys(name for row in rows for name in row))
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        ShapelyError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(
            f"Feature {len(rows)} of {path}, from 0, is not as GeoJSON says: "
            f"{error!r}. Write the file again with ogr2ogr or QGIS."
        ) from error
    fields = request.choose_fields("field", known)
    return VectorTable(
        columns={name: [row.get(name) for row in rows] for name in fields},
        shapes=_to_array(shapes),
        crs=_get_geojson_crs(document, path),
    )


def _get_geojson_crs(document: Mapping[str, Any], path: Path) -> str | None:
    """Return the CRS that a GeoJSON file names; a link to one is not followed."""
    entry = document.get("crs", _DEGREES)
    if entry is None:
        return None
    properties = entry.get("properties") if isinstance(entry, Mapping) else None
    name = properties.get("name", entry) if isinstance(properties, Mapping) else entry
    found = re.fullmatch(r"(?:urn:ogc:def:crs:)?([A-Z]+):(?:[\d.]*:)?(\w+)", str(name))
    if not found:
        raise DataError(
            f"`crs` of {path} is {name}; expected a name such as EPSG:32614 as 'name' "
            "of its `properties`."
        )
    authority, code = found.groups()
    return f"{authority}:{code}"


def read_csv(request: VectorRequest) -> VectorTable:
    """Read a CSV file with places; raises as `read_table` does."""
    import shapely

    path = request.path
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
        known = list(reader.fieldnames or ())
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}.") from error
    pairs = [pair for pair in (("lon", "lat"), ("x", "y")) if set(pair) <= set(known)]
    if len(pairs) != 1:
        raise DataError(
            f"{path} has the columns {join_names(known)}; expected `lon` and `lat` in "
            "degrees, or `x` and `y` in the image's CRS, with commas between."
        )
    fields = request.choose_fields("column", known)
    places, problems = [], []
    for number, row in enumerate(rows):
        try:
            places.append(_parse_place(row, pairs[0]))
        except ValueError as error:
            problems.append(f"row {number + 1} below the heading: {error}")
    if problems:
        title = f"{path} has {len(problems)} place(s) that cannot be read"
        raise DataError(join_problems(title, problems[:MAX_LISTED]))
    return VectorTable(
        columns={name: [row[name] for row in rows] for name in fields},
        shapes=_to_array([place and shapely.Point(place) for place in places]),
        crs=_DEGREES if pairs[0] == ("lon", "lat") else request.crs,
    )


def _parse_place(
    row: Mapping[str, str | None], pair: tuple[str, str]
) -> tuple[float, float] | None:
    texts = [(row[name] or "").strip() for name in pair]
    if not any(texts):
        return None
    x, y = map(float, texts)
    if pair == ("lon", "lat") and abs(y) > _MAX_LAT:
        message = f"lat {y:g} is not within 90 degrees. Are lon and lat swapped?"
        raise ValueError(message)
    return x, y


def _to_array(shapes: Sequence[Any]) -> npt.NDArray[np.object_]:
    array = np.empty(len(shapes), np.object_)
    array[:] = shapes
    return array
