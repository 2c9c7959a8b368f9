"""From the phases of a plan to the layers and steps of one network. No Keras here."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from cropseg.errors import UsageError, join_problems
from cropseg.training.phases import FROZEN, BatchNormPolicy, FitPhase
from cropseg.transfer.plan import ALL, Phase, TransferPlan, phase_trains

if TYPE_CHECKING:  # it imports Keras, and a plan is checked before that
    from cropseg.models.card import CardStage
    from cropseg.models.stages import Stage

_LAYERS = "layers:"
_NUMBERED = re.compile(r"(.+)_(-?[1-9][0-9]{0,3})")


def resolve_phases(
    plan: TransferPlan,
    stages: Sequence[Stage | CardStage],
    norms: Collection[str],
    *,
    num_steps: int,
) -> tuple[FitPhase, ...]:
    """Return the phases of a plan for one network.

    Args:
        plan: What is trained.
        stages: The stages of the network, from input to output.
        norms: Names of its batch normalisations.
        num_steps: Batches in all.

    Returns:
        The phases, in order. Those that train share the steps.

    Raises:
        UsageError: If a selector names nothing, a phase that should train something
            finds nothing to train, or there are fewer steps than phases.
    """
    phases = [item for phase in plan.phases for item in _unfold(phase, stages)]
    counts = _share_steps(plan.mode, phases, num_steps)
    resolved = tuple(
        _resolve(phase, stages, norms, num_steps=count)
        for phase, count in zip(phases, counts, strict=True)
    )
    for phase in resolved:
        if phase.trains and not _find_trained(phase):
            raise UsageError(
                f"Phase {phase.name} of mode {plan.mode} finds nothing to train in "
                "this network. `cropseg inspect MODEL` lists its layers."
            )
    return resolved


def check_selectors(
    plan: TransferPlan, stages: Sequence[Stage | CardStage], *, num_steps: int
) -> None:
    """Check early, by the card of a model, that a plan suits its network.

    Args:
        plan: What is trained.
        stages: The stages of the network, from input to output.
        num_steps: Batches in all.

    Raises:
        UsageError: If a selector names nothing, or there are fewer steps than phases.
    """
    phases = [item for phase in plan.phases for item in _unfold(phase, stages)]
    _share_steps(plan.mode, phases, num_steps)
    for phase in phases:
        select_layers((*phase.trained, *phase.locked), stages)


def trains_head(plan: TransferPlan, stages: Sequence[Stage | CardStage]) -> bool:
    """Tell whether any phase of a plan trains the head of a network."""
    head = {layer for stage in stages if stage.part == "head" for layer in stage.layers}
    return any(
        head
        & (select_layers(phase.trained, stages) - select_layers(phase.locked, stages))
        for phase in plan.phases
    )


def select_layers(
    selectors: Sequence[str], stages: Sequence[Stage | CardStage]
) -> frozenset[str]:
    """Return the names of the layers that selectors name.

    Args:
        selectors: Parts, stages, or `layers:PATTERN,...`, as `Phase` has them.
        stages: The stages of a network.

    Raises:
        UsageError: If a selector, or one of several patterns, names no layer. All
            such are listed.
    """
    wanted = [single for selector in selectors for single in _split(selector)]
    found = {selector: frozenset(_select(selector, stages)) for selector in wanted}
    problems = [
        f"{selector!r} names no layer that has weights."
        for selector, layers in found.items()
        if not layers
    ]
    if problems:
        names = [stage.name for stage in stages]
        title = (
            f"This network has parts ({', '.join(ALL)}), stages ({', '.join(names)}) "
            "and layers:PATTERN; `cropseg inspect MODEL` lists the layers"
        )
        raise UsageError(join_problems(title, problems))
    return frozenset().union(*found.values())


def _split(selector: str) -> list[str]:
    """Part the patterns of a selector, so that none of them can be a slip."""
    if not selector.startswith(_LAYERS):
        return [selector]
    return [f"{_LAYERS}{item.strip()}" for item in selector[len(_LAYERS) :].split(",")]


def _select(selector: str, stages: Sequence[Stage | CardStage]) -> Iterator[str]:
    if selector.startswith(_LAYERS):
        pattern = selector[len(_LAYERS) :]
        for stage in stages:
            yield from (n for n in stage.layers if fnmatch.fnmatchcase(n, pattern))
        return
    named = [stage for stage in stages if selector in (stage.name, stage.part)]
    numbered = _NUMBERED.fullmatch(selector)
    if not named and numbered:
        members = [stage for stage in stages if stage.part == numbered[1]]
        position = int(numbered[2])
        position -= position > 0  # counted from 1, and -1 is the last
        if -len(members) <= position < len(members):
            named = [members[position]]
    for stage in named:
        yield from stage.layers


def _unfold(phase: Phase, stages: Sequence[Stage | CardStage]) -> Iterator[Phase]:
    """Give each encoder stage a phase of its own, where the plan asks for that."""
    if not phase.each_encoder_stage:
        yield phase
        return
    encoder = [stage.name for stage in stages if stage.part == "encoder"]
    for first in range(len(encoder) - 1, -1, -1):
        yield replace(
            phase,
            name=encoder[first],
            trained=("head", "decoder", *encoder[first:]),
            share=phase.share / len(encoder),
            each_encoder_stage=False,
        )


def _share_steps(mode: str, phases: Sequence[Phase], num_steps: int) -> list[int]:
    """Divide the steps among the phases that train, each of which gets one or more."""
    shares = [phase.share if phase_trains(phase) else 0.0 for phase in phases]
    trained = sum(share > 0 for share in shares)
    if trained > num_steps:
        raise UsageError(
            f"Mode {mode} has {trained} phases on this network, but there are "
            f"{num_steps} steps. Give more --epochs or --steps-per-epoch."
        )
    ends, total = [0], 0.0
    for index, share in enumerate(shares):
        total += share
        end = round(num_steps * total / sum(shares)) if total else 0
        later = sum(item > 0 for item in shares[index + 1 :])
        least = ends[-1] + (share > 0)
        ends.append(min(max(end, least), num_steps - later))
    return [end - start for start, end in pairwise(ends)]


def _resolve(
    phase: Phase,
    stages: Sequence[Stage | CardStage],
    norms: Collection[str],
    *,
    num_steps: int,
) -> FitPhase:
    locked = select_layers(phase.locked, stages)
    chosen = select_layers(phase.trained, stages) - locked
    policies = _list_policies(phase, stages, chosen=chosen, locked=locked)
    policies = {name: policy for name, policy in policies.items() if name in norms}
    moved = chosen - set(norms)
    rated = moved | {n for n, policy in policies.items() if policy.affine == "trained"}
    return FitPhase(
        name=phase.name,
        num_steps=num_steps,
        trained=moved,
        norms=policies,
        rates=_list_rates(phase, stages, rated),
        searches_rate=phase.searches_rate,
    )


def _list_policies(
    phase: Phase,
    stages: Sequence[Stage | CardStage],
    *,
    chosen: frozenset[str],
    locked: frozenset[str],
) -> dict[str, BatchNormPolicy]:
    """Return the policy of each layer, should it be a batch normalisation.

    It is that of its part. Where only some layers of a part are trained, the others
    are locked, and so is what `locked` names, be it a whole part.
    """
    partly = {s.part for s in stages if any(layer in chosen for layer in s.layers)}
    return {
        layer: FROZEN
        if layer in locked or (stage.part in partly and layer not in chosen)
        else phase.batch_norm[stage.part]  # type: ignore[index]  # a str is a part
        for stage in stages
        for layer in stage.layers
    }


def _list_rates(
    phase: Phase, stages: Sequence[Stage | CardStage], layers: Collection[str]
) -> Mapping[str, float]:
    """Return the rates other than 1 of the layers that are trained."""
    rates: dict[str, float] = {}
    for distance, stage in enumerate(reversed(stages)):
        rate = phase.rates.get(stage.part, 1.0)  # type: ignore[call-overload]
        rate *= phase.rate_decay**distance
        rates |= dict.fromkeys(stage.layers, rate)
    return {name: rate for name, rate in rates.items() if name in layers and rate != 1}


def _find_trained(phase: FitPhase) -> frozenset[str]:
    """Return the layers of which a phase trains a weight."""
    norms = {n for n, policy in phase.norms.items() if policy.affine == "trained"}
    return phase.trained | norms
