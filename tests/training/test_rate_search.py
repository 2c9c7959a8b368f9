"""The range test: what it suggests, and that it leaves nothing behind."""

from __future__ import annotations

import csv
import logging
import random

import numpy as np
import pytest

from cropseg.errors import DivergedError, UsageError
from cropseg.runtime import keras, start_run
from cropseg.training.rate_search import (
    LEAST_RATE,
    RateSearch,
    plot_rate_search,
    search_rate,
    smooth_losses,
    suggest_rate,
    write_rate_search,
)

STEPS = 60
RATES = np.geomspace(1e-6, 1.0, STEPS)


def make_curve(*, fall_at=1e-3, rise_at=1e-1, noise=0.0, seed=0):
    """Return losses that fall from 3 to 1 around a rate and rise from another on."""
    logs = np.log10(RATES)
    losses = 1 + 2 / (1 + np.exp(4 * (logs - np.log10(fall_at))))
    losses += np.exp(8 * np.maximum(logs - np.log10(rise_at), 0)) - 1
    return losses + np.random.default_rng(seed).normal(0, noise, STEPS)


@pytest.mark.parametrize("fall_at", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_suggestion_lies_where_the_loss_falls_most_steeply(fall_at, noise):
    losses = make_curve(fall_at=fall_at, noise=noise)

    found = suggest_rate(RATES, losses, num_steps=STEPS)

    assert found == pytest.approx(fall_at, rel=0.35 if noise else 0.15)


def test_the_suggestion_does_not_depend_on_the_scale_of_the_loss():
    losses = make_curve(noise=0.1)

    found = suggest_rate(RATES, losses, num_steps=STEPS)

    assert suggest_rate(RATES, 1e-3 * losses, num_steps=STEPS) == found
    assert suggest_rate(RATES, losses + 100, num_steps=STEPS) == found


def test_a_fall_after_the_lowest_point_is_no_reason():
    losses = make_curve(fall_at=1e-3, rise_at=1.0)
    losses[40:] += np.linspace(20, 0, 20)  # a peak, and a steeper fall behind it

    found = suggest_rate(RATES, losses, num_steps=STEPS)

    assert found == pytest.approx(1e-3, rel=0.15)


@pytest.mark.parametrize(
    "losses",
    [
        np.ones(STEPS),
        np.linspace(1, 3, STEPS),
        make_curve(fall_at=1e3, rise_at=1e-5),
        np.array([1.0, 4.0, 30.0]),
        np.array([1.0]),
    ],
    ids=["flat", "rising", "flat, then rising", "rising at once", "one loss"],
)
def test_nothing_is_suggested_where_the_loss_does_not_fall(losses):
    assert suggest_rate(RATES[: len(losses)], losses, num_steps=STEPS) is None


def test_noise_is_rarely_taken_for_a_fall():
    rng = np.random.default_rng(0)
    curves = 1 + rng.normal(0, 0.1, (500, STEPS))

    found = [suggest_rate(RATES, curve, num_steps=STEPS) for curve in curves]

    assert sum(item is not None for item in found) < 25


def test_the_smoothed_loss_has_no_bias_at_its_start():
    assert smooth_losses([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    # (0.2 * 0.8 * 1 + 0.2 * 4) / (1 - 0.8**2), by hand
    assert smooth_losses([1.0, 4.0])[1] == pytest.approx(0.96 / 0.36)


class Batches:
    """Endless batches of a task that a small network can learn."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        rng = np.random.default_rng(index)
        images = rng.normal(size=(4, 8, 6, 2)).astype("float32")
        return images, (images[..., 0] > images[..., 1]).astype("uint8")


@pytest.fixture
def model():
    """Return a network with a norm, dropout and a locked layer."""
    start_run(3)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 6, 2)),
            layers.Conv2D(6, 3, padding="same", name="locked", trainable=False),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.Conv2D(2, 1, name="head"),
        ]
    )


def bind_trainer(model, *, scale=1.0):
    """Return a function that compiles a model that shares the layers of this one."""

    def build_trainer(rate):
        trainer = keras.Model(model.inputs[0], model.outputs[0])
        inner = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss=lambda labels, logits: scale * inner(labels, logits),
            jit_compile=False,
        )
        trainer.optimizer.build(trainer.trainable_variables)
        return trainer

    return build_trainer


def read_state(model):
    read = keras.ops.convert_to_numpy
    return {v.path: read(v).tobytes() for v in model.variables}, random.getstate()


def test_the_rate_of_every_step_is_the_one_that_is_told(model):
    used = []

    def build_trainer(rate):
        trainer = bind_trainer(model)(rate)
        train = trainer.train_on_batch

        def train_and_look(*args, **kwargs):
            used.append(float(trainer.optimizer.learning_rate))
            return train(*args, **kwargs)

        trainer.train_on_batch = train_and_look
        return trainer

    search = search_rate(build_trainer, Batches(), num_steps=20)

    assert len(used) == len(search.rates) == len(search.losses)
    np.testing.assert_allclose(search.rates, used, rtol=1e-4)
    assert search.rates[0] == pytest.approx(1e-6)


def test_a_task_that_can_be_learned_gets_a_rate_that_learns_it(model):
    search = search_rate(bind_trainer(model), Batches(), num_steps=STEPS)

    assert search.is_clear
    assert 1e-3 < search.suggestion < 0.5
    trainer = bind_trainer(model)(search.suggestion)
    batches = Batches()
    losses = [float(trainer.train_on_batch(*batches[step])) for step in range(40)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_every_variable_and_random_state_is_as_before_to_the_bit(model):
    before = read_state(model)
    assert any("seed" in path for path in before[0])

    def build_trainer(rate):
        keras.layers.Dropout(0.2)  # draws a seed, as a copy in bfloat16 does
        assert random.getstate() != before[1]
        return bind_trainer(model)(rate)

    search_rate(build_trainer, Batches(), num_steps=20)

    assert read_state(model) == before


def test_an_interrupted_test_leaves_everything_as_before_too(model):
    before = read_state(model)

    def interrupt(done, *_):
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_rate(
            bind_trainer(model), Batches(), num_steps=20, show_progress=interrupt
        )
    assert read_state(model) == before


def test_equal_calls_see_equal_losses_and_other_batches_others(model):
    first, *others = (
        search_rate(
            bind_trainer(model), Batches(), num_steps=12, first_index=first_index
        )
        for first_index in (0, 0, 50)
    )

    assert others[0] == first
    assert others[1].losses != first.losses


def test_batches_are_asked_for_in_order_from_the_first_index(model):
    batches = Batches()
    seen = []

    search_rate(
        bind_trainer(model),
        batches,
        num_steps=12,
        first_index=7,
        show_progress=lambda *args: seen.append(args[:2]),
    )

    assert batches.asked == list(range(7, 7 + len(seen)))
    assert seen == [(step, 12) for step in range(1, len(seen) + 1)]


class FixedLosses:
    """A trainer whose losses are given."""

    variables = ()

    def __init__(self, losses):
        self.losses = list(losses)

    def train_on_batch(self, *_, return_dict):
        assert return_dict
        return {"loss": self.losses.pop(0)}


def search_losses(losses):
    return search_rate(lambda _: FixedLosses(losses), Batches(), num_steps=STEPS)


def test_the_test_ends_where_the_smoothed_loss_is_four_times_its_lowest():
    losses = [1.0] * 30 + [3.9] * 5 + [100.0] * 25

    search = search_losses(losses)

    # 0.8 * (at most 3.9) + 0.2 * 100 exceeds 4 at the first 100
    assert len(search.losses) == 36
    assert len(search_losses([1.0] * 30 + [3.9] * 30).losses) == 60


@pytest.mark.parametrize("end", [float("nan"), float("inf")])
def test_the_test_ends_at_a_loss_that_is_no_number_and_does_not_keep_it(end):
    search = search_losses([1.0] * 20 + [end] * 40)

    assert search.losses == (1.0,) * 20
    np.testing.assert_allclose(search.rates, RATES[:20])


def test_where_the_loss_does_not_fall_the_least_rate_is_suggested_and_told(caplog):
    with caplog.at_level(logging.WARNING):
        search = search_losses([1.0] * STEPS)

    assert search.suggestion == LEAST_RATE
    assert not search.is_clear
    assert "did not fall in the range test of 60 steps" in caplog.text


def test_a_fall_is_told_without_a_warning(caplog):
    search = search_losses(make_curve(noise=0.05))

    assert search.is_clear
    assert search.suggestion == suggest_rate(
        search.rates, search.losses, num_steps=STEPS
    )
    assert not caplog.records


def test_a_first_loss_that_is_no_number_is_an_error():
    with pytest.raises(DivergedError, match=r"loss is nan at the first step.*check"):
        search_losses([float("nan")])


def test_too_few_steps_are_refused():
    with pytest.raises(UsageError, match="has 11 steps; give 12 or more"):
        search_rate(lambda _: FixedLosses([1.0] * 11), Batches(), num_steps=11)


@pytest.fixture(params=[True, False], ids=["clear", "not clear"])
def search(request):
    losses = make_curve(noise=0.05) if request.param else [1.0] * 3
    return RateSearch(
        rates=tuple(RATES[: len(losses)].tolist()),
        losses=tuple(map(float, losses)),
        suggestion=1e-3 if request.param else LEAST_RATE,
        is_clear=request.param,
    )


def test_the_plot_is_a_png_also_with_a_formula_in_its_title(search, tmp_path):
    path = tmp_path / "find_lr.png"

    plot_rate_search(search, "area $1: full", path)

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [item.name for item in tmp_path.iterdir()] == ["find_lr.png"]


def test_the_table_has_a_row_a_step(search, tmp_path):
    path = tmp_path / "find_lr.csv"

    write_rate_search(search, path)

    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert tuple(float(row["learning_rate"]) for row in rows) == search.rates
    assert tuple(float(row["loss"]) for row in rows) == search.losses
    smoothed = [float(row["smoothed_loss"]) for row in rows]
    assert smoothed == smooth_losses(search.losses).tolist()


def test_as_json_it_has_its_values(search):
    assert search.to_json() == {
        "suggestion": search.suggestion,
        "is_clear": search.is_clear,
        "rates": list(search.rates),
        "losses": list(search.losses),
    }
