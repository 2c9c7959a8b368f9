"""Scores: by hand, and against scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from cropseg.errors import DataError
from cropseg.evaluation.confusion import count_confusion, count_confusion_by_block
from cropseg.evaluation.scores import compute_scores

NAMES = ("maize", "wheat", "oats")


def test_scores_are_right_by_hand():
    counts = np.array([[3, 1, 0, 0], [1, 2, 0, 1], [0, 0, 2, 0]])

    scores = compute_scores(counts, NAMES)

    maize, wheat, oats = scores.classes
    assert (maize.iou, maize.precision, maize.recall) == (3 / 5, 3 / 4, 3 / 4)
    assert (wheat.iou, wheat.precision, wheat.recall) == (2 / 5, 2 / 3, 2 / 4)
    assert wheat.f1 == pytest.approx(4 / 7)
    assert (oats.iou, oats.f1, oats.num_pixels) == (1.0, 1.0, 2)
    assert scores.miou == pytest.approx((3 / 5 + 2 / 5 + 1) / 3)
    assert scores.macro_f1 == pytest.approx((3 / 4 + 4 / 7 + 1) / 3)
    assert scores.overall_accuracy == 7 / 10
    assert scores.num_pixels == 10


@pytest.mark.parametrize("seed", range(3))
def test_scores_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 999)
    prediction = np.where(rng.random(999) < 0.5, labels, rng.integers(0, 8, 999))
    oracle = {"labels": range(6), "average": None}

    scores = compute_scores(
        count_confusion(labels, prediction, num_classes=6), [*"abcdef"]
    )

    for attribute, function in {
        "iou": jaccard_score,
        "precision": precision_score,
        "recall": recall_score,
        "f1": f1_score,
    }.items():
        values = [getattr(score, attribute) for score in scores.classes]
        assert values == pytest.approx(list(function(labels, prediction, **oracle)))
    assert scores.overall_accuracy == accuracy_score(labels, prediction)
    assert scores.miou == pytest.approx(
        jaccard_score(labels, prediction, labels=range(6), average="macro")
    )


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_scores_lie_between_0_and_1_and_iou_is_never_above_f1(num_classes, seed):
    rng = np.random.default_rng(seed)
    shape = (num_classes, num_classes + 1)
    counts = rng.integers(0, 5, shape) * (rng.random(shape) < 0.4)
    counts[0, 0] += 1

    scores = compute_scores(counts, [str(index) for index in range(num_classes)])

    for score in scores.classes:
        if score.num_pixels:
            assert 0 <= score.iou <= score.f1 <= 1
            assert score.iou == pytest.approx(score.f1 / (2 - score.f1))
    assert scores.num_pixels == counts.sum()


def test_a_class_without_labels_has_no_scores_and_no_part_in_the_means():
    counts = np.array([[4, 0, 4, 0], [0, 4, 0, 0], [0, 0, 0, 0]])

    scores = compute_scores(counts, NAMES)

    oats = scores.classes[2]
    assert (oats.iou, oats.precision, oats.recall, oats.f1) == (None,) * 4
    assert scores.miou == (4 / 8 + 4 / 4) / 2
    assert scores.overall_accuracy == 8 / 12


def test_a_class_that_is_never_predicted_scores_0_and_has_no_precision():
    counts = np.array([[4, 0, 0, 0], [3, 0, 0, 0], [0, 0, 1, 0]])

    scores = compute_scores(counts, NAMES)

    wheat = scores.classes[1]
    assert (wheat.iou, wheat.precision, wheat.recall, wheat.f1) == (0, None, 0, 0)
    assert scores.miou == pytest.approx((4 / 7 + 0 + 1) / 3)


def test_predictions_of_classes_that_the_site_lacks_are_errors():
    without = compute_scores(np.array([[6, 0, 0], [0, 4, 0]]), NAMES[:2])
    with_other = compute_scores(np.array([[3, 0, 3], [0, 4, 0]]), NAMES[:2])

    assert without.overall_accuracy == 1
    assert with_other.overall_accuracy == 7 / 10
    assert with_other.classes[0].iou == 3 / 6
    assert with_other.classes[0].precision == 1
    assert with_other.num_pixels == 10


def test_blocks_are_summed_and_their_scores_are_not_averaged():
    labels = np.array([0, 1, 1, 1, 1, 1])
    prediction = np.array([1, 1, 1, 1, 1, 0])
    blocks = np.array([0, 0, 1, 1, 1, 1])
    by_block = count_confusion_by_block(
        labels, prediction, blocks, num_blocks=2, num_classes=2
    )
    whole = count_confusion(labels, prediction, num_classes=2)

    assert compute_scores(by_block, NAMES[:2]) == compute_scores(whole, NAMES[:2])


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3), (0, 2, 3)])
def test_no_labelled_pixel_at_all_is_an_error(shape):
    with pytest.raises(DataError, match="No pixel to score"):
        compute_scores(np.zeros(shape, dtype=np.int64), NAMES[:2])


def test_names_that_do_not_fit_the_counts_are_refused():
    with pytest.raises(DataError, match="2 classes"):
        compute_scores(np.ones((3, 4), dtype=np.int64), NAMES[:2])


def test_the_json_document_is_the_one_that_evaluate_promises():
    counts = np.array([[3, 1, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]])

    document = compute_scores(counts, NAMES).to_json()

    assert list(document) == [
        "miou",
        "overall_accuracy",
        "macro_f1",
        "num_pixels",
        "classes",
    ]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["classes"][0] == {
        "name": "maize",
        "iou": 0.6,
        "precision": 0.75,
        "recall": 0.75,
        "f1": 0.75,
        "num_pixels": 4,
    }
    assert document["classes"][2] == {
        "name": "oats",
        "iou": None,
        "precision": None,
        "recall": None,
        "f1": None,
        "num_pixels": 0,
    }


def test_evaluation_imports_no_keras():
    code = (
        "import sys, cropseg.evaluation.scores, cropseg.evaluation.plots; "
        "sys.exit(any(name in sys.modules for name in "
        "('keras', 'tensorflow', 'matplotlib.pyplot')))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
