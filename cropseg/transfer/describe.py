"""What a transfer plan does, in words and as JSON, from its data alone. No Keras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cropseg.training.phases import BatchNormPolicy
from cropseg.transfer.modes import (
    FAMILIES,
    PIXEL_FOREST,
    PIXEL_FOREST_ORIGIN,
    PIXEL_FOREST_SERVES,
    PIXEL_FOREST_SUMMARY,
    PLANS,
)
from cropseg.transfer.plan import ALL, Part, Phase, TransferPlan, phase_trains

_STARTS = {
    "source": "from the source's weights",
    "random": "at random",
    "imagenet": "from ImageNet weights",
}

_STATISTICS = {
    "source": "normalises by the statistics it starts with, and keeps them",
    "running": "normalises by each batch, and its statistics follow the batches",
    "recomputed": "first measures its statistics on tiles of the site, without "
    "labels, then keeps them",
}

_AFFINE = {
    "locked": "scale and shift are locked",
    "trained": "scale and shift are trained",
}

_SHORT = {
    ("source", "locked"): "frozen",
    ("source", "trained"): "inference",
    ("running", "trained"): "running",
    ("recomputed", "locked"): "recomputed",
}

_BRIEF = {"encoder": "enc", "decoder": "dec", "head": "head"}

_EXTRAS = {
    "l2sp": "penalty",
    "source_share": "tiles of both sites",
    "pretrains": "pretraining",
    "caches_features": "cached features",
}


def describe_plan(plan: TransferPlan) -> list[str]:
    """Say what a plan does, a sentence or a few a line.

    Args:
        plan: The plan.

    Returns:
        What it is for, where weights start, what each phase trains, what batch
        normalisation does, and whatever else the plan asks for.
    """
    lines = [plan.summary]
    lines += [f"Serves: {plan.serves}"] if plan.serves else []
    lines += [f"Origin: {plan.origin}."] if plan.origin else []
    lines.append(f"Start: {'; '.join(_describe_start(plan))}.")
    if plan.pretrains:
        lines.append(
            "Before that, the encoder is trained without labels on tiles of the site."
        )
    if not plan.phases:
        lines.append("Nothing is trained and nothing else changes; no label is read.")
    total = sum(phase.share for phase in plan.phases if phase_trains(phase))
    for number, phase in enumerate(plan.phases, start=1):
        title = "Training" if phase_trains(phase) else "No training"
        title = f"Phase {number}, {phase.name}" if len(plan.phases) > 1 else title
        lines.append(f"{title}: {' '.join(_describe_phase(phase, total))}")
    return [*lines, *_describe_rest(plan)]


def plan_to_json(plan: TransferPlan) -> dict[str, Any]:
    """Return a plan as JSON values, in the form of a file with a plan."""
    return {
        "mode": plan.mode,
        "summary": plan.summary,
        "serves": plan.serves,
        "origin": plan.origin,
        "start": {part: plan.start[part] for part in ALL},
        "phases": [_phase_to_json(phase) for phase in plan.phases],
        "l2sp": plan.l2sp,
        "source_share": plan.source_share,
        "pretrains": plan.pretrains,
        "optimizer": plan.optimizer,
        "caches_features": plan.caches_features,
    }


def list_plans() -> list[dict[str, Any]]:
    """Return every mode of the table as JSON values, with its whole plan.

    Modes that take a value stand there by their placeholder, such as
    `freeze_first:N`, with the plan of their `example`. The forest has no plan.
    """
    rows = [plan_to_json(plan) for plan in PLANS.values()]
    for name, family in FAMILIES.items():
        changes = {
            "mode": f"{name}:{family.placeholder}",
            "example": f"{name}:{family.example}",
            "summary": family.summary,
        }
        rows.append(plan_to_json(family.build(family.example)) | changes)
    return [*rows, describe_forest()]


def describe_forest() -> dict[str, Any]:
    """Return what the table says of the forest, as JSON values."""
    return {
        "mode": PIXEL_FOREST,
        "summary": PIXEL_FOREST_SUMMARY,
        "serves": PIXEL_FOREST_SERVES,
        "origin": PIXEL_FOREST_ORIGIN,
        "start": None,
        "phases": [],
    }


def summarize_axes(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the axes of a plan in a few words each, for a table.

    Args:
        row: What `plan_to_json` returned, or a row of `list_plans`.

    Returns:
        `start`, `trained`, `batch_norm` and `training` (phases, rates and more).
    """
    phases = [phase for phase in row["phases"] if _row_trains(phase)]
    trained = [_summarize_trained(phase) for phase in phases]
    if "example" in row:
        trained = ["all but some"]
    norms = dict.fromkeys(map(_summarize_norms, row["phases"]))
    return {
        "start": _merge_parts(row["start"] or {}),
        "trained": " > ".join(trained) or "-",
        "batch_norm": " > ".join(norms) or "-",
        "training": ", ".join(_summarize_training(row, phases)) or "-",
    }


def _describe_start(plan: TransferPlan) -> Iterator[str]:
    for start in dict.fromkeys(plan.start[part] for part in ALL):
        parts = [part for part in ALL if plan.start[part] == start]
        verb = "starts" if len(parts) == 1 else "start"
        yield f"{_join(parts)} {verb} {_STARTS[start]}"


def _describe_phase(phase: Phase, total: float) -> Iterator[str]:
    if not phase_trains(phase):
        yield "It takes no steps."
    elif phase.share < total:
        yield f"It takes {phase.share / total:.0%} of the steps."
    yield from _describe_layers(phase)
    yield from _describe_norms(phase.batch_norm)
    if phase.locked or phase.each_encoder_stage or set(phase.trained) - set(ALL):
        yield (
            "Where only some layers of a part are trained, the batch normalisations "
            "of the others are locked with their statistics."
        )
    if phase_trains(phase):
        yield from _describe_rates(phase)


def _describe_layers(phase: Phase) -> Iterator[str]:
    if phase.each_encoder_stage:
        yield (
            "It is repeated for each encoder stage, from the last to the first, in "
            "equal shares; every time one stage more is trained, beside decoder and "
            "head."
        )
        return
    if not phase.trained:
        if phase_trains(phase):
            yield "Only batch normalisations are trained."
        return
    yield f"Trained: {_join(phase.trained)}."
    locked = [part for part in ALL if part not in phase.trained]
    if phase.locked:
        yield f"Of these are locked: {_join(phase.locked)}."
    if set(phase.trained) - set(ALL):
        yield "All other layers are locked."
    elif locked:
        yield f"Locked: {_join(locked)}."


def _describe_norms(norms: Mapping[Part, BatchNormPolicy]) -> Iterator[str]:
    for policy in dict.fromkeys(norms[part] for part in ALL):
        parts = [part for part in ALL if norms[part] == policy]
        where = "everywhere" if len(parts) == len(ALL) else f"in {_join(parts)}"
        yield (
            f"Batch normalisation {where} {_STATISTICS[policy.statistics]}; "
            f"{_AFFINE[policy.affine]}."
        )


def _describe_rates(phase: Phase) -> Iterator[str]:
    if phase.searches_rate:
        yield "A range test finds its learning rate."
    for rate in dict.fromkeys(phase.rates.values()):
        parts = [part for part in ALL if phase.rates.get(part) == rate]
        where = "" if len(parts) == len(ALL) else f" in {_join(parts)}"
        yield f"The learning rate is multiplied by {rate:.4g}{where}."
    if phase.rate_decay != 1:
        yield (
            f"At each stage from the head down to the input the learning rate is "
            f"multiplied by {phase.rate_decay:.4g} once more."
        )


def _describe_rest(plan: TransferPlan) -> Iterator[str]:
    if plan.l2sp:
        yield (
            f"A penalty of strength {plan.l2sp:.4g} holds the source's weights to "
            "where they started, and new ones to zero."
        )
    if plan.source_share:
        yield (
            f"{plan.source_share:.0%} of the tiles of each batch come from the source "
            "site, which has to be given."
        )
    if plan.optimizer == "source":
        yield "The optimizer's slots, step count and schedule are those of the source."
    if plan.caches_features:
        yield "What the head reads is computed once for a fixed number of batches."
    if plan.phases and not plan.sees_labels:
        yield "No label is read."


def _phase_to_json(phase: Phase) -> dict[str, Any]:
    norms = {
        part: {
            "statistics": phase.batch_norm[part].statistics,
            "affine": phase.batch_norm[part].affine,
        }
        for part in ALL
    }
    return {
        "name": phase.name,
        "trained": list(phase.trained),
        "locked": list(phase.locked),
        "batch_norm": norms,
        "share": phase.share,
        "rates": dict(phase.rates),
        "rate_decay": phase.rate_decay,
        "searches_rate": phase.searches_rate,
        "each_encoder_stage": phase.each_encoder_stage,
    }


def _row_trains(phase: Mapping[str, Any]) -> bool:
    norms = phase["batch_norm"].values()
    return bool(phase["trained"]) or any(n["affine"] == "trained" for n in norms)


def _summarize_trained(phase: Mapping[str, Any]) -> str:
    if phase["each_encoder_stage"]:
        return "stage by stage"
    trained = phase["trained"]
    text = "all" if set(trained) == set(ALL) else "+".join(trained) or "norms"
    return f"{text} but {'+'.join(phase['locked'])}" if phase["locked"] else text


def _summarize_norms(phase: Mapping[str, Any]) -> str:
    norms = {}
    for part, flags in phase["batch_norm"].items():
        kind = (flags["statistics"], flags["affine"])
        norms[part] = _SHORT.get(kind, "/".join(kind))
    return _merge_parts(norms)


def _merge_parts(values: Mapping[str, str]) -> str:
    """Return `running`, or `enc frozen, dec+head running`: each value once."""
    kinds: dict[str, list[str]] = {}
    for part, value in values.items():
        kinds.setdefault(value, []).append(_BRIEF[part])
    if len(kinds) == 1 and len(values) == len(ALL):
        return next(iter(kinds))
    named = [f"{'+'.join(parts)} {value}" for value, parts in kinds.items()]
    return ", ".join(named) or "-"


def _summarize_training(
    row: Mapping[str, Any], phases: list[Mapping[str, Any]]
) -> Iterator[str]:
    if len(phases) > 1:
        yield f"{len(phases)} phases"
    for phase in phases:
        if phase["rates"]:
            yield _merge_parts({p: f"x{r:g}" for p, r in phase["rates"].items()})
        if phase["rate_decay"] != 1:
            yield f"x{phase['rate_decay']:g} a stage"
    if any(phase["searches_rate"] for phase in phases):
        yield "rate search"
    yield from (text for axis, text in _EXTRAS.items() if row.get(axis))
    if row.get("optimizer") == "source":
        yield "source's optimizer"


def _join(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
