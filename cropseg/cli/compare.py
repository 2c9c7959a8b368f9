"""`cropseg compare`: which way of reusing a model wins."""

from __future__ import annotations

from typing import Annotated

import typer

from cropseg import tables
from cropseg.cli.options import (
    AllowRemote,
    FitOptions,
    ForeignOptions,
    From,
    Manifest,
    Out,
    Overwrite,
    ReuseChoices,
    SourceManifest,
)
from cropseg.cli.show import Output, console
from cropseg.comparison.cells import COMPARISON_RECORD, MODES, plan_cells, split_modes
from cropseg.comparison.prepare import prepare_comparison
from cropseg.files import check_out_dir
from cropseg.sites.budget import parse_budgets
from cropseg.sites.site import open_site
from cropseg.transfer.source import find_source


def compare(
    manifest: Manifest,
    *,
    from_: From,
    modes: Annotated[
        str,
        typer.Option(help=f"Some of {','.join(MODES)}, and YAML files with plans."),
    ],
    labels: Annotated[str, typer.Option(help="Budgets, as 4tiles,16tiles.")],
    out: Out,
    draws: Annotated[int, typer.Option(help="Random choices of the labels.")] = 3,
    source: SourceManifest = None,
    reuse: ReuseChoices,
    foreign: ForeignOptions,
    fit: FitOptions,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Compare modes on equal terms at several budgets of labels."""
    settings = fit.collect_settings()
    check_out_dir(out)
    names, budgets = split_modes(modes), labels.split(",")
    plan_cells(names, parse_budgets(budgets), draws, seed=0)
    options, hosts = reuse.read_options(), allow_remote or ()
    site = open_site(manifest, allow_remote=hosts)
    job = prepare_comparison(
        site,
        find_source(from_, description=foreign.read_description(reuse), site=site),
        modes=names,
        labels=budgets,
        draws=draws,
        reuse=options,
        source_site=open_site(source, allow_remote=hosts) if source else None,
        **settings,
    )
    check_out_dir(out, job.record, overwrite=overwrite, record=COMPARISON_RECORD)
    from cropseg.comparison.compare import run_comparison

    with output.open_progress() as show_progress:
        comparison = run_comparison(
            job, out, overwrite=overwrite, show_progress=show_progress
        )
    summary = comparison.summary
    output.show(
        summary, lambda: tables.show_comparison(console, summary, comparison.out_dir)
    )
