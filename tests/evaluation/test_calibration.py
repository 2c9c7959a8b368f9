"""Calibration: the curve of scikit-learn, and an error that hand arithmetic gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from cropseg.errors import DataError
from cropseg.evaluation.calibration import (
    CONFIDENCE_UNIT,
    NUM_BINS,
    compute_calibration,
    count_reliability,
)


def make_pixels(shape=(61, 43), *, num_blocks=3, seed=0):
    """Return labels, classes, confidence and blocks; confident pixels are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    confidence = rng.uniform(0.2, 1, shape)
    is_right = rng.random(shape) < confidence**2
    classes = np.where(is_right, labels, (labels + 1) % 5).astype(np.uint8)
    labels[rng.random(shape) < 0.3] = 255
    return labels, classes, confidence, rng.integers(0, num_blocks, shape)


def test_the_curve_is_that_of_scikit_learn():
    labels, classes, confidence, blocks = make_pixels()
    confidence = confidence.round(4)  # as they are counted
    known = labels != 255
    right = labels[known] == classes[known]
    accuracy, mean = calibration_curve(right, confidence[known], n_bins=NUM_BINS)

    counts = count_reliability(labels, classes, confidence, blocks, num_blocks=3)
    found = compute_calibration(counts)

    filled = [item for item in found.bins if item.share]
    assert len(filled) == len(accuracy) == 12  # none of them is below 0.2
    np.testing.assert_allclose([item.accuracy for item in filled], accuracy)
    np.testing.assert_allclose([item.confidence for item in filled], mean)
    shares = np.histogram(confidence[known], NUM_BINS, (0, 1))[0] / known.sum()
    np.testing.assert_allclose([item.share for item in found.bins], shares)
    assert found.ece == pytest.approx(
        (shares[shares > 0] * np.abs(accuracy - mean)).sum()
    )
    assert 0.1 < found.ece < 0.3  # it is right less often than it says


def test_blocks_are_counted_apart_and_unknown_labels_not_at_all():
    labels, classes, confidence, blocks = make_pixels()
    counts = count_reliability(labels, classes, confidence, blocks, num_blocks=4)

    assert counts.shape == (4, NUM_BINS, 3)
    assert counts.dtype == np.int64
    assert not counts[3].any()
    for block in range(3):
        known = (blocks == block) & (labels != 255)
        pixels, right, units = counts[block].sum(axis=0)
        assert pixels == known.sum()
        assert right == (labels[known] == classes[known]).sum()
        assert units == np.rint(confidence[known] * CONFIDENCE_UNIT).sum()


@given(units=st.lists(st.integers(0, CONFIDENCE_UNIT), min_size=1, max_size=50))
def test_a_bin_holds_its_upper_end_and_not_its_lower_one(units):
    ones = np.zeros(len(units), np.uint8)
    confidence = np.array(units) / CONFIDENCE_UNIT

    counts = count_reliability(ones, ones, confidence, ones.astype(int), num_blocks=1)

    for place in np.flatnonzero(counts[0, :, 0]):
        # Whole numbers: no bin's end is lost to rounding.
        low, high = place * CONFIDENCE_UNIT, (place + 1) * CONFIDENCE_UNIT
        inside = [unit for unit in units if low < unit * NUM_BINS <= high]
        inside += [unit for unit in units if unit == 0 and place == 0]
        assert counts[0, place].tolist() == [len(inside), len(inside), sum(inside)]


def test_a_softmax_may_end_a_little_above_one():
    one = np.array([0], np.uint8)
    sure = np.array([1.0004], np.float32)
    counts = count_reliability(one, one, sure, np.array([0]), num_blocks=1)
    assert counts[0, -1].tolist() == [1, 1, CONFIDENCE_UNIT]


@pytest.mark.parametrize("value", [-0.5, 7.0, np.nan])
def test_what_is_no_probability_is_refused(value):
    one = np.array([0], np.uint8)
    with pytest.raises(DataError, match="expected 0 to 1"):
        count_reliability(one, one, np.array([value]), np.array([0]), num_blocks=1)


def test_a_model_that_knows_how_often_it_is_right_has_no_error():
    counts = np.zeros((NUM_BINS, 3), int)
    counts[7] = (1000, 500, 500 * CONFIDENCE_UNIT)
    counts[11] = (500, 400, 400 * CONFIDENCE_UNIT)
    assert compute_calibration(counts).ece == pytest.approx(0, abs=1e-12)


def test_blocks_and_draws_are_summed_before_anything_is_divided():
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 50, (2, 3, NUM_BINS, 3))
    together = compute_calibration(counts.sum(axis=(0, 1)))
    assert compute_calibration(counts) == together


def test_the_json_form_has_every_bin():
    counts = np.zeros((NUM_BINS, 3), int)
    counts[14] = (4, 3, 38000)
    found = compute_calibration(counts).to_json()
    assert found["ece"] == pytest.approx(0.2)
    assert [item["share"] for item in found["bins"]] == [0] * 14 + [1]
    assert found["bins"][0]["accuracy"] is None
    assert (found["bins"][0]["low"], found["bins"][-1]["high"]) == (0, 1)


def test_nothing_to_measure_is_refused():
    with pytest.raises(DataError, match="all bins are empty"):
        compute_calibration(np.zeros((2, NUM_BINS, 3), int))
    with pytest.raises(DataError, match=r"have the shape \(15,\)"):
        compute_calibration(np.zeros(NUM_BINS, int))
