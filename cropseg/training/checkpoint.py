"""The state of a training at the end of an epoch, so that it can go on.

Weights, optimizer slots, step count and random states are kept, so that a
training that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.files import write_whole
from cropseg.training.history import Epoch

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a training is."""

    epochs: tuple[Epoch, ...]
    """The epochs done."""
    losses: tuple[float, ...]
    """Training loss of every step done."""
    variables: Arrays
    """Values of the trainer's variables, then of its optimizer's."""
    best_weights: Arrays
    """Weights of the best epoch so far; empty where nothing is validated."""


def save_state(state: TrainingState, path: Path) -> None:
    """Save a state as one `.npz` file."""
    record = {"epochs": [asdict(item) for item in state.epochs], "losses": state.losses}
    arrays: dict[str, Any] = {
        f"variable_{i}": value for i, value in enumerate(state.variables)
    }
    arrays |= {f"best_{i}": value for i, value in enumerate(state.best_weights)}
    with write_whole(path) as part:
        np.savez(part, record=np.array(json.dumps(record)), **arrays)


def load_state(path: Path) -> TrainingState | None:
    """Load a state, or return None where there is none.

    Raises:
        ModelError: If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            arrays = {name: file[name] for name in file.files if name != "record"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"Checkpoint {path} cannot be read: {error}. Start again with --overwrite."
        ) from error
    return TrainingState(
        epochs=tuple(Epoch(**item) for item in record["epochs"]),
        losses=tuple(record["losses"]),
        variables=_take(arrays, "variable"),
        best_weights=_take(arrays, "best"),
    )


def _take(arrays: dict[str, npt.NDArray[Any]], kind: str) -> Arrays:
    count = sum(name.startswith(f"{kind}_") for name in arrays)
    return [arrays[f"{kind}_{index}"] for index in range(count)]
