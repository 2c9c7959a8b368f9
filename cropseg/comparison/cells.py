"""Which runs a comparison consists of. No Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cropseg.errors import UsageError
from cropseg.sites.budget import Budget
from cropseg.transfer.plan import PIXEL_FOREST, PLANS, describe_unknown_mode

MODES = (*PLANS, PIXEL_FOREST)
"""Every mode that can be compared."""

COMPARISON_RECORD = "compare.yaml"
"""Name of the file that holds the settings of a comparison."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that a comparison asks for."""

    mode: str
    """Its mode, or `pixel_forest`."""
    budget: Budget | None
    """The labels that it sees; None for `zero_shot`, which sees none."""
    draw: int
    """Which draw of the budget."""
    seed: int
    """The run's seed."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        labels = str(self.budget) if self.budget else "0tiles"
        return f"{self.mode}-{labels}-draw{self.draw}"


def plan_cells(
    modes: Sequence[str], budgets: Sequence[Budget], draws: int, *, seed: int
) -> list[Cell]:
    """Return the runs of a comparison.

    Raises:
        UsageError: If a mode is unknown, or something is asked for twice or not at all.
    """
    for mode in modes:
        if mode not in MODES:
            raise UsageError(describe_unknown_mode(mode, list(MODES)))
    if draws < 1 or not modes or not budgets:
        raise UsageError(
            f"A comparison needs modes, labels and draws of 1 or more; got "
            f"{len(modes)} modes, {len(budgets)} budgets and {draws} draws."
        )
    if len(set(modes)) < len(modes) or len(set(budgets)) < len(budgets):
        raise UsageError("A mode or a budget is given twice. Give each once.")
    cells = []
    if "zero_shot" in modes:
        cells.append(Cell(mode="zero_shot", budget=None, draw=0, seed=seed))
    for draw in range(draws):
        for budget in budgets:
            cells += [
                Cell(mode=mode, budget=budget, draw=draw, seed=seed + draw)
                for mode in modes
                if mode != "zero_shot"
            ]
    return cells


def describe_grid(
    modes: Sequence[str], budgets: Sequence[Budget], draws: int
) -> dict[str, Any]:
    """Return what a comparison runs, as its folder records it."""
    return {
        "modes": list(modes),
        "labels": [str(budget) for budget in budgets],
        "draws": draws,
        "validation": "none",
    }
