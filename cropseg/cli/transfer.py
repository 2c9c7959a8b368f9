"""`cropseg transfer`: a model of one site, reused for another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cropseg.cli.options import (
    AllowRemote,
    FitOptions,
    ForeignOptions,
    Manifest,
    Out,
    Overwrite,
    ReuseChoices,
    SourceManifest,
    open_areas,
)
from cropseg.cli.show import Output
from cropseg.errors import UsageError
from cropseg.files import check_out_dir
from cropseg.transfer.modes import PIXEL_FOREST, get_plan
from cropseg.transfer.prepare import prepare_transfer
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions


def transfer(
    manifest: Manifest,
    *,
    mode: Annotated[
        str, typer.Option(help="A mode that `cropseg modes` lists, or a YAML file.")
    ],
    out: Out,
    from_: Annotated[
        Path | None, typer.Option("--from", help="The model of the other area.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Refit a mode of this comparison on all labels."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="A budget, as 4tiles.")] = None,
    draw: Annotated[int, typer.Option(help="Which draw of the budget.")] = 0,
    source: SourceManifest = None,
    reuse: ReuseChoices,
    foreign: ForeignOptions,
    fit: FitOptions,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Transfer a model to another site."""
    if mode != PIXEL_FOREST:
        get_plan(mode)
    settings = fit.collect_settings()
    check_out_dir(out)
    if (from_ is None) == (like is None):
        raise UsageError("Give either --from MODEL or --like COMPARISON.")
    site, source_site = open_areas(manifest, source, allow_remote)
    if like is not None:
        if settings or labels or draw or reuse.read_options() != ReuseOptions():
            raise UsageError(
                "--like takes all settings from the comparison and all labels of the "
                "site; leave the other options out."
            )
        from cropseg.comparison.refit import refit_like

        with output.open_progress() as show_progress:
            run = refit_like(
                site,
                like,
                mode=mode,
                out_dir=out,
                description=foreign.read_description(reuse),
                source_site=source_site,
                overwrite=overwrite,
                show_progress=show_progress,
            )
        output.show_run(run)
        return
    start = find_source(from_, description=foreign.read_description(reuse), site=site)
    what: dict[str, Any] = {"labels": labels, "draw": draw}
    if mode == PIXEL_FOREST:
        from cropseg.comparison.forest import train_forest

        run = train_forest(
            site,
            start.card,
            out_dir=out,
            reuse=reuse.read_options(),
            overwrite=overwrite,
            **what,
            **settings,
        )
        output.show_run(run)
        return
    job = prepare_transfer(
        site,
        start,
        mode=mode,
        reuse=reuse.read_options(),
        source_site=source_site,
        **what,
        **settings,
    )
    check_out_dir(out, job.record, overwrite=overwrite)
    from cropseg.transfer.transfer import run_transfer

    with output.open_progress() as show_progress:
        run = run_transfer(job, out, overwrite=overwrite, show_progress=show_progress)
    output.show_run(run)
