import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import jaccard_score

from cropseg.errors import DataError
from cropseg.evaluation.differences import (
    adjust_holm,
    compute_power,
    estimate_best,
    estimate_difference,
    find_smallest_difference,
    pool_precision,
)
from cropseg.evaluation.intervals import compute_accuracy, make_mean_iou


def make_counts(right, *, labels=200):
    """Two classes, of which only the first has labels. `right`: shape (D, S, B)."""
    right = np.asarray(right)
    counts = np.zeros((*right.shape, 2, 3), np.int64)
    counts[..., 0, 0] = right
    counts[..., 0, 1] = labels - right
    return counts


def make_right(*, draws=3, blocks=12, level=120, seed=0, noise=3):
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).integers(-40, 40, blocks)  # the same for all
    return level + hard + rng.integers(-noise, noise + 1, (draws, 1, blocks))


def test_the_difference_of_one_run_each_is_the_paired_t_test_over_blocks():
    # Blocks of one size: accuracy is a mean over blocks.
    one, two = make_right(draws=1, seed=1), make_right(draws=1, seed=2, level=115)

    difference = estimate_difference(
        make_counts(one), make_counts(two), compute_accuracy
    )

    test = stats.ttest_rel(one[0, 0] / 200, two[0, 0] / 200)
    interval = test.confidence_interval(0.95)
    assert difference.value == pytest.approx((one - two).mean() / 200)
    assert difference.p_value == pytest.approx(test.pvalue, rel=1e-5)
    assert (difference.low, difference.high) == pytest.approx(tuple(interval), abs=1e-7)
    assert difference.dof == 11


def test_equal_blocks_leave_the_paired_t_test_over_draws():
    one = np.repeat(np.array([130, 138, 120])[:, None, None], 8, axis=2)
    two = np.repeat(np.array([125, 130, 118])[:, None, None], 8, axis=2)

    difference = estimate_difference(
        make_counts(one), make_counts(two), compute_accuracy
    )

    test = stats.ttest_rel(one[:, 0, 0], two[:, 0, 0])
    assert difference.p_value == pytest.approx(test.pvalue, rel=1e-5)
    assert difference.dof == pytest.approx(2)


def test_what_is_hard_for_both_modes_falls_out():
    one, two = make_counts(make_right(seed=1)), make_counts(make_right(seed=2))
    shuffled = two[:, :, np.random.default_rng(0).permutation(12)]

    paired = estimate_difference(one, two, compute_accuracy)
    unpaired = estimate_difference(one, shuffled, compute_accuracy)

    assert paired.standard_error < unpaired.standard_error / 5


def test_draws_are_paired_in_order():
    lift = np.array([0, 10, 20])[:, None, None]
    one = make_counts(make_right(seed=1) + lift)
    two = make_counts(make_right(seed=2) + lift)

    paired = estimate_difference(one, two, compute_accuracy)
    crossed = estimate_difference(one, two[::-1], compute_accuracy)

    assert paired.standard_error < crossed.standard_error / 5


def test_a_mode_without_labels_is_compared_with_every_draw():
    one, fixed = make_counts(make_right(seed=1)), make_counts(make_right(draws=1))

    broadcast = estimate_difference(one, fixed, compute_accuracy)
    repeated = estimate_difference(one, np.repeat(fixed, 3, axis=0), compute_accuracy)
    turned = estimate_difference(fixed, one, compute_accuracy)

    assert broadcast == repeated
    assert turned.value == pytest.approx(-broadcast.value)
    assert turned.p_value == pytest.approx(broadcast.p_value)


def test_seeds_of_one_draw_do_not_stand_for_draws_of_the_other_mode():
    one = make_counts(make_right(seed=1))
    other = make_counts(make_right(seed=2)).swapaxes(0, 1)  # one draw, three seeds

    item = estimate_difference(one, other, compute_accuracy)

    turned = estimate_difference(one, other[:, [2, 0, 1]], compute_accuracy)
    assert item.standard_error == pytest.approx(turned.standard_error, rel=1e-9)


def test_the_interval_leaves_zero_out_just_where_p_is_small():
    for seed in range(30):
        one = make_counts(make_right(seed=seed, level=121))
        two = make_counts(make_right(seed=seed + 100))
        item = estimate_difference(one, two, compute_accuracy)
        assert (item.p_value < 0.05) == (item.low > 0 or item.high < 0)


def test_a_mode_against_its_very_self_is_no_difference():
    counts = make_counts(make_right())

    item = estimate_difference(counts, counts, compute_accuracy)

    assert (item.value, item.low, item.high, item.p_value) == (0, 0, 0, 1)


def test_below_eight_blocks_there_is_no_test():
    counts = make_counts(make_right(blocks=7))

    item = estimate_difference(counts, counts, compute_accuracy)

    assert item.value == 0
    assert (item.low, item.p_value, item.dof) == (None, None, None)
    assert estimate_best({"full": counts}, compute_accuracy) == {}


def test_other_blocks_or_draws_are_refused():
    one = make_counts(make_right(draws=3))

    with pytest.raises(DataError, match="12 blocks"):
        estimate_difference(one, one[:, :, :11], compute_accuracy)
    with pytest.raises(DataError, match="3 draws and another 2"):
        estimate_difference(one, one[:2], compute_accuracy)
    with pytest.raises(DataError, match="3 draws and another 2"):
        estimate_best({"full": one, "scratch": one[:2]}, compute_accuracy)


def test_mean_iou_is_not_averaged_over_blocks():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (9, 100))
    right = np.where(rng.random((9, 100)) < 0.8, labels, 1 - labels)
    wrong = np.where(rng.random((9, 100)) < 0.6, labels, 1 - labels)

    def count(prediction):
        counts = np.zeros((1, 1, 9, 2, 3), np.int64)
        for block in range(9):
            np.add.at(counts[0, 0, block], (labels[block], prediction[block]), 1)
        return counts

    item = estimate_difference(count(right), count(wrong), make_mean_iou([0, 1]))

    expected = jaccard_score(labels.ravel(), right.ravel(), average="macro")
    expected -= jaccard_score(labels.ravel(), wrong.ravel(), average="macro")
    assert item.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dof", [1.0, 2.0, 3.7, 10.0, 65.0])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, 4.0])
def test_power_is_that_of_the_noncentral_t(dof, shift):
    limit = stats.t.ppf(0.975, dof)
    expected = stats.nct.sf(limit, dof, shift) + stats.nct.cdf(-limit, dof, shift)

    assert compute_power(-shift * 0.01, 0.01, dof) == pytest.approx(expected, abs=1e-3)


def test_power_of_a_huge_difference_is_one_where_scipy_has_none():
    assert compute_power(0.2, 0.01, 10.0) == pytest.approx(1.0)


@pytest.mark.parametrize("dof", [1.0, 2.2, 60.0])
def test_the_smallest_difference_has_just_the_power_asked_for(dof):
    smallest = find_smallest_difference(0.004, dof, power=0.9, alpha=0.01)

    found = compute_power(smallest, 0.004, dof, alpha=0.01)
    assert found == pytest.approx(0.9, abs=1e-3)
    assert find_smallest_difference(0.0, 2.0) == 0


def test_power_out_of_range_is_refused():
    with pytest.raises(DataError, match="above 0"):
        compute_power(0.1, 0.0, 3.0)
    with pytest.raises(DataError, match=r"0\.8 at"):
        find_smallest_difference(0.01, 3.0, power=80)


def test_pooled_precision_is_the_root_mean_square_and_the_harmonic_mean():
    one = estimate_difference(
        make_counts(make_right(seed=1)),
        make_counts(make_right(seed=2)),
        compute_accuracy,
    )
    two = estimate_difference(
        make_counts(make_right(seed=3, noise=9)),
        make_counts(make_right(seed=4)),
        compute_accuracy,
    )

    error, dof = pool_precision([one, two])

    squares = one.standard_error**2 + two.standard_error**2
    assert error == pytest.approx((squares / 2) ** 0.5)
    assert dof == pytest.approx(2 / (1 / one.dof + 1 / two.dof))
    with pytest.raises(DataError, match="standard error"):
        pool_precision([])


def test_holm_follows_a_hand_worked_case():
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1, each at least the one before.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        (0.03, 0.06, 0.06, 0.02)
    )
    assert adjust_holm([0.6, 0.7]) == (1.0, 1.0)
    assert adjust_holm([]) == ()
    assert adjust_holm([0.02]) == (0.02,)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(6) ** 4
        rejected = np.zeros(6, bool)
        for step, index in enumerate(np.argsort(values)):
            if values[index] > 0.05 / (6 - step):
                break
            rejected[index] = True
        assert (np.array(adjust_holm(values)) <= 0.05).tolist() == rejected.tolist()


@pytest.mark.parametrize("values", [[1.2], [-0.1], [float("nan")]])
def test_what_is_no_p_value_is_refused(values):
    with pytest.raises(DataError, match="between 0 and 1"):
        adjust_holm(values)


def test_probabilities_of_being_best_add_up_and_follow_the_scores():
    modes = {
        "full": make_counts(make_right(seed=1, level=124)),
        "scratch": make_counts(make_right(seed=2, level=110)),
        "zero_shot": make_counts(make_right(draws=1, seed=3, level=100)),
    }

    best = estimate_best(modes, compute_accuracy)

    assert sum(best.values()) == pytest.approx(1)
    assert list(best) == list(modes)
    assert best["full"] > 0.95
    assert best == estimate_best(modes, compute_accuracy, seed=0)


def test_of_two_modes_the_probability_is_the_one_sided_p_value():
    one = np.repeat(np.array([130, 138, 121])[:, None, None], 8, axis=2)
    two = np.repeat(np.array([125, 135, 120])[:, None, None], 8, axis=2)
    modes = {"full": make_counts(one), "scratch": make_counts(two)}

    difference = estimate_difference(*modes.values(), compute_accuracy)
    best = estimate_best(modes, compute_accuracy)

    assert best["scratch"] == pytest.approx(difference.p_value / 2, abs=0.01)


def test_modes_of_equal_counts_share_the_probability():
    counts = make_counts(make_right())

    best = estimate_best({"full": counts, "twin": counts}, compute_accuracy)

    assert best == pytest.approx({"full": 0.5, "twin": 0.5})
    assert estimate_best({}, compute_accuracy) == {}


@pytest.mark.parametrize("draws", [1, 3])
def test_blocks_alone_make_a_lead_uncertain(draws):
    # Every draw is the same, so that only blocks differ.
    one = np.repeat(make_right(draws=1, seed=1, level=121, noise=9), draws, axis=0)
    two = np.repeat(make_right(draws=1, seed=2, noise=9), draws, axis=0)
    modes = {"full": make_counts(one), "scratch": make_counts(two)}

    difference = estimate_difference(*modes.values(), compute_accuracy)
    best = estimate_best(modes, compute_accuracy)

    behind = stats.norm.sf(difference.value / difference.standard_error)
    assert 0.05 < behind < 0.95
    assert best["scratch"] == pytest.approx(behind, abs=0.015)
