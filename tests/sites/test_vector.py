"""Polygons and points as labels: what lies where, and which files are refused."""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import rasterize

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites import vector
from cropseg.sites.grid import Grid, Window
from cropseg.sites.vector import NO_FIELD, VectorSource, open_fields

DATA = Path(__file__).parents[2].parent / "shared" / "data"
PRAIRIE_DIR, DENMARK_DIR = DATA / "prairie", DATA / "denmark"
UTM = CRS.from_epsg(32614)
DEGREES = CRS.from_epsg(4326)
US_FEET = CRS.from_epsg(2264)
X, Y = 600_005.0, 5_200_003.0
TRANSFORMS = {
    "north up": Affine.scale(10, -8),
    "south up": Affine.scale(10, 8),
    "rotated": Affine.rotation(30) @ Affine.scale(10, -8),
}
ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".parquet", ".geoparquet")
VRT = "<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>{}</SrcDataSource>"


def make_grid(kind="north up", *, height=19, width=26, crs=UTM):
    transform = Affine.translation(X, Y) @ TRANSFORMS[kind]
    return Grid(height=height, width=width, transform=transform, crs=crs)


def make_box(cols, rows, grid=None):
    """Return the polygon of a rectangle of pixels, on the default grid."""
    transform = (grid or make_grid()).transform
    corners = zip(
        [cols[0], cols[1], cols[1], cols[0]],
        [rows[0], rows[0], rows[1], rows[1]],
        strict=True,
    )
    return shapely.Polygon([transform @ corner for corner in corners])


def make_point(col, row, grid=None):
    return shapely.Point((grid or make_grid()).transform @ (col, row))


@pytest.fixture
def open_shapes(tmp_path, write_shapes):
    """Return a function that writes shapes to a GeoPackage and opens them."""

    def open_them(shapes, *, crs=UTM, columns=None, image_crs=None, **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gpkg"
        write_shapes(path, shapes, crs=crs, **(columns or {}))
        source = VectorSource(path=path, field="crop", **options)
        return open_fields(source, image_crs or crs)

    return open_them


def draw_random_shapes(seed, grid):
    """Return convex polygons of many sizes, over and beyond a grid."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    centres = rng.uniform(-8, [grid.width + 8, grid.height + 8], (count, 2))
    offsets = rng.normal(0, rng.uniform(0.5, 9, (count, 1, 1)), (count, 6, 2))
    places = centres[:, None] + offsets
    # Corners on pixel corners and centres, where a tie could be decided either way.
    places = np.where(rng.random((count, 1, 1)) < 0.4, np.round(places * 2) / 2, places)
    hulls = [
        shapely.MultiPoint([grid.transform @ tuple(p) for p in points]).convex_hull
        for points in places.tolist()
    ]
    return [hull for hull in hulls if hull.geom_type == "Polygon"] or [
        make_box((1, 3), (1, 4), grid)
    ]


def find_ties(fields, grid):
    """Return which pixels a field meets without sharing area with them.

    Whether it touches them depends, in GDAL, on where the raster ends.
    """
    rows, cols = np.mgrid[: grid.height, : grid.width].reshape(2, -1)
    places = zip(rows.tolist(), cols.tolist(), strict=True)
    pixels = [make_box((col, col + 1), (row, row + 1), grid) for row, col in places]
    ties = np.zeros(len(pixels), bool)
    for shape in fields.geometries:
        shared = shapely.area(shapely.intersection(shape, pixels))
        ties |= (shared < 1e-4) & (shapely.distance(shape, pixels) < 1e-6)
    return ties.reshape(grid.height, grid.width)


def measure_distances(fields, grid):
    """Return how far every pixel centre is from the nearest border of a field."""
    borders = shapely.GeometryCollection(list(shapely.boundary(fields.geometries)))
    return shapely.distance(shapely.points(*grid.locate_pixels(grid.window)), borders)


kinds = st.sampled_from(sorted(TRANSFORMS))
seeds = st.integers(0, 10_000)
windows = st.builds(
    Window,
    row=st.integers(-30, 50),
    col=st.integers(-30, 60),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
)


@pytest.fixture(scope="module")
def open_random(tmp_path_factory, write_shapes):
    folder = tmp_path_factory.mktemp("random")

    def open_them(seed, grid, **options):
        path = folder / f"{seed}.parquet"
        write_shapes(path, draw_random_shapes(seed, grid), crs=grid.crs)
        return open_fields(VectorSource(path=path, field="crop", **options), grid.crs)

    return open_them


@given(kind=kinds, seed=seeds, all_touched=st.booleans())
@example(kind="north up", seed=420, all_touched=True)  # an edge through a corner
@settings(max_examples=60, deadline=None)
def test_polygons_lie_where_rasterio_puts_them_and_the_smaller_wins(
    open_random, kind, seed, all_touched
):
    grid = make_grid(kind)
    fields = open_random(seed, grid, all_touched=all_touched)

    ids = fields.rasterize(grid, grid.window)

    order = np.argsort(-fields.areas_m2, kind="stable")
    expected = rasterize(
        [(fields.geometries[index], int(index)) for index in order],
        out_shape=(grid.height, grid.width),
        fill=NO_FIELD,
        transform=grid.transform,
        all_touched=all_touched,
        dtype="int32",
    )
    is_sure = ~find_ties(fields, grid) if all_touched else np.True_
    np.testing.assert_array_equal(
        np.where(is_sure, ids, NO_FIELD), np.where(is_sure, expected, NO_FIELD)
    )
    assert ids.dtype == np.int32


@given(kind=kinds, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_a_polygon_labels_the_pixels_whose_centre_it_holds(open_random, kind, seed):
    grid = make_grid(kind)
    fields = open_random(seed, grid)
    x, y = grid.locate_pixels(grid.window)

    ids = fields.rasterize(grid, grid.window)

    held = [shapely.contains_xy(shape, x, y) for shape in fields.geometries]
    is_sure = measure_distances(fields, grid) > 1e-6
    np.testing.assert_array_equal((ids != NO_FIELD)[is_sure], np.any(held, 0)[is_sure])


@given(
    kind=kinds,
    seed=seeds,
    window=windows,
    options=st.sampled_from([{}, {"all_touched": True}, {"edge_buffer_m": 11.0}]),
)
@settings(max_examples=50, deadline=None)
def test_a_window_is_the_crop_of_the_whole(open_random, kind, seed, window, options):
    grid = make_grid(kind)
    fields = open_random(seed, grid, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector, "BLOCK_PX", 7)  # so that a small grid has seams
        whole = fields.rasterize(grid, grid.window)
        ids = fields.rasterize(grid, window)

    padded = np.pad(whole, 120, constant_values=NO_FIELD)
    rows, cols = window.slices_in(Window(row=-120, col=-120, height=0, width=0))
    np.testing.assert_array_equal(ids, padded[rows, cols])


@given(kind=kinds, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_seams_between_blocks_are_not_seen(open_random, kind, seed):
    grid = make_grid(kind)
    fields = open_random(seed, grid)
    whole = fields.rasterize(grid, grid.window)
    is_sure = measure_distances(fields, grid) > 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector, "BLOCK_PX", 5)
        ids = fields.rasterize(grid, grid.window)

    np.testing.assert_array_equal(ids[is_sure], whole[is_sure])


def test_of_two_fields_of_one_size_the_later_wins(open_shapes):
    fields = open_shapes([make_box((2, 8), (3, 6)), make_box((5, 11), (3, 6))])
    ids = fields.rasterize(make_grid(), Window(row=4, col=0, height=1, width=13))
    assert ids.tolist() == [[-1, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1, -1]]


def test_a_small_field_without_a_value_hides_the_large_one_below(open_shapes):
    shapes = [make_box((3, 5), (2, 4)), make_box((1, 8), (1, 6))]
    fields = open_shapes(shapes, columns={"crop": [None, "wheat"]})

    ids = fields.rasterize(make_grid(), make_grid().window)

    assert fields.values == (None, "wheat")
    assert fields.num_unlabelled == 1
    assert (ids[2:4, 3:5] == NO_FIELD).all()
    assert (ids == 1).sum() == 35 - 4
    assert not (ids == 0).any()


@pytest.mark.parametrize("value", [None, math.nan, "", "  "])
def test_what_is_no_value_labels_nothing(tmp_path, value, make_feature, write_geojson):
    feature = make_feature(make_point(4.5, 3.5), crop=value)
    path = write_geojson(tmp_path / "a.geojson", feature, crs=name_crs("EPSG:32614"))
    fields = open_fields(VectorSource(path=path, field="crop"), UTM)
    assert fields.values == (None,)
    assert (fields.rasterize(make_grid(), make_grid().window) == NO_FIELD).all()


def name_crs(name):
    return {"type": "name", "properties": {"name": name}}


def test_a_multipolygon_is_one_field(open_shapes):
    parts = [make_box((1, 3), (1, 4)), make_box((20, 24), (12, 15))]
    fields = open_shapes([shapely.MultiPolygon(parts)])

    ids = fields.rasterize(make_grid(), make_grid().window)

    assert len(fields.values) == 1
    assert fields.areas_m2.tolist() == pytest.approx([(2 * 3 + 4 * 3) * 80])
    assert (ids == 0).sum() == 2 * 3 + 4 * 3
    assert ids[2, 2] == ids[13, 22] == 0


def test_a_hole_is_no_field(open_shapes):
    shape = make_box((1, 9), (1, 9)).difference(make_box((3, 5), (4, 7)))
    ids = open_shapes([shape]).rasterize(make_grid(), make_grid().window)
    assert (ids[4:7, 3:5] == NO_FIELD).all()
    assert (ids == 0).sum() == 64 - 6


def test_outside_the_grid_there_is_no_field(open_shapes):
    fields = open_shapes([make_box((-9, 90), (-9, 90))])
    window = Window(row=-2, col=-3, height=24, width=33)

    ids = fields.rasterize(make_grid(), window)

    inside = np.pad(np.zeros((19, 26)), ((2, 3), (3, 4)), constant_values=NO_FIELD)
    np.testing.assert_array_equal(ids, inside)
    far = Window(row=500, col=-700, height=3, width=4)
    assert (fields.rasterize(make_grid(), far) == NO_FIELD).all()


def test_a_grid_in_another_crs_is_refused(open_shapes):
    fields = open_shapes([make_box((1, 3), (1, 4))])
    grid = make_grid(crs=CRS.from_epsg(32615))
    with pytest.raises(DataError, match=r"opened in EPSG:32614, .* in EPSG:32615"):
        fields.rasterize(grid, grid.window)


@given(kind=kinds, seed=seeds, edge_m=st.floats(1, 60))
@settings(max_examples=30, deadline=None)
def test_pixels_nearer_than_the_edge_buffer_to_their_border_are_unknown(
    open_random, kind, seed, edge_m
):
    grid = make_grid(kind)
    fields = open_random(seed, grid, edge_buffer_m=edge_m)
    all_ids = open_random(seed, grid).rasterize(grid, grid.window)

    ids = fields.rasterize(grid, grid.window)

    centres = shapely.points(*grid.locate_pixels(grid.window))
    borders = shapely.boundary(fields.geometries)[np.maximum(all_ids, 0)]
    distances = shapely.distance(centres, borders)
    is_core = (all_ids != NO_FIELD) & (distances >= edge_m)
    is_sure = abs(distances - edge_m) > 0.001 * edge_m
    expected = np.where(is_core, all_ids, NO_FIELD)
    np.testing.assert_array_equal(ids[is_sure], expected[is_sure])


def test_an_edge_buffer_is_round_at_a_corner_that_points_inwards(open_shapes):
    grid = make_grid(height=60, width=80)
    shape = make_box((0, 80), (0, 60)).difference(make_box((30, 33), (20, 24)))
    fields = open_shapes([shape], edge_buffer_m=90)

    ids = fields.rasterize(grid, grid.window)

    centres = shapely.points(*grid.locate_pixels(grid.window))
    distances = shapely.distance(centres, shape.boundary)
    is_sure = abs(distances - 90) > 0.09
    np.testing.assert_array_equal((ids == 0)[is_sure], (distances >= 90)[is_sure])


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("buffer_m", [29.0, 47.0, 70.0])
def test_a_disc_is_whole_on_every_grid(open_shapes, kind, buffer_m):
    grid = make_grid(kind)
    point = make_point(12.6, 9.3, grid)
    x, y = grid.locate_pixels(grid.window)

    ids = open_shapes([point], buffer_m=buffer_m).rasterize(grid, grid.window)

    expected = np.hypot(x - point.x, y - point.y) <= buffer_m
    np.testing.assert_array_equal(ids == 0, expected)


def test_a_field_that_vanishes_under_the_edge_buffer_is_unknown(open_shapes):
    shapes = [make_box((3, 5), (2, 4)), make_box((0, 20), (0, 18))]
    fields = open_shapes(shapes, edge_buffer_m=12)

    ids = fields.rasterize(make_grid(), make_grid().window)

    assert len(fields.values) == 2
    assert (ids[2:4, 3:5] == NO_FIELD).all()
    assert ids[9, 9] == 1


@pytest.mark.parametrize(("edge_m", "num_left"), [(0.6, 14), (3.1, 12), (6.2, 10)])
def test_an_edge_buffer_in_a_crs_of_feet_is_in_metres(open_shapes, edge_m, num_left):
    # Pixels of 10 x 8 feet; centres are 5, 15 and 25 feet from the left border.
    grid = make_grid(crs=US_FEET)
    shape = make_box((2, 16), (-99, 99), grid)
    fields = open_shapes([shape], crs=US_FEET, edge_buffer_m=edge_m)
    row = fields.rasterize(grid, Window(row=9, col=0, height=1, width=26))
    assert (row == 0).sum() == num_left
    assert fields.areas_m2[0] == pytest.approx(140 * 198 * 8 * 0.3048006096**2)


@pytest.mark.parametrize("option", ["edge_buffer_m", "buffer_m"])
def test_metres_in_a_crs_of_degrees_are_refused(tmp_path, option, write_shapes):
    path = write_shapes(tmp_path / "a.gpkg", [make_box((1, 3), (1, 4))])
    source = VectorSource(path=path, field="crop", **{option: 3.0})
    with pytest.raises(DataError, match=rf"`{option}` .*EPSG:4326.*Set `crs`"):
        open_fields(source, DEGREES)


def test_areas_in_a_crs_of_degrees_are_square_metres_on_the_ground(open_shapes):
    shape = make_box((0, 40), (0, 50))
    fields = open_shapes([shape], image_crs=DEGREES)
    assert fields.areas_m2 == pytest.approx([40 * 50 * 80], rel=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_buffer_m": -1.0}, "`edge_buffer_m` is -1; it must be 0 or more"),
        ({"buffer_m": math.inf}, "`buffer_m` is inf"),
        ({"all_touched": True, "edge_buffer_m": 3.0}, "Leave one of them out"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        VectorSource(path=Path("a.gpkg"), field="crop", **options)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (make_box((1, 3), (1, 4)), {"buffer_m": 5.0}, "polygons, .*`buffer_m`"),
        (make_point(1, 3), {"edge_buffer_m": 5.0}, "points, .*`edge_buffer_m`"),
        (make_point(1, 3), {"all_touched": True}, "points, .*`all_touched`"),
    ],
)
def test_an_option_of_the_other_kind_of_shape_is_refused(
    open_shapes, shape, options, message
):
    with pytest.raises(DataError, match=message):
        open_shapes([shape], **options)


@given(
    kind=kinds,
    places=st.lists(
        st.tuples(st.floats(-2, 28), st.floats(-2, 21), st.integers(1, 2)),
        min_size=1,
        max_size=6,
    ),
    buffer_m=st.sampled_from([0.0, 3.0, 17.0, 60.0]),
    window=windows,
)
@settings(max_examples=80, deadline=None)
def test_points_label_their_pixel_and_disc_and_clash_where_values_differ(
    tmp_path_factory, kind, places, buffer_m, window, write_shapes
):
    grid = make_grid(kind)
    points = [make_point(col, row, grid) for col, row, _ in places]
    values = [value for _, _, value in places]
    path = write_shapes(tmp_path_factory.mktemp("p") / "a.parquet", points, crop=values)
    source = VectorSource(path=path, field="crop", buffer_m=buffer_m)

    fields = open_fields(source, UTM)
    whole = fields.rasterize(grid, grid.window)

    x, y = grid.locate_pixels(grid.window)
    labels = [set() for _ in range(whole.size)]
    for point, value in zip(points, values, strict=True):
        near = np.hypot(x - point.x, y - point.y) <= buffer_m
        col, row = map(math.floor, ~grid.transform @ (point.x, point.y))
        if 0 <= row < grid.height and 0 <= col < grid.width:
            near[row, col] = True
        for index in np.flatnonzero(near):
            labels[index].add(value)
    expected = [found.pop() if len(found) == 1 else 0 for found in labels]
    table = np.array([*values, 0])
    assert table[whole].ravel().tolist() == expected
    padded = np.pad(whole, 120, constant_values=NO_FIELD)
    rows, cols = window.slices_in(Window(row=-120, col=-120, height=0, width=0))
    np.testing.assert_array_equal(fields.rasterize(grid, window), padded[rows, cols])


def test_points_across_a_seam_label_as_in_one_block(open_shapes):
    rng = np.random.default_rng(3)
    places = rng.uniform(0, [26, 19], (30, 2)).tolist()
    columns = {"crop": rng.integers(1, 4, 30)}
    points = [make_point(*place) for place in places]
    fields = open_shapes(points, columns=columns, buffer_m=14)
    whole = fields.rasterize(make_grid(), make_grid().window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector, "BLOCK_PX", 5)
        ids = fields.rasterize(make_grid(), make_grid().window)

    np.testing.assert_array_equal(ids, whole)
    assert len(np.unique(ids)) > 10


def test_a_point_without_a_value_makes_the_discs_it_meets_unknown(open_shapes):
    points = [make_point(5.5, 5.5), make_point(5.6, 5.6)]
    fields = open_shapes(points, columns={"crop": ["wheat", None]})
    assert (fields.rasterize(make_grid(), make_grid().window) == NO_FIELD).all()


def test_several_points_may_be_one_field(open_shapes):
    shape = shapely.MultiPoint([make_point(2.5, 3.5), make_point(9.5, 7.5)])
    fields = open_shapes([shape], buffer_m=2)

    ids = fields.rasterize(make_grid(), make_grid().window)

    assert np.argwhere(ids == 0).tolist() == [[3, 2], [7, 9]]
    assert fields.areas_m2 == pytest.approx([2 * math.pi * 4])


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".parquet", ".shp"])
def test_numbers_have_the_text_that_classes_are_looked_up_by(
    tmp_path, ending, write_shapes
):
    shapes = [make_point(col, 3) for col in range(4)]
    values = [5.0, 2.5, math.nan, 300.0]
    path = write_shapes(tmp_path / f"a{ending}", shapes, crop=values)
    fields = open_fields(VectorSource(path=path, field="crop"), UTM)
    assert fields.values == ("5", "2.5", None, "300")
    assert fields.count_values() == {"5": 1, "2.5": 1, "300": 1}


@pytest.mark.parametrize("change", [{"field": "Kropp"}, {"layer": "b"}])
def test_the_field_and_the_layer_must_be_there(tmp_path, change, write_shapes):
    path = write_shapes(tmp_path / "a.gpkg", [make_box((2, 8), (3, 6))])
    source = VectorSource(path=path, **({"field": "crop", "layer": "a"} | change))
    with pytest.raises(DataError, match="The nearest is"):
        open_fields(source, UTM)


def test_a_filter_on_a_field_that_is_not_there_is_refused(open_shapes):
    with pytest.raises(DataError, match=r"no field `years`.* nearest is `year`"):
        open_shapes(
            [make_box((2, 8), (3, 6))],
            columns={"crop": ["a"], "year": [2016]},
            filter=(("years", (2016,)),),
        )


def test_a_crs_that_is_not_known_is_refused(tmp_path, make_feature, write_geojson):
    feature = make_feature(make_point(1, 2), crop=1)
    path = write_geojson(tmp_path / "a.geojson", feature, crs=name_crs("EPSG:999999"))
    with pytest.raises(DataError, match="There is no way from the CRS"):
        open_fields(VectorSource(path=path, field="crop"), UTM)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataFileNotFoundError, match=r"missing\.gpkg"):
        open_fields(VectorSource(path=tmp_path / "missing.gpkg", field="crop"), UTM)


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".json", ".shp", ".parquet"])
def test_a_file_in_another_crs_is_brought_to_that_of_the_image(
    tmp_path, ending, write_shapes
):
    shape = make_box((2, 8), (3, 6))
    moved = geopandas.GeoSeries([shape], crs=UTM).to_crs(4326)
    path = write_shapes(tmp_path / f"a{ending}", moved, crs=4326)

    fields = open_fields(VectorSource(path=path, field="crop"), UTM)

    # GeoJSON is written with seven digits, a centimetre.
    assert shapely.hausdorff_distance(fields.geometries[0], shape) < 0.02
    ids = fields.rasterize(make_grid(), make_grid().window)
    assert (ids[3:6, 2:8] == 0).all()
    assert (ids == 0).sum() == 18


def test_a_crs_written_in_another_way_moves_no_corner(open_shapes):
    shape = make_box((2, 8), (3, 6))
    crs = CRS.from_wkt(UTM.to_wkt(version="WKT1_ESRI"))
    fields = open_shapes([shape], image_crs=crs)
    assert fields.geometries[0].equals_exact(shape, 0)


@pytest.mark.parametrize("kept", [(2016,), ("2016", 2014)])
def test_a_filter_keeps_the_rows_with_one_of_its_values(open_shapes, kept):
    shapes = [make_box((col, col + 2), (1, 3)) for col in (0, 5, 10, 15)]
    columns = {
        "crop": ["a", "b", "c", "d"],
        "year": [2016, 2015, 2016, None],
        "use": ["arable", "arable", "forest", "arable"],
    }
    fields = open_shapes(
        shapes, columns=columns, filter=(("year", kept), ("use", ("arable",)))
    )
    assert fields.values == ("a",)
    assert fields.num_left_out == 3


def test_a_filter_that_keeps_nothing_says_what_there_is(open_shapes):
    columns = {"crop": ["a", "b"], "year": [2016, 2015]}
    shapes = [make_point(1, 2), make_point(3, 4)]
    with pytest.raises(DataError, match=r"none of the 2 rows .* `year` is 2016, 2015"):
        open_shapes(shapes, columns=columns, filter=(("year", (2020,)),))


def test_invalid_polygons_are_repaired_and_empty_ones_dropped(open_shapes):
    corners = [(2, 3), (8, 9), (8, 3), (2, 9)]  # a bow tie, 9 pixels a wing
    bow = shapely.Polygon([make_grid().transform @ corner for corner in corners])
    shapes = [None, bow, shapely.Polygon(), make_box((12, 14), (3, 6))]

    fields = open_shapes(shapes)

    assert fields.values == ("2", "4")
    assert (fields.num_repaired, fields.num_dropped) == (1, 2)
    assert shapely.is_valid(fields.geometries).all()
    assert fields.areas_m2 == pytest.approx([2 * 9 * 80, 6 * 80])
    ids = fields.rasterize(make_grid(), make_grid().window)
    assert ids[6, 2] == ids[6, 7] == 0
    assert ids[3, 5] == ids[8, 4] == NO_FIELD


def test_a_polygon_that_is_but_a_line_is_dropped(open_shapes):
    flat = shapely.Polygon([(X, Y), (X + 90, Y), (X + 30, Y), (X, Y)])
    fields = open_shapes([flat, make_box((12, 14), (3, 6))])
    assert fields.values == ("2",)
    assert (fields.num_repaired, fields.num_dropped) == (0, 1)


def test_parts_that_overlap_are_one_area(open_shapes):
    parts = [make_box((2, 8), (3, 9)), make_box((5, 11), (3, 9))]
    fields = open_shapes([shapely.MultiPolygon(parts)])
    assert fields.num_repaired == 1
    assert fields.areas_m2 == pytest.approx([9 * 6 * 80])


def test_what_has_no_place_in_the_crs_is_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("lon,lat,crop\n-97.5,46.9,a\n,,b\nnan,46,c\n-9,0,d\n")
    fields = open_fields(VectorSource(path=path, field="crop"), UTM)
    assert fields.values == ("a",)
    assert fields.num_dropped == 3


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_polygon_with_a_corner_nowhere_is_dropped_and_not_repaired(
    tmp_path, value, write_shapes
):
    corners = [(X, Y), (X + 90, Y), (X + 90, value), (X + 40, Y + 90), (X, Y + 90)]
    with np.errstate(invalid="ignore"):
        shapes = [shapely.Polygon(corners), make_box((12, 14), (3, 6))]
    path = write_shapes(tmp_path / "a.parquet", shapes)
    fields = open_fields(VectorSource(path=path, field="crop"), UTM)
    assert fields.values == ("2",)
    assert (fields.num_repaired, fields.num_dropped) == (0, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shapely.LineString([(0, 0), (1, 2)])], "1 LineString; expected polygons"),
        (
            [make_point(1, 2), make_box((1, 2), (3, 5)), make_point(3, 4)],
            "2 Point, 1 Polygon",
        ),
        ([None, shapely.Polygon()], "None of the 2 rows"),
        ([], "has no rows"),
    ],
)
def test_shapes_that_label_nothing_are_refused(tmp_path, shapes, message, write_shapes):
    path = write_shapes(tmp_path / "a.parquet", shapes, crop=["a"] * len(shapes))
    with pytest.raises(DataError, match=message):
        open_fields(VectorSource(path=path, field="crop"), UTM)


def test_heights_are_left_out(open_shapes):
    shape = shapely.force_3d(make_box((2, 8), (3, 6)), 7.0)
    fields = open_shapes([shape])
    assert not shapely.has_z(fields.geometries).any()


def test_overlaps_are_counted_and_slivers_are_not(open_shapes):
    shapes = [
        make_box((0, 8), (0, 5)),
        make_box((7.99, 12), (0, 5)),  # a sliver of the first
        make_box((12, 20), (0, 5)),  # a border with the second
        make_box((13, 15), (1, 3)),  # inside the third
    ]
    assert open_shapes(shapes).count_overlaps() == 2
    assert open_shapes([make_point(1, 1), make_point(1, 1)]).count_overlaps() == 0


def test_csv_in_degrees_and_in_the_crs_of_the_image(tmp_path):
    point = make_point(4.5, 3.5)
    lon, lat = geopandas.GeoSeries([point], crs=UTM).to_crs(4326)[0].coords[0]
    in_degrees, in_metres = tmp_path / "degrees.csv", tmp_path / "metres.csv"
    in_degrees.write_text(f"\ufefflon,lat,crop\n{lon},{lat},Ærter\n", "utf-8")
    in_metres.write_text(f"crop,x,y\nÆrter,{point.x},{point.y}\n", "latin-1")
    for path in (in_degrees, in_metres):
        fields = open_fields(VectorSource(path=path, field="crop"), UTM)
        ids = fields.rasterize(make_grid(), make_grid().window)
        assert fields.values == ("Ærter",)
        assert np.argwhere(ids == 0).tolist() == [[3, 4]]


def test_a_file_is_read_once_until_it_changes(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a.gpkg", [make_box((2, 8), (3, 6))], crop=["a"])
    source = VectorSource(path=path, field="crop")
    first = open_fields(source, UTM)
    assert open_fields(source, CRS.from_epsg(32614)) is first
    path.unlink()
    write_shapes(path, [make_box((2, 8), (3, 6))], crop=["b"])
    os.utime(path, (2e9, 2e9))
    assert open_fields(source, UTM).values == ("b",)


def test_a_changed_companion_of_a_shapefile_is_seen(tmp_path, write_shapes):
    path = write_shapes(tmp_path / "a.shp", [make_box((2, 8), (3, 6))], crop=["a"])
    source = VectorSource(path=path, field="crop")
    assert open_fields(source, UTM).values == ("a",)
    table = path.with_suffix(".dbf")
    table.write_bytes(table.read_bytes().replace(b" a", b" b").replace(b"a  ", b"b  "))
    os.utime(table, (2e9, 2e9))
    assert open_fields(source, UTM).values == ("b",)


def test_what_a_caller_does_to_a_window_changes_no_other(open_shapes):
    fields = open_shapes([make_box((2, 8), (3, 6))])
    fields.rasterize(make_grid(), make_grid().window)[:] = 7
    assert (fields.rasterize(make_grid(), make_grid().window) == 0).sum() == 18


def test_several_threads_draw_the_same_and_leave_the_warnings_alone(open_random):
    grid = make_grid()
    fields = open_random(77, grid, edge_buffer_m=2.0)
    expected = fields.rasterize(grid, grid.window)
    before = list(warnings.filters)

    def draw(number):
        if number % 3 == 0:
            vector._draw_block.cache_clear()
        return fields.rasterize(grid, grid.window)

    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(draw, range(3000)))

    assert all((ids == expected).all() for ids in drawn)
    assert warnings.filters == before


@pytest.mark.skipif(
    not PRAIRIE_DIR.is_dir(), reason="../shared/data/prairie is not there"
)
def test_the_prairie_parcels_lie_on_the_labels_they_were_made_from():
    with rasterio.open(PRAIRIE_DIR / "rural_area_2_labels.tif") as dataset:
        labels = dataset.read(1)
        grid = Grid(
            height=dataset.height,
            width=dataset.width,
            transform=dataset.transform,
            crs=dataset.crs,
        )
    path = PRAIRIE_DIR / "rural_area_2_parcels.gpkg"
    fields = open_fields(VectorSource(path=path, field="code"), grid.crs)

    ids = fields.rasterize(grid, grid.window)

    assert len(fields.values) == 710
    assert fields.num_repaired == fields.num_dropped == fields.num_unlabelled == 0
    drawn = np.array([int(value or 0) for value in fields.values] + [-1])[ids]
    agreement = {
        (rows, cols): (np.roll(drawn, (rows, cols), (0, 1)) == labels)[
            np.roll(ids, (rows, cols), (0, 1)) != NO_FIELD
        ].mean()
        for rows in (-1, 0, 1)
        for cols in (-1, 0, 1)
    }
    assert agreement[0, 0] == pytest.approx(0.8595, abs=0.001)
    assert all(share < 0.84 for shift, share in agreement.items() if any(shift))


@pytest.mark.skipif(
    not DENMARK_DIR.is_dir(), reason="../shared/data/denmark is not there"
)
def test_the_danish_fields_have_danish_names():
    path = DENMARK_DIR / "marker2016_small.shp"
    fields = open_fields(
        VectorSource(path=path, field="Afgroede"), CRS.from_epsg(32632)
    )
    counts = fields.count_values()
    assert len(fields.values) == 276
    assert (fields.num_repaired, fields.num_unlabelled) == (0, 1)
    assert counts["Vårbyg"] == 76
    assert counts["Græs med kløver/lucerne"] == 49
    assert counts["Juletræer og pyntegrønt"] == 6
    codes = open_fields(VectorSource(path=path, field="AfgKode"), CRS.from_epsg(32632))
    assert codes.count_values()["260"] == 49
    assert fields.areas_m2.sum() == pytest.approx(14_571_125, rel=1e-6)
