"""Fitting: equal bits for equal calls, also after an interruption."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from itertools import starmap

import numpy as np
import pytest

from cropseg.errors import CropsegError, DivergedError
from cropseg.models.bundle import add_normalization
from cropseg.models.card import read_card
from cropseg.models.zoo import build_network
from cropseg.runtime import keras, start_run
from cropseg.sites.budget import open_pool
from cropseg.sites.statistics import survey_site
from cropseg.training import fit
from cropseg.training.fit import FitJob, build_schedule, fit_model
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
        return FitJob(
            model=add_normalization(network, mean=bands.mean, std=bands.std),
            pool=open_pool(area_1, 32),
            settings=chosen,
            statistics=(bands.mean, bands.std),
            **changes,
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
def uninterrupted(make_job):
    """Return result and weights of the training that others are compared to."""
    return fit_weights(make_job())


def test_equal_calls_give_equal_bits_for_any_number_of_workers(make_job, uninterrupted):
    result, weights = uninterrupted

    again, same = fit_weights(make_job(settings={"workers": 1}))

    assert again.losses == result.losses
    assert are_equal(same, weights)


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 5])
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


def test_a_finished_training_is_not_trained_further(make_job, tmp_path):
    path = tmp_path / "state.npz"
    first, weights = fit_weights(
        make_job(checkpoint_path=path, settings={"epochs": 1, "steps_per_epoch": 2})
    )
    steps = []

    again, same = fit_weights(
        make_job(
            checkpoint_path=path,
            settings={"epochs": 1, "steps_per_epoch": 2},
            show_progress=lambda *args: steps.append(args),
        )
    )

    assert steps == []
    assert again == first
    assert are_equal(same, weights)


def test_the_best_epoch_is_kept_also_over_an_interruption(make_job, tmp_path):
    path = tmp_path / "state.npz"
    kept = []

    def start(scores, **changes):
        job = make_job(checkpoint_path=path, settings={"epochs": 3}, **changes)

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


def test_another_seed_gives_another_model(make_job, uninterrupted):
    result, weights = uninterrupted

    other, others = fit_weights(make_job(settings={"seed": 1}))

    assert other.losses[0] != result.losses[0]
    assert not are_equal(weights, others)


def test_a_loss_that_is_not_a_number_ends_the_training(make_job, monkeypatch):
    def build_loss(*_, **__):
        return lambda _, logits: keras.ops.mean(logits) * float("nan")

    monkeypatch.setattr(fit, "build_loss", build_loss)
    with pytest.raises(DivergedError, match=r"loss is nan at step 1 .*--learning-rate"):
        fit_model(make_job())
    assert DivergedError.exit_code == 8


def move(variable):
    variable.assign(variable + 1e-6)


@pytest.mark.parametrize("name", ["gamma", "moving_mean"])
def test_a_locked_variable_that_moves_ends_the_training(make_job, monkeypatch, name):
    job = make_job()
    layer = job.model.get_layer(NORM)
    layer.trainable = False

    monkeypatch.setattr(
        fit._Loop,
        "on_train_batch_begin",
        lambda *_, **__: move(getattr(layer, name)),
    )

    with pytest.raises(CropsegError, match=f"Locked variables changed.*{NORM}/{name}"):
        fit_model(job)


def test_a_training_that_moves_nothing_is_told(make_job, monkeypatch):
    monkeypatch.setattr(fit, "build_schedule", lambda _: 0.0)

    with pytest.raises(CropsegError, match="No trained variable changed"):
        fit_model(make_job())


def test_locked_are_all_variables_but_the_trained_and_statistics_that_run(make_job):
    model = make_job().model
    model.get_layer(NORM).trainable = False
    model.get_layer("encoder_2_conv_1").trainable = False

    locked = fit.list_locked_variables(model, frozenset({"encoder_2_bn_1"}))

    paths = {variable.path for variable in locked}
    ours = {path for path in paths if not path.startswith("band_normalization")}
    assert ours == {
        *(f"{NORM}/{name}" for name in ("gamma", "beta")),
        *(f"{NORM}/{name}" for name in ("moving_mean", "moving_variance")),
        *(f"encoder_2_bn_1/{name}" for name in ("moving_mean", "moving_variance")),
        "encoder_2_conv_1/kernel",
    }


def test_a_training_in_bfloat16_leaves_float32_weights_in_the_model(make_job):
    job = make_job(
        settings={"precision": "bfloat16", "epochs": 1},
        inference_norms=frozenset({NORM}),
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


def test_the_learning_rate_warms_up_and_falls_to_0():
    settings = TrainSettings(epochs=10, steps_per_epoch=20, learning_rate=0.01)
    schedule = build_schedule(settings)

    rates = np.array([float(schedule(step)) for step in range(201)])

    assert rates.max() == pytest.approx(0.01)
    assert rates.argmax() == 10  # a twentieth of 200 steps
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[105] == pytest.approx(0.005)  # half of a cosine, half way
    assert rates[200] == pytest.approx(0, abs=1e-9)
    assert rates[0] > 0


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
