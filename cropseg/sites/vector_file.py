"""Reading of vector files, of which none makes GDAL open another.

GDAL is given a file only after its first bytes were seen to be of the format that
its ending names: a VRT or a pipeline renamed to `.gpkg` reads any file of the
machine (HAZARDS 6). GeoJSON and CSV are read without GDAL.
"""

from __future__ import annotations

import codecs
import contextlib
import sqlite3
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rasterio.crs import CRS

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.vector_table import (
    SHOWN_BYTES,
    VectorRequest,
    VectorTable,
    describe_damage,
    join_names,
    refuse_start,
    require_names,
)
from cropseg.sites.vector_text import read_csv, read_geojson

_START_BYTES: Final = 64
_STARTS: Final = {
    ".gpkg": b"SQLite format 3\0",
    ".shp": b"\0\0\x27\x0a",
    ".parquet": b"PAR1",
    ".geoparquet": b"PAR1",
}
_SHAPEFILE_ENDINGS: Final = (".dbf", ".shx", ".prj", ".cpg")


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
        raise refuse_start(path, start[: len(expected) or SHOWN_BYTES], expected)


def read_table(
    path: Path,
    *,
    fields: Sequence[str] | None,
    layer: str | None = None,
    crs: CRS | None = None,
) -> VectorTable:
    """Read the geometries and some fields of all rows of a vector file.

    Args:
        path: A GeoPackage, GeoJSON, Shapefile, GeoParquet or CSV file, by its ending.
        fields: The fields wanted; None for all.
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
        require_names("layer", [layer], [path.stem], path)
    request = VectorRequest(path=path, fields=fields, layer=layer, crs=crs)
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


def _read_geopackage(request: VectorRequest) -> VectorTable:
    import pyogrio

    path, layer = request.path, request.layer
    check_start(path)
    try:
        found = pyogrio.list_layers(str(path.absolute()))
    except RuntimeError as error:  # pyogrio's errors are
        raise describe_damage(path, error) from error
    layers = [str(name) for name, geometry_type in found if geometry_type is not None]
    if layer is not None:
        require_names("layer", [layer], layers, path)
    elif len(layers) != 1:
        raise DataError(
            f"{path} has {len(layers)} layers ({join_names(layers)}). Name one in "
            "`layer`, or write it to a file of its own."
        )
    chosen = layer or layers[0]
    _refuse_view(path, chosen)
    return _to_table(request, _read_layer(path, "GPKG", layer=chosen))


def _refuse_view(path: Path, layer: str) -> None:
    """Refuse a layer that a query makes: it may have rows without end."""
    query = "SELECT type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE"
    try:
        # What is still in the log is read, but no log is begun.
        has_log = path.with_name(f"{path.name}-wal").exists()
        address = (
            f"{path.absolute().as_uri()}?{'mode=ro' if has_log else 'immutable=1'}"
        )
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            found = database.execute(query, [layer]).fetchall()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise describe_damage(path, error) from error
    if any(
        kind == "view" or str(sql).upper().startswith("CREATE VIRTUAL")
        for kind, sql in found
    ):
        raise UnsafeFileError(
            f"Layer `{layer}` of {path} is a query, which may never end. Write its "
            "rows to a file of their own with ogr2ogr."
        )


def _read_shapefile(request: VectorRequest) -> VectorTable:
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

    decoded = frame.copy()
    for place, name in enumerate(frame.columns):  # of which two may be the same
        if name != frame.geometry.name:
            decoded.isetitem(place, [decode(value) for value in frame.iloc[:, place]])
    return decoded.rename(columns=decode)


def _read_layer(
    path: Path, driver: str, *, layer: str | None = None, encoding: str | None = None
) -> Any:
    import geopandas
    import pyogrio
    from shapely.errors import ShapelyError

    try:
        name = str(path.absolute())
        found = pyogrio.read_info(name, layer=layer, encoding=encoding)["driver"]
        if found != driver:
            raise UnsafeFileError(
                f"{path} ends in `{path.suffix}`, but is a file of {found}. "
                "Give it the ending of its format."
            )
        frame = pyogrio.read_dataframe(name, layer=layer, encoding=encoding)
    except (RuntimeError, ShapelyError, UnboundLocalError) as error:
        # pyogrio's errors are RuntimeErrors, and on a damaged CRS it stumbles.
        raise describe_damage(path, error) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise DataError(f"{path} has no geometry. Is it the file of the polygons?")
    return frame


def _read_parquet(request: VectorRequest) -> VectorTable:
    import geopandas
    from pyarrow import ArrowException  # type: ignore[import-untyped]
    from shapely.errors import ShapelyError

    check_start(request.path)
    try:
        frame = geopandas.read_parquet(request.path.absolute())
        return _to_table(request, frame)
    except DataError:
        raise
    except (
        ArrowException,
        LookupError,
        OSError,
        RuntimeError,
        ShapelyError,
        TypeError,
        ValueError,
    ) as error:
        raise describe_damage(request.path, error) from error


def _to_table(request: VectorRequest, frame: Any) -> VectorTable:
    shapes = frame.geometry
    known = [str(name) for name in frame.columns if name != shapes.name]
    columns = {
        name: frame[name].astype(object).where(frame[name].notna(), None).tolist()
        for name in request.choose_fields("field", known)
    }
    return VectorTable(columns=columns, shapes=shapes.to_numpy(), crs=frame.crs)


_READERS: Final[Mapping[str, Callable[[VectorRequest], VectorTable]]] = {
    ".gpkg": _read_geopackage,
    ".geojson": read_geojson,
    ".json": read_geojson,
    ".shp": _read_shapefile,
    ".geoparquet": _read_parquet,
    ".parquet": _read_parquet,
    ".csv": read_csv,
}

POLYGON_ENDINGS: Final = tuple(sorted(set(_READERS) - {".csv"}))
"""How the name of a file ends that can hold polygons."""
