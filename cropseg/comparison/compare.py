"""Comparing transfer modes on equal terms: modes by budgets by draws.

All runs of a draw see the same labels, in the same batches, with the same schedule,
and are scored on the same test pixels. Nothing is tuned on the target. A comparison
that was interrupted goes on with the runs that are missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cropseg.comparison.cells import COMPARISON_RECORD, Cell
from cropseg.comparison.forest import train_forest
from cropseg.comparison.plots import plot_comparison
from cropseg.comparison.prepare import ComparisonJob, prepare_comparison
from cropseg.comparison.results import Result, summarize, write_counts, write_results
from cropseg.errors import (
    ConflictError,
    CropsegError,
    DataFileNotFoundError,
    ModelError,
    PartialFailureError,
    UsageError,
)
from cropseg.files import claim_out_dir, write_json
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import start_run
from cropseg.sites.budget import draw_pool
from cropseg.sites.site import Site
from cropseg.training.run import Run
from cropseg.transfer.advice import advise, judge_advice
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.evidence import measure_evidence
from cropseg.transfer.modes import PIXEL_FOREST, get_plan
from cropseg.transfer.prepare import prepare_transfer
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions
from cropseg.transfer.transfer import run_transfer
from cropseg.transfer.zero_shot import report_normalization

_log = logging.getLogger(__name__)


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
    out_dir: str | Path,
    model: Any = None,
    description: Any = None,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
    **settings: Any,
) -> Comparison:
    """Run modes at budgets of labels, several draws each, and compare them.

    Args:
        site: The target site.
        model_path: The source model: a bundle, or any Keras file with `description`.
        modes: Modes of the table, such as `full` or `freeze_first:2`, or paths of YAML
            files with plans.
        labels: Budgets, such as `["4tiles", "16tiles"]`.
        draws: Random choices of the labels of each budget.
        out_dir: Folder of the comparison.
        model: A functional Keras model of your own, in place of `model_path`.
        description: A `ForeignDescription` of a model that is no bundle.
        reuse: How the model is fitted to the site, in all runs.
        source_site: The site of the source, for `joint`.
        overwrite: Start again in a folder that holds another comparison.
        show_progress: Called with steps done, steps in all and what is going on.
        **settings: Fields of `TrainSettings`, equal for all modes. The seed of a run
            is `seed` plus its draw.

    Returns:
        The comparison. `results.csv`, `summary.json`, `counts.npz`, `advice.json` and
        `comparison.png` are in its folder, and the runs in `runs/`.

    Raises:
        UsageError: If a mode, a budget or a setting cannot be used.
        DataError: If the site cannot be trained on, or a budget exceeds its labels.
        ModelError: If the model does not fit the site.
        ConflictError: If the folder holds another comparison.
        PartialFailureError: If a run diverged. The others are complete.
    """
    job = prepare_comparison(
        site,
        find_source(model_path, model=model, description=description, site=site),
        modes=modes,
        labels=labels,
        draws=draws,
        reuse=reuse,
        source_site=source_site,
        **settings,
    )
    return run_comparison(
        job, out_dir, overwrite=overwrite, show_progress=show_progress
    )


def run_comparison(
    job: ComparisonJob,
    out_dir: str | Path,
    *,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> Comparison:
    """Run a comparison that was prepared.

    Args:
        job: The comparison.
        out_dir: Its folder.
        overwrite: Start again in a folder that holds another comparison.
        show_progress: Called with steps done, steps in all and what is going on.

    Raises:
        ConflictError: If the folder holds another comparison.
        PartialFailureError: If a run diverged. The others are complete.
    """
    folder = Path(out_dir)
    record = COMPARISON_RECORD
    with claim_out_dir(folder, job.record, overwrite=overwrite, record=record):
        results = [
            _try_cell(job, cell, folder, _share_progress(job, index, show_progress))
            for index, cell in enumerate(job.cells)
        ]
        summary = _summarize(job, results, folder)
        write_results(results, job.target.classes.names, folder / "results.csv")
        write_counts(results, folder / "counts.npz")
        write_json(folder / "summary.json", summary)
        title = (
            f"From {job.source.card.site} to {job.site.name}: mean and range of "
            f"{job.record['draws']} draws"
        )
        plot_comparison(summary["budgets"], title, folder / "comparison.png")
    failures = [result for result in results if result.run is None]
    if failures:
        raise PartialFailureError(
            f"{len(failures)} of {len(results)} runs failed, {failures[0].cell.name} "
            f"first: {failures[0].failure} The others are in {folder / 'results.csv'}."
        )
    return Comparison(out_dir=folder, results=tuple(results), summary=summary)


def _share_progress(
    job: ComparisonJob, index: int, show_progress: ShowProgress
) -> ShowProgress:
    """Return what shows the progress of one run as that of the comparison."""
    steps, cell = job.settings.num_steps, job.cells[index]

    def show_share(done: int, total: int, text: str) -> None:
        share = done / max(total, 1)
        show_progress(
            round((index + share) * steps),
            len(job.cells) * steps,
            f"{cell.name} {text}",
        )

    return show_share


def _try_cell(
    job: ComparisonJob, cell: Cell, folder: Path, show_progress: ShowProgress
) -> Result:
    show_progress(0, 1, "")
    try:
        run = _run_cell(job, cell, folder / "runs" / cell.name, show_progress)
    except ConflictError:
        raise
    except CropsegError as error:  # the others can still be run
        _log.error("%s failed: %s", cell.name, error)
        return Result(cell=cell, run=None, failure=str(error))
    show_progress(1, 1, "")
    return Result(cell=cell, run=run)


def _run_cell(
    job: ComparisonJob, cell: Cell, out_dir: Path, show_progress: ShowProgress
) -> Run:
    if cell.mode == PIXEL_FOREST:
        return train_forest(
            job.site,
            job.source.card,
            out_dir=out_dir,
            labels=str(cell.budget),
            draw=cell.draw,
            reuse=job.reuse,
            **job.settings.change(seed=cell.seed).to_json(),
        )
    return run_transfer(
        job.prepare_run(cell),
        out_dir,
        show_progress=show_progress,
        reports_normalization=False,  # equal in all runs, and in the summary
    )


def _summarize(
    job: ComparisonJob, results: Sequence[Result], folder: Path
) -> dict[str, Any]:
    summaries = summarize(results, job.budgets)
    for item, advice in zip(summaries, _find_advice(job, folder), strict=True):
        item["advice"] = judge_advice(advice, item)
    record = job.record
    return {
        "answer": " ".join(item["answer"] for item in summaries),
        "site": record["site"],
        "source_site": job.source.card.site,
        "from": record["from"],
        "from_sha256": record["from_sha256"],
        "draws": record["draws"],
        "validation": record["validation"],
        "settings": record["settings"],
        "normalization": _report_normalization(job, folder),
        "spread": "lowest and highest mIoU over the draws; no interval",
        "failed": [result.cell.name for result in results if result.run is None],
        "budgets": summaries,
    }


def _find_advice(job: ComparisonJob, folder: Path) -> list[dict[str, Any]]:
    """Return what the rule of thumb says at each budget, before any result is seen."""
    path = folder / "advice.json"
    if path.exists():
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    advice = []
    for budget in job.budgets:
        start_run(job.settings.seed)
        pool = draw_pool(job.target, job.settings.tile_size, budget, draw=0)
        evidence = measure_evidence(job.source, pool, job.reuse)
        advised = advise(
            evidence,
            manifest=str(job.site.manifest_path),
            model=job.source.title,
            labels=",".join(map(str, job.budgets)),
        )
        advice.append(advised.to_json())
    write_json(path, advice)
    return advice


def _report_normalization(job: ComparisonJob, folder: Path) -> dict[str, Any] | None:
    """Score the choices of normalisation on the largest budget, once.

    Returns:
        What `report_normalization` returns, or None where no network is compared.
    """
    path = folder / "summary.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if "normalization" in found:
            return found["normalization"]
    if all(contender.plan is None for contender in job.contenders):
        return None
    start_run(job.settings.seed)
    pool = draw_pool(job.target, job.settings.tile_size, job.budgets[-1], draw=0)
    return report_normalization(job.source.load(), pool, job.reuse)


def refit_like(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    comparison_dir: str | Path,
    *,
    mode: str,
    out_dir: str | Path,
    model: Any = None,
    description: Any = None,
    source_site: Site | None = None,
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> Run:
    """Refit a mode of a comparison on all training labels, for mapping.

    Args:
        site: The target site of the comparison.
        comparison_dir: The folder of the comparison.
        mode: One of its modes, or the path of the plan that was compared.
        out_dir: The run's folder.
        model: The Keras model that was compared, where it was given in memory.
        description: The `ForeignDescription` that was given.
        source_site: The site of the source, for `joint`.
        overwrite: Start again in a folder that holds another run.
        show_progress: Called after every step.

    Returns:
        The run, with the comparison's model and settings.

    Raises:
        DataFileNotFoundError: If there is no comparison in that folder.
        UsageError: If the comparison did not have this mode, or its plan has changed.
        ModelError: If the model is not the one that was compared.
    """
    record = read_comparison(comparison_dir)
    given = _find_mode(record, comparison_dir, mode)
    source = find_source(
        record["from"] if model is None else None,
        model=model,
        description=description,
        site=site,
    )
    if source.sha256 != record["from_sha256"]:
        raise ModelError(
            f"{record['from']} is not the model that was compared any more. Restore "
            "it, or compare again."
        )
    job = prepare_transfer(
        site,
        source,
        mode=given,
        reuse=ReuseOptions.from_json(record.get("reuse", {})),
        source_site=source_site,
        **record["settings"],
    )
    return run_transfer(job, out_dir, overwrite=overwrite, show_progress=show_progress)


def read_comparison(comparison_dir: str | Path) -> dict[str, Any]:
    """Read what decided the result of a comparison.

    Raises:
        DataFileNotFoundError: If there is no comparison in that folder.
    """
    path = Path(comparison_dir) / COMPARISON_RECORD
    if not path.exists():
        raise DataFileNotFoundError(
            f"No comparison in {comparison_dir}: it has no {COMPARISON_RECORD}. "
            "Give the --out of a `cropseg compare`."
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _find_mode(record: dict[str, Any], comparison_dir: str | Path, mode: str) -> str:
    """Return what `prepare_transfer` takes for a mode that was compared."""
    plans = record.get("plans", {})
    names = {entry["file"]: name for name, entry in plans.items()}
    name = names.get(mode, mode)
    if name not in record["modes"] or name == PIXEL_FOREST:
        networks = [item for item in record["modes"] if item != PIXEL_FOREST]
        raise UsageError(
            f"{comparison_dir} compared {', '.join(record['modes'])}; of these "
            f"{', '.join(networks)} can be refitted, got {mode!r}."
        )
    if name not in plans:
        return name
    path = plans[name]["file"]
    if json.loads(json.dumps(plan_to_json(get_plan(path)))) != plans[name]["plan"]:
        raise UsageError(
            f"{path} is not the plan that was compared any more. Restore it, or "
            "compare again."
        )
    return path
