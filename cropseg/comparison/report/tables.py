"""The tables of a report, for the page and for the text alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from cropseg.comparison.report.chart import make_axis
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.marks import draw_bar
from cropseg.comparison.report.values import (
    MISSING,
    read_bar,
    read_interval,
    read_items,
    read_mapping,
    read_number,
    read_text,
    write_chance,
    write_change,
    write_count,
    write_interval,
    write_labels,
    write_memory,
    write_p,
    write_score,
    write_seconds,
)

Item = Mapping[str, Any]

_NO_PICTURE: Final = Markup("")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    """What it says."""
    heat: float | None = None
    """How deep its colour is, from 0 to 1; None for no colour."""
    picture: Markup = _NO_PICTURE
    """What stands before its text, on the page alone."""
    note: str = ""
    """What a pointer that rests on it is told. Nothing that is said nowhere else."""
    is_strong: bool = False
    """Whether it stands out."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table."""

    title: str
    """What it is, in a few words."""
    head: tuple[str, ...]
    """Names of the columns. The first column names the rows."""
    rows: tuple[tuple[Cell, ...], ...]
    """The rows, as long as the head."""
    num_text: int = 1
    """How many columns at the start are text rather than numbers."""

    def is_heat(self, column: int) -> bool:
        """Tell whether the cells of a column have colours."""
        return any(row[column].heat is not None for row in self.rows)


def make_table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    *,
    num_text: int = 1,
) -> Table | None:
    """Make a table without the columns that no row has a value for.

    Returns:
        The table, or None where it has no rows or no values.
    """
    cells = [
        tuple(Cell(text=item) if isinstance(item, str) else item for item in row)
        for row in rows
    ]
    kept = [
        index
        for index in range(len(head))
        if any(
            row[index].text not in {MISSING, ""} or row[index].picture for row in cells
        )
    ]
    if len(kept) < 2:  # noqa: PLR2004 - names of rows alone say nothing
        return None
    return Table(
        title=title,
        head=tuple(head[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in cells),
        num_text=sum(index < num_text for index in kept),
    )


def name_mode(data: ReportData, mode: str) -> Cell:
    """Return the cell that names a mode, with its sign."""
    style = data.styles.get(mode)
    return Cell(
        text=mode,
        picture=style.draw_sign() if style else _NO_PICTURE,
        note="a baseline" if style and style.is_baseline else "",
    )


def list_scores(data: ReportData, budget: Item) -> Table | None:
    """Return the modes of a budget with all that is known of each."""
    modes = data.list_modes(budget)
    bars = [read_bar(item) for item in modes]
    ends = [end for bar in bars for end in bar or ()]
    axis = make_axis([*ends, *(item["miou_mean"] for item in modes)], "")
    rows: list[list[Cell | str]] = [
        [
            name_mode(data, read_text(item["mode"])),
            Cell(text=write_score(item["miou_mean"]), is_strong=True),
            Cell(
                text="",
                picture=draw_bar(
                    item["miou_mean"],
                    bar,
                    axis,
                    style=data.styles[read_text(item["mode"])],
                ),
            ),
            write_interval(item.get("interval")),
            write_interval([item.get("miou_low"), item.get("miou_high")])
            if item.get("miou_low") != item.get("miou_high")  # else it is one score
            else MISSING,
            write_score(read_mapping(item.get("known_miou")).get("mean")),
            write_score(read_mapping(item.get("firm_miou")).get("mean")),
            write_score(item.get("overall_accuracy_mean")),
            write_score(item.get("macro_f1_mean")),
            write_chance(item.get("probability_best")),
        ]
        for item, bar in zip(modes, bars, strict=True)
    ]
    labels = write_labels(budget.get("labels"))
    return make_table(f"Modes with {labels}, best first", _SCORE_HEAD, rows)


_SCORE_HEAD: Final = (
    "mode",
    "mIoU",
    "on one scale",
    "95 % interval",
    "lowest to highest",
    "mIoU, classes area 1 knows",
    "mIoU, classes in enough blocks",
    "overall accuracy",
    "mean F1",
    "chance of being best",
)


def list_costs(data: ReportData, budget: Item) -> Table | None:
    """Return what a run of each mode cost at a budget."""
    rows: list[list[Cell | str]] = [
        [
            name_mode(data, read_text(item["mode"])),
            write_seconds(item.get("seconds_mean")),
            write_count(item.get("steps_mean")),
            write_memory(item.get("peak_memory_bytes")),
            write_count(item.get("trained_parameters")),
            write_count(item.get("runs", item.get("draws"))),
            _write_converged(item),
        ]
        for item in data.list_modes(budget)
    ]
    head = ("mode", "time a run", "steps a run", "peak memory", "trained parameters")
    title = f"Cost of a run with {write_labels(budget.get('labels'))}"
    return make_table(title, (*head, "runs", "runs that converged"), rows)


def _write_converged(item: Item) -> str:
    converged = read_number(item.get("converged"))
    runs = read_number(item.get("runs", item.get("draws")))
    if converged is None or runs is None:
        return MISSING
    return f"{converged:.0f} of {runs:.0f}"


def list_differences(data: ReportData, budget: Item) -> list[Table]:
    """Return the paired differences of a budget, a table for each reference."""
    items = [
        item
        for item in read_items(budget.get("differences"))
        if read_number(item.get("miou")) is not None
    ]
    ends = [end for item in items for end in _read_ends(item) or ()]
    axis = make_axis([0.0, *ends, *(item["miou"] for item in items)], "")
    head = ("mode", "difference of mIoU", "around zero", "95 % interval", "p")
    tables = []
    for against in dict.fromkeys(read_text(item.get("against")) for item in items):
        rows: list[list[Cell | str]] = [
            [
                name_mode(data, read_text(item.get("mode"))),
                Cell(text=write_change(item["miou"]), is_strong=_is_shown(item)),
                Cell(
                    text="",
                    picture=draw_bar(
                        item["miou"],
                        _read_ends(item),
                        axis,
                        style=data.styles.get(read_text(item.get("mode"))),
                        zero=0.0,
                    ),
                ),
                write_interval(_read_ends(item), signed=True),
                write_p(item.get("p_value")),
                write_p(item.get("p_holm")),
                _judge(item),
            ]
            for item in items
            if read_text(item.get("against")) == against
        ]
        labels = write_labels(budget.get("labels"))
        title = f"mIoU of each mode minus that of {against}, with {labels}"
        table = make_table(title, (*head, "p after Holm", "verdict"), rows)
        tables += [table] if table else []
    return tables


def _read_ends(item: Item) -> tuple[float, float] | None:
    return read_interval([item.get("low"), item.get("high")])


def _is_shown(item: Item) -> bool:
    return item.get("significant") is True


def _judge(item: Item) -> str:
    significant = item.get("significant")
    if significant is None:
        return MISSING
    if not significant:
        return "not shown"
    return "better" if item["miou"] > 0 else "worse"


def list_class_scores(data: ReportData, budget: Item) -> Table | None:
    """Return IoU of each mode and class as a heat map."""
    known = {item["name"]: item["known"] for item in data.classes}
    names = list(known)
    for item in data.list_modes(budget):
        for entry in read_items(item.get("classes")):
            if read_text(entry.get("name")) not in names:
                names.append(read_text(entry.get("name")))
    rows = []
    for item in data.list_modes(budget):
        entries = {
            read_text(entry.get("name")): entry
            for entry in read_items(item.get("classes"))
        }
        row = [name_mode(data, read_text(item["mode"]))]
        for name in names:
            entry = read_mapping(entries.get(name))
            score = read_number(entry.get("iou_mean"))
            interval = write_interval(entry.get("interval"))
            note = "" if interval == MISSING else f"95 % interval {interval}"
            row.append(Cell(text=write_score(score, 2), heat=score, note=note))
        rows.append(row)
    heads = [f"{name} *" if known.get(name) is False else name for name in names]
    title = f"IoU of each class with {write_labels(budget.get('labels'))}"
    return make_table(title, ["mode", *heads], rows)


def list_by_budget(
    data: ReportData,
    title: str,
    write: Callable[[Item], str],
) -> Table | None:
    """Return a table of modes by budgets.

    Args:
        data: The comparison.
        title: What the values are.
        write: Returns the text of a mode's entry, `MISSING` where there is none.
    """
    heads = [write_labels(budget.get("labels")) for budget in data.budgets]
    rows: list[list[Cell | str]] = []
    for mode in data.styles:
        texts = [write(data.read_cell(budget, mode)) for budget in data.budgets]
        if any(text != MISSING for text in texts):
            rows.append([name_mode(data, mode), *texts])
    return make_table(title, ["mode", *heads], rows)


def list_efficiency(data: ReportData) -> list[Table]:
    """Return how many labels each mode needs, a table for each target."""
    items = read_items(data.summary.get("label_efficiency"))
    grouped: dict[tuple[str, str], list[list[Cell | str]]] = {}
    for item in items:
        target = (read_text(item.get("target")), write_score(item.get("target_miou")))
        labels = read_number(item.get("labels"))
        needed = "not reached"
        if item.get("reached") and labels is not None:
            needed = f"{labels:,.3g}{' or fewer' if item.get('is_at_most') else ''}"
        grouped.setdefault(target, []).append(
            [
                name_mode(data, read_text(item.get("mode"))),
                needed,
                _write_range(item),
            ]
        )
    tables = [
        make_table(
            f"Labels needed for {target or 'the target'}"
            + (f", mIoU {score}" if score != MISSING else ""),
            ("mode", "labels needed", "95 % interval"),
            rows,
        )
        for (target, score), rows in grouped.items()
    ]
    return [table for table in tables if table]


def _write_range(item: Item) -> str:
    low, high = read_number(item.get("low")), read_number(item.get("high"))
    if low is not None and high is not None:
        return f"{low:,.3g} to {high:,.3g}"
    if low is not None:
        return f"{low:,.3g} or more"
    if high is not None:
        return f"{high:,.3g} or fewer"
    return "open at both ends" if item.get("has_interval") else MISSING


def list_runs(data: ReportData) -> Table | None:
    """Return every run, failed ones too."""
    runs = read_items(data.summary.get("runs"))
    if not runs:
        runs = [
            {
                "mode": row.get("mode"),
                "labels": f"{row.get('label_amount', '')}{row.get('label_unit', '')}",
                "draw": _parse(row.get("draw")),
                "seed": _parse(row.get("seed")),
                "status": row.get("status"),
                "miou": _parse(row.get("miou")),
                "seconds": _parse(row.get("seconds")),
                "converged": {"True": True, "False": False}.get(
                    row.get("converged", "")
                ),
            }
            for row in data.files.rows
        ]
    rows: list[list[Cell | str]] = [
        [
            name_mode(data, read_text(run.get("mode"))),
            read_text(run.get("status")) or MISSING,
            write_labels(run.get("labels")),
            write_count(run.get("draw")),
            write_count(run.get("seed")),
            write_count(run.get("fold")),
            write_score(run.get("miou"), 4),
            {True: "yes", False: "no"}.get(run.get("converged") is True, MISSING)
            if isinstance(run.get("converged"), bool)
            else MISSING,
            write_seconds(run.get("seconds")),
        ]
        for run in runs
    ]
    head = ("mode", "status", "labels", "draw", "seed", "fold", "mIoU", "converged")
    return make_table("All runs", (*head, "time"), rows, num_text=2)


def _parse(text: str | None) -> float | None:
    try:
        return read_number(float(text or ""))
    except ValueError:
        return None
