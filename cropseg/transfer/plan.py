"""Transfer plans: what is reused of a model, and what is trained, as data.

A plan is composed of independent axes: where weights start, which layers are trained
in which phase, what batch normalisation does, how learning rates fall from the head
to the input, a regulariser, and a few rarer ones. Contradictory plans are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from cropseg.errors import UsageError, join_problems
from cropseg.training.phases import BatchNormPolicy

Part = Literal["encoder", "decoder", "head"]
Start = Literal["source", "random", "imagenet"]
OptimizerStart = Literal["fresh", "source"]

ALL: tuple[Part, ...] = get_args(Part)
"""The parts of a network, from input to output."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A share of the steps, with its own set of trained layers.

    Layers are named by selectors: a part (`encoder`), a stage (`encoder_1`, counted
    from the input; `encoder_-1` is the last), or `layers:PATTERN` with shell
    wildcards, several patterns parted by commas.
    """

    name: str
    """Such as `head`."""
    trained: tuple[str, ...]
    """Selectors of the layers that are trained, batch normalisations apart."""
    locked: tuple[str, ...] = ()
    """Selectors of layers that are locked all the same, batch normalisations with
    their statistics."""
    batch_norm: Mapping[Part, BatchNormPolicy]
    """What the batch normalisations of each part do. Where only some layers of a
    part are trained, those of the others are locked with their statistics."""
    share: float = 1.0
    """Its share of the steps, beside those of the other phases."""
    rates: Mapping[Part, float] = field(default_factory=dict)
    """What the learning rate is multiplied by in a part; 1 where it is not named."""
    rate_decay: float = 1.0
    """What the learning rate is multiplied by at each stage, from the head down."""
    searches_rate: bool = False
    """Whether a range test finds its learning rate."""
    each_encoder_stage: bool = False
    """Whether it stands for one phase an encoder stage, from the last to the first,
    each of which trains one stage more. Its share is that of all of them."""


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """One way of reusing a model of another site."""

    mode: str
    """Its name."""
    summary: str
    """What it does, in one sentence."""
    serves: str
    """When it is meant to serve, in one sentence."""
    origin: str
    """Where the idea is from: author, year and DOI or arXiv number, or who asks."""
    start: Mapping[Part, Start]
    """Where the weights of each part start: from the source, at random, or from
    ImageNet."""
    phases: tuple[Phase, ...]
    """Its phases, in order; none where nothing is changed."""
    l2sp: float = 0.0
    """Strength of the penalty on moving away from the source's weights; 0 for none."""
    source_share: float = 0.0
    """Share of the tiles of a batch that come from the source site."""
    pretrains: bool = False
    """Whether the encoder is first trained without labels on tiles of the target."""
    optimizer: OptimizerStart = "fresh"
    """Whether slots, step count and schedule of the source's training go on."""
    caches_features: bool = False
    """Whether the features that a trained head reads are computed once and kept."""
    words: str = field(default="", compare=False)
    """What a sentence calls it, such as "training from scratch"; empty for its name."""

    def __post_init__(self) -> None:
        """Check that the axes do not contradict each other.

        Raises:
            UsageError: If they do. All problems are listed.
        """
        problems = [*_check_axes(self)]
        for phase in self.phases:
            problems += _check_phase(self, phase)
        if problems:
            title = f"Mode {self.mode} contradicts itself"
            raise UsageError(join_problems(title, problems))

    @property
    def trains(self) -> bool:
        """Whether anything is trained with labels."""
        return any(phase_trains(phase) for phase in self.phases)

    @property
    def loaded(self) -> tuple[Part, ...]:
        """Parts that start from the source's weights."""
        return tuple(part for part in ALL if self.start[part] == "source")

    @property
    def recomputes_statistics(self) -> bool:
        """Whether batch statistics are measured on tiles of the target."""
        return any(
            policy.statistics == "recomputed"
            for phase in self.phases
            for policy in phase.batch_norm.values()
        )

    @property
    def needs_source_site(self) -> bool:
        """Whether tiles of the source site are needed."""
        return self.source_share > 0

    @property
    def sees_labels(self) -> bool:
        """Whether the labels of the target decide anything."""
        return self.trains


def phase_trains(phase: Phase) -> bool:
    """Tell whether a phase trains anything."""
    return bool(phase.trained) or any(
        policy.affine == "trained" for policy in phase.batch_norm.values()
    )


def _check_axes(plan: TransferPlan) -> list[str]:
    problems = []
    if set(plan.start) != set(ALL):
        problems.append(f"`start` names {sorted(plan.start)}; it must name all parts.")
        return problems
    if "imagenet" in (plan.start["decoder"], plan.start["head"]):
        problems.append("Only the encoder can start from ImageNet.")
    if not 0 <= plan.l2sp < math.inf:
        problems.append(f"`l2sp` is {plan.l2sp}; it must be 0 or greater.")
    if plan.l2sp and not plan.loaded:
        problems.append("`l2sp` holds weights to the source's, but none is loaded.")
    if not 0 <= plan.source_share < 1:
        problems.append(
            f"`source_share` is {plan.source_share}; it must be 0 or more and below 1."
        )
    names = [phase.name for phase in plan.phases]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        problems.append(f"Several phases are called {', '.join(repeated)}.")
    if plan.optimizer == "source":
        problems += _check_resumed(plan)
    return problems + (_check_random(plan) if plan.trains else _check_idle(plan))


def _check_resumed(plan: TransferPlan) -> list[str]:
    """Check a plan in which the source's optimizer goes on: all must be as it was."""
    changed = plan.loaded != ALL or len(plan.phases) != 1 or plan.pretrains
    for phase in plan.phases:
        changed |= set(phase.trained) != set(ALL) or bool(phase.locked)
        changed |= bool(phase.rates) or phase.rate_decay != 1 or phase.searches_rate
    if not changed:
        return []
    problem = (
        "The source's optimizer goes on only where every part starts from the source "
        "and is trained, in one phase, at the source's rate and without pretraining."
    )
    return [problem]


def _check_idle(plan: TransferPlan) -> list[str]:
    """Check a plan that trains nothing."""
    given = {
        "l2sp": plan.l2sp,
        "source_share": plan.source_share,
        "pretrains": plan.pretrains,
        "optimizer: source": plan.optimizer == "source",
        "caches_features": plan.caches_features,
    }
    problems = [
        f"`{name}` has no meaning where nothing is trained."
        for name, value in given.items()
        if value
    ]
    others = [part for part in ALL if plan.start[part] != "source"]
    if others:
        problems.append(
            f"Nothing is trained, but {', '.join(others)} would not be the source's."
        )
    return problems


def _check_random(plan: TransferPlan) -> list[str]:
    """Check that what starts at random is trained.

    A selector that is no part may name layers of any part, so it counts as training.
    """
    return [
        f"The {part} starts at random, but no phase trains it."
        for part in ALL
        if plan.start[part] == "random"
        and not any(
            part not in phase.locked
            and any(item == part or item not in ALL for item in phase.trained)
            for phase in plan.phases
        )
    ]


def _check_phase(plan: TransferPlan, phase: Phase) -> list[str]:
    if set(phase.batch_norm) != set(ALL):
        return [f"Phase {phase.name}: `batch_norm` must name all parts."]
    problems = _check_rates(phase)
    if phase_trains(phase):
        if not 0 < phase.share < math.inf:
            problems.append(f"`share` is {phase.share}; it must be above 0.")
    else:
        kinds = {policy.statistics for policy in phase.batch_norm.values()}
        if "running" in kinds:
            problems.append(
                "nothing is trained, so there are no steps in which batch statistics "
                "could run; `recomputed` measures them."
            )
        elif "recomputed" not in kinds:
            problems.append("it neither trains nor measures anything.")
        if phase.searches_rate:
            problems.append("`searches_rate` has no meaning where nothing is trained.")
    if phase.locked and not phase.trained:
        problems.append("`locked` without `trained` locks nothing.")
    if phase.each_encoder_stage and set(phase.trained) != set(ALL):
        problems.append("`each_encoder_stage` ends with all trained; name all parts.")
    if plan.caches_features and (
        phase.trained != ("head",)
        or any(phase.batch_norm[part].statistics == "running" for part in ALL[:2])
        or any(phase.batch_norm[part].affine == "trained" for part in ALL[:2])
    ):
        problems.append("features can be kept only where nothing below the head moves.")
    problems += [
        f"the {part} starts at random, so its batch statistics must run."
        for part in ALL
        if plan.start.get(part) == "random"
        and phase.batch_norm[part].statistics != "running"
    ]
    return [f"Phase {phase.name}: {problem}" for problem in problems]


def _check_rates(phase: Phase) -> list[str]:
    problems = []
    if not all(
        0 < rate < math.inf for rate in (phase.rate_decay, *phase.rates.values())
    ):
        problems.append("rates must be above 0; lock a part instead.")
    unknown = [part for part in phase.rates if part not in ALL]
    if unknown:
        problems.append(f"`rates` names {unknown}; parts are {', '.join(ALL)}.")
    idle = [
        part
        for part in ALL
        if part in phase.rates
        and phase.batch_norm[part].affine == "locked"
        and all(item in ALL and item != part for item in phase.trained)
    ]
    if idle:
        problems.append(f"`rates` names {', '.join(idle)}, which is not trained.")
    return problems
