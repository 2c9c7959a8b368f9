"""The figures of a report. Each returns None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from cropseg.comparison.report.chart import (
    Axis,
    Chart,
    make_axis,
    make_log_axis,
    spread_out,
)
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.styles import Style
from cropseg.comparison.report.values import (
    read_amount,
    read_bar,
    read_interval,
    read_mapping,
    read_number,
    read_text,
    shorten,
    write_change,
    write_labels,
    write_score,
)

_WIDE_PX: Final = 980
_NARROW_PX: Final = 330
_MIN_SECONDS: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One chart, and what stands above it."""

    title: str
    """Empty where there is just one."""
    svg: Markup
    """The chart."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Charts that belong together."""

    pictures: tuple[Picture, ...]
    """The charts."""
    caption: str
    """What they show."""
    styles: tuple[Style, ...] = ()
    """What the legend explains; empty where none is needed."""


def draw_curves(data: ReportData, *, is_wide: bool) -> Figure | None:
    """Draw mIoU against labels, with intervals and the draws.

    Args:
        data: The comparison.
        is_wide: For a desk rather than for a phone; names then stand beside the lines.
    """
    amounts = [read_amount(item.get("labels")) for item in data.budgets]
    if not amounts or None in amounts:
        return None
    budgets = list(
        zip([item[0] for item in amounts if item], data.budgets, strict=True)
    )
    unit = amounts[0][1] if amounts[0] else ""
    chart = Chart(
        width=_WIDE_PX if is_wide else _NARROW_PX,
        height=470 if is_wide else 360,
        right_px=170 if is_wide else 12,
        x=_make_label_axis([amount for amount, _ in budgets], unit),
        y=make_axis(_list_heights(data), "mIoU on the test blocks"),
        alt=_describe_curves(data),
    )
    ends = [
        _draw_curve(chart, data, style, budgets, step_px=8.0 if is_wide else 3.0)
        for style in data.styles.values()
    ]
    if is_wide:
        _name_ends(chart, [end for end in ends if end])
    points = "; small points are the single draws" if data.draws else ""
    return Figure(
        pictures=(Picture(title="", svg=chart.render()),),
        caption=f"Mean mIoU against labels. {_tell_bars(data)}{points}. "
        "Markers of one budget are set side by side so that none hides another. Open "
        "markers and dashed lines are baselines.",
        styles=tuple(data.styles.values()),
    )


def _tell_bars(data: ReportData) -> str:
    """Return what the bars of the curves are."""
    has_interval = {
        read_interval(item.get("interval")) is not None
        for budget in data.budgets
        for item in data.list_modes(budget)
    }
    if True not in has_interval:
        return "Bars go from the lowest to the highest draw, and are no intervals"
    method = read_mapping(data.summary.get("method"))
    what = read_text(method.get("interval")).removeprefix("t ")
    text = f"Bars are 95 % intervals {what}".rstrip()
    if False in has_interval:
        text += ", or go from the lowest to the highest draw where a mode has none"
    return text


def _make_label_axis(amounts: Sequence[float], unit: str) -> Axis:
    low, high = min(amounts), max(amounts)
    pad = (high / low) ** 0.09 if high > low else 1.5
    return Axis(
        label=f"labelled {'hectares' if unit == 'ha' else unit} of the new area"
        + (", logarithmic" if high > low else ""),
        low=low / pad,
        high=high * pad,
        ticks=tuple((amount, f"{amount:,.0f}") for amount in amounts),
        is_log=True,
    )


def _list_heights(data: ReportData) -> list[float]:
    heights = []
    for budget in data.budgets:
        for item in data.list_modes(budget):
            mode, labels = read_text(item["mode"]), read_text(budget["labels"])
            heights += [item["miou_mean"], *(read_bar(item) or ())]
            heights += data.find_draws(mode, labels)
    return heights


def _describe_curves(data: ReportData) -> str:
    budget = data.budgets[-1]
    scores = ", ".join(
        f"{item['mode']} {write_score(item['miou_mean'])}"
        for item in data.list_modes(budget)
    )
    return (
        "Lines of mean mIoU against labels, one for each mode. With "
        f"{write_labels(budget['labels'])}: {scores}."
    )


def _draw_curve(
    chart: Chart,
    data: ReportData,
    style: Style,
    budgets: Sequence[tuple[float, Mapping[str, Any]]],
    *,
    step_px: float,
) -> tuple[Style, tuple[float, float]] | None:
    """Draw one mode. Return where its line ends, in pixels."""
    shift = (style.index - (len(data.styles) - 1) / 2) * step_px
    line, marks = [], []
    for amount, budget in budgets:
        item = data.read_cell(budget, style.mode)
        if not item:
            continue
        x, y = chart.place((amount, item["miou_mean"]))
        x += shift
        line.append((x, y))
        bar = read_bar(item)
        if bar:
            ends = [chart.place((amount, end))[1] for end in bar]
            marks.append(chart.draw_line([(x, end) for end in ends]))
            marks += [chart.draw_line([(x - 3, end), (x + 3, end)]) for end in ends]
        for score in data.find_draws(style.mode, read_text(budget["labels"])):
            point = chart.place((amount, score))
            marks.append(
                Markup('<circle class="draw" cx="{}" cy="{}" r="2"/>').format(
                    round(x + 3.5, 1), round(point[1], 1)
                )
            )
        marks.append(style.draw_marker(x, y))
    if not line:
        return None
    chart.add(style, chart.draw_line(line, style.dash), *marks)
    return style, line[-1]


def _name_ends(chart: Chart, ends: Sequence[tuple[Style, tuple[float, float]]]) -> None:
    """Write the names of modes beside the ends of their lines."""
    left = chart.width - chart.right_px
    heights = spread_out([y for _, (_, y) in ends])
    for (style, (x, y)), height in zip(ends, heights, strict=True):
        chart.add(
            style,
            Markup('<path class="lead" d="M{} {}L{} {}H{}"/>').format(
                *(round(value, 1) for value in (x + 6, y, left, height, left + 5))
            ),
            style.draw_marker(left + 13, height, 4),
            chart.draw_text(
                left + 22, height + 4, shorten(style.mode, 21), kind="name"
            ),
        )


def draw_costs(data: ReportData) -> Figure | None:
    """Draw what each mode gained over the reference against its seconds."""

    def read_cost(item: Mapping[str, Any]) -> float | None:
        seconds = read_number(item.get("seconds_mean"))
        return seconds if seconds and seconds >= _MIN_SECONDS else None

    return _draw_gains(
        data,
        read_cost,
        label="seconds of training, logarithmic",
        is_log=True,
        caption="{gain} against what a run cost. Up and "
        "to the left is better. What trains nothing has no place here.",
    )


def draw_forgetting(data: ReportData) -> Figure | None:
    """Draw what each mode gained against what it lost on area 1."""

    def read_loss(item: Mapping[str, Any]) -> float | None:
        return read_number(read_mapping(item.get("forgetting")).get("change"))

    return _draw_gains(
        data,
        read_loss,
        label="change of mIoU on area 1",
        is_log=False,
        caption="{gain} against what happened to its score on area 1's own test "
        "blocks, over the classes that both areas share. Left of the dashed line it "
        "forgot; up and to the right is better.",
    )


def _tell_gain(reference: str) -> str:
    if reference:
        return f"What a mode gained over {reference} on the new area"
    return "The mIoU of a mode on the new area"


def _draw_gains(
    data: ReportData, read_x: Any, *, label: str, is_log: bool, caption: str
) -> Figure | None:
    """Draw a chart for each budget, a marker for each mode."""
    found, reference = [], data.reference
    for budget in data.budgets:
        gains = data.list_gains(budget)
        points = [(gain, read_x(gain.item)) for gain in gains]
        points = [(gain, x) for gain, x in points if x is not None]
        if points:
            found.append((budget, points))
    if not found:
        return None
    xs = [x for _, points in found for _, x in points] + ([] if is_log else [0.0])
    ys = [gain.value for _, points in found for gain, _ in points]
    ys += [0.0] if reference else []
    x_axis = make_log_axis(xs, label) if is_log else make_axis(xs, label, num_ticks=4)
    title = f"mIoU gained over {reference}" if reference else "mIoU on the new area"
    y_axis = make_axis(ys, title)
    pictures = []
    for budget, points in found:
        told = ", ".join(
            f"{gain.mode}: gain {write_change(gain.value)}, {label} {x:.3g}"
            for gain, x in points
        )
        chart = Chart(
            width=340,
            height=290,
            x=x_axis,
            y=y_axis,
            alt=f"Gain against {label}. {told}.",
        )
        if reference:
            chart.add(None, chart.draw_rule((x_axis.low, 0), (x_axis.high, 0)))
        if not is_log:
            chart.add(None, chart.draw_rule((0, y_axis.low), (0, y_axis.high)))
        places = [chart.place((x, gain.value)) for gain, x in points]
        chart.taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
        for (gain, _), place in zip(points, places, strict=True):
            style = data.styles[gain.mode]
            chart.add(style, style.draw_marker(*place, 5))
            chart.add_name(style, place)
        title = f"With {write_labels(budget.get('labels'))}"
        pictures.append(Picture(title=title, svg=chart.render()))
    return Figure(
        pictures=tuple(pictures),
        caption=caption.replace("{gain}", _tell_gain(reference)),
        styles=data.list_styles(gain.mode for _, points in found for gain, _ in points),
    )
