"""What several parts of a report ask of a comparison's files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from cropseg.comparison.report.folder import ComparisonFiles, RunFiles
from cropseg.comparison.report.styles import Style, choose_styles
from cropseg.comparison.report.values import (
    read_color,
    read_items,
    read_list,
    read_mapping,
    read_number,
    read_text,
)
from cropseg.comparison.results import BASELINES

_ZERO_SHOT: Final = "zero_shot"
_SCRATCH: Final = "scratch"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a mode gained over the reference of its budget."""

    mode: str
    """The mode."""
    value: float
    """Its mean mIoU minus that of the reference, where there is one."""
    item: Mapping[str, Any]
    """The mode's entry of the summary."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The files of a comparison, and what follows from them directly."""

    files: ComparisonFiles
    """The files."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Return `summary.json`."""
        return self.files.summary

    @cached_property
    def budgets(self) -> list[Mapping[str, Any]]:
        """Return the budgets with at least one finished mode, small to large."""
        budgets = read_items(self.summary.get("budgets"))
        return [item for item in budgets if self.list_modes(item)]

    @cached_property
    def classes(self) -> list[dict[str, Any]]:
        """Return name, colour and `known` of the classes, in the order of their ids."""
        found = read_items(self.summary.get("classes"))
        if not found:  # a folder of an older version
            columns = self.files.rows[0] if self.files.rows else {}
            names = [name for name in columns if name.startswith("iou_")]
            found = [{"name": name.removeprefix("iou_")} for name in names]
        return [
            {
                "name": read_text(item.get("name")),
                "color": read_color(item.get("color")),
                "known": item.get("known"),
            }
            for item in found
        ]

    @cached_property
    def styles(self) -> dict[str, Style]:
        """Return the style of each mode, the best at the largest budget first."""
        modes: dict[str, Any] = {}
        for budget in reversed(self.budgets):
            for item in self.list_modes(budget):
                mode = read_text(item.get("mode"))
                modes.setdefault(mode, item.get("is_baseline", mode in BASELINES))
        for run in read_items(self.summary.get("runs")):  # all of them may have failed
            mode = read_text(run.get("mode"))
            modes.setdefault(mode, mode in BASELINES)
        for mode in map(read_text, read_list(self.files.record.get("modes"))):
            modes.setdefault(mode, mode in BASELINES)
        return choose_styles(modes)

    def list_styles(self, modes: Iterable[str]) -> tuple[Style, ...]:
        """Return the styles of some modes, in the order of the legend."""
        wanted = set(modes)
        return tuple(style for mode, style in self.styles.items() if mode in wanted)

    @cached_property
    def draws(self) -> dict[tuple[str, str | None], list[float]]:
        """Return mIoU of each draw by mode and labels, the mean of its seeds.

        Empty where blocks were taken in folds: the score of a fold is no score of a
        draw.
        """
        if self.summary.get("folds"):
            return {}
        runs: list[Mapping[str, Any]] = read_items(self.summary.get("runs"))
        if not runs:
            runs = [_read_row(row) for row in self.files.rows]
        grouped: dict[tuple[str, str | None], dict[float, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for run in runs:
            score = read_number(run.get("miou"))
            if score is not None:
                key = (read_text(run.get("mode")), read_text(run.get("labels")) or None)
                grouped[key][read_number(run.get("draw")) or 0.0].append(score)
        return {
            key: [float(np.mean(scores)) for _, scores in sorted(by_draw.items())]
            for key, by_draw in grouped.items()
        }

    def find_draws(self, mode: str, labels: str) -> list[float]:
        """Return mIoU of each draw; a mode without labels has one for all budgets."""
        return self.draws.get((mode, labels)) or self.draws.get((mode, None), [])

    def list_modes(self, budget: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the modes of a budget that have a score, best first."""
        modes = [
            item
            for item in read_items(budget.get("modes"))
            if read_number(item.get("miou_mean")) is not None
        ]
        return sorted(modes, key=lambda item: -item["miou_mean"])

    def find_runs(self, mode: str, labels: str) -> list[RunFiles]:
        """Return the runs of a mode at a budget, by draw, seed and fold."""
        return [
            run
            for run in self.files.runs
            if run.mode == mode and run.labels in {labels, None}
        ]

    @cached_property
    def reference(self) -> str:
        """Return the mode that gains are measured from.

        It is the source as it is, else training from nothing. Where neither has a
        score at every budget, it is empty, and a gain is the whole mIoU.
        """
        for mode in (_ZERO_SHOT, _SCRATCH):
            if all(self.read_cell(budget, mode) for budget in self.budgets):
                return mode
        return ""

    def list_gains(self, budget: Mapping[str, Any]) -> list[Gain]:
        """Return what each mode gained over the reference."""
        base = self.read_cell(budget, self.reference).get("miou_mean", 0.0)
        return [
            Gain(
                mode=read_text(item.get("mode")),
                value=item["miou_mean"] - base,
                item=item,
            )
            for item in self.list_modes(budget)
        ]

    def read_cell(self, budget: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
        """Return a mode's entry at a budget, empty where it has none."""
        for item in self.list_modes(budget):
            if item.get("mode") == mode:
                return item
        return read_mapping(None)


def _read_row(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of `results.csv` as the summary has it."""
    try:
        score: float | None = float(row.get("miou", ""))
        draw = float(row.get("draw", ""))
    except ValueError:
        score, draw = None, 0.0
    amount, unit = row.get("label_amount", ""), row.get("label_unit", "")
    labels = f"{amount}{unit}" if amount not in {"", "0"} else None
    return {"mode": row.get("mode"), "labels": labels, "draw": draw, "miou": score}
