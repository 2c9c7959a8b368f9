"""What the commands print for people: tables, one function a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cropseg.models.card import Card
from cropseg.sites.check import CheckReport
from cropseg.sites.split import PARTS
from cropseg.transfer.plan import ALL, PIXEL_FOREST, PLANS

if TYPE_CHECKING:
    from cropseg.models.weight_report import WeightReport

_LEVEL_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def _table(*columns: str, title: str = "") -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_check(console: Console, report: CheckReport) -> None:
    """Show what a check found."""
    site, survey = report.site, report.survey
    console.print(
        f"{site.name}: {len(site.scenes)} scene(s), {len(site.bands)} bands, "
        f"{len(site.classes)} classes, GSD {site.gsd_m:.4g} m",
        markup=False,
    )
    if survey:
        table = _table("class", *PARTS, title="labelled pixels")
        for name, pixels in zip(
            site.classes.names, survey.class_pixels.T.tolist(), strict=True
        ):
            table.add_row(escape(name), *(f"{count:,}" for count in pixels))
        console.print(table)
        console.print(f"no data: {survey.nodata_share:.1%} of the pixels")
    for finding in report.findings:
        style = _LEVEL_STYLES[finding.level]
        text = escape(f"{finding.message} {finding.remedy}".strip())
        console.print(f"[{style}]{finding.level}[/] {finding.code}: {text}")
    console.print("ok" if report.is_ok else "not ok", style="bold")


def show_scores(console: Console, scores: dict[str, Any], part: str) -> None:
    """Show scores as `evaluate --json` gives them."""
    names = ("class", "IoU", "precision", "recall", "F1", "pixels")
    table = _table(*names, title=f"scores on the {part} part")
    for item in scores["classes"]:
        values = (_number(item[key]) for key in ("iou", "precision", "recall", "f1"))
        table.add_row(escape(item["name"]), *values, f"{item['num_pixels']:,}")
    console.print(table)
    console.print(
        f"mIoU {scores['miou']:.3f}, "
        f"overall accuracy {scores['overall_accuracy']:.3f}, "
        f"macro F1 {scores['macro_f1']:.3f}, {scores['num_pixels']:,} pixels"
    )


def show_run(console: Console, run: Any, *, every_variable: bool) -> None:
    """Show a finished run: its weights, its scores, where it lies."""
    report = run.read_weight_report()
    if every_variable:
        show_variables(console, report)
    show_weights(console, report.summarize())
    for part in ("val", "test"):
        if run.metrics[part]:
            show_scores(console, run.metrics[part], part)
    training = run.metrics["training"]
    if training["steps"]:
        console.print(
            f"{training['steps']} steps in {training['seconds']:.0f} s, "
            f"{'converged' if training['converged'] else 'not converged'}"
        )
    console.print(f"model: {run.model_path}", markup=False)


def show_variables(console: Console, report: WeightReport) -> None:
    """Show what happened to each variable."""
    table = _table("variable", "part", "action", "training", "before", "after")
    for row in report.rows:
        hashes = (row.hash_before, row.hash_after)
        name = escape(row.variable)
        table.add_row(name, row.part, row.action, row.training, *hashes)
    console.print(table)


def show_weights(console: Console, groups: list[dict[str, Any]]) -> None:
    """Show the weight report, variables with the same fate in one row."""
    table = _table("part", "action", "training", "changed", "variables", "numbers")
    table.title = "weights (--verbose and weights.json have each variable)"
    table.add_column("why", justify="left", overflow="fold")
    for group in groups:
        table.add_row(
            group["part"],
            group["action"],
            group["training"],
            group["changed"],
            str(group["variables"]),
            f"{group['parameters']:,}",
            escape(group["reason"]),
        )
    console.print(table)


def show_comparison(console: Console, summary: dict[str, Any], out_dir: Path) -> None:
    """Show the table of a comparison and its answer."""
    for budget in summary["budgets"]:
        table = _table(
            *("mode", "mIoU", "lowest", "highest", "draws", "seconds", "converged"),
            title=f"{summary['site']} with {budget['labels']}",
        )
        for item in budget["modes"]:
            converged = item["converged"]
            table.add_row(
                item["mode"],
                *(_number(item[key]) for key in ("miou_mean", "miou_low", "miou_high")),
                str(item["draws"]),
                _number(item["seconds_mean"], 1),
                "-" if converged is None else f"{converged} of {item['draws']}",
            )
        console.print(table)
        console.print(budget["answer"], markup=False)
    console.print(f"results: {out_dir}", markup=False)


def show_card(console: Console, card: Card) -> None:
    """Show the card of a model."""
    table = _table("what", title=f"a model of {card.site}")
    table.add_column("value", justify="left", overflow="fold")
    rows = {
        "classes": ", ".join(card.class_names),
        "bands": ", ".join(card.bands),
        "GSD": f"{card.gsd_m:.4g} m",
        "architecture": f"{card.architecture}, encoder {card.encoder}",
        "tiles": f"{card.tile_size} pixels, multiples of {card.tile_multiple}",
        "made by": card.lineage.mode,
        "from": card.lineage.source_site or "-",
        "labels": card.lineage.labels or "all of the training part",
        "seed": str(card.seed),
        "weights": card.weights_sha256[:12],
        "versions": ", ".join(f"{k} {v}" for k, v in card.versions.items()),
    }
    rows |= {f"mIoU on {part}": _number(s["miou"]) for part, s in card.scores.items()}
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    stages = _table("stage", "part", "stride", "layers")
    for stage in card.stages:
        stages.add_row(
            stage.name, stage.part, str(stage.stride), str(len(stage.layers))
        )
    console.print(stages)


def list_modes() -> list[dict[str, Any]]:
    """Return every mode as JSON values."""
    rows: list[dict[str, Any]] = [
        {
            "mode": plan.mode,
            "summary": plan.summary,
            "loaded": list(plan.loaded),
            "trained": list(plan.trained),
            "batch_norm": {
                part: {
                    "statistics": plan.batch_norm[part].statistics,
                    "affine": plan.batch_norm[part].affine,
                }
                for part in ALL
            },
        }
        for plan in PLANS.values()
    ]
    forest = "A random forest on the bands of single pixels; in `compare` only."
    return [*rows, {"mode": PIXEL_FOREST, "summary": forest}]


def show_modes(console: Console, rows: list[dict[str, Any]]) -> None:
    """Show the transfer modes."""
    table = _table("mode")
    for name in ("loaded", "trained"):
        table.add_column(name, justify="left")
    table.add_column("what it does", justify="left", overflow="fold")
    for row in rows:
        parts = ("+".join(row.get(key, ())) or "-" for key in ("loaded", "trained"))
        table.add_row(row["mode"], *parts, row["summary"])
    console.print(table)


def show_demo(console: Console, result: Any) -> None:
    """Show the comparison of the demo, and where to look."""
    show_comparison(console, result.summary, result.comparison_dir)
    console.print("look at:", style="bold")
    for path, what in result.list_sights():
        console.print(f"  {path}  {what}", markup=False)
