"""What is stored for a tile, and what it means when it is read with its scale."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cropseg.inference.outputs.layers import PROBABILITY_SCALE, list_layers
from cropseg.inference.tiles.mosaic import PredictedTile
from cropseg.sites.grid import Window

WINDOW = Window(row=3, col=5, height=2, width=3)


@pytest.fixture
def tile():
    """A tile of 2 x 3 pixels and 4 classes; the last pixel has no data."""
    probabilities = np.zeros((2, 3, 4), "float32")
    probabilities[..., 2] = 0.7
    probabilities[..., 0] = 0.3
    probabilities[0, 1] = [0, 1, 0, 0]
    probabilities[1, 0] = [0.25, 0.2499, 0.2501, 0.25]
    valid = np.ones((2, 3), bool)
    valid[1, 2] = False
    return PredictedTile(window=WINDOW, valid=valid, probabilities=probabilities)


@pytest.fixture
def layers(card):
    return {
        layer.name: layer
        for layer in list_layers(card, confidence=True, probabilities=True)
    }


def test_only_the_classes_are_listed_unless_more_is_asked_for(card):
    assert [layer.name for layer in list_layers(card)] == ["classes"]
    more = list_layers(card, probabilities=True)
    assert [layer.name for layer in more] == ["classes", "probabilities"]


def test_a_file_is_named_by_its_scene_and_layer(layers):
    names = [layer.name_file("north.east") for layer in layers.values()]
    assert names == [
        "north.east_classes.tif",
        "north.east_confidence.tif",
        "north.east_probabilities.tif",
    ]


def test_probabilities_have_a_band_for_each_class(layers, card):
    assert layers["probabilities"].band_names == card.class_names
    assert [layer.num_bands for layer in layers.values()] == [1, 1, 4]


def test_classes_are_stored_as_ids(layers, tile):
    stored = layers["classes"].encode(tile)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored[..., 0], [[2, 1, 2], [2, 2, 255]])


def test_stored_probabilities_times_the_scale_are_near_the_probabilities(layers, tile):
    stored = layers["probabilities"].encode(tile)
    assert stored.dtype == np.uint8
    assert (stored[1, 2] == 255).all()
    decoded = stored[tile.valid] * PROBABILITY_SCALE
    error = np.abs(decoded - tile.probabilities[tile.valid]).max()
    assert 0 < error <= PROBABILITY_SCALE / 2 + 1e-6


def test_the_confidence_is_the_probability_of_the_class(layers, tile):
    stored = layers["confidence"].encode(tile)[..., 0]
    np.testing.assert_array_equal(stored, [[175, 250, 175], [63, 175, 255]])


def test_a_sum_a_little_above_one_is_stored_as_one(layers, tile):
    tile.probabilities[0, 1] = [0, 1.004, 0, -0.004]
    assert layers["probabilities"].encode(tile)[0, 1].tolist() == [0, 250, 0, 0]


@pytest.mark.parametrize("name", ["classes", "confidence", "probabilities"])
def test_a_tile_without_data_is_stored_as_no_data(layers, name):
    empty = PredictedTile(window=WINDOW, valid=None, probabilities=None)
    stored = layers[name].encode(empty)
    assert stored.shape == (2, 3, layers[name].num_bands)
    assert (stored == 255).all()


def test_a_layer_survives_the_way_to_another_process(layers, tile):
    for layer in layers.values():
        other = pickle.loads(pickle.dumps(layer))  # noqa: S301
        assert other == layer
        np.testing.assert_array_equal(other.encode(tile), layer.encode(tile))
