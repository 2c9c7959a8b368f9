"""Rows of the head: by class name, averaged as a start, summed without training."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network
from cropseg.runtime import start_run
from cropseg.transfer.head import mask_classes, sum_classes
from cropseg.transfer.rows import (
    describe_rows,
    match_rows,
    needs_sums,
    refuse_new_classes,
    refuse_shared_rows,
)

SOURCE = ("soybeans", "spring wheat", "winter wheat", "water")


def make_model():
    start_run(4)
    network = build_network("unet", "classic_tiny", num_bands=2, num_classes=4)
    return add_normalization(network, mean=[0.0, 0.0], std=[1.0, 1.0])


@pytest.fixture
def pixels():
    return np.random.default_rng(0).normal(0, 3, (2, 16, 16, 2)).astype("float32")


def test_several_rows_are_averaged_and_new_ones_kept():
    theirs = np.arange(8.0).reshape(2, 4)
    initial = np.full((2, 3), -1.0)

    found = match_rows(
        theirs,
        initial,
        {"wheat": ["spring wheat", "winter wheat"], "water": ["water"]},
        source=SOURCE,
        target=("wheat", "corn", "water"),
    )

    assert found.tolist() == [[1.5, -1.0, 3.0], [5.5, -1.0, 7.0]]


def test_the_reason_names_every_class():
    matches = {"wheat": ["spring wheat", "winter wheat"], "water": ["water"]}

    reason = describe_rows(matches, ("wheat", "corn", "water"), "initialised")

    assert reason == (
        "by class name: wheat from spring wheat + winter wheat, water; "
        "initialised: corn"
    )


def test_probabilities_of_several_source_classes_are_summed(pixels):
    model = make_model()
    matches = {"water": ["water"], "wheat": ["spring wheat", "winter wheat"]}
    kept = [1, 2, 3]
    logits = np.asarray(model(pixels))[..., kept]
    expected = logits / logits.sum(axis=-1, keepdims=True)
    assert needs_sums(matches)

    mask_classes(model, kept)
    target = ("corn", "wheat", "water")
    summed = sum_classes(model, matches, source=SOURCE, target=target)
    found = np.asarray(summed(pixels))

    assert (found[..., 0] == 0).all()
    np.testing.assert_allclose(found[..., 1], expected[..., :2].sum(-1), atol=1e-6)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-6)


def test_one_source_class_for_two_target_classes_is_refused_without_training():
    matches = {"corn": ["maize"], "sweet corn": ["maize"], "water": ["water"]}

    with pytest.raises(ModelError, match="maize is corn and sweet corn"):
        refuse_shared_rows(matches)

    refuse_shared_rows({"wheat": ["spring wheat", "winter wheat"]})


def test_a_class_that_a_locked_head_cannot_know_is_refused():
    matches = {"water": ["water"]}

    with pytest.raises(ModelError, match=r"bn_only does not train the head.*corn"):
        refuse_new_classes(matches, ("corn", "water"), "bn_only")

    refuse_new_classes(matches, ("water",), "bn_only")
