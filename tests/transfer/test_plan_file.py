"""Plans from YAML files: read whole, refused with file and key, all at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cropseg.errors import UsageError
from cropseg.training.phases import (
    FROZEN,
    INFERENCE,
    RECOMPUTED,
    RUNNING,
    BatchNormPolicy,
)
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.modes import FAMILIES, PLANS, get_plan
from cropseg.transfer.plan import ALL, Phase, TransferPlan
from cropseg.transfer.plan_file import is_plan_file, read_plan

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plan.yaml"
RUNNING_LOCKED = BatchNormPolicy(statistics="running", affine="locked")


def write_plan(folder, document):
    path = folder / "mine.yaml"
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    path.write_text(text, encoding="utf-8")
    return path


def read(folder, document):
    return read_plan(write_plan(folder, document), presets=PLANS)


def make_document(changes):
    norms = dict.fromkeys(ALL, "running")
    phase = {"name": "all", "trained": list(ALL), "batch_norm": norms}
    document = {
        "mode": "mine",
        "summary": "Mine.",
        "start": dict.fromkeys(ALL, "source"),
        "phases": [phase],
    } | changes
    return {key: value for key, value in document.items() if value is not None}


def test_the_example_of_the_documentation_is_read_whole():
    plan = read_plan(EXAMPLE, presets=PLANS)

    assert plan == TransferPlan(
        mode="careful",
        summary="The head first, then all but the first two encoder stages, held to "
        "the source.",
        serves="Few labels, and another sensor.",
        origin="made up for this example",
        start=dict.fromkeys(ALL, "source"),
        phases=(
            Phase(
                name="statistics",
                trained=(),
                batch_norm=dict.fromkeys(ALL, RECOMPUTED),
            ),
            Phase(
                name="head",
                share=1,
                trained=("head",),
                batch_norm=dict.fromkeys(ALL, FROZEN),
            ),
            Phase(
                name="most",
                share=3,
                trained=ALL,
                locked=("encoder_1", "encoder_2"),
                batch_norm={"encoder": INFERENCE, "decoder": RUNNING, "head": RUNNING},
                rates={"encoder": 0.1},
                rate_decay=0.9,
                searches_rate=True,
            ),
        ),
        l2sp=0.001,
        source_share=0.25,
    )


def test_the_example_shows_every_key():
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    text = EXAMPLE.read_text(encoding="utf-8")

    assert {*document, "based_on"} == {*plan_to_json(PLANS["full"]), "based_on"}
    assert "# based_on: full" in text
    phase_keys = {key for phase in document["phases"] for key in phase}
    assert phase_keys | {"each_encoder_stage"} == {
        *plan_to_json(PLANS["full"])["phases"][0]
    }


EXAMPLES = [f"{name}:{family.example}" for name, family in FAMILIES.items()]


@pytest.mark.parametrize("mode", [*PLANS, *EXAMPLES])
def test_every_mode_of_the_table_survives_the_way_through_a_file(tmp_path, mode):
    plan = replace(get_plan(mode), mode="mine")

    assert read(tmp_path, plan_to_json(plan)) == plan


def test_a_plan_without_names_for_its_norms_survives_too(tmp_path):
    phase = replace(
        PLANS["full"].phases[0], batch_norm=dict.fromkeys(ALL, RUNNING_LOCKED)
    )
    plan = replace(PLANS["full"], mode="mine", phases=(phase,))

    assert read(tmp_path, plan_to_json(plan)) == plan


def test_what_is_not_given_comes_from_the_base(tmp_path):
    given = {"mode": "mine", "based_on": "gradual", "summary": "Mine.", "l2sp": 0.5}

    plan = read(tmp_path, given)

    assert plan == replace(
        PLANS["gradual"], mode="mine", summary="Mine.", serves="", origin="", l2sp=0.5
    )


def test_an_axis_of_the_base_can_be_taken_back(tmp_path):
    head_only = {"mode": "mine", "based_on": "head_only", "summary": "Mine."}

    assert read(tmp_path, head_only).caches_features
    assert not read(tmp_path, head_only | {"caches_features": False}).caches_features


def test_phases_replace_all_of_the_base(tmp_path):
    phases = [
        {"name": "x", "trained": ["head"], "batch_norm": dict.fromkeys(ALL, "frozen")}
    ]
    given = {"mode": "mine", "based_on": "lp_ft", "summary": "M.", "phases": phases}

    plan = read(tmp_path, given)

    assert [phase.name for phase in plan.phases] == ["x"]
    assert plan.phases[0].batch_norm == dict.fromkeys(ALL, FROZEN)


def test_a_key_without_a_value_is_as_if_left_out(tmp_path):
    text = "mode: mine\nbased_on: lp_ft\nsummary: M.\nphases:\nstart:\n"

    assert read(tmp_path, text).phases == PLANS["lp_ft"].phases


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("a/mine.yaml", True), ("mine.yml", True), ("Mine.YAML", True)),
        *(("full", False), ("freeze_layers:yaml*", False), ("yaml", False)),
    ],
)
def test_a_plan_file_is_told_by_its_ending(name, expected):
    assert is_plan_file(name) == expected


NORMS = dict.fromkeys(ALL, "running")


def phase_with(**changes):
    phase = {"name": "all", "trained": list(ALL), "batch_norm": NORMS} | changes
    return {"phases": [{k: v for k, v in phase.items() if v is not None}]}


MISTAKES = {
    "unknown key": ({"l2ps": 0.1}, "`l2ps` is no known key; the nearest is `l2sp`"),
    "unknown key of a phase": (
        phase_with(trainde=["head"]),
        "`phases.0.trainde` is no known key; the nearest is `trained`",
    ),
    "unknown part": (
        phase_with(batch_norm={**NORMS, "encodre": "running"}),
        "`phases.0.batch_norm.encodre` is no known key; the nearest is `encoder`",
    ),
    "unknown flag": (
        phase_with(batch_norm={**NORMS, "head": {"statistic": "running"}}),
        "batch_norm.head.statistic` is no known key; the nearest is `statistics`",
    ),
    "unknown start": (
        {"start": {**dict.fromkeys(ALL, "source"), "head": "zero"}},
        "`start.head`",
    ),
    "a decoder of ImageNet": (
        {"start": {**dict.fromkeys(ALL, "source"), "decoder": "imagenet"}},
        "`start.decoder`",
    ),
    "a part without start": (
        {"start": {"encoder": "source"}},
        "`start.decoder` is missing",
    ),
    "unknown policy": (
        phase_with(batch_norm={**NORMS, "head": "frosen"}),
        "`phases.0.batch_norm.head`: expected frozen, inference, running, recomputed",
    ),
    "a part without norms": (
        phase_with(batch_norm={"encoder": "running"}),
        "`phases.0.batch_norm.head` is missing",
    ),
    "no norms": (phase_with(batch_norm=None), "`phases.0.batch_norm` is missing"),
    "no phases": ({"phases": None}, "needs phases, or `based_on` a mode"),
    "no start, no phases": (
        {"phases": None, "start": None},
        "needs start and phases, or `based_on`",
    ),
    "no name": ({"mode": None}, "`mode` is missing"),
    "no summary": ({"summary": None}, "`summary` is missing"),
    "a name for no file": (
        {"mode": "my plan/2"},
        "`mode`: String should match pattern",
    ),
    "a name in capitals": ({"mode": "Mine"}, "`mode`: String should match pattern"),
    "a name of the table": ({"mode": "full"}, "`mode`: 'full' is in the table"),
    "a list for a name": ({"mode": ["full"]}, "`mode`: Input should be a valid string"),
    "unknown base": ({"based_on": "ful"}, "no mode 'ful'; the nearest is 'full'"),
    "a rate of 0": (phase_with(rates={"head": 0}), "`phases.0.rates.head`"),
    "a rate that is a text": (phase_with(rates={"head": "low"}), "got 'low'"),
    "no share": (phase_with(share=0), "`phases.0.share`"),
    "a penalty below 0": ({"l2sp": -1}, "`l2sp`"),
    "a penalty without end": ({"l2sp": float("inf")}, "`l2sp`"),
    "all tiles of the source": ({"source_share": 1}, "`source_share`"),
    "a contradiction": (
        {"caches_features": True},
        "Phase all: features can be kept only",
    ),
    "a number as key": ({1: 2}, "`1`"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_file_and_key(tmp_path, name):
    changes, message = MISTAKES[name]

    with pytest.raises(UsageError) as caught:
        read(
            tmp_path,
            make_document(changes),
        )

    text = str(caught.value)
    assert message in text
    assert str(tmp_path / "mine.yaml") in text
    assert caught.value.exit_code == 2


def test_all_mistakes_are_told_at_once(tmp_path):
    document = make_document(
        {"mode": "full", "l2ps": 1, "based_on": "ful", "pretrains": "perhaps"}
    )

    with pytest.raises(UsageError, match=r"has 4 problem\(s\)") as caught:
        read(tmp_path, document)

    assert all(
        key in str(caught.value)
        for key in ("`mode`", "`l2ps`", "`based_on`", "`pretrains`")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds NoneType"),
        ("- full", "holds list"),
        ("mode: [", "is not YAML"),
        ("mode: a\nmode: b\n", "has `mode` more than once"),
        ("start: {head: source, head: random}\n", "has `head` more than once"),
        ("&a [*a]", "nested too deeply"),
        ("[" * 1500, "nested too deeply"),
        ("a: 2021-99-99", "is not YAML"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_told_with_the_folder(tmp_path):
    with pytest.raises(UsageError, match=r"No plan at .*looked in") as caught:
        get_plan(str(tmp_path / "nothing.yaml"))

    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(UsageError, match="Cannot read plan"):
        read_plan(tmp_path / "mine.yaml", presets=PLANS)
