"""The summary: made-up counts, and what must come out."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from sklearn import metrics as oracle

from cropseg.comparison.summary.collect import Collection
from cropseg.comparison.summary.known import describe_known, find_known
from cropseg.evaluation.area import estimate_block_errors
from cropseg.evaluation.confusion import count_confusion_by_block
from cropseg.evaluation.differences import (
    estimate_difference,
    find_smallest_difference,
    pool_precision,
)
from cropseg.evaluation.intervals import MIN_BLOCKS, make_mean_iou
from cropseg.files import write_json
from cropseg.sites.budget import parse_budget
from cropseg.sites.classes import ClassMap, CropClass


def get_mode(summary, mode, budget=0):
    modes = summary["budgets"][budget]["modes"]
    return next(item for item in modes if item["mode"] == mode)


def get_difference(summary, mode, against, budget=0):
    return next(
        item
        for item in summary["budgets"][budget]["differences"]
        if (item["mode"], item["against"]) == (mode, against)
    )


def repeat_blocks(matrix, num_blocks=2):
    return np.array([matrix] * num_blocks)


def test_scores_follow_from_the_counts_by_hand(made_up):
    # 8 of 10 corn pixels are right, 1 is water and 1 other; 6 of 9 water pixels are.
    one = repeat_blocks([[8, 1, 0, 1], [3, 6, 0, 0], [0, 0, 0, 0]])
    two = repeat_blocks([[10, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0]])
    made_up.add("full", draw=0, counts=one)
    made_up.add("full", draw=1, counts=two)

    full = get_mode(made_up.summarize(), "full")

    ious = (8 / 13, 6 / 10)
    assert full["miou_low"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert full["miou_high"] == 1
    assert full["miou_mean"] == pytest.approx((np.mean(ious) + 1) / 2, abs=1e-6)
    assert full["overall_accuracy_mean"] == pytest.approx((14 / 19 + 1) / 2, abs=1e-6)
    corn, water, soybeans = full["classes"]
    assert corn["iou_mean"] == pytest.approx((8 / 13 + 1) / 2, abs=1e-6)
    assert corn["precision"] == pytest.approx(18 / 21, abs=1e-6)  # of both runs
    assert water["recall"] == pytest.approx(15 / 18, abs=1e-6)
    assert (corn["num_pixels"], water["num_pixels"]) == (20, 18)
    assert soybeans == {
        "name": "soybeans",
        "iou_mean": None,
        "interval": None,
        "precision": None,
        "recall": None,
        "num_pixels": 0,
    }
    assert full["confusion"] == [[36, 2, 0, 2], [6, 30, 0, 0], [0, 0, 0, 0]]


def test_scores_agree_with_scikit_learn(made_up):
    rng = np.random.default_rng(5)
    blocks = np.repeat(np.arange(9), 400)
    labels = rng.integers(0, 3, blocks.size).astype(np.uint8)
    found = []
    for draw in (0, 1):
        guess = rng.integers(0, 4, blocks.size).astype(np.uint8)  # 3 is other
        guess = np.where(rng.random(blocks.size) < 0.5, labels, guess)
        counts = count_confusion_by_block(
            labels, guess, blocks, num_blocks=9, num_classes=3
        )
        made_up.add("full", draw=draw, counts=counts)
        found.append(guess)

    full = get_mode(made_up.summarize(), "full")

    def mean(score, **options):
        return np.mean([score(labels, guess, **options) for guess in found], axis=0)

    among = {"labels": [0, 1, 2]}
    ious = mean(oracle.jaccard_score, average=None, **among)
    assert full["miou_mean"] == pytest.approx(ious.mean(), abs=1e-6)
    f1 = mean(oracle.f1_score, average="macro", **among)
    assert full["macro_f1_mean"] == pytest.approx(f1, abs=1e-6)
    accuracy = mean(oracle.accuracy_score)
    assert full["overall_accuracy_mean"] == pytest.approx(accuracy, abs=1e-6)
    together = [np.tile(labels, 2), np.concatenate(found)]
    precision = oracle.precision_score(*together, average=None, **among)
    recall = oracle.recall_score(*together, average=None, **among)
    for index, item in enumerate(full["classes"]):
        assert item["iou_mean"] == pytest.approx(ious[index], abs=1e-6)
        assert item["precision"] == pytest.approx(precision[index], abs=1e-6)
        assert item["recall"] == pytest.approx(recall[index], abs=1e-6)
    matrix = oracle.confusion_matrix(*together, labels=[0, 1, 2, 3])
    assert full["confusion"] == matrix[:3].tolist()


def test_a_class_of_one_fold_counts_in_all(made_up):
    first = repeat_blocks([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 0, 0]])
    second = repeat_blocks([[10, 0, 0, 0], [0, 10, 0, 0], [5, 5, 0, 0]])
    made_up.add("full", fold=0, counts=first, block_ids=[0, 1])
    made_up.add("full", fold=1, counts=second, block_ids=[2, 3])

    full = get_mode(made_up.summarize(), "full")

    # Over both folds, and not the mean of the folds' own means.
    expected = (40 / 50 + 40 / 50 + 0) / 3
    assert full["miou_mean"] == pytest.approx(expected, abs=1e-6)
    assert full["classes"][2]["num_pixels"] == 20


def test_the_best_mean_leads_and_modes_are_sorted(usual):
    summary = usual.summarize()

    for budget in summary["budgets"]:
        means = [item["miou_mean"] for item in budget["modes"]]
        assert means == sorted(means, reverse=True)
        assert budget["leader"] == budget["modes"][0]["mode"] == "full"
        assert [item["mode"] for item in budget["modes"]][-1] == "zero_shot"
    assert [item["labels"] for item in summary["budgets"]] == ["4tiles", "16tiles"]
    flags = {item["mode"]: item["is_baseline"] for item in budget["modes"]}
    assert flags == {
        "full": False,
        "scratch": True,
        "pixel_forest": True,
        "zero_shot": True,
    }


def test_an_interval_holds_the_mean_and_differences_are_paired(usual):
    summary = usual.summarize()

    assert summary["method"]["interval"] == "t over draws and blocks"
    for budget in summary["budgets"]:
        for mode in budget["modes"]:
            low, high = mode["interval"]
            assert low < mode["miou_mean"] < high
    found = get_difference(summary, "full", "scratch")
    means = [get_mode(summary, mode)["miou_mean"] for mode in ("full", "scratch")]
    assert found["miou"] == pytest.approx(means[0] - means[1], abs=2e-6)
    assert found["low"] < found["miou"] < found["high"]
    assert found["significant"]
    assert found["p_value"] <= found["p_holm"] < 0.05


def test_each_mode_is_held_against_baselines_and_leader(usual):
    differences = usual.summarize()["budgets"][0]["differences"]

    modes = ("full", "pixel_forest", "scratch", "zero_shot")
    pairs = [(item["mode"], item["against"]) for item in differences]
    assert sorted(pairs) == sorted((a, b) for a in modes for b in modes if a != b)


def test_a_pair_is_one_test_in_both_directions(usual):
    summary = usual.summarize()
    there = get_difference(summary, "full", "scratch")
    back = get_difference(summary, "scratch", "full")

    assert summary["budgets"][0]["num_tests"] == 6
    assert back["miou"] == -there["miou"]
    assert (back["low"], back["high"]) == (-there["high"], -there["low"])
    for name in ("p_value", "p_holm", "significant", "smallest_difference"):
        assert back[name] == there[name]


def test_the_smallest_difference_comes_from_all_tests_and_shares_their_level(usual):
    found = get_difference(usual.summarize(), "full", "scratch")

    modes = Collection(usual.results).collect(parse_budget("4tiles"))
    all_pairs = [
        estimate_difference(one.counts, other.counts, make_mean_iou([0, 1, 2]))
        for one, other in combinations(modes.values(), 2)
    ]
    error, dof = pool_precision(all_pairs)
    expected = find_smallest_difference(error, dof, alpha=0.05 / 6)
    assert found["smallest_difference"] == pytest.approx(expected, abs=1e-6)


def test_modes_that_are_no_baseline_are_held_against_the_leader_only(usual):
    for draw in range(3):
        usual.add("head_only", quality=0.75, draw=draw)
        usual.add("lp_ft", quality=0.76, draw=draw)

    budget = usual.summarize()["budgets"][0]

    pairs = {(item["mode"], item["against"]) for item in budget["differences"]}
    assert ("lp_ft", "full") in pairs
    assert ("lp_ft", "scratch") in pairs
    assert ("lp_ft", "head_only") not in pairs
    # Six pairs of the four; each of the two against the four.
    assert budget["num_tests"] == 14


def test_equal_counts_are_no_difference(usual):
    for draw in range(3):
        usual.add("lp_ft", quality=0.8, draw=draw)

    found = get_difference(usual.summarize(), "lp_ft", "full")

    assert found["miou"] == 0
    assert found["significant"] is not True


def test_draws_that_disagree_show_nothing(made_up):
    for draw, (full, scratch) in enumerate(((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))):
        made_up.add("full", quality=full, draw=draw)
        made_up.add("scratch", quality=scratch, draw=draw)

    found = get_difference(made_up.summarize(), "full", "scratch")

    assert not found["significant"]
    assert (found["low"], found["high"]) == (-1, 1)
    assert found["smallest_difference"] == 1


def test_two_draws_have_a_range_and_no_interval(made_up):
    made_up.record = {"draws": 2}
    made_up.add("zero_shot", None, quality=0.3)
    for draw, quality in enumerate((0.9, 0.8)):
        made_up.add("full", quality=quality, draw=draw)
        made_up.add("scratch", quality=0.2, draw=draw)

    summary = made_up.summarize()

    assert summary["method"]["interval"] == "range"
    for item in summary["budgets"][0]["modes"]:  # also of one that has one run
        assert item["interval"] is None
        assert item["probability_best"] is None
    found = get_difference(summary, "full", "scratch")
    assert (found["low"], found["high"], found["p_value"]) == (None, None, None)
    assert "there are 2 draws, and an interval needs 3" in summary["answer"]


def test_a_class_in_few_blocks_has_no_interval_and_is_left_out_of_a_second_mean(
    made_up,
):
    counts = made_up.make_counts(0.8)
    counts[3:, 2] = 0  # soybeans lie in three blocks
    made_up.add("full", counts=counts)

    summary = made_up.summarize()

    full = get_mode(summary, "full")
    assert [item["thin"] for item in summary["classes"]] == [False, False, True]
    intervals = [item["interval"] for item in full["classes"]]
    assert [item is None for item in intervals] == [False, False, True]
    ious = [item["iou_mean"] for item in full["classes"]]
    assert full["firm_miou"]["mean"] == pytest.approx(np.mean(ious[:2]), abs=2e-6)
    assert full["miou_mean"] == pytest.approx(np.mean(ious), abs=2e-6)
    told = " ".join(summary["method"]["does_not_cover"])
    assert "soybeans lie mostly in fewer than 8" in told


def test_a_difference_uses_the_draws_that_both_have(made_up):
    made_up.add("full", quality=0.1, draw=0)
    made_up.fail("scratch", draw=0)
    for draw in (1, 2):
        made_up.add("full", quality=0.7, draw=draw)
        made_up.add("scratch", quality=0.6, draw=draw)

    summary = made_up.summarize()

    found = get_difference(summary, "full", "scratch")
    assert get_mode(summary, "full")["draws"] == 3
    assert get_mode(summary, "scratch")["draws"] == 2
    assert found["miou"] > 0.05  # with draw 0 it would be below 0
    (note,) = summary["budgets"][0]["notes"]
    assert "scratch is without draw 0" in note
    assert summary["failed"] == ["scratch-4tiles-draw0"]


def test_one_draw_that_is_left_of_several_has_no_interval_and_no_test(made_up):
    made_up.add("zero_shot", None, quality=0.3)
    for draw in range(3):
        made_up.add("full", quality=0.8, draw=draw)
        made_up.add("lp_ft", quality=0.75, draw=draw)
    made_up.add("scratch", quality=0.5, draw=0)
    for draw in (1, 2):
        made_up.fail("scratch", draw=draw)

    summary = made_up.summarize()

    # Over blocks alone there would be one, which says nothing of other draws.
    scratch = get_mode(summary, "scratch")
    assert scratch["interval"] is scratch["known_miou"]["interval"] is None
    assert all(item["interval"] is None for item in scratch["classes"])
    assert get_mode(summary, "full")["interval"] is not None
    assert get_mode(summary, "zero_shot")["interval"] is not None
    assert all(
        item["probability_best"] is None for item in summary["budgets"][0]["modes"]
    )
    for mode in ("full", "zero_shot"):
        found = get_difference(summary, mode, "scratch")
        assert (found["low"], found["p_value"], found["draws"]) == (None, None, 1)
    assert get_difference(summary, "full", "zero_shot")["p_value"] is not None
    (effect, _) = summary["budgets"][0]["class_effects"]
    assert effect["against"] == "scratch"
    assert all(item["low"] is None for item in effect["classes"])
    assert summary["budgets"][0]["num_tests"] == 3


def test_a_mode_of_which_every_draw_failed_is_told(made_up):
    for draw in (0, 1):
        made_up.add("full", draw=draw)
        made_up.add("full", "8tiles", draw=draw)
        made_up.fail("lp_ft", draw=draw)
        made_up.add("lp_ft", "8tiles", draw=draw)

    first, second = made_up.summarize()["budgets"]

    assert [item["mode"] for item in first["modes"]] == ["full"]
    assert first["notes"] == [
        "lp_ft is left out, as a run of each of its draws failed."
    ]
    assert second["notes"] == []


def test_a_lead_over_few_common_draws_says_how_many_they_are(made_up):
    for draw in range(3):
        made_up.add("full", quality=0.8, draw=draw)
    made_up.fail("scratch", draw=0)
    for draw in (1, 2):
        made_up.add("scratch", quality=0.5, draw=draw)

    answer = made_up.summarize()["answer"]

    assert answer.endswith(
        "stays open: the two have 2 finished draws in common, and an interval needs 3."
    )


@pytest.mark.parametrize(
    ("draws", "seeds", "interval"),
    [
        (1, 1, "t over blocks"),
        (1, 3, "t over seeds of one draw and blocks"),
        (3, 1, "t over draws and blocks"),
        (2, 3, "range"),
    ],
)
def test_an_interval_is_called_what_it_is_over(made_up, draws, seeds, interval):
    for draw in range(draws):
        for repeat in range(seeds):
            made_up.add("full", draw=draw, repeat=repeat)

    summary = made_up.summarize()

    assert summary["method"]["interval"] == interval
    full = get_mode(summary, "full")
    assert (full["interval"] is None) == (interval == "range")


def test_the_range_of_two_seeds_is_not_called_one_of_draws(made_up):
    for repeat in (0, 1):
        made_up.add("full", repeat=repeat)

    method = made_up.summarize()["method"]

    assert method["why_no_interval"] == (
        "there are 2 seeds of one draw, and an interval needs 3"
    )


def test_the_smallest_difference_is_the_median_over_budgets_not_over_tests(made_up):
    rng = np.random.default_rng(3)
    for draw in range(3):
        for mode in ("full", "scratch"):
            quality = rng.uniform(0.5, 0.9)  # of which little can be shown
            made_up.add(mode, "2tiles", quality=quality, draw=draw)
        for mode, quality in (("full", 0.8), ("scratch", 0.6), ("pixel_forest", 0.7)):
            made_up.add(mode, "4tiles", quality=quality, draw=draw)

    summary = made_up.summarize()

    found = [
        budget["differences"][0]["smallest_difference"] for budget in summary["budgets"]
    ]
    assert found[0] > 2 * found[1]
    assert summary["method"]["smallest_difference"] == max(found)


def test_few_blocks_have_no_interval_and_no_test(made_up):
    made_up.num_blocks = MIN_BLOCKS - 1
    for draw in (0, 1):
        made_up.add("full", quality=0.8, draw=draw)
        made_up.add("scratch", quality=0.5, draw=draw)

    summary = made_up.summarize()

    assert summary["method"]["interval"] == "range"
    assert summary["method"]["smallest_difference"] is None
    assert f"{MIN_BLOCKS - 1} test blocks" in summary["method"]["covers"][0]
    for mode in summary["budgets"][0]["modes"]:
        assert mode["interval"] is None
        assert mode["probability_best"] is None
        assert mode["miou_low"] <= mode["miou_mean"] <= mode["miou_high"]
        assert all(item["interval"] is None for item in mode["classes"])
    found = get_difference(summary, "full", "scratch")
    names = ("low", "high", "p_value", "p_holm", "significant", "smallest_difference")
    assert [found[name] for name in names] == [None] * 6
    assert found["miou"] > 0.1


def test_the_fewest_blocks_have_an_interval(made_up):
    made_up.num_blocks = MIN_BLOCKS
    made_up.add("full")

    assert get_mode(made_up.summarize(), "full")["interval"] is not None


def test_the_leader_is_held_against_the_baselines_class_by_class(usual):
    summary = usual.summarize()

    effects = {item["against"]: item for item in summary["budgets"][0]["class_effects"]}
    assert list(effects) == ["scratch", "zero_shot", "pixel_forest"]
    classes = [get_mode(summary, m)["classes"] for m in ("full", "scratch")]
    found = effects["scratch"]["classes"]
    assert [item["name"] for item in found] == ["corn", "water", "soybeans"]
    for item, full, scratch in zip(found, *classes, strict=True):
        gain = full["iou_mean"] - scratch["iou_mean"]
        assert item["iou"] == pytest.approx(gain, abs=2e-6)
        assert item["low"] < item["iou"] < item["high"]


def test_a_leader_is_not_held_against_itself_class_by_class(made_up):
    made_up.add("scratch", quality=0.9)
    made_up.add("full")

    assert made_up.summarize()["budgets"][0]["class_effects"] == []


def test_probabilities_of_being_best_add_up_to_one(usual):
    for budget in usual.summarize()["budgets"]:
        shares = [item["probability_best"] for item in budget["modes"]]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert shares[0] == max(shares)


def test_what_older_runs_did_not_measure_is_null(usual):
    summary = usual.summarize()

    for mode in summary["budgets"][1]["modes"]:
        for name in ("fields", "calibration", "forgetting", "areas"):
            assert mode[name] is None
        assert mode["peak_memory_bytes"] is None
    assert summary["normalization"] is None
    assert summary["budgets"][0]["advice"] is None
    for run in summary["runs"]:
        assert run["ece"] is None
        assert run["forgetting_after"] is None
    json.dumps(summary, allow_nan=False)


def test_fields_are_the_mean_over_runs(made_up):
    for draw, right in ((0, [1, 1]), (1, [1, 0])):
        fields = np.array([[0, 3, 1, right[0], 50], [0, 9, 1, right[1], 20]])
        made_up.add("full", draw=draw, arrays={"test_fields": fields})

    summary = made_up.summarize()

    assert get_mode(summary, "full")["fields"] == {"accuracy": 0.75, "num_fields": 2}
    assert [run["field_accuracy"] for run in summary["runs"]] == [1, 0.5]


def test_pixel_labels_have_no_field_score(made_up):
    made_up.add("full", arrays={"test_fields": np.zeros((0, 5), np.int64)})

    assert get_mode(made_up.summarize(), "full")["fields"] is None


def test_the_calibration_error_is_a_mean_and_the_curve_of_all_runs(made_up):
    # One run is 10 % too sure and one 10 % not sure enough: together they look right.
    for draw, right in ((0, 60), (1, 80)):
        reliability = np.zeros((12, 15, 3), np.int64)
        reliability[4, 10] = 100, right, 100 * 7000
        made_up.add("full", draw=draw, arrays={"test_reliability": reliability})

    summary = made_up.summarize()

    found = get_mode(summary, "full")["calibration"]
    assert found["ece"] == pytest.approx(0.1)
    assert found["bins"] == [
        {
            "low": pytest.approx(10 / 15, abs=1e-4),
            "high": pytest.approx(11 / 15, abs=1e-4),
            "share": 1,
            "confidence": pytest.approx(0.7),
            "accuracy": pytest.approx(0.7),
        }
    ]
    assert [run["ece"] for run in summary["runs"]] == [pytest.approx(0.1)] * 2


def test_a_measure_that_a_run_lacks_is_null_for_its_mode(made_up):
    fields = np.array([[0, 3, 1, 1, 50]])
    made_up.add("full", draw=0, arrays={"test_fields": fields})
    made_up.add("full", draw=1)

    assert get_mode(made_up.summarize(), "full")["fields"] is None


def add_mapped(made_up, mode, draw=0, **options):
    counts = made_up.make_counts(0.8, draw=draw)
    mapped = counts.sum(axis=1) * 2  # half of the pixels are labelled
    arrays = {"test_mapped": mapped}
    made_up.add(mode, draw=draw, counts=counts, arrays=arrays, **options)
    return counts, mapped


def test_areas_are_of_the_leader_and_the_baselines_at_the_largest_budget(made_up):
    for mode in ("full", "lp_ft", "scratch"):
        for labels in ("4tiles", "8tiles"):
            add_mapped(made_up, mode, labels=labels)

    summary = made_up.summarize()

    leader = summary["budgets"][1]["leader"]
    for item in summary["budgets"][1]["modes"]:
        has_areas = item["mode"] in (leader, "scratch")
        assert (item["areas"] is not None) == has_areas
    assert all(item["areas"] is None for item in summary["budgets"][0]["modes"])


def test_areas_are_corrected_for_what_the_map_confuses(made_up):
    counts, mapped = add_mapped(made_up, "full")

    areas = get_mode(made_up.summarize(), "full")["areas"]

    pixel_ha = 0.01  # 10 m
    total = counts.sum(axis=0)
    for index, item in enumerate(areas["classes"]):
        assert item["mapped_ha"] == pytest.approx(mapped[:, index].sum() * pixel_ha)
        assert item["labelled_ha"] == pytest.approx(total[index].sum() * pixel_ha)
        # Twice the labelled pixels of a mapped class are mapped, so the corrected
        # area is twice the labelled one.
        assert item["adjusted_ha"] == pytest.approx(2 * item["labelled_ha"])
        assert item["standard_error_ha"] > 0
    assert not areas["design_based"]
    assert "50% of their pixels have a label" in areas["note"]


def test_the_error_of_an_area_is_that_of_one_map_and_not_of_their_mean(made_up):
    errors = []
    for draw, quality in ((0, 0.95), (1, 0.6)):
        counts = made_up.make_counts(quality, draw=draw)
        mapped = counts.sum(axis=1)
        errors.append(estimate_block_errors(counts, mapped.sum(axis=0), 0.01))
        made_up.add("full", draw=draw, counts=counts, arrays={"test_mapped": mapped})

    areas = get_mode(made_up.summarize(), "full")["areas"]

    found = [item["standard_error_ha"] for item in areas["classes"]]
    np.testing.assert_allclose(found, np.sqrt(np.mean(np.square(errors), 0)), rtol=1e-4)


def test_folds_are_no_one_map(made_up):
    for fold in (0, 1):
        counts = made_up.make_counts(0.8, blocks=[fold, fold + 4])
        made_up.add(
            "full",
            fold=fold,
            counts=counts,
            block_ids=[fold, fold + 4],
            arrays={"test_mapped": counts.sum(axis=1)},
        )

    areas = get_mode(made_up.summarize(), "full")["areas"]

    assert not areas["design_based"]
    assert "no one map" in areas["note"]


def test_mapped_classes_that_no_label_checks_are_told(made_up):
    for draw, extra in ((0, 0), (1, 900)):
        counts = made_up.make_counts(0.8, draw=draw)
        counts[..., -1] = 0
        mapped = counts.sum(axis=1)
        mapped[:, -1] = extra  # mapped as other, where nothing is labelled
        made_up.add("full", draw=draw, counts=counts, arrays={"test_mapped": mapped})

    note = get_mode(made_up.summarize(), "full")["areas"]["note"]

    share = mapped[:, -1].sum() / mapped.sum()
    assert f"{share:.1%} of a map at most are classes that no label checks" in note


def test_random_blocks_that_are_labelled_whole_are_design_based(made_up):
    counts = made_up.make_counts(0.8)
    made_up.add("full", counts=counts, arrays={"test_mapped": counts.sum(axis=1)})
    areas = get_mode(made_up.summarize(), "full")["areas"]
    assert areas["design_based"]
    assert "no label checks" not in areas["note"]

    made_up.split = "regions"
    areas = get_mode(made_up.summarize(), "full")["areas"]
    assert not areas["design_based"]
    assert "by hand" in areas["note"]


class SourceSite:
    classes = ClassMap(
        classes=tuple(CropClass(name=n, color="#000000") for n in ("oats", "corn"))
    )


def write_source(made_up, counts):
    np.savez(made_up.folder / "source.npz", block_ids=np.arange(2), counts=counts)


def test_forgetting_is_the_change_on_the_shared_classes_of_area_1(made_up):
    made_up.source_site = SourceSite()
    write_source(made_up, np.array([[[40, 10]], [[40, 10]]]))
    for draw, right in ((0, 20), (1, 30)):
        after = np.array([[[right, 50 - right]], [[right, 50 - right]]])
        made_up.add("full", draw=draw, arrays={"source_counts": after})
    made_up.add("pixel_forest")  # takes nothing of area 1

    summary = made_up.summarize()

    found = get_mode(summary, "full")["forgetting"]
    assert found == {"before": 0.8, "after": 0.5, "change": -0.3, "classes": ["corn"]}
    assert get_mode(summary, "pixel_forest")["forgetting"] is None
    told = [
        (run["forgetting_before"], run["forgetting_after"]) for run in summary["runs"]
    ]
    assert told == [(0.8, 0.4), (0.8, 0.6), (None, None)]


def test_forgetting_needs_the_score_before(made_up):
    made_up.source_site = SourceSite()
    made_up.add("full", arrays={"source_counts": np.array([[[20, 30]]])})

    assert get_mode(made_up.summarize(), "full")["forgetting"] is None


def test_known_classes_have_a_mean_of_their_own(made_up):
    made_up.own_ious = {"corn": 0.6, "soybeans": 0.19, "barley": 0.9}
    matrix = [[8, 2, 0, 0], [5, 5, 0, 0], [0, 0, 1, 9]]
    made_up.add("full", counts=repeat_blocks(matrix, 9))

    summary = made_up.summarize()

    flags = {item["name"]: item["known"] for item in summary["classes"]}
    assert flags == {"corn": True, "water": False, "soybeans": False}
    known = get_mode(summary, "full")["known_miou"]
    assert known["mean"] == pytest.approx(8 / 15, abs=1e-6)
    assert known["interval"] is not None
    assert summary["runs"][0]["known_miou"] == pytest.approx(8 / 15, abs=1e-6)
    assert "at least 0.2" in summary["method"]["known"]


class Card:
    class_names = ("maize", "sweet maize", "water", "oats")

    def __init__(self, **scores):
        self.scores = {
            part: {"classes": [{"name": n, "iou": iou} for n, iou in ious.items()]}
            for part, ious in scores.items()
        }


CLASSES = ClassMap(
    classes=(
        CropClass(name="corn", color="#ffd300", source_names=("maize", "sweet maize")),
        CropClass(name="water", color="#4970a3"),
        CropClass(name="rice", color="#00a8e2"),
    )
)


@pytest.mark.parametrize(
    ("scores", "known"),
    [
        ({"test": {"maize": 0.1, "sweet maize": 0.5, "water": 0.1}}, ["corn"]),
        ({"test": {"water": 0.2}}, ["water"]),
        ({"test": {"water": 0.1}, "val": {"water": 0.9}}, []),
        ({"test": {"water": None}, "val": {"water": 0.9}}, ["water"]),
        ({"val": {"maize": 0.3, "oats": 0.9}}, ["corn"]),
        ({}, ["corn", "water"]),
    ],
)
def test_a_class_is_known_by_its_score_in_area_1(scores, known):
    card = Card(**scores)

    assert find_known(card, CLASSES) == known
    assert ("no scores" in describe_known(card)) == (not scores)


def test_labels_needed_are_those_of_a_mode_that_reaches_scratch(made_up):
    for draw in range(3):
        for labels, full, scratch, poor in (
            ("4tiles", 0.5, 0.4, 0.2),
            ("16tiles", 0.7, 0.6, 0.3),
        ):
            made_up.add("full", labels, quality=full, draw=draw)
            made_up.add("scratch", labels, quality=scratch, draw=draw)
            made_up.add("head_only", labels, quality=poor, draw=draw)
    made_up.add("zero_shot", None, quality=0.9)

    summary = made_up.summarize()

    found = {item["mode"]: item for item in summary["label_efficiency"]}
    assert set(found) == {"full", "head_only"}
    assert found["full"]["reached"]
    assert 4 < found["full"]["low"] < found["full"]["labels"] < found["full"]["high"]
    assert found["full"]["high"] < 16
    assert not found["head_only"]["reached"]
    assert found["head_only"]["labels"] is None
    goal = get_mode(summary, "scratch", budget=1)["miou_mean"]
    assert found["full"]["target_miou"] == pytest.approx(goal)
    assert found["full"]["target"] == "scratch with 16 labelled tiles"


def test_a_mode_that_is_sure_to_need_more_labels_is_not_said_to_need_fewer(made_up):
    for draw in range(3):
        for labels, scratch in (("4tiles", 0.4), ("16tiles", 0.6)):
            made_up.add("scratch", labels, quality=scratch, draw=draw)
            made_up.add("head_only", labels, quality=0.2, draw=draw)

    (found,) = made_up.summarize()["label_efficiency"]

    assert (found["reached"], found["has_interval"]) == (False, True)
    assert (found["low"], found["high"]) == (16, None)


def test_labels_needed_have_no_interval_over_one_draw_that_is_left(made_up):
    for draw in range(3):
        for labels, scratch in (("4tiles", 0.4), ("16tiles", 0.6)):
            made_up.add("scratch", labels, quality=scratch, draw=draw)
            if draw == 1:
                made_up.add("full", labels, quality=scratch + 0.1, draw=draw)
            else:
                made_up.fail("full", labels, draw=draw)

    (found,) = made_up.summarize()["label_efficiency"]

    assert found["reached"]
    assert (found["has_interval"], found["low"], found["high"]) == (False, None, None)


def test_runs_that_did_not_converge_say_nothing_of_labels_needed(made_up):
    for labels, converged in (("4tiles", False), ("16tiles", True)):
        for draw in (0, 1):
            made_up.add("full", labels, quality=0.8, draw=draw, converged=converged)
            made_up.add("scratch", labels, quality=0.5, draw=draw)

    summary = made_up.summarize()

    (found,) = summary["label_efficiency"]
    assert (found["labels"], found["is_at_most"]) == (16, True)  # of 4 nothing is known
    (note,) = summary["method"]["label_efficiency"]
    assert note.startswith("full counts without 4 labelled tiles")


def test_without_the_largest_budget_nothing_is_called_not_reached(made_up):
    for draw in (0, 1):
        for labels, quality in (("4tiles", 0.4), ("16tiles", 0.7)):
            converged = labels == "4tiles"
            made_up.add("full", labels, quality=quality, draw=draw, converged=converged)
            made_up.add("scratch", labels, quality=0.6, draw=draw)

    summary = made_up.summarize()

    assert summary["label_efficiency"] == []
    assert (
        "full counts without 16 labelled tiles"
        in summary["method"]["label_efficiency"][0]
    )


def test_without_a_converged_scratch_no_label_efficiency_is_told(made_up):
    made_up.add("full")
    made_up.add("scratch", converged=False)

    summary = made_up.summarize()

    assert summary["label_efficiency"] == []
    assert "had not converged" in summary["method"]["label_efficiency"][0]


def test_advice_and_normalization_come_from_the_folder(usual):
    advice = [
        {"labels": labels, "cell": "few", "modes": ["full"]}
        for labels in ("4tiles", "16tiles")
    ]
    (usual.folder / "advice.json").write_text(json.dumps(advice), encoding="utf-8")
    found = {"choice": "source", "zero_shot_miou": {"source": 0.5}}
    path = usual.folder / "normalization.json"
    path.write_text(json.dumps(found), encoding="utf-8")

    summary = usual.summarize()

    assert summary["normalization"] == found
    assert [item["advice"]["held"] for item in summary["budgets"]] == [True, True]


def test_runs_are_listed_with_their_folders(made_up):
    made_up.add("full", draw=1)
    made_up.fail("lp_ft")

    first, second = made_up.summarize()["runs"]

    assert first["name"] == "full-4tiles-draw1"
    assert first["folder"] == "full-4tiles-draw1-0123abcd"
    assert (first["mode"], first["labels"], first["draw"]) == ("full", "4tiles", 1)
    assert (first["seed"], first["fold"], first["status"]) == (8, None, "ok")
    assert first["seconds"] == 2.5
    assert (second["status"], second["folder"], second["miou"]) == (
        "failed",
        None,
        None,
    )


def test_cost_is_told(made_up):
    training = {"peak_memory_bytes": 5_000, "steps": 10, "trained_parameters": 99}
    made_up.add("full", draw=0, training=training)
    made_up.add("full", draw=1, training=training | {"peak_memory_bytes": 7_000})

    full = get_mode(made_up.summarize(), "full")

    assert full["peak_memory_bytes"] == 7_000
    assert (full["steps_mean"], full["trained_parameters"]) == (10, 99)
    assert full["seconds_mean"] == 2
    assert full["converged"] == 2


def test_converged_runs_are_counted(made_up):
    made_up.add("full", draw=0)
    made_up.add("full", draw=1, converged=False)
    made_up.add("zero_shot", None)

    summary = made_up.summarize()

    assert get_mode(summary, "full")["converged"] == 1
    assert get_mode(summary, "zero_shot")["converged"] is None


def test_where_no_run_finished_there_is_a_summary_too(made_up):
    made_up.fail("full")

    summary = made_up.summarize()

    assert summary["budgets"][0]["leader"] is None
    assert summary["answer"] == "With 4 labelled tiles, no mode has all runs of a draw."
    assert summary["failed"] == ["full-4tiles-draw0"]
    json.dumps(summary, allow_nan=False)


def test_a_budget_at_which_all_failed_does_not_hide_the_other(made_up):
    made_up.add("full", "2tiles")
    made_up.fail("full", "8tiles")

    summary = made_up.summarize()

    assert [item["leader"] for item in summary["budgets"]] == ["full", None]
    assert summary["answer"].startswith("With 2 labelled tiles, full retraining")


@pytest.mark.parametrize(
    ("record", "covered", "uncovered"),
    [
        ({"draws": 3}, "3 draws were made, each with a seed of its own", "Other areas"),
        ({"draws": 3, "seeds": 2}, "each with 2 seeds", "Errors of the labels"),
        ({"draws": 1, "seeds": 1}, "Other blocks", "draws of the labels and seeds"),
        ({"draws": 1, "seeds": 3}, "Other seeds: 3", "Other draws of the labels: "),
        ({"folds": 5}, "12 were tested", "models of different folds"),
        ({"validation": "oracle"}, "Other blocks", "chosen on val blocks"),
    ],
)
def test_the_summary_says_what_intervals_cover(made_up, record, covered, uncovered):
    made_up.add("full")
    made_up.record = record

    method = made_up.summarize()["method"]

    assert covered in " ".join(method["covers"])
    assert uncovered in " ".join(method["does_not_cover"])


@pytest.mark.slow
def test_a_large_comparison_stays_small(made_up, tmp_path):
    made_up.names = tuple(f"class number {index}" for index in range(11))
    made_up.num_blocks = 64
    made_up.source_site = SourceSite()
    modes = ("full", "lp_ft", "gradual", "joint", "head_only", "frozen_encoder")
    baselines = ("scratch", "pixel_forest", "imagenet")

    def make_arrays():
        rng = np.random.default_rng(0)
        return {
            "test_mapped": rng.integers(1, 999, (64, 12)),
            "test_reliability": rng.integers(1, 9, (64, 15, 3)) * [9, 1, 9000],
            "test_fields": rng.integers(0, 9, (200, 5)),
        }

    for mode in (*modes, *baselines):
        for labels in ("2tiles", "8tiles", "20tiles"):
            for draw in range(3):
                made_up.add(
                    mode,
                    labels,
                    quality=0.5 + 0.01 * len(mode),
                    draw=draw,
                    arrays=make_arrays(),
                )
    made_up.add("zero_shot", None, arrays=make_arrays())

    summary = made_up.summarize()

    write_json(tmp_path / "summary.json", summary, indent=1)
    assert (tmp_path / "summary.json").stat().st_size < 300_000
