"""Weights of a file go where their names say, and nowhere by order alone."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.header import read_header
from cropseg.models.stored_weights import load_stored_weights
from cropseg.runtime import keras

LEGACY = Path(__file__).parents[3] / "shared" / "data" / "legacy_keras"
OLD_WEIGHTS = LEGACY / "unet_weights_only_keras2.3.0.h5"


def fill(model, seed):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.normal(size=tuple(weight.shape)))
    return model


def load(model, path):
    load_stored_weights(model, read_header(path).weights.layers, path)


def read_values(model):
    return [np.asarray(weight).copy() for weight in model.weights]


def are_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def build_pair(*names, filters=2):
    """Build a chain of convolutions of one shape, under these names."""
    image = value = keras.Input((None, None, filters))
    for name in names:
        value = keras.layers.Conv2D(filters, 3, padding="same", name=name)(value)
    return keras.Model(image, value)


@pytest.fixture(params=["net.weights.h5", "net.h5"])
def path(request, tmp_path):
    return tmp_path / request.param


def save(model, path):
    """Save weights only, as Keras 3 does or as Keras 2 did."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
        return path
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{weight.path}:0".encode() for weight in layer.weights]
            group.attrs["weight_names"] = [name.decode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = np.asarray(weight)
    return path


def forget_names(path):
    """Make of the file one that an older Keras 3 wrote, without names."""
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():
            if "name" in group["vars"].attrs:
                del group["vars"].attrs["name"]


def test_weights_come_back_by_name(path, build_unet):
    source = fill(build_unet(), seed=1)
    save(source, path)
    target = build_unet()
    load(target, path)
    assert are_equal(read_values(source), read_values(target))


def test_layers_in_another_order_are_not_swapped(path):
    source = fill(build_pair("first", "second"), seed=1)
    save(source, path)
    target = build_pair("second", "first")
    load(target, path)
    for name in ("first", "second"):
        pair = (source.get_layer(name), target.get_layer(name))
        assert are_equal(*map(read_values, pair))


def test_one_layer_that_is_called_otherwise_is_known_by_its_shape(path, build_unet):
    source = fill(build_unet(), seed=1)
    save(source, path)
    target = keras.models.clone_model(
        build_unet(),
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | ({"name": "head"} if layer.name == "logits" else {})
        ),
    )
    load(target, path)
    assert are_equal(read_values(source), read_values(target))


def test_two_layers_that_are_called_otherwise_are_refused_with_candidates(path):
    save(fill(build_pair("a", "b", "c"), seed=1), path)
    target = build_pair("a", "x", "y")
    before = read_values(target)
    with pytest.raises(ModelError) as error:
        load(target, path)
    text = str(error.value)
    assert "x (3, 3, 2, 2), (2,) of the network could be b" in text
    assert " or c" in text
    assert "b (3, 3, 2, 2), (2,) of the file has no place" in text
    assert error.value.exit_code == 4
    assert are_equal(before, read_values(target))


def test_numbers_that_keras_made_up_are_not_shifted(path):
    save(fill(build_pair("conv2d", "conv2d_1", "conv2d_2"), seed=1), path)
    # Every name but one is there, each for another layer.
    target = build_pair("conv2d_1", "conv2d_2", "conv2d_3")
    with pytest.raises(ModelError, match=r"conv2d_3 .* could be conv2d "):
        load(target, path)


def test_another_shape_is_told(path, build_unet):
    save(build_unet(), path)
    with pytest.raises(ModelError, match=r"network has shape .3, 3, 5, 6., .* 4, 6"):
        load(build_unet(bands=5), path)


def test_more_layers_in_the_file_are_told(path):
    save(build_pair("a", "b"), path)
    with pytest.raises(ModelError, match=r"b .* of the file has no place"):
        load(build_pair("a"), path)


def test_weights_without_names_are_matched_where_shapes_differ(tmp_path, build_unet):
    path = tmp_path / "net.weights.h5"
    source = fill(build_unet(), seed=1)
    save(source, path)
    forget_names(path)
    target = build_unet()
    load(target, path)
    assert are_equal(read_values(source), read_values(target))


def test_weights_without_names_are_refused_where_shapes_agree(tmp_path):
    path = tmp_path / "net.weights.h5"
    save(build_pair("a", "b"), path)
    forget_names(path)
    with pytest.raises(
        ModelError, match=r"could be layers/conv2d .* or layers/conv2d_1"
    ):
        load(build_pair("a", "b"), path)


def test_nested_networks_are_matched_by_the_names_inside(path):
    def build():
        image = keras.Input((None, None, 2))
        inner = build_pair("p", "q")
        inner.name = "inner"
        outer = keras.layers.Conv2D(3, 1, name="outer")(inner(image))
        return keras.Model(image, outer)

    source = fill(build(), seed=1)
    save(source, path)
    target = build()
    load(target, path)
    assert are_equal(read_values(source), read_values(target))


def test_a_variable_that_is_called_otherwise_is_known_by_its_shape(tmp_path):
    image = keras.Input((None, None, 3))
    layer = keras.layers.DepthwiseConv2D(3, name="deep")
    model = fill(keras.Model(image, layer(image)), seed=1)
    path = save(model, tmp_path / "old.h5")
    before = read_values(model)
    with h5py.File(path, "a") as file:
        file["deep"].attrs["weight_names"] = [
            b"deep/depthwise_kernel:0",
            b"deep/bias:0",
        ]
        file.move("deep/deep/kernel:0", "deep/deep/depthwise_kernel:0")
    fill(model, seed=2)
    load(model, path)
    assert are_equal(before, read_values(model))


def test_statistics_without_names_are_not_guessed(tmp_path):
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.BatchNormalization(name="norm")(image))
    path = save(model, tmp_path / "old.h5")
    with h5py.File(path, "a") as file:
        names = [f"norm/{number}:0".encode() for number in "wxyz"]
        old = file["norm"].attrs["weight_names"]
        for before, after in zip(old, names, strict=True):
            file.move(f"norm/{before}", f"norm/{after.decode()}")
        file["norm"].attrs["weight_names"] = names
    with pytest.raises(ModelError, match=r"norm/gamma .* could be w or x or y or z"):
        load(model, path)


def test_bfloat16_is_read(tmp_path):
    image = keras.Input((None, None, 2))
    layer = keras.layers.Conv2D(2, 1, name="a", dtype="bfloat16")
    model = fill(keras.Model(image, layer(image)), seed=3)
    path = tmp_path / "net.weights.h5"
    model.save_weights(path)
    target = build_pair("a")
    target = keras.Model(image, keras.layers.Conv2D(2, 1, name="a")(image))
    load(target, path)
    wanted = [np.asarray(w).astype("float32") for w in model.weights]
    assert are_equal(wanted, read_values(target))


def build_old():
    """Build the network that the old file was saved from, under its names."""
    layers = keras.layers
    count = iter(range(1, 20))

    def convolve(value, filters, size=3, activation="relu"):
        name = f"conv2d_{next(count)}"
        return layers.Conv2D(
            filters, size, padding="same", activation=activation, name=name
        )(value)

    image = value = keras.Input((64, 64, 3))
    skips = []
    for filters in (8, 16, 32):
        value = convolve(convolve(value, filters), filters)
        skips.append(value)
        value = layers.MaxPooling2D()(value)
    value = convolve(convolve(value, 64), 64)
    for number, filters in enumerate((32, 16, 8), start=1):
        name = f"conv2d_transpose_{number}"
        value = layers.Conv2DTranspose(filters, 2, strides=2, name=name)(value)
        value = layers.Concatenate()([value, skips.pop()])
        value = convolve(convolve(value, filters), filters)
    return keras.Model(image, convolve(value, 1, 1, "sigmoid"))


@pytest.mark.skipif(
    not OLD_WEIGHTS.exists(), reason="the old Keras files lie beside the project only"
)
def test_old_weights_go_into_the_network_of_their_names():
    model = build_old()
    load(model, OLD_WEIGHTS)
    with h5py.File(OLD_WEIGHTS) as file:
        stored = file["conv2d_9/conv2d_9/kernel:0"][()]
    assert np.array_equal(np.asarray(model.get_layer("conv2d_9").kernel), stored)
