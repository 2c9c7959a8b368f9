"""The state of an optimizer, by the names of the variables that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.training.checkpoint import RANDOM_STATE, load_state

_STEP, _MOMENTUM, _VELOCITY = "step", "momentum", "velocity"
_OUTER = "outer "
"""Begins the names of what an optimizer of several keeps itself."""

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by the path of a variable."""


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """Where the optimizer of a training was when it ended."""

    step: int
    """Steps that it had done."""
    learning_rate: float
    """Its highest learning rate."""
    num_steps: int
    """Steps that its schedule was planned for."""
    weights: Arrays
    """Weights of the model after its last step. The model that was saved has those of
    its best epoch."""
    momentums: Arrays
    """Mean gradient of each trained variable, as Adam keeps it."""
    velocities: Arrays
    """Mean square gradient of each trained variable."""
    kept: tuple[npt.NDArray[Any], ...] = ()
    """Weights of the model that the training saved, in the order of the model."""


def read_optimizer_state(run_dir: str | Path) -> OptimizerState:
    """Read the state of the optimizer from the folder of a training.

    Args:
        run_dir: The folder, such as `cropseg train --out` was given.

    Raises:
        ModelError: If the folder holds no checkpoint, or one that cannot be used.
    """
    path = Path(run_dir) / "checkpoints" / "state.npz"
    state = load_state(path)
    slots = dict(state.optimizer) if state else {}
    if state is None or _STEP not in slots:
        raise ModelError(
            f"{run_dir} holds no state of an optimizer ({path} is missing, or nothing "
            "was trained when it was written). Only the folder of a finished or "
            "interrupted `cropseg train` has one; a model alone does not. Give --from "
            "the model.keras in that folder, or choose mode full."
        )
    rates = [phase.learning_rate for phase in state.phases if phase.learning_rate]
    weights = {k: v for k, v in state.variables if k != RANDOM_STATE}
    return OptimizerState(
        step=int(slots[_STEP]),
        learning_rate=rates[-1],
        num_steps=state.num_steps,
        weights=weights,
        kept=tuple(state.best_weights or weights.values()),
        momentums=_take(slots, _MOMENTUM),
        velocities=_take(slots, _VELOCITY),
    )


def _take(slots: Arrays, kind: str) -> Arrays:
    start = f"{kind} of "
    return {
        name.removeprefix(start): value
        for name, value in slots.items()
        if name.startswith(start)
    }


def name_optimizer_variables(trainer: Any) -> list[tuple[str, Any]]:
    """Return every variable of a trainer's optimizer with a name that lasts.

    Keras numbers optimizers as they come, so the paths of their variables differ
    from run to run.

    Args:
        trainer: A model compiled with Adam or several of them.
    """
    optimizer = trainer.optimizer
    paths = [variable.path for variable in trainer.trainable_variables]
    groups = getattr(optimizer, "groups", ((optimizer, paths),))
    inner = {id(v) for adam, _ in groups for v in adam.variables}
    named = [
        (f"{_OUTER}{v.name}", v) for v in optimizer.variables if id(v) not in inner
    ]
    for adam, trained in groups:
        named += _name_slots(adam, trained)
    return named


def _name_slots(adam: Any, paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Name the variables of an Adam: its own, then a pair for each that it trains."""
    count = len(adam.variables) - 2 * len(paths)
    own, slots = adam.variables[:count], adam.variables[count:]
    for variable in own:  # the rate is among them where it is a number
        yield (_STEP if variable.name == "iteration" else variable.name), variable
    pairs = zip(slots[::2], slots[1::2], strict=True)
    for path, (momentum, velocity) in zip(paths, pairs, strict=True):
        yield f"{_MOMENTUM} of {path}", momentum
        yield f"{_VELOCITY} of {path}", velocity


def restore_slots(trainer: Any, state: OptimizerState) -> int:
    """Give a fresh optimizer the step count and the slots of another training.

    A variable that the other training did not have, or had in another shape, keeps
    slots of 0.

    Returns:
        How many variables got their slots.
    """
    found = {
        **{f"{_MOMENTUM} of {path}": v for path, v in state.momentums.items()},
        **{f"{_VELOCITY} of {path}": v for path, v in state.velocities.items()},
    }
    count = 0
    for name, variable in name_optimizer_variables(trainer):
        if name in (_STEP, f"{_OUTER}iteration"):
            variable.assign(np.asarray(state.step, variable.dtype))
        elif name in found and found[name].shape == tuple(variable.shape):
            variable.assign(found[name])
            count += name.startswith(_MOMENTUM)
    return count
