"""Tiles without labels: no pixel of val or test, wherever the split leaves room."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from cropseg.errors import DataError
from cropseg.sites import unlabelled
from cropseg.sites.bands import BandReader
from cropseg.sites.grid import Grid, Window
from cropseg.sites.labels import RasterLabels
from cropseg.sites.site import open_site
from cropseg.sites.split import NO_PART, PARTS
from cropseg.sites.unlabelled import list_unlabelled_tiles

SIZE = 32
TRAIN, VAL, TEST = range(len(PARTS))


def open_made(make_site, folder, **changes):
    return open_site(make_site(folder, **changes))


def read_parts(tiles, tile):
    scene = tiles.site.scenes[tile.scene]
    return tiles.site.require_split().read_parts(scene.grid, tile.window)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="blocks"),
        pytest.param({"num_scenes": 2, "split": "regions"}, id="regions"),
        pytest.param(
            {
                "degrees": 30.0,
                "height": 300,
                "split": {"block_m": 900, "train": 0.6, "val": 0.2, "test": 0.2},
            },
            id="turned",
        ),
        pytest.param({"split": {"block_m": 400, "folds": 3, "fold": 1}}, id="folds"),
    ],
)
def test_no_pixel_of_a_tile_is_in_val_or_test(make_site, tmp_path, changes):
    tiles = list_unlabelled_tiles(open_made(make_site, tmp_path, **changes), SIZE)

    found = {int(p) for tile in tiles.tiles for p in np.unique(read_parts(tiles, tile))}

    assert len(tiles) >= 2
    assert TRAIN in found
    assert not found & {VAL, TEST}


def test_no_pixel_of_val_or_test_is_read(make_site, tmp_path, monkeypatch):
    site = open_made(make_site, tmp_path, num_scenes=2)
    windows = []
    read = BandReader.read_pixels
    monkeypatch.setattr(
        BandReader,
        "read_pixels",
        lambda self, window: windows.append((self, window)) or read(self, window),
    )

    tiles = list_unlabelled_tiles(site, SIZE)
    for index in range(len(tiles)):
        tiles.read(index)

    assert len(windows) >= 2 * len(tiles)
    for reader, window in windows:
        parts = site.require_split().read_parts(reader.source.grid, window)
        assert not np.isin(parts, (VAL, TEST)).any()


def test_tiles_do_not_overlap_and_lie_in_their_scene(make_site, tmp_path):
    tiles = list_unlabelled_tiles(open_made(make_site, tmp_path, num_scenes=2), SIZE)

    for tile in tiles.tiles:
        grid = tiles.site.scenes[tile.scene].grid
        assert tile.window == tile.window.clip(height=grid.height, width=grid.width)
        assert (tile.window.height, tile.window.width) == (SIZE, SIZE)
    for one, other in combinations(tiles.tiles, 2):
        if one.scene == other.scene:
            shared = one.window.intersect(other.window)
            assert shared.height * shared.width == 0


def test_scenes_with_and_without_labels_count_alike(make_site, tmp_path):
    path = make_site(tmp_path, num_scenes=2)
    labelled = list_unlabelled_tiles(open_site(path), SIZE)
    path.write_text(
        path.read_text(encoding="utf-8").replace("labels: scene_1_labels.tif", "")
    )
    (tmp_path / "scene_1_labels.tif").unlink()

    without = list_unlabelled_tiles(open_site(path), SIZE)

    assert {tile.scene for tile in without.tiles} == {0, 1}
    assert without.tiles == labelled.tiles


def test_labels_are_not_opened(make_site, tmp_path, monkeypatch):
    def refuse(*_):
        pytest.fail("labels were opened")

    monkeypatch.setattr(RasterLabels, "open", refuse)
    site = open_made(make_site, tmp_path)

    assert list_unlabelled_tiles(site, SIZE).read(0).values.shape == (SIZE, SIZE, 5)


class DrawnSplit:
    """A split of one scene, drawn pixel by pixel."""

    block_m = 10.0

    def __init__(self, parts):
        self.parts = parts

    def read_parts(self, grid, window):
        del grid
        return self.parts[
            window.row : window.row_end, window.col : window.col_end
        ].astype("uint8")


@given(seed=st.integers(0, 10_000), size=st.integers(1, 5))
def test_wherever_a_tile_fits_one_is_laid_or_is_in_its_way(seed, size):
    rng = np.random.default_rng(seed)
    values = rng.choice(
        [TRAIN, NO_PART, VAL, TEST], p=[0.6, 0.2, 0.1, 0.1], size=(5, 7)
    )
    parts = values.repeat(3, axis=0).repeat(2, axis=1)
    grid = Grid(
        height=15, width=14, transform=Affine.identity(), crs=CRS.from_epsg(32614)
    )

    windows = list(unlabelled._find_free_windows(DrawnSplit(parts), grid, size))

    used = np.zeros(parts.shape, int)
    for window in windows:
        used[window.slices_in(grid.window)] += 1
    assert used.max() <= 1
    is_open = ~np.isin(parts, (VAL, TEST))
    assert is_open[used == 1].all()
    is_open &= used == 0
    for row in range(15 - size + 1):
        for col in range(14 - size + 1):
            assert not is_open[row : row + size, col : col + size].all()


def test_a_tile_as_large_as_a_block_is_found_off_the_tile_grid():
    parts = np.full((20, 20), TEST)
    parts[5:13, 7:15] = TRAIN
    grid = Grid(
        height=20, width=20, transform=Affine.identity(), crs=CRS.from_epsg(32614)
    )

    windows = list(unlabelled._find_free_windows(DrawnSplit(parts), grid, 8))

    assert windows == [Window(row=5, col=7, height=8, width=8)]


def test_strips_change_no_window(make_site, tmp_path, monkeypatch):
    site = open_made(make_site, tmp_path)
    grid = site.scenes[0].grid
    whole = list(unlabelled._find_free_windows(site.split, grid, SIZE))

    monkeypatch.setattr(unlabelled, "_STRIP_ROWS", 7)

    assert list(unlabelled._find_free_windows(site.split, grid, SIZE)) == whole


def test_a_site_without_a_split_is_free_everywhere(make_site, tmp_path):
    site = open_made(make_site, tmp_path, split=None)

    tiles = list_unlabelled_tiles(site, SIZE)

    assert len(tiles) == (192 // SIZE) * (256 // SIZE)


def test_tiles_with_data_on_less_than_a_quarter_are_left_out(
    make_site, tmp_path, write_raster
):
    folder = tmp_path / "area"
    path = make_site(folder, split=None)
    site = open_site(path)
    image = np.full((192, 256, 5), -9999, "int16")
    image[:8, :SIZE] = 100  # a quarter of the first tile
    image[:7, SIZE : 2 * SIZE] = 100  # less of the second
    scene = site.scenes[0]
    profile = {"transform": scene.grid.transform, "nodata": -9999}
    write_raster(folder / "scene_0.tif", image, **profile)

    (tile,) = list_unlabelled_tiles(open_site(path), SIZE).tiles

    assert tile.window == Window(row=0, col=0, height=SIZE, width=SIZE)


def test_a_scene_smaller_than_a_tile_is_read_over_its_edge(make_site, tmp_path):
    site = open_made(make_site, tmp_path, height=40, width=300, split=None)

    tiles = list_unlabelled_tiles(site, 64)
    pixels = tiles.read(0)

    assert len(tiles) == 300 // 64
    assert pixels.valid[:40].any()
    assert not pixels.valid[40:].any()


def test_a_tile_reads_as_its_scene_does(area_1):
    tiles = list_unlabelled_tiles(area_1, SIZE)
    scene = area_1.scenes[tiles.tiles[1].scene]

    with area_1.open_scene(scene) as reader:
        expected = reader.read_pixels(tiles.tiles[1].window)
    pixels = tiles.read(1)

    np.testing.assert_array_equal(pixels.values, expected.values)
    np.testing.assert_array_equal(pixels.valid, expected.valid)


def test_bands_are_those_of_the_site(area_1):
    chosen = area_1.select_bands(("nir", "blue"))

    pixels = list_unlabelled_tiles(chosen, SIZE).read(0)

    all_bands = list_unlabelled_tiles(area_1, SIZE).read(0)
    np.testing.assert_array_equal(pixels.values, all_bands.values[..., [3, 0]])


def test_the_tiles_are_the_same_every_time(area_1):
    first = list_unlabelled_tiles(area_1, SIZE)
    unlabelled._list_tiles.cache_clear()

    again = list_unlabelled_tiles(replace(area_1), SIZE)

    assert again is not first
    assert again.tiles == first.tiles
    assert again.tiles == tuple(
        sorted(again.tiles, key=lambda t: (t.scene, t.window.row, t.window.col))
    )


def test_a_split_without_room_is_an_error_that_says_what_to_change(area_1):
    with pytest.raises(
        DataError, match=r"has 0 tiles of 128 pixels.*smaller `tile_size`.*`block_m`"
    ):
        list_unlabelled_tiles(area_1, 128)
