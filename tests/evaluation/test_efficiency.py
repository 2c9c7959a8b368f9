import numpy as np
import pytest
from scipy import stats

from cropseg.errors import DataError
from cropseg.evaluation.efficiency import find_crossing


def test_labels_are_interpolated_on_their_logarithm():
    needed = find_crossing([2, 8, 32], [-0.15, -0.05, 0.05])

    assert needed.reached
    assert needed.labels == pytest.approx(16)
    assert (needed.low, needed.high) == (None, None)  # no interval


def test_a_curve_that_stays_below_is_not_reached():
    needed = find_crossing([2, 8], [-0.3, -0.2])

    assert (needed.reached, needed.labels, needed.high) == (False, None, None)


def test_an_upper_end_beyond_the_largest_budget_stays_open():
    needed = find_crossing([2, 8], [-0.13, 0.01], [-0.16, -0.09], [-0.10, 0.11])

    assert needed.reached
    assert 2 < needed.low < needed.labels < 8
    assert needed.high is None


def test_not_reached_on_average_may_still_be_reached_within_the_interval():
    needed = find_crossing([2, 8], [-0.16, -0.02], [-0.19, -0.12], [-0.13, 0.08])

    assert (needed.reached, needed.labels, needed.high) == (False, None, None)
    assert 2 < needed.low < 8


def test_a_target_met_by_the_smallest_budget_means_that_many_or_fewer():
    needed = find_crossing([2, 8], [0.10, 0.21], [0.09, 0.19], [0.11, 0.23])

    assert (needed.reached, needed.low) == (True, None)
    assert needed.labels == pytest.approx(2)
    assert needed.high == pytest.approx(2)


def test_the_first_crossing_counts_where_a_curve_falls_again():
    needed = find_crossing([1, 4, 16, 64], [-0.1, 0.1, -0.1, 0.2])

    assert needed.labels == pytest.approx(2)


def test_the_interval_covers_at_least_as_often_as_stated():
    rng = np.random.default_rng(0)
    amounts, truth = [2, 8, 20], np.array([0.40, 0.46, 0.50])
    goal = 0.44
    labels = 2 * 4 ** (2 / 3)
    factor = stats.t.ppf(0.975, 2)
    missed = 0
    for _ in range(400):
        level = rng.normal(0, 0.01, (1, 3))
        scores = truth[:, None] + level + rng.normal(0, 0.002, (3, 3))
        gaps = scores - goal
        mean, half = gaps.mean(axis=1), factor * stats.sem(gaps, axis=1)
        needed = find_crossing(amounts, mean, mean - half, mean + half)
        below = needed.low is not None and labels < needed.low
        missed += below or (needed.high is not None and labels > needed.high)

    assert 0.02 <= missed / 400 <= 0.07


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


def test_differences_of_other_budgets_are_refused():
    with pytest.raises(DataError, match="as many"):
        find_crossing([1, 2], [0.1])
