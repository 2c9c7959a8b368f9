"""The answer in words, of made-up summaries."""

from __future__ import annotations

import re

import pytest

from cropseg.comparison.cells import find_contenders
from cropseg.comparison.results import BASELINES
from cropseg.comparison.summary.answer import (
    answer_budget,
    answer_comparison,
    find_difference,
)
from cropseg.transfer.modes import FAMILIES, PLANS, name_mode

METHOD = {"num_blocks": 64, "why_no_interval": None}
FEW = {
    "num_blocks": 5,
    "why_no_interval": "there are 5 test blocks, and an interval needs 8",
}


def make_mode(mode, miou, *, interval=(0.02, 0.02), runs=3):
    low, high = (miou - 0.01, miou + 0.015)
    return {
        "mode": mode,
        "is_baseline": mode in BASELINES,
        "miou_mean": miou,
        "miou_low": low,
        "miou_high": high,
        "draws": runs,
        "runs": runs,
        "interval": interval and [miou - interval[0], miou + interval[1]],
    }


def make_difference(mode, against, miou, p_holm):
    known = p_holm is not None
    return {
        "mode": mode,
        "against": against,
        "miou": miou,
        "low": miou - 0.02 if known else None,
        "high": miou + 0.01 if known else None,
        "p_holm": p_holm,
        "significant": p_holm < 0.05 if known else None,
        "smallest_difference": 0.0314 if known else None,
    }


def make_budget(modes, differences=(), labels="4tiles"):
    return {
        "labels": labels,
        "modes": modes,
        "differences": list(differences),
        "num_tests": 5,
    }


def test_a_transfer_that_wins_is_held_against_the_best_baseline():
    budget = make_budget(
        [
            make_mode("full", 0.465, interval=(0.025, 0.025)),
            make_mode("pixel_forest", 0.449),
            make_mode("head_only", 0.44),
            make_mode("scratch", 0.432),
        ],
        [
            make_difference("full", "scratch", 0.033, 0.0001),
            make_difference("full", "pixel_forest", 0.016, 0.02),
        ],
    )

    assert answer_budget(budget, METHOD) == (
        "With 4 labelled tiles, full retraining from area 1 (full) reaches mIoU 0.465 "
        "(95 % interval 0.440 to 0.490), a pixel forest 0.449 and training from "
        "scratch 0.432; against a pixel forest, the difference is +0.016 (95 % "
        "interval -0.004 to +0.026, p = 0.020 after correction for 5 tests), so the "
        "lead is more than chance."
    )


def test_a_baseline_that_wins_is_named_first_and_as_one():
    budget = make_budget(
        [
            make_mode("pixel_forest", 0.5),
            make_mode("scratch", 0.49),
            make_mode("head_only", 0.45),
            make_mode("full", 0.44),
        ],
        # Listed the other way round, as a mode against a reference.
        [make_difference("head_only", "pixel_forest", -0.05, 0.0002)],
        labels="1tiles",
    )

    text = answer_budget(budget, METHOD)

    assert text.startswith(
        "With 1 labelled tile, a pixel forest, a baseline, reaches mIoU 0.500 (95 % "
        "interval 0.480 to 0.520), retraining of the last layer (head_only) 0.450 and "
        "training from scratch 0.490; against retraining of the last layer, the "
        "difference is +0.050 (95 % interval +0.040 to +0.070, p < 0.001"
    )


@pytest.mark.parametrize("mode", BASELINES)
def test_every_baseline_is_called_one(mode):
    budget = make_budget([make_mode(mode, 0.5), make_mode("full", 0.4)])

    assert f"{name_mode(mode)}, a baseline, reaches" in answer_budget(budget, METHOD)


def test_what_cannot_be_told_apart_is_said_with_what_could_have_been_shown():
    budget = make_budget(
        [make_mode("full", 0.45), make_mode("scratch", 0.44)],
        [make_difference("full", "scratch", 0.01, 0.4)],
    )

    text = answer_budget(budget, METHOD)

    assert text.endswith(
        "p = 0.400 after correction for 5 tests), so the two cannot be told apart by "
        "64 test blocks; the smallest difference that this comparison could have shown "
        "is 0.031."
    )
    assert "more than chance" not in text
    assert "significant" not in text


def test_a_comparison_that_could_not_have_shown_anything_says_so():
    item = make_difference("full", "scratch", 0.01, 0.9) | {"smallest_difference": 1.0}
    budget = make_budget([make_mode("full", 0.45), make_mode("scratch", 0.44)], [item])

    text = answer_budget(budget, METHOD)

    assert text.endswith("so few draws and blocks could not have shown any difference.")


def test_an_oracle_is_called_one():
    budget = make_budget([make_mode("full", 0.45)])

    text = answer_budget(budget, METHOD | {"validation": "oracle"})

    assert text.startswith("With 4 labelled tiles, and the val part's labels as an")


def test_modes_that_are_as_good_as_the_leader_are_named():
    modes = [
        make_mode("full", 0.5),
        make_mode("lp_ft", 0.49),
        make_mode("gradual", 0.48),
        make_mode("head_only", 0.46),
        make_mode("scratch", 0.45),
    ]
    differences = [
        make_difference("full", "scratch", 0.05, 0.001),
        make_difference("lp_ft", "full", -0.01, 0.6),
        make_difference("gradual", "full", -0.02, 0.06),
        make_difference("head_only", "full", -0.04, 0.01),
    ]

    text = answer_budget(make_budget(modes, differences), METHOD)

    assert text.endswith(
        "The leader cannot be told apart from retraining in two steps and retraining "
        "that unfreezes step by step."
    )


def test_few_blocks_have_a_range_and_leave_it_open():
    budget = make_budget(
        [
            make_mode("full", 0.45, interval=None),
            make_mode("scratch", 0.4, interval=None),
        ],
        [make_difference("full", "scratch", 0.05, None)],
    )

    text = answer_budget(budget, FEW)

    assert "reaches mIoU 0.450 (lowest and highest 0.440 and 0.465)" in text
    assert "it is 0.050 ahead of training from scratch" in text
    assert "stays open: there are 5 test blocks, and an interval needs 8." in text
    assert "95 %" not in text
    assert "p =" not in text


def test_a_single_run_has_no_range():
    modes = [make_mode("full", 0.45, interval=None, runs=1)]

    assert "0.450 (one run)" in answer_budget(make_budget(modes), FEW)


def test_the_folds_of_one_draw_are_no_range():
    mode = make_mode("full", 0.45, interval=None, runs=5)
    mode |= {"draws": 1, "miou_low": 0.45, "miou_high": 0.45}

    assert "0.450 (one run a fold)" in answer_budget(make_budget([mode]), FEW)


def test_a_leader_that_is_behind_over_common_draws_has_no_lead():
    budget = make_budget(
        [make_mode("full", 0.5), make_mode("scratch", 0.4)],
        [make_difference("full", "scratch", -0.05, 0.001)],
    )

    text = answer_budget(budget, METHOD)

    assert "more than chance" not in text
    assert text.endswith("so over the draws that both have finished it is behind.")


def test_modes_without_a_draw_in_common_are_not_tested():
    budget = make_budget([make_mode("full", 0.45), make_mode("scratch", 0.4)])

    text = answer_budget(budget, METHOD)

    assert text.endswith("the two have no finished draw in common.")


def test_a_mode_alone_is_held_against_nothing():
    text = answer_budget(make_budget([make_mode("full", 0.45)]), METHOD)

    assert text.endswith("; no other mode has all runs of a draw.")


def test_without_a_baseline_the_second_is_named():
    budget = make_budget([make_mode("full", 0.45), make_mode("lp_ft", 0.4)])

    text = answer_budget(budget, METHOD)

    assert "retraining in two steps (lp_ft) 0.400;" in text


def test_the_whole_answer_is_of_the_smallest_and_the_largest_budget():
    def make(labels, scratch, p_holm):
        return make_budget(
            [make_mode("full", 0.5), make_mode("scratch", scratch)],
            [make_difference("full", "scratch", 0.5 - scratch, p_holm)],
            labels=labels,
        )

    budgets = [make("2fields", 0.3, 0.01), make("4fields", 0.31, 0.01)]
    budgets.append(make("50fields", 0.49, 0.7))

    text = answer_comparison(budgets, METHOD)

    sentences = re.split(r"\. (?=[A-Z])", text)
    assert len(sentences) == 2
    assert sentences[0].startswith("With 2 labelled fields, ")
    assert sentences[0].endswith("the lead is more than chance")
    assert sentences[1].startswith("With 50 labelled fields, ")
    assert sentences[1].endswith("shown is 0.031.")


def test_the_answer_of_one_budget_is_all_of_it():
    modes = [make_mode("full", 0.5), make_mode("lp_ft", 0.49), make_mode("scratch", 0)]
    differences = [
        make_difference("full", "scratch", 0.5, 0.001),
        make_difference("full", "lp_ft", 0.01, 0.9),
    ]
    budget = make_budget(modes, differences, labels="50ha")

    text = answer_comparison([budget], METHOD)

    assert text == answer_budget(budget, METHOD)
    assert text.startswith("With 50 labelled hectares, ")
    assert "cannot be told apart from retraining in two steps" in text


def test_a_difference_is_found_in_both_directions():
    budget = make_budget([], [make_difference("full", "scratch", 0.03, 0.01)])

    there = find_difference(budget, "full", "scratch")
    back = find_difference(budget, "scratch", "full")

    assert (there["low"], there["high"]) == pytest.approx((0.01, 0.04))
    assert (back["miou"], back["low"], back["high"]) == pytest.approx(
        (-0.03, -0.04, -0.01)
    )
    assert find_difference(budget, "full", "head_only") is None


def test_every_mode_has_words_of_its_own():
    examples = [f"{name}:{family.example}" for name, family in FAMILIES.items()]
    modes = [*PLANS, *examples, "pixel_forest"]

    words = [name_mode(mode) for mode in modes]

    assert len(set(words)) == len(modes)
    assert all(word and word != mode for word, mode in zip(words, modes, strict=True))


def test_a_plan_of_a_file_is_called_by_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mode: mine\nbased_on: full\nsummary: Mine.\n", encoding="utf-8")
    (contender,) = find_contenders([str(path)])

    assert name_mode(contender.mode) == "mine"
    budget = make_budget([make_mode("mine", 0.5), make_mode("scratch", 0.4)])
    assert "With 4 labelled tiles, mine reaches" in answer_budget(budget, METHOD)
