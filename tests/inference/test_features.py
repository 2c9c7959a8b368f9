"""Features: what they are, that few tiles say as much as many, and what counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cropseg.inference.features import (
    MAX_TILES,
    TileMoments,
    compare_features,
    measure_features,
    summarize_moments,
)
from cropseg.models.card import CardClass, CardFeatures, Lineage
from cropseg.runtime import keras
from cropseg.sites.budget import open_pool
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site
from cropseg.sites.statistics import SurveyedTile, survey_site

NUM_CHANNELS = 48
ROOT = Path(__file__).parents[2]
PRAIRIE = ROOT / "../shared/data/prairie"


def make_features(mean, std, *, errors=0.0, num_tiles=9):
    return CardFeatures(
        mean=mean,
        std=std,
        mean_error=(errors,) * len(mean),
        std_error=(errors,) * len(mean),
        num_tiles=num_tiles,
    )


def draw_moments(rng, num_tiles, *, shift=0.0, trend=0.0):
    """Draw tiles that differ from each other as much as pixels in a tile do."""
    centre_m = rng.uniform(0, 1000, (num_tiles, 2))
    # Channels differ in scale, as those of a network do.
    scale = np.geomspace(0.01, 3, NUM_CHANNELS)
    mean = rng.normal(5 + shift, 1, (num_tiles, NUM_CHANNELS))
    mean += trend * centre_m[:, :1] / 1000
    variance = rng.gamma(4, 0.25, (num_tiles, NUM_CHANNELS))
    return TileMoments(
        num_cells=rng.integers(40, 65, num_tiles).astype(float),
        mean=scale * mean,
        variance=scale**2 * variance,
        centre_m=centre_m,
    )


def forget_errors(features):
    none = (0.0,) * len(features.mean)
    return features.model_copy(update={"mean_error": none, "std_error": none})


def test_the_distance_is_that_of_normal_distributions():
    one = make_features((0.0, 10.0), (1.0, 2.0))
    other = make_features((3.0, 10.0), (1.0, 4.0))
    # (3^2 + 0^2) + (0^2 + 2^2), by the mean variances 1 + (4 + 16) / 2
    assert compare_features(one, other) == pytest.approx(np.sqrt(13 / 11))
    assert compare_features(other, one) == compare_features(one, other)
    assert compare_features(one, one) == 0


def test_what_chance_adds_is_taken_off():
    one = make_features((0.0,), (1.0,), errors=0.5)
    # 2^2 less two errors a side, by a variance of 1
    assert compare_features(one, make_features((2.0,), (1.0,))) == pytest.approx(
        np.sqrt(4 - 2 * 0.25)
    )
    assert compare_features(one, make_features((0.5,), (1.0,))) == 0


def test_channels_that_never_fire_are_no_distance():
    dead = make_features((0.0, 0.0), (0.0, 0.0))
    assert compare_features(dead, dead) == 0
    one, other = make_features((1.0, 0.0), (1.0, 0.0)), make_features((2, 0), (1, 0))
    assert compare_features(one, other) == 1


def test_the_distance_does_not_grow_with_the_number_of_channels():
    rng = np.random.default_rng(0)
    one = summarize_moments(draw_moments(rng, 30))
    other = summarize_moments(draw_moments(rng, 30, shift=1))
    names = ("mean", "std", "mean_error", "std_error")
    wide = [
        item.model_copy(update={name: getattr(item, name) * 8 for name in names})
        for item in (one, other)
    ]
    assert compare_features(*wide) == pytest.approx(compare_features(one, other))


def test_tiles_of_a_site_pool_into_its_mean_and_spread():
    moments = TileMoments(
        num_cells=np.array([2.0, 2.0]),
        mean=np.array([[1.0], [5.0]]),
        variance=np.array([[1.0], [1.0]]),
        centre_m=np.zeros((2, 2)),
    )
    features = summarize_moments(moments)
    # inside tiles 1, between their means ((1 - 3)^2 + (5 - 3)^2) / (2 - 1) = 8
    assert features.mean == (3.0,)
    assert features.std == (3.0,)
    assert features.mean_error == (2.0,)  # sqrt(8 / 2)
    assert features.std_error == (0.0,)
    assert (features.num_tiles, features.half_distance) == (2, None)


def test_the_errors_are_those_that_repeated_draws_show():
    rng = np.random.default_rng(1)
    drawn = [summarize_moments(draw_moments(rng, 12)) for _ in range(300)]
    for name in ("mean", "std"):
        seen = np.std([getattr(item, name) for item in drawn], axis=0)
        told = np.mean([getattr(item, f"{name}_error") for item in drawn], axis=0)
        np.testing.assert_allclose(told, seen, rtol=0.25)


def test_few_tiles_tell_the_same_distance_as_many():
    rng = np.random.default_rng(2)
    source = summarize_moments(draw_moments(rng, 64))
    true = compare_features(
        source, summarize_moments(draw_moments(rng, 4000, shift=1.0))
    )
    raw_excess = {}
    for num_tiles in (4, 16, 64):
        drawn = [
            summarize_moments(draw_moments(rng, num_tiles, shift=1.0))
            for _ in range(40)
        ]
        distances = [compare_features(source, item) for item in drawn]
        raw = [
            compare_features(forget_errors(source), forget_errors(item))
            for item in drawn
        ]
        assert np.mean(distances) == pytest.approx(true, rel=0.05)
        assert max(distances) < 1.5 * true
        raw_excess[num_tiles] = np.mean(raw) / true
    assert raw_excess[4] > 1.1  # so it is the correction that does it
    assert raw_excess[4] > raw_excess[64]


def test_the_halves_of_a_site_tell_its_sides_apart_and_not_chance():
    rng = np.random.default_rng(3)
    plain = summarize_moments(draw_moments(rng, 60))
    trend = summarize_moments(draw_moments(rng, 60, trend=3.0))
    assert plain.half_distance < 0.15
    # One side is 1.5 more than the other on average, in stds of about 1.6; a line
    # along the trend sees none of it.
    assert 0.4 < trend.half_distance < 1.0


def test_the_halves_do_not_depend_on_where_the_site_lies():
    moments = draw_moments(np.random.default_rng(4), 25, trend=2.0)
    moved = replace(moments, centre_m=moments.centre_m * 3 + [7e5, -4e6])
    order = np.random.default_rng(5).permutation(25)
    expected = summarize_moments(moments).half_distance
    assert summarize_moments(moved).half_distance == expected
    again = summarize_moments(moments.take(order))
    assert again.half_distance == pytest.approx(expected)


@pytest.fixture(scope="module")
def wide_site(make_site, tmp_path_factory):
    """Four by five tiles of 64 pixels, of which the last row and column are cut."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    return open_site(make_site(folder, height=230, width=300, split=None))


@pytest.fixture(scope="module")
def network(wide_site, build_bundle):
    names = wide_site.classes.names
    return build_bundle(
        mean=(2000.0, 1900.0, 2100.0, 2300.0, 1800.0),
        std=(900.0, 800.0, 950.0, 990.0, 700.0),
        seed=4,
        site="elsewhere",
        classes=tuple(
            CardClass(name=n, color="#000000", train_pixels=1) for n in names
        ),
        bands=wide_site.bands,
        gsd_m=wide_site.gsd_m,
        lineage=Lineage(mode="train"),
        fingerprint="0",
    )


def list_tiles(site, size=64):
    return [
        SurveyedTile(
            scene=number,
            window=Window(row=row, col=col, height=size, width=size),
            train_pixels=(),
        )
        for number, scene in enumerate(site.scenes)
        for row in range(0, scene.grid.height, size)
        for col in range(0, scene.grid.width, size)
    ]


def test_features_are_those_of_the_last_encoder_stage(wide_site, network):
    tiles = list_tiles(wide_site)
    found = measure_features(network, wide_site, tiles)
    assert found.num_tiles == len(tiles) == 20
    encoder = keras.Model(
        network.model.inputs[0], network.model.get_layer("encoder_3_relu_2").output
    )
    cells = []
    with wide_site.open_scene(wide_site.scenes[0]) as reader:
        for tile in tiles:
            pixels = reader.read_pixels(tile.window)
            image = np.where(
                pixels.valid[..., None], pixels.values, network.card.nodata_fill
            )
            features = np.asarray(encoder(image[None].astype("float32")))[0]
            valid = pixels.valid.reshape(16, 4, 16, 4).mean(axis=(1, 3)) >= 0.5
            cells.append(features[valid])
    assert len({len(item) for item in cells}) > 2  # edges and nodata
    every = np.concatenate(cells)
    np.testing.assert_allclose(found.mean, every.mean(axis=0), rtol=1e-4, atol=1e-6)
    # The spread between tiles is that of a sample.
    assert np.all(np.array(found.std) >= every.std(axis=0) * (1 - 1e-4))
    np.testing.assert_allclose(found.std, every.std(axis=0), rtol=0.1, atol=1e-3)
    assert measure_features(network, wide_site, tiles) == found


def test_few_tiles_of_a_site_are_as_far_as_many(make_site, network, tmp_path):
    kinds = {"home": {}, "away": {"gain": 1.6, "seed": 9}}
    sites = {
        name: open_site(
            make_site(tmp_path / name, height=512, width=512, split=None, **changes)
        )
        for name, changes in kinds.items()
    }
    home = measure_features(network, sites["home"], list_tiles(sites["home"]))
    assert home.num_tiles == 64
    tiles = list_tiles(sites["away"])
    order = np.random.default_rng(0).permutation(64)
    distances = [
        compare_features(
            home,
            measure_features(
                network, sites["away"], [tiles[index] for index in order[:count]]
            ),
        )
        for count in (4, 16, 64)
    ]
    assert distances[2] > 2 * home.half_distance
    np.testing.assert_allclose(distances, distances[2], rtol=0.1)


def test_nothing_of_val_and_test_is_looked_at(make_site, network, tmp_path):
    site = open_site(make_site(tmp_path, width=320, split="regions"))
    tiles = list_tiles(site)
    train = [tile for tile in tiles if tile.window.col_end <= 128]
    held_out = [tile for tile in tiles if tile.window.col >= 192]
    assert len(train) == 6
    assert measure_features(network, site, train).num_tiles == 6
    assert measure_features(network, site, held_out) is None
    found = measure_features(network, site, tiles)
    # The third column of tiles lies half in train, the last two do not.
    assert found.num_tiles == 9


def test_fewer_than_two_tiles_tell_nothing(wide_site, network):
    tiles = list_tiles(wide_site)
    assert measure_features(network, wide_site, tiles[:1]) is None
    assert measure_features(network, wide_site, []) is None
    assert measure_features(network, wide_site, tiles[:2]).num_tiles == 2
    assert measure_features(network, wide_site, tiles[:3]).half_distance is None
    assert measure_features(network, wide_site, tiles[:4]).half_distance is not None


def test_no_more_tiles_are_read_than_are_needed(wide_site, network):
    tiles = list_tiles(wide_site, 16)
    small = replace(network, card=network.card.model_copy(update={"tile_size": 16}))
    assert len(tiles) > MAX_TILES
    found = measure_features(small, wide_site, tiles)
    assert 0.8 * MAX_TILES < found.num_tiles <= MAX_TILES


@pytest.mark.slow
@pytest.mark.skipif(not PRAIRIE.is_dir(), reason="../shared/data/prairie is not there")
def test_few_tiles_of_a_real_area_are_as_far_as_many(build_bundle):
    sites = [
        open_site(ROOT / f"data_manifests/prairie_area_{number}.yaml")
        for number in (1, 2)
    ]
    bands = survey_site(sites[0], 64).bands
    network = build_bundle(
        mean=bands.mean,
        std=bands.std,
        seed=0,
        site="prairie-area-1",
        classes=tuple(
            CardClass(name=name, color="#000000", train_pixels=1)
            for name in sites[0].classes.names
        ),
        bands=sites[0].bands,
        gsd_m=30,
        lineage=Lineage(mode="train"),
        fingerprint="0",
    )
    pools = [open_pool(site, 64).tiles for site in sites]
    source = measure_features(network, sites[0], pools[0])
    distances = {
        count: [
            compare_features(
                source, measure_features(network, sites[1], pools[1][start::step])
            )
            for start in range(0, step, step // 4 or 1)
        ]
        for count, step in ((64, 1), (16, 5), (4, 20))
    }
    (every,) = distances[64]
    assert 0.5 * source.half_distance < every < 2 * source.half_distance
    for count in (4, 16):
        np.testing.assert_allclose(np.mean(distances[count]), every, rtol=0.15)
