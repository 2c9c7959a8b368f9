"""Fitting: equal bits for equal calls, also after an interruption."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from itertools import starmap

import numpy as np
import pytest

from cropseg.errors import ConflictError, CropsegError, DivergedError
from cropseg.models.bundle import add_normalization
from cropseg.models.card import read_card
from cropseg.models.weight_report import WeightReport, WeightRow
from cropseg.models.zoo import build_network
from cropseg.runtime import keras, start_run
from cropseg.sites.budget import open_pool
from cropseg.sites.statistics import survey_site
from cropseg.training import fit, phase_start, trainer
from cropseg.training.batches import TileBatches
from cropseg.training.checkpoint import load_state, save_state
from cropseg.training.fit import fit_model
from cropseg.training.fit_job import FitJob
from cropseg.training.l2sp import build_penalty
from cropseg.training.locks import build_full_phase, choose_momentum, list_norms
from cropseg.training.losses import build_loss, compute_class_weights
from cropseg.training.optimizer_state import read_optimizer_state
from cropseg.training.phases import (
    FROZEN,
    INFERENCE,
    RECOMPUTED,
    RUNNING,
    FitPhase,
    find_phase,
)
from cropseg.training.rate_search import RateSearch
from cropseg.training.settings import TrainSettings

NORM = "encoder_1_bn_1"


class Interrupted(BaseException):
    """What a user's Ctrl-C is to a training."""


@pytest.fixture(scope="module")
def make_job(area_1, settings):
    """Return a function that starts a run with a fresh model."""

    def make(**changes):
        chosen = TrainSettings(**settings | changes.pop("settings", {}))
        start_run(chosen.seed)
        bands = survey_site(area_1, 32).bands
        network = build_network(
            chosen.architecture, chosen.encoder, num_bands=5, num_classes=4
        )
        model = add_normalization(network, mean=bands.mean, std=bands.std)
        policies = changes.pop("norms", {})
        full = build_full_phase(model, chosen.num_steps)
        full = dataclasses.replace(full, norms={**full.norms, **policies})
        given = {"phases": (full,), **changes}
        return FitJob(
            model=model,
            pool=open_pool(area_1, 32),
            settings=chosen,
            statistics=(bands.mean, bands.std),
            **given,
        )

    return make


def fit_weights(job):
    result = fit_model(job)
    return result, job.model.get_weights()


def read_weights(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def interrupt_at(step):
    def show_progress(done, *_):
        if done == step:
            raise Interrupted

    return show_progress


def are_equal(weights, others):
    return all(starmap(np.array_equal, zip(weights, others, strict=True)))


@pytest.fixture(scope="module")
def finished_path(tmp_path_factory):
    """Return where `uninterrupted` leaves its state."""
    return tmp_path_factory.mktemp("finished") / "state.npz"


@pytest.fixture(scope="module")
def uninterrupted(make_job, finished_path):
    """Return result and weights of the training that others are compared to."""
    return fit_weights(make_job(checkpoint_path=finished_path))


def test_equal_calls_give_equal_bits_for_any_number_of_workers(make_job, uninterrupted):
    result, weights = uninterrupted

    again, same = fit_weights(make_job(settings={"workers": 1}))

    assert again.losses == result.losses
    assert are_equal(same, weights)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5])
def test_an_interrupted_training_ends_with_the_bits_of_one_that_was_not(
    make_job, uninterrupted, tmp_path, step
):
    result, weights = uninterrupted
    path = tmp_path / "state.npz"
    with pytest.raises(Interrupted):
        fit_model(make_job(checkpoint_path=path, show_progress=interrupt_at(step)))
    steps = []

    again, same = fit_weights(
        make_job(
            checkpoint_path=path,
            show_progress=lambda done, total, _: steps.append((done, total)),
        )
    )

    expected = range(4, 7) if step == 5 else range(1, 7)
    assert steps == [(done, 6) for done in expected]  # the first epoch was kept, or not
    assert again.losses == result.losses
    assert [item.epoch for item in again.epochs] == [1, 2]
    assert are_equal(same, weights)


@pytest.mark.parametrize(
    ("then", "change"),
    [
        ({"backend": "torch", "precision": "float32"}, "backend was torch"),
        pytest.param(
            {"precision": "bfloat16"},
            "precision was bfloat16, is float32",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_training_does_not_go_on_computed_in_another_way(
    make_job, uninterrupted, finished_path, tmp_path, then, change
):
    path = tmp_path / "state.npz"
    state = load_state(finished_path)
    save_state(dataclasses.replace(state, computed_with=then), path)

    with pytest.raises(ConflictError, match=change) as caught:
        fit_model(make_job(checkpoint_path=path))

    assert caught.value.exit_code == 7
    save_state(dataclasses.replace(state, computed_with=None), path)
    again, _ = fit_weights(make_job(checkpoint_path=path))  # of an earlier version
    assert again == uninterrupted[0]


def test_a_finished_training_is_not_trained_further(
    make_job, uninterrupted, finished_path
):
    steps = []

    again, same = fit_weights(
        make_job(
            checkpoint_path=finished_path,
            show_progress=lambda *args: steps.append(args),
        )
    )

    assert steps == []
    result, weights = uninterrupted
    assert again == result
    assert are_equal(same, weights)


@pytest.mark.slow
def test_the_best_epoch_is_kept_also_over_an_interruption(make_small_job, tmp_path):
    path = tmp_path / "state.npz"
    phases = plan_three(0, 0, 9)[2:]
    kept = []

    def start(scores, **changes):
        job = make_small_job(checkpoint_path=path, phases=phases, **changes)

        def validate():
            kept.append(job.model.get_weights())
            return scores.pop(0)

        return dataclasses.replace(job, validate=validate)

    with pytest.raises(Interrupted):
        fit_model(start([0.25, 0.75], show_progress=interrupt_at(8)))
    result, weights = fit_weights(start([0.5]))

    assert [item.val_miou for item in result.epochs] == [0.25, 0.75, 0.5]
    assert are_equal(weights, kept[1])
    assert not are_equal(weights, kept[0])
    assert not are_equal(weights, kept[2])


@pytest.mark.slow
def test_without_validation_the_last_weights_are_kept(uninterrupted, make_job):
    result, weights = uninterrupted
    last = []
    job = make_job()

    def validate():
        last.append(job.model.get_weights())
        return len(last) / 10  # the last is the best

    fit_model(dataclasses.replace(job, validate=validate))

    assert [item.val_miou for item in result.epochs] == [None, None]
    assert are_equal(weights, last[-1])


def test_the_record_has_every_step_and_every_epoch(uninterrupted):
    result, _ = uninterrupted

    assert len(result.losses) == 6
    assert len(set(result.losses)) == 6
    assert [item.step for item in result.epochs] == [3, 6]
    for item, losses in zip(
        result.epochs, (result.losses[:3], result.losses[3:]), strict=True
    ):
        assert item.loss == pytest.approx(np.mean(losses))
        assert item.seconds > 0
    assert result.seconds == sum(item.seconds for item in result.epochs)


@pytest.mark.slow
def test_another_seed_gives_another_model(make_job, uninterrupted):
    result, weights = uninterrupted

    other, others = fit_weights(make_job(settings={"seed": 1}))

    assert other.losses[0] != result.losses[0]
    assert not are_equal(weights, others)


def test_a_loss_that_is_not_a_number_ends_the_training(make_small_job, monkeypatch):
    def build_loss(*_, **__):
        return lambda _, logits: keras.ops.mean(logits) * float("nan")

    monkeypatch.setattr(trainer, "build_loss", build_loss)
    with pytest.raises(DivergedError, match=r"loss is nan at step 1 .*--learning-rate"):
        fit_model(make_small_job())
    assert DivergedError.exit_code == 8


def move(variable):
    variable.assign(variable + 1e-6)


@pytest.mark.parametrize("name", ["gamma", "moving_mean"])
def test_a_locked_variable_that_moves_ends_the_training(
    make_small_job, monkeypatch, name
):
    job = make_small_job()  # its first phase trains the head alone
    variable = getattr(job.model.get_layer("norm"), name)

    monkeypatch.setattr(
        fit._Steps, "on_train_batch_begin", lambda *_, **__: move(variable)
    )

    with pytest.raises(CropsegError, match=f"Locked variables changed.*norm/{name}"):
        fit_model(job)


def test_a_training_that_moves_nothing_is_told(make_small_job, monkeypatch):
    monkeypatch.setattr(fit, "build_schedule", lambda *_: 0.0)

    with pytest.raises(CropsegError, match="No trained variable changed"):
        fit_model(make_small_job())


@pytest.mark.slow
def test_a_training_in_bfloat16_leaves_float32_weights_in_the_model(make_job):
    job = make_job(
        settings={"precision": "bfloat16", "epochs": 1},
        norms={NORM: INFERENCE},
    )
    before = read_weights(job.model)

    fit_model(job)

    after = read_weights(job.model)
    assert {value.dtype for value in after.values()} == {np.dtype(np.float32)}
    for path in ("encoder_1_conv_1/kernel", f"{NORM}/gamma", "head/kernel"):
        assert (after[path] != before[path]).any()
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_array_equal(after[f"{NORM}/{name}"], before[f"{NORM}/{name}"])
        moved = f"encoder_1_bn_2/{name}"
        assert (after[moved] != before[moved]).any()


@pytest.mark.slow
def test_one_phase_is_a_plain_training_of_keras(make_job, uninterrupted):
    result, weights = uninterrupted
    job = make_job()
    pixels, probabilities = job.model.inputs[0], job.model.get_layer("head").output
    plain = keras.Model(pixels, probabilities)
    pixel_weights = compute_class_weights(np.array(job.pool.class_pixels), power=0.5)
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-3, decay_steps=5, warmup_target=1e-3, warmup_steps=1
    )
    plain.compile(
        optimizer=keras.optimizers.Adam(schedule, global_clipnorm=1.0),
        loss=build_loss("cross_entropy", class_weights=pixel_weights),
        jit_compile=False,
    )
    for name in list_norms(plain):
        plain.get_layer(name).momentum = choose_momentum(6)
    batches = TileBatches(job.pool, batch_size=2, seed=0, statistics=job.statistics)

    losses = [
        float(plain.train_on_batch(*batches[step], return_dict=True)["loss"])
        for step in range(6)
    ]

    assert losses == list(result.losses)
    assert are_equal(plain.get_weights(), weights)


@pytest.fixture(scope="module")
def make_small_job(area_1, settings):
    """Return a function that starts a run with a small network that has dropout."""
    bands = survey_site(area_1, 32).bands
    pool = open_pool(area_1, 32)

    def make(**changes):
        given = {"epochs": 3, "steps_per_epoch": 3, **changes.pop("settings", {})}
        chosen = TrainSettings(**{**settings, **given})
        start_run(chosen.seed)
        pixels = keras.Input((32, 32, 5))
        x = keras.layers.Conv2D(4, 3, padding="same", name="low")(pixels)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.Dropout(0.3, name="drop")(keras.layers.ReLU(name="relu")(x))
        x = keras.layers.Conv2D(4, 1, name="high")(x)
        x = keras.layers.Conv2D(4, 1, name="head")(x)
        x = keras.layers.Softmax(name="probabilities")(x)
        network = keras.Model(pixels, x)
        return FitJob(
            model=add_normalization(network, mean=bands.mean, std=bands.std),
            pool=pool,
            settings=chosen,
            statistics=(bands.mean, bands.std),
            **{"phases": plan_three(2, 3, 4), **changes},
        )

    return make


def plan_three(*counts):
    """Return three phases: the head; more, at several rates; all, statistics kept."""
    given = (
        ("head", {"head"}, FROZEN, {}),
        ("top", {"high", "head"}, RUNNING, {"high": 0.5, "norm": 0.1}),
        ("all", {"low", "high", "head"}, INFERENCE, {"low": 0.25}),
    )
    return tuple(
        FitPhase(
            name=name,
            num_steps=count,
            trained=frozenset(trained),
            norms={"norm": policy},
            rates=rates,
        )
        for count, (name, trained, policy, rates) in zip(counts, given, strict=True)
    )


TRAINED = (
    {"head"},
    {"head", "high", "norm/gamma", "norm/beta", "norm/moving"},
    {"head", "high", "low", "norm/gamma", "norm/beta"},
)
"""What begins the paths of variables that change in each of these phases."""


def test_each_phase_changes_its_own_variables_and_no_others(make_small_job):
    job = make_small_job()
    values = [read_weights(job.model)]

    def show_progress(*_):
        values.append(read_weights(job.model))

    fit_model(dataclasses.replace(job, show_progress=show_progress))

    for step, (before, after) in enumerate(itertools.pairwise(values)):
        expected = TRAINED[find_phase(job.phases, step)]
        moved = {path for path in before if (before[path] != after[path]).any()}
        assert moved == {path for path in before if path.startswith(tuple(expected))}
    assert len(values) == 10


@pytest.fixture(scope="module")
def straight(make_small_job):
    """Return what trainings that were not interrupted end with, by their phases."""
    found = {}

    def get(counts, precision):
        if (counts, precision) not in found:
            job = make_small_job(
                phases=plan_three(*counts), settings={"precision": precision}
            )
            found[counts, precision] = (*fit_weights(job), read_random_state(job.model))
        return found[counts, precision]

    return get


@pytest.mark.slow
def test_epochs_end_where_they_do_whatever_the_phases(straight):
    result, _, _ = straight((2, 3, 4), "float32")

    assert [item.step for item in result.epochs] == [3, 6, 9]
    assert [item.epoch for item in result.epochs] == [1, 2, 3]
    for item, losses in zip(
        result.epochs, np.reshape(result.losses, (3, 3)), strict=True
    ):
        assert item.loss == pytest.approx(losses.mean())
        assert item.seconds > 0


@pytest.mark.slow
def test_each_phase_has_a_learning_rate_of_its_own_that_rises_and_falls(straight):
    result, _, _ = straight((2, 3, 4), "float32")

    # One step into the second phase, then one into the third, then at its end.
    expected = [float(fit.build_schedule(1e-3, count)(1)) for count in (3, 4)]
    assert [item.learning_rate for item in result.epochs] == [*expected, 0.0]
    assert [
        (phase.name, phase.steps, phase.learning_rate, phase.trained_parameters)
        for phase in result.phases
    ] == [
        ("head", 2, 1e-3, 4 * 4 + 4),
        ("top", 3, 1e-3, 2 * (4 * 4 + 4) + 8),
        ("all", 4, 1e-3, 5 * 9 * 4 + 4 + 2 * (4 * 4 + 4) + 8),
    ]


def read_random_state(model):
    return np.array(
        keras.ops.convert_to_numpy(model.get_layer("drop").seed_generator.state)
    )


@pytest.mark.parametrize(
    ("counts", "precision", "step"),
    [
        # In the first phase, before an epoch was kept.
        pytest.param((2, 3, 4), "float32", 1, marks=pytest.mark.slow),
        # In the second and in the third, which go on at their second steps.
        pytest.param((2, 3, 4), "float32", 5, marks=pytest.mark.slow),
        ((2, 3, 4), "float32", 8),
        # In the second, where the first ended with an epoch.
        pytest.param((3, 3, 3), "float32", 4, marks=pytest.mark.slow),
        # In the first, which goes on at its last step.
        pytest.param((4, 1, 4), "float32", 4, marks=pytest.mark.slow),
        pytest.param((2, 3, 4), "bfloat16", 5, marks=pytest.mark.slow),
        pytest.param((3, 3, 3), "bfloat16", 4, marks=pytest.mark.slow),
    ],
)
def test_a_training_of_phases_goes_on_in_the_right_one_bit_by_bit(
    make_small_job, straight, tmp_path, counts, precision, step
):
    path = tmp_path / "state.npz"
    given = {"phases": plan_three(*counts), "settings": {"precision": precision}}
    with pytest.raises(Interrupted):
        fit_model(
            make_small_job(
                checkpoint_path=path, show_progress=interrupt_at(step), **given
            )
        )

    job = make_small_job(checkpoint_path=path, **given)
    again, weights = fit_weights(job)

    result, expected, random_state = straight(counts, precision)
    assert again.losses == result.losses
    assert again.phases == result.phases
    assert are_equal(weights, expected)
    np.testing.assert_array_equal(read_random_state(job.model), random_state)


@pytest.mark.slow
def test_the_searched_rate_of_a_phase_is_capped_kept_and_not_searched_again(
    make_small_job, monkeypatch, tmp_path
):
    path = tmp_path / "state.npz"
    searched = []
    suggestions = [0.004, 5.0, 0.5]

    def search_rate(build_trainer, batches, *, first_index):
        trainer = build_trainer(0.125)
        assert float(trainer.optimizer.learning_rate) == 0.125
        paths = {v.path.partition("/")[0] for v in trainer.trainable_variables}
        searched.append((first_index, paths))
        assert len(batches[first_index]) == 2
        suggestion = suggestions[len(searched) - 1]
        return RateSearch(rates=(0.1, 1.0), losses=(1.0, 2.0), suggestion=suggestion)

    monkeypatch.setattr(phase_start, "search_rate", search_rate)
    phases = plan_three(2, 3, 4)
    phases = (
        *(
            dataclasses.replace(phase, name=name, rates={}, searches_rate=True)
            for phase, name in zip(phases[:2], ("head", "../top"), strict=True)
        ),
        phases[2],
    )
    given = {"phases": phases, "checkpoint_path": path, "plots_dir": tmp_path}
    with pytest.raises(Interrupted):
        fit_model(make_small_job(show_progress=interrupt_at(3), **given))
    state = load_state(path)
    assert (len(state.losses), len(state.phases)) == (2, 2)  # kept after the search
    result = fit_model(make_small_job(**given))

    assert searched == [(0, {"head"}), (2, {"high", "norm", "head"})]
    rates = [phase.learning_rate for phase in result.phases]
    assert rates == [0.004, 0.01, 0.001]  # ten times that of the settings at most
    assert {file.name for file in tmp_path.glob("*.png")} == {
        *("rate_search_1_head.png", "rate_search_2__top.png"),
    }
    assert result.seconds > sum(item.seconds for item in result.epochs)


@pytest.mark.slow
def test_a_real_search_leaves_no_trace_but_its_rate(make_small_job):
    phase = dataclasses.replace(plan_three(2, 3, 4)[2], num_steps=3, searches_rate=True)
    settings = {"epochs": 1}
    searched = make_small_job(phases=(phase,), settings=settings)
    result, weights = fit_weights(searched)
    rate = result.phases[0].learning_rate

    plain = dataclasses.replace(phase, searches_rate=False)
    settings |= {"learning_rate": rate}
    _, expected = fit_weights(make_small_job(phases=(plain,), settings=settings))

    assert are_equal(weights, expected)


@pytest.mark.slow
def test_recomputed_statistics_are_measured_once_before_the_first_step(
    make_small_job, monkeypatch, tmp_path
):
    path = tmp_path / "state.npz"
    seen = []

    def recompute_statistics(model, norms, tiles, *, batch_size, fill):
        seen.append((set(norms), tiles.tile_size, batch_size, fill))
        for variable in model.get_layer("norm").non_trainable_variables[-2:]:
            variable.assign(variable + 1)

    monkeypatch.setattr(phase_start, "recompute_statistics", recompute_statistics)
    adabn = FitPhase(
        name="statistics", num_steps=0, trained=frozenset(), norms={"norm": RECOMPUTED}
    )
    given = {"phases": (adabn, *plan_three(9, 0, 0)[:1]), "checkpoint_path": path}
    with pytest.raises(Interrupted):
        fit_model(make_small_job(show_progress=interrupt_at(1), **given))
    job = make_small_job(**given)
    result = fit_model(job)

    assert seen == [({"norm"}, 32, 2, job.statistics[0])]
    assert result.phases[0].learning_rate is None
    assert result.phases[0].trained_parameters == 0
    assert [phase.name for phase in result.phases] == ["statistics", "head"]


def test_a_phase_without_steps_does_nothing_but_measure(make_small_job):
    adabn = FitPhase(
        name="statistics", num_steps=0, trained=frozenset(), norms={"norm": RECOMPUTED}
    )
    job = make_small_job(phases=(adabn,))
    before = read_weights(job.model)

    result = fit_model(job)

    after = read_weights(job.model)
    moved = {path for path in before if (before[path] != after[path]).any()}
    assert moved == {"norm/moving_mean", "norm/moving_variance"}
    assert (result.losses, result.epochs) == ((), ())
    assert result.seconds > 0


@pytest.mark.slow
def test_a_penalty_keeps_weights_near_their_start(make_small_job):
    distances = []
    phases = plan_three(0, 0, 9)[2:]
    for strength in (0.0, 0.1, 100.0):
        job = make_small_job(phases=phases, settings={"learning_rate": 0.01})
        before = read_weights(job.model)
        if strength:
            rows = tuple(
                WeightRow(variable=path, part="", shape=(), action="copied", reason="")
                for path in before
            )
            report = WeightReport(rows=rows)
            penalty = build_penalty(job.model, report, strength=strength)
            job = dataclasses.replace(job, penalty=penalty)
        result = fit_model(job)
        after = read_weights(job.model)
        distances.append(sum(((after[p] - before[p]) ** 2).sum() for p in before))
        assert all(variable.regularizer is None for variable in job.model.weights)
        assert np.isfinite(result.losses).all()

    assert distances[0] > distances[1] > 2 * distances[2]


@pytest.mark.slow
def test_a_head_on_kept_features_is_trained_as_without(make_small_job):
    head = plan_three(9, 0, 0)[:1]
    weights = []
    for caches_features in (False, True):
        job = make_small_job(phases=head, caches_features=caches_features)
        job.model.get_layer("drop").rate = 0.0  # features are kept without dropout
        before = read_weights(job.model)
        result = fit_model(job)
        assert len(result.losses) == 9
        after = read_weights(job.model)
        moved = {path for path in before if (before[path] != after[path]).any()}
        assert moved == {"head/kernel", "head/bias"}
        weights.append(after)

    for path, values in weights[0].items():
        np.testing.assert_allclose(weights[1][path], values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_training_on_kept_features_goes_on_bit_by_bit(make_small_job, tmp_path):
    given = {"phases": plan_three(9, 0, 0)[:1], "caches_features": True}
    path = tmp_path / "state.npz"
    with pytest.raises(Interrupted):
        fit_model(
            make_small_job(checkpoint_path=path, show_progress=interrupt_at(5), **given)
        )

    _, weights = fit_weights(make_small_job(checkpoint_path=path, **given))

    assert are_equal(weights, fit_weights(make_small_job(**given))[1])


@pytest.fixture(scope="module")
def source_state(make_small_job, tmp_path_factory):
    """Return the state of a training of all layers, and the state of its optimizer."""
    folder = tmp_path_factory.mktemp("source")
    job = make_small_job(
        phases=(build_full_phase(make_small_job().model, 6),),
        settings={"epochs": 2, "learning_rate": 0.02},
        checkpoint_path=folder / "checkpoints" / "state.npz",
    )
    fit_model(job)
    return read_optimizer_state(folder)


def test_a_resumed_training_starts_with_the_slots_and_steps_of_the_source(
    make_small_job, source_state, monkeypatch
):
    found = {}

    def keep(self, *_, **__):
        if not found:
            found["iterations"] = int(self.model.optimizer.iterations)
            found["rate"] = float(self.model.optimizer.learning_rate)
            found.update(
                (name, keras.ops.convert_to_numpy(v).copy())
                for name, v in fit.name_optimizer_variables(self.model)
            )
        self.model.reset_metrics()

    monkeypatch.setattr(fit._Steps, "on_train_batch_begin", keep)
    job = make_small_job(resumed=source_state)
    job = dataclasses.replace(job, phases=(build_full_phase(job.model, 9),))
    result = fit_model(job)

    assert found["iterations"] == found["step"] == source_state.step == 6
    paths = {v.path for v in job.model.trainable_variables}
    assert set(source_state.momentums) == set(source_state.velocities) == paths
    for path in paths:
        np.testing.assert_array_equal(
            found[f"momentum of {path}"], source_state.momentums[path]
        )
        np.testing.assert_array_equal(
            found[f"velocity of {path}"], source_state.velocities[path]
        )
        assert source_state.momentums[path].any()
    # The source's cosine, stretched to the steps of both.
    stretched = fit.build_schedule(0.02, 6 + 9)
    assert found["rate"] == pytest.approx(float(stretched(6)))
    assert [item.learning_rate for item in result.epochs] == pytest.approx(
        [float(stretched(step)) for step in (9, 12, 15)], abs=1e-9
    )
    (phase,) = result.phases
    assert (phase.learning_rate, phase.taken_slots) == (0.02, len(paths))


@pytest.mark.slow
def test_a_resumed_training_goes_on_bit_by_bit_after_an_interruption(
    make_small_job, source_state, tmp_path
):
    path = tmp_path / "state.npz"
    phases = (build_full_phase(make_small_job().model, 9),)
    given = {"phases": phases, "resumed": source_state}
    with pytest.raises(Interrupted):
        fit_model(
            make_small_job(checkpoint_path=path, show_progress=interrupt_at(5), **given)
        )

    again, weights = fit_weights(make_small_job(checkpoint_path=path, **given))

    result, expected = fit_weights(make_small_job(**given))
    assert are_equal(weights, expected)
    assert again.phases == result.phases
    assert load_state(path).num_steps == 15


@pytest.mark.slow
def test_equal_calls_in_two_processes_give_equal_bits(area_1, settings, tmp_path):
    options = [
        part
        for name, value in settings.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    hashes = []
    for name in ("a", "b"):
        out_dir = tmp_path / name
        subprocess.run(
            [
                *(sys.executable, "-m", "cropseg", "train", area_1.manifest_path),
                *("--out", out_dir, "--quiet", *options),
            ],
            check=True,
        )
        hashes.append(read_card(out_dir / "model.keras").weights_sha256)

    assert hashes[0] == hashes[1]
