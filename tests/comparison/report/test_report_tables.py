"""Tables and figures say what the summary says: numbers by hand."""

from __future__ import annotations

import json
import re

import pytest

from cropseg.comparison.report.class_tables import list_confusions
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.figures import draw_curves
from cropseg.comparison.report.folder import read_folder
from cropseg.comparison.report.run_figures import draw_learning
from cropseg.comparison.report.tables import (
    list_differences,
    list_efficiency,
    list_scores,
)

MODES = {"full": 0.6, "scratch": 0.4, "zero_shot": 0.3}


@pytest.fixture
def folder(make_folder):
    return make_folder(
        modes=MODES, classes={"a": "#111111", "b": "#222222"}, budgets=(4,), side=16
    )


def change(folder, edit):
    """Change the summary of a folder, and read it."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    edit(summary)
    path.write_text(json.dumps(summary), encoding="utf-8")
    return ReportData(files=read_folder(folder))


def read_column(table, name):
    column = table.head.index(name)
    return {
        row[0].text: row[column].text.replace("\N{MINUS SIGN}", "-")
        for row in table.rows
    }


def test_rows_of_a_confusion_are_shares_of_the_labels(folder):
    def edit(summary):
        item = summary["budgets"][0]["modes"][0]
        item["confusion"] = [[30, 60, 10], [0, 50, 0]]

    mode, table = list_confusions(change(folder, edit))[0]

    assert mode == "full"
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0][:5] == ["a", "30%", "60%", "10%", "100"]
    assert texts[1][:5] == ["b", "0%", "100%", "0%", "50"]
    assert [cell.is_strong for cell in table.rows[0][:4]] == [False, True, False, False]


def test_a_difference_is_called_better_worse_or_not_shown(folder):
    common = {"against": "scratch", "low": -0.1, "high": 0.2, "p_value": 0.2}

    def edit(summary):
        summary["budgets"][0]["differences"] = [
            common | {"mode": "full", "miou": 0.1, "significant": True},
            common | {"mode": "zero_shot", "miou": -0.1, "significant": True},
            common | {"mode": "other", "miou": 0.1, "significant": False},
        ]

    data = change(folder, edit)
    (table,) = list_differences(data, data.budgets[0])

    assert read_column(table, "verdict") == {
        "full": "better",
        "zero_shot": "worse",
        "other": "not shown",
    }
    assert read_column(table, "95 % interval")["full"] == "-0.100 to +0.200"


def test_one_score_has_no_range(folder):
    data = change(folder, lambda _: None)

    found = read_column(list_scores(data, data.budgets[0]), "lowest to highest")

    assert found["zero_shot"] == "\N{EN DASH}"
    assert " to " in found["full"]


def test_the_seeds_of_one_draw_have_a_range(folder):
    def edit(summary):
        for item in summary["budgets"][0]["modes"]:
            if item["mode"] == "full":
                item |= {"draws": 1, "miou_low": 0.25, "miou_high": 0.5}

    data = change(folder, edit)

    found = read_column(list_scores(data, data.budgets[0]), "lowest to highest")
    assert found["full"] == "0.250 to 0.500"


def find_bars(chart):
    """Return the heights in pixels at which the bars of the first mode end."""
    first = re.search(r'<g class="series c0.*?</g>', chart, re.DOTALL)[0]
    upright = re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', first)
    return [(float(y), float(end)) for x, y, other, end in upright if x == other]


def test_bars_of_the_curves_end_where_the_intervals_do(folder):
    def edit(summary):
        for item in summary["budgets"][0]["modes"]:
            item["interval"] = [0.0, 1.0]
        summary["runs"] = []

    chart = str(draw_curves(change(folder, edit), is_wide=True).pictures[0].svg)

    ticks = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', chart)
    heights = {float(text): float(y) - 4 for y, text in ticks}
    ((bottom, top),) = find_bars(chart)
    assert bottom == pytest.approx(heights[0.0], abs=0.2)
    assert top == pytest.approx(heights[1.0], abs=0.2)


def test_a_fold_is_no_draw_and_has_no_point(folder):
    without = draw_curves(change(folder, lambda _: None), is_wide=True)
    assert 'class="draw"' in without.pictures[0].svg
    assert "the single draws" in without.caption

    folds = draw_curves(change(folder, lambda s: s.update(folds=5)), is_wide=True)

    assert 'class="draw"' not in folds.pictures[0].svg
    assert "the single draws" not in folds.caption


def test_a_long_history_is_thinned_out_and_keeps_both_ends(folder):
    for run in folder.glob("runs/*"):
        rows = [f"{step},{step},{1000 / step}" for step in range(1, 1001)]
        text = "\n".join(["epoch,step,loss", *rows])
        (run / "history.csv").write_text(text, encoding="utf-8")

    figure = draw_learning(change(folder, lambda _: None))

    (picture,) = figure.pictures
    line = re.search(r'<g class="series c0.*?d="M([^"]*)"', str(picture.svg))[1]
    assert len(line.split("L")) == 60
    assert "full 1," in picture.svg


def test_labels_needed_are_told_or_not_reached(folder):
    def edit(summary):
        target = {"target": "scratch with 4 tiles", "target_miou": 0.4}
        summary["label_efficiency"] = [
            target | {"mode": "full", "reached": True, "labels": 1.5}
            | {"low": 1.0, "high": 3.0},
            target | {"mode": "zero_shot", "reached": False, "labels": None}
            | {"low": 2.0, "high": None},
        ]  # fmt: skip

    (table,) = list_efficiency(change(folder, edit))

    assert table.title == "Labels needed for scratch with 4 tiles, mIoU 0.400"
    needed = read_column(table, "labels needed")
    assert needed == {"full": "1.5", "zero_shot": "not reached"}
    ends = read_column(table, "95 % interval")
    assert ends == {"full": "1 to 3", "zero_shot": "2 or more"}


def test_an_interval_of_labels_that_is_open_is_told_from_none(folder):
    def edit(summary):
        target = {"target": "t", "reached": False, "low": None, "high": None}
        summary["label_efficiency"] = [
            target | {"mode": "full", "has_interval": True},
            target | {"mode": "zero_shot", "has_interval": False},
            target | {"mode": "scratch", "has_interval": True, "low": 4.0},
        ]

    (table,) = list_efficiency(change(folder, edit))

    assert read_column(table, "95 % interval") == {
        "full": "open at both ends",
        "zero_shot": "\N{EN DASH}",
        "scratch": "4 or more",
    }


def test_bars_of_the_curves_that_are_no_intervals_are_told(folder):
    def edit(summary):
        summary["method"]["interval"] = "t over seeds of one draw and blocks"
        summary["budgets"][0]["modes"][1]["interval"] = None

    figure = draw_curves(change(folder, edit), is_wide=True)

    expected = "95 % intervals over seeds of one draw and blocks, or go from the lowest"
    assert expected in figure.caption


def test_a_chance_is_never_quite_nothing_or_all(folder):
    def edit(summary):
        for item, chance in zip(
            summary["budgets"][0]["modes"], (0.998, 0.002, 0.0), strict=True
        ):
            item["probability_best"] = chance

    data = change(folder, edit)
    found = read_column(list_scores(data, data.budgets[0]), "chance of being best")

    assert list(found.values()) == ["> 99%", "< 1%", "< 1%"]
