"""Labels of any kind read as class ids on the image's grid; 255 where unknown."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.features import rasterize

from cropseg.errors import DataError, UnsafeFileError
from cropseg.sites import labels
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site
from cropseg.sites.vector import NO_FIELD

HEIGHT, WIDTH = 60, 88
WHERE = Affine(10, 0, 600_005, 0, -8, 5_200_003)
NAMES = ("hvede", "rødkløver", "majs")
CLASSES = [
    {"name": "wheat", "color": "#112233", "values": ["hvede", 22]},
    {"name": "clover", "color": "#445566", "values": ["rødkløver", 5]},
    {"name": "maize", "color": "#778899", "values": ["majs", 300]},
]


@pytest.fixture
def open_labelled(tmp_path, write_raster):
    """Return a function that opens a site of one scene with the labels given."""

    def open_it(entry, *, transform=WHERE, crs="EPSG:32614", **manifest):
        image = np.ones((HEIGHT, WIDTH, 2), "uint8")
        write_raster(tmp_path / "image.tif", image, transform=transform, crs=crs)
        document = {
            "site": "made up",
            "bands": ["red", "nir"],
            "classes": CLASSES,
            "ignore": [0],
            "scenes": [{"image": "image.tif", **entry}],
        } | manifest
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(document))
        return open_site(tmp_path / "site.yaml")

    return open_it


def read_labels(site, window=None):
    scene = site.scenes[0]
    with site.open_scene(scene) as reader:
        return reader.read_labels(window or scene.grid.window)


def draw_codes(*, dtype="uint16", seed=0):
    """Return label codes of fields of 7 x 9 pixels."""
    fields = np.random.default_rng(seed).choice([0, 5, 22, 300], (9, 10))
    codes = fields.repeat(7, axis=0).repeat(9, axis=1)[:HEIGHT, :WIDTH]
    return codes.astype(dtype)


def encode(codes):
    table = {0: IGNORE, 5: 1, 22: 0, 300: 2}
    return np.vectorize(table.__getitem__, otypes=["uint8"])(codes)


def make_boxes(cols, *, rows=(5, 40), width=20):
    """Return rectangles of pixels."""
    return [
        shapely.Polygon(
            [
                WHERE @ corner
                for corner in (
                    (col, rows[0]),
                    (col + width, rows[0]),
                    (col + width, rows[1]),
                    (col, rows[1]),
                )
            ]
        )
        for col in cols
    ]


def write_fields(path, shapes, crs="EPSG:32614", **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32614")
    frame.to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64", "uint32"])
def test_label_rasters_of_any_dtype_mean_the_same(
    tmp_path, write_raster, open_labelled, dtype
):
    codes = draw_codes(dtype=dtype)
    write_raster(tmp_path / "labels.tif", codes, transform=WHERE)

    site = open_labelled({"labels": "labels.tif"})

    np.testing.assert_array_equal(read_labels(site), encode(codes))


@pytest.mark.parametrize(
    ("scale", "transform"),
    [
        (2, WHERE @ Affine.scale(0.5)),
        (1, WHERE @ Affine.translation(-6, 4)),
        (1, WHERE @ Affine.translation(0.25, 0)),
    ],
)
def test_labels_on_another_grid_need_to_be_resampled(
    tmp_path, write_raster, open_labelled, scale, transform
):
    codes = draw_codes().repeat(scale, axis=0).repeat(scale, axis=1)
    write_raster(tmp_path / "labels.tif", codes, transform=transform)

    with pytest.raises(DataError, match=r"labels\.tif .*`resample_labels: true`"):
        open_labelled({"labels": "labels.tif"})
    site = open_labelled({"labels": "labels.tif", "resample_labels": True})

    found = read_labels(site)
    expected = encode(draw_codes())
    if transform.c < WHERE.c:  # 6 columns west, 4 rows south
        np.testing.assert_array_equal(found[4:, :-6], expected[:-4, 6:])
        assert (found[:4] == IGNORE).all()
        assert (found[:, -6:] == IGNORE).all()
    else:
        np.testing.assert_array_equal(found, expected)


def test_labels_in_another_crs_are_brought_to_the_image(
    tmp_path, write_raster, open_labelled
):
    where = Affine(1e-4, 0, -97.71, 0, -1e-4, 46.96)
    codes = np.zeros((400, 500), "uint16")
    field = make_boxes([30], rows=(10, 50), width=40)
    shape = geopandas.GeoSeries(field, crs="EPSG:32614").to_crs("EPSG:4326").iloc[0]
    codes = rasterize([(shape, 300)], out_shape=codes.shape, transform=where)
    write_raster(
        tmp_path / "labels.tif",
        codes.astype("uint16"),
        transform=where,
        crs="EPSG:4326",
    )
    with pytest.raises(DataError, match="CRS EPSG:32614 against EPSG:4326"):
        open_labelled({"labels": "labels.tif"})

    site = open_labelled({"labels": "labels.tif", "resample_labels": True})
    found = read_labels(site)

    assert (found[12:48, 32:68] == 2).all()
    far = np.ones_like(found, bool)
    far[8:52, 28:72] = False
    assert (found[far] == IGNORE).all()


def test_labels_follow_an_image_that_is_resampled(
    tmp_path, write_raster, open_labelled
):
    codes = draw_codes()
    write_raster(tmp_path / "labels.tif", codes, transform=WHERE)

    site = open_labelled({"labels": "labels.tif"}, gsd_m=4.0)
    found = read_labels(site)

    x, y = site.scenes[0].grid.locate_pixels(site.scenes[0].grid.window)
    cols = np.floor((x - WHERE.c) / 10).astype(int)
    rows = np.floor((y - WHERE.f) / -8).astype(int)
    inside = (rows >= 0) & (rows < HEIGHT) & (cols >= 0) & (cols < WIDTH)
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(
        found[inside], encode(codes)[rows[inside], cols[inside]]
    )
    assert (found[~inside] == IGNORE).all()


def test_labels_of_a_part_of_an_image_leave_the_rest_unknown(
    tmp_path, write_raster, open_labelled
):
    codes = draw_codes()[10:30, 20:50]
    corner = WHERE @ Affine.translation(20, 10)
    write_raster(tmp_path / "labels.tif", codes, transform=corner)

    site = open_labelled({"labels": "labels.tif", "resample_labels": True})
    found = read_labels(site)

    np.testing.assert_array_equal(found[10:30, 20:50], encode(codes))
    found[10:30, 20:50] = IGNORE
    assert (found == IGNORE).all()


@pytest.mark.parametrize(
    ("crs", "problem"),
    [
        (None, "no CRS"),
        ('LOCAL_CS["drone",UNIT["metre",1]]', "a local CRS"),
        ("EPSG:4326", "a CRS of degrees, but a latitude"),
    ],
)
def test_a_label_raster_without_a_place_cannot_be_resampled(
    tmp_path, write_raster, open_labelled, crs, problem
):
    write_raster(tmp_path / "labels.tif", draw_codes(), transform=WHERE, crs=crs)

    with pytest.raises(DataError, match=rf"labels\.tif has {problem}"):
        open_labelled({"labels": "labels.tif", "resample_labels": True})


def test_an_unnamed_value_is_an_error_in_resampled_labels_too(
    tmp_path, write_raster, open_labelled
):
    codes = draw_codes()
    codes[20:25, 30:40] = 999
    write_raster(tmp_path / "labels.tif", codes, transform=WHERE @ Affine.scale(1.01))
    site = open_labelled({"labels": "labels.tif", "resample_labels": True})

    with pytest.raises(DataError, match=r"labels\.tif: .*999"):
        read_labels(site)


@pytest.mark.parametrize("crs", ["EPSG:32614", "EPSG:4326", "EPSG:25832"])
@pytest.mark.parametrize("name", ["f.gpkg", "f.geojson", "f.shp"])
def test_polygons_of_any_crs_and_format_label_what_they_cover(
    tmp_path, open_labelled, name, crs
):
    crs = "EPSG:4326" if name.endswith("json") else crs
    write_fields(tmp_path / name, make_boxes([3, 30, 60]), crs, crop=NAMES)

    found = read_labels(open_labelled({"labels": name, "field": "crop"}))

    for class_id, col in enumerate([3, 30, 60]):
        assert (found[6:39, col + 1 : col + 19] == class_id).all()
        found[4:41, col - 1 : col + 21] = IGNORE
    assert (found == IGNORE).all()  # what no polygon covers is unknown


@pytest.mark.parametrize(
    "codes", [[22, 5, 300], [22.0, 5.0, 300.0], ["22", "5", "300"]]
)
def test_a_value_means_the_same_as_number_and_as_text(tmp_path, open_labelled, codes):
    write_fields(tmp_path / "f.gpkg", make_boxes([3, 30, 60]), code=codes)

    found = read_labels(open_labelled({"labels": "f.gpkg", "field": "code"}))

    assert found[20, [10, 40, 70]].tolist() == [0, 1, 2]


def test_a_field_value_that_nobody_named_is_an_error_with_its_count(
    tmp_path, open_labelled
):
    shapes = make_boxes([3, 30, 60])
    write_fields(tmp_path / "f.gpkg", shapes, crop=["hvede", "rug", "rug"])
    entry = {"labels": "f.gpkg", "field": "crop"}

    with pytest.raises(DataError, match=r"f\.gpkg: .*rug \(2 fields\)"):
        read_labels(open_labelled(entry))
    found = read_labels(open_labelled(entry, ignore="rest"))

    assert set(np.unique(found)) == {0, IGNORE}


def test_only_fields_that_the_filter_keeps_are_labels(tmp_path, open_labelled):
    shapes = make_boxes([3, 30, 60])
    years = [2016, 2017, 2018]
    write_fields(tmp_path / "f.gpkg", shapes, crop=["hvede", "rug", "majs"], year=years)
    entry = {"labels": "f.gpkg", "field": "crop", "filter": {"year": [2016, "2018"]}}

    found = read_labels(open_labelled(entry))

    assert found[20, [10, 40, 70]].tolist() == [0, IGNORE, 2]


def test_the_border_of_a_field_is_unknown(tmp_path, open_labelled):
    write_fields(tmp_path / "f.gpkg", make_boxes([30]), crop=["hvede"])
    entry = {"labels": "f.gpkg", "field": "crop", "edge_buffer_m": 26}

    found = read_labels(open_labelled(entry))

    # Pixels are 10 m wide and 8 m high; a centre lies half a pixel inside.
    expected = np.full((HEIGHT, WIDTH), IGNORE)
    expected[8:37, 33:47] = 0
    np.testing.assert_array_equal(found, expected)


def test_fields_have_numbers_and_pixels_have_none(
    tmp_path, write_raster, open_labelled
):
    write_fields(tmp_path / "f.gpkg", make_boxes([3, 30, 60]), crop=NAMES)
    write_raster(tmp_path / "labels.tif", draw_codes(), transform=WHERE)
    window = Window(row=20, col=0, height=1, width=WIDTH)

    site = open_labelled({"labels": "f.gpkg", "field": "crop"})
    with site.open_scene(site.scenes[0]) as reader:
        fields = reader.read_fields(window)[0]
        counts = reader.count_label_values()
    site = open_labelled({"labels": "labels.tif"})
    with site.open_scene(site.scenes[0]) as reader:
        assert (reader.read_fields(window) == NO_FIELD).all()

    assert fields[[0, 10, 40, 70]].tolist() == [NO_FIELD, 0, 1, 2]
    assert counts == {"hvede": 1, "rødkløver": 1, "majs": 1}


@pytest.mark.parametrize("degrees", [0, 30])
def test_polygons_agree_with_rasterio_on_any_grid(tmp_path, open_labelled, degrees):
    where = WHERE @ Affine.rotation(degrees)
    shapes = make_boxes([3, 30, 60])
    write_fields(tmp_path / "f.gpkg", shapes, crop=NAMES)

    site = open_labelled({"labels": "f.gpkg", "field": "crop"}, transform=where)

    expected = rasterize(
        zip(shapes, range(3), strict=True),
        out_shape=(HEIGHT, WIDTH),
        fill=IGNORE,
        transform=where,
    )
    np.testing.assert_array_equal(read_labels(site), expected)


def test_points_label_the_pixels_around_them(tmp_path, open_labelled):
    x, y = WHERE @ (20.5, 30.5)
    (tmp_path / "points.csv").write_text(f"x,y,crop\n{x},{y},majs\n")
    entry = {"labels": "points.csv", "field": "crop", "buffer_m": 11}

    found = read_labels(open_labelled(entry))

    expected = np.full((HEIGHT, WIDTH), IGNORE)
    expected[29:32, 20] = 2
    expected[30, 19:22] = 2
    np.testing.assert_array_equal(found, expected)


def test_remote_polygons_are_refused(open_labelled):
    entry = {"labels": "https://example.org/f.gpkg", "field": "crop"}

    with pytest.raises(UnsafeFileError, match=r"example\.org"):
        open_labelled(entry)


def test_a_label_raster_is_counted_whole_though_it_is_larger(
    tmp_path, write_raster, open_labelled
):
    codes = np.full((1100, 1030), 5, "uint16")
    codes[1090:, 1000:] = 999
    write_raster(tmp_path / "labels.tif", codes, transform=WHERE, nodata=65535)
    site = open_labelled({"labels": "labels.tif", "resample_labels": True})

    with site.open_scene(site.scenes[0]) as reader:
        counts = reader.count_label_values()

    assert counts == {"5": 1100 * 1030 - 300, "999": 300}
    with rasterio.open(tmp_path / "labels.tif") as dataset:
        assert dataset.shape == (1100, 1030)


def test_an_image_named_as_labels_is_not_counted_for_ever(
    tmp_path, write_raster, open_labelled, monkeypatch
):
    monkeypatch.setattr(labels, "MAX_VALUES", 20)
    values = np.arange(HEIGHT * WIDTH, dtype="float32").reshape(HEIGHT, WIDTH)
    write_raster(tmp_path / "labels.tif", values, transform=WHERE)
    site = open_labelled({"labels": "labels.tif"})

    with (
        site.open_scene(site.scenes[0]) as reader,
        pytest.raises(DataError, match=r"labels\.tif holds more than 20 different"),
    ):
        reader.count_label_values()
