"""The summary of a comparison: what `summary.json` holds.

Every score comes from integer counts per test block, over one set of classes for all
runs: those with a label pixel in the whole test set. What a run did not measure is
None, and never an error.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cropseg.comparison.results import MEASURE_COLUMNS
from cropseg.comparison.summary.answer import answer_budget, answer_comparison
from cropseg.comparison.summary.collect import Collection, ModeRuns
from cropseg.comparison.summary.contrasts import (
    ALPHA,
    FAMILIES,
    compare_classes,
    compare_pairs,
    find_best,
)
from cropseg.comparison.summary.forgetting import read_source
from cropseg.comparison.summary.known import describe_known
from cropseg.comparison.summary.labels_needed import list_efficiency
from cropseg.comparison.summary.measures import (
    Facts,
    collect_facts,
    describe_areas,
    describe_mode,
    measure_run,
)
from cropseg.evaluation.intervals import MIN_BLOCKS
from cropseg.sites.budget import Budget
from cropseg.transfer.advice import judge_advice

if TYPE_CHECKING:
    from cropseg.comparison.prepare import ComparisonJob
    from cropseg.comparison.results import Result

CONFIDENCE: Final = 0.95
"""Share of the intervals that are meant to hold the true value."""

_DIGITS: Final = 6


def summarize_comparison(
    job: ComparisonJob, results: Sequence[Result], folder: Path
) -> dict[str, Any]:
    """Summarise a comparison.

    Args:
        job: The comparison.
        results: Its finished and failed runs.
        folder: Its folder, with `advice.json` and `normalization.json` where they were
            written.

    Returns:
        The summary, JSON values only: `answer`, what was compared, `classes`, `runs`,
        `method`, `budgets` with the modes sorted by mean mIoU and their differences,
        and `label_efficiency`.
    """
    collection = Collection(results)
    source = read_source(folder, job.source_site, job.target.classes.names)
    facts = collect_facts(job, collection, source)
    found = [collection.collect(budget) for budget in job.budgets]
    budgets = [
        _summarize_budget(budget, modes, facts, collection.list_notes(budget, modes))
        for budget, modes in zip(job.budgets, found, strict=True)
    ]
    _add_areas(budgets[-1], found[-1], facts)
    method = _describe_method(job, collection, facts, budgets)
    for item, advice in zip(budgets, _read_advice(job, folder), strict=True):
        item["answer"] = answer_budget(item, method)
        item["advice"] = judge_advice(advice, item) if advice else None
    efficiency, notes = list_efficiency(job.budgets, found, facts.score)
    method["label_efficiency"] = notes
    summary = {
        "answer": answer_comparison(budgets, method),
        **_describe_job(job, folder),
        "classes": facts.list_classes(),
        "failed": [result.cell.name for result in results if result.run is None],
        "runs": [_describe_run(result, collection, facts) for result in results],
        "method": method,
        "budgets": budgets,
        "label_efficiency": efficiency,
    }
    rounded: dict[str, Any] = _round(summary)
    return rounded


def _summarize_budget(
    budget: Budget, modes: Mapping[str, ModeRuns], facts: Facts, notes: list[str]
) -> dict[str, Any]:
    described = [describe_mode(runs, facts) for runs in modes.values()]
    described.sort(key=lambda item: -item["miou_mean"])
    leader = described[0]["mode"] if described else None
    differences: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    num_tests = 0
    if leader is not None:
        ranked = [modes[item["mode"]] for item in described]
        differences, num_tests = compare_pairs(ranked, leader, facts.score)
        effects = compare_classes(modes, leader, facts.firm_names)
        best = find_best(ranked, facts.score) if facts.has_intervals else {}
        for item in described:
            item["probability_best"] = best.get(item["mode"])
    return {
        "labels": str(budget),
        "leader": leader,
        "answer": "",
        "num_tests": num_tests,
        "notes": notes,
        "modes": described,
        "differences": differences,
        "class_effects": effects,
    }


def _add_areas(
    budget: Mapping[str, Any], modes: Mapping[str, ModeRuns], facts: Facts
) -> None:
    """Fill in the areas of the modes that one maps with: the leader and baselines."""
    for item in budget["modes"]:
        if item["is_baseline"] or item["mode"] == budget["leader"]:
            item["areas"] = describe_areas(modes[item["mode"]], facts)


def _describe_job(job: ComparisonJob, folder: Path) -> dict[str, Any]:
    """Return what was compared, as its record says."""
    record = job.record
    return {
        "site": record["site"],
        "source_site": job.source.card.site,
        "from": record["from"],
        "from_sha256": record["from_sha256"],
        "manifest": record.get("manifest", str(job.site.manifest_path)),
        "source_manifest": record.get("source", {}).get("manifest"),
        "draws": record["draws"],
        "seeds": record.get("seeds", 1),
        "folds": record.get("folds"),
        "validation": record["validation"],
        "equal": record.get("equal", "steps"),
        "settings": record["settings"],
        "versions": _list_versions(),
        "normalization": _read_normalization(folder),
    }


def _list_versions() -> dict[str, str]:
    from cropseg.models.bundle import list_versions  # starts Keras

    return list_versions()


def _describe_run(
    result: Result, collection: Collection, facts: Facts
) -> dict[str, Any]:
    cell, run = result.cell, result.run
    training = run.metrics["training"] if run else {}
    measured = dict.fromkeys(MEASURE_COLUMNS)
    if run is not None:
        measured = measure_run(run, collection.arrays[cell], facts)
    return {
        "name": cell.name,
        "folder": run.out_dir.name if run else None,
        "mode": cell.mode,
        "labels": str(cell.budget) if cell.budget else None,
        "draw": cell.draw,
        "seed": cell.seed,
        "fold": cell.fold,
        "status": "ok" if run else "failed",
        "miou": result.miou if run else None,
        "converged": training.get("converged"),
        "seconds": training.get("seconds"),
        **measured,
    }


def _describe_method(
    job: ComparisonJob,
    collection: Collection,
    facts: Facts,
    budgets: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    by_budget = [
        {item["smallest_difference"] for item in budget["differences"]} - {None}
        for budget in budgets
    ]
    smallest = [max(found) for found in by_budget if found]  # one for all its tests
    return {
        "interval": facts.interval,
        "confidence": CONFIDENCE,
        "num_blocks": collection.num_blocks,
        "why_no_interval": facts.why_no_interval,
        "num_draws": job.record["draws"],
        "validation": job.record["validation"],
        "covers": _list_covered(job, facts),
        "does_not_cover": _list_uncovered(job, facts),
        "smallest_difference": statistics.median_high(smallest) if smallest else None,
        "smallest_difference_of": (
            "The true difference that a test would find with a probability of 80 %, at "
            "a level of 0.05 shared among the tests at its budget, from the precision "
            "of all of them together; the median over the budgets, of two the larger."
        ),
        "families": FAMILIES,
        "alpha": ALPHA,
        "classes": (
            "Means are over the classes with a label pixel in the whole test set, the "
            "same for all runs."
        ),
        "known": describe_known(job.source.card),
    }


def _list_covered(job: ComparisonJob, facts: Facts) -> list[str]:
    draws, seeds = job.record["draws"], job.record.get("seeds", 1)
    if facts.why_no_interval:
        few = f"Nothing: {facts.why_no_interval}"
        return [f"{few}, so the lowest and highest mIoU stand in its place."]
    covered = [f"Other blocks of this area: {facts.num_blocks} were tested."]
    if draws > 1:
        each = "a seed of its own" if seeds == 1 else f"{seeds} seeds"
        covered.append(
            f"Other draws of the labels, and other seeds: {draws} draws were made, "
            f"each with {each}."
        )
    elif seeds > 1:
        covered.append(f"Other seeds: {seeds} were tried.")
    return covered


def _list_uncovered(job: ComparisonJob, facts: Facts) -> list[str]:
    draws, seeds = job.record["draws"], job.record.get("seeds", 1)
    uncovered = ["Other areas, seasons and sensors."]
    if draws == 1:
        what = "draws of the labels" if seeds > 1 else "draws of the labels and seeds"
        uncovered.append(f"Other {what}: there is one.")
    uncovered.append(
        "Errors of the labels: a mode that repeats them scores higher, and nothing "
        "here shows it."
    )
    choice = "The choice of settings: they are the same for all modes"
    if job.record["validation"] == "oracle":
        choice += ", and the best epoch was chosen on val blocks beyond the budget"
    uncovered.append(f"{choice}, and other settings may rank them otherwise.")
    if facts.has_intervals:
        uncovered.append(
            "That neighbouring blocks are alike: blocks are taken as independent."
        )
        uncovered.append(
            "That the leader was picked on the same blocks: its lead is a little too "
            "large."
        )
    if facts.has_intervals and facts.thin:
        thin = ", ".join(facts.classes.names[index] for index in sorted(facts.thin))
        firm = " `firm_miou` is the mean without them."
        uncovered.append(
            f"Classes in few blocks: {thin} lie mostly in fewer than {MIN_BLOCKS}, so "
            "they have no interval, and that of the mean is too short."
            f"{'' if facts.thin >= set(facts.present) else firm}"
        )
    if job.record.get("folds"):
        uncovered.append(
            "That the models of different folds saw much the same training blocks."
        )
    return uncovered


def _read_advice(
    job: ComparisonJob, folder: Path
) -> Sequence[Mapping[str, Any] | None]:
    """Return what the rule of thumb said at each budget, or None."""
    path = folder / "advice.json"
    if not path.exists():
        return [None] * len(job.budgets)
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _read_normalization(folder: Path) -> Any:
    path = folder / "normalization.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _round(value: Any) -> Any:
    """Return a document with plain numbers, floats to six digits."""
    if isinstance(value, Mapping):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _round(value.tolist())
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value
