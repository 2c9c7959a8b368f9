"""Fields get the crop that most of their pixels show, over all maps of a batch."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from pyarrow import parquet
from rasterio.features import geometry_mask

from cropseg.errors import DataError, UsageError
from cropseg.inference.outputs import finished
from cropseg.inference.outputs.parcels import write_parcels

X, Y = 600_005, 5_200_003


def box(col, row, width, height):
    """Return a rectangle of pixels of the made-up grid."""
    return shapely.box(
        X + 10 * col, Y - 8 * (row + height), X + 10 * (col + width), Y - 8 * row
    )


@pytest.fixture
def write_fields(tmp_path):
    """Return a function that writes a file of fields."""

    def write(geometries, name="fields.gpkg", crs="EPSG:32614", **columns):
        path = tmp_path / name
        columns = columns or {"owner": [f"é{i}" for i in range(len(geometries))]}
        frame = geopandas.GeoDataFrame(columns, geometry=list(geometries), crs=crs)
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_file(path)
        return path

    return write


@pytest.fixture
def count(tmp_path):
    """Return a function that gives fields their crops and reads the result."""

    def run(fields_path, *maps, ending=".gpkg", layer=None):
        path = tmp_path / f"out{ending}"
        num_mapped = write_parcels(fields_path, maps, path, layer=layer)
        read = geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet
        frame = read(path)
        assert num_mapped == frame.predicted_crop.notna().sum()
        return frame

    return run


@pytest.fixture(params=[9, 32, 1024])
def square(request, monkeypatch):
    """The side of the squares in which maps are read."""
    monkeypatch.setattr(finished, "CHUNK_PX", request.param)


@pytest.mark.usefixtures("square")
def test_a_field_has_the_crop_of_most_of_its_pixels(write_map, write_fields, count):
    ids = np.zeros((70, 53), "uint8")
    ids[10:20, 10:20] = 1
    ids[12:14, 10:20] = 3
    ids[10, 10:14] = 255
    confidence = np.where(ids == 1, 0.8, 0.4)
    fields = write_fields([box(10, 10, 10, 10), box(30, 10, 3, 5)])
    found = count(fields, write_map(ids, confidence=confidence))
    assert found.predicted_crop.tolist() == ["wheat & rye", "soybeans"]
    assert found.predicted_pixels.tolist() == [96, 15]
    np.testing.assert_allclose(found.predicted_share, [76 / 96, 1])
    expected = (76 * 0.8 + 20 * 0.4) / 96
    np.testing.assert_allclose(found.predicted_confidence, [expected, 0.4], atol=1e-6)


@pytest.mark.usefixtures("square")
def test_each_field_is_counted_as_if_it_were_alone(
    write_map, write_fields, count, make_grid, draw_patches
):
    ids = draw_patches(sigma=1)
    rng = np.random.default_rng(3)
    places = np.stack([rng.uniform(X, X + 530, 25), rng.uniform(Y - 560, Y, 25)], 1)
    shapes = shapely.buffer(shapely.points(places), rng.uniform(5, 120, 25))  # overlap
    found = count(write_fields(shapes), write_map(ids))
    transform = make_grid().transform
    for shape, row in zip(shapes, found.itertuples(), strict=True):
        inside = geometry_mask([shape], ids.shape, transform, invert=True)
        counts = np.bincount(ids[inside], minlength=256)[:4]
        assert row.predicted_pixels == counts.sum()
        assert row.predicted_share == pytest.approx(counts.max() / counts.sum())


@pytest.mark.usefixtures("square")
def test_a_field_on_two_maps_is_counted_on_both(
    write_map, write_fields, count, make_grid
):
    west, east = np.zeros((70, 53), "uint8"), np.full((70, 53), 2, "uint8")
    there = make_grid(transform=Affine(10, 0, X + 530, 0, -8, Y))
    maps = [
        write_map(west, scene="west", confidence=np.full((70, 53), 0.5)),
        write_map(east, scene="east", grid=there, confidence=np.full((70, 53), 1.0)),
    ]
    found = count(write_fields([box(50, 10, 10, 4), box(200, 0, 5, 5)]), *maps)
    assert found.predicted_crop[0] == "grassland"
    assert found.predicted_pixels.tolist() == [40, 0]
    assert found.predicted_share[0] == pytest.approx(0.7)
    assert found.predicted_confidence[0] == pytest.approx(0.85)


def test_fields_without_a_pixel_have_no_crop(write_map, write_fields, count):
    ids = np.zeros((70, 53), "uint8")
    ids[30:, :] = 255
    shapes = [
        box(10, 10, 5, 5),
        box(10, 40, 5, 5),  # no data
        box(900, 0, 5, 5),  # off the map
        box(10.6, 10.6, 0.3, 0.3),  # between the centres
        None,
    ]
    found = count(write_fields(shapes), write_map(ids))
    assert found.predicted_pixels.tolist() == [25, 0, 0, 0, 0]
    assert found.predicted_crop.isna().tolist() == [False, True, True, True, True]
    assert found.predicted_share.isna().tolist() == [False, True, True, True, True]
    assert found.geometry.isna().tolist() == [False, False, False, False, True]
    assert "predicted_confidence" not in found


@pytest.mark.parametrize("name", ["f.gpkg", "f.shp", "f.parquet", "f.geojson"])
@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_columns_geometry_and_crs_of_the_fields_stay(
    name, ending, write_map, write_fields, count
):
    degrees = geopandas.GeoSeries([box(1, 2, 9, 7), box(20, 3, 6, 5)], crs=32614)
    shapes = degrees.to_crs(4326)
    fields = write_fields(
        shapes, name, 4326, owner=["Åse", "Bo"], num=[7, 2**40], crop=["x", None]
    )
    ids = np.full((70, 53), 3, "uint8")
    found = count(fields, write_map(ids), ending=ending)
    assert list(found.columns)[:3] == ["owner", "num", "crop"]
    assert found.owner.tolist() == ["Åse", "Bo"]
    assert found.num.tolist() == [7, 2**40]
    assert found.crop.isna().tolist() == [False, True]
    # GeoJSON has the same degrees under another name.
    assert found.crs.equals("EPSG:4326", ignore_axis_order=True)
    pairs = [
        shapely.normalize(g.explode().to_numpy()) for g in (found.geometry, shapes)
    ]
    assert shapely.equals_exact(*pairs, tolerance=1e-7).all()
    assert found.predicted_crop.tolist() == ["água", "água"]
    assert found.predicted_pixels.tolist() == [63, 30]


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        {"fid": [5, 5]},  # of two files that were merged
        {"fid": ["a", "b"]},
        {"FID": [1.5, None], "geom": ["x", "y"]},
        {"geometry": ["square", "box"]},
    ],
)
def test_columns_named_as_formats_name_theirs_stay(
    columns, ending, write_map, tmp_path
):
    shapes = [box(1, 1, 3, 3), box(9, 1, 3, 3)]
    frame = geopandas.GeoDataFrame({"place": shapes}, geometry="place", crs=32614)
    for name, values in columns.items():
        frame[name] = values
    path, out = tmp_path / "fields.parquet", tmp_path / f"out{ending}"
    frame.to_parquet(path)
    assert write_parcels(path, [write_map(np.ones((70, 53)))], out) == 2
    if ending == ".parquet":
        found = parquet.read_table(out).to_pydict()
        assert geopandas.read_parquet(out).geometry.notna().all()
    else:
        with contextlib.closing(sqlite3.connect(out)) as database:
            rows = database.execute(f"SELECT {', '.join(columns)} FROM fields")  # noqa: S608
            found = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
        assert geopandas.read_file(out).geometry.notna().all()
    assert {name: found[name] for name in columns} == columns


def test_whole_numbers_with_gaps_stay_whole_numbers(write_map, write_fields, count):
    fields = write_fields([box(1, 1, 3, 3), box(9, 1, 3, 3)], num=[2**60 + 1, None])
    document = json.loads(geopandas.read_file(fields).to_json())
    for feature, num in zip(document["features"], [2**60 + 1, None], strict=True):
        feature["properties"]["num"] = num
    path = fields.with_suffix(".geojson")
    path.write_text(
        json.dumps(document | {"crs": {"properties": {"name": "EPSG:32614"}}})
    )
    count(path, write_map(np.ones((70, 53))), ending=".parquet")
    table = parquet.read_table(path.with_name("out.parquet"))
    assert table["num"].to_pylist() == [2**60 + 1, None]


def test_invalid_fields_are_counted_and_written_as_they_are(
    write_map, write_fields, count
):
    bow = shapely.Polygon([(X, Y), (X + 100, Y - 80), (X + 100, Y), (X, Y - 80)])
    assert not bow.is_valid
    found = count(write_fields([bow]), write_map(np.ones((70, 53))))
    assert found.predicted_pixels.tolist() == [50]
    assert not found.is_valid[0]


def test_squares_without_a_field_are_not_read(
    write_map, write_fields, count, monkeypatch
):
    monkeypatch.setattr(finished, "CHUNK_PX", 16)
    read = []
    original = finished.MapReader.read_classes

    def read_and_note(self, window):
        read.append((window.row, window.col))
        return original(self, window)

    monkeypatch.setattr(finished.MapReader, "read_classes", read_and_note)
    count(write_fields([box(20, 35, 3, 3)]), write_map(np.ones((70, 53))))
    assert read == [(32, 16)]


@pytest.mark.parametrize(
    ("geometries", "columns", "message"),
    [
        ([shapely.Point(X, Y)], {"a": [1]}, "points"),
        ([box(1, 1, 2, 2)], {"Predicted_Share": [1]}, "predicted_share already"),
        ([box(1, 1, 2, 2)], {"Crop": [1], "crop": [2]}, "its columns Crop, crop apart"),
        (
            [box(1, 1, 2, 2)],
            {"centre": geopandas.GeoSeries([shapely.Point(X, Y)], crs=32614)},
            "geometries in centre",
        ),
    ],
)
def test_files_that_cannot_be_given_crops_are_refused(
    geometries, columns, message, write_map, write_fields, count
):
    with pytest.raises(DataError, match=message):
        count(
            write_fields(geometries, "fields.parquet", **columns),
            write_map(np.ones((70, 53))),
        )


def test_fields_are_not_written_over_themselves(write_map, write_fields):
    fields = write_fields([box(1, 1, 3, 3)])
    before = fields.read_bytes()
    with pytest.raises(UsageError, match="file of the fields itself"):
        write_parcels(fields, [write_map(np.ones((70, 53)))], fields)
    assert fields.read_bytes() == before


def test_a_file_with_several_layers_must_be_given_one(write_map, write_fields, count):
    fields = write_fields([box(1, 1, 3, 3)])
    other = geopandas.GeoDataFrame({"b": [1]}, geometry=[box(9, 1, 2, 2)], crs=32614)
    other.to_file(fields, layer="other")
    a_map = write_map(np.ones((70, 53)))
    with pytest.raises(DataError, match="2 layers"):
        count(fields, a_map)
    assert count(fields, a_map, layer="other").predicted_pixels.tolist() == [4]


def test_an_unknown_ending_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match=r"\.gpkg, \.parquet"):
        write_parcels(tmp_path / "none.gpkg", [], tmp_path / "out.csv")
