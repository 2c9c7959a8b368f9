"""Polygons are the areas of a map, whole, valid and without gaps."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.features import rasterize, shapes

from cropseg.errors import DataError, UsageError
from cropseg.inference.outputs import finished
from cropseg.inference.outputs.areas import measure_areas
from cropseg.inference.outputs.finished import open_map
from cropseg.inference.outputs.polygons import write_polygons

SQUARES = (11, 16, 1024)


@pytest.fixture(params=SQUARES)
def square(request, monkeypatch):
    """The side of the squares in which maps are read."""
    monkeypatch.setattr(finished, "CHUNK_PX", request.param)
    return request.param


@pytest.fixture
def polygonize(tmp_path):
    """Return a function that writes the polygons of maps and reads them back."""

    def write(*maps, ending=".gpkg", **options):
        path = tmp_path / f"polygons{ending}"
        num_polygons = write_polygons(maps, path, **options)
        read = geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet
        frame = read(path)
        assert len(frame) == num_polygons
        return frame

    return write


def list_shapes(class_ids, polygons):
    """Return what makes sets of polygons comparable, whatever their order."""
    normal = shapely.normalize(np.asarray(polygons, object))
    return sorted(zip(class_ids, shapely.to_wkb(normal, hex=True), strict=True))


def draw(frame, grid):
    """Return the class of every pixel centre."""
    pairs = list(zip(frame.geometry, frame.class_id, strict=True))
    shape = (grid.height, grid.width)
    return rasterize(pairs, shape, fill=255, transform=grid.transform, dtype="uint8")


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("sigma", [0.4, 2.0])
@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_polygons_are_those_of_gdal_whatever_the_squares(
    sigma, ending, write_map, draw_patches, make_grid, polygonize
):
    ids = draw_patches(sigma=sigma)
    frame = polygonize(write_map(ids), ending=ending)
    transform = make_grid().transform
    found = list(shapes(ids, ids != 255, 4, transform))
    assert len(found) > 30
    expected = list_shapes(
        [int(value) for _, value in found],
        [shapely.geometry.shape(geometry) for geometry, _ in found],
    )
    assert list_shapes(frame.class_id.tolist(), frame.geometry) == expected


def test_columns_tell_scene_class_and_area(write_map, draw_patches, polygonize):
    ids = draw_patches()
    frame = polygonize(write_map(ids, scene="north"))
    assert list(frame.columns) == ["scene", "class", "class_id", "area_m2", "geometry"]
    assert set(frame["scene"]) == {"north"}
    assert frame.crs.to_epsg() == 32614
    names = {0: "soybeans", 1: "wheat & rye", 2: "grassland", 3: "água"}
    assert frame["class"].tolist() == [names[i] for i in frame.class_id]
    np.testing.assert_allclose(frame.area_m2, frame.area)


@pytest.mark.usefixtures("square")
def test_areas_of_polygons_add_up_to_the_hectares_of_the_summary(
    write_map, draw_patches, polygonize
):
    a_map = write_map(draw_patches())
    hectares = {a.class_name: a.hectares for a in measure_areas(a_map)}
    frame = polygonize(a_map, simplify_m=12)
    found = frame.groupby("class").area_m2.sum() / 1e4
    assert found.to_dict() == pytest.approx(hectares)


@pytest.mark.usefixtures("square")
def test_the_confidence_is_a_column_where_it_is_known(
    write_map, draw_patches, polygonize
):
    ids = draw_patches()
    confidence = np.where(ids == 1, 0.5, 0.9)
    frame = polygonize(write_map(ids, confidence=confidence))
    expected = np.where(frame.class_id == 1, 0.5, 0.9)
    np.testing.assert_allclose(frame.confidence, expected, atol=1e-6)


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("simplify_m", [0, 12])
@pytest.mark.parametrize("min_area_m2", [800, 8000])
def test_a_least_area_holds_for_every_polygon(
    simplify_m, min_area_m2, write_map, draw_patches, polygonize
):
    ids = draw_patches(sigma=0.8)
    frame = polygonize(write_map(ids), min_area_m2=min_area_m2, simplify_m=simplify_m)
    assert frame.area_m2.min() >= min_area_m2
    assert frame.area_m2.sum() == (ids != 255).sum() * 80
    assert frame.is_valid.all()


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize(
    ("sigma", "simplify_m"),
    [
        (0.4, 40),
        (2.0, 6),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in ((0.4, 6), (0.4, 12), (2.0, 12), (2.0, 40))
        ),
    ],
)
def test_simplified_neighbours_share_their_borders(
    sigma, simplify_m, write_map, draw_patches, polygonize
):
    ids = draw_patches(sigma=sigma)
    ids[ids == 255] = 0  # so that all of the map is covered
    frame = polygonize(write_map(ids), simplify_m=simplify_m)
    assert frame.is_valid.all()
    # No gap and no overlap: the sum of the areas is that of their union, the map.
    whole = 70 * 53 * 80
    assert frame.area.sum() == pytest.approx(whole, rel=1e-9)
    assert shapely.union_all(frame.geometry.to_numpy()).area == pytest.approx(
        whole, rel=1e-9
    )
    assert len(frame) == len(polygonize(write_map(ids)))


@pytest.mark.usefixtures("square")
def test_simplifying_cuts_corners_off_and_moves_little(
    write_map, draw_patches, make_grid, polygonize
):
    ids = draw_patches(sigma=4)
    exact = polygonize(write_map(ids))
    simple = polygonize(write_map(ids), simplify_m=12)
    corners = [shapely.get_num_coordinates(f.geometry).sum() for f in (exact, simple)]
    assert corners[1] < 0.7 * corners[0]
    found = draw(simple, make_grid())
    assert (found == ids).mean() > 0.95
    # Corners are those of pixels.
    to_pixels = ~make_grid().transform
    places = shapely.get_coordinates(simple.geometry.to_numpy())
    pixels = np.array([to_pixels @ tuple(place) for place in places])
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-6)


def test_borders_are_simplified_where_a_third_class_begins_on_a_straight_edge(
    write_map, polygonize
):
    rows, cols = np.indices((40, 40))
    steps = 5 + cols // 2  # two pixels wide; below each, another class begins midway
    ids = np.where(rows < steps, 0, 1 + (cols + 1) // 2 % 2)
    exact, simple = (polygonize(write_map(ids), simplify_m=m) for m in (0, 10))
    corners = [
        shapely.get_num_coordinates(frame[frame.class_id == 0].geometry.iloc[0])
        for frame in (exact, simple)
    ]
    assert corners[0] == 2 * 20 + 3
    assert corners[1] <= 20 + 5


@pytest.mark.usefixtures("square")
def test_a_turned_map_has_turned_polygons(
    write_map, draw_patches, make_grid, polygonize
):
    turn = Affine.translation(600_005, 5_200_003) @ Affine.rotation(25)
    grid = make_grid(transform=turn @ Affine.scale(10, -8))
    ids = draw_patches()
    for simplify_m, least in ((0, 1.0), (8, 0.9)):
        frame = polygonize(write_map(ids, grid=grid), simplify_m=simplify_m)
        assert frame.is_valid.all()
        assert (draw(frame, grid) == ids).mean() >= least


@pytest.mark.usefixtures("square")
def test_a_map_in_degrees_has_areas_in_square_metres(
    write_map, draw_patches, make_grid, polygonize
):
    grid = make_grid(crs="EPSG:4326", transform=Affine(1e-4, 0, 11, 0, -1e-4, 57))
    frame = polygonize(write_map(draw_patches(), grid=grid), simplify_m=8)
    geod = frame.crs.get_geod()
    exact = polygonize(write_map(draw_patches(), grid=grid))
    areas = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in exact.geometry]
    np.testing.assert_allclose(exact.area_m2, areas, rtol=1e-5)
    assert frame.area_m2.sum() == pytest.approx(exact.area_m2.sum())
    assert frame.crs.to_epsg() == 4326


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_maps_of_a_batch_go_to_one_file_in_one_crs(
    ending, write_map, draw_patches, make_grid, polygonize
):
    one = write_map(draw_patches(), scene="one")
    empty = write_map(np.full((20, 30), 255), scene="empty")
    grid = make_grid(crs="EPSG:32615", transform=Affine(10, 0, 2e5, 0, -8, 5.2e6))
    two = write_map(draw_patches(seed=1), scene="two", grid=grid)
    frame = polygonize(one, empty, two, ending=ending)
    assert frame.crs.to_epsg() == 32614
    assert frame.groupby("scene").size().to_dict() == {
        "one": len(polygonize(one)),
        "two": len(polygonize(two)),
    }
    there = polygonize(two).to_crs(32614).total_bounds
    np.testing.assert_allclose(frame[frame.scene == "two"].total_bounds, there)


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
@pytest.mark.parametrize("simplify_m", [0, 10])
def test_a_map_without_data_has_a_file_without_polygons(
    ending, simplify_m, write_map, polygonize
):
    empty = write_map(np.full((20, 30), 255))
    frame = polygonize(empty, ending=ending, simplify_m=simplify_m)
    assert frame.empty
    assert frame.crs.to_epsg() == 32614


@pytest.mark.parametrize(
    ("options", "message"),
    [({"min_area_m2": -1}, "`min_area_m2` is -1"), ({"simplify_m": np.inf}, "inf")],
)
def test_numbers_below_nothing_are_refused(
    options, message, write_map, draw_patches, tmp_path
):
    with pytest.raises(UsageError, match=message):
        write_polygons([write_map(draw_patches())], tmp_path / "p.gpkg", **options)


def test_an_unknown_ending_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match=r"\.gpkg, \.parquet"):
        write_polygons([], tmp_path / "polygons.shp")


def test_a_damaged_map_leaves_no_file(write_map, draw_patches, tmp_path):
    good = write_map(draw_patches(), scene="good")
    noise = np.random.default_rng(0).integers(0, 4, (600, 700))
    bad = write_map(noise, scene="bad")
    content = bad.classes_path.read_bytes()
    bad.classes_path.write_bytes(content[: len(content) * 2 // 3])
    path = tmp_path / "out" / "polygons.gpkg"
    with pytest.raises(DataError):
        write_polygons([good, bad], path)
    assert list(path.parent.iterdir()) == []


def test_squares_at_the_edge_are_drawn_like_the_others(write_map):
    with open_map(write_map(np.ones((1, 1), "uint8"))) as reader:
        assert [w.height for w in reader.iterate_chunks()] == [1]
