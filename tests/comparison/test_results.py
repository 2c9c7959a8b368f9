"""Results: rows of `results.csv`, and who leads, on made-up runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cropseg.comparison.cells import Cell
from cropseg.comparison.plots import plot_comparison
from cropseg.comparison.results import BASELINES, Result, summarize, write_results
from cropseg.sites.budget import Budget
from cropseg.training.run import Run

CLASSES = ("soybeans", "winter wheat")
COLUMNS = [
    *("mode", "label_unit", "label_amount", "label_pixels", "label_fields"),
    *("draw", "seed", "fold", "status", "converged", "classes_seen"),
    *("learning_rate", "steps", "miou", "overall_accuracy"),
]
"""The columns that DESIGN lists, `seconds` and `iou_<class>` apart."""


def make_result(mode, miou, *, amount=4, draw=0, converged=True, ious=(0.5, None)):
    metrics = {
        "val": None,
        "test": {
            "miou": miou,
            "overall_accuracy": 0.75,
            "macro_f1": 0.6,
            "classes": [
                {"name": name, "iou": iou}
                for name, iou in zip(CLASSES, ious, strict=True)
            ],
        },
        "training": {
            "steps": 0 if converged is None else 6,
            "seconds": 1.5 + draw,
            "converged": converged,
            "learning_rate": None if converged is None else 0.001,
            "label_pixels": 1000 * amount,
            "label_tiles": amount,
            "classes_seen": ["soybeans"],
            "trained_parameters": 42,
        },
    }
    budget = None if mode == "zero_shot" else Budget(amount=amount)
    cell = Cell(mode=mode, budget=budget, draw=draw, seed=7 + draw)
    return Result(cell=cell, run=Run(out_dir=Path("made-up"), metrics=metrics))


def make_failure(mode, *, amount=4, draw=0):
    cell = Cell(mode=mode, budget=Budget(amount=amount), draw=draw, seed=7 + draw)
    return Result(cell=cell, run=None, failure="The loss is nan.")


def summarize_four(*results):
    (summary,) = summarize(results, [Budget(amount=4)])
    return summary


def read_rows(results, folder):
    path = folder / "results.csv"
    write_results(results, CLASSES, path)
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_rows_have_the_columns_of_the_design(tmp_path):
    (row,) = read_rows([make_result("full", 0.5)], tmp_path)

    assert list(row)[: len(COLUMNS)] == COLUMNS
    assert "seconds" in row
    assert list(row)[-2:] == ["iou_soybeans", "iou_winter wheat"]


def test_a_row_tells_of_its_run(tmp_path):
    (row,) = read_rows([make_result("full", 0.5, draw=2)], tmp_path)

    expected = {
        "mode": "full",
        "label_unit": "tiles",
        "label_amount": "4",
        "label_pixels": "4000",
        "draw": "2",
        "seed": "9",
        "status": "ok",
        "converged": "True",
        "classes_seen": "1",
        "learning_rate": "0.001",
        "steps": "6",
        "miou": "0.5",
        "overall_accuracy": "0.75",
        "seconds": "3.5",
        "iou_soybeans": "0.5",
        "iou_winter wheat": "",  # no pixel of it in the test part
    }
    assert {name: row[name] for name in expected} == expected


def test_a_failed_run_has_a_row_without_numbers(tmp_path):
    ok, failed = read_rows(
        [make_result("scratch", 0.5), make_failure("full")], tmp_path
    )

    assert (ok["status"], failed["status"]) == ("ok", "failed")
    assert failed["mode"] == "full"
    assert not any(failed[name] for name in ("miou", "steps", "iou_soybeans"))


def test_zero_shot_has_seen_no_label(tmp_path):
    (row,) = read_rows([make_result("zero_shot", 0.5, converged=None)], tmp_path)

    names = ("label_amount", "label_pixels", "classes_seen", "steps")
    assert [row[name] for name in names] == ["0", "0", "0", "0"]
    assert (row["converged"], row["learning_rate"]) == ("", "")


def test_the_mode_with_the_highest_mean_leads():
    summary = summarize_four(
        make_result("full", 0.9, draw=0),
        make_result("full", 0.2, draw=1),
        make_result("frozen_encoder", 0.5, draw=0),
        make_result("frozen_encoder", 0.7, draw=1),
    )

    assert summary["leader"] == "frozen_encoder"
    first, second = summary["modes"]
    assert first["mode"] == "frozen_encoder"
    assert first["miou_mean"] == pytest.approx(0.6)
    assert (first["miou_low"], first["miou_high"]) == (0.5, 0.7)
    assert (second["miou_low"], second["miou_high"]) == (0.2, 0.9)
    assert first["seconds_mean"] == 2.0
    assert "frozen_encoder leads with mIoU 0.600" in summary["answer"]
    assert "before full with 0.550" in summary["answer"]
    assert "baseline" not in summary["answer"]
    assert "their draws overlap" in summary["answer"]


@pytest.mark.parametrize("mode", BASELINES)
def test_a_baseline_that_wins_is_named_as_one(mode):
    converged = True if mode == "scratch" else None
    summary = summarize_four(
        make_result("full", 0.4), make_result(mode, 0.6, converged=converged)
    )

    assert summary["leader"] == mode
    assert f"{mode}, a baseline, leads" in summary["answer"]
    assert "overlap" not in summary["answer"]


def test_each_budget_has_a_leader_of_its_own():
    results = [
        make_result("full", 0.3, amount=2),
        make_result("full", 0.8, amount=4),
        make_result("scratch", 0.4, amount=2),
        make_result("scratch", 0.7, amount=4),
    ]

    summaries = summarize(results, [Budget(amount=2), Budget(amount=4)])

    assert [item["labels"] for item in summaries] == ["2tiles", "4tiles"]
    assert [item["leader"] for item in summaries] == ["scratch", "full"]


def test_zero_shot_stands_in_every_budget():
    results = [
        make_result("zero_shot", 0.5, converged=None),
        make_result("full", 0.3, amount=2),
        make_result("full", 0.8, amount=4),
    ]

    summaries = summarize(results, [Budget(amount=2), Budget(amount=4)])

    assert [item["leader"] for item in summaries] == ["zero_shot", "full"]
    assert all(len(item["modes"]) == 2 for item in summaries)


def test_failed_runs_are_in_no_mean():
    summary = summarize_four(
        make_result("full", 0.5, draw=0), make_failure("full", draw=1)
    )

    assert summary["modes"][0]["draws"] == 1
    assert summary["modes"][0]["miou_mean"] == 0.5


def test_where_no_run_finished_nobody_leads():
    summary = summarize_four(make_failure("full"))

    assert summary["leader"] is None
    assert summary["answer"] == "With 4tiles, no run finished."


def test_converged_runs_are_counted():
    summary = summarize_four(
        make_result("full", 0.5, draw=0),
        make_result("full", 0.6, draw=1, converged=False),
        make_result("zero_shot", 0.1, converged=None),
    )

    assert [item["converged"] for item in summary["modes"]] == [1, None]


def test_budgets_without_a_finished_run_are_plotted_too(tmp_path):
    results = [make_result("full", 0.5, amount=2), make_failure("full", amount=4)]
    path = tmp_path / "comparison.png"

    plot_comparison(
        summarize(results, [Budget(amount=2), Budget(amount=4)]), "title", path
    )

    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_comparison_without_any_finished_run_is_plotted(tmp_path):
    path = tmp_path / "comparison.png"

    plot_comparison(
        summarize([make_failure("full")], [Budget(amount=4)]), "title", path
    )

    assert path.read_bytes().startswith(b"\x89PNG")
