"""The trainer of a phase: a compiled model that trains what the phase trains.

It gives logits and, at float32, shares all variables with the model that is fitted.
In bfloat16 it is a copy, whose variables are taken over at its start and its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cropseg.errors import CropsegError
from cropseg.models.bundle import HEAD_LAYER
from cropseg.models.precision import copy_with_precision
from cropseg.runtime import JIT_COMPILE, keras, resolve_precision
from cropseg.sites.budget import LabelPool
from cropseg.training.batches import SourceTiles, count_class_pixels
from cropseg.training.checkpoint import copy_value
from cropseg.training.locks import lock_layers
from cropseg.training.losses import build_loss, compute_class_weights
from cropseg.training.phases import FitPhase
from cropseg.training.settings import TrainSettings

ops = keras.ops

_WARMUP_SHARE = 0.05
_CLIP_NORM = 1.0

Rate = Any
"""A learning rate: a number, or a schedule of Keras."""


def build_schedule(learning_rate: float, num_steps: int) -> Any:
    """Return the learning rate as a function of the step.

    It rises over the first twentieth of all steps and then falls to 0 as a cosine
    (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).

    Args:
        learning_rate: The highest.
        num_steps: Steps in all.
    """
    warmup_steps = max(1, round(_WARMUP_SHARE * num_steps))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate / warmup_steps,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(1, num_steps - warmup_steps),
    )


def build_network(model: Any, phase: FitPhase, precision: str) -> Any:
    """Return the network of a phase, uncompiled, from pixels to logits.

    Args:
        model: The model of a bundle; its layers are locked as the phase has it.
        phase: What is trained.
        precision: `float32` or `bfloat16`.
    """
    lock_layers(model, phase)
    logits = keras.Model(model.inputs, model.get_layer(HEAD_LAYER).output)
    network = copy_with_precision(logits, precision)
    if network is not logits:
        lock_layers(network, phase)  # a copied layer forgets what its variables do

    def share(layer: Any) -> Any:
        return _InferenceNorm(layer) if layer.name in phase.inference_norms else layer

    trainer = keras.models.clone_model(network, clone_function=share)
    copy_weights_in(trainer, model)
    return trainer


def copy_weights_in(network: Any, model: Any) -> None:
    """Give a network the values of a model's variables, random states among them."""
    for ours, theirs in _pair_variables(network, model):
        ours.assign(theirs)


def build_trainer(
    model: Any,
    phase: FitPhase,
    rate: Rate,
    *,
    settings: TrainSettings,
    pool: LabelPool,
    source_tiles: SourceTiles | None = None,
) -> Any:
    """Return the compiled network of a phase, ready for its batches.

    Args:
        model: The model of a bundle; its layers are locked as the phase has it.
        phase: What is trained.
        rate: The learning rate of layers that the phase does not name.
        settings: Loss, class weights and precision.
        pool: The labels that are trained on.
        source_tiles: Tiles of the source site that are mixed in.
    """
    network = build_network(model, phase, resolve_precision(settings.precision))
    loss = build_pool_loss(settings, pool, source_tiles)
    return compile_network(network, rate=rate, loss=loss, rates=phase.rates)


def build_pool_loss(
    settings: TrainSettings, pool: LabelPool, source_tiles: SourceTiles | None = None
) -> Any:
    """Return the loss, whose classes weigh as their labels in the batches are rare."""
    weights = None
    if settings.class_weight_power:
        weights = compute_class_weights(
            count_class_pixels(pool, source_tiles), power=settings.class_weight_power
        )
    return build_loss(settings.loss, class_weights=weights)


def give_back(network: Any, model: Any) -> None:
    """Copy the variables of a network to the model that it was built from.

    Random states are among them, so that the next phase goes on where this one is.
    """
    for ours, theirs in _pair_variables(network, model):
        theirs.assign(ours)


def _pair_variables(network: Any, model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a network and its model hold in two places; nothing at float32."""
    own_layers = {layer.name: layer for layer in model.layers}
    for layer in _list_layers(network):
        own = own_layers.get(layer.name)  # a copied input goes by another name
        if own is not None and own is not layer:
            yield from zip(layer.variables, own.variables, strict=True)


def _list_layers(network: Any) -> Iterator[Any]:
    for layer in network.layers:
        yield layer.norm if isinstance(layer, _InferenceNorm) else layer


class _InferenceNorm(keras.layers.Layer):
    """A batch normalisation in inference mode, whose scale and shift are trained.

    A functional model overrides `training=False` given to one of its layers (Keras
    3.15), so the call is wrapped. Only a trainer has it; it is never saved.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__(name=f"{norm.name}_inference")
        self.norm = norm

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Normalise by the statistics that were loaded."""
        return self.norm(inputs, training=False, mask=mask)


def compile_network(
    network: Any, *, rate: Rate, loss: Any, rates: Mapping[str, float]
) -> Any:
    """Compile a network with an optimizer for its trainable variables, and return it.

    Args:
        network: What `build_network` returned, or the head of it.
        rate: The learning rate of layers that `rates` does not name.
        loss: A Keras loss.
        rates: What the learning rate is multiplied by, by layer.
    """
    network.compile(
        optimizer=_build_optimizer(network, rate, rates),
        loss=loss,
        jit_compile=JIT_COMPILE,
    )
    network.optimizer.build(network.trainable_variables)
    return network


def _build_optimizer(network: Any, rate: Rate, rates: Mapping[str, float]) -> Any:
    """Return one Adam where there is one rate, else one for each, clipped together."""
    groups: dict[float, list[Any]] = {}
    for layer in _list_layers(network):
        factor = rates.get(layer.name, 1.0)
        if layer.trainable_variables:
            groups.setdefault(factor, []).extend(layer.trainable_variables)
    if len(groups) <= 1:
        factor = next(iter(groups), 1.0)
        return LocalAdam(_scale_rate(rate, factor), global_clipnorm=_CLIP_NORM)
    return GroupedAdam(
        [
            (LocalAdam(_scale_rate(rate, factor)), variables)
            for factor, variables in groups.items()
        ]
    )


class LocalAdam(keras.optimizers.Adam):
    """Adam on one device, whose traced steps can be freed.

    Keras 3.15 sums gradients over devices, also where there is one. That goes through a
    custom gradient, which TensorFlow keeps for ever, and with it the graph of the step
    and its batches: 15 MB and more for each training of a process.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class GroupedAdam(keras.optimizers.MultiOptimizer):
    """Several Adams with a learning rate each, whose gradients are clipped as one.

    Keras 3.15 leaves clipping to each optimizer, so that a group of small gradients
    would not be scaled down with a group of large ones. All of them count the same
    steps.
    """

    def __init__(self, groups: Iterable[tuple[Any, list[Any]]]) -> None:
        """Take optimizers and the variables of each, which have paths of their own."""
        groups = tuple(groups)
        paths = {
            re.escape(variable.path): optimizer
            for optimizer, variables in groups
            for variable in variables
        }
        super().__init__(keras.optimizers.OptimizerMap(groups[0][0], paths))
        # Paths alone: Keras counts variables in an attribute among the optimizer's.
        self.groups = tuple(
            (optimizer, tuple(variable.path for variable in variables))
            for optimizer, variables in groups
        )

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Clip the gradients by their global norm, and let each group apply its own."""
        super().apply(_clip_by_global_norm(grads), trainable_variables)


def _clip_by_global_norm(gradients: Any) -> list[Any]:
    """Scale gradients down to a global norm of at most `_CLIP_NORM`.

    In the order of operations of Keras, so that groups of one rate give the bits of
    one Adam. A norm that is not finite makes every gradient NaN.
    """
    squares = [ops.sum(ops.square(item)) for item in gradients if item is not None]
    norm = ops.sqrt(ops.sum(ops.stack(squares)))
    scale = _CLIP_NORM * ops.minimum(1.0 / norm, 1.0 / _CLIP_NORM) + (norm - norm)
    return [item if item is None else item * scale for item in gradients]


def _scale_rate(rate: Rate, factor: float) -> Rate:
    if factor == 1.0:
        return rate
    return _ScaledRate(rate, factor) if callable(rate) else factor * rate


class _ScaledRate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a number."""

    def __init__(self, schedule: Any, factor: float) -> None:
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        return self.schedule(step) * self.factor

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this schedule again."""
        return {"schedule": self.schedule, "factor": self.factor}


def list_locked_variables(model: Any, inference_norms: frozenset[str]) -> list[Any]:
    """Return the variables that training must not change.

    Batch statistics count as locked where their layer is locked or keeps them.

    Args:
        model: A model whose layers are locked.
        inference_norms: Batch normalisations that keep their statistics while scale
            and shift are trained.
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


def list_fates(model: Any, phases: Iterable[FitPhase]) -> dict[str, str]:
    """Return what phases do to each weight of a model, by its path.

    The layers of the model stay locked as the last phase has it.

    Args:
        model: The model.
        phases: Its phases.

    Returns:
        `trained`, `statistics run`, `statistics recomputed` or `locked`: the first of
        these that some phase does.
    """
    fates = dict.fromkeys((v.path for v in model.weights), "locked")
    for phase in phases:
        lock_layers(model, phase)
        for name in phase.recomputed_norms:
            layer = model.get_layer(name)
            for variable in (layer.moving_mean, layer.moving_variance):
                if fates[variable.path] == "locked":
                    fates[variable.path] = "statistics recomputed"
        if not phase.trains:
            continue
        trained = {v.path for v in model.trainable_variables}
        locked = {v.path for v in list_locked_variables(model, phase.inference_norms)}
        for path, fate in fates.items():
            if path in trained:
                fates[path] = "trained"
            elif path not in locked and fate != "trained":
                fates[path] = "statistics run"
    return fates


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The values of a network before a step, to be compared after it."""

    locked: tuple[tuple[Any, npt.NDArray[Any]], ...]
    """Variables that must not change, and their values."""
    trained: tuple[tuple[Any, npt.NDArray[Any]], ...] | None
    """Variables of which one at least must change; None where none has to."""

    def compare(self) -> None:
        """Compare the values after the step to those before it.

        Raises:
            CropsegError: If a locked variable changed, or no other did.
        """
        moved = [v.path for v, old in self.locked if _has_moved(v, old)]
        if moved:
            message = f"Locked variables changed in the first step: {moved}."
            raise CropsegError(message)
        if self.trained is None:
            return
        if not any(_has_moved(v, old) for v, old in self.trained):
            message = "No trained variable changed in the first step."
            raise CropsegError(message)


def watch_network(network: Any, phase: FitPhase, *, is_first: bool) -> Watch:
    """Remember the values of a network before a step.

    Args:
        network: The network of a phase.
        phase: The phase.
        is_first: Whether it is the phase's first step. A later one may have a
            learning rate so low that nothing moves.
    """
    locked = list_locked_variables(network, phase.inference_norms)
    trained = tuple((v, copy_value(v)) for v in network.trainable_variables)
    return Watch(
        locked=tuple((v, copy_value(v)) for v in locked),
        trained=trained if is_first else None,
    )


def _has_moved(variable: Any, old: npt.NDArray[Any]) -> bool:
    return bool((copy_value(variable) != old).any())
