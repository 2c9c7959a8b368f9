"""Transfer modes, as data.

A mode says which parts start from the source's weights, which parts are trained,
and what batch normalisation does in each. Everything else is equal for all modes.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cropseg.errors import UsageError

Part = Literal["encoder", "decoder", "head"]

ALL: tuple[Part, ...] = ("encoder", "decoder", "head")
"""The parts of a network, from input to output."""


@dataclass(frozen=True, kw_only=True)
class BatchNormPolicy:
    """What the batch normalisations of a part do in training."""

    statistics: Literal["source", "running"]
    """`source`: normalise by the statistics that were loaded, and keep them.
    `running`: normalise by the batch, and let them follow it."""
    affine: Literal["locked", "trained"]
    """Whether scale and shift are trained."""


FROZEN = BatchNormPolicy(statistics="source", affine="locked")
INFERENCE = BatchNormPolicy(statistics="source", affine="trained")
RUNNING = BatchNormPolicy(statistics="running", affine="trained")


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """One way of reusing a model of another site."""

    mode: str
    """Its name."""
    summary: str
    """What it does, in one sentence."""
    loaded: tuple[Part, ...]
    """Parts that start from the source's weights; the others start at random."""
    trained: tuple[Part, ...]
    """Parts whose weights, batch normalisation apart, are trained."""
    batch_norm: Mapping[Part, BatchNormPolicy]
    """What batch normalisation does in each part."""

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return bool(self.trained)


_PLANS = (
    TransferPlan(
        mode="zero_shot",
        summary="No training: the source as it is, limited to the site's classes.",
        loaded=ALL,
        trained=(),
        batch_norm=dict.fromkeys(ALL, FROZEN),
    ),
    TransferPlan(
        mode="scratch",
        summary="Random weights; everything is trained.",
        loaded=(),
        trained=ALL,
        batch_norm=dict.fromkeys(ALL, RUNNING),
    ),
    TransferPlan(
        mode="full",
        summary="Every layer starts from the source and is retrained.",
        loaded=ALL,
        trained=ALL,
        batch_norm=dict.fromkeys(ALL, RUNNING),
    ),
    TransferPlan(
        mode="full_bn_source",
        summary="As full, with batch normalisation in inference mode throughout.",
        loaded=ALL,
        trained=ALL,
        batch_norm=dict.fromkeys(ALL, INFERENCE),
    ),
    TransferPlan(
        mode="frozen_encoder",
        summary="Encoder locked, batch statistics too; decoder and head are trained.",
        loaded=ALL,
        trained=("decoder", "head"),
        batch_norm={"encoder": FROZEN, "decoder": RUNNING, "head": RUNNING},
    ),
    TransferPlan(
        mode="frozen_encoder_bn_train",
        summary="As frozen_encoder, but the encoder's batch normalisation is trained.",
        loaded=ALL,
        trained=("decoder", "head"),
        batch_norm=dict.fromkeys(ALL, RUNNING),
    ),
    TransferPlan(
        mode="head_only",
        summary="Only the last layer is trained, on the source's features.",
        loaded=ALL,
        trained=("head",),
        batch_norm={"encoder": FROZEN, "decoder": FROZEN, "head": RUNNING},
    ),
)

PLANS: Mapping[str, TransferPlan] = {plan.mode: plan for plan in _PLANS}
"""Every mode that transfers a network."""


PIXEL_FOREST = "pixel_forest"
"""The baseline that is no network. `compare` takes its name like that of a mode."""


def get_plan(mode: str) -> TransferPlan:
    """Return the plan of a mode.

    Raises:
        UsageError: If there is no such mode.
    """
    if mode == PIXEL_FOREST:
        raise UsageError(f"{PIXEL_FOREST} is no network; only `compare` runs it.")
    if mode not in PLANS:
        raise UsageError(describe_unknown_mode(mode, list(PLANS)))
    return PLANS[mode]


def describe_unknown_mode(mode: str, modes: list[str]) -> str:
    """Say that there is no such mode, and which there are."""
    near = difflib.get_close_matches(mode, modes, n=1, cutoff=0.0)[0]
    return f"No mode {mode!r}; the nearest is {near!r}. Modes: {', '.join(modes)}."
