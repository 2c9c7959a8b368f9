"""Trainers that were traced by one run and train the models of others like it.

Tracing the step of a network takes as long as several steps. Where runs share something
(`share_between_runs`), the trainer of a phase is kept with the layers of the model that
it was built from, and is given the weights of the next run's model, fresh slots of the
optimizer and that run's class weights. All else that decides a step is in its key.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cropseg.models.twin import describe_structure
from cropseg.runtime import get_shared_networks
from cropseg.training.locks import lock_layers
from cropseg.training.losses import SegmentationLoss
from cropseg.training.phases import FitPhase
from cropseg.training.trainer import copy_weights_in


@dataclass(frozen=True, kw_only=True)
class SharedTrainer:
    """A trainer that was traced."""

    model: Any
    """The model that it was built from. Nobody else uses it any more."""
    network: Any
    """What `build_network` returned for it."""
    trainer: Any
    """The same, compiled."""
    loss: SegmentationLoss
    """Its loss, whose class weights are a variable."""

    def adopt(self, model: Any, phase: FitPhase, loss: SegmentationLoss) -> None:
        """Make it what a new trainer of a model would be.

        Args:
            model: The model of a run.
            phase: The phase, equal to the one that it was built for.
            loss: The loss of the run, with its class weights.
        """
        lock_layers(self.model, phase)
        copy_weights_in(self.network, model)
        for variable in self.trainer.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        self.loss.take_weights(loss)


def make_key(
    model: Any, phase: FitPhase, loss: SegmentationLoss, *others: Hashable
) -> Hashable | None:
    """Return what a trainer is kept under, or None where runs share no networks.

    The loss is made one whose class weights can be changed after it was traced.

    Args:
        model: The model of a run, locked as the phase has it.
        phase: The phase.
        loss: Its loss.
        *others: What else its step is traced with: precision, rate, steps.
    """
    if get_shared_networks() is None:
        return None
    weights = loss.class_weights
    loss.hold_weights()
    return (
        "trainer",
        describe_structure(model),
        phase.trained,
        frozenset(phase.norms.items()),
        frozenset(phase.rates.items()),
        loss.name,
        None if weights is None else len(weights),
        *others,
    )


def find_trainer(key: Hashable | None) -> SharedTrainer | None:
    """Return the trainer that was kept under a key."""
    shared = get_shared_networks()
    found: SharedTrainer | None = shared.get(key) if shared and key else None
    return found


def keep_trainer(key: Hashable | None, item: SharedTrainer) -> None:
    """Keep a trainer that has ended its phase, so that it is whole."""
    shared = get_shared_networks()
    if shared and key:
        shared.keep(key, item)


def drop_trainer(key: Hashable | None) -> None:
    """Keep a trainer no longer: a run broke off in the middle of a step."""
    shared = get_shared_networks()
    if shared and key:
        shared.drop(key)
