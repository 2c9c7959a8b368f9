"""What can be said of a comparison before any result is seen.

The rule of thumb's advice at each budget, what the source model scores under each
normalisation, and what it scores where it comes from. All of it stays in the folder, so
that no result can change it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.comparison.prepare import ComparisonJob
from cropseg.comparison.steps import read_document
from cropseg.comparison.summary.forgetting import SOURCE_COUNTS
from cropseg.files import write_json, write_whole
from cropseg.inference.evaluate import evaluate_forgetting
from cropseg.runtime import start_run
from cropseg.sites.budget import Budget, LabelPool, draw_pool
from cropseg.transfer.advice import advise
from cropseg.transfer.evidence import measure_evidence
from cropseg.transfer.zero_shot import report_normalization


def foretell(job: ComparisonJob, folder: Path) -> None:
    """Write what is missing of advice, normalisations and counts of the source."""
    _write_advice(job, folder / "advice.json")
    _write_normalization(job, folder / "normalization.json")
    _write_source(job, folder / SOURCE_COUNTS)


def _write_advice(job: ComparisonJob, path: Path) -> None:
    """Write what the rule of thumb says at each budget, on its first draw."""
    found: list[dict[str, Any]] = []
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    known = {item["labels"]: item for item in found}
    wanted = [str(budget) for budget in job.budgets]
    if list(known) == wanted:
        return
    advice = []
    for budget in job.budgets:
        item = known.get(str(budget))
        if item is None:
            evidence = measure_evidence(job.source, _draw(job, budget), job.reuse)
            advised = advise(
                evidence,
                manifest=str(job.site.manifest_path),
                model=job.source.title,
                labels=",".join(wanted),
            )
            item = {"labels": str(budget), **advised.to_json()}
        advice.append(item)
    write_json(path, advice)


def _write_normalization(job: ComparisonJob, path: Path) -> None:
    """Write the scores of each normalisation on the largest budget.

    Where no network is compared, there is nothing to normalise.
    """
    labels = str(job.budgets[-1])
    is_done = read_document(path).get("labels") == labels
    if is_done or all(contender.plan is None for contender in job.contenders):
        return
    pool = _draw(job, job.budgets[-1])
    report = report_normalization(job.source.load(), pool, job.reuse)
    write_json(path, {"labels": labels, **report})


def _write_source(job: ComparisonJob, path: Path) -> None:
    """Write what the source model gets right on its own site, before any transfer."""
    if job.source_site is None or path.exists():
        return
    start_run(job.settings.seed)
    names = job.target.classes.names
    found = evaluate_forgetting(job.source.load(), job.source_site, names)
    if found is not None:
        with write_whole(path) as part:
            np.savez_compressed(part, block_ids=found.block_ids, counts=found.counts)


def _draw(job: ComparisonJob, budget: Budget) -> LabelPool:
    start_run(job.settings.seed)
    return draw_pool(job.target, job.settings.tile_size, budget, draw=0)
