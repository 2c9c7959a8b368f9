"""What conversion changes in a network, for the engine alone."""

import numpy as np
import pytest

from cropseg.inference.engines.convert import (
    INPUT_NAME,
    OUTPUT_NAME,
    convert_to_openvino,
    put_channels_first,
    trace_model,
)
from cropseg.inference.engines.openvino_package import import_openvino
from cropseg.runtime import keras

HEADS = {
    "softmax": keras.layers.Softmax,
    "softmax along rows": lambda: keras.layers.Softmax(axis=1),
}


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head, id=name, marks=[pytest.mark.slow] if "rows" in name else [])
        for name, head in HEADS.items()
    ],
)
def test_bands_and_classes_come_one_after_another_and_the_result_is_the_same(head):
    keras.utils.set_random_seed(5)
    pixels = keras.Input((None, None, 2))
    logits = keras.layers.Conv2D(3, 3, padding="same")(pixels)
    model = keras.Model(pixels, head()(logits))
    tiles = np.random.default_rng(0).normal(size=(2, 6, 4, 2)).astype("float32")

    turned = put_channels_first(convert_to_openvino(trace_model(model)))

    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(turned, "CPU", hints)
    found = compiled({INPUT_NAME: np.moveaxis(tiles, -1, 1)})[OUTPUT_NAME]
    expected = np.moveaxis(np.asarray(model(tiles)), -1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
