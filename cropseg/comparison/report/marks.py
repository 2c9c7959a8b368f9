"""An interval as it stands in a row of a table."""

from __future__ import annotations

from markupsafe import Markup

from cropseg.comparison.report.chart import Axis
from cropseg.comparison.report.styles import Style


def draw_bar(
    value: float,
    bar: tuple[float, float] | None,
    axis: Axis,
    *,
    style: Style | None = None,
    zero: float | None = None,
) -> Markup:
    """Return an interval as it stands in a row of a table, beside its numbers.

    Args:
        value: Where the marker is.
        bar: The ends of the interval.
        axis: Equal in all rows.
        style: The mode; None draws a plain marker.
        zero: A value to draw a line at.
    """
    width = 140

    def place(number: float) -> float:
        return round(6 + (width - 12) * min(max(axis.place(number), 0), 1), 1)

    marks = []
    if bar:
        marks.append(
            Markup('<path class="line" d="M{l} 9H{r}M{l} 5v8M{r} 5v8"/>').format(
                l=place(bar[0]), r=place(bar[1])
            )
        )
    if style:
        marks.append(style.draw_marker(place(value), 9, 3))
    else:
        marks.append(
            Markup('<circle class="mark" cx="{}" cy="9" r="3"/>').format(place(value))
        )
    group = style.group if style else Markup('class="series plain"')
    rule = Markup("")
    if zero is not None:
        rule = Markup('<path class="rule" d="M{} 0V18"/>').format(place(zero))
    return Markup(
        '<svg class="bar" viewBox="0 0 {w} 18" width="{w}" height="18" '
        'aria-hidden="true">{}<g {}>{}</g></svg>'
    ).format(rule, group, Markup("").join(marks), w=width)
