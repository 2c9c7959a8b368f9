"""Where scenes are mapped: rasterio's masks of whole scenes as the oracle."""

from __future__ import annotations

import pickle
import time

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import geometry_mask
from shapely.affinity import rotate, translate

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.inference.scenes.region import open_region
from cropseg.sites.grid import Grid, Window

UTM = CRS.from_epsg(32614)
ORIGIN = (600_005.0, 5_200_003.0)


def make_grid(height=300, width=420, *, degrees=0.0, crs=UTM):
    turn = Affine.rotation(degrees) @ Affine.scale(10, -8)
    where = Affine.translation(*ORIGIN) @ turn
    return Grid(height=height, width=width, transform=where, crs=crs)


def make_fields(grid):
    """Return a field with a hole, a multipolygon, and a triangle over the edge."""
    x, y = grid.transform @ (grid.width / 2, grid.height / 2)
    ring = shapely.Point(x, y).buffer(900).difference(shapely.Point(x, y).buffer(300))
    pair = shapely.union_all([translate(ring, -1500, 700), shapely.box(x, y, x + 9, y)])
    triangle = shapely.Polygon([(x + 900, y), (x + 9000, y + 50), (x + 900, y + 333)])
    both = shapely.MultiPolygon(
        [rotate(shapely.box(x - 1900, y - 900, x - 1200, y - 600), 20), triangle]
    )
    return [ring, shapely.make_valid(pair).buffer(0), both]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes polygons to a file."""

    def write_region(shapes, name="fields.gpkg", crs=UTM):
        frame = geopandas.GeoDataFrame(geometry=list(shapes), crs=crs)
        path = tmp_path / name
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
        return path

    return write_region


def draw(shapes, grid):
    return geometry_mask(shapes, (grid.height, grid.width), grid.transform, invert=True)


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("name", ["f.gpkg", "f.geojson", "f.shp", "f.parquet"])
def test_a_region_is_the_pixels_whose_centre_is_in_a_polygon(write, name, degrees):
    grid = make_grid(degrees=degrees)
    shapes = make_fields(grid)
    crs = "EPSG:4326" if name == "f.geojson" else UTM
    # A straight edge in degrees is another one than in metres.
    dense = geopandas.GeoSeries(shapely.segmentize(shapes, 50), crs=UTM)
    region = open_region(write(dense.to_crs(crs), name, crs=crs))
    found = region.on_grid(grid).read(grid.window)
    expected = draw(shapes, grid)
    assert 0.1 < expected.mean() < 0.9
    # GeoJSON is rounded to centimetres; there and back is no more exact than that.
    assert (found != expected).sum() <= (5 if name == "f.geojson" else 0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A region on a turned grid, and all of it."""
    grid = make_grid(degrees=-10)
    path = tmp_path_factory.mktemp("region") / "fields.gpkg"
    geopandas.GeoDataFrame(geometry=make_fields(grid), crs=UTM).to_file(path)
    on_grid = open_region(path).on_grid(grid)
    return on_grid, on_grid.read(grid.window)


@given(
    row=st.integers(-40, 320),
    col=st.integers(-40, 440),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
@settings(max_examples=150, deadline=None)
def test_a_window_holds_what_the_crop_of_the_whole_holds(
    drawn, row, col, height, width
):
    on_grid, whole = drawn
    window = Window(row=row, col=col, height=height, width=width)
    found = on_grid.read(window)
    inside = window.clip(height=300, width=420)
    expected = np.zeros((height, width), bool)
    expected[inside.slices_in(window)] = whole[inside.slices_in(on_grid.grid.window)]
    np.testing.assert_array_equal(found, expected)
    if expected.any():
        assert on_grid.touches(window)


def test_what_no_polygon_is_near_is_not_touched(drawn):
    on_grid, whole = drawn
    windows = [
        Window(row=row, col=col, height=20, width=20)
        for row in range(0, 300, 20)
        for col in range(0, 420, 20)
    ]
    touched = [on_grid.touches(window) for window in windows]
    holding = [whole[w.slices_in(on_grid.grid.window)].any() for w in windows]
    assert sum(holding) <= sum(touched) < sum(holding) + 40
    assert not on_grid.touches(Window(row=400, col=0, height=50, width=50))


def test_a_straight_edge_in_degrees_is_curved_in_metres(write):
    """A parallel of 4 degrees bulges by kilometres: corners alone would not do."""
    box = shapely.box(-101, 46.9, -97, 47.4)
    crs = CRS.from_epsg(32614)
    where = Affine(500, 0, 330_000, 0, -500, 5_280_000)
    grid = Grid(height=200, width=700, transform=where, crs=crs)
    found = open_region(write([box], crs="EPSG:4326")).on_grid(grid).read(grid.window)
    x, y = grid.locate_pixels(grid.window)
    lon, lat = (
        geopandas.GeoSeries.from_xy(x.ravel(), y.ravel(), crs=crs).to_crs(4326).x,
        geopandas.GeoSeries.from_xy(x.ravel(), y.ravel(), crs=crs).to_crs(4326).y,
    )
    expected = ((lon > -101) & (lon < -97) & (lat > 46.9) & (lat < 47.4)).to_numpy()
    np.testing.assert_array_equal(found.ravel(), expected)
    corners = geopandas.GeoSeries([box], crs=4326).to_crs(crs)
    assert (draw(corners, grid).ravel() != expected).mean() > 0.01


def test_a_region_in_a_far_larger_area_is_cut_to_the_scene(write):
    """Half of the world has no place in a UTM zone."""
    world = shapely.box(-180, 0, 180, 90)
    grid = make_grid()
    on_grid = open_region(write([world], crs="EPSG:4326")).on_grid(grid)
    assert on_grid.read(grid.window).all()


def test_a_region_beside_the_scene_leaves_nothing(write):
    grid = make_grid()
    on_grid = open_region(write([shapely.box(0, 0, 9, 9)])).on_grid(grid)
    assert not on_grid.touches(grid.window)
    assert not on_grid.read(grid.window).any()


def test_a_polygon_of_many_vertices_is_drawn_in_pieces_without_a_seam(write):
    grid = make_grid()
    x, y = grid.transform @ (200, 150)
    angles = np.linspace(0, 2 * np.pi, 40_001)[:-1]
    reach = 1100 + 60 * np.sin(angles * 180)
    edge = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
    star = shapely.Polygon(edge).difference(shapely.box(x - 99, y - 99, x + 99, y + 99))
    on_grid = open_region(write([star])).on_grid(grid)
    np.testing.assert_array_equal(on_grid.read(grid.window), draw([star], grid))
    assert shapely.get_num_coordinates(on_grid._pieces.shapes).max() <= 512


def test_thousands_of_fields_elsewhere_cost_a_scene_little(write):
    xs, ys = np.meshgrid(np.arange(100) * 5000.0, np.arange(100) * 5000.0)
    x, y = xs.ravel() + 300_000, ys.ravel() + 5_000_000
    region = open_region(write(shapely.box(x, y, x + 4000, y + 4000)))
    grid = make_grid()
    region.on_grid(grid).touches(grid.window)
    started = time.process_time()
    for _ in range(20):
        region.on_grid(grid).touches(grid.window)
    assert time.process_time() - started < 1
    assert len(region.on_grid(grid)._pieces.shapes) < 10


def test_a_region_can_be_pickled_and_reads_the_same(drawn):
    on_grid, whole = drawn
    text = pickle.dumps(on_grid)
    assert len(text) < 5000
    again = pickle.loads(text)  # noqa: S301 - our own
    assert again == on_grid
    np.testing.assert_array_equal(again.read(on_grid.grid.window), whole)


def test_the_fingerprint_follows_the_content(write):
    box = shapely.box(*ORIGIN, ORIGIN[0] + 99, ORIGIN[1] + 99)
    first = open_region(write([box], "a.parquet")).fingerprint
    assert open_region(write([box], "b.parquet")).fingerprint == first
    moved = write([translate(box, 1)], "b.parquet")
    assert open_region(moved).fingerprint != first


BOX = shapely.box(0, 0, 9, 9)
BOW_TIE = shapely.Polygon([(0, 0), (9, 9), (9, 0), (0, 9)])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([BOX, BOW_TIE, BOX], r"1 of 3 rows: row 2 \(Self-intersection.* is invalid"),
        ([BOX, None], "1 of 2 rows: row 2 has no geometry"),
        ([shapely.Polygon(), BOX], "row 1 has no geometry, or an empty one"),
        (
            [BOX, shapely.LineString([(0, 0), (9, 9)])],
            r"row 2 \(LineString\) is no poly",
        ),
    ],
)
def test_rows_that_are_no_good_polygons_are_told(write, shapes, message):
    with pytest.raises(DataError, match=message) as error:
        open_region(write(shapes, "fields.parquet"))
    assert error.value.exit_code == 3
    assert "QGIS" in str(error.value)


def test_a_file_without_rows_is_refused(write):
    with pytest.raises(DataError, match="no rows"):
        open_region(write([], "fields.parquet"))


def test_what_cannot_be_a_region_is_refused(tmp_path, write):
    with pytest.raises(DataFileNotFoundError, match=str(tmp_path)):
        open_region(tmp_path / "none.gpkg")
    (tmp_path / "points.csv").write_text("lon,lat\n1,2\n")
    with pytest.raises(DataError, match=r"ends in \.csv"):
        open_region(tmp_path / "points.csv")
    (tmp_path / "vrt.gpkg").write_text("<OGRVRTDataSource/>")
    with pytest.raises(UnsafeFileError):
        open_region(tmp_path / "vrt.gpkg")
    with pytest.raises(DataError, match="no CRS"):
        open_region(write([BOX], "plain.parquet", crs=None))
    with pytest.raises(DataError, match="has no layer `other`"):
        open_region(write([BOX]), layer="other")
