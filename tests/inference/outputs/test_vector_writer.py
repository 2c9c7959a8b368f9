"""Vector files are whole, or they are not there."""

from __future__ import annotations

import json
import resource
import signal

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from pyarrow import parquet

from cropseg.errors import ResourceError, UsageError
from cropseg.inference.outputs import vector_writer
from cropseg.inference.outputs.vector_writer import write_frames

ENDINGS = [".gpkg", ".parquet", ".geoparquet"]


def make_frame(num_rows=3, start=0):
    """Return squares with a text, a number with a gap, and a number."""
    index = np.arange(start, start + num_rows)
    return geopandas.GeoDataFrame(
        {
            "name": pd.Series([f"é{i}" for i in index], dtype="str"),
            "share": np.where(index % 2, np.nan, index / 10),
            "count": index.astype("int32"),
        },
        geometry=list(shapely.box(index, 0, index + 1, 2)),
        crs="EPSG:32614",
    )


def write(path, *frames, geometry_type="Polygon"):
    with write_frames(path, layer="areas", geometry_type=geometry_type) as writer:
        for frame in frames:
            writer.write(frame)


def read(path):
    if path.suffix == ".gpkg":
        return geopandas.read_file(path, layer="areas")
    return geopandas.read_parquet(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_tables_stand_one_behind_the_other(ending, tmp_path):
    path = tmp_path / f"areas{ending}"
    write(path, make_frame(), make_frame(0), make_frame(2, start=3))
    found = read(path)
    expected = make_frame(5)
    assert found.crs == expected.crs
    assert found["name"].tolist() == expected["name"].tolist()
    assert found["count"].tolist() == [0, 1, 2, 3, 4]
    assert found["share"].isna().tolist() == [False, True, False, True, False]
    assert found.geometry.geom_equals(expected.geometry).all()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_may_begin_with_a_table_without_rows(ending, tmp_path):
    path = tmp_path / f"areas{ending}"
    write(path, make_frame(0), make_frame(2))
    assert len(read(path)) == 2
    write(path, make_frame(0))
    assert read(path).empty


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_geometries_stay_missing(ending, tmp_path):
    path = tmp_path / f"areas{ending}"
    frame = make_frame()
    frame.loc[1, "geometry"] = None
    write(path, frame, geometry_type="MultiPolygon")
    assert read(path).geometry.isna().tolist() == [False, True, False]


def test_parquet_says_what_geoparquet_asks_for(tmp_path):
    path = tmp_path / "areas.parquet"
    write(path, make_frame())
    about = json.loads(parquet.read_schema(path).metadata[b"geo"])
    assert (about["version"], about["primary_column"]) == ("1.1.0", "geometry")
    column = about["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32614}


def test_equal_polygons_give_equal_bytes(tmp_path):
    paths = [tmp_path / f"{name}.gpkg" for name in "ab"]
    for path in paths:
        write(path, make_frame())
    assert paths[0].read_bytes() == paths[1].read_bytes()


def write_and_stop(writer):
    writer.write(make_frame())
    raise KeyboardInterrupt


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_error_midway_leaves_the_old_file_alone(ending, tmp_path):
    path = tmp_path / f"areas{ending}"
    path.write_bytes(b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        write_frames(path, layer="areas", geometry_type="Polygon") as writer,
    ):
        write_and_stop(writer)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("limit_bytes", [3_000, 200_000])
def test_a_full_disk_leaves_nothing(ending, limit_bytes, tmp_path):
    """A limit on the size of a file stands in for the disk."""
    path = tmp_path / f"areas{ending}"
    frames = [make_frame(20_000, start=20_000 * index) for index in range(2)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(ResourceError):
            write(path, *frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "name"),
    [(".gpkg", "_GeoPackageWriter"), (".parquet", "_GeoParquetWriter")],
)
def test_a_file_with_fewer_rows_than_were_written_is_not_kept(
    ending, name, tmp_path, monkeypatch
):
    kind = getattr(vector_writer, name)
    monkeypatch.setattr(kind, "count_rows", lambda _: 2)
    with pytest.raises(ResourceError, match="Of 3 rows 2 are in"):
        write(tmp_path / f"areas{ending}", make_frame())
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_not_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in `\.geojson`"):
        write(tmp_path / "areas.geojson", make_frame())
