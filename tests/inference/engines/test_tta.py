"""Test-time augmentation: the mean over eight poses, in the same bits in any batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cropseg.inference.engines.engine import stream_in_batches
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.engines.tta import NUM_POSES, AugmentedEngine, pose_tile, unpose

SIDE = 12


class SlantedEngine:
    """Says something else for every pose: it looks one row down and two columns on."""

    name, precision = "slanted", "bfloat16"
    card = SimpleNamespace(site="area-1")

    def __init__(self, batch_size=3):
        self.batch_size = batch_size
        self.seen = []

    def stream(self, tiles, *, margin=0):
        return stream_in_batches(
            self.predict, tiles, batch_size=self.batch_size, margin=margin
        )

    def predict(self, tiles):
        self.seen += tiles
        return np.stack([say(tile) for tile in tiles])


def say(tile):
    """Return probabilities of two classes, (height, width, 2), float32."""
    moved = tile[..., 0] + 0.5 * np.roll(tile[..., 1], (1, 2), (0, 1))
    first = (1 / (1 + np.exp(-moved))).astype("float32")
    return np.stack([first, 1 - first], axis=-1)


@pytest.fixture
def tiles():
    rng = np.random.default_rng(4)
    return [
        (f"tile {index}", rng.normal(size=(SIDE, SIDE, 2)).astype("float32"))
        for index in range(5)
    ]


def test_the_poses_of_a_tile_differ_and_can_be_undone(tiles):
    _, values = tiles[0]
    poses = [pose_tile(values, pose) for pose in range(NUM_POSES)]
    assert len({pose.tobytes() for pose in poses}) == NUM_POSES == 8
    for pose, laid in enumerate(poses):
        assert laid.flags.c_contiguous
        np.testing.assert_array_equal(unpose(laid, pose), values)


def test_the_result_is_the_mean_of_what_is_said_of_every_pose(tiles):
    found = dict(AugmentedEngine(SlantedEngine()).stream(tiles))
    assert list(found) == [key for key, _ in tiles]
    for key, values in tiles:
        told = []
        for laid, undo in (
            (values, lambda said: said),
            (np.flip(values, 0), lambda said: np.flip(said, 0)),
            (np.flip(values, 1), lambda said: np.flip(said, 1)),
            (np.flip(values, (0, 1)), lambda said: np.flip(said, (0, 1))),
            (values.swapaxes(0, 1), lambda said: said.swapaxes(0, 1)),
            (np.rot90(values), lambda said: np.rot90(said, 3)),
            (np.rot90(values, 3), np.rot90),
            (
                np.flip(values, (0, 1)).swapaxes(0, 1),
                lambda said: np.flip(said.swapaxes(0, 1), (0, 1)),
            ),
        ):
            told.append(undo(say(laid)))
        np.testing.assert_allclose(found[key], np.mean(told, axis=0), atol=1e-6)
        assert found[key].dtype == np.float32
        assert np.abs(found[key] - say(values)).max() > 0.01


def test_a_turned_tile_gets_the_turned_result(tiles):
    engine = AugmentedEngine(SlantedEngine())
    ((_, upright),) = engine.stream(tiles[:1])
    ((_, turned),) = engine.stream([("turned", np.rot90(tiles[0][1]).copy())])
    np.testing.assert_allclose(turned, np.rot90(upright), atol=1e-6)


def test_a_margin_is_cut_off_every_pose(tiles):
    engine = AugmentedEngine(SlantedEngine())
    whole = dict(engine.stream(tiles))
    for key, found in engine.stream(tiles, margin=2):
        np.testing.assert_array_equal(found, whole[key][2:-2, 2:-2])


def test_the_bits_do_not_depend_on_the_batch_size(tiles):
    results = [
        [found for _, found in AugmentedEngine(SlantedEngine(size)).stream(tiles)]
        for size in (1, 3, 16)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(np.stack(other), np.stack(results[0]))


def test_every_tile_is_computed_eight_times_and_only_as_it_is_asked_for(tiles):
    engine = SlantedEngine(batch_size=1)
    stream = AugmentedEngine(engine).stream(tiles)
    next(stream)
    assert len(engine.seen) == NUM_POSES
    list(stream)
    assert len(engine.seen) == NUM_POSES * len(tiles)


def test_a_tile_that_is_not_square_is_refused():
    tile = np.zeros((4, 6, 2), "float32")
    with pytest.raises(ValueError, match="4 x 6 pixels"):
        list(AugmentedEngine(SlantedEngine()).stream([("tile", tile)]))


def test_it_passes_for_the_engine_inside():
    engine = SlantedEngine()
    augmented = AugmentedEngine(engine)
    assert (augmented.name, augmented.precision) == ("slanted", "bfloat16")
    assert augmented.card is engine.card


def test_a_network_gives_probabilities_that_sum_to_one(bundle):
    bands = len(bundle.card.bands)
    tile = np.random.default_rng(0).uniform(0, 4000, (32, 32, bands)).astype("float32")
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    ((_, plain),) = engine.stream([(0, tile)])
    ((_, mean),) = AugmentedEngine(engine).stream([(0, tile)])
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-5)
    assert np.abs(mean - plain).max() > 1e-3
