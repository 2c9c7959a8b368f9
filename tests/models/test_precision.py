"""bfloat16: close to float32, float32 in every variable, and only in a copy."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.models import zoo
from cropseg.models.bundle import add_normalization, hash_weights
from cropseg.models.precision import copy_with_precision
from cropseg.runtime import JIT_COMPILE, keras, start_run

KEPT = {"pixels", "band_normalization", "head", "probabilities"}


@pytest.fixture(scope="module")
def model():
    """A model of values with a large mean and little spread."""
    start_run(2)
    network = zoo.build_network("unet", "classic_tiny", num_bands=3, num_classes=4)
    return add_normalization(network, mean=[10_000] * 3, std=[10, 20, 5])


@pytest.fixture(scope="module")
def pixels():
    values = np.random.default_rng(0).normal(0, [10, 20, 5], (2, 16, 24, 3))
    return (10_000 + values).astype("float32")


def test_float32_is_the_model_itself(model):
    assert copy_with_precision(model, "float32") is model


def test_bfloat16_predicts_nearly_the_same(model, pixels):
    whole = np.asarray(model(pixels, training=False))
    half = np.asarray(copy_with_precision(model, "bfloat16")(pixels, training=False))
    assert half.dtype == np.float32
    assert not np.array_equal(half, whole)
    assert np.ptp(whole) > 0.3
    assert np.abs(half - whole).max() < 0.06
    assert np.abs(half - whole).mean() < 0.01
    assert (half.argmax(axis=-1) == whole.argmax(axis=-1)).mean() > 0.95


def test_a_copy_keeps_float32_variables_of_the_same_values(model):
    copy = copy_with_precision(model, "bfloat16")
    assert copy is not model
    assert {variable.dtype for variable in copy.variables} == {"float32"}
    assert hash_weights(copy) == hash_weights(model)
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    copy.get_layer("head").bias.assign([9.0, 8.0, 7.0, 6.0])
    assert hash_weights(copy) != hash_weights(model)


def test_normalisation_head_and_softmax_compute_in_float32(model):
    copy = copy_with_precision(model, "bfloat16")
    found = {layer.name: layer.compute_dtype for layer in copy.layers}
    assert {name for name, dtype in found.items() if dtype == "float32"} == KEPT
    assert set(found.values()) == {"float32", "bfloat16"}
    assert copy.inputs[0].dtype == copy.outputs[0].dtype == "float32"


@pytest.mark.slow
def test_equal_copies_train_to_equal_bits(model, pixels):
    labels = np.random.default_rng(1).integers(0, 4, pixels.shape[:3])
    hashes = []
    for _ in range(2):
        copy = copy_with_precision(model, "bfloat16")
        copy.compile("adam", "sparse_categorical_crossentropy", jit_compile=JIT_COMPILE)
        for _ in range(3):
            copy.train_on_batch(pixels, labels)
        hashes.append(hash_weights(copy))
    assert hashes[0] == hashes[1] != hash_weights(model)


def test_the_model_that_was_copied_stays_float32(model):
    copy_with_precision(model, "bfloat16")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
