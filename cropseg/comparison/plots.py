"""The plot of a comparison: mIoU against labels, a line a mode.

Bars are 95 % intervals, or where there are too few test blocks or draws the lowest and
highest run. Baselines are dashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cropseg.comparison.summary.answer import write_labels
from cropseg.files import write_whole
from cropseg.sites.budget import Budget, parse_budget

Summary = Mapping[str, Any]

_COLORS: Final = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#7f3c8d", "#a5aa22", "#e73f74", "#1f3a5f", "#8c6d31", "#66a182"),
)
"""Of modes that reuse area 1; the first six after Okabe and Ito (2008), which readers
who are colour-blind can tell apart."""

_GREYS: Final = ("#222222", "#666666", "#8d6e63", "#9e9e9e")
"""Of baselines."""

_SPREAD: Final = 0.012
"""How far lines stand apart along the axis, so that no bar hides another."""


def plot_comparison(budgets: Sequence[Summary], title: str, path: Path) -> None:
    """Draw mean mIoU of each mode against labels, with its interval or range.

    With one budget, modes are listed from top to bottom, the best one first.

    Args:
        budgets: `budgets` of a summary, from small to large.
        title: Title of the plot.
        path: A PNG file. An SVG file of the same name is written beside it.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = _choose_styles(budgets)
    label = f"mIoU on the test blocks (bar: {_name_bars(budgets)})"
    if len(budgets) == 1:
        _draw_list(axes, budgets[0], styles)
        axes.set(xlabel=label)
    else:
        _draw_lines(axes, budgets, styles)
        axes.set(ylabel=label)
        if styles:  # none, where every run failed
            legend = figure.legend(loc="outside right upper", frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)
    # A name is no formula: without `parse_math` a `$` in it would raise.
    axes.set_title(title, loc="left", fontsize="medium", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    with write_whole(path) as part:
        figure.savefig(part, dpi=130, format="png")
    # Equal data give equal files, and text stays text.
    styled = mpl.rc_context({"svg.hashsalt": "cropseg", "svg.fonttype": "none"})
    with write_whole(path.with_suffix(".svg")) as part, styled:
        figure.savefig(part, format="svg", metadata={"Date": None})


def _name_bars(budgets: Sequence[Summary]) -> str:
    """Return what the bars are: of some modes, a failed run may leave a range alone."""
    intervals = {
        mode["interval"] is not None for item in budgets for mode in item["modes"]
    }
    if intervals == {True, False}:
        return "95 % interval, else lowest and highest run"
    return "95 % interval" if True in intervals else "lowest and highest run"


def _choose_styles(budgets: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """Return colour and line of each mode, in the order of the largest budget."""
    modes: dict[str, Summary] = {}
    for item in reversed(budgets):
        for mode in item["modes"]:
            modes.setdefault(mode["mode"], mode)
    styles: dict[str, dict[str, Any]] = {}
    colors, greys = 0, 0
    for name, mode in modes.items():
        if mode["is_baseline"]:
            color = _GREYS[greys % len(_GREYS)]
            greys += 1
        else:
            color = _COLORS[colors % len(_COLORS)]
            colors += 1
        styles[name] = {
            "color": color,
            "linestyle": "--" if mode["is_baseline"] else "-",
            "marker": "s" if mode["is_baseline"] else "o",
        }
    return styles


def _draw_lines(
    axes: Axes, budgets: Sequence[Summary], styles: Mapping[str, dict[str, Any]]
) -> None:
    parsed = [parse_budget(item["labels"]) for item in budgets]
    for index, (name, style) in enumerate(styles.items()):
        shift = 1 + _SPREAD * (index - (len(styles) - 1) / 2)
        found = [
            (budget.amount * shift, mode)
            for budget, item in zip(parsed, budgets, strict=True)
            for mode in item["modes"]
            if mode["mode"] == name
        ]
        axes.errorbar(
            [amount for amount, _ in found],
            [mode["miou_mean"] for _, mode in found],
            yerr=_measure_bars([mode for _, mode in found]),
            label=name,
            markersize=4,
            capsize=2.5,
            linewidth=1.4,
            elinewidth=0.9,
            **style,
        )
    amounts = [budget.amount for budget in parsed]
    axes.set_xscale("log")
    axes.set_xticks(amounts, [str(amount) for amount in amounts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=f"labelled {_name_unit(parsed[0])}")
    axes.grid(axis="y", color="0.9")


def _draw_list(
    axes: Axes, budget: Summary, styles: Mapping[str, dict[str, Any]]
) -> None:
    modes = budget["modes"]
    for place, mode in enumerate(modes):
        axes.errorbar(
            [mode["miou_mean"]],
            [place],
            xerr=_measure_bars([mode]),
            markersize=6,
            capsize=3,
            **styles[mode["mode"]],
        )
    names = [mode["mode"] for mode in modes]
    axes.set_yticks(range(len(modes)), names, parse_math=False)
    axes.set_ylim(max(len(modes), 1) - 0.5, -0.5)
    axes.set_ylabel(f"with {write_labels(parse_budget(budget['labels']))}")
    axes.grid(axis="x", color="0.9")


def _measure_bars(modes: Sequence[Summary]) -> list[list[float]]:
    """Return how far the bars reach below and above the means."""
    ends = [mode["interval"] or (mode["miou_low"], mode["miou_high"]) for mode in modes]
    means = [mode["miou_mean"] for mode in modes]
    pairs = list(zip(means, ends, strict=True))
    # An interval is rounded on its own, so it may miss the mean by a last digit.
    below = [max(0.0, mean - low) for mean, (low, _) in pairs]
    above = [max(0.0, high - mean) for mean, (_, high) in pairs]
    return [below, above]


def _name_unit(budget: Budget) -> str:
    return write_labels(Budget(amount=2, unit=budget.unit)).removeprefix("2 labelled ")
