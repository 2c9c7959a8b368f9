"""Reading of vector files: every format alike, and none in disguise."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import struct

import geopandas
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites import vector_file
from cropseg.sites.manifest import VECTOR_ENDINGS
from cropseg.sites.vector_file import (
    POLYGON_ENDINGS,
    check_start,
    list_files,
    read_table,
    stamp_files,
)

UTM = CRS.from_epsg(32614)
X, Y = 600_005.0, 5_200_003.0
ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".parquet", ".geoparquet")
VRT = "<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>{}</SrcDataSource>"


def make_box(cols, rows):
    """Return the polygon of a rectangle of pixels of 10 x 8 m."""
    left, right = (X + 10 * col for col in cols)
    top, bottom = (Y - 8 * row for row in rows)
    return shapely.box(left, bottom, right, top)


def name_crs(name):
    return {"type": "name", "properties": {"name": name}}


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_is_read_alike(tmp_path, ending, write_shapes):
    shapes = [make_box((2, 8), (3, 6)), make_box((9, 14), (1, 17))]
    columns = {"crop": ["blé d'hiver", "Ærter"], "year": [2016, 17]}
    path = write_shapes(tmp_path / f"a{ending}", shapes, **columns)

    table = read_table(path, fields=["year", "crop"])

    assert table.columns == {"year": [2016, 17], "crop": ["blé d'hiver", "Ærter"]}
    assert shapely.equals(table.shapes, shapes).all()
    assert CRS.from_user_input(table.crs) == UTM


def test_every_ending_that_a_manifest_knows_can_be_read():
    assert set(vector_file._READERS) == set(VECTOR_ENDINGS)


@pytest.mark.parametrize("ending", [*ENDINGS, ".csv"])
@pytest.mark.parametrize(
    ("fields", "near"), [(["Kropp"], "krop"), (["krop", "years"], "year")]
)
def test_a_missing_field_is_answered_with_the_nearest(
    tmp_path, ending, fields, near, write_shapes
):
    path = tmp_path / f"a{ending}"
    if ending == ".csv":
        path.write_text("x,y,krop,year\n1,2,a,2016\n")
        known = "x, y, krop, year"
    else:
        write_shapes(path, [make_box((2, 8), (3, 6))], krop=["a"], year=[2016])
        known = "krop, year"
    with pytest.raises(DataError, match=rf"{known}\. The nearest is `{near}`"):
        read_table(path, fields=fields)


@pytest.fixture
def layers_path(tmp_path):
    path = tmp_path / "layers.gpkg"
    for number, layer in enumerate(("fields_2015", "fields_2016")):
        frame = geopandas.GeoDataFrame(
            {"crop": [number]}, geometry=[make_box((2, 8), (3, 6))], crs=UTM
        )
        frame.to_file(path, layer=layer)
    notes = geopandas.pd.DataFrame({"note": ["a"]})
    pyogrio.write_dataframe(notes, path, layer="notes")
    return path


def test_a_layer_is_chosen_by_its_name(layers_path):
    table = read_table(layers_path, fields=["crop"], layer="fields_2016")
    assert table.columns == {"crop": [1]}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (None, r"2 layers \(fields_2015, fields_2016\). Name one"),
        ("field_2016", "fields_2015, fields_2016. The nearest is `fields_2016`"),
        ("notes", "no layer `notes`"),
    ],
)
def test_a_layer_that_is_missing_or_not_named_is_an_error(layers_path, layer, message):
    with pytest.raises(DataError, match=message):
        read_table(layers_path, fields=["crop"], layer=layer)


def test_a_file_of_one_layer_has_no_other(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a.shp", [make_box((2, 8), (3, 6))])
    assert read_table(path, fields=["crop"], layer="a").columns == {"crop": [1]}
    with pytest.raises(DataError, match="no layer `b`; it has a"):
        read_table(path, fields=["crop"], layer="b")


@pytest.mark.parametrize("ending", [*ENDINGS, ".csv"])
def test_a_virtual_file_in_disguise_is_not_opened(
    tmp_path, ending, monkeypatch, write_shapes
):
    write_shapes(tmp_path / "secret.gpkg", [make_box((2, 8), (3, 6))])
    path = tmp_path / f"a{ending}"
    path.write_text(VRT.format(tmp_path / "secret.gpkg") + "</OGRVRTLayer></OGRVRTDat")
    monkeypatch.setattr(pyogrio, "read_info", None)
    monkeypatch.setattr(pyogrio, "list_layers", None)
    kind = DataError if ending == ".csv" else UnsafeFileError
    with pytest.raises(kind, match="<OGR"):
        read_table(path, fields=["crop"], crs=UTM)


def test_a_pipeline_of_gdal_in_disguise_is_not_run(tmp_path):
    path = tmp_path / "a.geojson"
    command = f"gdal vector pipeline ! read {tmp_path / 'secret.gpkg'}"
    path.write_text(json.dumps({"type": "gdal_streamed_alg", "command_line": command}))
    with pytest.raises(UnsafeFileError, match="type 'gdal_streamed_alg'"):
        read_table(path, fields=["crop"], crs=UTM)


@pytest.mark.parametrize(
    ("real", "named"), [(".shp", ".gpkg"), (".gpkg", ".shp"), (".geojson", ".parquet")]
)
def test_a_file_of_another_format_is_not_opened(tmp_path, real, named, write_shapes):
    path = write_shapes(tmp_path / f"a{real}", [make_box((2, 8), (3, 6))])
    other = shutil.copy(path, tmp_path / f"b{named}")
    with pytest.raises(UnsafeFileError, match="begins with"):
        read_table(other, fields=["crop"])


@pytest.mark.filterwarnings("ignore:GPKG")
def test_a_database_that_is_no_geopackage_is_not_opened(tmp_path):
    path = tmp_path / "a.sqlite"
    frame = geopandas.GeoDataFrame(
        {"crop": [1]}, geometry=[shapely.Point(1, 2)], crs=UTM
    )
    frame.to_file(path, driver="SQLite")
    other = path.rename(tmp_path / "a.gpkg")
    with pytest.raises(DataError, match=r"a\.gpkg cannot be read"):
        read_table(other, fields=["crop"])


def test_a_file_that_gdal_takes_for_another_format_is_not_read(
    tmp_path, monkeypatch, write_shapes
):
    path = write_shapes(tmp_path / "a.gpkg", [make_box((2, 8), (3, 6))])
    monkeypatch.setattr(pyogrio, "read_info", lambda *_, **__: {"driver": "SQLite"})
    monkeypatch.setattr(pyogrio, "read_dataframe", None)
    with pytest.raises(UnsafeFileError, match="but is a file of SQLite"):
        read_table(path, fields=["crop"], crs=UTM)


@pytest.mark.parametrize("name", ["a.kml", "a.vrt", "a"])
def test_an_ending_that_is_not_known_is_an_error(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"end in \.gpkg, \.geojson"):
        read_table(tmp_path / name, fields=["crop"])


@pytest.mark.parametrize("ending", VECTOR_ENDINGS)
@pytest.mark.parametrize("keep", [0, 16, 120, 0.6])
def test_a_file_cut_short_is_one_clear_error(tmp_path, ending, keep, write_shapes):
    path = tmp_path / f"a{ending}"
    shapes = [make_box((col, col + 2), (3, 6)) for col in range(40)]
    if ending == ".csv":
        path.write_bytes(b"x,y,crop\n600005,5200003,\xff\n" + b"6" * 200)
    else:
        write_shapes(path, shapes, crop=["barley"] * 40)
    size = path.stat().st_size
    os.truncate(path, int(keep * size) if keep < 1 else keep)
    with pytest.raises((DataError, UnsafeFileError), match=rf"a\{ending}"):
        read_table(path, fields=["crop"], crs=UTM)


@pytest.mark.parametrize("ending", [".shp", ".dbf"])
def test_a_shapefile_that_lost_its_last_row_is_an_error(tmp_path, ending, write_shapes):
    shapes = [make_box((col, col + 2), (3, 6)) for col in range(40)]
    path = write_shapes(tmp_path / "a.shp", shapes).with_suffix(ending)
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(DataError, match=rf"a\{ending} has .* cut short"):
        read_table(path.with_suffix(".shp"), fields=["crop"])


@pytest.mark.parametrize("missing", [".dbf", ".prj", ".shx"])
def test_a_shapefile_without_its_companions_is_an_error(
    tmp_path, missing, write_shapes
):
    path = write_shapes(tmp_path / "a.shp", [make_box((2, 8), (3, 6))])
    path.with_suffix(missing).unlink()
    message = {".dbf": "no field `crop`", ".prj": "no CRS", ".shx": "cannot be read"}
    with pytest.raises(DataError, match=message[missing]):
        read_table(path, fields=["crop"], crs=UTM)


@pytest.mark.parametrize("ending", [".gpkg", ".parquet", ".shp"])
def test_a_file_without_a_crs_is_an_error(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    frame = geopandas.GeoDataFrame({"crop": [1]}, geometry=[shapely.Point(1, 2)])
    if ending == ".parquet":
        frame.to_parquet(path)
    else:
        with pytest.warns(UserWarning, match="crs"):
            frame.to_file(path)
    with pytest.raises(DataError, match="CRS"):
        read_table(path, fields=["crop"], crs=UTM)


def test_a_missing_file_and_a_folder_are_no_files(tmp_path):
    (tmp_path / "folder.gpkg").mkdir()
    for name in ("missing.gpkg", "folder.gpkg"):
        with pytest.raises(DataFileNotFoundError, match=name):
            stamp_files(tmp_path / name)


@pytest.mark.parametrize(
    ("crs", "message"),
    [
        (None, "has no CRS"),
        (name_crs("http://example.org/crs"), "http://example.org/crs; expected a name"),
        ({"type": "link", "properties": {"href": "http://a.org"}}, "link.*expected"),
        ("http://example.org/crs", "http://example.org/crs; expected a name"),
        ({"type": "name", "properties": ["EPSG:32614"]}, "expected a name"),
    ],
)
def test_a_crs_of_geojson_that_is_no_name_is_refused(
    tmp_path, crs, message, make_feature, write_geojson
):
    feature = make_feature(shapely.Point(1, 2), crop=1)
    path = write_geojson(tmp_path / "a.geojson", feature, crs=crs)
    with pytest.raises(DataError, match=message):
        read_table(path, fields=["crop"], crs=UTM)


@pytest.mark.parametrize(
    "name", ["urn:ogc:def:crs:EPSG::4326", "urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326"]
)
def test_degrees_in_geojson_are_longitude_then_latitude(
    tmp_path, name, make_feature, write_geojson
):
    feature = make_feature(shapely.Point(-97.5, 46.9), crop=1)
    path = write_geojson(tmp_path / "a.geojson", feature, crs=name_crs(name))
    table = read_table(path, fields=["crop"])
    moved = geopandas.GeoSeries(table.shapes, crs=table.crs).to_crs(UTM.to_wkt())
    x, y = transform_points("EPSG:4326", UTM, [-97.5], [46.9])
    assert moved[0].coords[0] == pytest.approx((x[0], y[0]), abs=0.01)


@pytest.mark.parametrize(
    "feature",
    [
        5,
        {"type": "Feature", "properties": {}},
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon"}},
        {"type": "Feature", "properties": [1], "geometry": None},
        {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1]]]},
        },
    ],
)
def test_a_feature_that_is_not_as_geojson_says_is_named(
    tmp_path, feature, make_feature, write_geojson
):
    good = make_feature(shapely.Point(1, 2), crop=1)
    path = write_geojson(tmp_path / "a.geojson", good, feature)
    with pytest.raises(DataError, match=r"Feature 1 of .*a\.geojson"):
        read_table(path, fields=["crop"], crs=UTM)


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "CP1251"])
@pytest.mark.parametrize("has_cpg", [True, False])
def test_names_in_a_shapefile_are_read_right(tmp_path, encoding, has_cpg):
    if encoding == "CP1251" and not has_cpg:
        pytest.skip("nothing in the file says so")
    field, value = (
        ("культ", "Пшеница") if encoding == "CP1251" else ("kultur_ø", "Grønkorn")
    )
    path = tmp_path / "a.shp"
    frame = geopandas.GeoDataFrame(
        {field: [value, "b"]},
        geometry=[shapely.Point(1, 2), shapely.Point(3, 4)],
        crs=UTM,
    )
    frame.to_file(path, encoding=encoding)
    if not has_cpg:
        path.with_suffix(".cpg").unlink()

    table = read_table(path, fields=[field])

    assert table.columns == {field: [value, "b"]}


def test_a_character_cut_in_two_at_the_end_of_a_field_is_left_out(
    tmp_path, write_shapes
):
    path = write_shapes(tmp_path / "a.shp", [shapely.Point(1, 2)], crop=["Grønkornæ"])
    path.with_suffix(".cpg").unlink()
    table = path.with_suffix(".dbf")
    content = table.read_bytes()
    assert content.count("æ".encode()) == 1
    table.write_bytes(content.replace("æ".encode(), "æ".encode()[:1] + b" "))
    assert read_table(path, fields=["crop"]).columns == {"crop": ["Grønkorn"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lon;lat;crop\n1;2;a\n", "columns lon;lat;crop; expected `lon` and `lat`"),
        ("lon,lat,x,y,crop\n1,2,3,4,a\n", "lon, lat, x, y, crop; expected"),
        ("", "columns none"),
        ("lon,lat,crop\n46.9,-97.5,a\n", "row 1 .* swapped"),
        ("x,y,crop\n1,2,a\n1,east,a\n", "row 2 .* 'east'"),
    ],
)
def test_a_table_without_places_is_an_error(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(path, fields=["crop"], crs=UTM)


def test_places_in_a_table_need_a_crs(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y,crop\n1,2,a\n")
    assert read_table(path, fields=["crop"], crs=UTM).crs is UTM
    with pytest.raises(DataError, match="has no CRS"):
        read_table(path, fields=["crop"])


def test_the_files_of_a_shapefile_belong_together(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a.shp", [make_box((2, 8), (3, 6))])
    write_shapes(tmp_path / "b.shp", [make_box((2, 8), (3, 6))])
    path.with_suffix(".prj").rename(path.with_suffix(".PRJ"))

    files = list_files(path)

    assert files[0] == path
    assert {file.suffix for file in files} == {".shp", ".dbf", ".shx", ".PRJ", ".cpg"}
    assert list_files(path.with_suffix(".dbf")) == (path.with_suffix(".dbf"),)


@pytest.mark.parametrize("written", [".shp", ".dbf", ".prj"])
def test_a_stamp_changes_with_every_file_of_a_shapefile(
    tmp_path, written, write_shapes
):
    path = write_shapes(tmp_path / "a.shp", [make_box((2, 8), (3, 6))])
    before = stamp_files(path)
    assert stamp_files(path) == before
    os.utime(path.with_suffix(written), (2e9, 2e9))
    assert stamp_files(path) != before


@pytest.mark.parametrize("ending", POLYGON_ENDINGS)
def test_a_file_that_is_what_it_says_passes(tmp_path, ending, write_shapes):
    check_start(write_shapes(tmp_path / f"a{ending}", [make_box((2, 8), (3, 6))]))


@pytest.mark.parametrize("ending", [*POLYGON_ENDINGS, ".vrt", ".csv", ""])
@pytest.mark.parametrize("before", ["", "\ufeff", " \n", "\ufeff\t"])
def test_xml_does_not_pass_under_any_name(tmp_path, ending, before):
    path = tmp_path / f"a{ending}"
    path.write_text(before + VRT, encoding="utf-8")
    with pytest.raises(UnsafeFileError, match="its content is not what its ending"):
        check_start(path)


@pytest.mark.parametrize("ending", [".shp", ".csv", ".no_cpg.shp"])
def test_a_field_that_is_there_twice_is_an_error(tmp_path, ending, write_shapes):
    path = tmp_path / f"a{ending}"
    if ending == ".csv":
        path.write_text("lon,lat,crop,crop\n1,2,a,b\n")
    else:
        write_shapes(path, [make_box((2, 8), (3, 6))], crop=[1], corn=[2])
        table = path.with_suffix(".dbf")
        table.write_bytes(table.read_bytes().replace(b"corn", b"crop"))
        if "no_cpg" in ending:
            path.with_suffix(".cpg").unlink()

    with pytest.raises(DataError, match=r"has 2 \w+ `crop`. Rename all but one"):
        read_table(path, fields=["crop"])


def test_a_layer_that_is_a_query_without_end_is_not_read(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a.gpkg", [make_box((2, 8), (3, 6))])
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE VIEW b AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
            "FROM n) SELECT n.i AS fid, a.geom, a.crop FROM n, a"
        )
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, srs_id) "
            "SELECT 'b', data_type, srs_id FROM gpkg_contents"
        )
        database.execute(
            "INSERT INTO gpkg_geometry_columns SELECT 'b', column_name, "
            "geometry_type_name, srs_id, z, m FROM gpkg_geometry_columns"
        )

    with pytest.raises(UnsafeFileError, match=r"Layer `b` .* is a query"):
        read_table(path, fields=["crop"], layer="b")
    assert len(read_table(path, fields=["crop"], layer="a").shapes) == 1


def test_a_geopackage_in_a_folder_is_left_alone(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a #1?.gpkg", [make_box((2, 8), (3, 6))])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")

    assert len(read_table(path, fields=["crop"]).shapes) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Non closed ring")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ring_that_is_not_closed_is_one_clear_error(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a.shp", [make_box((2, 8), (3, 6))])
    content = path.read_bytes()
    corner = struct.pack("<dd", X + 80, Y - 48)  # the first of the box, and the last
    assert content.count(corner) >= 2
    path.write_bytes(content.replace(corner, struct.pack("<dd", X + 81, Y - 48), 1))

    with pytest.raises(DataError, match=r"cannot be read.*copy it again"):
        read_table(path, fields=["crop"])


def test_a_polygon_cut_short_in_a_table_of_columns_is_one_clear_error(tmp_path):
    path, box = tmp_path / "a.parquet", make_box((2, 8), (3, 6))
    frame = geopandas.GeoDataFrame({"crop": [1]}, geometry=[box], crs=UTM)
    frame.to_parquet(path, compression=None)
    content, polygon = path.read_bytes(), shapely.to_wkb(box)
    assert polygon in content
    longer = polygon[:5] + struct.pack("<I", 9) + polygon[9:]  # 9 rings, not one
    path.write_bytes(content.replace(polygon, longer))

    with pytest.raises(DataError, match=r"cannot be read.*copy it again"):
        read_table(path, fields=["crop"])


def test_a_coordinate_that_no_float_holds_is_one_clear_error(
    tmp_path, make_feature, write_geojson
):
    path = write_geojson(tmp_path / "a.geojson", make_feature(shapely.Point(7, 2)))
    path.write_text(path.read_text().replace("7.0", "7" * 400))

    with pytest.raises(DataError, match=r"Feature 0 of .* OverflowError"):
        read_table(path, fields=[])
