"""What every network of the zoo keeps: names, files, gradients, stages, sizes.

The networks are those of `list_pairs()`. One is built by default,
the rest with `-m slow`. All pairs share one fresh process, which imports Keras
and nothing of cropseg.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropseg.errors import ModelError, UsageError
from cropseg.models import zoo
from cropseg.models.stages import PARTS
from cropseg.runtime import keras

NUM_BANDS = 5
NUM_CLASSES = 3

QUICK = (("unet", "classic_tiny"),)

STRIDES = {
    "classic": [1, 2, 4, 8, 16],
    "classic_tiny": [1, 2, 4],
    "vgg16": [2, 4, 8, 16],  # nothing but a pooling follows
    "vgg19": [2, 4, 8, 16],
}

LAYERS = {
    *("InputLayer", "Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU"),
    *("Activation", "Softmax", "Dropout", "Add", "Multiply", "Concatenate"),
    *("MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D"),
    *("UpSampling2D", "ZeroPadding2D", "Reshape"),
}

RELOAD = """
import json, sys
import keras, numpy as np
for line in sys.stdin:
    job = json.loads(line)
    keras.backend.clear_session()
    model = keras.models.load_model(job["model"])
    np.save(job["output"], model(np.load(job["input"]), training=False))  # no tracing
    strangers = [x for x in sys.modules if x.startswith(("cropseg", "segmentation_"))]
    print(json.dumps({"strangers": strangers}), flush=True)
"""

Reload = Callable[[Any, Any, Path], Any]


def make_pixels(
    pair: tuple[str, str], *, tiles: int = 2, rows: int = 1, columns: int = 1
) -> Any:
    """Make tiles of so many multiples, without any symmetry."""
    side = zoo.get_tile_multiple(*pair)
    shape = (tiles, rows * side, columns * side, NUM_BANDS)
    return np.random.default_rng(7).normal(0.3, 1.1, shape).astype("float32")


def build(pair: tuple[str, str]) -> Any:
    return zoo.build_network(*pair, num_bands=NUM_BANDS, num_classes=NUM_CLASSES)


def list_names(model: Any) -> list[tuple[str, list[str]]]:
    return [(x.name, [weight.path for weight in x.weights]) for x in model.layers]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            pair,
            id="-".join(pair),
            marks=[] if pair in QUICK else [pytest.mark.slow],
        )
        for pair in zoo.list_pairs()
    ],
)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture(scope="module")
def network(pair: tuple[str, str]) -> Iterator[Any]:
    """Build the pair after some other layers, as in the middle of a session."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    keras.layers.Conv2D(1, 1)
    keras.layers.BatchNormalization()
    yield build(pair)
    keras.backend.clear_session()
    gc.collect()


@pytest.fixture(scope="module")
def reload_and_predict() -> Iterator[Reload]:
    """Give a function that saves, reloads and predicts in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", RELOAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",  # the repository is not on its path
        env={**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        text=True,
    ) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def reload_and_predict(model: Any, pixels: Any, folder: Path) -> Any:
            job = {
                name: str(folder / f"{name}.{ending}")
                for name, ending in (
                    ("model", "keras"),
                    ("input", "npy"),
                    ("output", "npy"),
                )
            }
            model.save(job["model"])
            np.save(job["input"], pixels)
            print(json.dumps(job), file=requests, flush=True)
            answer = answers.readline()
            assert answer, "the fresh process could not load or predict"
            assert json.loads(answer) == {"strangers": []}
            Path(job["model"]).unlink()
            return np.load(job["output"])

        yield reload_and_predict
        requests.close()


def test_a_network_has_the_form_that_the_bundle_relies_on(network: Any) -> None:
    *_, head, softmax = network.layers
    assert network.inputs[0].name == "pixels"
    assert network.inputs[0].dtype == "float32"
    assert network.input_shape == (None, None, None, NUM_BANDS)
    assert network.output_shape[-1] == NUM_CLASSES
    assert (head.name, type(head), head.filters) == (
        "head",
        keras.layers.Conv2D,
        NUM_CLASSES,
    )
    assert keras.activations.serialize(head.activation) == "linear"
    assert (softmax.name, softmax.dtype) == ("probabilities", "float32")
    assert {type(layer).__name__ for layer in network.layers} <= LAYERS
    assert all(type(x).__module__.startswith("keras.") for x in network.layers)
    assert not network.compiled


def test_names_do_not_depend_on_what_was_built_before(
    network: Any, pair: tuple[str, str]
) -> None:
    again = build(pair)
    assert list_names(again) == list_names(network)
    assert len({path for _, paths in list_names(again) for path in paths}) == len(
        again.weights
    )


@pytest.mark.slow
def test_a_network_predicts_the_same_in_a_process_without_cropseg(
    network: Any, pair: tuple[str, str], reload_and_predict: Reload, tmp_path: Path
) -> None:
    pixels = make_pixels(pair, rows=2, columns=3)
    here = np.asarray(network(pixels, training=False))
    there = reload_and_predict(network, pixels, tmp_path)
    assert here.shape == (*pixels.shape[:3], NUM_CLASSES)
    assert np.ptp(here) > 1e-4  # a constant would agree by itself
    np.testing.assert_allclose(there, here, atol=1e-5, rtol=0)


def test_the_smallest_tile_gives_a_probability_a_class_and_pixel(
    network: Any, pair: tuple[str, str]
) -> None:
    pixels = make_pixels(pair)
    probabilities = np.asarray(network(pixels, training=False))
    assert probabilities.shape == (*pixels.shape[:3], NUM_CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, atol=1e-5)


def test_every_layer_with_variables_is_in_one_stage(
    network: Any, pair: tuple[str, str]
) -> None:
    stages = zoo.find_stages(network, *pair)
    named = [name for stage in stages for name in stage.layers]
    assert sorted(named) == sorted(x.name for x in network.layers if x.variables)
    assert len({stage.name for stage in stages}) == len(stages)
    assert all(stage.layers for stage in stages)


def test_stages_lead_from_the_input_to_the_head(
    network: Any, pair: tuple[str, str]
) -> None:
    stages = zoo.find_stages(network, *pair)
    parts = [stage.part for stage in stages]
    assert tuple(dict.fromkeys(parts)) == PARTS
    assert parts == sorted(parts, key=PARTS.index)
    assert (stages[-1].name, stages[-1].layers) == ("head", ("head",))
    assert stages[-1].stride == 1
    down = [stage.stride for stage in stages if stage.part == "encoder"]
    up = [stage.stride for stage in stages if stage.part == "decoder"]
    assert down == STRIDES.get(pair[1], [2, 4, 8, 16, 32])
    assert up == sorted(up, reverse=True)
    assert len(up) >= len(down) - 1
    first = next(layer for layer in network.layers if layer.weights)
    assert first.name == stages[0].layers[0]


def test_stages_do_not_change_when_normalisation_comes_first(
    network: Any, pair: tuple[str, str]
) -> None:
    raw = keras.Input((None, None, NUM_BANDS), name="raw")
    scale = keras.layers.Normalization(
        mean=[1.0] * NUM_BANDS, variance=[4.0] * NUM_BANDS
    )
    wrapped = keras.Model(raw, network.call(scale(raw)))
    assert zoo.find_stages(wrapped, *pair) == zoo.find_stages(network, *pair)


def test_a_gradient_reaches_every_layer(network: Any, pair: tuple[str, str]) -> None:
    # Lion steps by the sign of a gradient: any but zero moves a weight by 1e-3.
    # EfficientNet drops whole blocks for a tile at random; of 8 tiles, one is left.
    pixels = make_pixels(pair, tiles=8)
    labels = np.random.default_rng(5).integers(0, NUM_CLASSES, pixels.shape[:3])
    before = {w.path: w.numpy() for w in network.trainable_weights}
    network.compile(
        optimizer=keras.optimizers.Lion(1e-3),
        loss="sparse_categorical_crossentropy",
        run_eagerly=True,  # one step: tracing would take longer
    )
    network.train_on_batch(pixels, labels)
    still = [
        layer.name
        for layer in network.layers
        if layer.trainable_weights
        and all(
            np.array_equal(before[w.path], w.numpy()) for w in layer.trainable_weights
        )
    ]
    assert still == []


@pytest.mark.slow
def test_inception_has_the_names_of_keras_applications() -> None:
    model = build(("unet", "inceptionv3"))
    reference = keras.applications.InceptionV3(weights=None, include_top=False)
    shapes = [tuple(x.kernel.shape) for x in reference.layers if hasattr(x, "kernel")]
    found = [
        tuple(model.get_layer(f"conv2d_{n}" if n else "conv2d").kernel.shape)
        for n in range(len(shapes))
    ]
    by_number = sorted(
        (x for x in reference.layers if hasattr(x, "kernel")),
        key=lambda x: int(x.name.removeprefix("conv2d").lstrip("_") or 0),
    )
    expected = [tuple(x.kernel.shape) for x in by_number]
    assert found[1:] == expected[1:]  # the first has five bands


@pytest.mark.slow
def test_efficientnet_keeps_its_activation_and_drops_whole_paths() -> None:
    model = build(("unet", "efficientnetb0"))
    dropouts = [x for x in model.layers if isinstance(x, keras.layers.Dropout)]
    assert (
        keras.activations.serialize(model.get_layer("stem_activation").activation)
        == "silu"
    )
    assert (
        keras.activations.serialize(model.get_layer("block1a_se_reduce").activation)
        == "silu"
    )
    assert {tuple(x.noise_shape) for x in dropouts} == {(None, 1, 1, 1)}


@pytest.mark.parametrize(
    ("pair", "layer", "filters"),
    [
        (("unet", "classic"), "encoder_1_conv_1", 8),
        (("unet", "classic"), "encoder_3_conv_2", 32),
        (("unet", "classic_tiny"), "decoder_1_conv_1", 16),
        (("unet", "mobilenet"), "decoder_stage4b_conv", 8),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in [
                (("unet", "mobilenet"), "decoder_stage0a_conv", 128),
                (("linknet", "mobilenet"), "decoder_stage4c_conv", 8),
                (("fpn", "mobilenet"), "segm_stage2a_conv", 8),
            ]
        ),
    ],
)
def test_width_is_the_filters_where_a_network_is_narrowest(
    pair: tuple[str, str], layer: str, filters: int
) -> None:
    model = zoo.build_network(*pair, num_bands=4, num_classes=2, width=8)
    assert model.get_layer(layer).filters == filters


@pytest.mark.slow
def test_equal_seeds_give_equal_weights() -> None:
    pair = ("linknet", "mobilenet")
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(build(pair).get_layer("conv1").kernel.numpy())
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_building_leaves_keras_and_the_environment_as_they_were(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SM_FRAMEWORK", raising=False)
    for name in [x for x in sys.modules if x.startswith("segmentation_models")]:
        monkeypatch.delitem(sys.modules, name)
    build(("unet", "mobilenet"))
    assert capsys.readouterr().out == ""
    assert "SM_FRAMEWORK" not in os.environ
    assert not hasattr(keras.backend, "int_shape")
    assert not hasattr(keras.utils, "generic_utils")
    assert not {"swish", "FixedDropout"} & set(keras.saving.get_custom_objects())


@pytest.mark.parametrize(
    ("pair", "received", "nearest"),
    [
        (("unett", "classic"), "'unett'", "unet, linknet"),
        (("unet", "resnet43"), "'resnet43'", "resnet34, "),
        (("fpn", "classic"), "'classic' goes with unet only", "'fpn'"),
        (("pspnet", "resnet18"), "'pspnet'", "fpn"),
    ],
)
def test_an_unknown_pair_is_refused_with_what_there_is(
    pair: tuple[str, str], received: str, nearest: str
) -> None:
    with pytest.raises(UsageError) as error:
        build(pair)
    assert received in str(error.value)
    assert nearest in str(error.value)


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_bands": 0, "num_classes": 3},
        {"num_bands": 4, "num_classes": 1},
        {"num_bands": 4, "num_classes": 3, "width": 0},
    ],
)
def test_a_number_that_is_too_small_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"is [01]\. It must be"):
        zoo.build_network("unet", "classic_tiny", **numbers)


def test_a_model_of_another_pair_has_no_stages() -> None:
    model = build(("unet", "classic_tiny"))
    with pytest.raises(ModelError, match="architecture"):
        zoo.find_stages(model, "fpn", "resnet18")


def plain(pixels: Any, *, num_classes: int, width: int | None) -> Any:
    x = keras.layers.Conv2D(width or 4, 3, strides=2, padding="same", name="down")(
        pixels
    )
    x = keras.layers.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    return keras.layers.Conv2D(num_classes, 1, name="head")(x)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_recipes", dict(zoo._recipes))


@pytest.mark.usefixtures("registry")
def test_a_registered_builder_is_built_as_any_other() -> None:
    pair = ("plain", "mine")
    zoo.register_builder(*pair, plain, tile_multiple=2, decoder_prefixes=[["up"]])
    assert pair in zoo.list_pairs()
    assert zoo.get_tile_multiple(*pair) == 2
    stages = zoo.find_stages(build(pair), *pair)
    assert [(x.name, x.layers, x.stride) for x in stages] == [
        ("encoder_1", ("down",), 2),
        ("decoder_1", ("up",), 1),
        ("head", ("head",), 1),
    ]


@pytest.mark.usefixtures("registry")
def test_a_builder_without_a_head_is_refused() -> None:
    def headless(pixels: Any, *, num_classes: int, width: int | None) -> Any:
        return keras.layers.Conv2D(width or num_classes, 1, name="last")(pixels)

    zoo.register_builder(
        "plain", "headless", headless, tile_multiple=1, decoder_prefixes=[["up"]]
    )
    with pytest.raises(UsageError, match="'head' of 3 channels"):
        build(("plain", "headless"))


@pytest.mark.parametrize(
    ("pair", "tile_multiple", "prefixes"),
    [
        (("unet", "classic"), 2, [["up"]]),
        (("plain", "mine"), 0, [["up"]]),
        (("plain", "mine"), 2, []),
        (("plain", "mine"), 2, [[""]]),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_registration_that_cannot_work_is_refused(
    pair: tuple[str, str], tile_multiple: int, prefixes: list[list[str]]
) -> None:
    with pytest.raises(UsageError, match="-".join(pair)):
        zoo.register_builder(
            *pair, plain, tile_multiple=tile_multiple, decoder_prefixes=prefixes
        )
