"""What happened to every variable of a model before and during a training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cropseg.models.stages import Stage


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """One variable of the model, or one of its source that found no place."""

    variable: str
    """Its path, such as `encoder_1_conv_1/kernel`."""
    part: str
    """Encoder, decoder or head."""
    shape: tuple[int, ...]
    """Its shape."""
    action: str
    """`copied`, `initialised` or `skipped`."""
    reason: str
    """Why."""
    training: str = "locked"
    """`trained` or `locked`; `statistics run` or `statistics recomputed` for batch
    statistics that do; `pretrained` for what only the training without labels did."""
    hash_before: str = ""
    """Eight digits of the SHA-256 of its values before the training."""
    hash_after: str = ""
    """The same, after the training."""


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """Every variable of a model, from input to output."""

    rows: tuple[WeightRow, ...]
    """One row a variable, then those of the source that were skipped."""

    def complete(
        self, before: Mapping[str, str], after: Mapping[str, str], locked: Iterable[Any]
    ) -> WeightReport:
        """Return the report with what the training did.

        Args:
            before: Hash of each variable before it, by path.
            after: The same after it.
            locked: The variables that it must not change.
        """
        locked_paths = {variable.path for variable in locked}
        rows = [
            replace(
                row,
                training=_describe_training(row.variable, locked_paths),
                hash_before=before[row.variable],
                hash_after=after[row.variable],
            )
            if row.variable in before
            else row
            for row in self.rows
        ]
        return WeightReport(rows=tuple(rows))

    @property
    def num_trained(self) -> int:
        """Numbers in all trained variables."""
        rows = (row for row in self.rows if row.training == "trained")
        return sum(int(np.prod(row.shape)) for row in rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values."""
        return [{**asdict(row), "shape": list(row.shape)} for row in self.rows]

    def summarize(self) -> list[dict[str, Any]]:
        """Count variables and numbers by part, action, reason and training."""
        groups: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in self.rows:
            changed = "yes" if row.hash_before != row.hash_after else "no"
            key = (row.part, row.action, row.reason, row.training, changed)
            names = ("part", "action", "reason", "training", "changed")
            group = groups.setdefault(
                key,
                dict(zip(names, key, strict=True)) | {"variables": 0, "parameters": 0},
            )
            group["variables"] += 1
            group["parameters"] += int(np.prod(row.shape))
        return list(groups.values())


def _describe_training(path: str, locked: set[str]) -> str:
    if path in locked:
        return "locked"
    if path.endswith(("moving_mean", "moving_variance")):
        return "statistics run"
    return "trained"


def hash_variables(model: Any) -> dict[str, str]:
    """Return eight digits of the SHA-256 of each weight of a model, by path."""
    return {
        variable.path: hashlib.sha256(np.asarray(variable).tobytes()).hexdigest()[:8]
        for variable in model.weights
    }


def report_initialized(model: Any, stages: Iterable[Stage]) -> WeightReport:
    """Return the report of a model whose weights are all random."""
    rows = [
        WeightRow(
            variable=variable.path,
            part=stage.part,
            shape=tuple(variable.shape),
            action="initialised",
            reason="no source",
        )
        for stage in stages
        for name in stage.layers
        for variable in model.get_layer(name).weights
    ]
    return WeightReport(rows=tuple(rows))
