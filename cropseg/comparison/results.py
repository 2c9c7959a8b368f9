"""The result of a comparison: a row per run, and the counts of all runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cropseg.comparison.cells import Cell
from cropseg.comparison.summary.collect import read_arrays
from cropseg.files import write_text, write_whole
from cropseg.transfer.modes import PIXEL_FOREST, PLANS

if TYPE_CHECKING:
    from cropseg.training.finished import Run

_UNRELATED = tuple(name for name, plan in PLANS.items() if not plan.loaded)

BASELINES = ("zero_shot", *_UNRELATED, PIXEL_FOREST)
"""The source as it is, and modes that take nothing of it."""

RUN_COLUMNS: Final = (
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
"""Columns of `results.csv` that come from the run's `metrics.json`."""

MEASURE_COLUMNS: Final = (
    "peak_memory_bytes",
    "known_miou",
    "ece",
    "field_accuracy",
    "forgetting_before",
    "forgetting_after",
)
"""Columns of `results.csv` that the summary measures for each run."""


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
        """Return the row of `results.csv`, without `MEASURE_COLUMNS`."""
        row: dict[str, Any] = {
            "mode": self.cell.mode,
            "label_unit": self.cell.budget.unit if self.cell.budget else "tiles",
            "label_amount": self.cell.budget.amount if self.cell.budget else 0,
            "label_pixels": 0,
            "label_fields": "",
            "draw": self.cell.draw,
            "seed": self.cell.seed,
            "fold": _or_blank(self.cell.fold),
            "status": "failed" if self.run is None else "ok",
        }
        columns = (*RUN_COLUMNS, *(f"iou_{name}" for name in class_names))
        if self.run is None:
            return row | dict.fromkeys(columns, "")
        training, test = self.run.metrics["training"], self.run.metrics["test"]
        if self.cell.budget:
            row["label_pixels"] = training["label_pixels"]
            row["label_fields"] = _or_blank(training.get("label_fields"))
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


def _or_blank(value: Any) -> Any:
    return "" if value is None else value


def write_results(
    results: Sequence[Result],
    class_names: Sequence[str],
    path: Path,
    *,
    measures: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write one row a run as CSV.

    Args:
        results: The results.
        class_names: Classes of the target.
        path: The file.
        measures: `runs` of the summary, in the order of the results; empty for a table
            without `MEASURE_COLUMNS`.
    """
    rows = [result.to_row(class_names) for result in results]
    columns = list(rows[0])
    if measures:
        place = columns.index(RUN_COLUMNS[-1]) + 1
        columns[place:place] = MEASURE_COLUMNS
        for row, measured in zip(rows, measures, strict=True):
            row |= {name: _or_blank(measured.get(name)) for name in MEASURE_COLUMNS}
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_counts(results: Sequence[Result], path: Path) -> None:
    """Write what was counted in the test blocks of all runs as one `.npz` file.

    `<run>` has shape (blocks, classes, classes + 1), rows are labels, and the last
    column is other; `<run>_block_ids` numbers the blocks. Where a run measured them,
    there are also `<run>_reliability`, `<run>_mapped`, `<run>_fields`, and of area 1
    `<run>_source_counts` and `<run>_source_block_ids`.
    """
    arrays: dict[str, Any] = {}
    for result in results:
        if result.run is None:
            continue
        for name, array in read_arrays(result.run).items():
            short = "" if name == "test_counts" else f"_{name.removeprefix('test_')}"
            arrays[f"{result.cell.name}{short}"] = array
    with write_whole(path) as part_path:
        np.savez_compressed(part_path, **arrays)
