"""Convolutions of repeated pixels, computed before the pixels are repeated."""

import numpy as np
import pytest

from cropseg.inference.engines.convert import trace_model
from cropseg.inference.engines.upsampling import find_doublings, sum_weights
from cropseg.runtime import keras

layers = keras.layers


def convolve(values, **changes):
    given = {"filters": 4, "kernel_size": 3, "padding": "same"} | changes
    return layers.Conv2D(**given, bias_initializer="random_normal")(values)


def repeat(values, **options):
    return layers.UpSampling2D(2, **options)(values)


def join(*values):
    return layers.Concatenate()(list(values))


def halve(values):
    return layers.AveragePooling2D(2)(values)


FOLDED = {
    "alone": lambda x: convolve(repeat(x)),
    "activation": lambda x: convolve(repeat(x), activation="relu", use_bias=False),
    "first": lambda x: convolve(join(repeat(halve(x)), x)),
    "last": lambda x: convolve(join(x, repeat(halve(x)))),
    "between": lambda x: convolve(join(x, repeat(halve(x)), x * 2.0)),
    "one of two": lambda x: convolve(join(repeat(halve(x)), repeat(halve(x * x)))),
    "in a row": lambda x: convolve(repeat(convolve(repeat(x)))),
}
LEFT = {
    "interpolated": lambda x: convolve(repeat(x, interpolation="bilinear")),
    "three times": lambda x: convolve(layers.UpSampling2D(3)(x)),
    "wide": lambda x: convolve(repeat(x), kernel_size=5),
    "strided": lambda x: convolve(repeat(x), strides=2),
    "dilated": lambda x: convolve(repeat(x), dilation_rate=2),
    "grouped": lambda x: convolve(repeat(convolve(x)), groups=2),
    "cut": lambda x: convolve(repeat(x), padding="valid"),
    "along rows": lambda x: convolve(layers.Concatenate(axis=1)([repeat(x)] * 2)),
    "added": lambda x: convolve(repeat(halve(x)) + x),
    "read twice": lambda x: join(convolve(y := repeat(x)), y),
    "joined twice": lambda x: join(convolve(y := join(repeat(halve(x)), x)), y),
}


@pytest.fixture
def build():
    """Return a function that builds a network of one of these cases."""

    def _build(body):
        keras.utils.set_random_seed(4)
        pixels = keras.Input((None, None, 3))
        return keras.Model(pixels, body(pixels))

    return _build


@pytest.fixture
def tiles():
    """Return two tiles whose sides differ."""
    return np.random.default_rng(0).normal(size=(2, 12, 8, 3)).astype("float32")


def trace(model, tiles):
    function = trace_model(model, folds_doublings=True)
    operations = {
        op.type for op in function.get_concrete_function().graph.get_operations()
    }
    return np.asarray(function(tiles)["probabilities"]), operations


@pytest.mark.parametrize("body", FOLDED.values(), ids=FOLDED)
def test_a_folded_network_gives_what_it_gave_also_at_the_borders(body, build, tiles):
    model = build(body)
    found, operations = trace(model, tiles)
    assert "Conv2DBackpropInput" in operations
    np.testing.assert_allclose(found, np.asarray(model(tiles)), atol=2e-6)


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_what_is_no_doubling_is_left_as_it_is(body, build, tiles):
    model = build(body)
    assert find_doublings(model) == []
    found, operations = trace(model, tiles)
    assert "Conv2DBackpropInput" not in operations
    np.testing.assert_allclose(found, np.asarray(model(tiles)), atol=2e-6)


def test_repeated_pixels_that_are_an_output_are_left():
    pixels = keras.Input((None, None, 3))
    repeated = repeat(pixels)
    model = keras.Model(pixels, [convolve(repeated), repeated])
    assert find_doublings(model) == []


def test_every_step_of_a_decoder_is_found():
    from cropseg.models.zoo import build_network

    found = {
        name: [
            (item.upsampling.name, item.convolution.name)
            for item in find_doublings(build_network(*name, num_bands=4, num_classes=3))
        ]
        for name in (("unet", "classic_tiny"), ("linknet", "resnet18"))
    }
    assert found["unet", "classic_tiny"] == [
        ("decoder_1_upsampling", "decoder_1_conv_1"),
        ("decoder_2_upsampling", "decoder_2_conv_1"),
    ]
    assert len(found["linknet", "resnet18"]) == 5


@pytest.mark.parametrize("name", ["first", "alone"])
def test_tracing_leaves_the_network_as_it_was(name, build, tiles):
    model = build(FOLDED[name])
    before = [dict(vars(layer)) for layer in model.layers]
    expected = np.asarray(model(tiles))
    trace(model, tiles)
    for layer, known in zip(model.layers, before, strict=True):
        assert vars(layer).keys() == known.keys()
        assert getattr(layer, "input_spec", None) is known.get("_input_spec")
    np.testing.assert_array_equal(np.asarray(model(tiles)), expected)


def test_the_sums_of_weights_keep_what_a_pixel_counts():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype("float32")
    found = sum_weights(kernel)
    assert found.shape == (4, 4, 5, 2)
    # Each pixel was there four times.
    np.testing.assert_allclose(
        found.sum(axis=(0, 1)), 4 * kernel.sum(axis=(0, 1)).T, rtol=1e-4
    )
