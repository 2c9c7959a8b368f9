"""Validation on labels that were held out: the mean IoU of their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.evaluation.confusion import count_confusion
from cropseg.evaluation.scores import compute_scores
from cropseg.sites.budget import Budget, draw_pool, open_pool
from cropseg.sites.holdout import hold_out
from cropseg.training.validate import build_validator

TILE = 32


class FakeModel:
    """Predicts a class by the first band alone, and keeps what it was shown."""

    def __init__(self, limit):
        self.limit = limit
        self.seen = []

    def predict_on_batch(self, values):
        self.seen.append(values)
        high = values[..., 0] > self.limit
        scores = np.zeros((*high.shape, 4), np.float32)
        scores[..., 1][high] = 1
        scores[..., 2][~high] = 1
        return scores


@pytest.fixture(scope="module")
def held_out(area_1):
    pool = draw_pool(area_1, TILE, Budget(amount=8), draw=0)
    return hold_out(pool)[1]


def test_the_score_is_that_of_the_held_out_pixels_and_no_others(area_1, held_out):
    model = FakeModel(1500)
    fill = tuple(range(len(area_1.bands)))

    score = build_validator(model, held_out, fill=fill)()

    counts = np.zeros((4, 5), np.int64)
    scene = area_1.scenes[0]
    with area_1.open_scene(scene) as reader:
        for tile in held_out.tiles:
            pixels, labels = reader.read_valid_labels(tile.window)
            visible = held_out.read_visible(reader, 0, tile.window)
            labels = np.where(visible, labels, 255)
            predicted = np.where(pixels.values[..., 0] > 1500, 1, 2)
            counts += count_confusion(labels, predicted, num_classes=4)
    assert counts.sum() == sum(held_out.class_pixels)
    assert score == pytest.approx(compute_scores(counts, area_1.classes.names).miou)
    assert 0 < score < 1


def test_the_model_sees_what_it_has_learnt_by_then(area_1, held_out):
    model = FakeModel(1500)
    validate = build_validator(model, held_out, fill=(0.0,) * len(area_1.bands))
    before = validate()

    model.limit = 10**6

    assert validate() != before


def test_nodata_is_filled_before_the_model_sees_it(area_1):
    model = FakeModel(0)
    fill = tuple(50_000.0 + band for band in range(len(area_1.bands)))
    pool = open_pool(area_1, TILE)

    build_validator(model, pool, fill=fill)()

    values = np.concatenate(model.seen)
    assert values.shape == (len(pool.tiles), TILE, TILE, len(area_1.bands))
    assert values.min() > -9999
    is_filled = values >= 50_000
    assert is_filled.any()
    np.testing.assert_array_equal(values[is_filled.all(axis=-1)][0], fill)
