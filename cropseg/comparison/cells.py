"""Which runs a comparison consists of. No Keras."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cropseg.errors import UsageError, join_problems
from cropseg.files import hash_settings
from cropseg.sites.budget import Budget
from cropseg.sites.site import Site
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.modes import (
    FAMILIES,
    PIXEL_FOREST,
    PLANS,
    get_plan,
    list_mode_names,
)
from cropseg.transfer.plan import TransferPlan
from cropseg.transfer.plan_file import is_plan_file

MODES = tuple(list_mode_names())
"""Every mode of the table. Plans from files can be compared too."""

COMPARISON_RECORD = "compare.yaml"
"""Name of the file that holds the settings of a comparison."""

_SAFE = re.compile(r"[a-z0-9_]{1,60}")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A mode of a comparison."""

    mode: str
    """Its name."""
    given: str
    """What was asked for: the same, or the path of a file with a plan."""
    plan: TransferPlan | None
    """Its plan; None for the forest."""

    @property
    def sees_labels(self) -> bool:
        """Whether labels decide anything, so that it runs for each budget and draw."""
        return self.plan is None or self.plan.sees_labels


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that a comparison asks for."""

    mode: str
    """Name of its mode."""
    budget: Budget | None
    """The labels that it sees; None for a mode that sees none, as `zero_shot`."""
    draw: int
    """Which draw of the budget."""
    seed: int
    """The run's seed."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        labels = str(self.budget) if self.budget else "0tiles"
        return f"{_name_mode(self.mode)}-{labels}-draw{self.draw}"


def split_modes(text: str) -> list[str]:
    """Part a list of modes at its commas.

    What follows `freeze_layers:PATTERN` and is no mode is another pattern of it.

    Args:
        text: Modes, as `full,freeze_layers:conv*,bn*,scratch`, which is three.
    """
    modes: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        is_mode = (
            item in (*PLANS, PIXEL_FOREST)
            or is_plan_file(item)
            or item.partition(":")[0] in FAMILIES
        )
        if not is_mode and modes and modes[-1].startswith("freeze_layers:"):
            modes[-1] += f",{item}"
        else:
            modes.append(item)
    return modes


def find_contenders(modes: Sequence[str]) -> list[Contender]:
    """Return the modes of a comparison.

    Args:
        modes: Modes of the table, or paths of files with plans.

    Raises:
        UsageError: If one is unknown, or a name stands there twice. All problems are
            listed.
    """
    found, problems = [], []
    for given in modes:
        try:
            plan = None if given == PIXEL_FOREST else get_plan(given)
        except UsageError as error:
            problems.append(str(error))
        else:
            mode = PIXEL_FOREST if plan is None else plan.mode
            found.append(Contender(mode=mode, given=given, plan=plan))
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        raise UsageError(join_problems("Modes that cannot be compared", problems))
    names = [contender.mode for contender in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{', '.join(repeated)} is given twice. Give each mode once.")
    return found


def plan_cells(
    modes: Sequence[str], budgets: Sequence[Budget], draws: int, *, seed: int
) -> list[Cell]:
    """Return the runs of a comparison.

    A mode that sees no labels runs once.

    Raises:
        UsageError: If a mode is unknown, or something is asked for twice or not at all.
    """
    contenders = find_contenders(modes)
    if draws < 1 or not modes or not budgets:
        raise UsageError(
            f"A comparison needs modes, labels and draws of 1 or more; got "
            f"{len(modes)} modes, {len(budgets)} budgets and {draws} draws."
        )
    if len(set(budgets)) < len(budgets):
        raise UsageError("A budget is given twice. Give each once.")
    cells = [
        Cell(mode=contender.mode, budget=None, draw=0, seed=seed)
        for contender in contenders
        if not contender.sees_labels
    ]
    for draw in range(draws):
        for budget in budgets:
            cells += [
                Cell(mode=contender.mode, budget=budget, draw=draw, seed=seed + draw)
                for contender in contenders
                if contender.sees_labels
            ]
    return cells


def describe_grid(
    contenders: Sequence[Contender],
    budgets: Sequence[Budget],
    draws: int,
    *,
    source_site: Site | None = None,
) -> dict[str, Any]:
    """Return what a comparison runs, as its folder records it.

    Plans from files stand there whole, so that a file that changes is noticed.
    """
    grid: dict[str, Any] = {
        "modes": [contender.mode for contender in contenders],
        "labels": [str(budget) for budget in budgets],
        "draws": draws,
        "validation": "none",
    }
    plans = {
        contender.mode: {"file": contender.given, "plan": plan_to_json(contender.plan)}
        for contender in contenders
        if contender.plan is not None and is_plan_file(contender.given)
    }
    if plans:
        grid["plans"] = plans
    if source_site is not None:
        grid["source"] = {
            "site": source_site.name,
            "fingerprint": source_site.fingerprint,
        }
    return grid


def _name_mode(mode: str) -> str:
    """Return a mode's name as a part of a file name, different for each mode.

    Names of plans are safe as they are. A value after a colon may be anything, and
    file systems that ignore case would take two for one.
    """
    if _SAFE.fullmatch(mode):
        return mode
    name, _, value = mode.partition(":")
    if _SAFE.fullmatch(name) and _SAFE.fullmatch(value):
        return f"{name}-{value}"
    readable = re.sub(r"[^a-z0-9]+", "_", mode.lower()).strip("_")[:40]
    return f"{readable}--{hash_settings(mode)}"
