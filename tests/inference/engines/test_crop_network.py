"""A network that computes only what the middle of a tile needs gives the same there."""

import numpy as np
import pytest

from cropseg.inference.engines.convert import (
    INPUT_NAME,
    convert_to_openvino,
    put_channels_first,
    trace_model,
)
from cropseg.inference.engines.crop_network import crop_network
from cropseg.inference.engines.openvino_package import import_openvino
from cropseg.models.zoo import build_network
from cropseg.runtime import keras

pytest.importorskip("openvino")

layers = keras.layers
HEIGHT, WIDTH = 48, 64
CONVOLUTIONS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData"}


def convolve(values, kernel_size=3, **options):
    return layers.Conv2D(4, kernel_size, padding="same", **options)(values)


def spread(values, kernel_size, strides=2, **options):
    given = {"padding": "same"} | options
    return layers.Conv2DTranspose(4, kernel_size, strides, **given)(values)


def halve(values):
    return layers.MaxPooling2D(2)(values)


def join(*values):
    return layers.Concatenate()(list(values))


def weigh_by_mean(values):
    return values * layers.GlobalAveragePooling2D(keepdims=True)(values)


BODIES = {
    "one": convolve,
    "wide": lambda x: convolve(x, 7),
    "even": lambda x: convolve(x, 4),
    "dilated": lambda x: convolve(x, dilation_rate=3),
    "by channel": lambda x: layers.DepthwiseConv2D(3, padding="same")(convolve(x)),
    "activations": lambda x: keras.ops.sigmoid(keras.ops.relu(convolve(x))) * 3.0 - 1.0,
    "beside": lambda x: join(convolve(x), x, convolve(convolve(x))),
    "added": lambda x: convolve(convolve(x)) + convolve(x),
    "half": lambda x: spread(convolve(x, strides=2), 4),
    "in half": lambda x: spread(convolve(halve(x)), 4),
    "spread by 2": lambda x: spread(halve(x), 2),
    "spread by 3": lambda x: spread(halve(x), 3),
    "spread by 5": lambda x: spread(halve(x), 5),
    "spread and cut": lambda x: convolve(spread(halve(x), 2, padding="valid")),
    "spread with gaps": lambda x: convolve(spread(halve(halve(x)), 2, 4)),
    "spread far": lambda x: spread(halve(halve(x)), 6, 4),
    "decoder": lambda x: convolve(
        join(spread(convolve(halve(y := convolve(x))), 4), y)
    ),
    "interpolated": lambda x: convolve(
        layers.UpSampling2D(2, interpolation="bilinear")(convolve(halve(x)))
    ),
    "repeated": lambda x: (
        convolve(layers.UpSampling2D(4)(convolve(halve(halve(x)))))
        + layers.UpSampling2D(2)(convolve(halve(x)))
    ),
    "interpolated far": lambda x: convolve(
        layers.UpSampling2D((2, 4), interpolation="bilinear")(
            convolve(x, strides=(2, 4))
        )
    ),
    "by no whole number": lambda x: convolve(keras.ops.image.resize(x, (72, 80))),
    "all of it": lambda x: convolve(weigh_by_mean(convolve(x))),
    "along rows": lambda x: convolve(layers.Softmax(axis=1)(convolve(x))),
    "nothing": lambda x: x,
}


def convert(model):
    function = trace_model(model, folds_doublings=True)
    return put_channels_first(convert_to_openvino(function))


def run(network, tile):
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(network, "CPU", hints)
    return compiled({INPUT_NAME: np.moveaxis(tile, -1, 0)[None]})[0]


def crop(network, margin, num_bands, *, height=HEIGHT, width=WIDTH):
    cropped = network.clone()
    cropped.reshape([1, num_bands, height, width])
    crop_network(cropped, margin)
    return cropped


def count_products(network):
    total = 0
    for node in network.get_ordered_ops():
        kind = node.get_type_name()
        if kind in CONVOLUTIONS:
            place = 0 if kind == "ConvolutionBackpropData" else 1
            values = (node.input(0), node.output(0))[place].get_shape()
            total += np.prod(values[2:]) * np.prod(node.input(1).get_shape())
    return total


OFTEN = "decoder"
"""The others are slow together."""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body, id=name, marks=[] if name == OFTEN else [pytest.mark.slow])
        for name, body in BODIES.items()
    ],
)
def test_the_middle_is_as_it_was(body):
    keras.utils.set_random_seed(6)
    pixels = keras.Input((None, None, 3))
    model = keras.Model(pixels, layers.Softmax()(body(pixels)))
    network = convert(model)
    tile = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3)).astype("float32")
    expected = run(network, tile)
    for margin in (1, 7, 16, 23):
        found = run(crop(network, margin, 3), tile)
        inside = expected[..., margin:-margin, margin:-margin]
        assert found.shape == inside.shape
        np.testing.assert_allclose(found, inside, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [
        (("unet", "classic_tiny"), 0.75),
        (("unet", "resnet18"), 0.9),
        (("linknet", "mobilenetv2"), 0.9),
        (("fpn", "resnet18"), 0.8),
    ],
)
def test_a_network_of_the_zoo_computes_less_and_gives_the_same(name, share):
    keras.utils.set_random_seed(7)
    network = convert(build_network(*name, num_bands=4, num_classes=3))
    side, margin = 256, 32
    tile = np.random.default_rng(1).normal(size=(side, side, 4)).astype("float32")
    whole = crop(network, 0, 4, height=side, width=side)
    part = crop(network, margin, 4, height=side, width=side)
    assert count_products(part) < share * count_products(whole)
    expected = run(whole, tile)[..., margin:-margin, margin:-margin]
    np.testing.assert_allclose(run(part, tile), expected, atol=1e-4)


def test_without_a_margin_nothing_changes():
    pixels = keras.Input((None, None, 3))
    network = convert(keras.Model(pixels, convolve(pixels)))
    before = [node.get_name() for node in network.get_ordered_ops()]
    crop_network(network, 0)
    assert [node.get_name() for node in network.get_ordered_ops()] == before
