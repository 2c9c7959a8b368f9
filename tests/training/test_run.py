"""A run of phases: what its files tell of them, and what an interruption repeats."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cropseg.errors import ConflictError
from cropseg.evaluation.calibration import compute_calibration
from cropseg.inference.measure import Panel
from cropseg.models.bundle import add_normalization, load_bundle
from cropseg.models.card import Lineage
from cropseg.models.stages import Stage
from cropseg.models.weight_report import report_initialized
from cropseg.runtime import keras, start_run
from cropseg.sites.budget import open_pool
from cropseg.sites.grid import Window
from cropseg.sites.statistics import survey_site
from cropseg.training import run
from cropseg.training.checkpoint import (
    copy_value,
    load_pretrained,
    save_pretrained,
)
from cropseg.training.computing import describe_computing
from cropseg.training.finished import load_counts
from cropseg.training.locks import build_full_phase
from cropseg.training.optimizer_state import OptimizerState
from cropseg.training.phases import FROZEN, RECOMPUTED, RUNNING, FitPhase
from cropseg.training.run import RunStart, execute_run
from cropseg.training.settings import TrainSettings

SETTINGS = {
    "encoder": "classic_tiny",
    "tile_size": 32,
    "batch_size": 2,
    "epochs": 2,
    "steps_per_epoch": 2,
}
STAGES = (
    Stage(name="encoder_1", layers=("low", "norm"), stride=1, part="encoder"),
    Stage(name="decoder_1", layers=("high",), stride=1, part="decoder"),
    Stage(name="head", layers=("head",), stride=1, part="head"),
)


class Interrupted(BaseException):
    """What a user's Ctrl-C is to a training."""


@pytest.fixture
def make_start(area_1):
    """Return a function that starts a run with a small network."""
    bands = survey_site(area_1, 32).bands

    def make(*phases, **changes):
        start_run(0)
        pixels = keras.Input((None, None, 5))
        x = keras.layers.Conv2D(4, 3, padding="same", name="low")(pixels)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.Conv2D(4, 1, name="high")(x)
        x = keras.layers.Conv2D(4, 1, name="head")(x)
        x = keras.layers.Softmax(name="probabilities", dtype="float32")(x)
        network = keras.Model(pixels, x)
        model = add_normalization(network, mean=bands.mean, std=bands.std)
        return RunStart(
            model=model,
            stages=STAGES,
            bands=bands,
            report=report_initialized(model, STAGES),
            lineage=Lineage(mode="made up"),
            pool=open_pool(area_1, 32),
            tile_multiple=1,
            phases=phases,
            **changes,
        )

    return make


def execute(start, folder, show_progress=lambda *_: None):
    return execute_run(start, TrainSettings(**SETTINGS), folder, show_progress)


def build_phase(name, num_steps, trained, policy):
    return FitPhase(
        name=name,
        num_steps=num_steps,
        trained=frozenset(trained),
        norms={"norm": policy},
    )


HEAD = build_phase("head", 2, {"head"}, FROZEN)
TOP = build_phase("top", 2, {"high", "head"}, RUNNING)
ADABN = build_phase("statistics", 0, (), RECOMPUTED)
AFFINE = {"norm/gamma", "norm/beta"}
STATISTICS = {"norm/moving_mean", "norm/moving_variance"}


def read_fates(finished):
    rows = json.loads((finished.out_dir / "weights.json").read_text(encoding="utf-8"))
    fates = {}
    for row in rows:
        changed = row["hash_before"] != row["hash_after"]
        assert changed == (row["training"] != "locked"), row
        fates.setdefault(row["training"], set()).add(row["variable"])
    return fates


def list_variables(*names):
    return {f"{name}/{kind}" for name in names for kind in ("kernel", "bias")}


@pytest.mark.slow
def test_the_files_of_a_run_tell_of_all_its_phases(make_start, tmp_path):
    finished = execute(make_start(HEAD, TOP), tmp_path)

    training = finished.metrics["training"]
    assert training["phases"] == [
        {"name": "head", "steps": 2, "learning_rate": 1e-3, "trained_parameters": 20},
        {"name": "top", "steps": 2, "learning_rate": 1e-3, "trained_parameters": 48},
    ]
    assert training["trained_parameters"] == 48
    assert training["steps"] == 4
    assert training["computed_with"] == describe_computing("auto")
    assert not {"resumed", "pretraining"} & set(training)
    assert read_fates(finished) == {
        "trained": list_variables("high", "head") | AFFINE,
        "statistics run": STATISTICS,
        "locked": list_variables("low"),
    }
    history = (tmp_path / "history.csv").read_text(encoding="utf-8").splitlines()
    assert len(history) == 1 + 2


def test_a_run_without_phases_changes_nothing(make_start, tmp_path):
    finished = execute(make_start(), tmp_path)

    assert set(read_fates(finished)) == {"locked"}
    training = finished.metrics["training"]
    assert (training["steps"], training["phases"]) == (0, [])
    assert set(training["computed_with"]) == {"backend"}
    assert training["trained_parameters"] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.keras", "weights.json", "metrics.json", "counts.npz"}


def test_all_that_was_counted_of_a_run_is_kept(make_start, area_1, tmp_path):
    panel = Panel(scene=0, window=Window(row=5, col=7, height=20, width=31))
    finished = execute_run(
        make_start(),
        TrainSettings(**SETTINGS),
        tmp_path,
        lambda *_: None,
        parts=("test",),
        source_site=area_1,
        panel=panel,
    )

    counts = load_counts(tmp_path)
    names = ("block_ids", "counts", "reliability", "mapped", "fields")
    source = {"source_block_ids", "source_counts"}
    assert set(counts) == {f"test_{name}" for name in names} | source | {"panel"}
    assert counts["panel"].shape == (20, 31)
    assert set(np.unique(counts["panel"])) <= {0, 1, 2, 3, 255}
    # Here the source is the target itself, and nothing was forgotten.
    np.testing.assert_array_equal(counts["source_counts"], counts["test_counts"])
    np.testing.assert_array_equal(counts["source_block_ids"], counts["test_block_ids"])
    assert finished.metrics["val"] is None
    test = finished.metrics["test"]
    bins = counts["test_reliability"].sum(axis=0)
    assert test["ece"] == compute_calibration(bins).ece
    assert test["num_pixels"] == bins[:, 0].sum()


def test_a_run_is_not_scored_elsewhere_where_nobody_asks(make_start, tmp_path):
    execute(make_start(), tmp_path)

    counts = load_counts(tmp_path)
    assert {name.split("_")[0] for name in counts} == {"val", "test"}


def test_a_run_can_do_no_more_than_measure_statistics(make_start, tmp_path):
    finished = execute(make_start(ADABN), tmp_path)

    fates = read_fates(finished)
    assert fates["statistics recomputed"] == STATISTICS
    assert set(fates) == {"statistics recomputed", "locked"}
    training = finished.metrics["training"]
    assert training["phases"] == [
        {
            "name": "statistics",
            "steps": 0,
            "learning_rate": None,
            "trained_parameters": 0,
        }
    ]
    assert (training["learning_rate"], training["converged"]) == (None, None)
    assert training["trained_parameters"] == 0
    assert not (tmp_path / "history.csv").exists()


@pytest.mark.slow
def test_an_interruption_after_pretraining_does_not_repeat_it(
    make_start, tmp_path, monkeypatch
):
    calls = []

    def pretrain_encoder(model, stages, site, settings, *, statistics, show_progress):
        calls.append((stages, site.name, settings.num_steps, statistics))
        for layer in ("low", "norm"):
            for variable in model.get_layer(layer).weights:
                variable.assign(variable + 0.5)
        show_progress(1, 1, "")
        return (2.0, 1.0, 0.5)

    monkeypatch.setattr(run, "pretrain_encoder", pretrain_encoder)
    steps = []

    def interrupt(*_):
        steps.append(0)
        if len(steps) == 2:  # the first of the training proper
            raise Interrupted

    straight = execute(make_start(HEAD, pretrains=True), tmp_path / "straight")
    with pytest.raises(Interrupted):
        execute(make_start(HEAD, pretrains=True), tmp_path / "run", interrupt)
    again = make_start(HEAD, pretrains=True)
    finished = execute(again, tmp_path / "run")

    assert len(calls) == 2  # one each
    bands = again.bands
    assert calls[1] == (STAGES, "area_1", 4, (bands.mean, bands.std))
    told = finished.metrics["training"]["pretraining"]
    assert told["seconds"] >= 0
    assert {**told, "seconds": 0} == {
        "steps": 3,
        "seconds": 0,
        "first_loss": 2.0,
        "last_loss": 0.5,
    }
    path = tmp_path / "run" / "checkpoints" / "pretrained.npz"
    state = replace(load_pretrained(path), computed_with={"backend": "torch"})
    save_pretrained(state, path)
    with pytest.raises(ConflictError, match="backend was torch"):
        execute(make_start(HEAD, pretrains=True), tmp_path / "run")
    fates = read_fates(finished)
    assert fates["pretrained"] == list_variables("low") | AFFINE | STATISTICS
    assert fates["locked"] == list_variables("high")
    ours, theirs = (
        load_bundle(item.model_path).model.get_weights()
        for item in (finished, straight)
    )
    for value, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.slow
def test_a_penalty_holds_what_came_from_the_source_and_is_not_saved(
    make_start, tmp_path, monkeypatch
):
    found = {}

    def build_penalty(model, _report, *, strength, new_classes):
        found.update(strength=strength, new_classes=new_classes)
        found["start"] = copy_value(model.get_layer("low").kernel)

    monkeypatch.setattr(run, "build_penalty", build_penalty)
    monkeypatch.setattr(run, "pretrain_encoder", lambda *_, **__: (1.0,))
    start = make_start(TOP, l2sp=0.25, new_classes=frozenset({2}), pretrains=True)
    expected = copy_value(start.model.get_layer("low").kernel)

    finished = execute(start, tmp_path)

    assert (found["strength"], found["new_classes"]) == (0.25, {2})
    np.testing.assert_array_equal(found["start"], expected)  # before pretraining
    loaded = load_bundle(finished.model_path).model
    assert all(variable.regularizer is None for variable in loaded.weights)


@pytest.mark.slow
def test_a_resumed_run_tells_where_it_went_on(make_start, tmp_path):
    start = make_start()
    trained = {v.path: copy_value(v) for v in start.model.trainable_variables}
    state = OptimizerState(
        step=7,
        learning_rate=0.02,
        num_steps=10,
        weights={},
        momentums=trained,
        velocities={path: value**2 for path, value in trained.items()},
    )
    phase = build_full_phase(start.model, 4)

    finished = execute(make_start(phase, resumed=state), tmp_path)

    training = finished.metrics["training"]
    expected = {"step": 7, "learning_rate": 0.02, "slots": len(trained)}
    assert training["resumed"] == expected
    assert training["learning_rate"] == 0.02
