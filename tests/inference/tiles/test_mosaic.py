"""Tiles of a scene: they partition it, overlap enough, and do not depend on batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropseg.errors import ModelError, UsageError
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.tiles.mosaic import PredictedTile, predict_area, predict_tiles
from cropseg.inference.tiles.tile_shape import choose_tile_shape
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.raster import open_raster
from cropseg.sites.tiling import iterate_tiles

RADIUS = 3  # the stand-in looks 3 rows and 6 columns far


@pytest.fixture
def write_scene(write_raster, tmp_path):
    """Write a scene of one band of random integers, with some nodata."""

    def write(height, width, holes=()):
        values = np.random.default_rng(8).integers(1, 999, (height, width), "int16")
        for hole in holes:
            values[hole] = -1
        return write_raster(tmp_path / "scene.tif", values, nodata=-1), values

    return write


class OneBand:
    """Reads the first band, and remembers which windows."""

    def __init__(self, reader):
        self.reader = reader
        self.windows = []

    def read_pixels(self, window):
        self.windows.append(window)
        return self.reader.read(window, [0])


def predict_scene(engine, path, shape):
    """Return the class map of a whole scene, and how often each pixel was given."""
    with open_raster(path) as reader:
        grid = reader.header.grid
        tiles = iterate_tiles(
            grid.window, core_size=shape.core_size, context=shape.context
        )
        classes = np.full((grid.height, grid.width), IGNORE, "uint8")
        times = np.zeros((grid.height, grid.width), int)
        for tile in predict_tiles(engine, OneBand(reader), grid, tiles):
            place = tile.window.slices_in(grid.window)
            assert tile.classes.shape == (tile.window.height, tile.window.width)
            classes[place] = tile.classes
            times[place] += 1
    return classes, times


def test_the_default_is_512_pixels_with_64_of_context():
    shape = choose_tile_shape(16)
    assert (shape.size, shape.context, shape.core_size) == (512, 64, 384)
    assert choose_tile_shape(48).size == 528


def test_a_small_tile_has_a_quarter_of_context():
    shape = choose_tile_shape(4, size=32)
    assert (shape.size, shape.context, shape.core_size) == (32, 8, 16)
    assert choose_tile_shape(32, size=64).context == 0


@given(multiple=st.integers(1, 96), times=st.integers(1, 40))
def test_any_chosen_shape_keeps_origins_on_the_stride(multiple, times):
    for size in (None, multiple * times):
        shape = choose_tile_shape(multiple, size=size)
        assert shape.size % multiple == shape.context % multiple == 0
        assert shape.core_size % multiple == 0
        assert shape.core_size > 0
        if size is None:
            assert abs(shape.size - 512) <= multiple / 2


@pytest.mark.parametrize(
    ("size", "context"),
    [(100, None), (96, 20), (64, 32), (64, 96), (0, None), (64, -32)],
)
def test_a_shape_that_cannot_work_is_refused(size, context):
    with pytest.raises(UsageError, match="multiples of 32") as error:
        choose_tile_shape(32, size=size, context=context)
    assert f"Tile size {size}" in str(error.value)


@pytest.mark.parametrize(
    ("height", "width"), [(40, 56), (35, 47), (67, 103), (5, 9), (1, 70), (32, 1)]
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_cores_partition_the_scene_and_none_shows_a_seam(
    height, width, batch_size, write_scene, make_engine
):
    path, values = write_scene(height, width)
    engine = make_engine(batch_size=batch_size, radius=RADIUS)
    shape = choose_tile_shape(8, size=32)
    classes, times = predict_scene(engine, path, shape)
    assert (times == 1).all()
    margin = 40  # the scene and its mirror image, as one array
    whole = np.pad(values, margin, mode="reflect")[..., None]
    expected = engine.predict_one(whole).argmax(axis=-1)[margin:-margin, margin:-margin]
    np.testing.assert_array_equal(classes, expected)


def test_a_tile_at_the_border_holds_the_mirror_image(write_scene, make_engine):
    path, values = write_scene(20, 12)
    engine = make_engine()
    predict_scene(engine, path, choose_tile_shape(4, size=32))
    first, *_ = engine.tiles
    assert len(engine.tiles) == math.ceil(20 / 16)
    assert first.shape == (32, 32, 1)
    band = first[..., 0]
    np.testing.assert_array_equal(band[8:28, 8:20], values)
    np.testing.assert_array_equal(band[8:20, 8:20], values[:12])
    np.testing.assert_array_equal(band[7, 8:20], values[1])  # the edge is not doubled
    np.testing.assert_array_equal(band[0, 8:20], values[8])
    np.testing.assert_array_equal(band[8:28, 7], values[:, 1])
    np.testing.assert_array_equal(band[8:28, 20], values[:, -2])


def test_only_windows_inside_the_scene_are_read(write_scene, make_engine):
    path, _ = write_scene(35, 47)
    with open_raster(path) as reader:
        grid = reader.header.grid
        bands = OneBand(reader)
        tiles = iterate_tiles(grid.window, core_size=16, context=8)
        assert list(predict_tiles(make_engine(), bands, grid, tiles))
    assert len(bands.windows) == 3 * 3
    for window in bands.windows:
        assert window == window.clip(height=35, width=47)
        assert max(window.height, window.width) <= 32


def test_invalid_pixels_are_255_and_the_others_are_not(write_scene, make_engine):
    holes = [np.s_[3:30, 10:12], np.s_[33, :], np.s_[:, 40]]
    path, values = write_scene(35, 47, holes)
    classes, _ = predict_scene(make_engine(), path, choose_tile_shape(4, size=32))
    np.testing.assert_array_equal(classes == IGNORE, values == -1)


def test_a_tile_without_data_in_its_core_is_not_computed(write_scene, make_engine):
    path, values = write_scene(32, 64, [np.s_[:16, 16:48]])
    engine = make_engine(batch_size=2)
    classes, times = predict_scene(engine, path, choose_tile_shape(4, size=32))
    assert sum(engine.batches) == 2 * 4 - 2
    assert (times == 1).all()
    np.testing.assert_array_equal(classes == IGNORE, values == -1)


def test_a_scene_without_data_is_not_computed_at_all(write_scene, make_engine):
    path, _ = write_scene(20, 33, [np.s_[:]])
    engine = make_engine()
    classes, _ = predict_scene(engine, path, choose_tile_shape(4, size=32))
    assert engine.batches == []
    assert (classes == IGNORE).all()


def test_batches_are_filled_and_the_last_one_holds_the_rest(write_scene, make_engine):
    path, _ = write_scene(35, 47, [np.s_[:16, :16]])
    engine = make_engine(batch_size=3)
    predict_scene(engine, path, choose_tile_shape(4, size=32))
    assert engine.batches == [3, 3, 2]


def test_part_of_a_scene_is_predicted_as_in_the_whole(write_scene, make_engine):
    path, _ = write_scene(35, 47)
    engine = make_engine(radius=RADIUS)
    shape = choose_tile_shape(8, size=32)
    whole, _ = predict_scene(engine, path, shape)
    with open_raster(path) as reader:
        grid = reader.header.grid
        tiles = list(iterate_tiles(grid.window, core_size=16, context=8))[3:5]
        found = list(predict_tiles(engine, OneBand(reader), grid, tiles))
    assert [tile.window for tile in found] == [
        Window(row=16, col=0, height=16, width=16),
        Window(row=16, col=16, height=16, width=16),
    ]
    for tile in found:
        np.testing.assert_array_equal(
            tile.classes, whole[tile.window.slices_in(grid.window)]
        )


@pytest.mark.parametrize("size", [32, 64])
def test_the_class_map_does_not_depend_on_the_batch_size(size, site, bundle):
    shape = choose_tile_shape(bundle.card.tile_multiple, size=size)
    scene = site.scenes[0]
    maps = []
    for batch_size in (1, 2, 3):
        engine = KerasEngine(bundle, batch_size=batch_size, precision="float32")
        classes = np.full((scene.grid.height, scene.grid.width), IGNORE, "uint8")
        with site.open_scene(scene) as reader:
            tiles = iterate_tiles(
                scene.grid.window, core_size=shape.core_size, context=shape.context
            )
            for tile in predict_tiles(engine, reader, scene.grid, tiles):
                classes[tile.window.slices_in(scene.grid.window)] = tile.classes
        maps.append(classes)
    assert len(np.unique(maps[0])) >= 3  # two classes or more, and 255
    np.testing.assert_array_equal(maps[1], maps[0])
    np.testing.assert_array_equal(maps[2], maps[0])


def test_where_no_class_is_wanted_a_pixel_is_255_and_still_context(
    write_scene, make_engine
):
    path, _ = write_scene(35, 47, [np.s_[3:9, 10:12]])
    engine = make_engine(radius=RADIUS)
    shape = choose_tile_shape(8, size=32)
    whole, _ = predict_scene(engine, path, shape)
    wanted = np.zeros((35, 47), bool)
    wanted[2:11, 9:17] = True
    engine = make_engine(radius=RADIUS)
    with open_raster(path) as reader:
        grid = reader.header.grid
        bands = OneBand(reader)
        found = np.full((35, 47), 99, "uint8")
        for tile in predict_area(
            engine,
            bands,
            grid,
            grid.window,
            shape=shape,
            keep=lambda window: wanted[window.slices_in(grid.window)],
        ):
            found[tile.window.slices_in(grid.window)] = tile.classes
    np.testing.assert_array_equal(found, np.where(wanted, whole, IGNORE))
    assert len(bands.windows) == sum(engine.batches) == 2  # of nine tiles


@given(
    num_classes=st.integers(1, 9),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_the_class_is_the_first_of_the_highest_probability(num_classes, seed, dtype):
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 4, (6, 5, num_classes)) / 4  # with many ties
    probabilities = steps.astype(dtype)
    valid = rng.random((6, 5)) < 0.8
    tile = PredictedTile(
        window=Window(row=0, col=0, height=6, width=5),
        valid=valid,
        probabilities=probabilities,
    )
    best = np.where(valid, probabilities.argmax(axis=-1), IGNORE)
    np.testing.assert_array_equal(tile.classes, best)
    highest = np.where(valid, probabilities.max(axis=-1), 0)
    np.testing.assert_array_equal(tile.confidence, highest)


@pytest.mark.parametrize("position", [0, 2])
def test_a_probability_that_is_not_a_number_is_no_class(position):
    probabilities = np.full((2, 2, 3), 0.3, "float32")
    probabilities[1, 0, position] = np.nan
    window = Window(row=4, col=8, height=2, width=2)
    valid = np.ones((2, 2), bool)
    tile = PredictedTile(window=window, valid=valid, probabilities=probabilities)
    with pytest.raises(ModelError, match="not numbers, from row 4, column 8"):
        _ = tile.classes
    valid[1, 0] = False  # what a model makes of no data is nobody's concern
    tile = PredictedTile(window=window, valid=valid, probabilities=probabilities)
    assert tile.classes.tolist() == [[0, 0], [IGNORE, 0]]
