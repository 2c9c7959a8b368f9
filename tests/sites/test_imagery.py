"""Images of several files read as one, and files that do not fit are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.merge import merge

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.grid import Window
from cropseg.sites.imagery import name_image, open_image
from cropseg.sites.location import RemoteFile
from cropseg.sites.manifest import SceneEntry
from cropseg.sites.raster import open_raster

HEIGHT, WIDTH = 37, 52
WHERE = Affine(10, 0, 600_005, 0, -8, 5_200_003)
VALUES = np.arange(1, HEIGHT * WIDTH * 3 + 1, dtype="int16").reshape(HEIGHT, WIDTH, 3)
# Rows and columns of each tile: two overlap, and the lower left corner is a hole.
TILES = {
    "b_west.tif": (slice(0, 20), slice(0, 30)),
    "a_east.tif": (slice(3, 20), slice(24, WIDTH)),
    "c_south.tif": (slice(20, HEIGHT), slice(30, WIDTH)),
}


def open_entry(folder, *, crs=None, gsd_m=None, allow_remote=(), **entry):
    return open_image(
        SceneEntry(**entry), folder, crs=crs, gsd_m=gsd_m, allow_remote=allow_remote
    )


def read(image, window=None, bands=None):
    with image.open() as source:
        return source.read(window or image.grid.window, bands or range(image.num_bands))


@pytest.fixture
def tiles_dir(tmp_path, write_raster):
    """Write tiles of which the first by name, the eastern one, is 1000 brighter."""
    for name, (rows, cols) in TILES.items():
        write_raster(
            tmp_path / "tiles" / name,
            VALUES[rows, cols] + 1000 * (name == "a_east.tif"),
            transform=WHERE @ Affine.translation(cols.start, rows.start),
            nodata=-9999,
        )
    return tmp_path / "tiles"


def expect_mosaic():
    values = np.zeros_like(VALUES)
    valid = np.zeros((HEIGHT, WIDTH), bool)
    for name in sorted(TILES, reverse=True):  # the first by name lies on top
        place = TILES[name]
        values[place] = VALUES[place] + 1000 * (name == "a_east.tif")
        valid[place] = True
    return values, valid


def test_files_of_one_band_are_stacked_in_their_order(tmp_path, write_raster):
    for index, name in enumerate(["B02.tif", "B03.tif", "B04.tif"]):
        write_raster(tmp_path / name, VALUES[..., index], transform=WHERE)

    image = open_entry(tmp_path, image=["B04.tif", "B02.tif", "B03.tif"])
    pixels = read(image, bands=[2, 0])

    assert image.num_bands == 3
    assert not image.is_mosaic
    np.testing.assert_array_equal(pixels.values, VALUES[..., [1, 2]])
    assert pixels.values.dtype == np.int16


def test_dates_of_several_bands_are_stacked(tmp_path, write_raster):
    write_raster(tmp_path / "june.tif", VALUES, transform=WHERE)
    late = (VALUES[..., :2] * 0.5).astype("float32")
    write_raster(tmp_path / "july.tif", late, transform=WHERE)

    image = open_entry(tmp_path, image=["june.tif", "july.tif"])
    pixels = read(image, bands=[4, 1, 3])

    assert image.num_bands == 5
    expected = [late[..., 1], VALUES[..., 1], late[..., 0]]
    np.testing.assert_array_equal(pixels.values, np.stack(expected, axis=-1))


def test_a_pixel_of_a_stack_is_valid_where_every_wanted_file_is(tmp_path, write_raster):
    names = ["a.tif", "b.tif", "c.tif"]
    for index, name in enumerate(names):
        values = VALUES[..., index].astype("float32")
        values[index * 5] = math.nan
        write_raster(tmp_path / name, values, transform=WHERE)

    image = open_entry(tmp_path, image=names)

    assert np.flatnonzero(~read(image).valid[:, 0]).tolist() == [0, 5, 10]
    only = read(image, bands=[2, 0])
    assert np.flatnonzero(~only.valid[:, 0]).tolist() == [0, 10]


def test_files_of_another_gsd_need_a_gsd_to_be_stacked(tmp_path, write_raster):
    write_raster(tmp_path / "fine.tif", VALUES[:36, :, 0], transform=WHERE)
    coarse = VALUES[:36:2, ::2, 1]
    write_raster(
        tmp_path / "coarse.tif", coarse, transform=WHERE @ Affine.scale(2), nodata=-9999
    )
    names = ["fine.tif", "coarse.tif"]

    with pytest.raises(DataError, match=r"coarse\.tif .* shape 36 x 52 .*`gsd_m`"):
        open_entry(tmp_path, image=names)
    image = open_entry(tmp_path, image=names, gsd_m=math.sqrt(80))
    pixels = read(image)

    assert (image.grid.height, image.grid.width) == (36, WIDTH)
    assert pixels.valid.all()
    np.testing.assert_array_equal(pixels.values[..., 0], VALUES[:36, :, 0])
    # Bilinear: a quarter and three quarters of two neighbours, in rows and columns.
    expected = 0.75 * coarse[3, 4] + 0.25 * coarse[3, 5]
    expected += (coarse[4, 4] - coarse[3, 4]) / 4
    assert pixels.values[7, 9, 1] == pytest.approx(expected, abs=0.01)


def test_grids_that_differ_by_rounding_are_not_interpolated(tmp_path, write_raster):
    write_raster(tmp_path / "a.tif", VALUES, transform=WHERE)
    moved = WHERE @ Affine.translation(0.001, -0.001)
    write_raster(tmp_path / "b.tif", VALUES, transform=moved, nodata=1)

    pixels = read(open_entry(tmp_path, image=["a.tif", "b.tif"]))

    assert pixels.values.dtype == np.int16
    np.testing.assert_array_equal(pixels.values[..., 3:], VALUES)
    assert (~pixels.valid).sum() == 1


@pytest.mark.parametrize("name", ["tiles", "tiles/", "tiles/*.tif", "t*s/[abc]_*.tif"])
def test_tiles_of_a_folder_or_a_pattern_read_as_one_image(tiles_dir, name):
    image = open_entry(tiles_dir.parent, image=name)
    values, valid = expect_mosaic()

    pixels = read(image)

    assert image.is_mosaic
    assert image.num_bands == 3
    assert image.native_grid.transform.almost_equals(WHERE, 1e-6)
    np.testing.assert_array_equal(pixels.valid, valid)
    np.testing.assert_array_equal(pixels.values, values)
    assert not valid[25:, :30].any()


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_a_mosaic_agrees_with_a_merge_of_rasterio(tiles_dir):
    paths = sorted(tiles_dir.glob("*.tif"))

    pixels = read(open_entry(tiles_dir, image="."))

    expected, where = merge(paths, nodata=-9999)
    assert where.almost_equals(WHERE, 1e-6)
    np.testing.assert_array_equal(pixels.valid, (expected != -9999).all(axis=0))
    expected = np.moveaxis(expected, 0, -1)
    np.testing.assert_array_equal(pixels.values[pixels.valid], expected[pixels.valid])


def test_where_the_first_tile_has_no_data_the_next_one_counts(tiles_dir):
    with rasterio.open(tiles_dir / "a_east.tif", "r+") as dataset:
        values = dataset.read()
        values[1, :, :4] = -9999
        dataset.write(values)

    pixels = read(open_entry(tiles_dir.parent, image="tiles"))

    np.testing.assert_array_equal(pixels.values[5, 24:28], VALUES[5, 24:28])
    np.testing.assert_array_equal(pixels.values[5, 28:30], VALUES[5, 28:30] + 1000)
    assert pixels.valid[:20, :30].all()


@settings(max_examples=40, deadline=None)
@given(
    row=st.integers(-9, HEIGHT + 3),
    col=st.integers(-9, WIDTH + 3),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
)
def test_a_window_of_a_mosaic_is_the_crop_of_the_whole(
    tmp_path_factory, write_raster, row, col, height, width
):
    folder = tmp_path_factory.getbasetemp() / "hypothesis_tiles"
    for name, place in TILES.items():
        if not (folder / name).exists():
            corner = Affine.translation(place[1].start, place[0].start)
            values = VALUES[place] + 1000 * (name == "a_east.tif")
            write_raster(folder / name, values, transform=WHERE @ corner, nodata=-9999)
    window = Window(row=row, col=col, height=height, width=width)

    pixels = read(open_entry(folder, image="."), window, bands=[2, 0])

    values, valid = expect_mosaic()
    margin = ((70, 70), (70, 70))
    rows, cols = window.slices_in(Window(row=-70, col=-70, height=0, width=0))
    expected = np.pad(values[..., [2, 0]], (*margin, (0, 0)))[rows, cols]
    np.testing.assert_array_equal(pixels.valid, np.pad(valid, margin)[rows, cols])
    np.testing.assert_array_equal(pixels.values, expected)


def test_a_mosaic_is_resampled_without_seams(tiles_dir):
    with rasterio.open(tiles_dir / "a_east.tif", "r+") as dataset:
        dataset.write(dataset.read() - 1000)

    image = open_entry(tiles_dir.parent, image="tiles", gsd_m=5.0)
    pixels = read(image)

    x, y = image.grid.locate_pixels(image.grid.window)
    cols, rows = (x - WHERE.c) / 10 - 0.5, (y - WHERE.f) / -8 - 0.5
    expected = 1 + 3 * (rows * WIDTH + cols)  # the first band is a plane
    inside = (rows > 3) & (rows < 19) & (cols > 0) & (cols < WIDTH - 1)
    assert image.is_resampled
    assert pixels.valid[inside].all()
    np.testing.assert_allclose(pixels.values[inside, 0], expected[inside], atol=0.1)


def test_a_mosaic_may_have_many_tiles(tmp_path, write_raster):
    for index in range(40):
        tile = np.full((4, 5), index + 1, "uint8")
        corner = Affine.translation(5 * index, 0)
        write_raster(tmp_path / f"{index:02}.tif", tile, transform=WHERE @ corner)
    image = open_entry(tmp_path, image=".")

    with image.open() as source:
        for _ in range(2):
            pixels = source.read(image.grid.window, [0])

    np.testing.assert_array_equal(pixels.values[2, ::5, 0], np.arange(1, 41))


@pytest.mark.parametrize("num_tiles", [3, 33])
def test_a_mosaic_may_be_read_and_closed_among_other_files(
    tmp_path, write_raster, num_tiles
):
    """Settings of rasterio are a stack: what is opened last must close first."""
    for index in range(num_tiles):
        corner = Affine.translation(2 * index, 0)
        values = np.full((3, 2), index, "uint8")
        write_raster(tmp_path / f"{index:02}.tif", values, transform=WHERE @ corner)
    image = open_entry(tmp_path, image=".")

    with image.open() as source:
        with open_raster(tmp_path / "01.tif") as other:
            assert source.read(Window(row=0, col=0, height=1, width=2), [0]).valid.all()
            other.read(Window(row=0, col=0, height=1, width=1), [0])
        assert source.read(Window(row=0, col=4, height=1, width=2), [0]).valid.all()

    assert not rasterio.env.hasenv()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": WHERE @ Affine.translation(60.3, 0)}, "0.30 pixels beside"),
        ({"transform": WHERE @ Affine.scale(2)}, "or its GSD differs"),
        ({"transform": WHERE @ Affine.scale(1, -1)}, "or its GSD differs"),
        ({"crs": "EPSG:32615"}, "CRS EPSG:32615 against EPSG:32614"),
        ({"values": VALUES[..., :2]}, "2 bands against 3"),
    ],
)
def test_a_tile_that_does_not_fit_is_refused(tiles_dir, write_raster, change, message):
    change = {"values": VALUES, "transform": WHERE, "nodata": -9999} | change
    write_raster(tiles_dir / "d.tif", **change)

    with pytest.raises(DataError, match=rf"d\.tif does not fit .*{message}"):
        open_entry(tiles_dir.parent, image="tiles")


def test_a_tile_far_from_the_others_is_refused(tiles_dir, write_raster):
    where = WHERE @ Affine.translation(400_000, -70_000)
    write_raster(tiles_dir / "d.tif", VALUES, transform=where, nodata=-9999)

    with pytest.raises(DataError, match=r"d\.tif lies 399,9\d\d pixels from most"):
        open_entry(tiles_dir.parent, image="tiles")

    where = WHERE @ Affine.translation(5000, -7000)  # takes no absurd time to read
    write_raster(tiles_dir / "d.tif", VALUES, transform=where, nodata=-9999)
    assert open_entry(tiles_dir.parent, image="tiles").grid.width > 5000


@pytest.mark.parametrize("name", ["tiles", "tiles/*.tif"])
def test_a_mosaic_is_found_from_a_relative_folder(tiles_dir, monkeypatch, name):
    monkeypatch.chdir(tiles_dir.parent.parent)
    folder = tiles_dir.parent.relative_to(tiles_dir.parent.parent)

    assert len(open_entry(folder, image=name).files) == 3


def test_a_pattern_is_relative_to_a_folder_with_brackets_in_its_name(
    tmp_path, write_raster
):
    folder = tmp_path / "area [2]"
    write_raster(folder / "tiles" / "a.tif", VALUES, transform=WHERE)

    assert open_entry(folder, image="tiles/*.tif").num_bands == 3


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path, write_raster):
    write_raster(tmp_path / "scene[1].tif", VALUES, transform=WHERE)

    assert not open_entry(tmp_path, image="scene[1].tif").is_mosaic


def test_hidden_files_are_no_tiles(tiles_dir):
    (tiles_dir / "._a_east.tif").write_bytes(b"\0\5\x16\7 resource fork")
    (tiles_dir / "notes.txt").write_text("not a tile")

    assert len(open_entry(tiles_dir.parent, image="tiles").files) == 3


@pytest.mark.parametrize("name", ["empty", "tiles/*.jp2", "nowhere/*.tif"])
def test_a_folder_or_a_pattern_without_a_tile_is_not_found(tiles_dir, name):
    (tiles_dir.parent / "empty").mkdir()

    with pytest.raises(DataFileNotFoundError, match=r"No GeoTIFF at .*looked in"):
        open_entry(tiles_dir.parent, image=name)


@pytest.mark.parametrize("name", ["nowhere.tif", "a" * 300, "a\0b.tif"])
def test_an_image_that_is_nowhere_is_not_found(tmp_path, name):
    with pytest.raises(DataFileNotFoundError, match="No file at"):
        open_entry(tmp_path, image=name)


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org/tiles/*.tif",
        "https://example.org/scene.tif?key=1",
        "/vsicurl/https://example.org/[a]*.tif",
        "<VRTDataset>" + "[*]" * 200,
        "/dev/zero",
    ],
)
def test_an_unsafe_image_is_no_pattern(tmp_path, name):
    with pytest.raises(UnsafeFileError):
        open_entry(tmp_path, image=name)


def test_an_address_with_a_question_mark_is_no_pattern(tmp_path, monkeypatch):
    asked = []

    def note(location, _options):
        asked.append(location)
        raise DataError("there is no network here")

    monkeypatch.setattr("cropseg.sites.imagery.read_header", note)
    url = "https://example.org/scene.tif?key=1"
    with pytest.raises(DataError, match="no network"):
        open_entry(tmp_path, image=url, allow_remote=["example.org"])

    assert asked == [RemoteFile(url=url)]


def test_a_tile_in_disguise_is_refused(tiles_dir):
    (tiles_dir / "z.tif").write_text("<VRTDataset></VRTDataset>")

    with pytest.raises(UnsafeFileError, match=r"z\.tif holds XML"):
        open_entry(tiles_dir.parent, image="tiles")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"scale": 0.5}, lambda v: v * 0.5),
        ({"offset": -3}, lambda v: v - 3.0),
        (
            {"scale": [1, 2, 4], "offset": [0, 1, 0]},
            lambda v: v * [1, 2, 4] + [0, 1, 0],
        ),
    ],
)
@pytest.mark.parametrize("files", [["all.tif"], ["one.tif", "two.tif"]])
def test_scale_and_offset_of_the_manifest_count(
    tmp_path, write_raster, files, given, expected
):
    write_raster(tmp_path / "all.tif", VALUES, transform=WHERE)
    write_raster(tmp_path / "one.tif", VALUES[..., :1], transform=WHERE)
    write_raster(tmp_path / "two.tif", VALUES[..., 1:], transform=WHERE)

    pixels = read(open_entry(tmp_path, image=files, **given))

    np.testing.assert_allclose(pixels.values, expected(VALUES), rtol=1e-6)
    assert pixels.values.dtype == np.float32


@pytest.mark.parametrize("numbers", [[1, 2], [1, 2, 3, 4]])
@pytest.mark.parametrize("image", ["all.tif", ("one.tif", "two.tif")])
def test_a_scale_needs_a_number_for_each_band(tmp_path, write_raster, image, numbers):
    write_raster(tmp_path / "all.tif", VALUES, transform=WHERE)
    write_raster(tmp_path / "one.tif", VALUES[..., :1], transform=WHERE)
    write_raster(tmp_path / "two.tif", VALUES[..., 1:], transform=WHERE)

    with pytest.raises(DataError, match=rf"{len(numbers)} numbers.*3"):
        open_entry(tmp_path, image=image, scale=numbers)


def test_nodata_of_the_manifest_counts(tmp_path, write_raster):
    values = VALUES.copy()
    values[3, 4:9, 1] = -1
    values[8, 8] = -9999
    write_raster(tmp_path / "a.tif", values, transform=WHERE, nodata=-9999)

    image = open_entry(tmp_path, image="a.tif", nodata=-1)
    pixels = read(image)

    assert not pixels.valid[3, 4:9].any()
    assert pixels.valid.sum() == HEIGHT * WIDTH - 5


@pytest.mark.parametrize("gsd_m", [None, 5.0])
def test_alpha_is_validity_unless_the_manifest_calls_it_a_band(
    tmp_path, write_raster, gsd_m
):
    values = np.full((HEIGHT, WIDTH, 4), 90, "uint8")
    values[..., 3] = 255
    values[6:15, 10:20, 3] = 0
    path = tmp_path / "a.tif"
    write_raster(path, values, transform=WHERE, photometric="RGB", alpha="YES")

    image = open_entry(tmp_path, image="a.tif", gsd_m=gsd_m)
    as_band = open_entry(tmp_path, image="a.tif", gsd_m=gsd_m, alpha_is_band=True)
    x, y = image.grid.locate_pixels(image.grid.window)
    cols, rows = (x - WHERE.c) / 10, (y - WHERE.f) / -8
    hole = (abs(rows - 10.5) < 3.4) & (abs(cols - 15) < 3.9)

    assert (image.num_bands, as_band.num_bands) == (3, 4)
    pixels = read(image)
    assert not pixels.valid[hole].any()
    np.testing.assert_allclose(pixels.values[pixels.valid], 90)
    assert read(as_band).valid[hole].all()


def test_an_image_smaller_than_a_tile_is_read_whole(tmp_path, write_raster):
    write_raster(tmp_path / "a.tif", VALUES[:2, :3], transform=WHERE)
    image = open_entry(tmp_path, image="a.tif")

    pixels = read(image, Window(row=-5, col=-7, height=64, width=64))

    assert pixels.valid.sum() == 6
    np.testing.assert_array_equal(pixels.values[5:7, 7:10], VALUES[:2, :3])


@pytest.mark.parametrize("kind", ["rotated", "south up", "degrees"])
def test_odd_grids_are_read_as_they_are(tmp_path, write_raster, kind):
    where = {
        "rotated": WHERE @ Affine.rotation(25),
        "south up": WHERE @ Affine.scale(1, -1),
        "degrees": Affine(1e-4, 0, -97.6, 0, -1e-4, 46.9),
    }[kind]
    crs = "EPSG:4326" if kind == "degrees" else "EPSG:32614"
    write_raster(tmp_path / "a.tif", VALUES, transform=where, crs=crs)

    image = open_entry(tmp_path, image="a.tif")

    assert not image.is_resampled
    np.testing.assert_array_equal(read(image).values, VALUES)


def test_an_image_in_degrees_is_brought_to_a_crs_with_metres(tmp_path, write_raster):
    where = Affine(1e-4, 0, -97.6, 0, -1e-4, 46.9)
    write_raster(tmp_path / "a.tif", VALUES, transform=where, crs="EPSG:4326")

    image = open_entry(tmp_path, image="a.tif", crs=CRS.from_epsg(32614))

    assert image.grid.crs.to_epsg() == 32614
    assert image.grid.gsd_m == pytest.approx(image.native_grid.gsd_m)
    pixels = read(image)
    assert pixels.valid.mean() > 0.9
    mean = pixels.values[pixels.valid].mean()
    assert mean == pytest.approx(VALUES.mean(), rel=0.02)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("scenes/east.tif", "east"),
        (["a/B02.tif", "a/B03.tif"], "B02"),
        ("scenes/east/", "east"),
        ("scenes/east/*.tif", "east"),
        ("scenes/east/2?/*.tif", "east"),
        ("*.tif", "scene"),
        ("../*.tif", "scene"),
        (".", "scene"),
    ],
)
def test_a_scene_is_called_after_its_file_or_folder(image, name):
    assert name_image(SceneEntry(image=image)) == name
    assert name_image(SceneEntry(image=image, name="mine")) == "mine"
