"""Locking and unlocking the layers of a model, as a phase of its training has it."""

from __future__ import annotations

from typing import Any

from cropseg.runtime import keras
from cropseg.training.phases import RUNNING, FitPhase


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
        for variable in (layer.gamma, layer.beta):
            if variable is not None:
                variable.trainable = trains
