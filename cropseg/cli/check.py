"""`cropseg check`: whether a site can be trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cropseg import tables
from cropseg.checks.check import check_manifest
from cropseg.checks.findings import Finding, sort_findings
from cropseg.checks.page import write_page
from cropseg.checks.reference import Reference, describe_site
from cropseg.checks.report import CheckReport
from cropseg.checks.similarity import BandSummary
from cropseg.cli.options import AllowRemote, Manifest, Seed, TileSize
from cropseg.cli.show import Output, console, errors
from cropseg.errors import ModelError, UsageError
from cropseg.models.card import Card, fit_site_to_card, read_card
from cropseg.sites.site import open_site
from cropseg.training.settings import TrainSettings


def check(
    manifest: Manifest,
    *,
    model: Annotated[
        Path | None, typer.Option(help="Say also how far this model's area is.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Say also how far the site of this manifest is."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as a page with pictures.")
    ] = None,
    tile_size: TileSize = None,
    allow_remote: AllowRemote = None,
    output: Output,
    seed: Seed = None,
) -> None:
    """Read every pixel of a site and say what stands in the way of a training."""
    del seed
    if model and source:
        raise UsageError("Give --model or --source, not both.")
    if html and html.suffix != ".html":
        raise UsageError(f"--html is a file that ends in .html; got {html}.")
    if tile_size is not None and tile_size < 1:
        raise UsageError(f"--tile-size is {tile_size}; expected 1 pixel or more.")
    card = read_card(model) if model else None
    size = tile_size or (card.tile_size if card else TrainSettings.tile_size)
    hosts = allow_remote or ()
    reference = None
    if card:
        reference = _describe_card(card)
    elif source:
        reference = describe_site(open_site(source, allow_remote=hosts), size)
    report = check_manifest(
        manifest, tile_size=size, reference=reference, allow_remote=hosts
    )
    if card:
        report = _check_fit(report, card)
    if html:
        write_page(report, html)
    output.show(report.to_json(), lambda: tables.show_check(console, report))
    if output.quiet and not output.as_json:
        tables.show_findings(errors, [f for f in report.findings if f.level == "error"])
    if not report.is_ok:
        raise typer.Exit(3)


def _describe_card(card: Card) -> Reference:
    bands = zip(card.bands, card.band_mean, card.band_std, strict=True)
    return Reference(
        name=f"the model of {card.site}",
        bands=tuple(BandSummary(name=n, mean=mean, std=std) for n, mean, std in bands),
        class_pixels={item.name: item.train_pixels for item in card.classes},
        gsd_m=card.gsd_m,
        sensor=card.sensor,
        units=card.units,
        derived=tuple(card.derived),
    )


def _check_fit(report: CheckReport, card: Card) -> CheckReport:
    """Add what makes the model unfit that no other finding says."""
    if report.site is None or not report.is_ok:
        return report
    try:
        fit_site_to_card(report.site, card)
    except ModelError as error:
        finding = Finding.from_error(error, "model-misfit")
        return replace(report, findings=sort_findings([finding, *report.findings]))
    return report
