"""Blended tiles: a weighted mean with no seam, the same bits in any area and batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from cropseg.inference.engines.engine import stream_in_batches
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.tiles.blend import blend_tiles
from cropseg.inference.tiles.mosaic import predict_tiles
from cropseg.inference.tiles.tile_shape import SEAM_SHARE, TileShape
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.tiling import iterate_tiles

SHAPE = TileShape(size=32, context=8)


class ArrayReader:
    """A scene in memory that remembers what was read."""

    def __init__(self, height, width, holes=()):
        rng = np.random.default_rng(6)
        self.values = rng.normal(size=(height, width, 2)).astype("float32")
        self.valid = np.ones((height, width), bool)
        for hole in holes:
            self.valid[hole] = False
        self.windows = []
        transform = Affine(10, 0, 6e5, 0, -8, 5e6)
        crs = CRS.from_epsg(32614)
        self.grid = Grid(height=height, width=width, transform=transform, crs=crs)

    def read_pixels(self, window):
        assert window == window.clip(height=self.grid.height, width=self.grid.width)
        self.windows.append(window)
        place = window.slices_in(self.grid.window)
        return Pixels(values=self.values[place], valid=self.valid[place])


class EdgyEngine:
    """Says another thing of a pixel in every tile: sums from the tile's corner."""

    name, precision = "edgy", "float32"
    card = SimpleNamespace(nodata_fill=(0.25, -0.5))

    def __init__(self, batch_size=1):
        self.batch_size = batch_size
        self.num_tiles = 0

    def stream(self, tiles, *, margin=0):
        return stream_in_batches(
            self.predict, tiles, batch_size=self.batch_size, margin=margin
        )

    def predict(self, tiles):
        self.num_tiles += len(tiles)
        return np.stack([say(tile) for tile in tiles])


def say(tile):
    """Return probabilities of three classes, (height, width, 3), float32."""
    sums = tile.cumsum(0).cumsum(1)
    scores = np.stack([sums[..., 0], sums[..., 1], 0 * sums[..., 0]], axis=-1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (scores / scores.sum(axis=-1, keepdims=True)).astype("float32")


def gather(tiles, area):
    """Put tiles together: probabilities, classes, and how often a pixel was given."""
    probabilities = np.full((area.height, area.width, 3), np.nan, "float32")
    classes = np.full((area.height, area.width), IGNORE, "uint8")
    times = np.zeros((area.height, area.width), int)
    for tile in tiles:
        place = tile.window.slices_in(area)
        times[place] += 1
        classes[place] = tile.classes
        if tile.probabilities is not None:
            probabilities[place] = tile.probabilities
    return probabilities, classes, times


def blend(reader, area=None, *, engine=None, shape=SHAPE, keep=None):
    area = area or reader.grid.window
    engine = engine or EdgyEngine()
    tiles = blend_tiles(engine, reader, reader.grid, area, shape=shape, keep=keep)
    return gather(tiles, area)


def blend_slowly(reader, shape):
    """Blend a whole scene as one reads it in the docstring, in float64."""
    height, width = reader.grid.height, reader.grid.width
    side, context = shape.core_size, shape.context
    seam = min(round(SEAM_SHARE * context), side) // 2 * 2
    margin = shape.size  # the scene and its mirror image, as one array
    values = np.where(
        reader.valid[..., None], reader.values, EdgyEngine.card.nodata_fill
    )
    padding = ((margin, margin), (margin, margin), (0, 0))
    mirrored = np.pad(values.astype("float32"), padding, mode="reflect")
    total = np.zeros((height, width, 3))
    weight_sum = np.zeros((height, width, 1))
    for row in range(0, height, side):
        for col in range(0, width, side):
            window = Window(row=row, col=col, height=side, width=side).grow(context)
            first, left = margin + window.row, margin + window.col
            said = say(mirrored[first : first + shape.size, left : left + shape.size])
            weights = np.outer(
                ramp(np.arange(height), row, side, seam, height),
                ramp(np.arange(width), col, side, seam, width),
            )[..., None]
            inside = window.clip(height=height, width=width)
            place = inside.slices_in(reader.grid.window)
            total[place] += weights[place] * said[inside.slices_in(window)]
            weight_sum += weights
    np.testing.assert_allclose(weight_sum, 1)
    return total


def ramp(places, start, side, seam, length):
    """Return the weight of a tile at each place along one axis."""
    rising = np.clip((places + 0.5 - start) / max(seam, 1e-9) + 0.5, 0, 1)
    falling = np.clip((start + side - places - 0.5) / max(seam, 1e-9) + 0.5, 0, 1)
    rising = rising if start > 0 else np.ones(len(places))
    return rising * (falling if start + side < length else 1)


SIZES = [(40, 56), (67, 103), (16, 33), (5, 9), (1, 70), (49, 2)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("shape", [SHAPE, TileShape(size=40, context=16)])
def test_a_pixel_is_the_weighted_mean_of_the_tiles_around_it(height, width, shape):
    reader = ArrayReader(height, width, [np.s_[3:5, 1:3]])
    found, classes, times = blend(reader, shape=shape)
    assert (times == 1).all()
    expected = blend_slowly(reader, shape)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(classes == IGNORE, ~reader.valid)


def test_it_fades_from_one_tile_to_the_next():
    class Numbering(EdgyEngine):
        def predict(self, tiles):
            found = []
            for _ in tiles:
                found.append(np.zeros((32, 32, 3), "float32"))
                found[-1][..., self.num_tiles % 2] = 1
                self.num_tiles += 1
            return np.stack(found)

    found, _, _ = blend(ArrayReader(16, 32), engine=Numbering())
    seam = 4  # half as wide as the context, around column 16
    np.testing.assert_array_equal(found[:, :14, 0], 1)
    np.testing.assert_array_equal(found[:, 18:, 0], 0)
    steps = 1 - (np.arange(seam) + 0.5) / seam
    np.testing.assert_allclose(found[5, 14:18, 0], steps, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_area_has_the_same_bits_as_the_whole(data):
    height, width = data.draw(st.sampled_from(SIZES))
    rows = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2)))
    cols = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2)))
    area = Window(
        row=rows[0], col=cols[0], height=rows[1] - rows[0], width=cols[1] - cols[0]
    )
    reader = ArrayReader(height, width, [np.s_[10:40, 12:60]])
    whole, classes, _ = blend(reader, engine=EdgyEngine(batch_size=4))
    found, found_classes, times = blend(reader, area)
    assert (times == 1).all()
    place = area.slices_in(reader.grid.window)
    valid = reader.valid[place]
    np.testing.assert_array_equal(found[valid], whole[place][valid])
    np.testing.assert_array_equal(found_classes, classes[place])


def test_bands_of_tile_rows_have_the_same_bits_as_the_whole():
    reader = ArrayReader(67, 103)
    whole, *_ = blend(reader)
    for row in range(0, 67, 32):
        height = min(32, 67 - row)
        area = Window(row=row, col=0, height=height, width=103)
        engine = EdgyEngine()
        found, _, times = blend(reader, area, engine=engine)
        assert (times == 1).all()
        np.testing.assert_array_equal(found, whole[row : row + height])
        rows_of_tiles = 2 + (row > 0) + (row + height < 67) if row < 64 else 2
        assert engine.num_tiles == 7 * rows_of_tiles


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_the_bits_do_not_depend_on_the_batch_size(batch_size):
    reader = ArrayReader(67, 103, [np.s_[20:60, 30:90]])
    one, *_ = blend(reader)
    many, *_ = blend(reader, engine=EdgyEngine(batch_size))
    np.testing.assert_array_equal(one[reader.valid], many[reader.valid])


def test_a_tile_of_no_weight_on_data_is_not_computed_and_changes_nothing():
    hole = np.s_[16 - 2 : 32 + 2, 32 - 2 : 48 + 2]  # the support of one tile
    reader = ArrayReader(67, 103, [hole])
    engine = EdgyEngine()
    found, classes, _ = blend(reader, engine=engine)
    assert engine.num_tiles == 5 * 7 - 1
    np.testing.assert_allclose(
        found[reader.valid], blend_slowly(reader, SHAPE)[reader.valid], atol=2e-6
    )
    np.testing.assert_array_equal(classes == IGNORE, ~reader.valid)
    nearly = ArrayReader(67, 103, [hole])
    nearly.valid[33, 49] = True  # the last pixel of that support
    engine = EdgyEngine()
    blend(nearly, engine=engine)
    assert engine.num_tiles == 5 * 7


def test_pixels_that_are_not_wanted_are_255_and_the_others_as_ever():
    reader = ArrayReader(67, 103)
    wanted = np.zeros((67, 103), bool)
    wanted[30:50, 70:75] = True  # the upper seam of row 2 starts at row 30
    wanted[0, 0] = True

    def keep(window):
        assert window == window.clip(height=67, width=103)
        return wanted[window.slices_in(reader.grid.window)]

    whole, *_ = blend(reader)
    reader.windows.clear()
    engine = EdgyEngine()
    found, classes, times = blend(reader, engine=engine, keep=keep)
    assert (times == 1).all()
    np.testing.assert_array_equal(found[wanted], whole[wanted])
    np.testing.assert_array_equal(classes == IGNORE, ~wanted)
    # One in the corner, rows 16 to 64 in three rows of tiles, columns 64 to 80 in one.
    assert len(reader.windows) == engine.num_tiles == 1 + 3


def test_an_area_without_data_is_not_computed():
    reader = ArrayReader(40, 50, [np.s_[:]])
    engine = EdgyEngine()
    _, classes, times = blend(reader, engine=engine)
    assert (times == 1).all()
    assert engine.num_tiles == 0
    assert (classes == IGNORE).all()


def test_tiles_without_context_meet_at_a_line():
    reader = ArrayReader(40, 56)
    shape = TileShape(size=16, context=0)
    tiles = iterate_tiles(reader.grid.window, core_size=16)
    plain = predict_tiles(EdgyEngine(), reader, reader.grid, tiles)
    expected, *_ = gather(plain, reader.grid.window)
    found, *_ = blend(reader, shape=shape)
    np.testing.assert_array_equal(found, expected)


def test_pixels_are_given_as_soon_as_they_are_final():
    reader = ArrayReader(320, 64)
    tiles = blend_tiles(
        EdgyEngine(), reader, reader.grid, reader.grid.window, shape=SHAPE
    )
    next(tiles)
    assert len(reader.windows) == 1
    for _ in range(4):
        next(tiles)
    assert len(reader.windows) == 5


def test_a_network_is_blended_the_same_way_for_any_batch_size(site, bundle):
    scene = site.scenes[0]
    shape = TileShape(size=32, context=8)
    results = []
    for batch_size in (1, 3):
        engine = KerasEngine(bundle, batch_size=batch_size, precision="float32")
        classes = np.full((scene.grid.height, scene.grid.width), IGNORE, "uint8")
        with site.open_scene(scene) as reader:
            for tile in blend_tiles(
                engine, reader, scene.grid, scene.grid.window, shape=shape
            ):
                classes[tile.window.slices_in(scene.grid.window)] = tile.classes
        results.append(classes)
    assert len(np.unique(results[0])) >= 3
    np.testing.assert_array_equal(*results)
