"""The answer of a comparison in words.

A lead is called more than chance only where its p-value stays below 0.05 after Holm's
correction. A baseline that leads is named as one, and first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cropseg.evaluation.intervals import MIN_DRAWS
from cropseg.sites.budget import Budget, parse_budget
from cropseg.transfer.modes import name_mode

Summary = Mapping[str, Any]

_LEAST_P: Final = 0.001
_UNIT_WORDS: Final = {"tiles": "tile", "fields": "field", "ha": "hectare"}


def answer_comparison(budgets: Sequence[Summary], method: Summary) -> str:
    """Return two sentences: of the smallest budget, and of the largest.

    With one budget, the second sentence says what else cannot be told from the leader.

    Args:
        budgets: `budgets` of a summary, from small to large.
        method: `method` of the summary.
    """
    if len(budgets) == 1:
        return answer_budget(budgets[0], method)
    return " ".join(_write_main(item, method) for item in (budgets[0], budgets[-1]))


def answer_budget(budget: Summary, method: Summary) -> str:
    """Return one sentence on the leader, and one on what is as good as it.

    Args:
        budget: An item of `budgets` of a summary: `labels`, `modes` with the best one
            first, and `differences`.
        method: `method` of the summary: `num_blocks`, `why_no_interval`.
    """
    rest = _write_equals(budget)
    return f"{_write_main(budget, method)} {rest}".strip()


def write_labels(budget: Budget) -> str:
    """Return a budget in words.

    Example:
        >>> write_labels(Budget(amount=4)), write_labels(Budget(amount=1, unit="ha"))
        ('4 labelled tiles', '1 labelled hectare')
    """
    plural = "" if budget.amount == 1 else "s"
    return f"{budget.amount} labelled {_UNIT_WORDS[budget.unit]}{plural}"


def _write_main(budget: Summary, method: Summary) -> str:
    labels = write_labels(parse_budget(budget["labels"]))
    if method.get("validation") == "oracle":
        labels += ", and the val part's labels as an oracle for the best epoch"
    modes = budget["modes"]
    if not modes:
        return f"With {labels}, no mode has all runs of a draw."
    leader = modes[0]
    text = f"With {labels}, {_name(leader)}"
    text += ", a baseline," if leader["is_baseline"] else ""
    text += f" reaches mIoU {leader['miou_mean']:.3f}{_write_interval(leader)}"
    others = list(_choose_others(modes))
    if others:
        told = [f"{_name(mode)} {mode['miou_mean']:.3f}" for mode in others]
        text += f", {_join(told)}"
    rival = _choose_rival(modes)
    if rival is None:
        return f"{text}; no other mode has all runs of a draw."
    return f"{text}; {_write_difference(budget, leader, rival, method)}."


def _choose_others(modes: Sequence[Summary]) -> Iterator[Summary]:
    """Return the modes that a leader is held against in words, the best first.

    They are the baselines; after a baseline, the best other mode comes first.
    """
    leader, rest = modes[0], modes[1:]
    others = [mode for mode in rest if not mode["is_baseline"]]
    if leader["is_baseline"] and others:
        yield others[0]
    baselines = [mode for mode in rest if mode["is_baseline"]]
    yield from baselines
    if not leader["is_baseline"] and not baselines and others:
        yield others[0]


def _choose_rival(modes: Sequence[Summary]) -> Summary | None:
    """Return the mode whose difference to the leader tells most.

    It is the best baseline, or the best other mode where a baseline leads.
    """
    leader, rest = modes[0], modes[1:]
    of_other_kind = [
        mode for mode in rest if mode["is_baseline"] != leader["is_baseline"]
    ]
    return next(iter([*of_other_kind, *rest]), None)


def _write_difference(
    budget: Summary, leader: Summary, rival: Summary, method: Summary
) -> str:
    found = find_difference(budget, leader["mode"], rival["mode"])
    value = leader["miou_mean"] - rival["miou_mean"]
    if found is None or found["p_holm"] is None:
        return (
            f"it is {value:.3f} ahead of {name_mode(rival['mode'])}, and whether that "
            f"is more than chance stays open: {_explain_open(found, method)}"
        )
    text = (
        f"against {name_mode(rival['mode'])}, the difference is {found['miou']:+.3f} "
        f"(95 % interval {found['low']:+.3f} to {found['high']:+.3f}, "
        f"{_write_p(found['p_holm'])} after correction for {budget['num_tests']} "
        f"test{'' if budget['num_tests'] == 1 else 's'}), so "
    )
    if found["significant"] and found["miou"] < 0:
        return f"{text}over the draws that both have finished it is behind"
    if found["significant"]:
        return f"{text}the lead is more than chance"
    text += f"the two cannot be told apart by {method['num_blocks']} test blocks; "
    if found["smallest_difference"] >= 1:
        return f"{text}so few draws and blocks could not have shown any difference"
    return (
        f"{text}the smallest difference that this comparison could have shown is "
        f"{found['smallest_difference']:.3f}"
    )


def _explain_open(found: Summary | None, method: Summary) -> str:
    if method["why_no_interval"]:
        return str(method["why_no_interval"])
    if found is None:
        return "the two have no finished draw in common"
    num_draws = found["draws"]
    return (
        f"the two have {num_draws} finished draw{'' if num_draws == 1 else 's'} in "
        f"common, and an interval needs {MIN_DRAWS}"
    )


def find_difference(budget: Summary, mode: str, against: str) -> dict[str, Any] | None:
    """Return the difference of two modes, turned round where it is listed so.

    Args:
        budget: An item of `budgets` of a summary.
        mode: The mode.
        against: The mode that is subtracted.
    """
    for item in budget["differences"]:
        if (item["mode"], item["against"]) == (mode, against):
            return dict(item)
    for item in budget["differences"]:
        if (item["mode"], item["against"]) == (against, mode):
            return turn_difference(item)
    return None


def turn_difference(item: Summary) -> dict[str, Any]:
    """Return a difference with its two modes exchanged."""

    def negate(value: float | None) -> float | None:
        return None if value is None else -value

    return dict(item) | {
        "mode": item["against"],
        "against": item["mode"],
        "miou": negate(item["miou"]),
        "low": negate(item["high"]),
        "high": negate(item["low"]),
    }


def _write_equals(budget: Summary) -> str:
    """Return which other modes cannot be told from the leader, as a sentence."""
    modes = budget["modes"]
    rival = _choose_rival(modes) if modes else None
    equal = []
    for mode in modes[1:]:
        found = find_difference(budget, modes[0]["mode"], mode["mode"])
        is_open = found is not None and found["p_holm"] is not None
        if mode is not rival and is_open and found and not found["significant"]:
            equal.append(name_mode(mode["mode"]))
    if not equal:
        return ""
    ending = " either." if _is_equal(budget, rival) else "."
    return f"The leader cannot be told apart from {_join(equal)}{ending}"


def _is_equal(budget: Summary, rival: Summary | None) -> bool:
    if rival is None:
        return False
    found = find_difference(budget, budget["modes"][0]["mode"], rival["mode"])
    return found is not None and found["significant"] is False


def _join(items: Sequence[str]) -> str:
    first = [", ".join(items[:-1])] if len(items) > 1 else []
    return " and ".join([*first, items[-1]])


def _name(mode: Summary) -> str:
    """Return what a mode is called; with its name, which the words may not tell."""
    words = name_mode(mode["mode"])
    is_plain = mode["is_baseline"] or words == mode["mode"]
    return words if is_plain else f"{words} ({mode['mode']})"


def _write_interval(mode: Summary) -> str:
    if mode["interval"] is not None:
        low, high = mode["interval"]
        return f" (95 % interval {low:.3f} to {high:.3f})"
    if mode["runs"] == 1:
        return " (one run)"
    low, high = mode["miou_low"], mode["miou_high"]
    if mode["draws"] == 1 and low == high:  # its folds are one score
        return " (one run a fold)"
    return f" (lowest and highest {low:.3f} and {high:.3f})"


def _write_p(p_value: float) -> str:
    return f"p < {_LEAST_P}" if p_value < _LEAST_P else f"p = {p_value:.3f}"
