"""The phases of a training: which layers are trained, how fast, for how many steps.

What is trainable is a function of the phases and the step alone, so that a training
that goes on after an interruption cannot lock or unlock anything else. No Keras here.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

Statistics = Literal["source", "running", "recomputed"]
Affine = Literal["locked", "trained"]


@dataclass(frozen=True, kw_only=True)
class BatchNormPolicy:
    """What a batch normalisation does in training."""

    statistics: Statistics
    """`source`: normalise by the statistics that were loaded, and keep them.
    `running`: normalise by the batch, and let them follow it.
    `recomputed`: measure them on tiles of the site before the first step of the
    phase, without labels, and then keep them."""
    affine: Affine
    """Whether scale and shift are trained."""


FROZEN = BatchNormPolicy(statistics="source", affine="locked")
INFERENCE = BatchNormPolicy(statistics="source", affine="trained")
RUNNING = BatchNormPolicy(statistics="running", affine="trained")
RECOMPUTED = BatchNormPolicy(statistics="recomputed", affine="locked")


@dataclass(frozen=True, kw_only=True)
class FitPhase:
    """A run of steps with one optimizer and one set of trained layers."""

    name: str
    """Such as `all`, `head` or `encoder_4`."""
    num_steps: int
    """Batches; 0 where nothing is trained."""
    trained: frozenset[str]
    """Names of the layers whose weights are trained, batch normalisations apart."""
    norms: Mapping[str, BatchNormPolicy]
    """What each batch normalisation does, by its layer's name."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """What the learning rate of a layer is multiplied by; 1 where it is not named."""
    searches_rate: bool = False
    """Whether a range test finds its learning rate before its first step."""

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.num_steps > 0

    @property
    def inference_norms(self) -> frozenset[str]:
        """Batch normalisations that keep their statistics while they are trained."""
        return frozenset(
            name
            for name, policy in self.norms.items()
            if policy.statistics != "running" and policy.affine == "trained"
        )

    @property
    def recomputed_norms(self) -> frozenset[str]:
        """Batch normalisations whose statistics are measured before the first step."""
        return frozenset(
            name
            for name, policy in self.norms.items()
            if policy.statistics == "recomputed"
        )


def find_phase(phases: Sequence[FitPhase], step: int) -> int:
    """Return the position of the phase that a step belongs to.

    Args:
        phases: The phases of a training.
        step: The step, counted from 0 over all phases.
    """
    ends = list(accumulate(phase.num_steps for phase in phases))
    return min(bisect.bisect_right(ends, step), len(phases) - 1)
