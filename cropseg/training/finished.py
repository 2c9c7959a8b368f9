"""What a run leaves behind: its folder, and the files that say what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.files import write_json, write_whole
from cropseg.inference.measure import Evaluation
from cropseg.models.weight_report import WeightReport, WeightRow
from cropseg.sites.budget import LabelPool
from cropseg.training.fit_job import FitResult
from cropseg.training.history import has_converged
from cropseg.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    out_dir: Path
    """Its folder."""
    metrics: Mapping[str, Any]
    """`val` and `test` as `evaluate --json` gives them, and `training`."""

    @property
    def model_path(self) -> Path:
        """Its model."""
        return self.out_dir / "model.keras"

    def read_weight_report(self) -> WeightReport:
        """Return what happened to each of its variables."""
        rows = json.loads((self.out_dir / "weights.json").read_text(encoding="utf-8"))
        return WeightReport(rows=tuple(WeightRow(**row) for row in rows))


def find_finished_run(out_dir: Path) -> Run | None:
    """Return the run that a folder holds, or None where it is not finished."""
    path = out_dir / "metrics.json"
    if not path.exists():
        return None
    return Run(out_dir=out_dir, metrics=json.loads(path.read_text(encoding="utf-8")))


def describe_training(
    pool: LabelPool, fitted: FitResult, settings: TrainSettings
) -> dict[str, Any]:
    """Return what `metrics.json` tells of a training."""
    trains = bool(fitted.losses)
    rates = {phase.learning_rate for phase in fitted.phases if phase.learning_rate}
    rate = rates.pop() if len(rates) == 1 else settings.learning_rate
    return {
        "steps": len(fitted.losses),
        "seconds": round(fitted.seconds, 2),
        "converged": has_converged(fitted.losses) if trains else None,
        "learning_rate": rate if trains else None,
        "label_pixels": sum(pool.class_pixels),
        "label_tiles": len(pool.tiles),
        "label_fields": pool.num_fields,
        "classes_seen": list(pool.classes_seen),
    }


def finish_run(
    out_dir: Path,
    evaluations: Mapping[str, Evaluation],
    training: Mapping[str, Any],
    forgetting: Evaluation | None = None,
) -> Run:
    """Write counts and metrics, the last files of a run, and return it.

    Args:
        out_dir: Folder of the run.
        evaluations: What was counted, by part of the site.
        training: What `metrics.json` tells of the training.
        forgetting: What was counted on the source site.

    Returns:
        The run. `counts.npz` holds `<part>_<name>` for each array of `Evaluation`,
        `panel`, and `source_block_ids` and `source_counts`, each where it was measured.
    """
    counts: dict[str, Any] = {
        f"{part}_{name}": array
        for part, evaluation in evaluations.items()
        for name, array in evaluation.to_arrays().items()
    }
    for evaluation in evaluations.values():  # the panel is one for all parts
        if evaluation.panel is not None:
            counts["panel"] = evaluation.panel
    if forgetting is not None:
        counts["source_block_ids"] = forgetting.block_ids
        counts["source_counts"] = forgetting.counts
    with write_whole(out_dir / "counts.npz") as part_path:
        np.savez_compressed(part_path, **counts)
    metrics: dict[str, Any] = {
        part: evaluations[part].to_json() if part in evaluations else None
        for part in ("val", "test")
    }
    metrics["training"] = training
    write_json(out_dir / "metrics.json", metrics)
    return Run(out_dir=out_dir, metrics=metrics)


def load_counts(out_dir: Path) -> dict[str, npt.NDArray[np.int64]]:
    """Return all that was counted of a run, by name; see `finish_run`."""
    with (
        (out_dir / "counts.npz").open("rb") as stream,
        np.load(stream, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in file.files}
