"""Steps: doubled until scratch is flat, or as many as fit into the time of full."""

from __future__ import annotations

import csv
import json

import pytest

from cropseg.comparison import equal as module
from cropseg.comparison.compare import compare_modes
from cropseg.comparison.equal import settle_steps
from cropseg.comparison.steps import Steps, read_steps


def show_nothing(*_given):
    pass


@pytest.fixture
def losses(monkeypatch):
    """Return what stands for the training of scratch: final losses by epochs."""
    table, asked = {}, []

    def train(_job, epochs, _state, _show):
        asked.append(epochs)
        return table[epochs]

    monkeypatch.setattr(module, "_train_scratch", train)
    return table, asked


@pytest.fixture
def paces(monkeypatch):
    table, asked = {}, []

    def measure(job):
        asked.append(job.plan.mode)
        return table[job.plan.mode]

    monkeypatch.setattr(module, "measure_pace", measure)
    return table, asked


@pytest.mark.parametrize(
    ("found", "epochs", "asked"),
    [
        ([1.0, 0.96], 2, [2, 4]),  # gains 4 %
        ([1.0, 1.2], 2, [2, 4]),
        ([1.0, 0.9, 0.88], 4, [2, 4, 8]),
        ([1.0, 0.9, 0.8, 0.7], 16, [2, 4, 8, 16]),  # and no further
    ],
)
def test_steps_are_doubled_until_scratch_gains_little(
    losses, prepare, source, tmp_path, found, epochs, asked
):
    table, calls = losses
    table.update(zip([2, 4, 8, 16], found, strict=False))
    job = prepare(source, until_flat=True)

    settled = settle_steps(job, tmp_path, show_nothing)

    assert calls == asked
    assert settled.steps == Steps(epochs=epochs)
    document = json.loads((tmp_path / "steps.json").read_text("utf-8"))
    assert document["steps"] == epochs * job.settings.steps_per_epoch
    again = settle_steps(job, tmp_path, show_nothing)
    assert again.steps == settled.steps == read_steps(tmp_path)
    assert calls == asked  # not measured twice


def test_an_interrupted_search_goes_on_with_the_next_length(
    losses, prepare, source, tmp_path
):
    table, calls = losses
    table.update({2: 1.0, 8: 0.89})
    job = prepare(source, until_flat=True)
    with pytest.raises(KeyError):
        settle_steps(job, tmp_path, show_nothing)
    table[4] = 0.9

    assert settle_steps(job, tmp_path, show_nothing).steps.epochs == 4
    assert calls == [2, 4, 4, 8]


def test_each_mode_gets_the_steps_that_fit_into_the_time_of_full(
    paces, prepare, source, tmp_path
):
    table, calls = paces
    table.update({"full": 0.3, "head_only": 0.1, "lp_ft": 0.4, "scratch": 5.0})
    modes = ("head_only", "full", "zero_shot", "pixel_forest", "lp_ft", "scratch")
    job = prepare(source, modes=modes, equal="time")

    steps = settle_steps(job, tmp_path, show_nothing).steps.per_epoch

    assert calls == ["full", "head_only", "lp_ft", "scratch"]
    assert steps == {"full": 10, "head_only": 30, "lp_ft": 8, "scratch": 1}


def test_the_pace_is_read_back_and_only_new_modes_are_measured(
    paces, prepare, source, tmp_path
):
    table, calls = paces
    table.update({"head_only": 0.1, "lp_ft": 0.2, "full": 0.4})
    small = prepare(source, modes=("head_only", "lp_ft"), equal="time")
    first = settle_steps(small, tmp_path, show_nothing).steps.per_epoch
    table.update({"head_only": 9.0, "lp_ft": 9.0})
    large = prepare(source, modes=("full", "lp_ft", "head_only"), equal="time")

    later = settle_steps(large, tmp_path, show_nothing).steps.per_epoch

    assert first == {"head_only": 10, "lp_ft": 5}  # no full: the first one counts
    assert later == first | {"full": 2}  # measured by what counted before
    assert calls == ["head_only", "lp_ft", "full"]


def test_equal_steps_measure_nothing(paces, losses, prepare, source, tmp_path):
    job = prepare(source)

    assert settle_steps(job, tmp_path, show_nothing).steps == Steps()

    assert not list(tmp_path.glob("*.json"))
    assert paces[1] == losses[1] == []


def test_the_pace_leaves_out_the_first_steps_of_each_phase(monkeypatch):
    # Two phases of 6 steps; three are slow to start, then 1 s and 2 s a step.
    monkeypatch.setattr(module, "WARM_UP_STEPS", 4)
    times = iter([0, 9, 18, 27, 28, 29, 50, 60, 70, 80, 82, 84])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    run = module._ShortRun(6)

    for step in range(12):
        run.note(step + 1, 12, "")

    assert run.paces == [1.0, 2.0]


@pytest.mark.slow
def test_what_was_measured_is_run_and_a_second_call_repeats_it(
    area_2, source_path, tmp_path, monkeypatch
):
    given = {
        "modes": ["full", "head_only", "l2sp", "pixel_forest"],
        "labels": ["4tiles"],
        "draws": 1,
        "folds": None,
        "validation": "budget",
        "equal": "time",
        "until_flat": True,
        "out_dir": tmp_path,
        "batch_size": 2,
        "epochs": 2,
        "steps_per_epoch": 3,
    }
    comparison = compare_modes(area_2, source_path, **given)

    flat = json.loads((tmp_path / "steps.json").read_text("utf-8"))
    pace = json.loads((tmp_path / "pace.json").read_text("utf-8"))
    assert flat["steps"] in (6, 12, 24, 48)
    assert not (tmp_path / "steps").exists()
    assert pace["reference"] == "full"
    assert pace["modes"]["full"]["steps"] == flat["steps"]
    labels = set()
    for result in comparison.results:
        training = result.run.metrics["training"]
        labels.add(training["label_pixels"])
        if result.cell.mode != "pixel_forest":
            assert training["steps"] == pace["modes"][result.cell.mode]["steps"]
            history = (result.run.out_dir / "history.csv").read_text("utf-8")
            rows = list(csv.DictReader(history.splitlines()))
            assert all(0 <= float(row["val_miou"]) <= 1 for row in rows)
    assert len(labels) == 1  # all modes have paid for the same

    def fail(*_given):
        message = "measured twice"
        raise AssertionError(message)

    monkeypatch.setattr(module, "measure_pace", fail)
    monkeypatch.setattr(module, "_train_scratch", fail)
    before = (tmp_path / "results.csv").read_bytes()
    compare_modes(area_2, source_path, **given)
    assert (tmp_path / "results.csv").read_bytes() == before
