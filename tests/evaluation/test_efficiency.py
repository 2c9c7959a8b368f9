import numpy as np
import pytest
from scipy import stats

from cropseg.errors import DataError
from cropseg.evaluation.efficiency import find_crossing, find_labels_needed


def test_labels_are_interpolated_on_their_logarithm():
    needed = find_labels_needed([2, 8, 32], np.array([[0.3], [0.4], [0.5]]), 0.45)

    assert needed.reached
    assert needed.labels == pytest.approx(16)
    assert (needed.low, needed.high) == (None, None)  # one draw


def test_a_curve_that_stays_below_is_not_reached():
    scores = np.array([[0.30, 0.32], [0.40, 0.43]])

    needed = find_labels_needed([2, 8], scores, 0.6)

    assert (needed.reached, needed.labels, needed.high) == (False, None, None)


def test_an_upper_end_beyond_the_largest_budget_stays_open():
    scores = np.array([[0.30, 0.31, 0.29], [0.40, 0.48, 0.44]])

    needed = find_labels_needed([2, 8], scores, 0.43)

    assert needed.reached
    assert 2 < needed.low < needed.labels < 8
    assert needed.high is None


def test_not_reached_on_average_may_still_be_reached_within_the_interval():
    scores = np.array([[0.30, 0.31, 0.29], [0.40, 0.48, 0.44]])

    needed = find_labels_needed([2, 8], scores, 0.46)

    assert (needed.reached, needed.labels, needed.high) == (False, None, None)
    assert 2 < needed.low < 8


def test_a_target_met_by_the_smallest_budget_means_that_many_or_fewer():
    scores = np.array([[0.50, 0.51, 0.50], [0.60, 0.62, 0.61]])

    needed = find_labels_needed([2, 8], scores, 0.4)

    assert (needed.reached, needed.low) == (True, None)
    assert needed.labels == pytest.approx(2)
    assert needed.high == pytest.approx(2)


def test_the_interval_is_the_t_test_turned_round():
    # Parallel lines: the spread over draws is the same everywhere.
    offsets = np.array([-0.01, 0.0, 0.02, 0.01])
    scores = np.array([[0.3], [0.5]]) + offsets

    needed = find_labels_needed([1, 100], scores, 0.4, confidence=0.9)

    slope = 0.2 / np.log(100)
    half = stats.t.ppf(0.95, 3) * stats.sem(offsets)
    assert np.log(needed.labels) == pytest.approx((0.1 - offsets.mean()) / slope)
    ends = np.log([needed.low, needed.high])
    assert ends == pytest.approx(
        (0.1 - offsets.mean() + np.array([-half, half])) / slope
    )


def test_a_target_by_draw_is_paired():
    scores = np.array([[0.30, 0.40, 0.50], [0.40, 0.50, 0.60]])

    paired = find_labels_needed([1, 4], scores, np.array([0.35, 0.45, 0.55]))
    fixed = find_labels_needed([1, 4], scores, 0.45)

    assert paired.labels == pytest.approx(2)
    assert (paired.low, paired.high) == pytest.approx((2, 2))
    assert fixed.labels == pytest.approx(2)
    assert (fixed.low, fixed.high) == (None, None)


def test_the_first_crossing_counts_where_a_curve_falls_again():
    needed = find_labels_needed([1, 4, 16, 64], np.array([[0.3, 0.5, 0.3, 0.6]]).T, 0.4)

    assert needed.labels == pytest.approx(2)


def test_the_interval_over_draws_covers_as_often_as_stated():
    rng = np.random.default_rng(0)
    amounts, truth = [2, 8, 20], np.array([0.40, 0.46, 0.50])
    goal = 0.44
    labels = 2 * 4 ** (2 / 3)
    missed = 0
    for _ in range(400):
        level = rng.normal(0, 0.005, (1, 3))
        scores = truth[:, None] + level + rng.normal(0, 0.005, (3, 3))
        needed = find_labels_needed(amounts, scores, goal)
        below = needed.low is not None and labels < needed.low
        missed += below or (needed.high is not None and labels > needed.high)

    assert 0.03 <= missed / 400 <= 0.07


def test_intervals_of_differences_give_an_interval_of_labels():
    needed = find_crossing(
        [1, 10, 100], [-0.2, 0.0, 0.2], [-0.3, -0.1, 0.1], [-0.1, 0.1, 0.3]
    )

    assert needed.labels == pytest.approx(10)
    assert needed.low == pytest.approx(10**0.5)
    assert needed.high == pytest.approx(10**1.5)
    assert find_crossing([1, 10], [-0.2, 0.0]).high is None


def test_an_interval_below_the_target_everywhere_begins_at_the_largest_budget():
    poor = find_crossing([1, 10], [-0.3, -0.2], [-0.4, -0.3], [-0.2, -0.1])
    vague = find_crossing([1, 10], [-0.3, -0.2], [-0.4, -0.3], [0.2, 0.1])
    unknown = find_crossing([1, 10], [-0.3, -0.2])

    assert (poor.reached, poor.low, poor.high) == (False, pytest.approx(10), None)
    assert (vague.low, vague.high) == (None, None)
    assert (unknown.low, unknown.high) == (None, None)


@pytest.mark.parametrize("amounts", [[], [0, 2], [4, 2], [2, 2]])
def test_amounts_that_do_not_rise_are_refused(amounts):
    with pytest.raises(DataError, match="rising"):
        find_crossing(amounts, [0.1] * len(amounts))


def test_scores_of_other_budgets_or_draws_are_refused():
    with pytest.raises(DataError, match="budgets, draws"):
        find_labels_needed([1, 2], np.zeros((3, 2)), 0.1)
    with pytest.raises(DataError, match="2 draws"):
        find_labels_needed([1, 2], np.zeros((2, 2)), np.zeros(3))
    with pytest.raises(DataError, match="as many"):
        find_crossing([1, 2], [0.1])
