"""Advice: the cell, what decides it, the comparison, and whether it held."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from cropseg.transfer.advice import advise, judge_advice
from cropseg.transfer.evidence import ClassLabels, Evidence, ZeroShot
from cropseg.transfer.modes import PIXEL_FOREST, get_plan
from cropseg.transfer.rule_of_thumb import ALWAYS_COMPARED, CELLS

FEW = (("corn", 900, 4), ("hay", 800, 4))
MANY = (("corn", 90_000, 40), ("hay", 80_000, 40))


def make_evidence(counts=FEW, **changes):
    labels = tuple(
        ClassLabels(name=name, pixels=pixels, tiles=tiles, fields=None)
        for name, pixels, tiles in counts
    )
    values = {
        "site": "area-2",
        "source_site": "area-1",
        "labels": labels,
        "num_tiles": max(item.tiles for item in labels),
        "shared": ("corn", "hay"),
        "zero_shot": ZeroShot(
            miou=0.4, own_miou=0.5, majority_miou=0.25, num_classes=2
        ),
        "feature_distance": 0.5,
        "half_distance": 0.6,
        "band_distances": {"red": 0.2, "nir": 0.4},
    }
    return Evidence(**{**values, **changes})


def ask(evidence):
    return advise(
        evidence, manifest="my data/area 2.yaml", model="m.keras", labels="4tiles"
    )


UNLIKE = {
    "zero_shot": ZeroShot(miou=0.2, own_miou=0.5, majority_miou=0.1, num_classes=2)
}


def test_the_table_is_that_of_the_rule_of_thumb():
    assert {cell: entry.modes for cell, entry in CELLS.items()} == {
        ("low", "low"): ("gradual", "full_low_lr", "freeze_first:2"),
        ("low", "high"): ("head_only", "frozen_encoder", "lp_ft"),
        ("high", "low"): ("full",),
        ("high", "high"): ("full", "discriminative", "l2sp"),
    }
    assert "scratch" in CELLS["high", "low"].checks


def test_every_mode_of_the_table_can_be_compared():
    modes = {mode for cell in CELLS.values() for mode in (*cell.modes, *cell.checks)}
    for mode in (modes | set(ALWAYS_COMPARED)) - {PIXEL_FOREST}:
        assert get_plan(mode).mode == mode


@pytest.mark.parametrize("amount", ["low", "high"])
@pytest.mark.parametrize("similarity", ["low", "high"])
def test_amount_and_similarity_choose_the_cell(amount, similarity):
    counts = MANY if amount == "high" else FEW
    advice = ask(make_evidence(counts, **({} if similarity == "high" else UNLIKE)))
    assert (advice.amount, advice.similarity) == (amount, similarity)
    assert advice.modes == CELLS[amount, similarity].modes
    assert advice.cell == CELLS[amount, similarity].title
    words = shlex.split(advice.command)
    assert words[:5] == [
        "cropseg",
        "compare",
        "my data/area 2.yaml",
        "--from",
        "m.keras",
    ]
    compared = words[words.index("--modes") + 1].split(",")
    assert compared[: len(advice.modes)] == list(advice.modes)
    assert {"full", "zero_shot", PIXEL_FOREST} <= set(compared)
    assert len(set(compared)) == len(compared)
    assert words[words.index("--labels") + 1] == "4tiles"


NO_SCORE = {"zero_shot": None}
NO_FEATURES = {"feature_distance": None}


@pytest.mark.parametrize(
    ("changes", "decided_by", "similarity"),
    [
        ({}, "zero_shot", "high"),
        ({"feature_distance": 9.0}, "features", "low"),
        ({**UNLIKE}, "zero_shot", "low"),
        ({**UNLIKE, "feature_distance": 9.0}, "zero_shot", "low"),
        ({"band_distances": {"red": 9.0}}, "zero_shot", "high"),
        (NO_FEATURES, "zero_shot", "high"),
        (NO_SCORE, "features", "high"),
        ({**NO_SCORE, "feature_distance": 9.0}, "features", "low"),
        ({**NO_SCORE, **NO_FEATURES}, "bands", "high"),
        ({**NO_SCORE, **NO_FEATURES, "band_distances": {}}, "bands", "low"),
        ({"shared": ()}, "classes", "low"),
    ],
)
def test_areas_are_alike_unless_a_signal_says_otherwise(
    changes, decided_by, similarity
):
    advice = ask(make_evidence(**changes))
    assert (advice.decided_by, advice.similarity) == (decided_by, similarity)
    deciding = [text for text in advice.reasons if text.endswith("This decides.")]
    assert list(advice.reasons[1:2]) == deciding


def test_the_reasons_have_the_numbers():
    text = " ".join(ask(make_evidence()).reasons)
    for number in ("1,700 labelled pixels", "4 tiles", "0.400", "0.500", "0.80"):
        assert number in text
    assert "0.50 standard deviations" in text
    assert "0.60 apart" in text
    assert "100% of the labelled pixels" in text


def test_what_cannot_be_known_is_said():
    plain = ask(make_evidence())
    assert not any("disagree" in text for text in plain.unknown)
    assert any("rule of thumb" in text for text in plain.unknown)
    assert any("score is from 4 tiles" in text for text in plain.unknown)
    split = ask(make_evidence(feature_distance=9.0))
    told = [text for text in split.unknown if "disagree" in text]
    assert len(told) == 1
    assert "(zero_shot high, features low, bands high)" in told[0]
    blind = ask(make_evidence(**NO_SCORE, **NO_FEATURES))
    assert sum("is not known" in text for text in blind.unknown) == 2
    counts = (("corn", 900, 4), ("hay", 0, 0), ("oats", 60, 2))
    new = ask(make_evidence(counts))
    assert any("no label of theirs" in t and "hay" in t for t in new.unknown)
    assert any(t.startswith("How well oats can be told") for t in new.unknown)


def test_advice_is_a_json_document_with_all_numbers():
    advice = ask(make_evidence())
    document = json.loads(json.dumps(advice.to_json(), allow_nan=False))
    assert document["modes"] == ["head_only", "frozen_encoder", "lp_ft"]
    assert document["measures"]["zero_shot"]["own_miou"] == 0.5
    assert document["measures"]["labels"]["classes"][0]["pixels"] == 900
    assert document["measures"]["signals"] == {
        "classes": None,
        "zero_shot": "high",
        "features": "high",
        "bands": "high",
    }


def make_budget(*tests, **mious):
    """Return an item of `budgets` in `summary.json`; a test is of two modes."""
    names = ("mode", "against", "significant")
    return {
        "labels": "4tiles",
        "modes": [{"mode": mode, "miou_mean": miou} for mode, miou in mious.items()],
        "differences": [dict(zip(names, test, strict=True)) for test in tests],
    }


HEAD, FROZEN, FULL, FOREST = 0.485, 0.480, 0.465, 0.4


def test_what_needs_the_tiles_of_area_1_is_named_and_not_suggested():
    advice = ask(make_evidence())
    assert "joint" not in advice.modes
    (hint,) = [text for text in advice.unknown if "`joint`" in text]
    assert hint.endswith("with --source.")


def test_advice_holds_where_a_suggested_mode_is_the_best():
    budget = make_budget(full=FULL, frozen_encoder=FROZEN, head_only=HEAD)
    verdict = judge_advice(ask(make_evidence()).to_json(), budget)
    assert verdict == {
        "cell": "few labels, a similar area: train few layers",
        "suggested": ["head_only", "frozen_encoder", "lp_ft"],
        "best": "head_only",
        "best_suggested": "head_only",
        "behind": 0.0,
        "held": True,
        "told_apart": None,
        "text": "The advice held: head_only was suggested and is the best.",
    }


def test_advice_that_was_not_tested_stays_open_and_says_how_far_behind_it_is():
    advice = ask(make_evidence(MANY)).to_json()
    budget = make_budget(head_only=HEAD, full=FULL, frozen_encoder=FROZEN)
    verdict = judge_advice(advice, budget)
    assert (verdict["best"], verdict["best_suggested"]) == ("head_only", "full")
    assert (verdict["held"], verdict["behind"]) == (False, 0.02)
    assert verdict["told_apart"] is None
    assert verdict["text"] == (
        "Whether the advice held stays open: head_only is the best, and full, the best "
        "suggested, is 0.020 mIoU behind, which was not tested."
    )


@pytest.mark.parametrize("pair", [("full", "head_only"), ("head_only", "full")])
def test_advice_is_refuted_only_by_a_difference_that_is_more_than_chance(pair):
    advice = ask(make_evidence(MANY)).to_json()
    mious = {"head_only": HEAD, "full": FULL}
    open_one = judge_advice(advice, make_budget((*pair, False), **mious))
    assert (open_one["held"], open_one["told_apart"]) == (False, False)
    assert open_one["text"].startswith("The advice was not refuted: head_only is")
    refuted = judge_advice(advice, make_budget((*pair, True), **mious))
    assert refuted["told_apart"] is True
    assert refuted["text"].endswith("0.020 mIoU behind, more than chance.")


def test_advice_that_was_not_compared_is_not_judged():
    verdict = judge_advice(
        ask(make_evidence()).to_json(), make_budget(pixel_forest=FOREST, full=FULL)
    )
    assert (verdict["held"], verdict["behind"]) == (None, None)
    assert verdict["best"] == "full"
    assert "None of the suggested modes (head_only" in verdict["text"]
    nothing = judge_advice(ask(make_evidence()).to_json(), {"modes": []})
    assert (nothing["best"], nothing["held"]) == (None, None)


def test_advice_is_imported_without_keras():
    code = (
        "import sys, cropseg.transfer.advice\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
