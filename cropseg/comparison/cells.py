"""Which runs a comparison consists of. No Keras."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cropseg.errors import UsageError, join_problems
from cropseg.files import hash_settings
from cropseg.sites.budget import Budget
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

SEED_STEP = 1000
"""What the seeds of one draw are apart; so no draw has the seed of another one's."""

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
    repeat: int = 0
    """Which seed of the draw, counted from 0."""
    fold: int | None = None
    """Which fold of the site is tested on; None where there are no folds."""

    @property
    def name(self) -> str:
        """What it is called; its folder adds a hash of what decides its result."""
        labels = str(self.budget) if self.budget else "0tiles"
        name = f"{_name_mode(self.mode)}-{labels}-draw{self.draw}"
        if self.repeat:
            name += f"-seed{self.repeat}"
        return name if self.fold is None else f"{name}-fold{self.fold}"


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
    modes: Sequence[str],
    budgets: Sequence[Budget],
    draws: int,
    *,
    seed: int,
    seeds: int = 1,
    folds: int | None = None,
) -> list[Cell]:
    """Return the runs of a comparison.

    A mode that sees no labels runs once in each fold.

    Args:
        modes: Modes of the table, or paths of files with plans.
        budgets: The budgets.
        draws: Random choices of the labels of each budget.
        seed: Seed of the first run of the first draw.
        seeds: Runs of each draw, each with a seed of its own.
        folds: Folds of the site; None where it is tested on one part.

    Raises:
        UsageError: If a mode is unknown, or something is asked for twice or not at all.
    """
    contenders = find_contenders(modes)
    if draws < 1 or seeds < 1 or not modes or not budgets:
        raise UsageError(
            f"A comparison needs modes, labels, and draws and seeds of 1 or more; got "
            f"{len(modes)} modes, {len(budgets)} budgets, {draws} draws and {seeds} "
            "seeds."
        )
    if draws > SEED_STEP:
        raise UsageError(f"Got {draws} draws; {SEED_STEP} are possible.")
    if len(set(budgets)) < len(budgets):
        raise UsageError("A budget is given twice. Give each once.")
    places = [None] if folds is None else list(range(folds))
    cells = [
        Cell(mode=contender.mode, budget=None, draw=0, seed=seed, fold=fold)
        for contender in contenders
        if not contender.sees_labels
        for fold in places
    ]
    for draw, repeat, budget, fold in itertools.product(
        range(draws), range(seeds), budgets, places
    ):
        cells += [
            Cell(
                mode=contender.mode,
                budget=budget,
                draw=draw,
                seed=seed + draw + SEED_STEP * repeat,
                repeat=repeat,
                fold=fold,
            )
            for contender in contenders
            if contender.sees_labels
        ]
    return cells


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
