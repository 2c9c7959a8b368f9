"""How a mode is told from another: by colour, marker and dash, in every figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

NUM_COLORS: Final = 10
"""Colours of `report.css`, in a light and a dark form."""

_DASHES: Final = ("6 3", "2 3", "9 3 2 3")
_LONG_DASH: Final = "14 2"
_TURN: Final = 2 * math.pi


def _make_star(
    num_points: int, inner: float, start: float
) -> list[tuple[float, float]]:
    """Return the corners of a polygon, every other one at `inner` of the radius."""
    return [
        (
            (1 if index % 2 == 0 else inner)
            * math.cos(start + _TURN * index / num_points),
            (1 if index % 2 == 0 else inner)
            * math.sin(start + _TURN * index / num_points),
        )
        for index in range(num_points)
    ]


_UP: Final = -_TURN / 4
_SHAPES: Final[tuple[Sequence[tuple[float, float]], ...]] = (
    (),  # a circle
    ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    ((0, -1.15), (1.05, 0.8), (-1.05, 0.8)),
    ((0, -1.25), (1.05, 0), (0, 1.25), (-1.05, 0)),
    ((0, 1.15), (1.05, -0.8), (-1.05, -0.8)),
    [(x * 1.3, y * 1.3) for x, y in _make_star(10, 0.45, _UP)],
    [(x * 1.3, y * 1.3) for x, y in _make_star(8, 0.35, _UP)],
    [(x * 1.1, y * 1.1) for x, y in _make_star(6, 1, _UP)],
    ((-1, -1), (1, 1), (1, -1), (-1, 1)),
    ((0.95, 0), (-0.8, -1.1), (-0.8, 1.1)),
    ((-0.95, 0), (0.8, -1.1), (0.8, 1.1)),
)
"""Corners of the markers, for a radius of 1; y points down."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a mode looks."""

    mode: str
    """Its name."""
    index: int
    """Its number, by which the page lights up one mode in all figures."""
    is_baseline: bool
    """Baselines have open markers and dashed lines."""
    dash: str
    """The dashes of its line, empty for a solid one."""

    @property
    def group(self) -> Markup:
        """Return the attributes of the group that all its marks stand in."""
        kind = " base" if self.is_baseline else ""
        return Markup('class="series c{}{}" data-series="{}"').format(
            self.index % NUM_COLORS, kind, self.index
        )

    def draw_marker(self, x: float, y: float, radius: float = 4.5) -> Markup:
        """Return its marker at a place of a figure."""
        corners = _SHAPES[self.index % len(_SHAPES)]
        if not corners:
            return Markup('<circle class="mark" cx="{}" cy="{}" r="{}"/>').format(
                round(x, 1), round(y, 1), radius
            )
        path = "L".join(
            f"{x + radius * dx:.1f} {y + radius * dy:.1f}" for dx, dy in corners
        )
        return Markup('<path class="mark" d="M{}Z"/>').format(path)

    def draw_sign(self) -> Markup:
        """Return its line and marker as they stand in a legend."""
        return Markup(
            '<svg class="sign" viewBox="0 0 34 14" width="34" height="14" '
            'aria-hidden="true"><g {}><path class="line" stroke-dasharray="{}" '
            'd="M1 7H33"/>{}</g></svg>'
        ).format(self.group, self.dash, self.draw_marker(17, 7))


def choose_styles(modes: Mapping[str, Any]) -> dict[str, Style]:
    """Give every mode its style.

    Args:
        modes: For each mode, in the order of the legend, whether it is a baseline.
    """
    styles: dict[str, Style] = {}
    for index, (mode, is_baseline) in enumerate(modes.items()):
        num_before = sum(style.is_baseline for style in styles.values())
        dash = _DASHES[num_before % len(_DASHES)] if is_baseline else ""
        if not is_baseline and index >= NUM_COLORS:
            dash = _LONG_DASH  # a colour that was there before
        styles[mode] = Style(
            mode=mode, index=index, is_baseline=bool(is_baseline), dash=dash
        )
    return styles
