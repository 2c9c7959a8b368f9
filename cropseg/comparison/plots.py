"""The plot of a comparison: mIoU against labels, a line a mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cropseg.comparison.results import BASELINES
from cropseg.files import write_whole
from cropseg.sites.budget import Budget, parse_budget


def plot_comparison(
    summaries: Sequence[Mapping[str, Any]], title: str, path: Path
) -> None:
    """Draw mean mIoU of each mode against labels, with the range over the draws.

    Args:
        summaries: What `summarize` returned.
        title: Title of the plot.
        path: A PNG file.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    budgets = [parse_budget(item["labels"]) for item in summaries]
    modes = sorted({mode["mode"] for item in summaries for mode in item["modes"]})
    for index, mode in enumerate(modes):
        _draw_mode(axes, summaries, budgets, mode, offset=index - len(modes) / 2)
    amounts = [budget.amount for budget in budgets]
    axes.set_xscale("log")
    axes.set_xticks(amounts, [str(amount) for amount in amounts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=f"labelled {budgets[0].unit}", ylabel="mIoU on the test part")
    axes.set_title(title)
    axes.grid(axis="y", color="0.9")
    if modes:  # none, where every run diverged
        figure.legend(loc="outside right center", frameon=False)
    with write_whole(path) as part:
        figure.savefig(part, dpi=130)


def _draw_mode(
    axes: Any,
    summaries: Sequence[Mapping[str, Any]],
    budgets: Sequence[Budget],
    mode: str,
    *,
    offset: float,
) -> None:
    found = [
        (budget.amount * (1 + 0.012 * offset), item)  # so that no bar hides another
        for budget, summary in zip(budgets, summaries, strict=True)
        for item in summary["modes"]
        if item["mode"] == mode
    ]
    means = [item["miou_mean"] for _, item in found]
    spread = [
        [item["miou_mean"] - item["miou_low"] for _, item in found],
        [item["miou_high"] - item["miou_mean"] for _, item in found],
    ]
    axes.errorbar(
        [x for x, _ in found],
        means,
        yerr=spread,
        label=mode,
        marker="o",
        markersize=4,
        capsize=3,
        linestyle="--" if mode in BASELINES else "-",
    )
