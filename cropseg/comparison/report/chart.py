"""A small chart as SVG that stands in a page: text is text, and names are escaped.

Colours and fonts come from the page's style, so that a chart is light or dark with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from markupsafe import Markup

from cropseg.comparison.report.styles import Style
from cropseg.comparison.report.values import shorten

Point = tuple[float, float]

_STEPS: Final = (1, 2, 2.5, 5, 10)
_CHAR_PX: Final = 7.2  # of a bold 12 px sans serif, on average
_LINE_PX: Final = 15
_GAP_PX: Final = 9
_FEW_TICKS: Final = 3
_SPREAD: Final = 0.08


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: where values lie, and what is written beside it."""

    label: str
    """What it shows, with its unit."""
    low: float
    """Value at its start."""
    high: float
    """Value at its end."""
    ticks: tuple[tuple[float, str], ...]
    """Values with a tick, and their text."""
    is_log: bool = False
    """Whether equal ratios are equally far apart."""

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 at the start to 1 at the end."""
        low, high = self._scale(self.low), self._scale(self.high)
        return (self._scale(value) - low) / (high - low)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def make_axis(
    values: Iterable[float], label: str, *, num_ticks: int = 5, digits: int = 2
) -> Axis:
    """Return a linear axis with round ticks that holds all values.

    Args:
        values: At least one.
        label: What it shows, with its unit.
        num_ticks: About how many ticks it has.
        digits: Decimals of their texts, more where two would be equal.
    """
    found = list(values)
    low, high = min(found), max(found)
    pad = (high - low) * _SPREAD or 0.05 * (abs(high) or 1.0)
    low, high = low - pad, high + pad
    rough = (high - low) / num_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * item for item in _STEPS if power * item >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(digits, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if step < 1 and round(step, digits) != round(step, digits + 3):
        digits += 1  # as 0.025
    ticks = tuple(
        (index * step, f"{index * step:.{digits}f}".replace("-", "\N{MINUS SIGN}"))
        for index in range(first, last + 1)
    )
    return Axis(label=label, low=low, high=high, ticks=ticks)


def make_log_axis(values: Iterable[float], label: str) -> Axis:
    """Return a logarithmic axis that holds all values, which are above 0."""
    found = list(values)
    low, high = min(found), max(found)
    pad = max((high / low) ** _SPREAD, 1.15)
    low, high = low / pad, high * pad
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    texts: tuple[tuple[float, str], ...] = ()
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        texts = tuple((tick, f"{tick:,.6g}") for tick in ticks if low <= tick <= high)
        if len(texts) >= _FEW_TICKS:
            break
    else:  # less than a factor of three
        texts = make_axis(found, label, num_ticks=4, digits=0).ticks
    texts = tuple(item for item in texts if low <= item[0] <= high)
    return Axis(label=label, low=low, high=high, ticks=texts, is_log=True)


@dataclass(kw_only=True)
class Chart:
    """A chart that is drawn mark by mark."""

    width: int
    """In pixels, as it is shown where there is room."""
    height: int
    """In pixels."""
    x: Axis
    """The horizontal axis."""
    y: Axis
    """The vertical axis."""
    alt: str
    """What it shows, in words, for those who do not see it."""
    right_px: float = 12
    """Room on the right, for names at the end of lines."""
    marks: list[Markup] = field(default_factory=list)
    """What was drawn."""
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Left, top, right and bottom of what no name may cover."""

    @property
    def left_px(self) -> float:
        """Return the room on the left, for the axis and its texts."""
        longest = max((len(text) for _, text in self.y.ticks), default=0)
        return longest * _CHAR_PX + 28

    @property
    def bottom_px(self) -> float:
        """Return the room at the bottom."""
        return 40

    def place(self, point: Point) -> Point:
        """Return where a point of values lies, in pixels."""
        width = self.width - self.left_px - self.right_px
        height = self.height - 10 - self.bottom_px
        return (
            self.left_px + width * self.x.place(point[0]),
            10 + height * (1 - self.y.place(point[1])),
        )

    def add(self, style: Style | None, *marks: Markup) -> None:
        """Add marks, those of a mode in a group of its own."""
        inner = Markup("").join(marks)
        if style is not None:
            inner = Markup("<g {}>{}</g>").format(style.group, inner)
        self.marks.append(inner)

    def draw_line(self, points: Sequence[Point], dash: str = "") -> Markup:
        """Return a line through points in pixels."""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        return Markup('<path class="line" stroke-dasharray="{}" d="M{}"/>').format(
            dash, path
        )

    def draw_rule(self, start: Point, end: Point) -> Markup:
        """Return a thin dashed line between two points of values."""
        (x1, y1), (x2, y2) = self.place(start), self.place(end)
        return Markup('<path class="rule" d="M{} {}L{} {}"/>').format(
            *(round(value, 1) for value in (x1, y1, x2, y2))
        )

    def draw_text(
        self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = ""
    ) -> Markup:
        """Return a text at a place in pixels."""
        return Markup(
            '<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>'
        ).format(kind, round(x, 1), round(y, 1), anchor, text)

    def add_name(self, style: Style, point: Point) -> None:
        """Write a mode's name beside its marker, where there is room for it.

        Args:
            style: The mode.
            point: Its marker, in pixels.
        """
        text, (x, y) = shorten(style.mode, 18), point
        width = len(text) * _CHAR_PX
        places = [
            (x + _GAP_PX, y + 4, "start", x + _GAP_PX),
            (x - _GAP_PX, y + 4, "end", x - _GAP_PX - width),
            (x, y - 9, "middle", x - width / 2),
            (x, y + 18, "middle", x - width / 2),
            (x + _GAP_PX, y - 7, "start", x + _GAP_PX),
            (x + _GAP_PX, y + 15, "start", x + _GAP_PX),
            (x - _GAP_PX, y - 7, "end", x - _GAP_PX - width),
            (x - _GAP_PX, y + 15, "end", x - _GAP_PX - width),
        ]
        for text_x, text_y, anchor, left in places:
            box = (left, text_y - 10, left + width, text_y + 3)
            if self._is_free(box):
                self.taken.append(box)
                name = self.draw_text(text_x, text_y, text, anchor=anchor, kind="name")
                self.add(style, name)
                return

    def _is_free(self, box: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = box
        inside = left >= self.left_px and right <= self.width and top >= 0
        if not inside or bottom > self.height - self.bottom_px:
            return False
        return not any(
            left < other[2]
            and other[0] < right
            and top < other[3]
            and other[1] < bottom
            for other in self.taken
        )

    def render(self) -> Markup:
        """Return the chart as SVG."""
        return Markup(
            '<svg class="chart" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
            'role="img" aria-label="{alt}">{axes}{marks}</svg>'
        ).format(
            w=self.width,
            h=self.height,
            alt=self.alt,
            axes=self._draw_axes(),
            marks=Markup("").join(self.marks),
        )

    def _draw_axes(self) -> Markup:
        left, right = self.left_px, self.width - self.right_px
        top, bottom = 10, self.height - self.bottom_px
        marks = []
        for value, text in self.y.ticks:
            _, y = self.place((self.x.low, value))
            marks += [
                Markup('<path class="grid" d="M{} {y}H{}"/>').format(
                    round(left, 1), round(right, 1), y=round(y, 1)
                ),
                self.draw_text(left - 5, y + 4, text, anchor="end"),
            ]
        last = -math.inf
        for value, text in self.x.ticks:
            x, _ = self.place((value, self.y.low))
            marks.append(
                Markup('<path class="axis" d="M{} {}v4"/>').format(round(x, 1), bottom)
            )
            width = len(text) * _CHAR_PX
            if x - width / 2 > last + 4:  # else two texts would touch
                marks.append(self.draw_text(x, bottom + 16, text, anchor="middle"))
                last = x + width / 2
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        marks += [
            Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(
                round(left, 1), top, bottom, round(right, 1)
            ),
            self.draw_text(middle_x, self.height - 6, self.x.label, anchor="middle"),
            Markup(
                '<text transform="translate(11 {}) rotate(-90)" '
                'text-anchor="middle">{}</text>'
            ).format(round(middle_y, 1), self.y.label),
        ]
        return Markup("").join(marks)


def spread_out(heights: Sequence[float], gap: float = _LINE_PX) -> list[float]:
    """Move heights apart as little as needed for lines of text.

    Args:
        heights: In pixels, in any order.
        gap: Least distance between two, in pixels.

    Returns:
        New heights, in the order given.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[tuple[float, int]] = []  # mean of the wanted places, and how many
    for index in order:
        groups.append((heights[index], 1))
        while len(groups) > 1:
            (upper, num_upper), (lower, num_lower) = groups[-2:]
            if lower - upper >= gap * (num_upper + num_lower) / 2:
                break
            num = num_upper + num_lower
            mean = (upper * num_upper + lower * num_lower) / num
            groups[-2:] = [(mean, num)]
    placed = [
        mean + gap * (place - (num - 1) / 2)
        for mean, num in groups
        for place in range(num)
    ]
    result = [0.0] * len(heights)
    for index, height in zip(order, placed, strict=True):
        result[index] = height
    return result
