"""A run: one training with one seed, and the folder that it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.files import write_json, write_whole
from cropseg.inference.evaluate import Evaluation, evaluate_bundle
from cropseg.models.bundle import Bundle, hash_weights, list_versions, save_bundle
from cropseg.models.card import Card, CardClass, CardStage, Lineage
from cropseg.models.stages import Stage
from cropseg.models.weight_report import WeightReport, WeightRow, hash_variables
from cropseg.models.zoo import get_tile_multiple
from cropseg.progress import ShowProgress
from cropseg.sites.budget import LabelPool
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import BandStatistics, survey_site
from cropseg.training.fit import (
    FitJob,
    FitResult,
    fit_model,
    list_locked_variables,
)
from cropseg.training.history import has_converged, plot_curves, write_history
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


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A model at the start of a run, and what it may change and see."""

    model: Any
    """The model, with locked layers set to `trainable = False`."""
    stages: tuple[Stage, ...]
    """Its stages."""
    bands: BandStatistics
    """What its normalisation was made of."""
    report: WeightReport
    """Where its weights come from."""
    lineage: Lineage
    """The same in short, for its card."""
    pool: LabelPool
    """The labels that the run may see."""
    inference_norms: frozenset[str] = frozenset()
    """Batch normalisations that keep their statistics while they are trained."""
    trains: bool = True
    """Whether it is trained at all."""
    validates: bool = False
    """Whether the best epoch on the val part is kept instead of the last."""


def find_finished_run(out_dir: Path) -> Run | None:
    """Return the run that a folder holds, or None where it is not finished."""
    path = out_dir / "metrics.json"
    if not path.exists():
        return None
    return Run(out_dir=out_dir, metrics=json.loads(path.read_text(encoding="utf-8")))


def execute_run(
    start: RunStart,
    settings: TrainSettings,
    out_dir: Path,
    show_progress: ShowProgress,
) -> Run:
    """Train a model and write the files of its run.

    Args:
        start: Where the run starts.
        settings: How it is trained.
        out_dir: Its folder, claimed by the caller.
        show_progress: Called after every step.

    Returns:
        The run. `metrics.json` is written last: where it lies, the run is complete.
    """
    site, model = start.pool.site, start.model
    bundle = Bundle(model=model, card=_write_card(start, settings, {}))

    def validate() -> float:
        return evaluate_bundle(bundle, site, part="val").scores.miou

    before = hash_variables(model)
    locked = list_locked_variables(model, start.inference_norms)
    fitted = FitResult(losses=(), epochs=())
    if start.trains:
        fitted = fit_model(
            FitJob(
                model=model,
                pool=start.pool,
                settings=settings,
                statistics=(start.bands.mean, start.bands.std),
                inference_norms=start.inference_norms,
                validate=validate if start.validates else None,
                checkpoint_path=out_dir / "checkpoints" / "state.npz",
                show_progress=show_progress,
            )
        )
        write_history(fitted.epochs, out_dir / "history.csv")
        title = f"{site.name}: {start.lineage.mode}"
        plot_curves(fitted.losses, fitted.epochs, title, out_dir / "curves.png")
    report = start.report.complete(before, hash_variables(model), locked)
    write_json(out_dir / "weights.json", report.to_json())
    evaluations = _evaluate_parts(bundle, site)
    scores = {part: item.scores.to_json() for part, item in evaluations.items()}
    save_bundle(model, _write_card(start, settings, scores), out_dir / "model.keras")
    training = describe_training(start.pool, fitted, settings)
    training["trained_parameters"] = report.num_trained if start.trains else 0
    return finish_run(out_dir, evaluations, training)


def finish_run(
    out_dir: Path, evaluations: Mapping[str, Evaluation], training: Mapping[str, Any]
) -> Run:
    """Write counts and metrics, the last files of a run, and return it."""
    counts = {
        f"{part}_{name}": getattr(evaluation, name)
        for part, evaluation in evaluations.items()
        for name in ("block_ids", "counts")
    }
    with write_whole(out_dir / "counts.npz") as part_path:
        np.savez_compressed(part_path, **counts)
    metrics: dict[str, Any] = {
        part: evaluations[part].scores.to_json() if part in evaluations else None
        for part in ("val", "test")
    }
    metrics["training"] = training
    write_json(out_dir / "metrics.json", metrics)
    return Run(out_dir=out_dir, metrics=metrics)


def load_counts(out_dir: Path) -> dict[str, npt.NDArray[np.int64]]:
    """Return the confusion counts per block of a run, and the blocks' numbers."""
    with (
        (out_dir / "counts.npz").open("rb") as stream,
        np.load(stream, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in file.files}


def describe_training(
    pool: LabelPool, fitted: FitResult, settings: TrainSettings
) -> dict[str, Any]:
    """Return what `metrics.json` tells of a training."""
    trains = bool(fitted.losses)
    return {
        "steps": len(fitted.losses),
        "seconds": round(fitted.seconds, 2),
        "converged": has_converged(fitted.losses) if trains else None,
        "learning_rate": settings.learning_rate if trains else None,
        "label_pixels": sum(pool.class_pixels),
        "label_tiles": len(pool.tiles),
        "label_fields": pool.num_fields,
        "classes_seen": list(pool.classes_seen),
    }


def _evaluate_parts(bundle: Bundle, site: Site) -> dict[str, Evaluation]:
    pixels = survey_site(site, bundle.card.tile_size).class_pixels
    return {
        part: evaluate_bundle(bundle, site, part=part)
        for part in ("val", "test")
        if pixels[PARTS.index(part)].any()
    }


def _write_card(
    start: RunStart, settings: TrainSettings, scores: dict[str, Any]
) -> Card:
    site = start.pool.site
    classes = zip(site.classes.classes, start.pool.class_pixels, strict=True)
    return Card(
        site=site.name,
        classes=tuple(
            CardClass(name=item.name, color=item.color, train_pixels=pixels)
            for item, pixels in classes
        ),
        bands=site.bands,
        derived={
            name: text for name, text in site.derived.items() if name in site.bands
        },
        gsd_m=site.gsd_m,
        sensor=site.manifest.sensor,
        units=site.manifest.units,
        architecture=settings.architecture,
        encoder=settings.encoder,
        tile_size=settings.tile_size,
        tile_multiple=get_tile_multiple(settings.architecture, settings.encoder),
        band_mean=start.bands.mean,
        band_std=start.bands.std,
        nodata_fill=start.bands.mean,
        stages=tuple(CardStage(**asdict(stage)) for stage in start.stages),
        seed=settings.seed,
        lineage=start.lineage,
        fingerprint=site.fingerprint,
        weights_sha256=hash_weights(start.model),
        versions=list_versions(),
        scores=scores,
    )
