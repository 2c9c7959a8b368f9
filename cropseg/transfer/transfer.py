"""Transferring a model to another site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cropseg.files import claim_out_dir
from cropseg.models.card import Lineage
from cropseg.models.foreign import ForeignDescription
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import start_run
from cropseg.sites.site import Site
from cropseg.training.finished import Run, find_finished_run
from cropseg.training.run import RunStart, execute_run
from cropseg.transfer.prepare import TransferJob, prepare_transfer
from cropseg.transfer.source import find_source
from cropseg.transfer.start import start_transfer
from cropseg.transfer.target import ReuseOptions
from cropseg.transfer.zero_shot import report_normalization


def transfer_to_site(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    model_path: str | Path | None = None,
    *,
    mode: str,
    out_dir: str | Path,
    model: Any = None,
    description: ForeignDescription | None = None,
    labels: str | None = None,
    draw: int = 0,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> Run:
    """Transfer a model to another site.

    Nothing is tuned on the target: the schedule is fixed and the last weights are
    kept. Calling it again with the same settings goes on where it was interrupted,
    or returns the finished run.

    Args:
        site: The target site.
        model_path: The source model: a bundle, or any Keras file with `description`.
        mode: A mode of the table, or the path of a YAML file with a plan.
        out_dir: The run's folder.
        model: A functional Keras model of your own, in place of `model_path`.
        description: A `ForeignDescription` of a model that is no bundle: its bands,
            classes and normalisation.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        reuse: How the model is fitted to the site: normalisation, bands, GSD, names.
        source_site: The site of the source, for `joint`.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.
        **settings: Fields of `TrainSettings`; architecture, encoder and tile size
            come from the source model.

    Returns:
        The run, with `model_path` and `metrics`.

    Raises:
        UsageError: If the mode or a setting cannot be used.
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the model does not fit the site.
        ConflictError: If the folder holds a run with other settings.
        DivergedError: If the loss is not a number at some step.
    """
    job = prepare_transfer(
        site,
        find_source(model_path, model=model, description=description, site=site),
        mode=mode,
        labels=labels,
        draw=draw,
        reuse=reuse,
        source_site=source_site,
        **settings,
    )
    return run_transfer(job, out_dir, overwrite=overwrite, show_progress=show_progress)


def run_transfer(
    job: TransferJob,
    out_dir: str | Path,
    *,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    reports_normalization: bool = True,
    measures: Mapping[str, Any] | None = None,
) -> Run:
    """Run a transfer that was prepared.

    Args:
        job: The transfer.
        out_dir: The run's folder.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.
        reports_normalization: Whether the run tells what the source scores without
            training under each normalisation.
        measures: What `execute_run` is told to measure, where it is not the default.

    Raises:
        ModelError: If the weights do not match.
        ConflictError: If the folder holds a run with other settings.
        DivergedError: If the loss is not a number at some step.
    """
    folder = Path(out_dir)
    with claim_out_dir(folder, job.record, overwrite=overwrite):
        finished = find_finished_run(folder)
        if finished is not None:
            return finished
        notes = {}
        if reports_normalization:
            start_run(job.settings.seed)
            notes["normalization"] = report_normalization(
                job.source.load(), job.pool, job.reuse
            )
        return execute_run(
            start_job(job),
            job.settings,
            folder,
            show_progress,
            notes=notes,
            **(measures or {}),
        )


def start_job(job: TransferJob) -> RunStart:
    """Load the source of a transfer and build the model at the start of its run.

    Raises:
        ModelError: If the weights do not match.
    """
    start_run(job.settings.seed)
    lineage = Lineage(
        mode=job.plan.mode,
        source_sha256=job.source.sha256,
        source_site=job.source.card.site,
        labels=job.record["labels"],
        draw=job.record["draw"] if job.record["labels"] else None,
    )
    start = start_transfer(
        job.source.load(),
        job.pool,
        job.plan,
        num_steps=job.settings.num_steps,
        lineage=lineage,
        reuse=job.reuse,
        source_site=job.source_site,
        source_dir=job.source.run_dir,
    )
    return replace(start, held_out=job.held_out, validates=job.uses_oracle)
