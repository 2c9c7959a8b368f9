"""What is loaded with Keras, and in which order."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys

import geopandas
import pytest
from shapely import box

READ = """
import sys
import cropseg.runtime
import pyogrio
print(len(pyogrio.list_layers(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_geopackage_is_read_with_one_sqlite_once_tensorflow_is_loaded(tmp_path):
    path = tmp_path / "fields.gpkg"
    frame = geopandas.GeoDataFrame({"crop": ["x"]}, geometry=[box(0, 0, 1, 1)])
    frame.set_crs(32633).to_file(path, layer="a")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE VIEW b AS SELECT fid, geom, crop FROM a")
        for table, columns in (
            ("gpkg_contents", "data_type, srs_id"),
            ("gpkg_geometry_columns", "column_name, geometry_type_name, srs_id, z, m"),
        ):
            database.execute(
                f"INSERT INTO {table} (table_name, {columns}) "  # noqa: S608
                f"SELECT 'b', {columns} FROM {table}"
            )

    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
