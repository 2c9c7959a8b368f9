"""Comparing transfer modes on equal terms: modes by budgets by draws, seeds and folds.

All runs of a draw see the same labels, in the same batches, with the same schedule,
and are scored on the same test pixels. A comparison that was interrupted, or whose
grid has grown, goes on with the runs that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropseg.comparison.design import Design, claim_comparison
from cropseg.comparison.equal import settle_steps
from cropseg.comparison.foretell import foretell
from cropseg.comparison.plots import plot_comparison
from cropseg.comparison.prepare import ComparisonJob, prepare_comparison
from cropseg.comparison.report import write_report
from cropseg.comparison.results import Result, write_counts, write_results
from cropseg.comparison.run_cells import refuse_mixture, run_cells
from cropseg.comparison.summary.summarize import summarize_comparison
from cropseg.errors import PartialFailureError, UsageError
from cropseg.files import write_json
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import share_between_runs
from cropseg.sites.site import Site
from cropseg.transfer.modes import PIXEL_FOREST
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison."""

    out_dir: Path
    """Its folder."""
    results: tuple[Result, ...]
    """A result for every run, failed ones too."""
    summary: dict[str, Any]
    """What `summary.json` holds."""

    def find_best_network(self) -> str:
        """Return the best mode at the largest budget that leaves a model to map with.

        Raises:
            UsageError: If only the pixel forest was compared.
        """
        ranked = [item["mode"] for item in self.summary["budgets"][-1]["modes"]]
        networks = [mode for mode in ranked if mode != PIXEL_FOREST]
        if not networks:
            raise UsageError("No network was compared, so there is none to map with.")
        return str(networks[0])


def compare_modes(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    model_path: str | Path | None = None,
    *,
    modes: Sequence[str],
    labels: Sequence[str],
    draws: int = 3,
    seeds: int = 1,
    folds: int | str | None = "auto",
    validation: str = "none",
    equal: str = "steps",
    until_flat: bool = False,
    out_dir: str | Path,
    model: Any = None,
    description: Any = None,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    tensorboard: bool = False,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> Comparison:
    """Run modes at budgets of labels, several draws each, and compare them.

    Called again, it does what is missing: after an interruption, and also where
    modes, labels, draws or seeds were added.

    Args:
        site: The target site.
        model_path: The source model: a bundle, or any Keras file with `description`.
        modes: Modes of the table, such as `full` or `freeze_first:2`, or paths of YAML
            files with plans.
        labels: Budgets, such as `["4tiles", "16tiles"]`.
        draws: Random choices of the labels of each budget.
        seeds: Runs of each draw, which differ in everything else that is random.
        folds: Each block is for the test in one of so many folds, and each run is
            repeated in each fold. None: no folds. `auto`: 5 where the site is split by
            blocks and fewer than 20 of them are for the test.
        validation: What chooses the best epoch. `none`: the last one is kept.
            `budget`: a quarter of each budget is held out for it. `oracle`: the val
            part, whose labels are beyond every budget.
        equal: `steps`: every mode gets the steps of the settings. `time`: as many as
            fit into the time that `full` takes for them.
        until_flat: Double the steps first, until `scratch` gains little by it.
        out_dir: Folder of the comparison.
        model: A functional Keras model of your own, in place of `model_path`.
        description: A `ForeignDescription` of a model that is no bundle.
        reuse: How the model is fitted to the site, in all runs.
        source_site: The site of the source: for `joint`, and to score what is
            forgotten.
        tensorboard: Whether each run gets logs that TensorBoard can show.
        overwrite: Start again in a folder that holds another comparison.
        show_progress: Called with steps done, steps in all and what is going on.
        **settings: Fields of `TrainSettings`, equal for all modes. The seed of a run
            is `seed` plus its draw, plus 1000 for each further seed of the draw.

    Returns:
        The comparison. `results.csv`, `summary.json`, `counts.npz`, `advice.json`,
        `comparison.png` and `.svg`, `report.html` and `report.md` are in its folder,
        and the runs in `runs/`.

    Raises:
        UsageError: If a mode, a budget or a setting cannot be used.
        DataError: If the site cannot be trained on, or a budget exceeds its labels.
        ModelError: If the model does not fit the site.
        ConflictError: If the folder holds another comparison.
        PartialFailureError: If a run failed. The others are complete.
    """
    design = Design(
        modes=tuple(modes),
        labels=tuple(labels),
        draws=draws,
        seeds=seeds,
        folds=folds,
        validation=validation,
        equal=equal,
        until_flat=until_flat,
    )
    job = prepare_comparison(
        site,
        find_source(model_path, model=model, description=description, site=site),
        design,
        reuse=reuse,
        source_site=source_site,
        **settings,
    )
    return run_comparison(
        job,
        out_dir,
        tensorboard=tensorboard,
        overwrite=overwrite,
        show_progress=show_progress,
    )


def run_comparison(
    job: ComparisonJob,
    out_dir: str | Path,
    *,
    tensorboard: bool = False,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> Comparison:
    """Run a comparison that was prepared.

    Args:
        job: The comparison.
        out_dir: Its folder.
        tensorboard: Whether each run gets logs that TensorBoard can show.
        overwrite: Start again in a folder that holds another comparison.
        show_progress: Called with steps done, steps in all and what is going on.

    Raises:
        ConflictError: If the folder holds another comparison, or one that was begun on
            another backend or in another precision.
        PartialFailureError: If a run failed. The others are complete.
    """
    folder = Path(out_dir)
    with claim_comparison(folder, job.record, overwrite=overwrite):
        refuse_mixture(job, folder)
        with share_between_runs():
            foretell(job, folder)
            job = settle_steps(job, folder, show_progress)
            results = run_cells(job, folder, show_progress, tensorboard=tensorboard)
        summary = summarize_comparison(job, results, folder)
        write_results(
            results,
            job.target.classes.names,
            folder / "results.csv",
            measures=summary["runs"],
        )
        write_counts(results, folder / "counts.npz")
        write_json(folder / "summary.json", summary, indent=1)  # it nests deep
        title = f"From {summary['source_site']} to {summary['site']}"
        if summary["validation"] == "oracle":
            title += ", the best epoch by an oracle"
        plot_comparison(summary["budgets"], title, folder / "comparison.png")
        write_report(folder)
    failures = [result for result in results if result.run is None]
    if failures:
        raise PartialFailureError(
            f"{len(failures)} of {len(results)} runs failed, {failures[0].cell.name} "
            f"first: {failures[0].failure} The others are in {folder / 'results.csv'}."
        )
    return Comparison(out_dir=folder, results=tuple(results), summary=summary)
