"""Locking and unlocking the layers of a model, as a phase of its training has it."""

from __future__ import annotations

from typing import Any

from cropseg.runtime import keras
from cropseg.training.phases import RUNNING, FitPhase

_MEMORIES = 10
"""How many times over running statistics forget what they were, within a phase."""
_LEAST_MOMENTUM, _MOST_MOMENTUM = 0.5, 0.99


def build_full_phase(model: Any, num_steps: int) -> FitPhase:
    """Return the phase that trains every layer of a model."""
    norms = list_norms(model)
    names = {layer.name for layer in model.layers if layer.weights}
    return FitPhase(
        name="all",
        num_steps=num_steps,
        trained=frozenset(names - set(norms)),
        norms=dict.fromkeys(norms, RUNNING),
    )


def list_norms(model: Any) -> list[str]:
    """Return the names of the batch normalisations of a flat model."""
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def choose_momentum(num_steps: int) -> float:
    """Return the momentum of running batch statistics for a phase of so many steps.

    With Keras' 0.99, a third of what a phase of 100 steps starts from is left in the
    statistics at its end, and three quarters after 30: the model is then scored with
    statistics that are not those of its weights. So they forget within a tenth of the
    phase, and no slower than by 0.99.
    """
    return min(_MOST_MOMENTUM, max(_LEAST_MOMENTUM, 1 - _MEMORIES / max(num_steps, 1)))


def lock_layers(model: Any, phase: FitPhase) -> None:
    """Set `trainable` of every layer of a model as a phase has it.

    Layers that the phase does not name are locked.
    """
    for layer in model.layers:
        policy = phase.norms.get(layer.name)
        if policy is None:
            layer.trainable = layer.name in phase.trained
            continue
        trains = policy.affine == "trained"
        runs = policy.statistics == "running"
        layer.trainable = trains or runs
        layer.momentum = choose_momentum(phase.num_steps)
        for variable in (layer.gamma, layer.beta):
            if variable is not None:
                variable.trainable = trains
