"""Losses: values by hand, and gradients that unknown pixels cannot reach."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cropseg.errors import DataError, UsageError
from cropseg.runtime import keras
from cropseg.sites.classes import IGNORE
from cropseg.training.losses import LOSSES, build_loss, compute_class_weights

SHAPE = (2, 5, 3)
NUM_CLASSES = 4


def make_batch(seed=0, unknown=0.3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, SHAPE).astype(np.uint8)
    labels[rng.random(SHAPE) < unknown] = IGNORE
    logits = rng.normal(0, 2, (*SHAPE, NUM_CLASSES)).astype(np.float32)
    return labels, logits


def compute(loss, labels, logits):
    """Return the loss of a batch and its gradient for the logits."""
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return float(value), tape.gradient(value, logits).numpy()


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def build_all():
    weights = np.array([0.5, 2.0, 1.0, 3.0])
    return [
        pytest.param(build_loss(name, class_weights=chosen), id=f"{name}-{label}")
        for name in LOSSES
        for label, chosen in (("plain", None), ("weighted", weights))
    ]


@pytest.mark.parametrize("weights", [None, np.array([0.5, 2.0, 1.0, 3.0])])
@pytest.mark.parametrize(("name", "gamma"), [("cross_entropy", 0), ("focal", 2)])
def test_cross_entropy_and_focal_are_weighted_means_of_known_pixels(
    name, gamma, weights
):
    labels, logits = make_batch()
    known = labels != IGNORE
    log_p = np.take_along_axis(
        log_probabilities(logits[known]), labels[known][:, None], axis=-1
    )[:, 0]
    pixel_weights = np.ones(known.sum()) if weights is None else weights[labels[known]]
    expected = (
        pixel_weights * (1 - np.exp(log_p)) ** gamma * -log_p
    ).sum() / pixel_weights.sum()

    value, _ = compute(build_loss(name, class_weights=weights), labels, logits)

    assert value == pytest.approx(expected, rel=1e-5)


def test_dice_is_right_by_hand():
    # Logits 0 and log 3 make the probabilities 1/4 and 3/4.
    labels = np.array([[[0, 1, IGNORE]]])
    logits = np.log(np.array([[[[3, 1], [1, 1], [1, 3]]]], dtype=np.float32))
    first = 2 * (3 / 4) / ((9 / 16 + 1 / 4) + 1)
    second = 2 * (1 / 2) / ((1 / 16 + 1 / 4) + 1)

    value, _ = compute(build_loss("dice", class_weights=None), labels, logits)

    assert value == pytest.approx(1 - (first + second) / 2, rel=1e-5)


def test_dice_leaves_out_classes_without_a_label_in_the_batch():
    labels = np.array([[[0, 0]]])
    logits = np.log(np.array([[[[2, 1, 1], [2, 1, 1]]]], dtype=np.float32))

    value, _ = compute(build_loss("dice", class_weights=None), labels, logits)

    assert value == pytest.approx(1 - 2 * (2 * 0.5) / (2 * 0.25 + 2), rel=1e-5)


@pytest.mark.parametrize("first", ["cross_entropy", "focal"])
def test_a_sum_of_losses_is_the_sum_of_its_terms(first):
    labels, logits = make_batch()
    weights = np.array([0.5, 2.0, 1.0, 3.0])

    total, first_term, dice = (
        compute(build_loss(name, class_weights=weights), labels, logits)[0]
        for name in (f"{first}_dice", first, "dice")
    )

    assert total == pytest.approx(first_term + dice, rel=1e-5)


@pytest.mark.parametrize("loss", build_all())
def test_unknown_pixels_have_exactly_no_gradient_and_no_influence(loss):
    labels, logits = make_batch()
    unknown = labels == IGNORE
    value, gradient = compute(loss, labels, logits)
    changed = logits.copy()
    changed[unknown] = 1e30
    changed[0][unknown[0]] = np.inf

    assert unknown.any()
    assert np.isfinite(gradient).all()
    assert (gradient[unknown] == 0).all()
    assert (np.abs(gradient[~unknown]).sum(axis=-1) > 0).all()
    changed_value, changed_gradient = compute(loss, labels, changed)
    assert changed_value == value
    assert np.array_equal(changed_gradient, gradient)


@pytest.mark.parametrize("loss", build_all())
def test_a_batch_without_known_pixels_costs_nothing(loss):
    _, logits = make_batch()

    value, gradient = compute(loss, np.full(SHAPE, IGNORE, np.uint8), logits)

    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("loss", build_all())
def test_the_gradient_agrees_with_finite_differences(loss):
    labels, logits = make_batch(seed=1)
    _, gradient = compute(loss, labels, logits)
    direction = np.random.default_rng(2).normal(size=logits.shape).astype(np.float32)
    step = 1e-2

    ahead, _ = compute(loss, labels, logits + step * direction)
    behind, _ = compute(loss, labels, logits - step * direction)

    assert (ahead - behind) / (2 * step) == pytest.approx(
        float((gradient * direction).sum()), rel=5e-3, abs=1e-4
    )


@pytest.mark.parametrize("loss", build_all())
def test_a_sure_and_right_model_has_no_loss_and_a_wrong_one_has(loss):
    labels, _ = make_batch(unknown=0)
    right = 30 * np.eye(NUM_CLASSES, dtype=np.float32)[labels]

    assert compute(loss, labels, right)[0] == pytest.approx(0, abs=1e-5)
    assert compute(loss, labels, -right)[0] > 0.5


@pytest.mark.parametrize("loss", build_all())
@pytest.mark.parametrize("wrong", [NUM_CLASSES, 254])
def test_a_label_that_is_no_class_makes_the_loss_nan(loss, wrong):
    labels, logits = make_batch()
    labels[1, 2, 0] = wrong

    assert np.isnan(compute(loss, labels, logits)[0])


@pytest.mark.parametrize("loss", build_all())
def test_repeating_a_batch_does_not_change_its_loss(loss):
    labels, logits = make_batch()

    once, _ = compute(loss, labels, logits)
    twice, _ = compute(loss, np.tile(labels, (2, 1, 1)), np.tile(logits, (2, 1, 1, 1)))

    assert twice == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("loss", build_all())
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_labels_of_any_type_and_with_a_last_axis_mean_the_same(loss, dtype):
    labels, logits = make_batch()
    expected, _ = compute(loss, labels, logits)

    assert compute(loss, labels.astype(dtype), logits)[0] == expected
    assert compute(loss, labels.astype(dtype)[..., None], logits)[0] == expected


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_keep_unknown_pixels_unknown(name):
    labels, logits = make_batch()
    loss = build_loss(name, class_weights=None)
    rounded = tf.cast(logits, "bfloat16")

    value = loss(labels, rounded)

    assert value.dtype == tf.float32
    assert float(value) == compute(loss, labels, tf.cast(rounded, "float32"))[0]


@pytest.mark.parametrize("shape", [(2, 15), (2, 5, 3, 4), (2, 5, 3, 2)])
def test_labels_of_another_rank_are_refused(shape):
    _, logits = make_batch()
    loss = build_loss("cross_entropy", class_weights=None)

    with pytest.raises(UsageError, match="expected"):
        loss(np.zeros(shape, np.uint8), logits)


@pytest.mark.slow
@pytest.mark.parametrize("loss", build_all())
def test_fit_reports_the_loss_that_is_computed_by_hand(loss):
    labels, images = make_batch()
    inputs = keras.Input((None, None, NUM_CLASSES))
    head = keras.layers.Dense(NUM_CLASSES, kernel_initializer="identity")
    model = keras.Model(inputs, head(inputs))
    before, gradient = compute(loss, labels, model(images))
    model.compile(keras.optimizers.SGD(0.1), loss=loss, jit_compile=False)

    history = model.fit(images, labels, batch_size=2, epochs=6, verbose=0)

    losses = history.history["loss"]
    assert losses[0] == pytest.approx(before, rel=1e-5)
    assert np.abs(gradient).max() > 0
    assert losses == sorted(losses, reverse=True)


def test_fit_learns_from_single_pixel_maps_of_one_class():
    # Axes of length 1 are where squeezing would go wrong.
    images = np.ones((4, 1, 1, 2), dtype=np.float32)
    labels = np.zeros((4, 1, 1), dtype=np.uint8)
    model = keras.Sequential([keras.Input((1, 1, 2)), keras.layers.Conv2D(2, 1)])
    loss = build_loss("cross_entropy_dice", class_weights=np.array([1.0, 0.0]))
    expected = float(loss(labels, model(images)))
    model.compile(keras.optimizers.SGD(0.5), loss=loss, jit_compile=False)

    history = model.fit(images, labels, epochs=3, verbose=0).history["loss"]

    assert history[0] == pytest.approx(expected, rel=1e-5)
    assert history[-1] < history[0]


def test_an_unknown_name_lists_the_losses():
    with pytest.raises(UsageError, match=r"'hinge'.*cross_entropy, dice, focal"):
        build_loss("hinge", class_weights=None)


@pytest.mark.parametrize(
    "weights", [[1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 1.0]]]
)
def test_impossible_class_weights_are_refused(weights):
    with pytest.raises(UsageError, match="Class weights"):
        build_loss("cross_entropy", class_weights=np.array(weights))


def test_class_weights_of_another_number_of_classes_are_refused():
    labels, logits = make_batch()
    loss = build_loss("cross_entropy", class_weights=np.ones(NUM_CLASSES + 1))

    with pytest.raises(UsageError, match="5 class weights and the model has 4"):
        loss(labels, logits)


def test_a_loss_is_made_again_from_its_config():
    labels, logits = make_batch()
    loss = build_loss("focal_dice", class_weights=np.array([0.5, 2.0, 1.0, 3.0]))

    again = type(loss).from_config(loss.get_config())

    assert compute(again, labels, logits)[0] == compute(loss, labels, logits)[0]


def test_class_weights_are_right_by_hand():
    weights = compute_class_weights([16, 4, 0, 1], power=0.5)

    # 1/4, 1/2 and 1 to each other; 16 * 1/4 + 4 * 1/2 + 1 * 1 = 7 of 21 pixels.
    assert weights.tolist() == pytest.approx([0.75, 1.5, 0, 3])


@pytest.mark.parametrize("power", [0, 0.5, 1])
def test_class_weights_have_the_mean_1_over_pixels(power):
    pixels = np.array([90_000_000_000, 300, 0, 7])

    weights = compute_class_weights(pixels, power=power)

    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1)
    assert weights[2] == 0
    assert weights[3] / weights[1] == pytest.approx((300 / 7) ** power)


@pytest.mark.parametrize("pixels", [[], [0, 0], [3, -1], [[3, 1]]])
def test_class_weights_need_pixels(pixels):
    with pytest.raises(DataError, match="pixel counts"):
        compute_class_weights(pixels)


@pytest.mark.parametrize("power", [-0.5, np.nan, np.inf])
def test_class_weights_need_a_power_of_0_or_more(power):
    with pytest.raises(UsageError, match="power"):
        compute_class_weights([3, 1], power=power)
