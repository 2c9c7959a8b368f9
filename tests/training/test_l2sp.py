"""The penalty on moving away from the start: by hand arithmetic, and off afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.models.weight_report import WeightReport, WeightRow
from cropseg.runtime import keras, start_run
from cropseg.training.checkpoint import copy_value
from cropseg.training.l2sp import build_penalty, hold_weights

STRENGTH = 0.5


@pytest.fixture
def model():
    start_run(0)
    pixels = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(3, 1, use_bias=False, name="old")(pixels)
    x = keras.layers.Conv2D(3, 1, use_bias=False, name="new")(x)
    x = keras.layers.Conv2D(3, 1, use_bias=False, name="silent")(x)
    return keras.Model(pixels, keras.layers.Conv2D(2, 1, name="head")(x))


def report(**actions):
    rows = [
        WeightRow(
            variable=f"{name}/{kind}", part="head", shape=(), action=action, reason=""
        )
        for name, action in actions.items()
        for kind in ("kernel", "bias")
    ]
    return WeightReport(rows=tuple(rows))


def read(model):
    return {v.path: copy_value(v) for v in model.weights}


@pytest.fixture
def penalty(model):
    actions = report(old="copied", new="initialised", head="averaged")
    return build_penalty(model, actions, strength=STRENGTH, new_classes={1})


def move(model):
    """Add 0.1, 0.2, ... to the variables of a model."""
    for number, variable in enumerate(model.weights, start=1):
        variable.assign(variable + 0.1 * number)


def test_the_penalty_is_half_the_strength_times_the_squared_distance(model, penalty):
    start = read(model)
    move(model)
    now = read(model)

    with hold_weights(model, penalty):
        found = sum(float(item) for item in model.losses)

    distance = 6 * 0.1**2  # `old` has 6 numbers
    distance += (now["new/kernel"] ** 2).sum()
    for name in ("head/kernel", "head/bias"):
        distance += ((now[name] - start[name])[..., 0] ** 2).sum()
        distance += (now[name][..., 1] ** 2).sum()  # a class that the source has not
    assert found == pytest.approx(STRENGTH / 2 * distance, rel=1e-5)


def test_new_classes_are_held_to_0_whatever_the_kind_of_head():
    start_run(0)
    pixels = keras.Input((None, None, 5))
    head = keras.layers.Conv2DTranspose(3, 2, strides=2, name="head")
    model = keras.Model(pixels, head(pixels))
    start = read(model)

    found = build_penalty(
        model, report(head="copied"), strength=STRENGTH, new_classes={1}
    )

    expected = start["head/kernel"]  # (height, width, classes, features)
    expected[:, :, 1] = 0.0
    np.testing.assert_array_equal(found.anchors["head/kernel"], expected)
    assert found.anchors["head/bias"].shape == (3,)


def test_a_step_moves_weights_back_by_rate_times_strength_times_distance(
    model, penalty
):
    start = read(model)
    move(model)
    now = read(model)
    rate = 0.1
    images, truth = np.zeros((1, 2, 2, 2), "f4"), np.zeros((1, 2, 2, 2), "f4")

    with hold_weights(model, penalty):
        # Nothing but the penalty has a gradient.
        model.compile(keras.optimizers.SGD(rate), lambda _, y: keras.ops.sum(0.0 * y))
        model.train_on_batch(images, truth)

    after = read(model)
    step = rate * STRENGTH
    expected = {
        "old/kernel": now["old/kernel"]
        - step * (now["old/kernel"] - start["old/kernel"]),
        "new/kernel": now["new/kernel"] * (1 - step),
        "silent/kernel": now["silent/kernel"],
    }
    for path, values in expected.items():
        np.testing.assert_allclose(after[path], values, rtol=1e-5, atol=1e-7)


def test_locked_layers_are_not_held(model, penalty):
    move(model)
    for layer in model.layers:
        layer.trainable = layer.name == "old"

    with hold_weights(model, penalty):
        found = sum(float(item) for item in model.losses)

    assert found == pytest.approx(STRENGTH / 2 * 6 * 0.1**2, rel=1e-5)


def test_a_model_has_its_own_regularizers_again_even_after_an_error(model, penalty):
    own = keras.regularizers.L2(0.1)
    kernel = model.get_layer("old").kernel
    kernel.regularizer = own
    total = float(model.losses[0])

    def fail():
        with hold_weights(model, penalty):
            assert sum(map(float, model.losses)) > total  # both count
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert kernel.regularizer is own
    assert [v.regularizer for v in model.weights if v is not kernel] == [None] * 4


def test_without_a_penalty_nothing_is_held(model):
    move(model)

    with hold_weights(model, None):
        assert model.losses == []
