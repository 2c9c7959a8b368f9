"""The result of a comparison: a row per run, and the summary over draws."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.comparison.cells import Cell
from cropseg.files import write_text, write_whole
from cropseg.sites.budget import Budget
from cropseg.training.run import Run, load_counts
from cropseg.transfer.modes import PIXEL_FOREST, PLANS

_UNRELATED = tuple(name for name, plan in PLANS.items() if not plan.loaded)

BASELINES = ("zero_shot", *_UNRELATED, PIXEL_FOREST)
"""The source as it is, and modes that take nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a cell."""

    cell: Cell
    """The cell."""
    run: Run | None
    """Its run, or None where it failed."""
    failure: str = ""
    """Why it failed."""

    @property
    def miou(self) -> float:
        """Mean IoU on the test part."""
        assert self.run is not None  # noqa: S101 - callers filter
        return float(self.run.metrics["test"]["miou"])

    def to_row(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the row of `results.csv`."""
        row: dict[str, Any] = {
            "mode": self.cell.mode,
            "label_unit": self.cell.budget.unit if self.cell.budget else "tiles",
            "label_amount": self.cell.budget.amount if self.cell.budget else 0,
            "label_pixels": 0,
            "label_fields": "",
            "draw": self.cell.draw,
            "seed": self.cell.seed,
            "fold": "",
            "status": "failed" if self.run is None else "ok",
        }
        columns = (*RUN_COLUMNS, *(f"iou_{name}" for name in class_names))
        if self.run is None:
            return row | dict.fromkeys(columns, "")
        training, test = self.run.metrics["training"], self.run.metrics["test"]
        if self.cell.budget:
            row["label_pixels"] = training["label_pixels"]
            fields = training.get("label_fields")
            row["label_fields"] = "" if fields is None else fields
        ious = {f"iou_{item['name']}": item["iou"] for item in test["classes"]}
        values = {
            "converged": training["converged"],
            "classes_seen": len(training["classes_seen"]) if self.cell.budget else 0,
            "learning_rate": training["learning_rate"],
            "steps": training["steps"],
            "miou": test["miou"],
            "overall_accuracy": test["overall_accuracy"],
            "macro_f1": test["macro_f1"],
            "seconds": training["seconds"],
            "trained_parameters": training.get("trained_parameters"),
        }
        filled = {**values, **ious}
        return row | {name: _or_blank(filled.get(name)) for name in columns}


RUN_COLUMNS = (
    "converged",
    "classes_seen",
    "learning_rate",
    "steps",
    "miou",
    "overall_accuracy",
    "macro_f1",
    "seconds",
    "trained_parameters",
)
"""Columns of `results.csv` that come from the run itself."""


def _or_blank(value: Any) -> Any:
    return "" if value is None else value


def write_results(
    results: Sequence[Result], class_names: Sequence[str], path: Path
) -> None:
    """Write one row a run as CSV."""
    rows = [result.to_row(class_names) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_counts(results: Sequence[Result], path: Path) -> None:
    """Write the confusion counts per test block of all runs as one `.npz` file.

    `<run>` has shape (blocks, classes, classes + 1), rows are labels, and the last
    column is other; `<run>_block_ids` numbers the blocks.
    """
    arrays: dict[str, Any] = {}
    for result in results:
        if result.run is not None:
            counts = load_counts(result.run.out_dir)
            arrays[result.cell.name] = counts["test_counts"]
            arrays[f"{result.cell.name}_block_ids"] = counts["test_block_ids"]
    with write_whole(path) as part:
        np.savez_compressed(part, **arrays)


def summarize(
    results: Sequence[Result], budgets: Sequence[Budget]
) -> list[dict[str, Any]]:
    """Summarise results over draws, budget by budget.

    Args:
        results: Finished and failed runs.
        budgets: The budgets of the comparison.

    Returns:
        For each budget: the modes with their mean, lowest and highest mIoU over the
        draws, the best mode first, and an answer in words. `zero_shot` stands in
        every budget.
    """
    summaries = []
    for budget in budgets:
        grouped: dict[str, list[Result]] = {}
        for result in results:
            if result.run is not None and result.cell.budget in (budget, None):
                grouped.setdefault(result.cell.mode, []).append(result)
        modes = [_summarize_mode(mode, group) for mode, group in grouped.items()]
        modes.sort(key=lambda item: -item["miou_mean"])
        summaries.append(
            {
                "labels": str(budget),
                "leader": modes[0]["mode"] if modes else None,
                "answer": _answer(str(budget), modes),
                "modes": modes,
            }
        )
    return summaries


def _summarize_mode(mode: str, group: Sequence[Result]) -> dict[str, Any]:
    scores = [result.miou for result in group]
    trainings = [result.run.metrics["training"] for result in group if result.run]
    converged = [item["converged"] for item in trainings]
    return {
        "mode": mode,
        "draws": len(group),
        "miou_mean": round(float(np.mean(scores)), 4),
        "miou_low": round(min(scores), 4),
        "miou_high": round(max(scores), 4),
        "seconds_mean": round(float(np.mean([t["seconds"] for t in trainings])), 1),
        "trained_parameters": trainings[0].get("trained_parameters"),
        "converged": None if None in converged else sum(converged),
    }


def _answer(labels: str, modes: Sequence[Mapping[str, Any]]) -> str:
    if not modes:
        return f"With {labels}, no run finished."
    best = modes[0]
    kind = ", a baseline," if best["mode"] in BASELINES else ""
    text = f"With {labels}, {best['mode']}{kind} leads with mIoU {_range(best)}"
    if len(modes) > 1:
        second = modes[1]
        text += f", before {second['mode']} with {_range(second)}"
        if second["miou_high"] > best["miou_low"]:
            text += "; their draws overlap"
    return text + "."


def _range(mode: Mapping[str, Any]) -> str:
    if mode["draws"] == 1:
        return f"{mode['miou_mean']:.3f}"
    return (
        f"{mode['miou_mean']:.3f} ({mode['miou_low']:.3f} to {mode['miou_high']:.3f} "
        f"over {mode['draws']} draws)"
    )
