"""Networks that are alike share what was traced, and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cropseg.models.twin import copy_variables, describe_structure, find_twin
from cropseg.runtime import keras, share_between_runs

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="networks are shared there alone"
)


def build(*, filters=2, mean=0.0, seed=0):
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((None, None, 3))
    x = keras.layers.Normalization(mean=[mean] * 3, variance=[1.0] * 3)(pixels)
    x = keras.layers.Conv2D(filters, 3, padding="same", name="conv")(x)
    return keras.Model(pixels, keras.layers.BatchNormalization(name="bn")(x))


def build_alike(**changes):
    keras.backend.clear_session()
    return build(**changes)


def test_models_are_alike_whatever_their_weights_and_locks_are():
    one, other = build_alike(), build_alike(seed=1)
    other.get_layer("bn").trainable = False
    assert describe_structure(one) == describe_structure(other)


def test_another_size_or_another_constant_is_another_structure():
    structures = {
        describe_structure(model)
        for model in (build_alike(), build_alike(filters=3), build_alike(mean=0.5))
    }
    assert len(structures) == 3


def test_nothing_is_shared_by_default():
    one, other = build_alike(), build_alike(seed=1)
    assert find_twin(one, "predict") is one
    assert find_twin(other, "predict") is other


@pytest.mark.slow
@needs_tensorflow
def test_runs_that_share_run_through_one_network_of_a_kind():
    one, other, wider = build_alike(), build_alike(seed=1), build_alike(filters=3)
    state = random.getstate()
    with share_between_runs():
        twin = find_twin(one, "predict")
        assert twin not in (one, other)
        assert find_twin(other, "predict") is twin
        assert find_twin(other, "features") is not twin
        assert find_twin(wider, "predict") is not twin
    assert find_twin(other, "predict") is other
    assert random.getstate() == state


@needs_tensorflow
def test_a_twin_gets_weights_and_statistics():
    one, other = build_alike(), build_alike(seed=1)
    other.get_layer("bn").moving_mean.assign([3.0, 4.0])
    copy_variables(other, one)
    for ours, theirs in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
