"""Plans on a made-up network: exactly these layers and norms, exactly these steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropseg.errors import UsageError
from cropseg.training.phases import (
    FROZEN,
    INFERENCE,
    RECOMPUTED,
    RUNNING,
    FitPhase,
    find_phase,
)
from cropseg.transfer.modes import FAMILIES, PLANS, get_plan
from cropseg.transfer.phases import check_selectors, resolve_phases, select_layers
from cropseg.transfer.plan import ALL, Phase, TransferPlan, phase_trains


@dataclass(frozen=True)
class MadeUpStage:
    name: str
    part: str
    layers: tuple[str, ...]


STAGES = (
    MadeUpStage("encoder_1", "encoder", ("e1", "e1_bn")),
    MadeUpStage("encoder_2", "encoder", ("e2", "e2_bn")),
    MadeUpStage("encoder_3", "encoder", ("e3", "e3_bn")),
    MadeUpStage("encoder_4", "encoder", ("e4", "e4_bn")),
    MadeUpStage("encoder_5", "encoder", ("e5", "e5_bn")),
    MadeUpStage("decoder_1", "decoder", ("d1", "d1_bn")),
    MadeUpStage("decoder_2", "decoder", ("d2", "d2_bn")),
    MadeUpStage("head", "head", ("head",)),
)
ENCODER = {"e1", "e2", "e3", "e4", "e5"}
DECODER = {"d1", "d2"}
EVERY = ENCODER | DECODER | {"head"}
ENCODER_NORMS = {f"{name}_bn" for name in ENCODER}
DECODER_NORMS = {f"{name}_bn" for name in DECODER}
NORMS = ENCODER_NORMS | DECODER_NORMS
STEPS = 400


def resolve(mode, *, num_steps=STEPS, stages=STAGES, norms=NORMS):
    plan = mode if isinstance(mode, TransferPlan) else get_plan(mode)
    return resolve_phases(plan, stages, norms, num_steps=num_steps)


def some(policy, norms, rest=FROZEN):
    """Return a policy for some norms and another one for the rest."""
    return {name: policy if name in norms else rest for name in NORMS}


def one(trained, norms, **more):
    return [(STEPS, trained, norms, more)]


HEAD = (100, {"head"}, some(FROZEN, NORMS))
DECODER_PHASE = (100, DECODER | {"head"}, some(RUNNING, DECODER_NORMS))


def gradual(first):
    trained = {f"e{number}" for number in range(first, 6)}
    norms = DECODER_NORMS | {f"{name}_bn" for name in trained}
    return (40, trained | DECODER | {"head"}, some(RUNNING, norms), {})


FALLING = {
    name: 0.75**distance
    for distance, name in enumerate(("d2", "d1", "e5", "e4", "e3", "e2", "e1"), start=1)
}

EXPECTED = {
    "zero_shot": [],
    "joint": one(EVERY, some(RUNNING, NORMS)),
    "scratch": one(EVERY, some(RUNNING, NORMS)),
    "imagenet": one(EVERY, some(RUNNING, NORMS)),
    "full": one(EVERY, some(RUNNING, NORMS)),
    "full_low_lr": one(
        EVERY, some(RUNNING, NORMS), rates=dict.fromkeys(EVERY - {"head"} | NORMS, 0.1)
    ),
    "discriminative": one(
        EVERY,
        some(RUNNING, NORMS),
        rates=FALLING | {f"{name}_bn": rate for name, rate in FALLING.items()},
    ),
    "frozen_encoder": one(DECODER | {"head"}, some(RUNNING, DECODER_NORMS)),
    "frozen_encoder_bn_train": one(DECODER | {"head"}, some(RUNNING, NORMS)),
    "full_bn_source": one(EVERY, some(INFERENCE, NORMS)),
    "freeze_first:2": one(
        EVERY - {"e1", "e2"}, some(RUNNING, NORMS - {"e1_bn", "e2_bn"})
    ),
    "freeze_first:5": one(DECODER | {"head"}, some(RUNNING, DECODER_NORMS)),
    "freeze_layers:e?": one(DECODER | {"head"}, some(RUNNING, NORMS)),
    "freeze_layers:e*,d2": one({"d1", "head"}, some(RUNNING, {"d1_bn", "d2_bn"})),
    "head_only": one({"head"}, some(FROZEN, NORMS)),
    "new_decoder": one(DECODER | {"head"}, some(RUNNING, DECODER_NORMS)),
    "lp_ft": [
        (200, {"head"}, some(FROZEN, NORMS), {}),
        (
            200,
            EVERY,
            some(RUNNING, NORMS),
            {"rates": dict.fromkeys(EVERY | NORMS, 0.1)},
        ),
    ],
    "gradual": [
        (100, {"head"}, some(FROZEN, NORMS), {}),
        (100, DECODER | {"head"}, some(RUNNING, DECODER_NORMS), {}),
        *(gradual(first) for first in (5, 4, 3, 2, 1)),
    ],
    "stem_only": one({"e1"}, some(RUNNING, {"e1_bn"})),
    "bn_only": one(set(), some(RUNNING, NORMS)),
    "adabn": [(0, set(), some(RECOMPUTED, NORMS), {})],
    "l2sp": one(EVERY, some(RUNNING, NORMS)),
    "resume": one(EVERY, some(RUNNING, NORMS)),
    "self_supervised": one(EVERY, some(RUNNING, NORMS)),
}
"""What each mode does here: steps, trained layers, norms, rates; written by hand."""


@pytest.mark.parametrize("mode", EXPECTED)
def test_a_mode_trains_exactly_these_layers_and_norms(mode):
    phases = resolve(mode)

    assert len(phases) == len(EXPECTED[mode])
    for phase, (steps, trained, norms, more) in zip(
        phases, EXPECTED[mode], strict=True
    ):
        assert phase.num_steps == steps
        assert phase.trained == trained
        assert phase.norms == norms
        assert phase.rates == pytest.approx(more.get("rates", {}))
        assert phase.searches_rate == (mode == "gradual")


def test_every_mode_is_tested_here():
    assert {mode.partition(":")[0] for mode in EXPECTED} == {*PLANS, *FAMILIES}


def test_phases_of_gradual_are_called_by_what_they_unfreeze():
    assert [phase.name for phase in resolve("gradual")] == [
        *("head", "decoder", "encoder_5", "encoder_4", "encoder_3"),
        *("encoder_2", "encoder_1"),
    ]


def test_the_first_stage_of_a_unet_still_moves_in_discriminative():
    stages = [
        *(MadeUpStage(f"encoder_{i}", "encoder", (f"e{i}",)) for i in range(5)),
        *(MadeUpStage(f"decoder_{i}", "decoder", (f"d{i}",)) for i in range(5)),
        STAGES[-1],
    ]

    (phase,) = resolve("discriminative", stages=stages, norms=())

    # Four layers, each at 1/2.6 of the next one, as Howard and Ruder have it.
    assert phase.rates["e0"] == pytest.approx(2.6**-3, rel=0.02)


def test_rates_name_trained_layers_alone():
    plan = make_plan(
        Phase(
            name="a",
            trained=("decoder", "head"),
            locked=("decoder_1",),
            batch_norm={"encoder": FROZEN, "decoder": RUNNING, "head": RUNNING},
            rates={"decoder": 0.5},
            rate_decay=0.1,
        )
    )

    (phase,) = resolve(plan)

    assert phase.rates == pytest.approx({"d2": 0.05, "d2_bn": 0.05})


def make_plan(*phases, start="source"):
    return TransferPlan(
        mode="mine",
        summary="",
        serves="",
        origin="",
        start=dict.fromkeys(ALL, start),
        phases=phases,
    )


@pytest.mark.parametrize(
    ("selectors", "layers"),
    [
        ((), set()),
        (("head",), {"head"}),
        (("encoder_2",), {"e2", "e2_bn"}),
        (("encoder_-1",), {"e5", "e5_bn"}),
        (("encoder_-5", "decoder_2"), {"e1", "e1_bn", "d2", "d2_bn"}),
        (("head_1",), {"head"}),
        (("layers:e?",), ENCODER),
        (("layers:d1, *2",), {"d1", "e2", "d2"}),
        (("decoder", "layers:e[12]_bn"), DECODER | DECODER_NORMS | {"e1_bn", "e2_bn"}),
    ],
)
def test_selectors_name_layers(selectors, layers):
    assert select_layers(selectors, STAGES) == layers


def test_a_stage_of_another_name_is_counted_and_its_own_name_wins():
    stages = (
        MadeUpStage("encoder_2", "encoder", ("a",)),
        MadeUpStage("block", "encoder", ("b",)),
        MadeUpStage("up", "decoder", ("c",)),
    )

    assert select_layers(["encoder_1"], stages) == {"a"}
    assert select_layers(["encoder_2"], stages) == {"a"}
    assert select_layers(["encoder_-1"], stages) == {"b"}
    assert select_layers(["block", "decoder_1"], stages) == {"b", "c"}


@pytest.mark.parametrize(
    "selector",
    [
        *("encoder_6", "encoder_-6", "encoder_0", "encoder_--1", "encoder_", "stem"),
        *("layers:E1", "layers:", "layers:e", "encoder_1.0", "ENCODER", "_1"),
    ],
)
def test_a_selector_that_names_nothing_is_refused(selector):
    with pytest.raises(UsageError, match="names no layer") as caught:
        select_layers(["head", selector], STAGES)

    assert "encoder_5" in str(caught.value)
    assert "cropseg inspect" in str(caught.value)


def test_every_pattern_that_names_nothing_is_told():
    with pytest.raises(UsageError) as caught:
        select_layers(["layers:e*,fulll", "stem"], STAGES)

    assert "'layers:fulll'" in str(caught.value)
    assert "'stem'" in str(caught.value)
    assert "'layers:e*'" not in str(caught.value)


@pytest.mark.parametrize("mode", ["freeze_first:6", "freeze_layers:x*", "stem_only"])
def test_a_plan_that_does_not_suit_the_network_is_refused_early(mode):
    stages = STAGES[5:] if mode == "stem_only" else STAGES

    with pytest.raises(UsageError, match="names no layer"):
        check_selectors(get_plan(mode), stages, num_steps=STEPS)


@pytest.mark.parametrize("mode", EXPECTED)
def test_a_plan_that_suits_the_network_is_not_refused(mode):
    check_selectors(get_plan(mode), STAGES, num_steps=7)


def test_fewer_steps_than_phases_are_refused():
    assert [phase.num_steps for phase in resolve("gradual", num_steps=7)] == [1] * 7

    for check in (
        resolve,
        lambda mode, **n: check_selectors(get_plan(mode), STAGES, **n),
    ):
        with pytest.raises(UsageError, match=r"7 phases on this network.* 6 steps"):
            check("gradual", num_steps=6)


@pytest.mark.parametrize("mode", ["freeze_layers:*", "bn_only"])
def test_a_phase_that_finds_nothing_to_train_is_refused(mode):
    norms = () if mode == "bn_only" else NORMS

    with pytest.raises(UsageError, match="finds nothing to train"):
        resolve(mode, norms=norms)


SHARES = st.lists(
    st.one_of(st.none(), st.floats(1e-3, 1e3)), min_size=1, max_size=12
).filter(any)


@given(shares=SHARES, num_steps=st.integers(12, 100_000))
def test_phases_share_the_steps_exactly(shares, num_steps):
    train = Phase(name="x", trained=ALL, batch_norm=dict.fromkeys(ALL, RUNNING))
    measure = replace(train, trained=(), batch_norm=dict.fromkeys(ALL, RECOMPUTED))
    plan = make_plan(
        *(
            replace(measure if share is None else train, name=f"p{i}", share=share or 1)
            for i, share in enumerate(shares)
        )
    )

    counts = [phase.num_steps for phase in resolve(plan, num_steps=num_steps)]

    assert sum(counts) == num_steps
    total = sum(share or 0 for share in shares)
    for count, share in zip(counts, shares, strict=True):
        assert (count > 0) == (share is not None)
        # Rounded at both ends, and moved where shorter phases need a step each.
        assert abs(count - num_steps * (share or 0) / total) <= 1 + len(shares)


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), step=st.integers(0, 40)
)
def test_the_phase_of_a_step_depends_on_the_step_alone(counts, step):
    phases = [
        FitPhase(name=str(i), num_steps=n, trained=frozenset(), norms={})
        for i, n in enumerate(counts)
    ]
    owners = [i for i, count in enumerate(counts) for _ in range(count)]
    expected = owners[step] if step < len(owners) else len(counts) - 1

    assert find_phase(phases, step) == expected
    assert find_phase(tuple(phases), step) == expected  # asked again, the same


def test_phases_of_a_plan_that_trains_have_steps_and_others_none():
    for mode in EXPECTED:
        plan = get_plan(mode)
        if plan.trains:
            assert sum(phase.num_steps for phase in resolve(mode)) == STEPS
        else:
            assert not any(phase_trains(phase) for phase in plan.phases)
