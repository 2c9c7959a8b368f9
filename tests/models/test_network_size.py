"""The size of a network, from its config: what Keras counts, or a little more."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cropseg.errors import ModelError
from cropseg.models import zoo
from cropseg.models.network_size import measure_config
from cropseg.runtime import keras

PATH = Path("model.keras")
QUICK = [("unet", "classic"), ("linknet", "resnet18")]


def describe(model):
    return json.loads(model.to_json())


def count(model):
    return sum(math.prod(weight.shape) for weight in model.weights)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, marks=[] if pair in QUICK else [pytest.mark.slow])
        for pair in zoo.list_pairs()
    ],
)
def test_every_network_of_the_zoo_is_counted(pair):
    keras.backend.clear_session()
    model = zoo.build_network(*pair, num_bands=5, num_classes=3)
    size = measure_config(describe(model), PATH)
    assert size.inputs == ((None, None, 5),)
    assert size.outputs == ((None, None, 3),)
    assert count(model) <= size.num_weights <= 1.1 * count(model)


def build_odd():
    """Build a network with layers that few have, at a fixed size."""
    layers = keras.layers
    image = keras.Input((16, 24, 3))
    x = layers.ZeroPadding2D(((1, 2), (0, 3)))(image)
    x = layers.Conv2D(6, (3, 5), strides=2)(x)
    x = layers.PReLU(shared_axes=[1])(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
    x = layers.GroupNormalization(groups=3)(x)
    squeezed = layers.GlobalAveragePooling2D()(x)
    squeezed = layers.Reshape((1, 1, 12))(layers.Dense(12)(squeezed))
    x = layers.Multiply()([x, squeezed])
    inner = keras.Sequential(
        [layers.SeparableConv2D(4, 3), layers.LayerNormalization()]
    )
    x = inner(x)
    x = layers.Conv2DTranspose(5, 4, strides=2)(x)
    x = keras.ops.concatenate([x, x], axis=-1)
    x = layers.Permute((2, 1, 3))(x)
    x = layers.UpSampling2D((1, 2))(layers.MaxPooling2D(2)(x))
    x = layers.Cropping2D(1)(layers.Resizing(16, 24)(x))
    return keras.Model(image, layers.Dense(7)(layers.Flatten()(x)))


def test_odd_layers_are_counted_too():
    model = build_odd()
    size = measure_config(describe(model), PATH)
    assert size.inputs == ((16, 24, 3),)
    # Cropping is not followed, so the dense layer at the end is counted too large.
    assert count(model) <= size.num_weights <= 2 * count(model)
    assert size.outputs == ((7,),)


def test_a_sequential_network_is_counted():
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    size = measure_config(describe(model), PATH)
    assert (size.inputs, size.outputs) == (((None, None, 3),), ((None, None, 4),))
    assert size.num_weights == count(model)


def change_filters(config, value):
    for layer in config["config"]["layers"]:
        if "filters" in layer["config"]:
            layer["config"]["filters"] = value


def test_a_giant_is_measured_without_being_built():
    config = describe(
        zoo.build_network("unet", "classic_tiny", num_bands=3, num_classes=2)
    )
    change_filters(config, 10**6)
    assert measure_config(config, PATH).num_weights > 10**12


@pytest.mark.parametrize("filters", [0, -3, "many", 1.5, None])
def test_impossible_sizes_are_told(filters):
    config = describe(
        zoo.build_network("unet", "classic_tiny", num_bands=3, num_classes=2)
    )
    change_filters(config, filters)
    with pytest.raises(ModelError, match="cannot be followed"):
        measure_config(config, PATH)


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "Functional", "config": {}},
        {"class_name": "Functional", "config": None},
        {"class_name": "Sequential", "config": {"layers": []}},
        {
            "class_name": "Functional",
            "config": {
                "layers": [],
                "input_layers": [["x", 0, 0]],
                "output_layers": [],
            },
        },
        {
            "class_name": "Functional",
            "config": {"layers": [], "input_layers": [], "output_layers": []},
        },
        {
            "class_name": "Sequential",
            "config": {
                "layers": [
                    {"class_name": "InputLayer", "config": {"batch_shape": [None]}}
                ]
            },
        },
    ],
)
def test_what_is_no_graph_is_told(config):
    with pytest.raises(ModelError, match="cannot be followed"):
        measure_config(config, PATH)
