"""Regions: a pixel's part is that of the polygon that holds its centre."""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.drawing import draw_shapes
from cropseg.sites.grid import Grid, Window
from cropseg.sites.regions import RegionSplit
from cropseg.sites.site import open_site
from cropseg.sites.split import NO_PART, PARTS

TRAIN, VAL, TEST = range(3)


def make_grid(*, height=60, width=80, x=600_005, y=5_200_003):
    transform = Affine.translation(x, y) @ Affine.scale(10, -8)
    crs = CRS.from_epsg(32614)
    return Grid(height=height, width=width, transform=transform, crs=crs)


@pytest.mark.parametrize("turn", [{}, {"degrees": 30}, {"south_up": True}])
def test_regions_in_another_crs_hold_the_pixels_whose_centre_they_hold(
    tmp_path, make_site, turn
):
    site = open_site(make_site(tmp_path, split="regions", **turn))
    grid = site.scenes[0].grid
    x, y = (axis.ravel() for axis in grid.locate_pixels(grid.window))
    lon, lat = transform_points(grid.crs, "EPSG:4326", x, y)
    expected = np.full(len(lon), NO_PART)
    for feature in json.loads((tmp_path / "split.geojson").read_text())["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        part = PARTS.index(feature["properties"]["part"])
        expected[shapely.contains_xy(polygon, lon, lat)] = part
    expected = expected.reshape(grid.height, grid.width)

    parts = site.split.read_parts(grid, grid.window)

    assert {TRAIN, VAL, TEST} <= set(np.unique(parts))
    assert (parts != expected).mean() < 1e-3
    window = Window(row=20, col=100, height=50, width=90)
    np.testing.assert_array_equal(
        site.split.read_parts(grid, window), parts[window.slices_in(grid.window)]
    )


def test_a_pixel_outside_all_regions_is_in_no_part(tmp_path, make_site):
    path = make_site(tmp_path, split="regions")
    edit_regions(tmp_path / "split.geojson", lambda features: features.pop(1))

    site = open_site(path)
    grid = site.scenes[0].grid
    parts = site.split.read_parts(grid, grid.window)

    assert (parts[:, 130:177] == NO_PART).all()
    assert (parts[:, :126] == TRAIN).all()
    assert (parts[:, 182:] == TEST).all()


def edit_regions(path, change):
    document = json.loads(path.read_text())
    change(document["features"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[0]["properties"].update(part="practice"), "parts .*'practice'"),
        (lambda f: [item["properties"].pop("part") for item in f], "a field `part`"),
        (lambda f: f[0]["properties"].update(part=None), "a field `part`"),
        (lambda f: f[0].update(geometry=None), "a polygon in every row"),
        (
            lambda f: f[0].update(geometry={"type": "Point", "coordinates": [1, 2]}),
            "a polygon in every row",
        ),
        (
            lambda f: f[0].update(geometry={"type": "Polygon", "coordinates": []}),
            "a polygon in every row, .* Empty",
        ),
        (lambda f: f.clear(), "a field `part`"),
    ],
)
def test_regions_that_cannot_be_are_refused(tmp_path, make_site, change, message):
    make_site(tmp_path, split="regions")
    path = tmp_path / "split.geojson"
    edit_regions(path, change)
    grid = make_grid()

    with pytest.raises(DataError, match=message):
        RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.geojson", "hello", "no readable vector file"),
        ("a.geojson", "[]", "no readable vector file"),
        ("a.json", '{"type": "Topology"}', "no readable vector file"),
        ("a.gpkg", "SQLite format 3\0 and no more", "no readable vector file"),
        ("a.parquet", "PAR1 and no more", "no readable vector file"),
        ("a.csv", "part,a\ntrain,1\n", r"a.csv ends in .csv; expected one of .geojson"),
        ("a", "part", "ends in nothing"),
    ],
)
def test_a_file_without_polygons_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    grid = make_grid()

    with pytest.raises(DataError, match=message):
        RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)


def name_crs(name):
    return {"type": "name", "properties": {"name": name}}


def test_regions_may_name_a_crs_of_their_own(tmp_path):
    document = make_regions_document([(0, 0), (500, 0), (500, 400), (0, 0)])
    document["crs"] = name_crs("urn:ogc:def:crs:EPSG::32614")
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    grid = make_grid(x=0, y=480)

    parts = RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)

    area_px = 500 * 400 / 2 / 80
    assert (parts == VAL).sum() == pytest.approx(area_px, rel=0.02)


def make_regions_document(ring):
    polygon = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {"part": "val"}, "geometry": polygon}
    return {"type": "FeatureCollection", "features": [feature]}


@pytest.mark.parametrize(
    ("crs", "message"),
    [
        (name_crs("http://127.0.0.1:9/crs"), "expected a name such as"),
        ({"type": "link", "properties": {"href": "http://127.0.0.1:9/"}}, "'name'"),
        (name_crs("EPSG:999999"), "no readable vector file"),
    ],
)
def test_a_crs_that_is_an_address_is_not_fetched(tmp_path, crs, message):
    document = make_regions_document([(0, 0), (1, 0), (1, 1), (0, 0)])
    document["crs"] = crs
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    grid = make_grid()

    with pytest.raises(DataError, match=message):
        RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)


@pytest.mark.parametrize("ending", ["gpkg", "shp", "parquet"])
def test_regions_are_the_same_from_other_formats(tmp_path, make_site, ending):
    site = open_site(make_site(tmp_path, split="regions"))
    grid = site.scenes[0].grid
    path = tmp_path / f"split.{ending}"
    regions = geopandas.read_file(tmp_path / "split.geojson")
    (regions.to_parquet if ending == "parquet" else regions.to_file)(path)

    parts = RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)

    expected = site.split.read_parts(grid, grid.window)
    np.testing.assert_array_equal(parts, expected)


VRT = "<OGRVRTDataSource><OGRVRTLayer name='secret'/></OGRVRTDataSource>"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"a.{ending}", VRT) for ending in ("geojson", "gpkg", "shp", "vrt")),
        ("a.geojson", f"\ufeff \n{VRT}"),
        ("a.gpkg", '{"type": "gdal_streamed_alg", "command_line": "gdal vector"}'),
        ("a.shp", "part\ntrain\n"),
        ("a.parquet", "part\ntrain\n"),
    ],
)
def test_a_file_whose_content_is_something_else_is_unsafe(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")

    with pytest.raises(UnsafeFileError, match="not what its ending says"):
        RegionSplit(regions_path=path, block_m=96)


def test_regions_that_become_unsafe_later_are_refused_too(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split="regions"))
    (tmp_path / "split.geojson").write_text(VRT)

    with pytest.raises(UnsafeFileError):
        site.split.read_parts(
            site.scenes[0].grid, Window(row=0, col=0, height=2, width=3)
        )


def test_geojson_that_gdal_would_run_as_a_pipeline_is_no_region_file(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "gdal_streamed_alg", "command_line": "gdal vector"}')
    grid = make_grid()

    with pytest.raises(DataError, match="no readable vector file"):
        RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)


def test_a_missing_region_file_is_named_when_the_site_is_opened(tmp_path, make_site):
    path = make_site(tmp_path, split={"regions": "areas.geojson"})

    with pytest.raises(DataFileNotFoundError, match=r"areas\.geojson, which `split`"):
        open_site(path)


def test_regions_that_are_edited_are_read_again(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split="regions"))
    grid = site.scenes[0].grid
    assert VAL in site.split.read_parts(grid, grid.window)

    edit_regions(tmp_path / "split.geojson", lambda features: features.pop(1))

    assert VAL not in site.split.read_parts(grid, grid.window)


def test_a_changed_companion_of_a_shapefile_of_regions_is_seen(tmp_path):
    polygon = shapely.box(600_000, 5_199_000, 601_000, 5_201_000)
    frame = geopandas.GeoDataFrame(
        {"part": ["train"]}, geometry=[polygon], crs="EPSG:32614"
    )
    path = tmp_path / "a.shp"
    frame.to_file(path)
    split, grid = RegionSplit(regions_path=path, block_m=96), make_grid()
    assert (split.read_parts(grid, grid.window) == TRAIN).all()
    table = path.with_suffix(".dbf")
    table.write_bytes(table.read_bytes().replace(b"train", b"test "))
    os.utime(table, (2e9, 2e9))

    assert (split.read_parts(grid, grid.window) == TEST).all()


def test_regions_in_a_file_of_several_layers_are_not_guessed(tmp_path):
    path = tmp_path / "a.gpkg"
    polygon = shapely.box(600_000, 5_199_000, 601_000, 5_201_000)
    for part in PARTS:
        frame = geopandas.GeoDataFrame(
            {"part": [part]}, geometry=[polygon], crs="EPSG:32614"
        )
        frame.to_file(path, layer=f"{part}_area")

    with pytest.raises(DataError, match=r"3 layers .* a file of its own"):
        RegionSplit(regions_path=path, block_m=96).read_regions()


@pytest.mark.parametrize("ending", ["gpkg", "parquet"])
def test_a_file_without_any_region_is_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    frame = geopandas.GeoDataFrame({"part": [""]}, geometry=[None], crs="EPSG:32614")
    (frame[:0].to_parquet if ending == "parquet" else frame[:0].to_file)(path)

    with pytest.raises(DataError, match="it has 0 rows of nothing"):
        RegionSplit(regions_path=path, block_m=96).read_regions()


def test_points_in_a_table_are_no_regions(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("lon,lat,part\n-97.5,46.9,train\n")

    with pytest.raises(DataError, match=r"ends in \.csv; .*Write .* as GeoPackage"):
        RegionSplit(regions_path=path, block_m=96)


def test_several_threads_read_the_same_parts_and_leave_the_warnings_alone(
    tmp_path, make_site
):
    site = open_site(make_site(tmp_path, split="regions"))
    grid, window = site.scenes[0].grid, Window(row=3, col=90, height=20, width=70)
    expected = site.split.read_parts(grid, window)
    before = list(warnings.filters)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: site.split.read_parts(grid, window), range(99)))

    assert all((parts == expected).all() for parts in found)
    assert warnings.filters == before


def test_a_window_holds_the_parts_that_the_whole_scene_holds(tmp_path):
    side = 1 / 3  # no number of pixels is exact
    border = 500_000 + side * 420.5  # through the middle of pixels
    halves = [(400_000, border, "train"), (border, 600_000, "test")]
    table = geopandas.GeoDataFrame(
        {"part": [part for *_, part in halves]},
        geometry=[shapely.box(x, 5.9e6, end, 6.1e6) for x, end, _ in halves],
        crs=32633,
    )
    table.to_file(tmp_path / "split.gpkg")
    split = RegionSplit(regions_path=tmp_path / "split.gpkg", block_m=100)
    transform = Affine.translation(500_000, 6_000_000) @ Affine.scale(side, -side)
    grid = Grid(height=90, width=700, transform=transform, crs=CRS.from_epsg(32633))

    whole = split.read_parts(grid, grid.window)

    assert set(np.unique(whole)) == {TRAIN, TEST}
    for col in range(300, 420, 7):
        window = Window(row=10, col=col, height=64, width=200)
        np.testing.assert_array_equal(
            split.read_parts(grid, window), whole[window.slices_in(grid.window)]
        )
    around = Window(row=-20, col=-30, height=40, width=60)
    assert (split.read_parts(grid, around) == TRAIN).all()


def test_many_regions_are_drawn_only_where_they_lie(tmp_path, monkeypatch):
    drawn = []

    def count_shapes(shapes, *args, **kwargs):
        shapes = list(shapes)
        drawn.append(len(shapes))
        return draw_shapes(shapes, *args, **kwargs)

    monkeypatch.setattr("cropseg.sites.regions.draw_shapes", count_shapes)
    boxes = [
        shapely.box(600_000 + 2000 * i, 5.1e6, 602_000 + 2000 * i, 5.3e6)
        for i in range(50)
    ]
    table = geopandas.GeoDataFrame({"part": ["train"] * 50}, geometry=boxes, crs=32614)
    table.to_file(tmp_path / "split.gpkg")
    split = RegionSplit(regions_path=tmp_path / "split.gpkg", block_m=100)

    for _ in range(2):
        split.read_parts(make_grid(), make_grid().window)

    assert drawn == [2]
