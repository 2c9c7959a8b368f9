"""Adjusted areas: the paper's figures, a census, and what a simulation spreads by."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import DataError
from cropseg.evaluation.area import (
    estimate_areas,
    estimate_block_errors,
    explain_design,
    find_unchecked_share,
)

# Olofsson et al. (2014), table 8: rows are the map, columns the reference.
PAPER = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PAPER_PIXELS = [200_000, 150_000, 3_200_000, 6_450_000]
LANDSAT_HA = 0.09
# The same, page 54: adjusted area and half of its 95 % interval, in hectares, of
# deforestation, forest gain, stable forest and stable non-forest.
PAPER_AREAS = [(21_158, 6_158), (11_686, 3_756), (285_770, 15_510), (581_386, 16_282)]


def with_other(confusion, pixels=0):
    """Add the column of predictions that are no class of the site."""
    return np.column_stack([confusion, np.full(len(confusion), pixels)])


def test_the_example_of_the_paper_is_reproduced():
    found = estimate_areas(
        with_other(PAPER.T), np.array([*PAPER_PIXELS, 0]), LANDSAT_HA
    )
    for area, mapped, (adjusted_ha, half_width_ha) in zip(
        found, PAPER_PIXELS, PAPER_AREAS, strict=True
    ):
        assert area.mapped_ha == pytest.approx(mapped * LANDSAT_HA)
        assert area.adjusted_ha == pytest.approx(adjusted_ha, abs=0.5)
        assert 1.96 * area.standard_error_ha == pytest.approx(half_width_ha, abs=0.5)
        low, high = area.interval_ha
        assert (high - low) / 2 == pytest.approx(half_width_ha, abs=0.5)
        assert (high + low) / 2 == pytest.approx(adjusted_ha, abs=0.5)


def test_where_all_pixels_are_labelled_the_area_is_that_of_the_labels():
    rng = np.random.default_rng(0)
    confusion = rng.integers(10, 90, (3, 4))
    found = estimate_areas(confusion, confusion.sum(axis=0), 2.0)
    np.testing.assert_allclose(
        [area.adjusted_ha for area in found], 2.0 * confusion.sum(axis=1)
    )


def test_pixels_of_other_are_given_to_the_classes_of_their_labels():
    confusion = np.array([[8, 0, 5], [0, 4, 15]])
    first, second = estimate_areas(confusion, np.array([80, 40, 200]), 1.0)
    assert first.mapped_ha == 80
    assert first.adjusted_ha == pytest.approx(80 + 200 / 4)
    assert second.adjusted_ha == pytest.approx(40 + 200 * 3 / 4)


def test_a_mapped_class_without_a_label_pixel_stays_as_mapped():
    confusion = np.array([[9, 0, 1, 0], [1, 0, 9, 0], [0, 0, 0, 0]])
    mapped = np.array([100, 60, 200, 40])
    found = estimate_areas(confusion, mapped, 1.0)
    adjusted = [area.adjusted_ha for area in found]
    assert adjusted == pytest.approx([90 + 20, 10 + 180 + 60, 0])  # other is lost
    assert find_unchecked_share(confusion, mapped) == pytest.approx((60 + 40) / 400)


def test_a_single_label_in_a_class_adds_no_error_and_divides_by_no_zero():
    confusion = np.array([[1, 0, 0], [0, 1, 0]])
    found = estimate_areas(confusion, np.array([10, 30, 0]), 1.0)
    assert [area.standard_error_ha for area in found] == [0, 0]
    assert [area.adjusted_ha for area in found] == [10, 30]


def test_an_interval_does_not_go_below_zero():
    confusion = np.array([[1, 1, 0], [2, 40, 0]])
    first, _ = estimate_areas(confusion, np.array([2, 500, 0]), 1.0)
    assert first.interval_ha[0] == 0 < first.interval_ha[1]


def make_blocks(rng, *, num_blocks, size, spread):
    """Return counts of blocks whose rates differ by `spread`, and their mapped pixels.

    Of a pixel of class 0 or 1 in the map the chance to be right is 0.8 on average.
    """
    rates = np.clip(0.8 + spread * rng.standard_normal((num_blocks, 2)), 0.4, 1)
    right = rng.binomial(size, rates)
    counts = np.zeros((num_blocks, 2, 3), int)
    counts[:, 0, 0], counts[:, 1, 1] = right.T
    counts[:, 1, 0], counts[:, 0, 1] = (size - right).T
    return counts, np.array([3000, 1000, 0])


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_the_error_over_blocks_is_how_far_areas_spread(spread):
    rng = np.random.default_rng(3)
    areas, errors, naive = [], [], []
    for _ in range(400):
        counts, mapped = make_blocks(rng, num_blocks=12, size=60, spread=spread)
        area, _ = estimate_areas(counts.sum(axis=0), mapped, 1.0)
        areas.append(area.adjusted_ha)
        naive.append(area.standard_error_ha)
        errors.append(estimate_block_errors(counts, mapped, 1.0)[0])
    truth = np.std(areas)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(truth, rel=0.1)
    if spread:
        assert np.mean(naive) < 0.6 * truth  # pixels of a block are not independent
    else:
        assert np.mean(naive) == pytest.approx(truth, rel=0.1)


def test_the_jackknife_of_blocks_is_that_of_hand_arithmetic():
    counts = np.array([[[4, 0, 0], [0, 6, 0]], [[2, 0, 0], [4, 6, 0]]])
    empty = np.zeros((1, 2, 3), int)  # a block without a label is no block
    mapped = np.array([50, 70, 0])
    # Without the second block the map is right; without the first, of the 50 pixels
    # two in six are class 0.
    without = np.array([50 * 2 / 6, 50])
    expected = np.sqrt(0.5 * ((without - without.mean()) ** 2).sum())
    found = estimate_block_errors(np.concatenate([counts, empty]), mapped, 1.0)
    assert found == pytest.approx([expected, expected])


def test_one_block_has_no_error_to_tell():
    found = estimate_block_errors(np.full((1, 2, 3), 5), np.array([1, 2, 3]), 1.0)
    assert np.isnan(found).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"expected \(C, C \+ 1\) and \(C \+ 1,\)"):
        estimate_areas(np.zeros((2, 2), int), np.array([1, 2, 3]), 1.0)
    with pytest.raises(DataError, match="map has no pixel"):
        estimate_areas(np.ones((2, 3), int), np.zeros(3, int), 1.0)


def test_only_whole_blocks_drawn_at_random_are_a_design():
    is_based, note = explain_design(has_random_blocks=True, share_labelled=1.0)
    assert is_based
    assert "drawn at random" in note
    is_based, note = explain_design(has_random_blocks=True, share_labelled=0.42)
    assert not is_based
    assert note.startswith("Not design-based: 42% of their pixels")
    is_based, note = explain_design(has_random_blocks=False, share_labelled=0.5)
    assert not is_based
    assert "chosen by hand" in note
    assert "50%" in note
