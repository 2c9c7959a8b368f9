"""Differences between the modes at one budget, tested as one family.

Each mode is held against `scratch`, `zero_shot`, `pixel_forest` and the leader. The
family that Holm's correction spans is all these tests at the budget: who has that many
labels asks about this budget alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cropseg.comparison.summary.answer import turn_difference
from cropseg.comparison.summary.collect import ModeRuns, share_draws, tell_spread
from cropseg.evaluation.differences import (
    Difference,
    adjust_holm,
    estimate_best,
    estimate_difference,
    find_smallest_difference,
    pool_precision,
)
from cropseg.evaluation.intervals import ScoreFunction, make_class_iou
from cropseg.transfer.modes import PIXEL_FOREST

REFERENCES: Final = ("scratch", "zero_shot", PIXEL_FOREST)
"""Modes that each mode is held against, beside the leader."""

ALPHA: Final = 0.05
"""Below this corrected p-value a difference is called more than chance."""

FAMILIES: Final = (
    "all tests at one budget, each pair of modes once, as who has that many "
    "labels asks about this budget alone; nothing is corrected over budgets"
)
"""What Holm's correction spans."""


def compare_pairs(
    modes: Sequence[ModeRuns], leader: str, score: ScoreFunction
) -> tuple[list[dict[str, Any]], int]:
    """Return the differences between modes at a budget.

    Args:
        modes: What each mode has done, the best first.
        leader: The mode with the best mean.
        score: What is compared.

    Returns:
        A difference for each mode and each mode that it is held against, mode minus
        `against`, over the `draws` that both have, and the number of tests. A pair
        that stands there in both directions was tested once. `smallest_difference` is
        the true difference that a test at this budget would find with a probability
        of 80 %; 1 where it would find none.
        Where there are too few blocks or draws for an interval, `low` to
        `smallest_difference` are None.
    """
    by_mode = {item.mode: item for item in modes}
    against = [name for name in dict.fromkeys((*REFERENCES, leader)) if name in by_mode]
    asked = [
        (item.mode, other) for other in against for item in modes if item.mode != other
    ]
    found: dict[frozenset[str], dict[str, Any]] = {}
    for mode, other in asked:
        if frozenset((mode, other)) not in found:
            compared = _compare(by_mode[mode], by_mode[other], score)
            if compared is not None:
                found[frozenset((mode, other))] = compared
    num_tests = _correct(list(found.values()))
    listed = []
    for mode, other in asked:
        item = found.get(frozenset((mode, other)))
        if item is not None:
            listed.append(item if item["mode"] == mode else turn_difference(item))
    public = [{k: v for k, v in item.items() if k != "precision"} for item in listed]
    return public, num_tests


def _compare(
    one: ModeRuns, other: ModeRuns, score: ScoreFunction
) -> dict[str, Any] | None:
    draws = share_draws((one, other))
    if not draws:
        return None
    found = subtract_runs(one, other, draws, score)
    return {
        "mode": one.mode,
        "against": other.mode,
        "draws": len(draws),
        "miou": found.value,
        "low": None if found.low is None else max(-1.0, found.low),
        "high": None if found.high is None else min(1.0, found.high),
        "p_value": found.p_value,
        "p_holm": None,
        "significant": None,
        "smallest_difference": None,
        "precision": found,
    }


def subtract_runs(
    one: ModeRuns, other: ModeRuns, draws: Sequence[int], score: ScoreFunction
) -> Difference:
    """Return the score of a mode minus that of another, paired over draws and blocks.

    Args:
        one: What a mode has done.
        other: What the other one has done, with other labels perhaps.
        draws: Draws that both have.
        score: What is compared.

    Returns:
        The difference; without an interval where one draw is left of several.
    """
    found = estimate_difference(one.take_draws(draws), other.take_draws(draws), score)
    if tell_spread((one, other), draws):
        return found
    return replace(
        found, low=None, high=None, standard_error=None, dof=None, p_value=None
    )


def _correct(found: Sequence[dict[str, Any]]) -> int:
    """Fill in what depends on the number of tests, and return that number."""
    tested = [item for item in found if item["p_value"] is not None]
    if not tested:
        return 0
    adjusted = adjust_holm([item["p_value"] for item in tested])
    # That of a single difference over three draws is known to a factor of five only.
    error, dof = pool_precision([item["precision"] for item in tested])
    smallest = find_smallest_difference(error, dof, alpha=ALPHA / len(tested))
    for item, p_holm in zip(tested, adjusted, strict=True):
        item["p_holm"] = p_holm
        item["significant"] = p_holm < ALPHA
        item["smallest_difference"] = min(1.0, smallest)
    return len(tested)


def compare_classes(
    modes: Mapping[str, ModeRuns], leader: str, names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return where the leader gains and loses, class by class.

    They are no tests, and nothing is corrected: they say which classes a difference
    comes from.

    Args:
        modes: What each mode has done.
        leader: The mode with the best mean.
        names: Names of the classes by their ids: those with enough blocks.

    Returns:
        For each of `REFERENCES`: IoU of the leader minus that of the reference, with
        its interval, of each class.
    """
    found = []
    for against in REFERENCES:
        draws = share_draws(modes[m] for m in (leader, against) if m in modes)
        if against not in modes or against == leader or not draws:
            continue
        classes = []
        for class_id, name in names.items():
            score = make_class_iou(class_id)
            one = subtract_runs(modes[leader], modes[against], draws, score)
            ends = {"low": one.low, "high": one.high}
            classes.append({"name": name, "iou": one.value, **ends})
        found.append({"mode": leader, "against": against, "classes": classes})
    return found


def find_best(
    modes: Sequence[ModeRuns], score: ScoreFunction
) -> Mapping[str, float | None]:
    """Return the probability of each mode that it is the best one.

    It says how the modes would rank with other labels and blocks, and is no test.
    """
    draws = share_draws(modes)
    if not draws or not tell_spread(modes, draws):
        return {}
    return estimate_best({item.mode: item.take_draws(draws) for item in modes}, score)
