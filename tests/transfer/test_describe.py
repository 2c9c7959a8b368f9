"""Plans in words and as JSON: all of a plan is told, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from cropseg.training.phases import FROZEN, RECOMPUTED
from cropseg.transfer.describe import (
    describe_plan,
    list_plans,
    plan_to_json,
    summarize_axes,
)
from cropseg.transfer.modes import FAMILIES, PLANS, get_plan, list_mode_names

EXAMPLES = [f"{name}:{family.example}" for name, family in FAMILIES.items()]
FULL = PLANS["full"]


def describe(plan):
    return "\n".join(describe_plan(plan))


@pytest.mark.parametrize("mode", [*PLANS, *EXAMPLES])
def test_a_plan_is_told_in_sentences(mode):
    plan = get_plan(mode)
    lines = describe_plan(plan)

    assert lines[0] == plan.summary
    assert all(line.endswith(".") for line in lines)
    assert all(line[0].isupper() or line[0].isdigit() for line in lines)
    text = "\n".join(lines)
    assert plan.serves in text
    assert plan.origin in text
    assert all(phase.name in text for phase in plan.phases if len(plan.phases) > 1)


def test_no_two_modes_are_told_alike():
    texts = {"mode": "", "summary": "Same.", "serves": "", "origin": ""}
    plans = [get_plan(mode) for mode in (*PLANS, *EXAMPLES)]
    told = [describe(replace(plan, **texts)) for plan in plans]

    assert len(set(told)) == len(told)


PHASE = FULL.phases[0]

AXES = {
    "start": ({"start": FULL.start | {"head": "random"}}, "head starts at random"),
    "l2sp": ({"l2sp": 0.25}, "penalty of strength 0.25"),
    "source_share": ({"source_share": 0.25}, "25% of the tiles"),
    "pretrains": ({"pretrains": True}, "without labels on tiles"),
    "optimizer": ({"optimizer": "source"}, "slots, step count and schedule"),
    "trained": (
        {"phases": (replace(PHASE, trained=("head", "layers:a*")),)},
        "Trained: head and layers:a*. All other layers are locked.",
    ),
    "parts": (
        {"phases": (replace(PHASE, trained=("head",)),)},
        "Trained: head. Locked: encoder and decoder.",
    ),
    "locked": (
        {"phases": (replace(PHASE, locked=("encoder_1",)),)},
        "Of these are locked: encoder_1.",
    ),
    "batch_norm": (
        {
            "phases": (
                replace(PHASE, batch_norm=PHASE.batch_norm | {"encoder": FROZEN}),
            )
        },
        "in encoder normalises by the statistics it starts with, and keeps them",
    ),
    "rates": (
        {"phases": (replace(PHASE, rates={"encoder": 0.1, "decoder": 0.1}),)},
        "multiplied by 0.1 in encoder and decoder",
    ),
    "rates of all": (
        {"phases": (replace(PHASE, rates=dict.fromkeys(FULL.start, 0.1)),)},
        "multiplied by 0.1.",
    ),
    "rate_decay": ({"phases": (replace(PHASE, rate_decay=0.5),)}, "by 0.5 once more"),
    "searches_rate": (
        {"phases": (replace(PHASE, searches_rate=True),)},
        "A range test finds",
    ),
    "each_encoder_stage": (
        {"phases": (replace(PHASE, each_encoder_stage=True),)},
        "repeated for each encoder stage",
    ),
    "share": (
        {"phases": (PHASE, replace(PHASE, name="b", share=3))},
        "Phase 2, b: It takes 75% of the steps.",
    ),
}


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_is_told(axis):
    changes, words = AXES[axis]

    assert words in describe(replace(FULL, **changes))
    assert words not in describe(FULL)


def test_cached_features_are_told():
    assert "computed once" in describe(PLANS["head_only"])


def test_modes_without_labels_say_so():
    for plan in PLANS.values():
        assert ("no label is read" in describe(plan).lower()) != plan.sees_labels


def test_a_phase_without_training_says_that_it_takes_no_steps():
    phase = replace(PHASE, trained=(), batch_norm=dict.fromkeys(FULL.start, RECOMPUTED))
    lines = describe_plan(replace(FULL, phases=(phase,)))

    (line,) = [line for line in lines if line.startswith("No training: ")]
    assert "It takes no steps." in line
    assert "measures its statistics" in line
    assert "rained:" not in line


def test_the_list_has_every_mode_with_its_whole_plan():
    rows = {row["mode"]: row for row in list_plans()}

    assert list(rows) == list_mode_names()
    assert json.loads(json.dumps(rows)) == rows
    for mode, plan in PLANS.items():
        assert rows[mode] == plan_to_json(plan)
        assert set(rows[mode]) == set(rows["freeze_first:N"]) - {"example"}
    example = plan_to_json(get_plan("freeze_first:2"))
    assert rows["freeze_first:N"]["phases"] == example["phases"]
    assert rows["freeze_first:N"]["example"] == "freeze_first:2"
    assert "first N encoder" in rows["freeze_first:N"]["summary"]
    assert rows["pixel_forest"]["start"] is None
    assert rows["pixel_forest"]["summary"]


@pytest.mark.parametrize(
    ("mode", "axes"),
    [
        ("zero_shot", ("source", "-", "-", "-")),
        ("full", ("source", "all", "running", "-")),
        (
            "new_decoder",
            (
                *("enc source, dec+head random", "decoder+head"),
                *("enc frozen, dec+head running", "-"),
            ),
        ),
        ("full_low_lr", ("source", "all", "running", "enc+dec x0.1")),
        ("bn_only", ("source", "norms", "running", "-")),
        ("adabn", ("source", "-", "recomputed", "-")),
        ("freeze_first:N", ("source", "all but some", "running", "-")),
        ("pixel_forest", ("-", "-", "-", "-")),
    ],
)
def test_the_table_tells_a_mode_in_a_few_words(mode, axes):
    rows = {row["mode"]: row for row in list_plans()}

    assert tuple(summarize_axes(rows[mode]).values()) == axes


def test_phases_stand_in_the_table_one_after_the_other():
    axes = summarize_axes(plan_to_json(PLANS["gradual"]))

    assert axes["trained"] == "head > decoder+head > stage by stage"
    assert axes["training"] == "3 phases, rate search"


def test_plans_are_read_and_described_without_keras():
    script = (
        "import sys\n"
        "from cropseg.transfer.describe import describe_plan, list_plans\n"
        "from cropseg.transfer.modes import get_plan\n"
        "from cropseg.transfer.phases import check_selectors\n"
        "assert list_plans() and describe_plan(get_plan('gradual'))\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
