"""Confusion counts: every pixel with a known label is counted once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import confusion_matrix

from cropseg.errors import DataError
from cropseg.evaluation.confusion import (
    count_confusion,
    count_confusion_by_block,
    name_columns,
    sum_blocks,
)
from cropseg.sites.classes import IGNORE


def make_maps(num_classes=4, shape=(37, 23), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = IGNORE
    prediction = rng.integers(0, num_classes + 2, shape).astype(np.uint8)
    prediction[0, 0] = IGNORE
    return labels, prediction


def test_counts_are_right_by_hand():
    labels = np.array([[0, 0, 1], [1, 1, 255]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1], [1, 9, 0]], dtype=np.uint8)

    counts = count_confusion(labels, prediction, num_classes=2)

    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 1, 0], [0, 2, 1]]


def test_counts_agree_with_scikit_learn():
    labels, prediction = make_maps()
    known = labels != IGNORE
    expected = confusion_matrix(
        labels[known], np.minimum(prediction[known], 4), labels=range(5)
    )

    counts = count_confusion(labels, prediction, num_classes=4)

    assert np.array_equal(counts, expected[:4])


@given(
    labels=hnp.arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 255])),
    prediction=hnp.arrays(np.int64, (5, 7), elements=st.integers(0, 300)),
)
def test_every_known_pixel_is_counted_once(labels, prediction):
    counts = count_confusion(labels, prediction, num_classes=3)

    assert counts.shape == (3, 4)
    assert counts.sum(axis=1).tolist() == [(labels == row).sum() for row in range(3)]
    assert counts[:, 3].sum() == ((prediction >= 3) & (labels != IGNORE)).sum()


def test_unknown_labels_leave_nothing_to_count():
    labels = np.full((3, 4), IGNORE, dtype=np.uint8)

    counts = count_confusion(labels, np.zeros_like(labels), num_classes=2)

    assert counts.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_empty_maps_give_zero_counts():
    nothing = np.zeros((0, 5), dtype=np.uint8)

    assert not count_confusion(nothing, nothing, num_classes=2).any()


def test_the_greatest_number_of_classes_fits():
    labels = np.array([253, 0, 255], dtype=np.uint8)
    prediction = np.array([253, 254, 0], dtype=np.uint8)

    counts = count_confusion(labels, prediction, num_classes=254)

    assert counts[253, 253] == 1
    assert counts[0, 254] == 1
    assert counts.sum() == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_labels_that_are_no_class_are_listed_with_their_pixels(dtype):
    labels = np.array([0, 2, 2, 254, 255], dtype=dtype)

    with pytest.raises(DataError, match=r"2 \(2 pixels\), 254 \(1 pixels\)\. Exp"):
        count_confusion(labels, np.zeros(5, dtype=np.uint8), num_classes=2)


@pytest.mark.parametrize("value", [-1, 256, 1000])
def test_labels_beyond_a_byte_are_refused(value):
    labels = np.array([0, value], dtype=np.int32)

    with pytest.raises(DataError, match=rf"{value} \(1 pixels\)"):
        count_confusion(labels, np.zeros(2, dtype=np.uint8), num_classes=2)


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(DataError, match=r"\(3, 2\).*\(2, 3\)"):
        count_confusion(
            np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), num_classes=2
        )


def test_negative_predictions_are_refused():
    with pytest.raises(DataError, match="-3"):
        count_confusion(np.zeros(2, np.uint8), np.array([0, -3]), num_classes=2)


def test_probabilities_in_place_of_classes_are_refused():
    with pytest.raises(DataError, match="float64"):
        count_confusion(np.zeros(2, np.uint8), np.array([0.2, 0.8]), num_classes=2)


@pytest.mark.parametrize("num_classes", [0, 255])
def test_an_impossible_number_of_classes_is_refused(num_classes):
    with pytest.raises(DataError, match=str(num_classes)):
        count_confusion(
            np.zeros(2, np.uint8), np.zeros(2, np.uint8), num_classes=num_classes
        )


def test_blocks_are_counted_apart():
    labels, prediction = make_maps()
    blocks = np.random.default_rng(1).integers(-1, 3, labels.shape)

    counts = count_confusion_by_block(
        labels, prediction, blocks, num_blocks=3, num_classes=4
    )

    assert counts.shape == (3, 4, 5)
    for block in range(3):
        inside = blocks == block
        expected = count_confusion(labels[inside], prediction[inside], num_classes=4)
        assert np.array_equal(counts[block], expected)


def test_blocks_without_a_pixel_have_zero_counts():
    labels, prediction = make_maps()

    counts = count_confusion_by_block(
        labels, prediction, np.zeros(labels.shape, int), num_blocks=3, num_classes=4
    )

    assert np.array_equal(counts[0], count_confusion(labels, prediction, num_classes=4))
    assert not counts[1:].any()


@pytest.mark.parametrize("block", [-2, 3])
def test_a_block_that_is_not_there_is_refused(block):
    labels, prediction = make_maps()
    blocks = np.zeros(labels.shape, dtype=np.int32)
    blocks[2, 1] = block

    with pytest.raises(DataError, match=f"from .*{block}" if block < 0 else "to 3"):
        count_confusion_by_block(
            labels, prediction, blocks, num_blocks=3, num_classes=4
        )


def test_the_inputs_are_left_as_they_were():
    labels, prediction = make_maps()
    blocks = np.random.default_rng(1).integers(-1, 3, labels.shape)
    before = labels.copy(), prediction.copy(), blocks.copy()

    count_confusion_by_block(labels, prediction, blocks, num_blocks=3, num_classes=4)

    for array, copy in zip((labels, prediction, blocks), before, strict=True):
        assert np.array_equal(array, copy)


def test_sum_blocks_adds_up_blocks_and_leaves_a_matrix():
    blocks = np.arange(24).reshape(2, 3, 4)

    assert np.array_equal(sum_blocks(blocks, num_classes=3), blocks[0] + blocks[1])
    assert np.array_equal(sum_blocks(blocks[0], num_classes=3), blocks[0])


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (12,), (2, 3, 3), (1, 1, 3, 4)])
def test_sum_blocks_refuses_other_shapes(shape):
    with pytest.raises(DataError, match="shape"):
        sum_blocks(np.zeros(shape, dtype=np.int64), num_classes=3)


@pytest.mark.parametrize("value", [0.5, -1])
def test_sum_blocks_refuses_what_is_no_count(value):
    with pytest.raises(DataError, match="not integers of 0 or more"):
        sum_blocks(np.full((3, 4), value), num_classes=3)


def test_a_class_called_other_does_not_make_two_equal_columns():
    columns = name_columns(("maize", "other"))

    assert columns[:2] == ("maize", "other")
    assert len(set(columns)) == 3
