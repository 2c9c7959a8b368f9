"""The config of a network: only known layers pass, and Keras 2 becomes Keras 3."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from cropseg.errors import ModelError, UnsafeFileError
from cropseg.models.network_config import check_config, translate_config
from cropseg.models.network_size import LAYERS, measure_config
from cropseg.runtime import keras

PATH = Path("model.keras")


def make_config(**layer):
    """Return a network of one layer on an image of 32 x 32 x 4."""
    return {
        "class_name": "Functional",
        "config": {
            "name": "net",
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"batch_input_shape": [None, 32, 32, 4], "name": "i"},
                    "name": "i",
                    "inbound_nodes": [],
                },
                {
                    "class_name": "Conv2D",
                    "name": "x",
                    "inbound_nodes": [[["i", 0, 0, {}]]],
                    **layer,
                    "config": {"name": "x", **layer.get("config", {})},
                },
            ],
            "input_layers": [["i", 0, 0]],
            "output_layers": [["x", 0, 0]],
        },
    }


def test_every_layer_that_may_be_loaded_is_one_of_keras():
    assert all(hasattr(keras.layers, name) for name in LAYERS)


@pytest.mark.parametrize(
    "name", ["Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "LSTM"]
)
def test_no_layer_passes_that_runs_code_or_whose_size_is_unknown(name):
    assert hasattr(keras.layers, name)
    with pytest.raises(UnsafeFileError, match=name) as error:
        check_config(make_config(class_name=name), PATH)
    assert error.value.exit_code == 5


def nest(thing):
    return {"filters": 2, "kernel_size": 1, "kernel_initializer": thing}


@pytest.mark.parametrize(
    "layer",
    [
        {"class_name": "MyAttention"},
        {"module": "os", "class_name": "system"},
        {"module": "someones.package", "class_name": "Conv2D"},
        {"registered_name": "their>Conv2D"},
        {"module": "keras.utils", "class_name": "get_file"},
        {"module": "keras.src.ops.numpy", "class_name": "Zeros"},
        {"class_name": "TFOpLambda"},
        {"config": nest({"class_name": "__lambda__", "config": {"value": "x"}})},
        {"config": nest({"class_name": "__numpy__", "config": {"value": 1}})},
        {"config": nest({"class_name": "Evil", "config": {}})},
        {"config": {"activation": {"class_name": "function", "config": "evil"}}},
        {
            "config": {
                "activation": {
                    "class_name": "function",
                    "config": "relu",
                    "module": "os",
                }
            }
        },
        {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda"}]}},
    ],
)
def test_strangers_are_refused_wherever_they_hide(layer):
    with pytest.raises(UnsafeFileError, match=r"model\.keras holds"):
        check_config(make_config(**layer), PATH)


def test_all_strangers_are_named():
    config = make_config(class_name="Lambda")
    config["config"]["layers"].append({"class_name": "Evil", "config": {}})
    with pytest.raises(UnsafeFileError, match="holds Evil, Lambda"):
        check_config(config, PATH)


def test_the_training_config_is_not_looked_at():
    config = make_config() | {"compile_config": {"loss": {"class_name": "TheirLoss"}}}
    check_config(config, PATH)


def test_networks_of_keras_3_pass(build_unet):
    model = build_unet()
    image = keras.Input((None, None, 4))
    added = keras.ops.relu(model.layers[1](image) + 1.5)
    added = keras.layers.Conv2D(2, 1, kernel_regularizer="l2", dtype="mixed_bfloat16")(
        added
    )
    mixed = keras.Model(image, keras.layers.Activation(keras.activations.silu)(added))
    for network in (model, mixed):
        check_config(keras.saving.serialize_keras_object(network), PATH)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("BatchNormalization", {"axis": [3]}),
        ("BatchNormalizationV1", {"axis": [3]}),
        ("DepthwiseConv2D", {"kernel_size": [3, 3], "groups": 1}),
        ("Conv2DTranspose", {"kernel_size": [3, 3], "filters": 2, "groups": 1}),
        (
            "SeparableConv2D",
            {
                "kernel_size": [3, 3],
                "filters": 2,
                "groups": 1,
                "kernel_initializer": {"class_name": "GlorotUniform", "config": {}},
            },
        ),
        ("LeakyReLU", {"alpha": 0.25}),
        ("FixedDropout", {"rate": 0.5, "noise_shape": [None, 1, 1, 1]}),
        ("Activation", {"activation": "swish"}),
        (
            "Conv2D",
            {
                "kernel_size": [3, 3],
                "filters": 2,
                "dtype": {"class_name": "Policy", "config": {"name": "float32"}},
                "kernel_initializer": {
                    "class_name": "RandomUniform",
                    "config": {"minval": -0.1, "maxval": 0.1, "dtype": "float32"},
                },
            },
        ),
    ],
)
def test_what_keras_2_wrote_is_built_by_keras_3(name, config):
    written = make_config(class_name=name, config=config)
    before = copy.deepcopy(written)
    check_config(written, PATH)
    translated = translate_config(written, PATH)
    assert written == before
    layer = keras.Model.from_config(translated["config"]).layers[-1]
    assert type(layer).__name__ == {
        "BatchNormalizationV1": "BatchNormalization",
        "FixedDropout": "Dropout",
    }.get(name, name)
    if name == "LeakyReLU":
        assert layer.negative_slope == 0.25


def test_groups_that_keras_3_cannot_do_are_not_dropped():
    config = {"kernel_size": [3, 3], "filters": 2, "groups": 2}
    translated = translate_config(
        make_config(class_name="Conv2DTranspose", config=config), PATH
    )
    assert translated["config"]["layers"][1]["config"]["groups"] == 2


def describe_old(name, source, *, kind="Model", layer=None, ends=1):
    """Return a network around one layer, as Keras 2 wrote it."""
    layer = layer or {
        "class_name": "Conv2D",
        "config": {"name": "conv", "filters": 2, "kernel_size": [1, 1]},
        "name": "conv",
        "inbound_nodes": [[[source, 0, 0, {}]]],
    }
    return {
        "class_name": kind,
        "name": name,
        "config": {
            "name": name,
            "layers": [
                {
                    "class_name": "InputLayer",
                    "config": {"batch_input_shape": [None, 8, 8, 4], "name": source},
                    "name": source,
                    "inbound_nodes": [],
                },
                layer,
            ],
            "input_layers": [[source, 0, 0]],
            "output_layers": [[layer["name"], ends, 0]],
        },
    }


@pytest.mark.parametrize("last", ["model", "sequential", "layer"])
def test_nested_networks_of_keras_2_are_built_by_keras_3(last):
    inner = describe_old("inner", "i", ends=0)
    inner["inbound_nodes"] = [[["image", 0, 0, {}]]]
    chain = {
        "class_name": "Sequential",
        "name": "chain",
        "config": {
            "name": "chain",
            "layers": [
                {
                    "class_name": "Conv2D",
                    "config": {
                        "name": "c",
                        "filters": 3,
                        "kernel_size": [1, 1],
                        "batch_input_shape": [None, 8, 8, 2],
                    },
                }
            ],
        },
        "inbound_nodes": [[["inner", 1, 0, {}]]],
    }
    relu = {
        "class_name": "ReLU",
        "name": "relu",
        "config": {"name": "relu"},
        "inbound_nodes": [[["chain", 1, 0, {}]]],
    }
    outer = describe_old("outer", "image", layer=inner, ends=1)
    outer["config"]["layers"] += [chain, relu]
    end = {"model": ["inner", 1, 0], "sequential": ["chain", 1, 0]}
    outer["config"]["output_layers"] = [end.get(last, ["relu", 0, 0])]
    check_config(outer, PATH)
    translated = translate_config(outer, PATH)
    size = measure_config(translated, PATH)
    model = keras.Model.from_config(translated["config"])
    classes = 2 if last == "model" else 3
    assert model.output_shape == (None, 8, 8, classes)
    assert size.outputs == ((8, 8, classes),)


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "Sequential", "config": {"layers": []}},
        {"class_name": "Model", "config": {"layers": [1]}},
        {"class_name": "Model", "config": {"layers": [{}]}},
        {"class_name": "Model", "config": {"layers": 3}},
    ],
)
def test_what_is_no_network_is_told(config):
    with pytest.raises(ModelError, match="cannot be followed"):
        translate_config(config, PATH)


def test_a_config_nested_without_end_is_refused():
    config = {"class_name": "Dropout", "config": {}}
    for _ in range(3000):
        config = {"class_name": "Dropout", "config": config}
    with pytest.raises(UnsafeFileError, match="nested"):
        check_config(config, PATH)


def test_an_old_chain_gets_an_input():
    layer = {
        "class_name": "Conv2D",
        "config": {
            "name": "c",
            "filters": 3,
            "kernel_size": [1, 1],
            "batch_input_shape": [None, 8, 8, 2],
        },
    }
    for config in ([layer], {"name": "chain", "layers": [layer]}):
        written = {"class_name": "Sequential", "config": config}
        translated = translate_config(written, PATH)
        model = keras.Sequential.from_config(translated["config"])
        assert model.input_shape == (None, 8, 8, 2)
        assert measure_config(translated, PATH).outputs == ((8, 8, 3),)
