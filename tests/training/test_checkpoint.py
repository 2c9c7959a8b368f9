"""Checkpoints: what is saved comes back bit by bit, and damage is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.runtime import keras, start_run
from cropseg.training.checkpoint import (
    RANDOM_STATE,
    PhaseRecord,
    PretrainedState,
    TrainingState,
    assign_variables,
    load_pretrained,
    load_state,
    read_variables,
    save_pretrained,
    save_state,
)
from cropseg.training.history import Epoch


def make_state(num_best=2):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(2, 3)).astype(np.float32) for _ in range(12)]
    variables = [(f"layer_{i}/kernel", value) for i, value in enumerate(values)]
    variables += [(RANDOM_STATE, np.array([1, 2], np.uint32))] * 2
    phase = PhaseRecord(
        name="head", steps=2, learning_rate=0.01, trained_parameters=9, taken_slots=3
    )
    epoch = Epoch(
        epoch=1, step=3, loss=0.1, learning_rate=0.01, val_miou=None, seconds=1.5
    )
    return TrainingState(
        epochs=(epoch, dataclasses.replace(epoch, epoch=2, val_miou=1 / 3)),
        losses=(0.3, 0.2, 0.1),
        phases=(phase, dataclasses.replace(phase, learning_rate=None)),
        num_steps=17,
        variables=variables,
        optimizer=[("step", np.array(7, np.int64)), ("momentum of a/b", values[0])],
        best_weights=[value + 1 for value in values[:num_best]],
        computed_with={"backend": "jax"},
    )


@pytest.mark.parametrize("num_best", [0, 2])
def test_a_state_comes_back_bit_by_bit_and_in_order(tmp_path, num_best):
    path = tmp_path / "checkpoints" / "state.npz"
    state = make_state(num_best)

    save_state(state, path)
    loaded = load_state(path)

    for name in ("epochs", "losses", "phases", "num_steps", "computed_with"):
        assert getattr(loaded, name) == getattr(state, name)
    assert_equal(loaded.variables, state.variables)
    assert_equal(loaded.optimizer, state.optimizer)
    assert_equal(
        [("", value) for value in loaded.best_weights],
        [("", value) for value in state.best_weights],
    )


def assert_equal(named, others):
    assert [name for name, _ in named] == [name for name, _ in others]
    for (_, value), (_, expected) in zip(named, others, strict=True):
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


def test_what_was_pretrained_comes_back_bit_by_bit(tmp_path):
    path = tmp_path / "checkpoints" / "pretrained.npz"
    state = PretrainedState(
        losses=(0.5, 0.25), seconds=1.5, variables=make_state().variables
    )
    assert load_pretrained(path) is None

    save_pretrained(state, path)
    loaded = load_pretrained(path)

    assert (loaded.losses, loaded.seconds) == (state.losses, state.seconds)
    assert_equal(loaded.variables, state.variables)


def make_model(*, units=3, seed=0):
    start_run(seed)
    pixels = keras.Input((4,))
    x = keras.layers.Dense(units, name="first")(pixels)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    return keras.Model(pixels, keras.layers.BatchNormalization(name="norm")(x))


def test_a_model_gets_back_its_weights_and_random_states(tmp_path):
    model, other = make_model(), make_model(seed=1)
    values = read_variables(model)

    assign_variables(other, values, tmp_path)

    assert [name for name, _ in values] == [
        *("first/kernel", "first/bias", "norm/gamma", "norm/beta"),
        *("norm/moving_mean", "norm/moving_variance", RANDOM_STATE),
    ]
    assert_equal(read_variables(other), values)


def test_the_weights_of_another_model_are_refused_and_nothing_is_assigned(tmp_path):
    model = make_model(units=4, seed=1)
    before = read_variables(model)

    with pytest.raises(ModelError, match=r"of another training.*first/bias"):
        assign_variables(model, read_variables(make_model()), tmp_path / "state.npz")

    assert_equal(read_variables(model), before)


def test_a_checkpoint_of_an_earlier_version_is_told(tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, record=np.array('{"epochs": [], "losses": []}'), variable_0=[1.0])

    with pytest.raises(ModelError, match="earlier version of cropseg"):
        load_state(path)


def test_where_there_is_no_checkpoint_there_is_no_state(tmp_path):
    assert load_state(tmp_path / "state.npz") is None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_told_and_never_a_fresh_start(tmp_path, share):
    path = tmp_path / "state.npz"
    save_state(make_state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(ModelError, match=r"state\.npz cannot be read.*--overwrite"):
        load_state(path)


def test_a_flipped_bit_in_a_checkpoint_is_told(tmp_path):
    path = tmp_path / "state.npz"
    save_state(make_state(), path)
    content = bytearray(path.read_bytes())
    position = content.index(make_state().variables[0][1].tobytes())
    content[position + 3] ^= 1
    path.write_bytes(content)

    with pytest.raises(ModelError, match="cannot be read"):
        load_state(path)


def test_a_checkpoint_replaces_the_one_before_it(tmp_path):
    path = tmp_path / "state.npz"
    save_state(make_state(), path)

    save_state(dataclasses.replace(make_state(), losses=(9.0,)), path)

    assert load_state(path).losses == (9.0,)
    assert [item.name for item in tmp_path.iterdir()] == ["state.npz"]
