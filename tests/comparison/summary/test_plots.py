"""The plot: what is drawn, and that equal data give equal files."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cropseg.comparison.plots import plot_comparison


def make_mode(mode, miou, *, is_baseline=False, interval=(0.02, 0.03)):
    return {
        "mode": mode,
        "is_baseline": is_baseline,
        "miou_mean": miou,
        "miou_low": miou - 0.01,
        "miou_high": miou + 0.015,
        "interval": interval and [miou - interval[0], miou + interval[1]],
    }


def make_budgets(interval=(0.02, 0.03)):
    return [
        {
            "labels": labels,
            "modes": [
                make_mode("full", 0.5 + gain, interval=interval),
                make_mode("scratch", 0.4 + gain, is_baseline=True, interval=interval),
            ],
        }
        for labels, gain in (("2tiles", 0.0), ("8tiles", 0.1))
    ]


@pytest.fixture
def drawn(monkeypatch):
    """Return the figures that are drawn."""
    figures = []
    start = Figure.__init__

    def remember(self, *args, **kwargs):
        start(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "__init__", remember)
    return figures


def read_bars(axes):
    """Return low and high of the error bars of each mode, by its label."""
    bars = {}
    for container in axes.containers:
        (lines,) = container.lines[2]
        ends = [segment[:, 1].tolist() for segment in lines.get_segments()]
        bars[container.get_label()] = ends
    return bars


def test_bars_are_the_intervals(tmp_path, drawn):
    plot_comparison(make_budgets(), "title", tmp_path / "a.png")

    (axes,) = drawn[0].axes
    bars = read_bars(axes)
    assert list(bars) == ["full", "scratch"]
    np.testing.assert_allclose(bars["full"], [[0.48, 0.53], [0.58, 0.63]])
    assert axes.get_ylabel() == "mIoU on the test blocks (bar: 95 % interval)"
    assert axes.get_xlabel() == "labelled tiles"


def test_bars_are_lowest_and_highest_where_there_is_no_interval(tmp_path, drawn):
    plot_comparison(make_budgets(interval=None), "title", tmp_path / "a.png")

    (axes,) = drawn[0].axes
    np.testing.assert_allclose(read_bars(axes)["full"][0], [0.49, 0.515])
    assert "lowest and highest run" in axes.get_ylabel()


def test_baselines_are_dashed(tmp_path, drawn):
    plot_comparison(make_budgets(), "title", tmp_path / "a.png")

    styles = {
        container.get_label(): container.lines[0].get_linestyle()
        for container in drawn[0].axes[0].containers
    }
    assert styles == {"full": "-", "scratch": "--"}


def test_one_budget_is_a_list_with_the_best_on_top(tmp_path, drawn):
    plot_comparison(make_budgets()[:1], "title", tmp_path / "a.png")

    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["full", "scratch"]
    top, bottom = axes.transData.transform([(0.5, 0), (0.4, 1)])[:, 1]
    assert top > bottom
    assert "95 % interval" in axes.get_xlabel()


def test_a_png_and_an_svg_are_written_and_equal_data_give_equal_files(tmp_path):
    for name in ("a", "b"):
        plot_comparison(make_budgets(), "maize & <wheat>", tmp_path / f"{name}.png")

    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 700
    text = (tmp_path / "a.svg").read_bytes()
    assert text == (tmp_path / "b.svg").read_bytes()
    told = " ".join(ET.fromstring(text).itertext())  # noqa: S314 - our own file
    assert "maize & <wheat>" in told
    assert "scratch" in told


@pytest.mark.parametrize(
    "budgets",
    [
        [make_budgets()[0], {"labels": "8tiles", "modes": []}],
        [{"labels": "2tiles", "modes": []}],
        [{"labels": "2tiles", "modes": []}, {"labels": "8tiles", "modes": []}],
    ],
)
def test_budgets_without_a_finished_run_are_plotted_too(tmp_path, budgets):
    plot_comparison(budgets, "title", tmp_path / "a.png")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").exists()


def test_bars_that_are_not_all_intervals_are_told_apart(tmp_path, drawn):
    budgets = make_budgets()
    budgets[0]["modes"][1]["interval"] = None

    plot_comparison(budgets, "title", tmp_path / "a.png")

    label = drawn[0].axes[0].get_ylabel()
    assert "95 % interval, else lowest and highest run" in label


@pytest.mark.parametrize("num_budgets", [1, 2])
def test_names_are_no_formulas(tmp_path, num_budgets):
    budgets = make_budgets()[:num_budgets]
    for budget in budgets:
        budget["modes"][0]["mode"] = "freeze_layers:$a^$"

    plot_comparison(budgets, "From $x^$", tmp_path / "a.png")

    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "freeze_layers:$a^$" in text
    assert "From $x^$" in text
