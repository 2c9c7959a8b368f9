"""Label efficiency: how many labels a mode needs for what `scratch` reaches with most.

Only runs that had converged count: a mode that was stopped early would seem to need
more labels than it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cropseg.comparison.summary.answer import write_labels
from cropseg.comparison.summary.collect import ModeRuns, share_draws
from cropseg.comparison.summary.contrasts import subtract_runs
from cropseg.evaluation.efficiency import find_crossing
from cropseg.evaluation.intervals import ScoreFunction, estimate_score
from cropseg.sites.budget import Budget

TARGET: Final = "scratch"
"""The mode whose score at its largest budget is to be reached."""


def list_efficiency(
    budgets: Sequence[Budget],
    modes_by_budget: Sequence[Mapping[str, ModeRuns]],
    score: ScoreFunction,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return how many labels each trained mode needs to reach `scratch`.

    Args:
        budgets: The budgets, from small to large.
        modes_by_budget: What each mode has done at each.
        score: What is to be reached.

    Returns:
        An item for each mode that sees labels, and sentences on what is left out.
    """
    largest, modes = budgets[-1], modes_by_budget[-1]
    goal = modes.get(TARGET)
    if goal is None:
        return [], [f"{TARGET} has no finished draw with {write_labels(largest)}."]
    if not has_converged(goal):
        note = f"{TARGET} had not converged with {write_labels(largest)}"
        return [], [f"{note}, so what it can reach is not known."]
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    named = dict.fromkeys(mode for modes in modes_by_budget for mode in modes)
    for mode in named:
        runs = [modes.get(mode) for modes in modes_by_budget]
        if mode == TARGET or any(item and item.draws is None for item in runs):
            continue
        used = [
            (budget, item)
            for budget, item in zip(budgets, runs, strict=True)
            if item is not None and has_converged(item)
        ]
        missing = [
            write_labels(b) for b in budgets if b not in [budget for budget, _ in used]
        ]
        if missing:
            notes.append(
                f"{mode} counts without {', '.join(missing)}, where a run failed or "
                "had not converged."
            )
        needed = _find_needed(used, goal, score) if used else None
        # Without the largest budget it is not known whether it would be reached.
        if needed and (needed["reached"] or used[-1][0] == largest):
            target = f"{TARGET} with {write_labels(largest)}"
            found.append({"mode": mode, "target": target, **needed})
    return found, notes


def has_converged(runs: ModeRuns) -> bool:
    """Tell whether all runs of a mode had converged. Of a forest nothing is asked."""
    return all(run.metrics["training"]["converged"] is not False for run in runs.runs)


def _find_needed(
    used: Sequence[tuple[Budget, ModeRuns]], goal: ModeRuns, score: ScoreFunction
) -> dict[str, Any] | None:
    """Return what a mode needs, from its differences to the goal at each budget."""
    draws = share_draws([goal, *(runs for _, runs in used)])
    if not draws:
        return None
    found = [subtract_runs(runs, goal, draws, score) for _, runs in used]
    lows = [item.low for item in found if item.low is not None]
    highs = [item.high for item in found if item.high is not None]
    has_interval = len(lows) == len(highs) == len(found)
    needed = find_crossing(
        [budget.amount for budget, _ in used],
        [item.value for item in found],
        lows if has_interval else None,
        highs if has_interval else None,
    )
    smallest = used[0][0].amount
    return {
        "target_miou": estimate_score(goal.take_draws(draws), score).value,
        "reached": needed.reached,
        "labels": needed.labels,
        "is_at_most": needed.labels is not None and needed.labels <= smallest,
        "has_interval": has_interval,
        "low": needed.low,
        "high": needed.high,
    }
