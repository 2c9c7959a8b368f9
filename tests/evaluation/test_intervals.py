import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, jaccard_score

from cropseg.errors import DataError
from cropseg.evaluation.confusion import count_confusion
from cropseg.evaluation.intervals import (
    MIN_BLOCKS,
    MIN_DRAWS,
    compute_accuracy,
    estimate_score,
    find_thin_classes,
    jackknife,
    make_class_iou,
    make_mean_iou,
    measure_precision,
)
from cropseg.evaluation.scores import compute_scores

NAMES = ("soy", "grass", "corn")


def make_counts(*, draws=3, seeds=1, blocks=12, classes=3, seed=0, draw_effect=0.0):
    """Counts of models of about 70 % accuracy, whose blocks and draws differ."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(50, 400, (blocks, classes))
    counts = np.zeros((draws, seeds, blocks, classes, classes + 1), np.int64)
    for draw in range(draws):
        right = 0.7 + draw_effect * rng.standard_normal()
        for run in range(seeds):
            for block in range(blocks):
                for row in range(classes):
                    shares = np.full(classes + 1, (1 - right) / classes)
                    shares[row] = right
                    counts[draw, run, block, row] = rng.multinomial(
                        labels[block, row], shares
                    )
    return counts


@pytest.fixture
def pixels():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 5000)
    prediction = np.where(rng.random(5000) < 0.6, labels, rng.integers(0, 3, 5000))
    return labels, prediction


def test_mean_iou_is_that_of_compute_scores_and_of_scikit_learn(pixels):
    labels, prediction = pixels
    counts = count_confusion(labels, prediction, num_classes=3)

    miou = float(make_mean_iou([0, 1, 2])(counts))

    assert miou == pytest.approx(compute_scores(counts, NAMES).miou, rel=1e-12)
    expected = jaccard_score(labels, prediction, average="macro")
    assert miou == pytest.approx(expected, rel=1e-12)


def test_a_class_set_leaves_the_other_classes_out_of_the_mean(pixels):
    labels, prediction = pixels
    counts = count_confusion(labels, prediction, num_classes=3)

    expected = jaccard_score(labels, prediction, labels=[0, 2], average="macro")

    assert float(make_mean_iou([0, 2])(counts)) == pytest.approx(expected, rel=1e-12)


def test_class_iou_and_accuracy_are_those_of_scikit_learn(pixels):
    labels, prediction = pixels
    counts = count_confusion(labels, prediction, num_classes=3)

    each = jaccard_score(labels, prediction, average=None)

    for class_id in range(3):
        iou = float(make_class_iou(class_id)(counts))
        assert iou == pytest.approx(each[class_id], rel=1e-12)
    accuracy = float(compute_accuracy(counts))
    assert accuracy == pytest.approx(accuracy_score(labels, prediction), rel=1e-12)


def test_predictions_of_other_are_errors():
    counts = np.array([[6, 0, 2], [0, 4, 0]])

    assert float(make_class_iou(0)(counts)) == 6 / 8
    assert float(compute_accuracy(counts)) == 10 / 12


def test_scores_take_any_number_of_axes_and_floats():
    counts = make_counts(draws=2, seeds=3, blocks=4)
    score = make_mean_iou([0, 1, 2])

    many = score(counts)

    assert many.shape == (2, 3, 4)
    assert many[1, 2, 3] == score(counts[1, 2, 3].astype(float))
    assert compute_accuracy(counts).shape == (2, 3, 4)


def test_a_class_without_labels_is_left_out_and_has_no_score_of_its_own():
    counts = np.array([[3, 1, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0]])

    assert float(make_mean_iou([0, 1, 2])(counts)) == compute_scores(counts, NAMES).miou
    assert np.isnan(make_class_iou(2)(counts))
    assert np.isnan(compute_accuracy(np.zeros((3, 4))))


@pytest.mark.parametrize("classes", [[], [0, 0], [-1, 2]])
def test_a_class_set_that_is_none_is_refused(classes):
    with pytest.raises(DataError, match="class set"):
        make_mean_iou(classes)


def test_one_run_has_the_t_interval_of_the_jackknife_over_blocks():
    counts = make_counts(draws=1)
    estimate = estimate_score(counts, compute_accuracy, confidence=0.9)

    runs = counts[0, 0]
    total = runs.sum(axis=0)
    without = [float(compute_accuracy(total - block)) for block in runs]
    pseudo = 12 * float(compute_accuracy(total)) - 11 * np.array(without)
    error = pseudo.std(ddof=1) / 12**0.5
    low, high = stats.t.interval(0.9, 11, loc=estimate.value, scale=error)
    assert estimate.value == pytest.approx(float(compute_accuracy(total)))
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.standard_error == pytest.approx(error)
    assert estimate.dof == 11


def test_equal_blocks_leave_the_t_interval_over_draws():
    # One block, eight times: nothing differs between blocks.
    counts = np.repeat(make_counts(draws=3, blocks=1, draw_effect=0.1), 8, axis=2)
    scores = compute_accuracy(counts.sum(axis=2))[:, 0]

    estimate = estimate_score(counts, compute_accuracy)

    expected = stats.t.interval(0.95, 2, loc=scores.mean(), scale=stats.sem(scores))
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.dof == pytest.approx(2)


def test_the_variance_is_that_of_a_two_way_analysis_by_hand():
    # Pixels are equal in number in all blocks, so accuracy is a mean over blocks, and
    # the pseudo-values are the blocks' own accuracies.
    rng = np.random.default_rng(1)
    right = rng.integers(20, 80, (4, 10)) + np.array([[0], [5], [10], [30]])
    right = np.minimum(right + np.arange(10) * 4, 160)
    counts = np.zeros((4, 1, 10, 2, 3), np.int64)
    counts[:, 0, :, 0, 0] = right
    counts[:, 0, :, 0, 1] = 200 - right
    shares = right / 200

    (replicates,) = jackknife([counts], compute_accuracy)
    error, dof = measure_precision(replicates)

    assert replicates.pseudo_values == pytest.approx(shares, abs=1e-6)
    over_draws = shares.mean(axis=1).var(ddof=1) / 4
    over_blocks = shares.mean(axis=0).var(ddof=1) / 10
    grand = shares.mean()
    residual = 0.0
    for draw in range(4):
        for block in range(10):
            fitted = shares[draw].mean() + shares[:, block].mean() - grand
            residual += (shares[draw, block] - fitted) ** 2
    both = residual / (3 * 9) / 40
    assert both < over_blocks
    variance = over_draws + over_blocks - both
    assert error**2 == pytest.approx(variance, rel=1e-5)
    share = over_draws / variance
    assert dof == pytest.approx(1 / (share / 3 + (1 - share) / 9), rel=1e-5)


def test_seeds_of_a_draw_are_averaged_and_are_no_draws():
    counts = make_counts(draws=3, seeds=1, draw_effect=0.05)
    repeated = np.repeat(counts, 4, axis=1)

    score = make_mean_iou([0, 1, 2])

    assert estimate_score(repeated, score) == estimate_score(counts, score)


def test_with_one_draw_the_seeds_stand_for_it():
    counts = make_counts(draws=1, seeds=3, draw_effect=0.0)
    score = make_mean_iou([0, 1, 2])

    assert estimate_score(counts, score) == estimate_score(counts.swapaxes(0, 1), score)


def test_below_eight_blocks_there_is_a_value_and_no_interval():
    score = make_mean_iou([0, 1, 2])

    few = estimate_score(make_counts(blocks=MIN_BLOCKS - 1), score)
    enough = estimate_score(make_counts(blocks=MIN_BLOCKS), score)

    assert few.value > 0.4
    assert (few.low, few.high, few.standard_error, few.dof) == (None,) * 4
    assert enough.low < enough.value < enough.high


def test_two_draws_have_a_value_and_no_interval():
    score = make_mean_iou([0, 1, 2])

    one, two, three = (
        estimate_score(make_counts(draws=draws), score) for draws in (1, 2, MIN_DRAWS)
    )

    assert (two.low, two.high, two.standard_error, two.dof) == (None,) * 4
    for found in (one, three):
        assert found.low < found.value < found.high


def test_a_class_without_labels_has_neither_value_nor_interval():
    counts = make_counts()
    counts[..., 2, :] = 0

    estimate = estimate_score(counts, make_class_iou(2))

    assert np.isnan(estimate.value)
    assert estimate.low is None


def test_a_class_in_one_block_alone_keeps_its_score_without_that_block():
    counts = make_counts(draws=1)
    counts[0, 0, 1:, 2] = 0
    counts[0, 0, 1:, :, 2] = 0  # nor is it predicted elsewhere
    score = make_class_iou(2)

    (replicates,) = jackknife([counts], score)

    iou = float(score(counts[0, 0].sum(axis=0)))
    assert replicates.pseudo_values == pytest.approx(np.full((1, 12), iou), abs=1e-6)


def test_more_blocks_and_more_draws_make_intervals_shorter():
    score = make_mean_iou([0, 1, 2])
    counts = make_counts(draws=6, blocks=60, draw_effect=0.03, seed=5)

    whole = estimate_score(counts, score)

    assert estimate_score(counts[:3], score).standard_error > whole.standard_error
    assert (
        estimate_score(counts[:, :, :12], score).standard_error > whole.standard_error
    )


def test_classes_in_few_blocks_are_thin():
    counts = make_counts(draws=2, blocks=20)
    counts[..., 3:, 1, :] = 0  # in three blocks
    counts[..., 2, :] //= 100
    counts[..., 5, 2, 2] = 10_000  # everywhere, and nearly all in one block

    assert find_thin_classes(counts) == (1, 2)
    assert find_thin_classes(make_counts(blocks=20)) == ()


@pytest.mark.parametrize("shape", [(3, 12, 3, 4), (3, 1, 12, 3, 3), (0, 1, 12, 3, 4)])
def test_counts_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match="draws, seeds, blocks"):
        estimate_score(np.ones(shape), compute_accuracy)


def test_a_confidence_in_percent_is_refused():
    with pytest.raises(DataError, match=r"0\.95"):
        estimate_score(make_counts(), compute_accuracy, confidence=95)
