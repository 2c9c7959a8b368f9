"""Transfer plans: axes that contradict each other are refused, all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cropseg.errors import UsageError
from cropseg.training.phases import (
    FROZEN,
    INFERENCE,
    RECOMPUTED,
    RUNNING,
    BatchNormPolicy,
)
from cropseg.transfer.plan import ALL, Phase, TransferPlan, phase_trains

SOURCE = dict.fromkeys(ALL, "source")
RANDOM_HEAD = SOURCE | {"head": "random"}
FROZEN_ALL = dict.fromkeys(ALL, FROZEN)
FULL = Phase(name="all", trained=ALL, batch_norm=dict.fromkeys(ALL, RUNNING))
HEAD = Phase(name="head", trained=("head",), batch_norm=FROZEN_ALL)
STATISTICS = Phase(name="s", trained=(), batch_norm=dict.fromkeys(ALL, RECOMPUTED))


def make_plan(*phases, **axes):
    given = {"start": SOURCE} | axes
    return TransferPlan(
        mode="mine", summary="", serves="", origin="", phases=phases, **given
    )


def test_a_plan_without_contradiction_is_made():
    plan = make_plan(STATISTICS, HEAD, FULL, l2sp=0.1, source_share=0.5, pretrains=True)

    assert plan.trains
    assert plan.sees_labels
    assert plan.needs_source_site
    assert plan.recomputes_statistics
    assert plan.loaded == ALL


def test_measuring_statistics_is_no_training():
    plan = make_plan(STATISTICS)

    assert plan.recomputes_statistics
    assert not plan.trains
    assert not plan.sees_labels
    assert not phase_trains(STATISTICS)


def test_scales_alone_are_trained_too():
    norms = dict.fromkeys(ALL, INFERENCE)

    assert make_plan(replace(STATISTICS, batch_norm=norms)).sees_labels


def with_norm(part, policy, phase=FULL):
    return replace(phase, batch_norm={**phase.batch_norm, part: policy})


RUNNING_LOCKED = BatchNormPolicy(statistics="running", affine="locked")

CONTRADICTIONS = {
    "a part without start": ([FULL], {"start": {"encoder": "source"}}, "all parts"),
    "a head of ImageNet": (
        [FULL],
        {"start": SOURCE | {"head": "imagenet"}},
        "Only the encoder can start from ImageNet",
    ),
    "a decoder of ImageNet": (
        [FULL],
        {"start": SOURCE | {"decoder": "imagenet"}},
        "Only the encoder can start from ImageNet",
    ),
    "a negative penalty": ([FULL], {"l2sp": -0.1}, "`l2sp` is -0.1"),
    "a penalty that is no number": ([FULL], {"l2sp": float("nan")}, "`l2sp` is nan"),
    "a penalty without end": ([FULL], {"l2sp": float("inf")}, "`l2sp` is inf"),
    "a penalty on nothing": (
        [FULL],
        {"l2sp": 0.1, "start": dict.fromkeys(ALL, "random")},
        "none is loaded",
    ),
    "no tile of the target": ([FULL], {"source_share": 1.0}, "`source_share` is 1.0"),
    "a negative share of tiles": ([FULL], {"source_share": -0.1}, "below 1"),
    "two phases of one name": ([HEAD, replace(FULL, name="head")], {}, "called head"),
    "old slots of a new head": (
        [FULL],
        {"optimizer": "source", "start": RANDOM_HEAD},
        "optimizer goes on only",
    ),
    "old slots in two phases": ([HEAD, FULL], {"optimizer": "source"}, "in one phase"),
    "old slots of some parts": ([HEAD], {"optimizer": "source"}, "and is trained"),
    "old slots, locked layers": (
        [replace(FULL, locked=("encoder_1",))],
        {"optimizer": "source"},
        "and is trained",
    ),
    "old slots at other rates": (
        [replace(FULL, rates={"encoder": 0.1})],
        {"optimizer": "source"},
        "source's rate",
    ),
    "old slots at falling rates": (
        [replace(FULL, rate_decay=0.5)],
        {"optimizer": "source"},
        "source's rate",
    ),
    "old slots and a search": (
        [replace(FULL, searches_rate=True)],
        {"optimizer": "source"},
        "source's rate",
    ),
    "old slots of other weights": (
        [FULL],
        {"optimizer": "source", "pretrains": True},
        "without pretraining",
    ),
    "a penalty without training": ([], {"l2sp": 0.1}, "`l2sp` has no meaning"),
    "tiles without training": ([], {"source_share": 0.5}, "`source_share` has no"),
    "pretraining alone": ([STATISTICS], {"pretrains": True}, "`pretrains` has no"),
    "slots without training": ([], {"optimizer": "source"}, "`optimizer: source` has"),
    "features without training": ([], {"caches_features": True}, "`caches_features`"),
    "a random head for ever": ([], {"start": RANDOM_HEAD}, "head would not be"),
    "a random head, locked": (
        [with_norm("head", RUNNING, replace(FULL, trained=ALL[:2]))],
        {"start": RANDOM_HEAD},
        "head starts at random, but no phase trains it",
    ),
    "a random head, locked by name": (
        [replace(FULL, locked=("head",))],
        {"start": RANDOM_HEAD},
        "head starts at random, but no phase trains it",
    ),
    "a part without norms": (
        [replace(FULL, batch_norm={"encoder": RUNNING})],
        {},
        "Phase all: `batch_norm` must name all parts",
    ),
    "random weights, old statistics": (
        [with_norm("head", INFERENCE)],
        {"start": RANDOM_HEAD},
        "head starts at random, so its batch statistics must run",
    ),
    "random weights, statistics measured once": (
        [with_norm("head", RECOMPUTED)],
        {"start": RANDOM_HEAD},
        "head starts at random, so its batch statistics must run",
    ),
    "no share of the steps": ([replace(FULL, share=0.0)], {}, "`share` is 0.0"),
    "all of the steps": ([replace(FULL, share=float("inf"))], {}, "`share` is inf"),
    "a rate of 0": ([replace(FULL, rates={"head": 0.0})], {}, "lock a part instead"),
    "a rate that is no number": (
        [replace(FULL, rates={"head": float("nan")})],
        {},
        "rates must be above 0",
    ),
    "a negative decay": ([replace(FULL, rate_decay=-1.0)], {}, "rates must be above 0"),
    "a rate of no part": ([replace(FULL, rates={"stem": 0.1})], {}, "names.*'stem'"),
    "a rate of a locked part": (
        [replace(HEAD, rates={"encoder": 0.1})],
        {},
        "encoder, which is not trained",
    ),
    "a search without training": (
        [replace(STATISTICS, searches_rate=True)],
        {},
        "`searches_rate` has no meaning",
    ),
    "statistics that run for no step": (
        [with_norm("encoder", RUNNING_LOCKED, STATISTICS)],
        {},
        "no steps in which batch statistics could run",
    ),
    "a phase that does nothing": (
        [replace(STATISTICS, batch_norm=FROZEN_ALL), replace(FULL)],
        {},
        "neither trains nor measures",
    ),
    "locks without training": (
        [replace(STATISTICS, locked=("encoder",))],
        {},
        "locks nothing",
    ),
    "stage by stage to some parts": (
        [replace(HEAD, each_encoder_stage=True)],
        {},
        "name all parts",
    ),
    "features that change": ([FULL], {"caches_features": True}, "nothing below"),
    "features whose norms run": (
        [with_norm("decoder", RUNNING_LOCKED, HEAD)],
        {"caches_features": True},
        "nothing below",
    ),
    "features whose scales change": (
        [with_norm("encoder", INFERENCE, HEAD)],
        {"caches_features": True},
        "nothing below",
    ),
    "features that change later": (
        [HEAD, FULL],
        {"caches_features": True},
        "Phase all",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused(name):
    phases, axes, message = CONTRADICTIONS[name]

    with pytest.raises(UsageError, match=message) as caught:
        make_plan(*phases, **axes)

    assert str(caught.value).startswith("Mode mine contradicts itself:")
    assert caught.value.exit_code == 2


def test_all_contradictions_are_told_at_once():
    phases = [replace(FULL, share=0.0), replace(HEAD, rate_decay=0.0)]

    with pytest.raises(UsageError) as caught:
        make_plan(*phases, l2sp=-1, source_share=2)

    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    assert all(line.startswith("  - ") for line in lines)


@pytest.mark.parametrize(
    "trained", [("encoder", "decoder", "up_1"), ("layers:*",), ("head_1",)]
)
def test_a_selector_that_is_no_part_may_train_a_random_head(trained):
    phase = replace(FULL, trained=trained)

    assert make_plan(phase, start=RANDOM_HEAD).trains
