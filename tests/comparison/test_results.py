"""Results: rows of `results.csv`, and the counts of all runs."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cropseg.comparison.cells import Cell
from cropseg.comparison.results import (
    BASELINES,
    MEASURE_COLUMNS,
    Result,
    write_counts,
    write_results,
)
from cropseg.sites.budget import Budget

CLASSES = ("soybeans", "winter wheat")
COLUMNS = [
    *("mode", "label_unit", "label_amount", "label_pixels", "label_fields"),
    *("draw", "seed", "fold", "status", "converged", "classes_seen"),
    *("learning_rate", "steps", "miou", "overall_accuracy"),
]
"""The columns that DESIGN lists, `seconds` and `iou_<class>` apart."""


def make_result(
    mode, miou, *, amount=4, draw=0, fold=None, converged=True, ious=(0.5, None)
):
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
    cell = Cell(mode=mode, budget=budget, draw=draw, seed=7 + draw, fold=fold)
    return Result(
        cell=cell, run=SimpleNamespace(out_dir=Path("made-up"), metrics=metrics)
    )


def make_failure(mode, *, amount=4, draw=0):
    cell = Cell(mode=mode, budget=Budget(amount=amount), draw=draw, seed=7 + draw)
    return Result(cell=cell, run=None, failure="The loss is nan.")


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


@pytest.mark.parametrize(("fold", "text"), [(None, ""), (0, "0"), (3, "3")])
def test_a_row_tells_its_fold(tmp_path, fold, text):
    (row,) = read_rows([make_result("full", 0.5, fold=fold)], tmp_path)

    assert row["fold"] == text


def test_measures_stand_after_the_run_and_before_the_classes(tmp_path):
    results = [make_result("full", 0.5), make_failure("scratch")]
    measured = {"ece": 0.25, "peak_memory_bytes": 12, "known_miou": None}
    path = tmp_path / "results.csv"

    write_results(results, CLASSES, path, measures=[measured, {}])

    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    plain = read_rows(results, tmp_path)
    names = list(plain[0])
    assert list(rows[0]) == [*names[:-2], *MEASURE_COLUMNS, *names[-2:]]
    assert (rows[0]["ece"], rows[0]["peak_memory_bytes"]) == ("0.25", "12")
    assert rows[0]["known_miou"] == rows[1]["ece"] == ""
    assert {name: rows[0][name] for name in names} == plain[0]


def test_counts_of_all_runs_are_in_one_file(tmp_path):
    out_dir = tmp_path / "run"
    out_dir.mkdir()
    saved = {
        "val_counts": np.zeros((1, 2, 3)),
        "test_counts": np.arange(12).reshape(2, 2, 3),
        "test_block_ids": np.array([4, 9]),
        "test_mapped": np.array([[1, 2, 3], [4, 5, 6]]),
        "source_counts": np.array([[[7, 8]]]),
        "panel": np.zeros((2, 2), np.uint8),
    }
    np.savez(out_dir / "counts.npz", **saved)
    result = make_result("full", 0.5)
    run = SimpleNamespace(out_dir=out_dir, metrics={})
    results = [Result(cell=result.cell, run=run), make_failure("scratch")]

    write_counts(results, tmp_path / "all.npz")

    with np.load(tmp_path / "all.npz") as found:
        names = ("", "_block_ids", "_mapped", "_source_counts")
        assert sorted(found.files) == sorted(f"full-4tiles-draw0{n}" for n in names)
        assert found["full-4tiles-draw0"].tolist() == saved["test_counts"].tolist()
        assert found["full-4tiles-draw0_block_ids"].tolist() == [4, 9]


def test_baselines_take_nothing_of_area_1_or_change_nothing():
    assert BASELINES == ("zero_shot", "scratch", "imagenet", "pixel_forest")
