"""The state of an optimizer, found again by the names of variables."""

from __future__ import annotations

from collections import Counter
from itertools import starmap

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.bundle import load_bundle
from cropseg.runtime import keras, start_run
from cropseg.training.checkpoint import copy_value, load_state
from cropseg.training.optimizer_state import (
    name_optimizer_variables,
    read_optimizer_state,
    restore_slots,
)
from cropseg.training.trainer import compile_network


def build_trainer(*, classes=3, rates=None):
    start_run(0)
    pixels = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 1, name="low")(pixels)
    x = keras.layers.Conv2D(classes, 1, name="head")(x)
    network = keras.Model(pixels, x)
    return compile_network(network, rate=0.01, loss="mse", rates=rates or {})


RATES = {"low": 0.5}


def step(trainer):
    rng = np.random.default_rng(0)
    shape = (2, 8, 8)
    classes = trainer.output_shape[-1]
    trainer.train_on_batch(
        rng.normal(size=(*shape, 2)), rng.normal(size=(*shape, classes))
    )


def read(trainer):
    return [(name, copy_value(v)) for name, v in name_optimizer_variables(trainer)]


@pytest.mark.parametrize("rates", [None, RATES])
def test_every_variable_of_an_optimizer_has_a_name(rates):
    trainer = build_trainer(rates=rates)
    named = name_optimizer_variables(trainer)

    assert {id(v) for _, v in named} == {id(v) for v in trainer.optimizer.variables}
    assert len(named) == len(trainer.optimizer.variables)
    kinds = Counter(name.partition(" of ")[0] for name, _ in named)
    assert kinds["momentum"] == kinds["velocity"] == 4
    assert kinds["step"] == (1 if rates is None else 2)
    assert sum(kinds.values()) == (10 if rates is None else 14)
    step(trainer)
    before = copy_value(trainer.get_layer("low").kernel)
    slots = dict(read(trainer))
    momentum, velocity = (
        slots[f"{kind} of low/kernel"] for kind in ("momentum", "velocity")
    )
    assert momentum.shape == before.shape
    # After one step Adam holds 0.1 of the gradient and 0.001 of its square.
    np.testing.assert_allclose(velocity / 1e-3, (momentum / 0.1) ** 2, rtol=1e-3)


def test_names_are_the_same_for_an_optimizer_made_later():
    first, second = build_trainer(rates=RATES), build_trainer(rates=RATES)

    assert [n for n, _ in read(first)] == [n for n, _ in read(second)]


@pytest.mark.slow
def test_the_folder_of_a_training_has_the_state_of_its_optimizer(trained_run):
    state = read_optimizer_state(trained_run.out_dir)

    model = load_bundle(trained_run.model_path).model
    trained = {v.path for v in model.trainable_variables}
    assert (state.step, state.num_steps, state.learning_rate) == (6, 6, 1e-3)
    assert set(state.momentums) == set(state.velocities) == trained
    assert set(state.weights) == {v.path for v in model.weights}
    for path in trained:
        shape = state.weights[path].shape
        assert state.momentums[path].shape == state.velocities[path].shape == shape
        assert (state.velocities[path] >= 0).all()
    kept = zip(state.kept, model.get_weights(), strict=True)
    assert all(starmap(np.array_equal, kept))
    last = load_state(trained_run.out_dir / "checkpoints" / "state.npz")
    for name, value in last.variables:
        np.testing.assert_array_equal(state.weights[name], value)


@pytest.mark.parametrize("name", ["run", "run/checkpoints"])
def test_another_folder_is_told_to_be_none_of_a_training(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)

    with pytest.raises(
        ModelError, match=r"Only the folder of.*`cropseg train` has one"
    ):
        read_optimizer_state(tmp_path / "run")


@pytest.mark.parametrize("rates", [None, RATES])
def test_slots_and_steps_go_to_the_variables_that_they_belong_to(trained_run, rates):
    state = read_optimizer_state(trained_run.out_dir)
    trainer = build_trainer(rates=rates)
    source = build_trainer()
    for _ in range(3):
        step(source)
    slots = dict(read(source))
    state = type(state)(
        **{
            **vars(state),
            "step": 3,
            "momentums": take(slots, "momentum"),
            "velocities": take(slots, "velocity"),
        }
    )

    count = restore_slots(trainer, state)

    assert count == 4
    assert int(trainer.optimizer.iterations) == 3
    for name, value in read(trainer):
        if "learning_rate" not in name:
            expected = slots.get(name, state.step)
            np.testing.assert_array_equal(value, expected)


def test_a_variable_of_another_shape_keeps_slots_of_0(trained_run):
    source = build_trainer(classes=5)
    step(source)
    slots = dict(read(source))
    state = read_optimizer_state(trained_run.out_dir)
    found = {
        "momentums": take(slots, "momentum"),
        "velocities": take(slots, "velocity"),
    }
    trainer = build_trainer()

    count = restore_slots(trainer, type(state)(**{**vars(state), **found}))

    assert count == 2
    values = dict(read(trainer))
    for kind in ("momentum", "velocity"):
        assert values[f"{kind} of low/kernel"].any()
        assert not values[f"{kind} of head/kernel"].any()


def take(slots, kind):
    start = f"{kind} of "
    return {n.removeprefix(start): v for n, v in slots.items() if n.startswith(start)}
