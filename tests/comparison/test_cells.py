"""Cells: a comparison runs each mode at each budget and draw, once."""

from __future__ import annotations

import pytest

from cropseg.comparison.cells import MODES, plan_cells
from cropseg.errors import UsageError
from cropseg.sites.budget import Budget

BUDGETS = [Budget(amount=2), Budget(amount=4)]


def test_every_mode_runs_at_every_budget_and_draw_once():
    cells = plan_cells(["full", "scratch", "pixel_forest"], BUDGETS, 3, seed=5)

    found = {(cell.mode, cell.budget, cell.draw) for cell in cells}
    assert len(cells) == len(found) == 3 * 2 * 3
    assert {cell.mode for cell in cells} == {"full", "scratch", "pixel_forest"}
    assert {cell.budget for cell in cells} == set(BUDGETS)
    assert {cell.draw for cell in cells} == {0, 1, 2}


def test_a_seed_goes_with_its_draw_and_not_with_mode_or_budget():
    cells = plan_cells(list(MODES), BUDGETS, 3, seed=5)

    assert all(cell.seed == 5 + cell.draw for cell in cells)


def test_zero_shot_sees_no_labels_and_runs_once():
    cells = plan_cells(["full", "zero_shot"], BUDGETS, 3, seed=5)

    found = [cell for cell in cells if cell.mode == "zero_shot"]
    assert [(cell.budget, cell.draw, cell.seed) for cell in found] == [(None, 0, 5)]
    assert found[0].name == "zero_shot-0tiles-draw0"


def test_every_cell_has_a_folder_of_its_own():
    names = [cell.name for cell in plan_cells(list(MODES), BUDGETS, 3, seed=0)]

    assert len(set(names)) == len(names)
    assert "full-4tiles-draw2" in names


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_can_be_compared(mode):
    assert {cell.mode for cell in plan_cells([mode], BUDGETS, 1, seed=0)} == {mode}


@pytest.mark.parametrize(
    ("modes", "budgets", "draws", "message"),
    [
        (["ful"], BUDGETS, 1, "nearest is 'full'"),
        (["full", "forest"], BUDGETS, 1, "pixel_forest"),
        ([], BUDGETS, 1, "0 modes"),
        (["full"], [], 1, "0 budgets"),
        (["full"], BUDGETS, 0, "0 draws"),
        (["full", "full"], BUDGETS, 1, "twice"),
        (["full"], [BUDGETS[0], BUDGETS[0]], 1, "twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(modes, budgets, draws, message):
    with pytest.raises(UsageError, match=message):
        plan_cells(modes, budgets, draws, seed=0)
