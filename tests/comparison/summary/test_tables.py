"""What the terminal shows of a comparison."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cropseg.tables import show_comparison


@pytest.fixture
def show():
    def show_text(summary):
        stream = io.StringIO()
        show_comparison(Console(file=stream, width=100), summary, Path("out"))
        return " ".join(stream.getvalue().split())

    return show_text


def test_the_tables_have_the_intervals_and_the_answer_of_each_budget(usual, show):
    summary = usual.summarize()

    text = show(summary)

    assert text.count("95 % from to known runs seconds converged") == 2
    for budget in summary["budgets"]:
        assert budget["answer"] in text
        leader = budget["modes"][0]
        low, high = leader["interval"]
        told = f"full {leader['miou_mean']:.3f} {low:.3f} {high:.3f}"
        assert told in text
    assert "covers: Other blocks of this area: 12 were tested." in text
    assert "does not cover: Other areas, seasons and sensors." in text
    assert "labels to reach scratch with 16 labelled tiles" in text
    assert "full 4 or fewer fewer 4" in text  # 4 will do, and fewer may


def test_few_blocks_are_shown_with_lowest_and_highest(made_up, show):
    made_up.num_blocks = 3
    for draw in (0, 1):
        made_up.add("full", quality=0.8, draw=draw)
        made_up.add("pixel_forest", quality=0.2, draw=draw)
        made_up.add("scratch", quality=0.7, draw=draw)

    text = show(made_up.summarize())

    assert "lowest highest" in text
    assert "95 %" not in text
    assert "pixel_forest not reached covers" in text


def test_a_mode_without_an_interval_has_no_range_in_its_place(made_up, show):
    for draw in range(3):
        made_up.add("full", quality=0.8, draw=draw)
        made_up.add("scratch", quality=0.7, draw=draw)
    made_up.add("head_only", quality=0.6, draw=0)
    for draw in (1, 2):
        made_up.fail("head_only", draw=draw)

    summary = made_up.summarize()
    text = show(summary)

    last = summary["budgets"][0]["modes"][-1]
    assert last["mode"] == "head_only"
    assert f"head_only {last['miou_mean']:.3f} - - " in text
    assert "head_only not reached - - covers" in text


def test_an_oracle_stands_in_the_title(made_up, show):
    made_up.add("full")
    made_up.record = {"validation": "oracle"}

    assert "area-2 with 4tiles and an oracle" in show(made_up.summarize())


def test_notes_are_shown_and_names_are_no_markup(made_up, show):
    mode = "freeze_layers:[bold]*"
    made_up.add(mode, draw=0)
    made_up.fail(mode, draw=1)

    text = show(made_up.summarize())

    assert f"{mode} is without draw 1, of which a run failed." in text
    assert text.count("[bold]") >= 3
