"""The settings of a training, checked before Keras is imported."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from cropseg.errors import UsageError, join_problems
from cropseg.inference.engines.engine import PRECISIONS
from cropseg.sites.site import Site

LOSSES: Mapping[str, tuple[str, ...]] = {
    "cross_entropy": ("cross_entropy",),
    "dice": ("dice",),
    "focal": ("focal",),
    "cross_entropy_dice": ("cross_entropy", "dice"),
    "focal_dice": ("focal", "dice"),
}
"""What `--loss` takes, and the terms of `losses.py` that each loss adds up."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides how a model is trained, but for the labels."""

    architecture: str = "unet"
    """One of the zoo's architectures."""
    encoder: str = "classic"
    """One of the zoo's encoders."""
    tile_size: int = 256
    """Side of a training tile, in pixels."""
    batch_size: int = 8
    """Tiles in a batch."""
    epochs: int = 20
    """Epochs. A model is validated and kept at the end of each."""
    steps_per_epoch: int = 50
    """Batches in an epoch."""
    learning_rate: float = 1e-3
    """Highest learning rate: warm-up over a twentieth of all steps, then a cosine."""
    loss: str = "cross_entropy"
    """One of `LOSSES`."""
    class_weight_power: float = 0.5
    """Classes weigh their frequency to minus this power; 0 weighs all alike."""
    precision: str = "auto"
    """One of `PRECISIONS`."""
    workers: int = 2
    """Threads that prepare batches. It does not change the result."""
    seed: int = 0
    """Seed of initial weights, batches and augmentation."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: If one cannot be used. All problems are listed.
        """
        problems = [
            f"`{field.name}` is {getattr(self, field.name)!r}; it must be "
            f"{_KINDS[str(field.type)][1]}."
            for field in dataclasses.fields(self)
            if not isinstance(getattr(self, field.name), _KINDS[str(field.type)][0])
        ]
        if problems:
            raise UsageError(join_problems("Settings that cannot be used", problems))
        problems += [
            f"`{name}` is {getattr(self, name)}; it must be {least} or greater."
            for name, least in _LEAST.items()
            if not getattr(self, name) >= least
        ]
        problems += [
            f"`{name}` is {getattr(self, name)!r}; it must be one of "
            f"{', '.join(allowed)}."
            for name, allowed in (("loss", LOSSES), ("precision", PRECISIONS))
            if getattr(self, name) not in allowed
        ]
        if not 0 < self.learning_rate < 1:
            problems.append(
                f"`learning_rate` is {self.learning_rate}; it must lie between 0 and 1."
            )
        if problems:
            raise UsageError(join_problems("Settings that cannot be used", problems))

    @property
    def num_steps(self) -> int:
        """Batches in the whole training."""
        return self.epochs * self.steps_per_epoch

    def change(self, **values: Any) -> Self:
        """Return these settings with other values."""
        return dataclasses.replace(self, **values)

    def to_json(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values."""
        values = dataclasses.asdict(self)
        del values["workers"]
        return values


_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number; YAML reads 1e-3 as a text, 1.0e-3 as a number"),
}
"""What a setting of each type may be."""

_LEAST = {
    "tile_size": 8,
    "batch_size": 1,
    "epochs": 1,
    "steps_per_epoch": 1,
    "class_weight_power": 0,
    "workers": 1,
    "seed": 0,
}


def describe_training(site: Site, settings: TrainSettings) -> dict[str, Any]:
    """Return what decides the result of a training, as its run records it."""
    return {
        "command": "train",
        "site": site.name,
        "fingerprint": site.fingerprint,
        "settings": settings.to_json(),
    }


def list_setting_names() -> list[str]:
    """Return the names of all settings."""
    return [field.name for field in dataclasses.fields(TrainSettings)]


ReadKey = Callable[[Any, Path], Any]
"""Reads the value of a key, given the folder of its file."""


def read_settings_file(
    path: Path, more: Mapping[str, ReadKey] | None = None
) -> dict[str, Any]:
    """Read settings from a YAML file, as `--config` gives them.

    Args:
        path: The file.
        more: What else may stand in it, and how that is read.

    Raises:
        UsageError: If it cannot be read or has a key that is no setting.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read settings from {path}: {error}") from error
    if not isinstance(document, Mapping):
        raise UsageError(f"{path} must hold settings as keys and values.")
    readers = more or {}
    known = [*readers, *list_setting_names()]
    problems = [
        f"`{key}` is no setting; the nearest is `{_find_nearest(str(key), known)}`. "
        f"Known are {', '.join(known)}."
        for key in document
        if key not in known
    ]
    found = {}
    for key, value in document.items():
        try:
            found[key] = readers[key](value, path.parent) if key in readers else value
        except UsageError as error:
            problems.append(f"`{key}`: {error}")
    if problems:
        raise UsageError(
            join_problems(f"{path} has {len(problems)} problem(s)", problems)
        )
    return found


def _find_nearest(key: str, known: list[str]) -> str:
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
