"""A run: one training with one seed, from its start to the files that it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cropseg.files import write_json
from cropseg.inference.evaluate import evaluate_bundle, evaluate_forgetting
from cropseg.inference.features import measure_features
from cropseg.inference.measure import Evaluation, Panel
from cropseg.memory import read_peak_memory, reset_peak_memory
from cropseg.models.bundle import Bundle, hash_weights, list_versions, save_bundle
from cropseg.models.card import Card, CardClass, CardStage, Lineage
from cropseg.models.stages import Stage
from cropseg.models.weight_report import WeightReport, hash_variables
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.budget import LabelPool
from cropseg.sites.quantiles import measure_quantiles
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import BandStatistics, survey_site
from cropseg.training.batches import SourceTiles
from cropseg.training.checkpoint import (
    PretrainedState,
    assign_variables,
    load_pretrained,
    read_variables,
    save_pretrained,
)
from cropseg.training.computing import describe_computing, refuse_other_computing
from cropseg.training.finished import Run, describe_training, finish_run
from cropseg.training.fit import fit_model
from cropseg.training.fit_job import FitJob, FitResult
from cropseg.training.history import plot_curves, write_history
from cropseg.training.l2sp import build_penalty
from cropseg.training.optimizer_state import OptimizerState
from cropseg.training.phases import FitPhase
from cropseg.training.pretrain import pretrain_encoder
from cropseg.training.settings import TrainSettings
from cropseg.training.trainer import list_fates
from cropseg.training.validate import build_validator


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A model at the start of a run, and what it may change and see."""

    model: Any
    """The model, with the weights that it starts from."""
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
    tile_multiple: int
    """What the sides of the network's input must be multiples of, in pixels."""
    phases: tuple[FitPhase, ...]
    """What is trained, in order; none where nothing changes."""
    validates: bool = False
    """Whether the best epoch on the val part is kept instead of the last."""
    held_out: LabelPool | None = None
    """Labels of the budget on which the best epoch is kept instead of the last; no
    step sees them."""
    l2sp: float = 0.0
    """Strength of a penalty on moving away from the weights that it starts from."""
    new_classes: frozenset[int] = frozenset()
    """Ids of the classes whose rows of the head did not come from the source. The
    penalty holds them to 0."""
    source_tiles: SourceTiles | None = None
    """Tiles of the source site that are mixed into every batch."""
    resumed: OptimizerState | None = None
    """The state of the source's optimizer, where its training goes on."""
    caches_features: bool = False
    """Whether the features that the head reads are computed once and kept."""
    pretrains: bool = False
    """Whether the encoder is first trained on tiles without labels."""


def execute_run(  # noqa: PLR0913 - keyword-only, and each says what to measure
    start: RunStart,
    settings: TrainSettings,
    out_dir: Path,
    show_progress: ShowProgress,
    *,
    notes: Mapping[str, Any] | None = None,
    parts: Sequence[str] = ("val", "test"),
    source_site: Site | None = None,
    panel: Panel | None = None,
) -> Run:
    """Train a model and write the files of its run.

    Args:
        start: Where the run starts.
        settings: How it is trained.
        out_dir: Its folder, claimed by the caller.
        show_progress: Called after every step.
        notes: What else `training` of `metrics.json` tells.
        parts: Which parts of the site it is scored on, where they have labels.
        source_site: The site of the model that it started from, on which it is scored
            too: what it has forgotten.
        panel: A window whose predicted classes are kept.

    Returns:
        The run. `metrics.json` is written last: where it lies, the run is complete.
    """
    reset_peak_memory()
    site, model = start.pool.site, start.model
    bundle = Bundle(model=model, card=_write_card(start, settings, {}))

    before, fates = hash_variables(model), list_fates(model, start.phases)
    job = prepare_fit(
        start,
        settings,
        checkpoint_path=out_dir / "checkpoints" / "state.npz",
        plots_dir=out_dir,
        show_progress=show_progress,
    )
    pretrained = None
    if start.pretrains:
        pretrained = _pretrain(start, settings, out_dir, show_progress)
        fates = _mark_pretrained(start, fates)
    fitted = FitResult(losses=(), epochs=())
    if start.phases:
        fitted = fit_model(replace(job, validate=_choose_validation(start, bundle)))
    if fitted.losses:
        write_history(fitted.epochs, out_dir / "history.csv")
        title = f"{site.name}: {start.lineage.mode}"
        plot_curves(fitted.losses, fitted.epochs, title, out_dir / "curves.png")
    report = _complete_report(start.report, before, hash_variables(model), fates)
    write_json(out_dir / "weights.json", report.to_json())
    evaluations = _evaluate_parts(bundle, site, parts, panel)
    scores = {part: item.to_json() for part, item in evaluations.items()}
    card = _write_card(start, settings, scores)
    measured = {
        "features": measure_features(bundle, site, start.pool.tiles),
        "band_quantiles": measure_quantiles(site, settings.tile_size),
    }
    card = card.model_copy(update=measured)
    save_bundle(model, card, out_dir / "model.keras")
    training = describe_training(start.pool, fitted, settings)
    training["computed_with"] = describe_computing(settings.precision)
    if not fitted.losses:  # scores are computed in float32 in any case
        del training["computed_with"]["precision"]
    if start.held_out is not None:  # the budget pays for these too
        held_out = sum(start.held_out.class_pixels)
        training["label_pixels"] += held_out
        training["held_out_pixels"] = held_out
    training["trained_parameters"] = report.num_trained
    training["peak_memory_bytes"] = read_peak_memory()
    training |= _describe_start(start, fitted, pretrained) | dict(notes or {})
    forgetting = None
    if source_site is not None:
        forgetting = evaluate_forgetting(bundle, source_site, site.classes.names)
    return finish_run(out_dir, evaluations, training, forgetting)


def _choose_validation(start: RunStart, bundle: Bundle) -> Callable[[], float] | None:
    """Return what scores an epoch; None where the last one is kept."""
    if start.held_out is not None:
        return build_validator(start.model, start.held_out, fill=start.bands.mean)
    if start.validates:
        site = start.pool.site
        return lambda: evaluate_bundle(bundle, site, part="val").scores.miou
    return None


def prepare_fit(
    start: RunStart,
    settings: TrainSettings,
    *,
    checkpoint_path: Path | None = None,
    plots_dir: Path | None = None,
    show_progress: ShowProgress = show_nothing,
) -> FitJob:
    """Return what `fit_model` takes for a run, without validation.

    Its penalty is on the weights that the model has now.

    Args:
        start: Where the run starts.
        settings: How it is trained.
        checkpoint_path: Where its state is kept; None to keep none.
        plots_dir: Where a search of a learning rate leaves its plot.
        show_progress: Called after every step.
    """
    penalty = None
    if start.l2sp:
        penalty = build_penalty(
            start.model,
            start.report,
            strength=start.l2sp,
            new_classes=start.new_classes,
        )
    return FitJob(
        model=start.model,
        phases=start.phases,
        pool=start.pool,
        settings=settings,
        statistics=(start.bands.mean, start.bands.std),
        penalty=penalty,
        source_tiles=start.source_tiles,
        resumed=start.resumed,
        caches_features=start.caches_features,
        checkpoint_path=checkpoint_path,
        plots_dir=plots_dir,
        show_progress=show_progress,
    )


def _pretrain(
    start: RunStart, settings: TrainSettings, out_dir: Path, show_progress: ShowProgress
) -> PretrainedState:
    """Train the encoder without labels, or take what an interrupted run has done."""
    path = out_dir / "checkpoints" / "pretrained.npz"
    state = load_pretrained(path)
    if state is not None:
        refuse_other_computing(state.computed_with, settings.precision, str(path))
    else:
        started_at = time.perf_counter()
        losses = pretrain_encoder(
            start.model,
            start.stages,
            start.pool.site,
            settings,
            statistics=(start.bands.mean, start.bands.std),
            show_progress=show_progress,
        )
        state = PretrainedState(
            losses=losses,
            seconds=time.perf_counter() - started_at,
            variables=read_variables(start.model),
            computed_with=describe_computing(settings.precision),
        )
        save_pretrained(state, path)
    # Also where nothing was loaded: both ways to the phases are then the same.
    assign_variables(start.model, state.variables, path)
    return state


def _mark_pretrained(start: RunStart, fates: Mapping[str, str]) -> dict[str, str]:
    """Tell of variables that no phase changes, but the training without labels did."""
    marked = dict(fates)
    for stage in start.stages:
        for name in stage.layers if stage.part == "encoder" else ():
            for variable in start.model.get_layer(name).weights:
                if marked[variable.path] == "locked":
                    marked[variable.path] = "pretrained"
    return marked


def _complete_report(
    report: WeightReport,
    before: Mapping[str, str],
    after: Mapping[str, str],
    fates: Mapping[str, str],
) -> WeightReport:
    """Return the report with what the training did to each variable."""
    complete = report.complete(before, after, locked=())
    rows = [
        replace(row, training=fates.get(row.variable, row.training))
        for row in complete.rows
    ]
    return WeightReport(rows=tuple(rows))


def _describe_start(
    start: RunStart, fitted: FitResult, pretrained: PretrainedState | None
) -> dict[str, Any]:
    """Return what `metrics.json` tells of phases, and of what came before them."""
    told: dict[str, Any] = {
        "phases": [
            {
                "name": phase.name,
                "steps": phase.steps,
                "learning_rate": phase.learning_rate,
                "trained_parameters": phase.trained_parameters,
            }
            for phase in fitted.phases
        ]
    }
    if start.resumed:
        told["resumed"] = {
            "step": start.resumed.step,
            "learning_rate": start.resumed.learning_rate,
            "slots": fitted.phases[0].taken_slots,
        }
    if pretrained:
        told["pretraining"] = {
            "steps": len(pretrained.losses),
            "seconds": round(pretrained.seconds, 2),
            "first_loss": pretrained.losses[0],
            "last_loss": pretrained.losses[-1],
        }
        told["seconds"] = round(fitted.seconds + pretrained.seconds, 2)
    return told


def _evaluate_parts(
    bundle: Bundle, site: Site, parts: Sequence[str], panel: Panel | None
) -> dict[str, Evaluation]:
    """Score the parts that have labels. The panel is looked for with the last one."""
    pixels = survey_site(site, bundle.card.tile_size).class_pixels
    labelled = [part for part in parts if pixels[PARTS.index(part)].any()]
    return {
        part: evaluate_bundle(
            bundle,
            site,
            part=part,
            panel=panel if part == labelled[-1] else None,
            whole_part=True,
        )
        for part in labelled
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
        tile_multiple=start.tile_multiple,
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
