"""How many steps each mode gets, where the settings do not say it. No Keras.

`equal.py` measures, and leaves the numbers in the folder of the comparison. They are
read back here, so that a later call repeats the experiment and not the measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cropseg.training.settings import TrainSettings

STEPS_NAME = "steps.json"
"""Where the steps lie that `scratch` needed."""

PACE_NAME = "pace.json"
"""Where the seconds lie that a step of each mode takes."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What was measured about the steps of a comparison."""

    epochs: int | None = None
    """Epochs after which `scratch` was flat; None where the settings hold."""
    per_epoch: Mapping[str, int] = field(default_factory=dict)
    """Steps of an epoch, by mode, where all take the same time."""

    def change(self, settings: TrainSettings, mode: str) -> TrainSettings:
        """Return the settings of a mode."""
        epochs = self.epochs or settings.epochs
        steps = self.per_epoch.get(mode, settings.steps_per_epoch)
        return settings.change(epochs=epochs, steps_per_epoch=steps)


def read_steps(folder: Path) -> Steps:
    """Return what earlier calls have measured in the folder of a comparison."""
    flat, pace = read_document(folder / STEPS_NAME), read_document(folder / PACE_NAME)
    modes = pace.get("modes", {})
    return Steps(
        epochs=flat.get("epochs"),
        per_epoch={mode: item["steps_per_epoch"] for mode, item in modes.items()},
    )


def read_document(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where there is none."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
