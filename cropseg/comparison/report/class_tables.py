"""Tables of one mode at one budget: its confusion, and the hectares of each crop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.comparison.report.chart import make_axis
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.marks import draw_bar
from cropseg.comparison.report.tables import Cell, Table, make_table
from cropseg.comparison.report.values import (
    MISSING,
    read_interval,
    read_items,
    read_list,
    read_mapping,
    read_number,
    read_text,
    write_change,
    write_count,
    write_ha,
    write_interval,
    write_labels,
    write_score,
)

Item = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AreaView:
    """Hectares per crop of a mode."""

    mode: str
    """The mode."""
    table: Table
    """A row for each crop."""
    note: str
    """What the standard errors mean here."""
    is_design_based: bool | None
    """Whether the test blocks are a probability sample."""


def list_effects(budget: Item) -> list[Table]:
    """Return where the leader gains and loses, a table for each reference."""
    tables = []
    for effect in read_items(budget.get("class_effects")):
        items = [
            item
            for item in read_items(effect.get("classes"))
            if read_number(item.get("iou")) is not None
        ]
        ends = [read_interval([item.get("low"), item.get("high")]) for item in items]
        values = [0.0, *(item["iou"] for item in items)]
        axis = make_axis([*values, *(end for pair in ends for end in pair or ())], "")
        rows: list[list[Cell | str]] = [
            [
                read_text(item.get("name")),
                Cell(text=write_change(item["iou"]), is_strong=True),
                Cell(text="", picture=draw_bar(item["iou"], pair, axis, zero=0.0)),
                write_interval(pair, signed=True),
            ]
            for item, pair in zip(items, ends, strict=True)
        ]
        mode, against = read_text(effect.get("mode")), read_text(effect.get("against"))
        labels = write_labels(budget.get("labels"))
        table = make_table(
            f"IoU of {mode} minus that of {against}, with {labels}",
            ("class", "difference of IoU", "around zero", "95 % interval"),
            rows,
        )
        tables += [table] if table else []
    return tables


def list_confusions(data: ReportData) -> list[tuple[str, Table]]:
    """Return mode and confusion of each mode at the largest budget, best first."""
    if not data.budgets:
        return []
    budget = data.budgets[-1]
    found = []
    for item in data.list_modes(budget):
        table = _list_confusion(data, item, write_labels(budget.get("labels")))
        if table:
            found.append((read_text(item["mode"]), table))
    return found


def _list_confusion(data: ReportData, item: Item, labels: str) -> Table | None:
    counts = _read_counts(item.get("confusion"), len(data.classes))
    if counts is None or not counts.any():
        return None
    names = [entry["name"] for entry in data.classes]
    entries = {
        read_text(entry.get("name")): entry for entry in read_items(item.get("classes"))
    }
    rows = []
    for index, name in enumerate(names):
        total = counts[index].sum()
        shares = counts[index] / total if total else np.full(len(names) + 1, np.nan)
        row = [Cell(text=name)]
        for column, share in enumerate(shares):
            known = read_number(float(share))
            row.append(
                Cell(
                    text=MISSING if known is None else f"{known:.0%}",
                    heat=known,
                    note=f"{write_count(float(counts[index, column]))} pixels",
                    is_strong=column == index,
                )
            )
        precision = read_mapping(entries.get(name)).get("precision")
        rows.append(
            [
                *row,
                Cell(text=write_count(float(total))),
                Cell(text=write_score(precision, 2)),
            ]
        )
    head = ["labelled", *names, "other", "pixels, all runs", "precision"]
    if not counts[:, -1].any():
        rows = [row[: len(names) + 1] + row[len(names) + 2 :] for row in rows]
        head.remove("other")
    return make_table(f"Confusion of {item['mode']} with {labels}", head, rows)


def _read_counts(value: Any, num_classes: int) -> npt.NDArray[np.float64] | None:
    """Return counts of shape (classes, classes + 1), or None."""
    rows = [[read_number(cell) for cell in read_list(row)] for row in read_list(value)]
    if len(rows) != num_classes or any(len(row) != num_classes + 1 for row in rows):
        return None
    if any(cell is None or cell < 0 for row in rows for cell in row):
        return None
    return np.array(rows, np.float64)


def list_areas(data: ReportData) -> list[AreaView]:
    """Return the hectares per crop of each mode at the largest budget, best first."""
    if not data.budgets:
        return []
    budget = data.budgets[-1]
    views = []
    for item in data.list_modes(budget):
        areas, mode = read_mapping(item.get("areas")), read_text(item["mode"])
        rows = [
            [
                read_text(entry.get("name")),
                write_ha(entry.get("mapped_ha")),
                write_ha(entry.get("adjusted_ha")),
                write_ha(entry.get("standard_error_ha")),
                _write_margin(entry),
                write_ha(entry.get("labelled_ha")),
            ]
            for entry in read_items(areas.get("classes"))
        ]
        title = f"Hectares of {mode} with {write_labels(budget.get('labels'))}"
        table = make_table(title, _AREA_HEAD, rows)
        if table:
            views.append(
                AreaView(
                    mode=mode,
                    table=table,
                    note=read_text(areas.get("note")),
                    is_design_based=areas.get("design_based"),
                )
            )
    return views


_AREA_HEAD = (
    "class",
    "mapped, ha",
    "error-adjusted, ha",
    "standard error, ha",
    "error of the adjusted area",
    "labelled, ha",
)


def _write_margin(entry: Item) -> str:
    area = read_number(entry.get("adjusted_ha"))
    error = read_number(entry.get("standard_error_ha"))
    return f"{error / area:.0%}" if area and area > 0 and error is not None else MISSING
