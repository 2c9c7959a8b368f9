"""Writing polygons to a GeoPackage or a GeoParquet file, some at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from cropseg.errors import ResourceError, UsageError
from cropseg.files import write_whole

_GEOPARQUET: Final = "1.1.0"
_EPOCH: Final = "1970-01-01T00:00:00Z"
"""The date in a GeoPackage, so that equal polygons give equal bytes."""


class FrameWriter(Protocol):
    """Takes tables of polygons."""

    def write(self, frame: Any) -> None:
        """Write a GeoDataFrame with the columns and the CRS of those before."""


def check_ending(path: Path) -> None:
    """Check that polygons can be written to a path.

    Raises:
        UsageError: If its ending is of no known format.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(
            f"{path} ends in `{path.suffix}`; polygons are written to files that end "
            f"in {', '.join(_WRITERS)}."
        )


def find_free_name(name: str, taken: Iterable[str]) -> str:
    """Return a name, longer where there is such a column, in whatever case."""
    known = {str(column).casefold() for column in taken}
    while name in known:
        name += "_"
    return name


@contextlib.contextmanager
def write_frames(
    path: Path, *, layer: str, geometry_type: str
) -> Iterator[FrameWriter]:
    """Write a vector file whose rows come in several tables.

    Args:
        path: The finished file, `.gpkg`, `.parquet` or `.geoparquet`.
        layer: Name of the layer of a GeoPackage.
        geometry_type: Polygon, or MultiPolygon, which takes both.

    Yields:
        A writer. It must be given at least one table, which may have no rows.

    Raises:
        UsageError: If its ending is of no known format.
        ResourceError: If it cannot be written whole. Nothing is left behind.
    """
    check_ending(path)
    with write_whole(path) as part:
        writer = _WRITERS[path.suffix.lower()](part, layer, geometry_type)
        try:
            yield writer
        finally:
            writer.close()
        found = writer.count_rows()
        if found != writer.num_rows:
            raise ResourceError(
                f"Of {writer.num_rows} rows {found} are in {path}. The disk is full or "
                "faulty; nothing was kept."
            )


class _PartWriter(FrameWriter, Protocol):
    num_rows: int

    def close(self) -> None: ...

    def count_rows(self) -> int: ...


class _GeoPackageWriter:
    """Appends each table to a layer."""

    def __init__(self, path: Path, layer: str, geometry_type: str) -> None:
        self._path = path
        self._layer = layer
        self._geometry_type = geometry_type
        self.num_rows = 0
        self._is_new = True

    def write(self, frame: Any) -> None:
        import pyogrio

        if frame.empty and not self._is_new:
            return
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _EPOCH})
        try:
            pyogrio.write_dataframe(
                frame,
                self._path,
                layer=self._layer,
                driver="GPKG",
                append=not self._is_new,
                # A column `fid`, as QGIS leaves it in files, is one like any other.
                layer_options={
                    "FID": find_free_name("fid", frame.columns),
                    "GEOMETRY_NAME": find_free_name("geom", frame.columns),
                },
                geometry_type=self._geometry_type,
                promote_to_multi=self._geometry_type == "MultiPolygon",
            )
        except RuntimeError as error:  # pyogrio's errors are
            raise _describe_failure(self._path, error) from error
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
        self._is_new = False
        self.num_rows += len(frame)

    def close(self) -> None:
        pass  # each table is written and closed by itself

    def count_rows(self) -> int:
        import pyogrio

        try:
            info = pyogrio.read_info(
                self._path, layer=self._layer, force_feature_count=True
            )
        except RuntimeError as error:
            raise _describe_failure(self._path, error) from error
        return int(info["features"])


class _GeoParquetWriter:
    """Writes a row group for each table.

    geopandas writes a file from one table only.

    References:
        GeoParquet 1.1.0, https://geoparquet.org/releases/v1.1.0/
    """

    def __init__(self, path: Path, layer: str, geometry_type: str) -> None:
        del layer
        self._path = path
        self._types = list(dict.fromkeys(["Polygon", geometry_type]))
        self._file: Any = None
        self.num_rows = 0

    def write(self, frame: Any) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import ArrowException, parquet

        name = frame.geometry.name
        columns = dict(frame.drop(columns=name).items())
        shapes = pa.array(frame.geometry.to_wkb(), pa.binary())  # also without rows
        try:
            table = pa.table({**columns, name: shapes})
            if self._file is None:
                about = {
                    b"geo": json.dumps(_describe_geometry(frame, self._types)).encode()
                }
                schema = table.schema.with_metadata(about)
                self._file = parquet.ParquetWriter(self._path, schema)
            if table.num_rows:
                self._file.write_table(table.cast(self._file.schema))
        except (ArrowException, OSError) as error:
            raise _describe_failure(self._path, error) from error
        self.num_rows += table.num_rows

    def close(self) -> None:
        from pyarrow import ArrowException

        if self._file is not None:
            try:
                self._file.close()
            except (ArrowException, OSError) as error:
                raise _describe_failure(self._path, error) from error

    def count_rows(self) -> int:
        from pyarrow import ArrowException, parquet

        try:
            batches = parquet.ParquetFile(self._path).iter_batches()
            return sum(batch.num_rows for batch in batches)
        except (ArrowException, OSError) as error:
            raise _describe_failure(self._path, error) from error


_WRITERS: Final[Mapping[str, Callable[[Path, str, str], _PartWriter]]] = {
    ".gpkg": _GeoPackageWriter,
    ".parquet": _GeoParquetWriter,
    ".geoparquet": _GeoParquetWriter,
}


def _describe_geometry(frame: Any, types: list[str]) -> dict[str, Any]:
    column = {
        "encoding": "WKB",
        "geometry_types": types,
        "crs": frame.crs.to_json_dict(),
    }
    return {
        "version": _GEOPARQUET,
        "primary_column": frame.geometry.name,
        "columns": {frame.geometry.name: column},
    }


def _describe_failure(path: Path, error: Exception) -> ResourceError:
    return ResourceError(
        f"Cannot write {path}: {error}. Choose a folder that you may write to, on a "
        "disk with free space."
    )
