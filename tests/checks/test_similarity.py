"""The distance of two sites: by hand, against scipy, and on real pairs of sites."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from cropseg.checks.similarity import (
    DISTANCE_LEVELS,
    QUANTILES,
    BandDistance,
    BandSummary,
    compare_bands,
    compare_class_shares,
)
from cropseg.demo.areas import write_areas
from cropseg.errors import DataError

PRAIRIE = Path(__file__).parents[2].parent / "shared" / "data" / "prairie"
PRAIRIE_BANDS = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
LIGHT = {"blue": (400, 150), "green": (700, 260), "red": (900, 500), "nir": (2600, 900)}


def make_bands(stats):
    return [
        BandSummary(name=name, mean=mean, std=std)
        for name, (mean, std) in stats.items()
    ]


def summarise(values, names):
    """Summarise pixels, (pixels, bands), with all that a summary can hold."""
    values = values.astype(float)
    correlations = np.corrcoef(values.T)
    return [
        BandSummary(
            name=name,
            mean=values[:, i].mean(),
            std=values[:, i].std(),
            quantiles=tuple(np.quantile(values[:, i], QUANTILES).tolist()),
            correlations={
                other: correlations[i, j] for j, other in enumerate(names) if j != i
            },
        )
        for i, name in enumerate(names)
    ]


def forget(bands):
    """Leave mean and std alone, as a model's card has them."""
    return [replace(band, quantiles=None, correlations=None) for band in bands]


def read_values(path):
    with rasterio.open(path) as dataset:
        valid = dataset.dataset_mask() > 0
        return dataset.read()[:, valid].T


@pytest.fixture(scope="module")
def prairie():
    """Return the valid pixels of both areas, (pixels, bands)."""
    if not PRAIRIE.is_dir():
        pytest.skip("../shared/data/prairie is not there")
    return [read_values(PRAIRIE / f"rural_area_{area}.tif") for area in (1, 2)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return the pixels of both demo areas, (pixels, bands)."""
    folder = tmp_path_factory.mktemp("demo")
    write_areas(folder, seed=0, size_px=512)
    return [read_values(folder / f"area_{area}" / "scene.tif") for area in (1, 2)]


def swap(values, i, j):
    order = list(range(values.shape[1]))
    order[i], order[j] = j, i
    return values[:, order]


def find_unseen(areas, names, change=lambda bands: bands):
    """Swap each pair of bands of area 2 and list those that are not named."""
    source = change(summarise(areas[0], names))
    unseen = []
    for i, j in itertools.combinations(range(len(names)), 2):
        target = change(summarise(swap(areas[1], i, j), names))
        found = [(s.names, s.look_like) for s in compare_bands(source, target).swaps]
        if found != [((names[j], names[i]), (names[i], names[j]))]:
            unseen.append((names[i], names[j]))
    return unseen


def test_equal_sites_are_at_distance_zero():
    comparison = compare_bands(make_bands(LIGHT), make_bands(LIGHT))
    assert [band.distance for band in comparison.distances] == [0, 0, 0, 0]
    assert {band.level for band in comparison.distances} == {"near"}
    assert not comparison.missing + comparison.new + comparison.swaps


def test_distances_from_mean_and_std_equal_hand_arithmetic():
    source = [BandSummary(name="nir", mean=100, std=10)]
    target = [BandSummary(name="nir", mean=130, std=50)]
    (band,) = compare_bands(source, target).distances
    assert band.distance == pytest.approx(5)  # sqrt(30^2 + 40^2) / 10
    assert band.level == "far"


def test_distances_from_quantiles_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 300, (40_000, 1))
    other = rng.gamma(3, 200, (40_000, 1)) + 100
    source = _summarise_one(values)
    (moved,) = compare_bands(source, _summarise_one(values + 200)).distances
    assert moved.distance == pytest.approx(200 / values.std())
    (apart,) = compare_bands(source, _summarise_one(other)).distances
    # The 2-Wasserstein distance is never below the 1-Wasserstein one of scipy.
    least = wasserstein_distance(values[:, 0], other[:, 0]) / values.std()
    exact = np.sort(values[:, 0]) - np.sort(other[:, 0])
    assert least <= apart.distance
    assert apart.distance == pytest.approx(
        np.sqrt((exact**2).mean()) / values.std(), rel=0.15
    )


def _summarise_one(values):
    return [
        BandSummary(
            name="red",
            mean=values.mean(),
            std=values.std(),
            quantiles=tuple(np.quantile(values, QUANTILES).tolist()),
        )
    ]


def test_quantiles_tell_bands_of_equal_mean_and_std():
    values = np.random.default_rng(0).normal(0, 1, (10_000, 1))
    source = [replace(_summarise_one(values)[0], mean=0, std=1)]
    target = [replace(_summarise_one(np.sign(values))[0], mean=0, std=1)]
    (band,) = compare_bands(source, target).distances
    # sqrt(2 - 2 E|x|), with E|x| = sqrt(2 / pi) for a normal x: 0.636. The outermost
    # 2.5 % on either side lie beyond the quantiles, which makes it less.
    exact = np.sqrt(2 - 2 * np.sqrt(2 / np.pi))
    assert 0.9 * exact < band.distance < exact
    assert compare_bands(forget(source), forget(target)).distances[0].distance == 0


def test_quantiles_of_one_side_alone_are_not_used():
    values = np.random.default_rng(0).gamma(2, 300, (1000, 1))
    source = _summarise_one(values)
    (band,) = compare_bands(source, forget(source)).distances
    assert band.distance == 0


@pytest.mark.parametrize(
    ("distance", "level"),
    [(0, "near"), (0.249, "near"), (0.25, "apart"), (1.0, "far"), (1e9, "far")],
)
def test_a_distance_has_a_level(distance, level):
    assert BandDistance(name="red", distance=distance).level == level
    assert level in DISTANCE_LEVELS


def test_bands_are_matched_by_name_and_others_are_listed():
    source = make_bands(LIGHT)
    target = [*source[2:0:-1], BandSummary(name="thermal", mean=290, std=5)]
    comparison = compare_bands(source, target)
    assert [band.name for band in comparison.distances] == ["green", "red"]
    assert [band.distance for band in comparison.distances] == [0, 0]
    assert comparison.missing == ("blue", "nir")
    assert comparison.new == ("thermal",)
    assert comparison.swaps == ()


def test_sites_without_a_common_band_compare():
    comparison = compare_bands(make_bands(LIGHT), [])
    assert comparison.missing == tuple(LIGHT)
    assert comparison.distances == comparison.swaps == comparison.ambiguous == ()


@given(gain=st.floats(1e-4, 1e4), order=st.permutations(list(LIGHT)))
def test_any_order_of_bands_is_recognised_in_any_unit(gain, order):
    source = make_bands(LIGHT)
    target = [
        BandSummary(name=name, mean=LIGHT[true][0] * gain, std=LIGHT[true][1] * gain)
        for name, true in zip(LIGHT, order, strict=True)
    ]
    swaps = compare_bands(source, target).swaps
    moved = {
        name: true for name, true in zip(LIGHT, order, strict=True) if name != true
    }
    pairs = [
        pair for item in swaps for pair in zip(item.names, item.look_like, strict=True)
    ]
    assert dict(pairs) == moved
    assert len(pairs) == len(moved)


def test_bands_that_clearly_changed_places_are_not_ambiguous():
    target = make_bands(LIGHT | {"blue": LIGHT["nir"], "nir": LIGHT["blue"]})
    comparison = compare_bands(make_bands(LIGHT), target)
    (swap,) = comparison.swaps
    assert (swap.names, swap.look_like) == (("nir", "blue"), ("blue", "nir"))
    assert swap.cost_ratio == pytest.approx(0, abs=1e-9)
    assert ("blue", "nir") not in comparison.ambiguous


def test_bands_that_look_alike_are_called_ambiguous_and_not_swapped():
    stats = LIGHT | {"coastal": (395, 151)}
    target = make_bands(stats | {"blue": stats["coastal"], "coastal": stats["blue"]})
    comparison = compare_bands(make_bands(stats), target)
    assert comparison.swaps == ()
    assert comparison.ambiguous == (("blue", "coastal"),)


def test_correlations_tell_bands_that_mean_and_std_do_not():
    rng = np.random.default_rng(0)
    soil, green = rng.normal(size=(2, 20_000, 1))
    values = 1000 + 100 * np.hstack([soil, soil, soil, green])
    values += rng.normal(0, 30, values.shape)
    names = ("red", "green", "swir", "nir")
    assert find_unseen([values, values], names, forget) == list(
        itertools.combinations(names, 2)
    )
    unseen = find_unseen([values, values], names)
    assert not any("nir" in pair for pair in unseen)


def test_a_band_without_a_positive_mean_is_left_out_and_called_ambiguous():
    ndvi = BandSummary(name="ndvi", mean=-0.1, std=0.3)
    source = [*make_bands(LIGHT), ndvi]
    comparison = compare_bands(source, source)
    assert comparison.swaps == ()
    assert comparison.ambiguous == tuple((name, "ndvi") for name in LIGHT)


@pytest.mark.slow
def test_prairie_areas_have_no_swap_and_every_swap_is_found(prairie):
    source, target = (summarise(values, PRAIRIE_BANDS) for values in prairie)
    comparison = compare_bands(source, target)
    assert comparison.swaps == comparison.ambiguous == ()
    assert {band.level for band in comparison.distances} == {"apart"}
    assert find_unseen([values[::20] for values in prairie], PRAIRIE_BANDS) == []


def test_a_card_with_mean_and_std_alone_misses_nir_and_swir1_and_says_so(prairie):
    source, target = (
        forget(summarise(values[::20], PRAIRIE_BANDS)) for values in prairie
    )
    comparison = compare_bands(source, target)
    assert comparison.swaps == ()
    assert comparison.ambiguous == (("nir", "swir1"),)
    unseen = find_unseen([values[::20] for values in prairie], PRAIRIE_BANDS, forget)
    assert unseen == [("nir", "swir1")]


@pytest.mark.slow
def test_demo_areas_have_no_swap_and_every_swap_is_found(demo):
    names = ("blue", "green", "red", "nir")
    source, target = (summarise(values, names) for values in demo)
    assert compare_bands(source, target).swaps == ()
    assert find_unseen(demo, names, forget) == []


def test_a_name_that_is_there_twice_is_refused():
    bands = make_bands(LIGHT)
    with pytest.raises(DataError, match="The target has bands blue, blue"):
        compare_bands(bands, [bands[0], *bands])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": 0}, "`std` 0; expected"),
        ({"mean": float("nan")}, "`mean` is nan"),
        ({"quantiles": (1.0, 2.0)}, "expected 20 rising values"),
        ({"quantiles": (*range(19), float("inf"))}, "expected 20 rising values"),
        ({"quantiles": tuple(range(20, 0, -1))}, "expected 20 rising values"),
    ],
)
def test_a_summary_that_cannot_be_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        BandSummary(**{"name": "red", "mean": 5, "std": 1} | change)


def test_class_shares_equal_hand_arithmetic():
    source = {"corn": 50, "hay": 30, "wheat": 20}
    target = {"hay": 6, "corn": 2, "rice": 2}
    comparison = compare_class_shares(source, target)
    assert comparison.total_variation == pytest.approx(0.5)
    found = [(item.name, round(item.change, 9)) for item in comparison.changes]
    assert found == [("corn", -0.3), ("hay", 0.3), ("wheat", -0.2), ("rice", 0.2)]
    assert comparison.changes[3].source_share == 0
    assert comparison.changes[3].target_share == pytest.approx(0.2)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 99), min_size=1),
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 99), min_size=1),
)
def test_total_variation_is_symmetric_and_at_most_one(one, other):
    if not (sum(one.values()) and sum(other.values())):
        with pytest.raises(DataError, match="Label some pixels"):
            compare_class_shares(one, other)
        return
    there = compare_class_shares(one, other).total_variation
    back = compare_class_shares(other, one).total_variation
    assert there == pytest.approx(back)
    assert -1e-9 <= there <= 1 + 1e-9
    assert compare_class_shares(one, one).total_variation == 0


def test_negative_class_pixels_are_refused():
    with pytest.raises(DataError, match=r"source are .*'corn': -1"):
        compare_class_shares({"corn": -1, "hay": 3}, {"corn": 1})
