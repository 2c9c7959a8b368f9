"""Figures of single modes and runs: how sure they are, and how they learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from cropseg.comparison.report.chart import Axis, Chart, make_axis, make_log_axis
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.figures import Figure, Picture
from cropseg.comparison.report.styles import Style
from cropseg.comparison.report.values import (
    read_items,
    read_mapping,
    read_number,
    read_text,
    write_labels,
    write_score,
)

_MAX_EPOCHS: Final = 60
_UNIT_TICKS: Final = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))


def draw_reliability(data: ReportData) -> Figure | None:
    """Draw the reliability of each mode at the largest budget."""
    if not data.budgets:
        return None
    budget = data.budgets[-1]
    pictures = []
    for item in data.list_modes(budget):
        calibration = read_mapping(item.get("calibration"))
        bins = [
            (share, confidence, accuracy)
            for entry in read_items(calibration.get("bins"))
            if (share := read_number(entry.get("share")))
            and (confidence := read_number(entry.get("confidence"))) is not None
            and (accuracy := read_number(entry.get("accuracy"))) is not None
        ]
        if bins:
            style = data.styles[read_text(item["mode"])]
            ece = write_score(calibration.get("ece"))
            pictures.append(_draw_bins(style, bins, ece))
    if not pictures:
        return None
    return Figure(
        pictures=tuple(pictures),
        caption=f"Reliability with {write_labels(budget.get('labels'))}: of the pixels "
        "that a mode is so sure of, the share that is right. On the dashed line it is "
        "as sure as it should be; below the line it is too sure. Grey bars are the "
        "share of pixels in each bin. ECE is the mean distance from the line, weighted "
        "by pixels.",
    )


def _draw_bins(
    style: Style, bins: Sequence[tuple[float, float, float]], ece: str
) -> Picture:
    chart = Chart(
        width=220,
        height=210,
        x=Axis(label="mean probability given", low=0, high=1, ticks=_UNIT_TICKS),
        y=Axis(label="share that is right", low=0, high=1.04, ticks=_UNIT_TICKS),
        alt=f"Reliability of {style.mode}, ECE {ece}. "
        + ", ".join(f"{sure:.2f} sure: {right:.2f} right" for _, sure, right in bins),
    )
    for share, sure, _ in bins:
        (left, top), (right, bottom) = (
            chart.place((max(sure - 0.02, 0), share)),
            chart.place((min(sure + 0.02, 1), 0)),
        )
        chart.add(
            None,
            Markup('<rect class="share" x="{}" y="{}" width="{}" height="{}"/>').format(
                *(round(value, 1) for value in (left, top, right - left, bottom - top))
            ),
        )
    chart.add(None, chart.draw_rule((0, 0), (1, 1)))
    places = [chart.place((sure, right)) for _, sure, right in bins]
    marks = [style.draw_marker(x, y, 3.2) for x, y in places]
    chart.add(style, chart.draw_line(places, style.dash), *marks)
    return Picture(title=f"{style.mode}: ECE {ece}", svg=chart.render())


def draw_learning(data: ReportData) -> Figure | None:
    """Draw the loss of the first draw of each mode against its steps."""
    pictures: list[Picture] = []
    drawn: set[str] = set()
    for title, column in (("Loss", 1), ("mIoU in validation", 2)):
        for budget in data.budgets:
            lines = _list_lines(data, budget, column)
            if lines:
                drawn.update(mode for mode, _ in lines)
                labels = write_labels(budget.get("labels"))
                pictures.append(_draw_lines(data, lines, f"{title}, {labels}", title))
    if not pictures:
        return None
    return Figure(
        pictures=tuple(pictures),
        caption="How the runs of the first draw learned: the training loss, averaged "
        "over an epoch, on a logarithmic axis. A line that still falls at its end "
        "says that more steps would have helped. The forest and the source as it is do "
        "not learn in steps.",
        styles=data.list_styles(drawn),
    )


def _list_lines(
    data: ReportData, budget: Mapping[str, Any], column: int
) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the points of each mode's first run, at most 60 of each."""
    lines = []
    for mode in data.styles:
        runs = data.find_runs(mode, read_text(budget.get("labels")))
        rows = next((run.history for run in runs if run.history), ())
        points = [
            (row[0], value)
            for row in rows
            if (value := row[column]) is not None and (column > 1 or value > 0)
        ]
        if points:
            keep = np.linspace(0, len(points) - 1, min(len(points), _MAX_EPOCHS))
            lines.append((mode, [points[index] for index in np.rint(keep).astype(int)]))
    return lines


def _draw_lines(
    data: ReportData,
    lines: Sequence[tuple[str, list[tuple[float, float]]]],
    title: str,
    label: str,
) -> Picture:
    values = [value for _, points in lines for _, value in points]
    steps = [step for _, points in lines for step, _ in points]
    is_loss = label == "Loss"
    chart = Chart(
        width=340,
        height=250,
        x=make_axis([0.0, *steps], "steps", num_ticks=4, digits=0),
        y=make_log_axis(values, "training loss")
        if is_loss
        else make_axis(values, "mIoU in validation"),
        alt=f"{title} against steps. At the end: "
        + ", ".join(f"{mode} {points[-1][1]:.3g}" for mode, points in lines)
        + ".",
    )
    for mode, points in lines:
        style = data.styles[mode]
        places = [chart.place(point) for point in points]
        chart.add(
            style,
            chart.draw_line(places, style.dash),
            style.draw_marker(*places[-1], 4),
        )
    return Picture(title=title, svg=chart.render())
