"""The first filters: matched by band name, and what comes out keeps its size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import convolve2d

from cropseg.errors import ModelError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network
from cropseg.runtime import keras, start_run
from cropseg.transfer.stem import find_band_variables, match_bands

BANDS = ("blue", "green", "red", "nir")


def make_kernel(num_bands, seed=0):
    return np.random.default_rng(seed).normal(size=(3, 3, num_bands, 8))


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("classic_tiny", {"encoder_1_conv_1/kernel"}),
        pytest.param("mobilenetv2", {"Conv1/kernel"}, marks=pytest.mark.slow),
        pytest.param(
            "resnet18",
            {
                *("bn_data/beta", "bn_data/moving_mean", "bn_data/moving_variance"),
                "conv0/kernel",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_variables_of_the_bands_are_found_in_the_graph(encoder, expected):
    start_run(0)
    network = build_network("unet", encoder, num_bands=5, num_classes=3)
    model = add_normalization(network, mean=[0.0] * 5, std=[1.0] * 5)

    assert find_band_variables(model) == expected


def test_a_network_that_begins_with_single_bands_is_the_same_for_another_order():
    start_run(0)
    pixels = keras.Input((8, 8, 4), name="pixels")
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="single")(pixels)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(5, 1, name="mixed")(keras.layers.ReLU()(x))
    network = keras.Model(pixels, keras.layers.Conv2D(2, 1, name="head")(x))
    model = add_normalization(network, mean=[0.0] * 4, std=[1.0] * 4)
    rng = np.random.default_rng(0)
    for variable in model.weights:  # a new network has the same number for all bands
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    images = rng.normal(size=(2, 8, 8, 4)).astype("float32")
    expected = np.asarray(model(images))

    found = find_band_variables(model)
    for variable in model.weights:
        if variable.path in found:
            values = np.asarray(variable)
            variable.assign(match_bands(values, values, BANDS, BANDS[::-1])[0])

    names = {path.partition("/")[0] for path in found}
    assert names == {"single", "norm", "mixed"}
    np.testing.assert_allclose(model(images[..., ::-1]), expected, rtol=1e-5)


def test_the_same_bands_in_another_order_are_the_same_filters():
    kernel = make_kernel(4)

    found, reason = match_bands(kernel, kernel, BANDS, BANDS[::-1])

    np.testing.assert_allclose(found, kernel[:, :, ::-1], rtol=1e-12)
    assert reason == "by band name: nir, red, green, blue"


@pytest.mark.parametrize(
    "target",
    [
        ("blue", "green"),
        ("nir",),
        ("nir", "swir1", "swir2", "thermal", "blue"),
        (*BANDS, "swir1"),
    ],
)
def test_what_comes_out_keeps_its_size(target):
    kernel = make_kernel(4)
    other, _ = match_bands(kernel, make_kernel(len(target), 1), BANDS, target)
    rng = np.random.default_rng(2)

    sizes = []
    for filters in (kernel, other):
        bands = rng.normal(size=(64, 64, filters.shape[2]))
        out = [
            sum(
                convolve2d(bands[..., b], filters[:, :, b, f], mode="valid")
                for b in range(filters.shape[2])
            )
            for f in range(filters.shape[3])
        ]
        sizes.append(np.std(out))

    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_a_batch_normalisation_of_the_bands_is_matched_and_not_rescaled():
    mean = np.array([1.0, 2.0, 3.0, 4.0])

    found, _ = match_bands(mean, np.zeros(3), BANDS, ("red", "thermal", "blue"))

    assert found.tolist() == [3.0, 2.0, 1.0]


def test_no_shared_band_is_an_error():
    with pytest.raises(ModelError, match="None is shared"):
        match_bands(make_kernel(4), make_kernel(1), BANDS, ("thermal",))


def test_a_filter_that_reads_more_than_bands_is_refused():
    with pytest.raises(ModelError, match="does not read the bands alone"):
        match_bands(make_kernel(9), make_kernel(8), BANDS, BANDS[:3])
