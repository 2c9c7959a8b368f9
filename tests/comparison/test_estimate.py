"""The plan of an experiment: what it runs, what it takes, and what is left of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cropseg.comparison.cells import Cell
from cropseg.comparison.estimate import (
    GridClock,
    estimate_share,
    plan_experiment,
    say_seconds,
)
from cropseg.sites.budget import Budget
from cropseg.sites.site import open_site
from cropseg.transfer.modes import get_plan


@pytest.fixture
def stages(source):
    return source.card.stages


def finish(job, folder, cell, seconds):
    run_dir = folder / "runs" / job.run_names[cell]
    run_dir.mkdir(parents=True)
    metrics = {"training": {"seconds": seconds}}
    (run_dir / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return run_dir


def test_the_plan_multiplies_what_is_repeated(source, prepare, tmp_path):
    job = prepare(source, labels=("2tiles", "1tiles"), draws=3, seeds=2, folds=3)

    plan = plan_experiment(job, tmp_path / "out")

    assert plan.runs == 3 + 2 * 3 * 2 * 3
    assert plan.finished == 0
    text = "\n".join(plan.to_lines())
    grid = "2 modes x 2 budgets (1tiles, 2tiles) x 3 draws x 2 seeds x 3 folds"
    assert f"{grid} = 39 runs" in text
    assert "the cost is 3 times" in text
    assert not (tmp_path / "out").exists()
    assert json.loads(json.dumps(plan.to_json()))["folds"] == 3


def test_the_source_tells_the_time_before_any_run_does(source, prepare, tmp_path):
    plan = plan_experiment(prepare(source), tmp_path / "out")

    # 0.5 s a step with batches of 4, so 0.25 s with batches of 2; 2 runs of 20 steps.
    assert plan.seconds == 10.0
    assert plan.describe_time() == "about 10 s"
    assert plan.bytes > 3 * 1000


def test_without_a_run_of_the_source_the_time_is_unknown(source, prepare, tmp_path):
    alone = replace(source, run_dir=None)

    plan = plan_experiment(prepare(alone), tmp_path / "out")

    assert plan.seconds is None
    assert "unknown until the first run is done" in "\n".join(plan.to_lines())


def test_finished_runs_are_counted_and_tell_the_time_of_their_mode(
    source, prepare, tmp_path
):
    job = prepare(source)
    finish(job, tmp_path, job.cells[1], 70.0)

    plan = plan_experiment(job, tmp_path)

    assert job.cells[1].mode == "full"
    assert (plan.runs, plan.finished, plan.seconds) == (3, 1, 70.0)
    assert "3 runs, 1 finished, 2 to do" in plan.to_lines()[0]
    assert plan_experiment(job, tmp_path, overwrite=True).finished == 0


def test_finished_runs_of_other_modes_tell_the_time_where_the_source_does_not(
    source, stages, prepare, tmp_path
):
    job = prepare(replace(source, run_dir=None), modes=("head_only", "full"))
    finish(job, tmp_path, job.cells[0], 10.0)

    plan = plan_experiment(job, tmp_path)

    share = estimate_share(get_plan("head_only"), stages)
    assert job.cells[0].mode == "head_only"
    assert plan.seconds == pytest.approx(10 + 2 * 10 / share, abs=0.1)


def test_runs_have_another_folder_when_anything_differs_that_decides_them(
    source, prepare, make_site, tmp_path
):
    names = set(prepare(source).run_names.values())
    other_site = open_site(make_site(tmp_path / "other", seed=9))
    others = [
        prepare(replace(source, sha256="cd")),
        prepare(replace(source, told={"normalization": {"std": 255.0}})),
        prepare(source, site=other_site),
        prepare(source, validation="budget"),
        prepare(source, folds=3),
        prepare(source, learning_rate=0.01),
        prepare(source, source_site=other_site),
    ]

    for job in others:
        assert not names & set(job.run_names.values())
    moved = prepare(replace(source, title="moved/model.keras"))
    assert set(moved.run_names.values()) == names
    more = prepare(source, modes=("scratch", "full", "zero_shot"), seeds=2, draws=3)
    assert names < set(more.run_names.values())


@pytest.mark.parametrize(
    ("mode", "share"),
    [("full", 1.0), ("stem_only", 1.0), ("head_only", 0.5), ("frozen_encoder", 2 / 3)],
)
def test_the_share_of_a_step_follows_from_how_deep_the_gradient_reaches(
    stages, mode, share
):
    assert estimate_share(get_plan(mode), stages) == pytest.approx(share)


def test_phases_count_by_their_share_of_the_steps(stages):
    plan = get_plan("lp_ft")
    shares = [phase.share for phase in plan.phases]
    weight = shares[0] / sum(shares)

    found = estimate_share(plan, stages)

    assert found == pytest.approx(weight * 0.5 + (1 - weight) * 1.0)


def make_cell(mode, draw=0):
    return Cell(mode=mode, budget=Budget(amount=2), draw=draw, seed=draw)


def test_the_time_left_is_that_of_runs_of_the_same_mode():
    cells = [make_cell(mode, draw) for draw in range(2) for mode in ("full", "lp_ft")]
    times = iter([0.0, 10.0, 10.0, 12.0])
    clock = GridClock(pending=list(cells), now=lambda: next(times))

    assert clock.estimate_left() is None
    for cell in cells[:2]:
        clock.begin()
        clock.end(cell)

    assert clock.estimate_left() == 10 + 2
    assert clock.estimate_left(0.5) == 5 + 2


def test_a_run_that_was_finished_before_takes_no_time_and_teaches_nothing():
    cells = [make_cell("full", draw) for draw in range(3)]
    clock = GridClock(pending=list(cells), guess=lambda _cell: 7.0, now=lambda: 0.0)

    clock.end(cells[0], counts=False)

    assert clock.estimate_left() == 14


def test_a_mode_that_was_not_timed_takes_as_long_as_the_others():
    cells = [make_cell("full"), make_cell("new_decoder")]
    times = iter([0.0, 8.0])
    clock = GridClock(pending=list(cells), now=lambda: next(times))

    clock.begin()
    clock.end(cells[0])

    assert clock.estimate_left() == 8


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.2, "4 s"), (150, "2 min"), (7500, "2.1 h")]
)
def test_durations_are_told_in_words(seconds, words):
    assert say_seconds(seconds) == words
