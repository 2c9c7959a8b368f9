"""`cropseg compare`: which way of reusing a model wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cropseg import tables
from cropseg.cli.experiment import EXPERIMENT_KEYS, DesignOptions, Experiment
from cropseg.cli.options import (
    AllowRemote,
    FitOptions,
    ForeignOptions,
    Out,
    Overwrite,
    ReuseChoices,
    SourceManifest,
    open_areas,
)
from cropseg.cli.show import Output, console
from cropseg.comparison.design import check_comparison
from cropseg.comparison.estimate import ExperimentPlan, plan_experiment
from cropseg.comparison.prepare import prepare_comparison
from cropseg.errors import PartialFailureError
from cropseg.files import check_out_dir
from cropseg.transfer.source import find_source


def compare(
    manifest: Annotated[
        Path | None, typer.Argument(help="Manifest of a site, a YAML file.")
    ] = None,
    *,
    from_: Annotated[
        Path | None, typer.Option("--from", help="The model of the other area.")
    ] = None,
    out: Out,
    design: DesignOptions,
    source: SourceManifest = None,
    reuse: ReuseChoices,
    foreign: ForeignOptions,
    fit: FitOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and write nothing.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Logs for TensorBoard in each run.")
    ] = False,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Compare modes on equal terms at several budgets of labels.

    All of it may stand in a file for --config. Called again, it does what is missing.
    """
    named = {"manifest": manifest, "from": from_, "source": source}
    given = fit.collect_settings(EXPERIMENT_KEYS, **named, **design.list_given())
    check_out_dir(out)
    experiment = Experiment.from_options(given)
    options = reuse.read_options()
    site, source_site = open_areas(experiment.manifest, experiment.source, allow_remote)
    description = foreign.read_description(reuse)
    job = prepare_comparison(
        site,
        find_source(experiment.model, description=description, site=site),
        experiment.design,
        reuse=options,
        source_site=source_site,
        **experiment.settings,
    )
    check_comparison(out, job.record, overwrite=overwrite)
    plan = plan_experiment(job, out, overwrite=overwrite)
    if dry_run:
        output.show(plan.to_json(), lambda: _print_plan(plan))
        return
    if not (output.as_json or output.quiet):
        _print_plan(plan)
    from cropseg.comparison.compare import run_comparison

    failure = None
    with output.open_progress(tells_time=True) as show_progress:
        try:
            run_comparison(
                job,
                out,
                tensorboard=tensorboard,
                overwrite=overwrite,
                show_progress=show_progress,
            )
        except PartialFailureError as error:
            failure = error  # the other runs are complete, and shown first
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    output.show(summary, lambda: tables.show_comparison(console, summary, out))
    if failure is not None:
        raise failure


def _print_plan(plan: ExperimentPlan) -> None:
    for line in plan.to_lines():
        console.print(line, markup=False, soft_wrap=True)
