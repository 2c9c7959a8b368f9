"""The state of a training at the end of an epoch, so that it can go on.

Weights, optimizer slots, step count and random states are kept by name, so that a
training that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.files import write_whole
from cropseg.runtime import keras
from cropseg.training.history import Epoch

NamedArrays = list[tuple[str, npt.NDArray[Any]]]
"""Values of variables with their names, in order. A name may occur twice."""

RANDOM_STATE = "random state"
"""Name of every random state: Keras numbers them as they come, so paths differ."""

_OLDER = (
    "it was written by an earlier version of cropseg, which kept no names of variables"
)


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """What a phase of a training did, or does."""

    name: str
    """Its name."""
    steps: int
    """Its steps, when it is done."""
    learning_rate: float | None
    """Its highest learning rate; None where nothing is trained."""
    trained_parameters: int
    """Numbers in the variables that it trains."""
    prepare_seconds: float = 0.0
    """Wall-clock time before its first step, for batch statistics and the search of a
    learning rate, in s."""
    taken_slots: int = 0
    """Variables whose optimizer slots came from another training."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a training is."""

    epochs: tuple[Epoch, ...]
    """The epochs done."""
    losses: tuple[float, ...]
    """Training loss of every step done."""
    phases: tuple[PhaseRecord, ...]
    """The phases begun. Statistics and learning rate of the last are settled."""
    num_steps: int
    """Steps that the schedule of the last phase is planned for."""
    variables: NamedArrays
    """Weights of the model, then its random states."""
    optimizer: NamedArrays
    """Variables of the optimizer of the last phase; none before its first step."""
    best_weights: list[npt.NDArray[Any]]
    """Weights of the best epoch so far; empty where nothing is validated."""
    computed_with: Mapping[str, str] | None = None
    """What computed it; see `computing`. None where an earlier version wrote it."""


@dataclass(frozen=True, kw_only=True)
class PretrainedState:
    """What a training without labels left behind."""

    losses: tuple[float, ...]
    """Loss of every step."""
    seconds: float
    """Wall-clock time that it took, in s."""
    variables: NamedArrays
    """Weights of the model, then its random states."""
    computed_with: Mapping[str, str] | None = None
    """As for `TrainingState`."""


def save_state(state: TrainingState, path: Path) -> None:
    """Save a state as one `.npz` file."""
    record = {
        "epochs": [asdict(item) for item in state.epochs],
        "losses": state.losses,
        "phases": [asdict(item) for item in state.phases],
        "num_steps": state.num_steps,
        "computed_with": state.computed_with,
    }
    best = [("", value) for value in state.best_weights]
    groups = {"variable": state.variables, "optimizer": state.optimizer, "best": best}
    _save(record, groups, path)


def load_state(path: Path) -> TrainingState | None:
    """Load a state, or return None where there is none.

    Raises:
        ModelError: If the file is damaged, or of an earlier version.
    """
    if not path.exists():
        return None
    record, groups = _load(path)
    return TrainingState(
        epochs=tuple(Epoch(**item) for item in record["epochs"]),
        losses=tuple(record["losses"]),
        phases=tuple(PhaseRecord(**item) for item in record["phases"]),
        num_steps=record["num_steps"],
        variables=groups["variable"],
        optimizer=groups["optimizer"],
        best_weights=[value for _, value in groups["best"]],
        computed_with=record.get("computed_with"),
    )


def load_losses(path: Path) -> tuple[float, ...]:
    """Load the loss of every step from a file of either kind, without its arrays.

    Returns:
        The losses; none where there is no file.

    Raises:
        ModelError: If the file is damaged.
    """
    if not path.exists():
        return ()
    record, _ = _load(path, with_arrays=False)
    return tuple(record["losses"])


def save_pretrained(state: PretrainedState, path: Path) -> None:
    """Save what a training without labels left behind, as one `.npz` file."""
    record = {
        "losses": state.losses,
        "seconds": state.seconds,
        "computed_with": state.computed_with,
    }
    _save(record, {"variable": state.variables}, path)


def load_pretrained(path: Path) -> PretrainedState | None:
    """Load what a training without labels left behind, or return None.

    Raises:
        ModelError: If the file is damaged.
    """
    if not path.exists():
        return None
    record, groups = _load(path)
    return PretrainedState(
        losses=tuple(record["losses"]),
        seconds=record["seconds"],
        variables=groups["variable"],
        computed_with=record.get("computed_with"),
    )


def _save(
    record: dict[str, Any], groups: Mapping[str, NamedArrays], path: Path
) -> None:
    names = {kind: [name for name, _ in group] for kind, group in groups.items()}
    arrays: dict[str, Any] = {
        f"{kind}_{index}": value
        for kind, group in groups.items()
        for index, (_, value) in enumerate(group)
    }
    text = json.dumps({**record, "names": names})
    with write_whole(path) as part:
        np.savez(part, record=np.array(text), **arrays)


def _load(
    path: Path, *, with_arrays: bool = True
) -> tuple[dict[str, Any], dict[str, NamedArrays]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            if with_arrays and "names" not in record:
                raise ValueError(_OLDER)  # noqa: TRY301 - told as any other damage
            groups = {
                kind: [
                    (name, file[f"{kind}_{index}"]) for index, name in enumerate(names)
                ]
                for kind, names in (record["names"] if with_arrays else {}).items()
            }
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"Checkpoint {path} cannot be read: {error}. Train again with --overwrite."
        ) from error
    return record, groups


def read_variables(model: Any) -> NamedArrays:
    """Return the weights of a model, then its random states, with their names."""
    return copy_values(_list_variables(model))


def copy_values(variables: list[tuple[str, Any]]) -> NamedArrays:
    """Return the values of named variables, as arrays of their own."""
    return [(name, copy_value(variable)) for name, variable in variables]


def copy_value(variable: Any) -> npt.NDArray[Any]:
    """Return the value of a variable, as an array of its own."""
    return np.array(keras.ops.convert_to_numpy(variable))


def assign_variables(model: Any, values: NamedArrays, path: Path) -> None:
    """Give a model the weights and random states that a checkpoint holds.

    Args:
        model: The model.
        values: What `read_variables` returned.
        path: The checkpoint, for the message.

    Raises:
        ModelError: If they are those of another model.
    """
    assign_named(_list_variables(model), values, path)


def assign_named(
    variables: list[tuple[str, Any]], values: NamedArrays, path: Path
) -> None:
    """Assign values to variables of the same names, in the same order.

    Raises:
        ModelError: If names or shapes differ. Nothing is assigned then.
    """
    ours = [(name, tuple(variable.shape)) for name, variable in variables]
    theirs = [(name, value.shape) for name, value in values]
    if ours != theirs:
        wrong = sorted(map(str, set(ours) ^ set(theirs))) or ["their order"]
        raise ModelError(
            f"Checkpoint {path} is of another training; first of what differs: "
            f"{', '.join(wrong[:3])}. Start again with --overwrite."
        )
    for (_, variable), (_, value) in zip(variables, values, strict=True):
        variable.assign(value)


def _list_variables(model: Any) -> list[tuple[str, Any]]:
    seeds = [v for v in model.variables if "seed_generator" in v.path]
    return [*((v.path, v) for v in model.weights), *((RANDOM_STATE, v) for v in seeds)]
