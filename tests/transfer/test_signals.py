"""Signals: when labels are many, and when two areas are alike."""

from __future__ import annotations

import pytest

from cropseg.transfer.evidence import ClassLabels, Evidence, ZeroShot
from cropseg.transfer.rule_of_thumb import LIMITS
from cropseg.transfer.signals import judge_amount, list_signals

NAMES = ("corn", "hay", "wheat", "water")


def make_labels(pixels, tiles, fields=None):
    return tuple(
        ClassLabels(name=name, pixels=pixels, tiles=tiles, fields=fields)
        for name in NAMES
    )


def make_zero_shot(miou=0.4, own=0.5, majority=0.1):
    return ZeroShot(
        miou=miou, own_miou=own, majority_miou=majority, num_classes=len(NAMES)
    )


def make_evidence(**changes):
    values = {
        "site": "area-2",
        "source_site": "area-1",
        "labels": make_labels(pixels=5000, tiles=6),
        "num_tiles": 6,
        "shared": NAMES,
        "zero_shot": make_zero_shot(),
        "feature_distance": 0.5,
        "half_distance": 0.6,
        "band_distances": {"red": 0.2, "nir": 0.4, "swir1": 3.0},
    }
    return Evidence(**{**values, **changes})


def get_levels(evidence):
    return {signal.name: signal.level for signal in list_signals(evidence)}


def test_every_limit_has_its_reason():
    assert all(limit.value > 0 and limit.reason for limit in LIMITS.values())


@pytest.mark.parametrize(
    ("pixels", "tiles", "fields", "level"),
    [
        (20_000, 16, None, "high"),
        (19_999, 16, None, "low"),
        (20_000, 15, None, "low"),
        (20_000, 16, 30, "high"),
        (20_000, 16, 29, "low"),
    ],
)
def test_a_class_needs_pixels_tiles_and_fields(pixels, tiles, fields, level):
    labels = make_labels(pixels, tiles, fields)
    evidence = make_evidence(labels=labels, num_tiles=tiles)
    found, text = judge_amount(evidence)
    assert found == level
    assert f"{4 * pixels:,} labelled pixels in {tiles} tiles" in text
    assert ("fields" in text) == (fields is not None)
    assert f"{4 if level == 'high' else 0} of 4 classes" in text


@pytest.mark.parametrize(("num_poor", "level"), [(0, "high"), (1, "high"), (2, "low")])
def test_three_quarters_of_the_classes_make_many_labels(num_poor, level):
    poor, rich = make_labels(10, 2), make_labels(90_000, 40)
    labels = (*poor[:num_poor], *rich[num_poor:])
    assert judge_amount(make_evidence(labels=labels))[0] == level


@pytest.mark.parametrize(
    ("scored", "level"),
    [
        (make_zero_shot(miou=0.34, own=0.5), "high"),
        (make_zero_shot(miou=0.33, own=0.5), "low"),
        (make_zero_shot(miou=0.1, own=0.1, majority=0.1), "low"),
        (make_zero_shot(miou=0.11, own=0.1, majority=0.1), "high"),
        (make_zero_shot(own=None), None),
        (make_zero_shot(own=0.0), None),
        (None, None),
    ],
)
def test_a_model_that_keeps_two_thirds_of_its_score_knows_the_area(scored, level):
    assert get_levels(make_evidence(zero_shot=scored))["zero_shot"] == level


def test_a_score_on_few_tiles_says_nothing():
    assert get_levels(make_evidence(num_tiles=4))["zero_shot"] == "high"
    evidence = make_evidence(num_tiles=3)
    assert get_levels(evidence)["zero_shot"] is None
    assert "3 tiles are too few" in list_signals(evidence)[1].text


@pytest.mark.parametrize(
    ("distance", "halves", "level"),
    [
        (0.89, 0.6, "high"),
        (0.91, 0.6, "low"),
        (0.3, 0.0, "high"),
        (0.31, 0.0, "low"),
        (0.1, None, None),
        (None, 0.6, None),
    ],
)
def test_features_are_set_against_the_halves_of_area_1(distance, halves, level):
    evidence = make_evidence(feature_distance=distance, half_distance=halves)
    assert get_levels(evidence)["features"] == level


@pytest.mark.parametrize(
    ("distances", "level"),
    [
        ({"red": 0.2, "nir": 0.99, "swir1": 5.0}, "high"),
        ({"red": 0.2, "nir": 1.0, "swir1": 1.1}, "low"),
        ({}, "low"),
    ],
)
def test_bands_give_an_answer_in_any_case(distances, level):
    assert get_levels(make_evidence(band_distances=distances))["bands"] == level


@pytest.mark.parametrize(("shared", "level"), [(NAMES[:2], None), (NAMES[:1], "low")])
def test_an_area_of_mostly_new_classes_is_unlike(shared, level):
    evidence = make_evidence(shared=shared)
    assert get_levels(evidence)["classes"] == level
    assert evidence.shared_share == len(shared) / 4
    assert evidence.new == NAMES[len(shared) :]
