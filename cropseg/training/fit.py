"""Fitting a model: the loop that every network of cropseg is trained by."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import CropsegError, DivergedError
from cropseg.models.bundle import HEAD_LAYER
from cropseg.models.precision import copy_with_precision
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import JIT_COMPILE, keras, resolve_precision
from cropseg.sites.budget import LabelPool
from cropseg.training.batches import TileBatches
from cropseg.training.checkpoint import TrainingState, load_state, save_state
from cropseg.training.history import Epoch
from cropseg.training.losses import build_loss, compute_class_weights
from cropseg.training.settings import TrainSettings

_log = logging.getLogger(__name__)

_WARMUP_SHARE = 0.05
_CLIP_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """A model, and everything that it is fitted with."""

    model: Any
    """The model of a bundle; layers that are locked have `trainable = False`."""
    pool: LabelPool
    """The labels that it may see."""
    settings: TrainSettings
    """How it is trained."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and standard deviation of each band, as its normalisation has them."""
    inference_norms: frozenset[str] = frozenset()
    """Batch normalisations that keep their statistics while they are trained."""
    validate: Callable[[], float] | None = None
    """Returns the mIoU of the model on the val part. None keeps the last weights."""
    checkpoint_path: Path | None = None
    """Where the state is kept, so that the training can go on after an interruption."""
    show_progress: ShowProgress = show_nothing
    """Called after every step."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training did. The model of the job holds the weights."""

    losses: tuple[float, ...]
    """Training loss of every step."""
    epochs: tuple[Epoch, ...]
    """Its epochs."""

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs, in s."""
        return sum(epoch.seconds for epoch in self.epochs)


def fit_model(job: FitJob) -> FitResult:
    """Fit a model, going on from its checkpoint if there is one.

    Args:
        job: What to fit and how. Its model holds the result: the weights of the best
            epoch where there is something to validate on, else the last weights.

    Returns:
        Losses and epochs.

    Raises:
        DivergedError: If a loss is not finite.
        CropsegError: If a locked variable changed in the first step, or none of the
            others did. That is a bug of ours, and the run is worth nothing.
    """
    trainer = _build_trainer(job)
    settings = job.settings
    loop = _Loop(job, trainer)
    loop.restore()
    batches = TileBatches(
        job.pool,
        batch_size=settings.batch_size,
        seed=settings.seed,
        statistics=job.statistics,
        first_step=len(loop.losses),
        workers=settings.workers,
    )
    if len(loop.epochs) < settings.epochs:
        trainer.fit(
            batches,
            epochs=settings.epochs,
            initial_epoch=len(loop.epochs),
            steps_per_epoch=settings.steps_per_epoch,
            shuffle=False,
            verbose=0,
            callbacks=[loop],
        )
    loop.finish()
    return FitResult(losses=tuple(loop.losses), epochs=tuple(loop.epochs))


def build_schedule(settings: TrainSettings) -> Any:
    """Return the learning rate as a function of the step.

    It rises over the first twentieth of all steps and then falls to 0 as a cosine
    (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).
    """
    warmup_steps = max(1, round(_WARMUP_SHARE * settings.num_steps))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=settings.learning_rate / warmup_steps,
        warmup_target=settings.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(1, settings.num_steps - warmup_steps),
    )


def _build_trainer(job: FitJob) -> Any:
    """Return a compiled model that gives logits.

    At float32 it shares all variables with the model of the job.
    """
    logits = keras.Model(job.model.inputs, job.model.get_layer(HEAD_LAYER).output)

    def share(layer: Any) -> Any:
        return _InferenceNorm(layer) if layer.name in job.inference_norms else layer

    precision = resolve_precision(job.settings.precision)
    trainer = keras.models.clone_model(
        copy_with_precision(logits, precision), clone_function=share
    )
    weights = None
    if job.settings.class_weight_power:
        weights = compute_class_weights(
            np.array(job.pool.class_pixels), power=job.settings.class_weight_power
        )
    trainer.compile(
        optimizer=keras.optimizers.Adam(
            build_schedule(job.settings), global_clipnorm=_CLIP_NORM
        ),
        loss=build_loss(job.settings.loss, class_weights=weights),
        jit_compile=JIT_COMPILE,
    )
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


class _InferenceNorm(keras.layers.Layer):
    """A batch normalisation in inference mode, whose scale and shift are trained.

    A functional model overrides `training=False` given to one of its layers (Keras
    3.15), so the call is wrapped. Only the trainer has it; it is never saved.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__(name=f"{norm.name}_inference")
        self.norm = norm

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Normalise by the statistics that were loaded."""
        return self.norm(inputs, training=False, mask=mask)


def list_locked_variables(model: Any, inference_norms: frozenset[str]) -> list[Any]:
    """Return the variables that training must not change.

    Batch statistics count as locked where their layer is locked or keeps them.
    """
    running = {
        id(variable)
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.name not in inference_norms
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return [v for v in model.non_trainable_weights if id(v) not in running]


@dataclass
class _Watch:
    """Remembers values before the first step and compares them after it."""

    locked: list[tuple[Any, npt.NDArray[Any]]] = field(default_factory=list)
    trained: list[tuple[Any, npt.NDArray[Any]]] = field(default_factory=list)

    @classmethod
    def start(cls, trainer: Any, inference_norms: frozenset[str]) -> _Watch:
        locked = list_locked_variables(trainer, inference_norms)
        copy = keras.ops.convert_to_numpy
        return cls(
            locked=[(v, copy(v)) for v in locked],
            trained=[(v, copy(v)) for v in trainer.trainable_variables],
        )

    def compare(self) -> None:
        moved = [v.path for v, old in self.locked if (np.asarray(v) != old).any()]
        if moved:
            message = f"Locked variables changed in the first step: {moved}."
            raise CropsegError(message)
        if not any((np.asarray(v) != old).any() for v, old in self.trained):
            message = "No trained variable changed in the first step."
            raise CropsegError(message)


class _Loop(keras.callbacks.Callback):
    """Watches a training: losses, first step, validation, checkpoints, progress."""

    def __init__(self, job: FitJob, trainer: Any) -> None:
        super().__init__()
        self._job = job
        self._trainer = trainer
        self._watch: _Watch | None = None
        self._best_weights: list[npt.NDArray[Any]] = []
        self._started_at = 0.0
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self._job.checkpoint_path
        state = load_state(path) if path else None
        if state is None:
            self._watch = _Watch.start(self._trainer, self._job.inference_norms)
            return
        for variable, value in zip(self._variables, state.variables, strict=True):
            variable.assign(value)
        self._best_weights = state.best_weights
        self.losses, self.epochs = list(state.losses), list(state.epochs)
        _log.info("Going on from epoch %d of %s.", len(self.epochs), path)

    def finish(self) -> None:
        """Leave the weights to keep in the model of the job."""
        self._share_weights()
        if self._best_weights:
            self._job.model.set_weights(self._best_weights)

    @property
    def _variables(self) -> list[Any]:
        seeds = [v for v in self._trainer.variables if "seed_generator" in v.path]
        return [*self._trainer.weights, *seeds, *self._trainer.optimizer.variables]

    def _share_weights(self) -> None:
        """Copy the trainer's weights to the model, where it does not share them."""
        if self._trainer.layers[-1] is not self._job.model.get_layer(HEAD_LAYER):
            self._job.model.set_weights(self._trainer.get_weights())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        del epoch, logs
        self._started_at = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Forget the last batch, so that the loss in `logs` is that of this one."""
        del batch, logs
        self._trainer.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record the loss, and check the first step."""
        loss = float(logs["loss"])
        if not np.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss} at step {len(self.losses) + 1} (epoch "
                f"{len(self.epochs) + 1}, batch {batch + 1}). No model was saved. Try "
                "a lower --learning-rate, and look at the data with `cropseg check`."
            )
        self.losses.append(loss)
        if self._watch is not None:
            self._watch.compare()
            self._watch = None
        total = self._job.settings.num_steps
        self._job.show_progress(len(self.losses), total, f"loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Validate, keep the best weights, and save the state."""
        del logs
        self._share_weights()
        val_miou = self._job.validate() if self._job.validate else None
        best = max((e.val_miou or 0.0 for e in self.epochs), default=-1.0)
        if val_miou is not None and val_miou > best:
            self._best_weights = self._job.model.get_weights()
        steps = self._job.settings.steps_per_epoch
        optimizer = self._trainer.optimizer
        self.epochs.append(
            Epoch(
                epoch=epoch + 1,
                step=len(self.losses),
                loss=float(np.mean(self.losses[-steps:])),
                learning_rate=float(np.asarray(optimizer.learning_rate)),
                val_miou=val_miou,
                seconds=time.perf_counter() - self._started_at,
            )
        )
        if self._job.checkpoint_path:
            state = TrainingState(
                epochs=tuple(self.epochs),
                losses=tuple(self.losses),
                variables=list(map(keras.ops.convert_to_numpy, self._variables)),
                best_weights=self._best_weights,
            )
            save_state(state, self._job.checkpoint_path)
