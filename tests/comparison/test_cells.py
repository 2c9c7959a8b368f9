"""Cells: a comparison runs each mode at each budget and draw, once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropseg.comparison.cells import (
    MODES,
    Cell,
    find_contenders,
    plan_cells,
    split_modes,
)
from cropseg.errors import UsageError
from cropseg.sites.budget import Budget
from cropseg.transfer.modes import FAMILIES, PIXEL_FOREST, PLANS

BUDGETS = [Budget(amount=2), Budget(amount=4)]
EXAMPLES = [f"{name}:{family.example}" for name, family in FAMILIES.items()]
RUNNABLE = [*PLANS, *EXAMPLES, PIXEL_FOREST]
"""Every mode of the table, families by an example."""


@pytest.fixture
def plan_path(tmp_path):
    path = tmp_path / "my plan.yaml"
    text = "mode: mine\nbased_on: full\nsummary: Mine.\nl2sp: 0.5\n"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_mode_runs_at_every_budget_and_draw_once():
    cells = plan_cells(["full", "scratch", "pixel_forest"], BUDGETS, 3, seed=5)

    found = {(cell.mode, cell.budget, cell.draw) for cell in cells}
    assert len(cells) == len(found) == 3 * 2 * 3
    assert {cell.mode for cell in cells} == {"full", "scratch", "pixel_forest"}
    assert {cell.budget for cell in cells} == set(BUDGETS)
    assert {cell.draw for cell in cells} == {0, 1, 2}


def test_a_seed_goes_with_its_draw_and_not_with_mode_or_budget():
    cells = plan_cells(RUNNABLE, BUDGETS, 3, seed=5)

    assert all(cell.seed == 5 + cell.draw for cell in cells)


@pytest.mark.parametrize("mode", ["zero_shot", "adabn"])
def test_a_mode_that_sees_no_labels_runs_once(mode):
    cells = plan_cells(["full", mode], BUDGETS, 3, seed=5)

    found = [cell for cell in cells if cell.mode == mode]
    assert [(cell.budget, cell.draw, cell.seed) for cell in found] == [(None, 0, 5)]
    assert found[0].name == f"{mode}-0tiles-draw0"


def test_all_other_modes_run_at_every_budget_and_draw():
    cells = plan_cells(RUNNABLE, BUDGETS, 3, seed=5)

    counts = {mode: sum(cell.mode == mode for cell in cells) for mode in RUNNABLE}
    assert {mode for mode, count in counts.items() if count == 1} == {
        "zero_shot",
        "adabn",
    }
    assert set(counts.values()) == {1, 6}


def test_seeds_of_a_draw_differ_and_those_of_a_smaller_grid_stay():
    one = plan_cells(["full"], BUDGETS, 3, seed=5)
    two = plan_cells(["full", "zero_shot"], BUDGETS, 4, seed=5, seeds=2)

    assert set(one) < set(two)
    seeds = {(cell.draw, cell.repeat): cell.seed for cell in two}
    assert seeds[2, 0] == 5 + 2
    assert seeds[2, 1] == 5 + 2 + 1000
    assert len(set(seeds.values())) == 4 * 2


def test_in_each_fold_everything_runs_once():
    cells = plan_cells(["zero_shot", "full"], BUDGETS, 3, seed=0, seeds=2, folds=5)

    places = [(cell.mode, cell.budget, cell.draw, cell.repeat) for cell in cells]
    assert len(cells) == 5 + 2 * 3 * 2 * 5
    assert all(places.count(place) == 5 for place in places)
    assert {cell.fold for cell in cells} == set(range(5))
    assert all(cell.fold is None for cell in plan_cells(["full"], BUDGETS, 1, seed=0))


def test_names_tell_seeds_and_folds_apart():
    cells = plan_cells(["zero_shot", "full"], BUDGETS, 2, seed=0, seeds=2, folds=2)
    names = [cell.name for cell in cells]

    assert len(set(names)) == len(names)
    assert "full-2tiles-draw1-seed1-fold0" in names
    assert "full-2tiles-draw1-fold1" in names
    assert "zero_shot-0tiles-draw0-fold1" in names


def test_every_cell_has_a_folder_of_its_own():
    names = [cell.name for cell in plan_cells(RUNNABLE, BUDGETS, 3, seed=0)]

    assert len(set(names)) == len(names)
    assert "full-4tiles-draw2" in names
    assert "freeze_first-2-4tiles-draw2" in names


VALUES = st.text("abAB1_*?[]/. :,-\\\0ä", max_size=90)


@given(values=st.lists(VALUES, min_size=2, max_size=2, unique=True))
def test_folders_of_patterns_are_safe_and_differ_whatever_the_case(values):
    names = [
        Cell(mode=f"freeze_layers:{value}", budget=None, draw=0, seed=0).name
        for value in values
    ]

    assert all(re.fullmatch(r"[a-z0-9_-]{1,120}", name) for name in names)
    assert names[0].lower() != names[1].lower()


def test_the_table_that_help_shows_has_every_mode():
    assert {mode.partition(":")[0] for mode in MODES} == {
        mode.partition(":")[0] for mode in RUNNABLE
    }


@pytest.mark.parametrize("mode", RUNNABLE)
def test_every_mode_can_be_compared(mode):
    assert {cell.mode for cell in plan_cells([mode], BUDGETS, 1, seed=0)} == {mode}


def test_a_plan_of_a_file_runs_under_its_name(plan_path):
    cells = plan_cells([plan_path, "full"], BUDGETS, 1, seed=0)

    assert {cell.mode for cell in cells} == {"mine", "full"}
    assert cells[0].name == "mine-2tiles-draw0"
    (contender,) = find_contenders([plan_path])
    assert (contender.given, contender.plan.l2sp) == (plan_path, 0.5)


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("full, scratch", ["full", "scratch"]),
        ("freeze_layers:conv*,bn_*", ["freeze_layers:conv*,bn_*"]),
        (
            "full,freeze_layers:a*, b,freeze_first:2,mine.yaml,pixel_forest",
            [
                *("full", "freeze_layers:a*,b", "freeze_first:2", "mine.yaml"),
                "pixel_forest",
            ],
        ),
        ("freeze_layers:a,freeze_layers:b,c", ["freeze_layers:a", "freeze_layers:b,c"]),
        ("full,fulll", ["full", "fulll"]),
        ("", [""]),
    ],
)
def test_a_list_of_modes_is_parted_but_not_the_patterns_of_one(text, modes):
    assert split_modes(text) == modes


def test_a_plan_and_its_copy_are_one_mode(plan_path, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_bytes(Path(plan_path).read_bytes())

    with pytest.raises(UsageError, match="mine is given twice"):
        find_contenders([plan_path, str(copy)])


def test_all_modes_that_are_unknown_are_told():
    with pytest.raises(UsageError) as caught:
        find_contenders(["ful", "full", "freeze_first:0", "nothing.yaml"])

    found = str(caught.value)
    assert all(word in found for word in ("'ful'", "freeze_first:2", "nothing.yaml"))
    assert found.count("\n  - ") == 3


@pytest.mark.parametrize(
    ("modes", "budgets", "draws", "message"),
    [
        (["ful"], BUDGETS, 1, "nearest is 'full'"),
        (["full", "forest"], BUDGETS, 1, "pixel_forest"),
        ([], BUDGETS, 1, "0 modes"),
        (["full"], [], 1, "0 budgets"),
        (["full"], BUDGETS, 0, "0 draws"),
        (["full"], BUDGETS, 1001, "1001 draws; 1000 are possible"),
        (["full", "full"], BUDGETS, 1, "full is given twice"),
        (["freeze_first:2", "freeze_first:02"], BUDGETS, 1, "freeze_first:2 is given"),
        (["freeze_first:N"], BUDGETS, 1, "such as freeze_first:2"),
        (["full"], [BUDGETS[0], BUDGETS[0]], 1, "twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(modes, budgets, draws, message):
    with pytest.raises(UsageError, match=message):
        plan_cells(modes, budgets, draws, seed=0)


def test_there_is_one_seed_at_least():
    with pytest.raises(UsageError, match="0 seeds"):
        plan_cells(["full"], BUDGETS, 1, seed=0, seeds=0)
