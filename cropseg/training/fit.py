"""Fitting a model: the loop that every network of cropseg is trained by.

The phases of a job run one after the other, each with a trainer and an optimizer of
its own. What is trained at a step is a function of the phases and the step alone, so
that a training that goes on after an interruption ends with the same bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import DivergedError
from cropseg.runtime import keras, resolve_precision
from cropseg.training.batches import LaterBatches, TileBatches
from cropseg.training.checkpoint import (
    NamedArrays,
    PhaseRecord,
    TrainingState,
    assign_named,
    assign_variables,
    copy_value,
    copy_values,
    load_state,
    read_variables,
    save_state,
)
from cropseg.training.computing import describe_computing, refuse_other_computing
from cropseg.training.features import CachedFeatures, split_at_head
from cropseg.training.fit_job import FitJob, FitResult
from cropseg.training.history import Epoch
from cropseg.training.l2sp import hold_weights
from cropseg.training.locks import lock_layers
from cropseg.training.losses import SegmentationLoss
from cropseg.training.optimizer_state import name_optimizer_variables, restore_slots
from cropseg.training.phase_start import prepare_phase
from cropseg.training.shared_trainer import (
    SharedTrainer,
    drop_trainer,
    find_trainer,
    keep_trainer,
    make_key,
)
from cropseg.training.trainer import (
    Watch,
    build_network,
    build_pool_loss,
    build_schedule,
    compile_network,
    give_back,
    watch_network,
)

_log = logging.getLogger(__name__)


def fit_model(job: FitJob) -> FitResult:
    """Fit a model, going on from its checkpoint if there is one.

    Args:
        job: What to fit and how. Its model holds the result: the weights of the best
            epoch where there is something to validate on, else the last weights. Its
            layers stay locked as the last phase has it.

    Returns:
        Losses, epochs and phases.

    Raises:
        DivergedError: If a loss is not finite.
        ConflictError: If the checkpoint was computed by another backend or precision.
        CropsegError: If a locked variable changed in the first step of a phase, or
            none of the others did. That is a bug of ours, and the run is worth
            nothing.
    """
    fit = _Fit(job)
    fit.restore()
    for index in range(len(job.phases)):
        fit.run_phase(index)
    return fit.finish()


class _Fit:
    """A training in progress: what was done, and what comes next."""

    def __init__(self, job: FitJob) -> None:
        settings = job.settings
        self.job = job
        self._ends = list(accumulate(phase.num_steps for phase in job.phases))
        self._batches = TileBatches(
            job.pool,
            batch_size=settings.batch_size,
            seed=settings.seed,
            statistics=job.statistics,
            source_tiles=job.source_tiles,
            workers=settings.workers,
        )
        self._optimizer: NamedArrays = []
        self._best_weights: list[npt.NDArray[Any]] = []
        self._started_at = 0.0
        self._seconds = 0.0
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []
        self.phases: list[PhaseRecord] = []

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.job.checkpoint_path
        state = load_state(path) if path else None
        if path is None or state is None:
            return
        refuse_other_computing(
            state.computed_with, self.job.settings.precision, str(path)
        )
        assign_variables(self.job.model, state.variables, path)
        self._optimizer = state.optimizer
        self._best_weights = state.best_weights
        self.losses, self.epochs = list(state.losses), list(state.epochs)
        self.phases = list(state.phases)
        _log.info("Going on from step %d of %s.", len(self.losses), path)

    def run_phase(self, index: int) -> None:
        """Run what is left of a phase.

        It is done where it has begun and the steps done reach its end.
        """
        job, phase, step = self.job, self.job.phases[index], len(self.losses)
        has_begun = index < len(self.phases)
        if has_begun and step >= self._ends[index]:
            return
        lock_layers(job.model, phase)
        if not has_begun:
            self._prepare(index)
        if not phase.trains:
            return
        loss = build_pool_loss(job.settings, job.pool, job.source_tiles)
        key = self._make_key(index, loss)
        shared = find_trainer(key)
        if shared:
            shared.adopt(job.model, phase, loss)
            network = shared.network
        else:
            network = build_network(
                job.model, phase, resolve_precision(job.settings.precision)
            )
        drop_trainer(key)  # until it is whole again
        with hold_weights(network, job.penalty):
            trainer = shared.trainer if shared else None
            trainer = self._fit_network(index, network, loss, trainer)
        give_back(network, job.model)
        if shared is None:
            shared = SharedTrainer(
                model=job.model, network=network, trainer=trainer, loss=loss
            )
        keep_trainer(key, shared)

    def _make_key(self, index: int, loss: SegmentationLoss) -> Hashable | None:
        """Return what the trainer of a phase is shared under; None where it is not.

        A penalty and kept features are of one run, and a search finds any rate.
        """
        job, phase = self.job, self.job.phases[index]
        if job.penalty or job.caches_features or job.resumed or phase.searches_rate:
            return None
        return make_key(
            job.model,
            phase,
            loss,
            resolve_precision(job.settings.precision),
            self.phases[index].learning_rate,
            self._count_schedule_steps(index),
        )

    def _prepare(self, index: int) -> None:
        """Do what comes before the first step of a phase, and begin it."""
        record = prepare_phase(
            self.job, index, self._batches, first_index=len(self.losses)
        )
        self.phases.append(record)
        self._optimizer = []
        if record.prepare_seconds:  # it is not done again after an interruption
            self._save()

    def _fit_network(
        self, index: int, network: Any, loss: SegmentationLoss, trainer: Any
    ) -> Any:
        """Train the network of a phase from the step that was reached to its end.

        Args:
            index: The phase.
            network: Its network.
            loss: Its loss.
            trainer: What an earlier run traced for it, or None.

        Returns:
            The network, or the head of it, compiled.
        """
        job, phase = self.job, self.job.phases[index]
        done = len(self.losses) - self._ends[index] + phase.num_steps
        trained: Any = network
        batches: Any = LaterBatches(self._batches, len(self.losses))
        if job.caches_features:
            begun_at = time.perf_counter()
            features, trained = split_at_head(network)
            batches = CachedFeatures(
                LaterBatches(self._batches, len(self.losses) - done),
                features,
                num_steps=phase.num_steps,
                first_step=done,
            )
            record = self.phases[index]
            seconds = record.prepare_seconds + time.perf_counter() - begun_at
            self.phases[index] = replace(record, prepare_seconds=seconds)
        rate = self.phases[index].learning_rate
        assert rate is not None  # noqa: S101 - the phase trains
        schedule = build_schedule(rate, self._count_schedule_steps(index))
        if trainer is None:
            trainer = compile_network(
                trained, rate=schedule, loss=loss, rates=phase.rates
            )
        if done:
            slots = name_optimizer_variables(trainer)
            assign_named(slots, self._optimizer, job.checkpoint_path or Path())
        elif index == 0 and job.resumed:
            count = restore_slots(trainer, job.resumed)
            self.phases[index] = replace(self.phases[index], taken_slots=count)
        watch = watch_network(network, phase, is_first=done == 0)
        if keras.backend.backend() == "jax":
            # Builds loss and metrics; `fit` would take a batch to do so and lose it.
            trainer.test_on_batch(*batches[0])
        self._started_at = time.perf_counter()
        trainer.fit(
            batches,
            epochs=1,
            steps_per_epoch=phase.num_steps - done,
            shuffle=False,
            verbose=0,
            callbacks=[_Steps(self, network, schedule, watch)],
        )
        self._seconds += time.perf_counter() - self._started_at
        return trainer

    def _count_schedule_steps(self, index: int) -> int:
        """Count the steps of a phase, and those before them that it goes on from."""
        before = self.job.resumed.step if index == 0 and self.job.resumed else 0
        return before + self.job.phases[index].num_steps

    def end_step(self, loss: float) -> None:
        """Record the loss of a step."""
        epoch, batch = divmod(len(self.losses), self.job.settings.steps_per_epoch)
        if not np.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss} at step {len(self.losses) + 1} (epoch "
                f"{epoch + 1}, batch {batch + 1}). No model was saved. Try "
                "a lower --learning-rate, and look at the data with `cropseg check`."
            )
        self.losses.append(loss)

    @property
    def is_at_epoch_end(self) -> bool:
        """Whether the last step was the last of an epoch."""
        done = len(self.losses)
        return done % self.job.settings.steps_per_epoch == 0 or done == self._ends[-1]

    def end_epoch(self, learning_rate: float, optimizer: NamedArrays) -> None:
        """Validate, keep the best weights, and save the state."""
        job = self.job
        val_miou = job.validate() if job.validate else None
        best = max((e.val_miou or 0.0 for e in self.epochs), default=-1.0)
        if val_miou is not None and val_miou > best:
            self._best_weights = job.model.get_weights()
        first = self.epochs[-1].step if self.epochs else 0
        self.epochs.append(
            Epoch(
                epoch=len(self.epochs) + 1,
                step=len(self.losses),
                loss=float(np.mean(self.losses[first:])),
                learning_rate=learning_rate,
                val_miou=val_miou,
                seconds=self._seconds + time.perf_counter() - self._started_at,
            )
        )
        self._optimizer = optimizer
        self._save()
        self._seconds, self._started_at = 0.0, time.perf_counter()

    def _save(self) -> None:
        if self.job.checkpoint_path is None:
            return
        state = TrainingState(
            epochs=tuple(self.epochs),
            losses=tuple(self.losses),
            phases=tuple(self.phases),
            num_steps=self._count_schedule_steps(len(self.phases) - 1),
            variables=read_variables(self.job.model),
            optimizer=self._optimizer,
            best_weights=self._best_weights,
            computed_with=describe_computing(self.job.settings.precision),
        )
        save_state(state, self.job.checkpoint_path)

    def finish(self) -> FitResult:
        """Leave the weights to keep in the model of the job."""
        if self._best_weights:
            self.job.model.set_weights(self._best_weights)
        return FitResult(
            losses=tuple(self.losses),
            epochs=tuple(self.epochs),
            phases=tuple(self.phases),
        )


class _Steps(keras.callbacks.Callback):
    """Hands every step of a trainer to the training.

    Variables are read after `self.model` was: with JAX that brings them up to date.
    """

    def __init__(self, fit: _Fit, network: Any, schedule: Any, watch: Watch) -> None:
        super().__init__()
        self._fit = fit
        self._network = network
        self._schedule = schedule
        self._watch: Watch | None = watch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Forget the last batch, so that the loss in `logs` is that of this one."""
        del batch, logs
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record the loss, check the first step, and end the epoch if it is over."""
        del batch
        self._fit.end_step(float(logs["loss"]))
        if self._watch is not None:
            _ = self.model
            self._watch.compare()
            self._watch = None
        job, done = self._fit.job, len(self._fit.losses)
        job.show_progress(done, job.num_steps, f"loss {self._fit.losses[-1]:.3f}")
        if self._fit.is_at_epoch_end:
            trainer = self.model
            give_back(self._network, self._fit.job.model)
            rate = self._schedule(trainer.optimizer.iterations)
            slots = name_optimizer_variables(trainer)
            self._fit.end_epoch(float(copy_value(rate)), copy_values(slots))
