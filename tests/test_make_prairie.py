"""scripts/make_prairie.py puts the tiles of the public dataset back together."""

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cropseg.errors import DataError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "make_prairie.py"
PRAIRIE = ROOT.parent / "shared" / "data" / "prairie"
NAMES = ("rural_area_1", "rural_area_2")
FIRST_TILES = {"rural_area_1": (5, 12), "rural_area_2": (45, 22)}
TILE = 128


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_prairie", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_small(script, monkeypatch):
    """Make the areas 2 x 2 tiles, so that a clone of them is small."""
    monkeypatch.setattr(script, "SIDE_TILES", 2)
    return script.main


def write_tile(path, pixels, **profile):
    """Write a tile as the dataset has it: one band, no coordinates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"height": pixels.shape[0], "width": pixels.shape[1]}
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(
            path, "w", driver="GTiff", count=1, dtype=pixels.dtype, **shape, **profile
        ) as dataset,
    ):
        dataset.write(pixels, 1)


def get_band_path(clone, row, col, band):
    return clone / "input_32bit" / f"lc8_2015245_{row}_{col}_{band}.tif"


def get_label_path(clone, row, col):
    return clone / "target" / f"cdl_2015245_{row}_{col}.tif"


def make_band(row, col, band):
    """Return values that are nowhere the same twice, some below 0, in float32."""
    start = 1000 * band + 7 * row + col - 1500
    rows, cols = np.indices((TILE, TILE))
    return (start + rows + 130 * cols).astype(np.float32)


@pytest.fixture
def clone(tmp_path):
    """Write a clone with 2 x 2 tiles of each area; tile (6, 12) lacks band 4."""
    clone = tmp_path / "clone"
    for first_row, first_col in FIRST_TILES.values():
        for row, col in np.ndindex(2, 2):
            row, col = first_row + row, first_col + col  # noqa: PLW2901
            for band in range(1, 8):
                pixels = make_band(row, col, band)
                write_tile(get_band_path(clone, row, col, band), pixels)
            codes = np.full((TILE, TILE), row + 2 * col, np.uint8)
            write_tile(get_label_path(clone, row, col), codes)
    get_band_path(clone, 6, 12, 4).unlink()
    return clone


def get_corner(path):
    with rasterio.open(path) as dataset:
        assert dataset.crs.to_epsg() == 32614
        assert dataset.res == (30, 30)
        return dataset.bounds.left, dataset.bounds.top


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_tiles_lie_where_their_row_and_column_say(clone, tmp_path, make_small):
    make_small(clone, tmp_path / "out")

    image = read(tmp_path / "out" / "rural_area_2.tif")
    labels = read(tmp_path / "out" / "rural_area_2_labels.tif")
    assert image.shape == (7, 256, 256)
    assert labels.shape == (1, 256, 256)
    for row, col in np.ndindex(2, 2):
        at = slice(row * TILE, (row + 1) * TILE), slice(col * TILE, (col + 1) * TILE)
        for band in range(7):
            expected = make_band(45 + row, 22 + col, band + 1)
            np.testing.assert_array_equal(image[band][at], expected)
        assert (labels[0][at] == 45 + row + 2 * (22 + col)).all()


def test_the_grids_of_images_and_labels_start_at_the_first_tile(
    clone, tmp_path, make_small
):
    make_small(clone, tmp_path / "out")

    for ending in (".tif", "_labels.tif"):
        corner = get_corner(tmp_path / "out" / f"rural_area_2{ending}")
        assert corner == (400_000 + 22 * 128 * 30, 5_380_000 - 45 * 128 * 30)


def test_a_tile_without_one_of_its_bands_is_missing_and_told(
    clone, tmp_path, make_small, capsys
):
    make_small(clone, tmp_path / "out")

    image = read(tmp_path / "out" / "rural_area_1.tif")
    labels = read(tmp_path / "out" / "rural_area_1_labels.tif")
    missing = np.zeros((256, 256), bool)
    missing[TILE:, :TILE] = True
    assert ((image == -9999) == missing).all()
    assert ((labels == 0) == missing).all()
    first, second = capsys.readouterr().out.splitlines()
    assert "rural_area_1.tif" in first
    assert first.endswith("1 of 4 tiles are missing")
    assert second.endswith("0 of 4 tiles are missing")


def test_a_tile_without_labels_is_missing_too(clone, tmp_path, make_small):
    get_label_path(clone, 5, 13).unlink()

    make_small(clone, tmp_path / "out")

    image = read(tmp_path / "out" / "rural_area_1.tif")
    assert (image[:, :TILE, TILE:] == -9999).all()


def test_pixels_without_data_are_nodata(clone, tmp_path, make_small):
    band = make_band(45, 22, 3)
    band[5, 9], band[6, 9] = np.nan, -1
    write_tile(get_band_path(clone, 45, 22, 3), band, nodata=-1)

    make_small(clone, tmp_path / "out")

    image = read(tmp_path / "out" / "rural_area_2.tif")
    assert (image[2, 5:7, 9] == -9999).all()
    assert (image == -9999).sum() == (band < 0).sum() + 1


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.zeros((128, 127), np.float32), "1 band.* of 128 x 127 pixels"),
        (np.zeros((128, 128), np.complex64), "complex"),
        (np.full((128, 128), 40_000, np.uint16), "40000.0; expected whole numbers"),
        (np.full((128, 128), 0.25, np.float32), "0.25; expected whole numbers"),
    ],
    ids=["size", "dtype", "range", "fraction"],
)
def test_a_tile_that_is_none_is_told_and_nothing_is_written(
    clone, tmp_path, make_small, pixels, told
):
    path = get_band_path(clone, 45, 23, 7)
    write_tile(path, pixels)

    with pytest.raises(DataError, match=told) as error:
        make_small(clone, tmp_path / "out")

    assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_label_codes_above_255_are_told(clone, tmp_path, make_small):
    write_tile(get_label_path(clone, 45, 23), np.full((128, 128), 256, np.int32))

    with pytest.raises(DataError, match="from 0 to 255"):
        make_small(clone, tmp_path / "out")


def test_an_area_without_a_tile_is_told(clone, tmp_path, make_small):
    for path in (clone / "target").glob("cdl_2015245_4*.tif"):
        path.unlink()

    with pytest.raises(DataError, match="from row 45, column 22"):
        make_small(clone, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [(["nowhere", "out"], 3, "no folder nowhere/input_32bit"), (["one"], 2, "Usage")],
)
def test_a_wrong_call_ends_with_the_exit_code_of_cropseg(
    arguments, code, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])

    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")

    assert end.value.code == code
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_real_areas_come_back_from_their_tiles_pixel_by_pixel(
    name, tmp_path, script, monkeypatch
):
    if not PRAIRIE.is_dir():
        pytest.skip("../shared/data/prairie is not there")
    first_row, first_col = FIRST_TILES[name]
    image, labels = (
        read(PRAIRIE / f"{name}{ending}.tif") for ending in ("", "_labels")
    )
    for row, col in np.ndindex(10, 10):
        at = slice(row * TILE, (row + 1) * TILE), slice(col * TILE, (col + 1) * TILE)
        if (image[(0, *at)] == -9999).all():
            continue
        place = first_row + row, first_col + col
        for band in range(7):
            pixels = image[(band, *at)].astype(np.float32)
            write_tile(get_band_path(tmp_path, *place, band + 1), pixels)
        write_tile(get_label_path(tmp_path, *place), labels[(0, *at)])
    monkeypatch.setattr(script, "AREAS", {name: FIRST_TILES[name]})

    script.main(tmp_path, tmp_path / "out")

    for ending in ("", "_labels"):
        ours, real = (
            rasterio.open(folder / f"{name}{ending}.tif")
            for folder in (tmp_path / "out", PRAIRIE)
        )
        with ours, real:
            assert ours.profile == real.profile
            assert ours.descriptions == real.descriptions
            assert ours.tags() == real.tags()
            structure = [data.tags(ns="IMAGE_STRUCTURE") for data in (ours, real)]
            assert structure[0] == structure[1]
            np.testing.assert_array_equal(ours.read(), real.read())
