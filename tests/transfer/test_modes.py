"""The table of modes: all that DESIGN.md lists, each of its own, none unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cropseg.errors import UsageError
from cropseg.transfer.modes import (
    FAMILIES,
    PIXEL_FOREST,
    PLANS,
    get_plan,
    list_mode_names,
)

DESIGN = {
    *("zero_shot", "pixel_forest", "joint", "scratch", "imagenet", "full"),
    *("full_low_lr", "discriminative", "frozen_encoder", "frozen_encoder_bn_train"),
    *("full_bn_source", "freeze_first:N", "freeze_layers:PATTERN", "head_only"),
    *("new_decoder", "lp_ft", "gradual", "stem_only", "bn_only", "adabn", "l2sp"),
    *("resume", "self_supervised"),
}
"""Every mode of the table in DESIGN.md."""


def test_the_table_has_every_mode_of_the_design_and_no_other():
    names = list_mode_names()

    assert set(names) == DESIGN
    assert len(names) == len(DESIGN)


@pytest.mark.parametrize("mode", PLANS)
def test_every_mode_says_what_it_is_for_and_where_it_is_from(mode):
    plan = get_plan(mode)

    assert plan.mode == mode
    assert plan.summary.endswith(".")
    assert plan.serves.endswith(".")
    assert plan.origin
    assert not plan.origin.endswith(".")


def test_no_two_modes_are_alike():
    texts = {"mode": "", "summary": "", "serves": "", "origin": ""}
    examples = [get_plan(f"{name}:{item.example}") for name, item in FAMILIES.items()]
    plans = [repr(replace(plan, **texts)) for plan in (*PLANS.values(), *examples)]

    assert len(set(plans)) == len(plans)


def test_only_these_modes_see_no_labels():
    assert {m for m, plan in PLANS.items() if not plan.sees_labels} == {
        "zero_shot",
        "adabn",
    }


def test_only_these_modes_load_nothing_or_not_all():
    loaded = {m: plan.loaded for m, plan in PLANS.items() if len(plan.loaded) < 3}

    assert loaded == {"scratch": (), "imagenet": (), "new_decoder": ("encoder",)}


def test_the_rarer_axes_belong_to_one_mode_each():
    def find(axis, default):
        return [m for m, plan in PLANS.items() if getattr(plan, axis) != default]

    assert find("l2sp", 0) == ["l2sp"]
    assert find("source_share", 0) == ["joint"]
    assert find("pretrains", False) == ["self_supervised"]
    assert find("optimizer", "fresh") == ["resume"]
    assert find("caches_features", False) == ["head_only"]


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("freeze_first:3", "freeze_first:3"),
        ("freeze_first:03", "freeze_first:3"),
        ("freeze_layers:conv*", "freeze_layers:conv*"),
        ("freeze_layers: a*, b ,", "freeze_layers:a*,b"),
    ],
)
def test_a_value_after_a_colon_has_one_way_of_writing(given, mode):
    assert get_plan(given).mode == mode


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "1.5", "٢", "99999"])
def test_freeze_first_takes_a_number_of_stages(value):
    with pytest.raises(UsageError, match="such as freeze_first:2; got"):
        get_plan(f"freeze_first:{value}")


@pytest.mark.parametrize("value", ["", " , "])
def test_freeze_layers_takes_patterns(value):
    with pytest.raises(UsageError, match="takes patterns of layer names"):
        get_plan(f"freeze_layers:{value}")


@pytest.mark.parametrize(
    ("mode", "nearest"),
    [
        ("frozen", "frozen_encoder"),
        ("ful", "full"),
        ("", ""),
        ("freeze_first", "freeze_first:N"),
        ("freeze_frist:2", "freeze_first:N"),
    ],
)
def test_an_unknown_mode_is_answered_with_the_nearest_and_the_list(mode, nearest):
    with pytest.raises(UsageError, match=f"the nearest is '{nearest}") as caught:
        get_plan(mode)

    assert all(name in str(caught.value) for name in DESIGN)


def test_the_forest_has_no_plan():
    with pytest.raises(UsageError, match="no network, and has no plan"):
        get_plan(PIXEL_FOREST)


@pytest.mark.parametrize("name", ["full", "freeze_first", PIXEL_FOREST])
def test_a_file_cannot_take_a_name_of_the_table(tmp_path, name):
    path = tmp_path / "mine.yaml"
    path.write_text(f"mode: {name}\nbased_on: full\nsummary: Mine.\n", encoding="utf-8")

    with pytest.raises(UsageError, match=f"{name!r} is in the table"):
        get_plan(str(path))


def test_a_file_is_a_mode(tmp_path):
    path = tmp_path / "mine.YML"
    path.write_text("mode: mine\nbased_on: full\nsummary: Mine.\n", encoding="utf-8")

    plan = get_plan(str(path))

    assert plan == replace(
        PLANS["full"], mode="mine", summary="Mine.", serves="", origin=""
    )
