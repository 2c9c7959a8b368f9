"""Trainers: what they train, how fast, in which precision, and who watches them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cropseg.errors import CropsegError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network as build_zoo_network
from cropseg.models.zoo import find_stages
from cropseg.runtime import keras, start_run
from cropseg.training.checkpoint import copy_value
from cropseg.training.locks import (
    build_full_phase,
    choose_momentum,
    list_norms,
    lock_layers,
)
from cropseg.training.losses import build_loss
from cropseg.training.phases import (
    FROZEN,
    INFERENCE,
    RECOMPUTED,
    RUNNING,
    BatchNormPolicy,
    FitPhase,
)
from cropseg.training.trainer import (
    GroupedAdam,
    LocalAdam,
    build_network,
    build_schedule,
    compile_network,
    give_back,
    list_fates,
    list_locked_variables,
    watch_network,
)

NORM = "encoder_1_bn_1"
SIDE = 16
RUNNING_LOCKED = BatchNormPolicy(statistics="running", affine="locked")


@pytest.fixture
def model():
    start_run(0)
    network = build_zoo_network("unet", "classic_tiny", num_bands=2, num_classes=3)
    return add_normalization(network, mean=(0.0, 1.0), std=(1.0, 2.0))


@pytest.fixture
def small_model():
    """Return a network with a dropout layer, and two layers before its head."""
    start_run(0)
    pixels = keras.Input((SIDE, SIDE, 2))
    x = keras.layers.Conv2D(3, 1, name="low")(pixels)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    x = keras.layers.Conv2D(3, 1, name="high")(x)
    x = keras.layers.Conv2D(3, 1, name="head")(x)
    return keras.Model(pixels, keras.layers.Softmax(name="probabilities")(x))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, SIDE, SIDE, 2)).astype("f4")
    return images, rng.integers(0, 3, (2, SIDE, SIDE)).astype("u1")


def freeze_encoder(model):
    """Return the phase that trains all but the encoder."""
    stages = find_stages(model, "unet", "classic_tiny")
    part = {layer: stage.part for stage in stages for layer in stage.layers}
    norms = list_norms(model)
    return FitPhase(
        name="decoder",
        num_steps=2,
        trained=frozenset(x for x in part if part[x] != "encoder") - frozenset(norms),
        norms={x: FROZEN if part[x] == "encoder" else RUNNING for x in norms},
    )


def compile_phase(model, phase, *, rate=0.01, precision="float32"):
    network = build_network(model, phase, precision)
    loss = build_loss("cross_entropy", class_weights=None)
    return compile_network(network, rate=rate, loss=loss, rates=phase.rates)


def read(model):
    return {v.path: copy_value(v) for v in model.weights}


def list_moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


def test_the_learning_rate_warms_up_and_falls_to_0():
    schedule = build_schedule(0.01, 200)

    rates = np.array([float(schedule(step)) for step in range(201)])

    assert rates.max() == pytest.approx(0.01)
    assert rates.argmax() == 10  # a twentieth of 200 steps
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[105] == pytest.approx(0.005)  # half of a cosine, half way
    assert rates[200] == pytest.approx(0, abs=1e-9)
    assert rates[0] > 0


@pytest.mark.slow
def test_no_gradient_is_computed_for_a_locked_encoder(model, batch, monkeypatch):
    trainer = compile_phase(model, freeze_encoder(model))
    found = []
    apply = type(trainer.optimizer).apply

    def record(self, grads, trainable_variables=None):
        found.extend(zip(grads, trainable_variables, strict=True))
        return apply(self, grads, trainable_variables)

    monkeypatch.setattr(type(trainer.optimizer), "apply", record)
    before = read(model)
    trainer.train_on_batch(*batch)

    paths = {v.path for v in trainer.trainable_variables}
    assert paths
    assert not any(path.startswith("encoder") for path in paths)
    assert {variable.path for _, variable in found} == paths
    assert all(gradient is not None for gradient, _ in found)
    moved = list_moved(before, read(model))
    assert not any(path.startswith("encoder") for path in moved)
    assert paths <= moved


@pytest.mark.parametrize(
    ("policy", "moves"),
    [
        (FROZEN, ""),
        (INFERENCE, "gamma beta"),
        (RUNNING, "gamma beta moving_mean moving_variance"),
        (RECOMPUTED, ""),
        (RUNNING_LOCKED, "moving_mean moving_variance"),
        (BatchNormPolicy(statistics="recomputed", affine="trained"), "gamma beta"),
    ],
)
def test_a_batch_normalisation_does_what_its_policy_says(
    small_model, batch, policy, moves
):
    # Of what a layer has locked in part, a copy in bfloat16 would know nothing.
    precision = "bfloat16" if policy == RUNNING_LOCKED else "float32"
    phase = build_full_phase(small_model, 2)
    phase = dataclasses.replace(phase, norms={"norm": policy})
    trainer = compile_phase(small_model, phase, precision=precision)
    watch = watch_network(trainer, phase, is_first=True)
    before = read(small_model)

    trainer.train_on_batch(*batch)
    give_back(trainer, small_model)

    watch.compare()
    moved = {p for p in list_moved(before, read(small_model)) if p.startswith("norm/")}
    assert moved == {f"norm/{name}" for name in moves.split()}


def test_a_trainer_in_bfloat16_takes_and_gives_back_random_states(small_model, batch):
    phase = build_full_phase(small_model, 2)
    state = small_model.get_layer("drop").seed_generator.state
    before = copy_value(state)

    trainer = compile_phase(small_model, phase, precision="bfloat16")
    copied = trainer.get_layer("drop").seed_generator.state
    np.testing.assert_array_equal(copy_value(copied), before)
    trainer.train_on_batch(*batch)
    np.testing.assert_array_equal(copy_value(state), before)
    give_back(trainer, small_model)

    np.testing.assert_array_equal(copy_value(state), copy_value(copied))
    assert (copy_value(state) != before).any()


def test_a_float32_trainer_shares_the_variables_of_its_model(small_model):
    trainer = compile_phase(small_model, build_full_phase(small_model, 2))

    ours, theirs = ({id(v) for v in item.weights} for item in (trainer, small_model))
    assert ours == theirs


def change_rates(model, **rates):
    return dataclasses.replace(build_full_phase(model, 3), rates=rates)


def test_one_rate_has_one_adam_and_several_have_one_each(small_model):
    everywhere = dict.fromkeys(("low", "norm", "high", "head"), 0.1)
    for rates, expected in (({}, 0.01), (everywhere, 0.001)):
        phase = change_rates(small_model, **rates)
        optimizer = compile_phase(small_model, phase).optimizer
        assert type(optimizer) is LocalAdam
        assert float(optimizer.learning_rate) == pytest.approx(expected)

    rates = {"low": 0.25, "norm": 0.25, "high": 0.5}
    optimizer = compile_phase(small_model, change_rates(small_model, **rates)).optimizer

    assert type(optimizer) is GroupedAdam
    found = {
        round(float(adam.learning_rate), 6): set(paths)
        for adam, paths in optimizer.groups
    }
    assert found == {
        0.0025: {"low/kernel", "low/bias", "norm/gamma", "norm/beta"},
        0.005: {"high/kernel", "high/bias"},
        0.01: {"head/kernel", "head/bias"},
    }


@pytest.mark.slow
def test_layers_move_in_proportion_to_their_rates(small_model, batch):
    moves = []
    for rates in ({}, {"low": 0.25, "high": 0.5}):
        start_run(0)
        copy = keras.models.clone_model(small_model)
        copy.set_weights(small_model.get_weights())
        copy.get_layer("drop").seed_generator.state.assign([1, 2])
        before = read(copy)
        schedule = build_schedule(0.01, 10)
        compile_phase(copy, change_rates(copy, **rates), rate=schedule).train_on_batch(
            *batch
        )
        moves.append({p: v - before[p] for p, v in read(copy).items()})

    factors = {"low": 0.25, "norm": 1.0, "high": 0.5, "head": 1.0}
    for path, move in moves[0].items():
        factor = 1.0 if "moving" in path else factors[path.partition("/")[0]]
        np.testing.assert_allclose(moves[1][path], factor * move, rtol=2e-3)


@pytest.mark.slow
def test_groups_of_one_rate_give_the_bits_of_one_adam(small_model, batch):
    weights = small_model.get_weights()
    state = small_model.get_layer("drop").seed_generator.state
    phase = build_full_phase(small_model, 3)
    images, labels = batch
    results = []
    for is_grouped in (False, True):
        small_model.set_weights(weights)
        state.assign([3, 4])
        trainer = compile_phase(small_model, phase)
        if is_grouped:
            variables = trainer.trainable_variables
            trainer.compile(
                optimizer=GroupedAdam(
                    (keras.optimizers.Adam(0.01), part)
                    for part in (variables[::2], variables[1::2])
                ),
                loss=trainer.loss,
                jit_compile=False,
            )
        for factor in (1000, 1):  # gradients far above the norm to clip to, and below
            trainer.train_on_batch(factor * images, labels)
        results.append(small_model.get_weights())
        assert int(trainer.optimizer.iterations) == 2

    for value, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_locked_are_all_variables_but_the_trained_and_statistics_that_run(model):
    model.get_layer(NORM).trainable = False
    model.get_layer("encoder_2_conv_1").trainable = False

    locked = list_locked_variables(model, frozenset({"encoder_2_bn_1"}))

    paths = {variable.path for variable in locked}
    ours = {path for path in paths if not path.startswith("band_normalization")}
    assert ours == {
        *(f"{NORM}/{name}" for name in ("gamma", "beta")),
        *(f"{NORM}/{name}" for name in ("moving_mean", "moving_variance")),
        *(f"encoder_2_bn_1/{name}" for name in ("moving_mean", "moving_variance")),
        "encoder_2_conv_1/kernel",
    }


def test_the_fate_of_a_variable_is_that_of_all_phases(small_model):
    affine = {"norm/gamma", "norm/beta"}
    statistics = {"norm/moving_mean", "norm/moving_variance"}
    adabn = FitPhase(
        name="statistics", num_steps=0, trained=frozenset(), norms={"norm": RECOMPUTED}
    )
    head = FitPhase(
        name="head", num_steps=1, trained=frozenset({"head"}), norms={"norm": FROZEN}
    )
    running = dataclasses.replace(
        head, trained=frozenset({"high"}), norms={"norm": RUNNING}
    )
    idle = dataclasses.replace(running, num_steps=0)

    def find(*phases):
        fates = list_fates(small_model, phases)
        assert set(fates) == {variable.path for variable in small_model.weights}
        return {
            fate: {path for path in fates if fates[path] == fate}
            for fate in set(fates.values())
        }

    assert set(find()) == {"locked"}
    assert find(adabn)["statistics recomputed"] == statistics
    found = find(adabn, head)
    assert found["trained"] == {"head/kernel", "head/bias"}
    assert found["statistics recomputed"] == statistics
    assert affine < found["locked"]
    found = find(adabn, running, head)
    trained = {
        f"{name}/{kind}" for name in ("high", "head") for kind in ("kernel", "bias")
    }
    assert found["trained"] == affine | trained
    assert found["statistics run"] == statistics
    assert find(idle) == {"locked": {v.path for v in small_model.weights}}


@pytest.mark.parametrize("name", ["gamma", "moving_mean"])
def test_a_watch_tells_of_a_locked_variable_that_moved(model, name):
    phase = freeze_encoder(model)
    trainer = compile_phase(model, phase)
    watch = watch_network(trainer, phase, is_first=False)
    watch.compare()
    variable = getattr(model.get_layer(NORM), name)
    variable.assign(variable + 1e-6)

    with pytest.raises(CropsegError, match=f"Locked variables changed.*{NORM}/{name}"):
        watch.compare()


def test_a_watch_tells_where_nothing_moved_in_a_first_step(model):
    phase = freeze_encoder(model)
    trainer = compile_phase(model, phase)

    with pytest.raises(CropsegError, match="No trained variable changed"):
        watch_network(trainer, phase, is_first=True).compare()


def test_a_phase_can_lock_what_the_one_before_it_trained(small_model):
    lock_layers(small_model, build_full_phase(small_model, 1))
    head = FitPhase(
        name="head", num_steps=1, trained=frozenset({"head"}), norms={"norm": FROZEN}
    )

    trainer = compile_phase(small_model, head)

    assert [v.path for v in trainer.trainable_variables] == ["head/kernel", "head/bias"]


@pytest.mark.parametrize(
    ("num_steps", "momentum"),
    [(1, 0.5), (20, 0.5), (30, 2 / 3), (100, 0.9), (1_000, 0.99), (50_000, 0.99)],
)
def test_statistics_forget_within_a_tenth_of_the_phase(num_steps, momentum):
    assert choose_momentum(num_steps) == pytest.approx(momentum)


def test_after_a_short_phase_statistics_are_those_of_its_batches(small_model):
    rng = np.random.default_rng(0)
    tiles = rng.normal(5, 2, (4, SIDE, SIDE, 2)).astype("float32")
    labels = rng.integers(0, 3, (4, SIDE, SIDE)).astype("uint8")
    phase = FitPhase(
        name="head",
        num_steps=30,
        trained=frozenset({"head"}),
        norms={"norm": RUNNING},
    )
    seen = keras.Model(small_model.input, small_model.get_layer("low").output)
    mean = np.asarray(seen(tiles)).mean(axis=(0, 1, 2))
    trainer = compile_phase(small_model, phase)

    for _ in range(phase.num_steps):
        trainer.train_on_batch(tiles, labels)
    give_back(trainer, small_model)

    running = copy_value(small_model.get_layer("norm").moving_mean)
    np.testing.assert_allclose(running, mean, rtol=1e-4)
