"""Reading of vector files, of which none makes GDAL open another.

GDAL is given a file only after its first bytes were seen to be of the format that
its ending names: a VRT or a pipeline renamed to `.gpkg` reads any file of the
machine (HAZARDS 6). GeoJSON and CSV are read without GDAL.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import (
    DataError,
    DataFileNotFoundError,
    UnsafeFileError,
    join_problems,
)

_MAX_LISTED: Final = 10
_DEGREES: Final = "EPSG:4326"
_MAX_LAT: Final = 90
_START_BYTES: Final = 64
_SHOWN_BYTES: Final = 20
_STARTS: Final = {
    ".gpkg": b"SQLite format 3\0",
    ".shp": b"\0\0\x27\x0a",
    ".parquet": b"PAR1",
    ".geoparquet": b"PAR1",
}
_SHAPEFILE_ENDINGS: Final = (".dbf", ".shx", ".prj", ".cpg")


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """The rows of a vector file."""

    columns: Mapping[str, Sequence[Any]]
    """What the fields asked for hold, None or NaN where nothing."""
    shapes: npt.NDArray[np.object_]
    """The geometry of each row, or None."""
    crs: Any
    """CRS of the geometries, as geopandas understands it."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What to read."""

    path: Path
    """The file."""
    fields: Sequence[str]
    """The fields wanted."""
    layer: str | None
    """The layer wanted, or None for the only one."""
    crs: CRS | None
    """CRS of the columns `x` and `y` of a CSV file."""


def list_files(path: Path) -> tuple[Path, ...]:
    """Return a vector file and those that belong to it, which a Shapefile has.

    Raises:
        DataFileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        raise DataFileNotFoundError(
            f"No file at {path} (looked in {path.parent.absolute()}). Paths in a "
            "manifest are relative to the manifest."
        )
    if path.suffix.lower() != ".shp":
        return (path,)
    beside = (
        path.with_suffix(spelling)
        for ending in _SHAPEFILE_ENDINGS
        for spelling in (ending, ending.upper())
    )
    return (path, *(file for file in beside if file.is_file()))


def stamp_files(path: Path) -> tuple[tuple[int, int], ...]:
    """Return what changes when a vector file, or one that belongs to it, is written.

    Raises:
        DataFileNotFoundError: If there is no such file.
        DataError: If one of them cannot be looked at.
    """
    files = list_files(path)
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    return tuple((item.st_mtime_ns, item.st_size) for item in stats)


def check_start(path: Path) -> None:
    """Refuse a file that GDAL would take for another format than its ending's.

    Raises:
        UnsafeFileError: If it begins with XML, as a VRT does, or not as files of its
            format do.
    """
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    expected = _STARTS.get(path.suffix.lower(), b"")
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"<") or not start.startswith(expected):
        raise _refuse_start(path, start[: len(expected) or _SHOWN_BYTES], expected)


def read_table(
    path: Path,
    *,
    fields: Sequence[str],
    layer: str | None = None,
    crs: CRS | None = None,
) -> VectorTable:
    """Read the geometries and some fields of all rows of a vector file.

    Args:
        path: A GeoPackage, GeoJSON, Shapefile, GeoParquet or CSV file, by its ending.
        fields: The fields wanted.
        layer: The layer, which a file with several must be given.
        crs: CRS of the columns `x` and `y` of a CSV file, which does not say it.

    Returns:
        The rows, in the order of the file.

    Raises:
        UnsafeFileError: If it is not of the format that its ending names.
        DataError: If it cannot be read, has no CRS, no such layer or field, or several
            layers and none is named.
    """
    ending = path.suffix.lower()
    if ending not in _READERS:
        raise DataError(
            f"{path} ends in `{ending}`; polygons and points are read from "
            f"files that end in {', '.join(_READERS)}. Convert it with ogr2ogr."
        )
    if layer is not None and ending != ".gpkg":
        _require("layer", [layer], [path.stem], path)
    request = _Request(path=path, fields=fields, layer=layer, crs=crs)
    try:
        table = _READERS[ending](request)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} holds text that is not UTF-8: {error}. Write it again "
            "in UTF-8; a Shapefile says how it is written in a `.cpg` file beside it."
        ) from error
    if table.crs is None:
        raise DataError(
            f"{path} has no CRS, and so no place on the Earth. Set it in QGIS "
            "or with ogr2ogr -a_srs EPSG:....; a Shapefile has it in a `.prj` file."
        )
    return table


def _require(noun: str, names: Iterable[str], known: Sequence[str], path: Path) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise DataError(
                f"{path} has no {noun} `{name}`; it has {join_names(known)}."
                + (f" The nearest is `{near[0]}`." if near else "")
            )


def _refuse_start(path: Path, found: object, expected: object) -> UnsafeFileError:
    rule = f"; one that ends in `{path.suffix}` begins with {expected!r}"
    return UnsafeFileError(
        f"{path} begins with {found!r}{rule if expected else ''}. It is not opened: "
        "its content is not what its ending says, and a file in disguise can read "
        "others. Give it the ending of its format, or copy it again."
    )


def _read_geopackage(request: _Request) -> VectorTable:
    import pyogrio

    path, layer = request.path, request.layer
    check_start(path)
    try:
        found = pyogrio.list_layers(str(path.absolute()))
    except RuntimeError as error:  # pyogrio's errors are
        raise _describe_damage(path, error) from error
    layers = [str(name) for name, geometry_type in found if geometry_type is not None]
    if layer is not None:
        _require("layer", [layer], layers, path)
    elif len(layers) != 1:
        raise DataError(
            f"{path} has {len(layers)} layers ({join_names(layers)}). Name one in "
            "`layer`, or write it to a file of its own."
        )
    frame = _read_layer(path, "GPKG", layer=layer or layers[0])
    return _to_table(request, frame)


def _read_shapefile(request: _Request) -> VectorTable:
    check_start(request.path)
    paths = list_files(request.path)
    _check_lengths(paths)
    if not any(path.suffix.lower() == ".cpg" for path in paths):
        # Latin-1 keeps every byte, whatever it means.
        bytes_as_text = _read_layer(
            request.path, "ESRI Shapefile", encoding="ISO-8859-1"
        )
        try:
            return _to_table(request, _decode_utf8(bytes_as_text))
        except UnicodeDecodeError:
            pass  # GDAL goes by the code page in the file, else by Latin-1.
    return _to_table(request, _read_layer(request.path, "ESRI Shapefile"))


def _check_lengths(paths: Iterable[Path]) -> None:
    """Refuse a Shapefile cut short: GDAL reads the lost rows as empty."""
    for path in paths:
        with path.open("rb") as file:
            head = file.read(28).ljust(28, b"\0")
        if path.suffix.lower() == ".shp":
            expected = 2 * int.from_bytes(head[24:28], "big")
        elif path.suffix.lower() == ".dbf":
            num_rows, start, width = struct.unpack_from("<IHH", head, 4)
            expected = start + num_rows * width
        else:
            continue
        found = path.stat().st_size
        if found < expected:
            raise DataError(
                f"{path} has {found} bytes and says that it has {expected}. It was "
                "cut short; copy it again."
            )


def _decode_utf8(frame: Any) -> Any:
    """Return a table with texts that were read as Latin-1 read as UTF-8.

    A character that the width of its field cuts in two is left out.
    """

    def decode(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return codecs.getincrementaldecoder("utf-8")().decode(value.encode("latin-1"))

    names = [name for name in frame.columns if name != frame.geometry.name]
    changed = {name: [decode(value) for value in frame[name]] for name in names}
    return frame.assign(**changed).rename(
        columns={name: decode(name) for name in names}
    )


def _read_layer(
    path: Path, driver: str, *, layer: str | None = None, encoding: str | None = None
) -> Any:
    import geopandas
    import pyogrio

    try:
        name = str(path.absolute())
        found = pyogrio.read_info(name, layer=layer, encoding=encoding)["driver"]
        if found != driver:
            raise UnsafeFileError(
                f"{path} ends in `{path.suffix}`, but is a file of {found}. "
                "Give it the ending of its format."
            )
        frame = pyogrio.read_dataframe(name, layer=layer, encoding=encoding)
    except RuntimeError as error:  # pyogrio's errors are
        raise _describe_damage(path, error) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise DataError(f"{path} has no geometry. Is it the file of the polygons?")
    return frame


def _describe_damage(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read: {error}. The file is damaged or cut short, or one "
        "beside it is missing; copy it again."
    )


def _read_parquet(request: _Request) -> VectorTable:
    import geopandas

    check_start(request.path)
    try:
        frame = geopandas.read_parquet(request.path.absolute())
    except (OSError, RuntimeError, ValueError) as error:  # pyarrow's errors are
        raise _describe_damage(request.path, error) from error
    return _to_table(request, frame)


def _to_table(request: _Request, frame: Any) -> VectorTable:
    shapes = frame.geometry
    known = [str(name) for name in frame.columns if name != shapes.name]
    _require("field", request.fields, known, request.path)
    columns = {
        name: frame[name].astype(object).where(frame[name].notna(), None).tolist()
        for name in request.fields
    }
    return VectorTable(columns=columns, shapes=shapes.to_numpy(), crs=frame.crs)


def _read_geojson(request: _Request) -> VectorTable:
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    path = request.path
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("{"):
        raise _refuse_start(path, text[:_SHOWN_BYTES], "{")
    try:
        document = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise _describe_damage(path, error) from error
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
    except (AttributeError, KeyError, ShapelyError, TypeError, ValueError) as error:
        raise DataError(
            f"Feature {len(rows)} of {path}, from 0, is not as GeoJSON says: "
            f"{error!r}. Write the file again with ogr2ogr or QGIS."
        ) from error
    _require("field", request.fields, known, path)
    return VectorTable(
        columns={name: [row.get(name) for row in rows] for name in request.fields},
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


def _read_csv(request: _Request) -> VectorTable:
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
    _require("column", request.fields, known, path)
    places, problems = [], []
    for number, row in enumerate(rows):
        try:
            places.append(_parse_place(row, pairs[0]))
        except ValueError as error:
            problems.append(f"row {number + 1} below the heading: {error}")
    if problems:
        title = f"{path} has {len(problems)} place(s) that cannot be read"
        raise DataError(join_problems(title, problems[:_MAX_LISTED]))
    return VectorTable(
        columns={name: [row[name] for row in rows] for name in request.fields},
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


def join_names(names: Iterable[str]) -> str:
    """Return names for a message, the first few of many."""
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - _MAX_LISTED
    text = ", ".join(distinct[:_MAX_LISTED]) or "none"
    return f"{text} and {more} more" if more > 0 else text


_READERS: Final[Mapping[str, Callable[[_Request], VectorTable]]] = {
    ".gpkg": _read_geopackage,
    ".geojson": _read_geojson,
    ".json": _read_geojson,
    ".shp": _read_shapefile,
    ".geoparquet": _read_parquet,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}

POLYGON_ENDINGS: Final = tuple(sorted(set(_READERS) - {".csv"}))
"""How the name of a file ends that can hold polygons."""
