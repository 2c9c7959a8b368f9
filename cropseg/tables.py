"""What the commands print for people: tables, one function a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cropseg.checks.findings import Finding
from cropseg.checks.report import CheckReport
from cropseg.models.card import Card
from cropseg.sites.budget import parse_budget
from cropseg.sites.split import PARTS
from cropseg.transfer.describe import summarize_axes

if TYPE_CHECKING:
    from cropseg.models.weight_report import WeightReport

_MAX_FILES = 20
_NUM_BARS = 16
_BARS = " ▁▂▃▄▅▆▇█"
_LEVEL_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def _table(*columns: str, title: str = "", fold_first: bool = False) -> Table:
    """Return a table. With `fold_first` only names get narrow, and no number."""
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    table.add_column(columns[0], overflow="fold" if fold_first else "ellipsis")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=fold_first)
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_check(console: Console, report: CheckReport) -> None:
    """Show what a check found: files, bands, classes, then the findings."""
    site = report.site
    if site is not None:
        console.print(
            f"{site.name}: {len(site.scenes)} scene(s), {len(site.bands)} bands, "
            f"{len(site.classes)} classes, GSD {site.gsd_m:.4g} m, "
            f"{site.scenes[0].grid.crs.to_string()}",
            markup=False,
        )
        _show_files(console, report)
        _show_bands(console, report)
        _show_classes(console, report)
        _show_distance(console, report)
    if report.survey:
        console.print(f"no data: {report.survey.nodata_share:.1%} of the pixels")
    show_findings(console, report.findings)
    console.print("ok" if report.is_ok else "not ok", style="bold")


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Show findings, each on a line of its own."""
    for finding in findings:
        style = _LEVEL_STYLES[finding.level]
        text = escape(f"{finding.message} {finding.remedy}".strip())
        console.print(f"[{style}]{finding.level}[/] {finding.code}: {text}")


def _show_files(console: Console, report: CheckReport) -> None:
    names = ("role", "rows", "columns", "GSD m", "bands", "type", "MB")
    table = _table("file", *names, fold_first=True)
    for file in report.files[:_MAX_FILES]:
        header = file.header
        details = [""] * 6
        if header is not None:
            details = [
                f"{header.grid.height:,}",
                f"{header.grid.width:,}",
                f"{header.grid.gsd_m:.4g}" if header.grid.crs else "-",
                str(header.num_bands),
                header.file_dtype,
                f"{header.size_bytes / 1e6:,.2f}",
            ]
        table.add_row(escape(Path(file.path).name), file.role, *details)
    console.print(table)
    if len(report.files) > _MAX_FILES:
        console.print(f"and {len(report.files) - _MAX_FILES} more files")


def _show_bands(console: Console, report: CheckReport) -> None:
    if not report.bands:
        return
    distances = {}
    if report.distance:
        distances = {
            band.name: f"{band.distance:.2f} {band.level}"
            for band in report.distance.bands.distances
        }
    names = ["band", "lowest", "mean", "std", "highest"]
    names += ["distance"] if distances else []
    table = _table(*names, fold_first=True)
    # To the left: aligned to the right, the empty bars of a tail would be cut off.
    table.add_column("histogram\n0.1% to 99.9%", no_wrap=True)
    for band in report.bands:
        row = [f"{v:,.5g}" for v in (band.lowest, band.mean, band.std, band.highest)]
        if distances:
            row.append(distances.get(band.name, "-"))
        table.add_row(escape(band.name), *row, _draw_bars(band.bin_shares))
    console.print(table)


def _draw_bars(shares: Sequence[float]) -> str:
    """Return a histogram in sixteen characters."""
    step = len(shares) // _NUM_BARS
    sums = [sum(shares[i : i + step]) for i in range(0, len(shares), step)]
    highest = max(sums) or 1.0
    return "".join(_BARS[round(s / highest * (len(_BARS) - 1))] for s in sums)


def _show_classes(console: Console, report: CheckReport) -> None:
    rows = report.list_classes()
    if not rows or report.survey is None:
        return
    has_split = report.site is not None and report.site.split is not None
    parts, title = (PARTS, "labels in each part") if has_split else (("all",), "labels")
    columns = [column for part in parts for column in (f"{part} px", "ha")]
    table = _table("class", *columns, title=title, fold_first=True)
    for item in rows:
        cells = []
        for part in parts:
            cells += [f"{item[part]['pixels']:,}", f"{item[part]['ha']:,.1f}"]
        table.add_row(escape(item["name"]), *cells)
    console.print(table)
    if not report.survey.fields:
        return
    table = _table("class", *PARTS, title="fields in each part", fold_first=True)
    for item in rows:
        cells = [f"{item[part]['fields']:,}" for part in PARTS]
        table.add_row(escape(item["name"]), *cells)
    console.print(table)


def _show_distance(console: Console, report: CheckReport) -> None:
    if not report.distance:
        return
    ratio = f"GSD ratio {report.distance.gsd_ratio:.3g}"
    console.print(f"against {report.distance.reference}: {ratio}", markup=False)
    if not report.distance.class_shares:
        return
    names = ("there", "here", "change")
    table = _table("class", *names, title="class shares", fold_first=True)
    for item in report.distance.class_shares.changes:
        shares = (f"{item.source_share:.1%}", f"{item.target_share:.1%}")
        table.add_row(escape(item.name), *shares, f"{item.change:+.1%}")
    console.print(table)


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
    if scores.get("ece") is not None:
        console.print(f"expected calibration error {scores['ece']:.3f}")
    if scores.get("fields"):
        accuracy, amount = scores["fields"]["accuracy"], scores["fields"]["num_fields"]
        console.print(f"field accuracy {accuracy:.3f}, {amount:,} whole fields")


def show_run(console: Console, run: Any, *, every_variable: bool) -> None:
    """Show a finished run: its weights, its scores, where it lies.

    A forest has neither weights nor a model.
    """
    if run.model_path.exists():
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
    if "normalization" in training:
        _show_normalization(console, training["normalization"])
    if run.model_path.exists():
        console.print(f"model: {run.model_path}", markup=False)


def _show_normalization(console: Console, found: dict[str, Any]) -> None:
    """Show what was chosen, and what each choice scores without training."""
    scores = ", ".join(
        f"{choice} {'-' if score is None else f'{score:.3f}'}"
        for choice, score in found["zero_shot_miou"].items()
    )
    console.print(
        f"normalisation {found['choice']}; mIoU on the labels it may see, untrained: "
        f"{scores}"
    )


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
    """Show the tables of a comparison, its answer, and what the intervals cover."""
    oracle = " and an oracle" if summary["validation"] == "oracle" else ""
    for budget in summary["budgets"]:
        has_intervals = any(item["interval"] for item in budget["modes"])
        ends = ("95 % from", "to") if has_intervals else ("lowest", "highest")
        table = _table(
            *("mode", "mIoU", *ends, "known", "runs", "seconds", "converged"),
            title=f"{summary['site']} with {budget['labels']}{oracle}",
            fold_first=True,
        )
        for item in budget["modes"]:
            converged = item["converged"]
            bounds = (item["miou_low"], item["miou_high"])
            if has_intervals:  # under its heading, a range would pass for one
                bounds = item["interval"] or (None, None)
            known = item["known_miou"]
            table.add_row(
                escape(item["mode"]),
                _number(item["miou_mean"]),
                *map(_number, bounds),
                _number(known["mean"] if known else None),
                str(item["runs"]),
                _number(item["seconds_mean"], 1),
                "-" if converged is None else f"{converged} of {item['runs']}",
            )
        console.print(table)
        for text in (budget["answer"], *budget["notes"]):
            console.print(text, markup=False)
    _show_efficiency(console, summary)
    _show_method(console, summary["method"])
    console.print(f"results: {out_dir}", markup=False)
    console.print(f"report: {out_dir / 'report.html'}", markup=False)


def _show_efficiency(console: Console, summary: Mapping[str, Any]) -> None:
    """Show how many labels each mode needs to be as good as scratch with most."""
    found = summary["label_efficiency"]
    if not found:
        return
    unit = parse_budget(summary["budgets"][0]["labels"]).unit
    has_intervals = summary["method"]["interval"] != "range"
    table = _table(
        *("mode", unit, *(("95 % from", "to") if has_intervals else ())),
        title=f"labels to reach {found[0]['target']}, mIoU "
        f"{found[0]['target_miou']:.3f}",
        fold_first=True,
    )
    for item in found:
        labels = "not reached"
        if item["reached"]:
            labels = f"{item['labels']:.3g}{' or fewer' if item['is_at_most'] else ''}"
        ends = ("-", "-")
        if item["has_interval"]:
            ends = (
                f"{item['low']:.3g}" if item["low"] else "fewer",
                f"{item['high']:.3g}" if item["high"] else "more",
            )
        table.add_row(escape(item["mode"]), labels, *(ends if has_intervals else ()))
    console.print(table)


def _show_method(console: Console, method: Mapping[str, Any]) -> None:
    """Show what the intervals cover, and what they do not."""
    for title, key in (("covers", "covers"), ("does not cover", "does_not_cover")):
        console.print(f"[bold]{title}[/]: {escape(' '.join(method[key]))}")


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


def show_modes(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the transfer modes: what they are, then what they do to each part."""
    for row in rows:
        console.print(f"[bold]{escape(row['mode'])}[/]: {escape(row['summary'])}")
    table = Table(box=None, pad_edge=False)
    table.add_column("mode", overflow="fold", no_wrap=True)
    for name in ("start", "trained", "batch norm", "training"):
        table.add_column(name, overflow="fold")
    for row in rows:
        axes = summarize_axes(row)
        table.add_row(escape(row["mode"]), *map(escape, axes.values()))
    console.print(table)
    console.print(
        "enc, dec, head: the parts. frozen: statistics and scales are kept; "
        "inference: statistics are kept; running: they follow the batches; "
        "recomputed: they are measured anew. `cropseg modes MODE` tells all of one; "
        "MODE may be a YAML file.",
        markup=False,
    )


def show_plan(console: Console, mode: str, lines: Sequence[str]) -> None:
    """Show what one mode does, in words."""
    console.print(mode, style="bold", markup=False)
    for line in lines:
        console.print(line, markup=False)


def show_demo(console: Console, result: Any) -> None:
    """Show the comparison of the demo, and where to look."""
    show_comparison(console, result.summary, result.comparison_dir)
    console.print("look at:", style="bold")
    for path, what in result.list_sights():
        console.print(f"  {path}  {what}", markup=False)
