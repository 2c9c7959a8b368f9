"""Whether the intervals and tests hold what they promise, on real counts.

`data/*_counts.npz` hold `counts`, of shape (draws, blocks, 8, 9), of rural area 2 of
the prairie pair: 64 test blocks, seed 0, counted on 2026-11-21.

- `prairie_forest_counts.npz`: `pixel_forest`, 8 tiles, 32 draws, from the
  `counts.npz` of `cropseg compare --modes pixel_forest --labels 8tiles --draws 32`.
- `prairie_network_counts.npz`: shape (8, 2, blocks, 8, 9): scratch, full,
  frozen_encoder and head_only, each at 4 and at 16 tiles, two draws. Two are too few
  to draw from, so `mix_networks` makes draws out of them.

Any other `*_counts.npz` with 12 draws or more is tested as the forest is.

A repetition takes draws without replacement, and blocks with replacement. The truth
is the mean over all repetitions: what the same experiment gives on average.
"""

from pathlib import Path

import numpy as np
import pytest

from cropseg.evaluation.differences import (
    compute_power,
    estimate_best,
    estimate_difference,
    find_smallest_difference,
    pool_precision,
)
from cropseg.evaluation.intervals import estimate_score, make_mean_iou

DATA = Path(__file__).parent / "data"
FOREST = "prairie_forest_counts.npz"
SCORE = make_mean_iou(range(8))
MIN_DRAWS = 12


def load_populations() -> list[str]:
    names = []
    for path in sorted(DATA.glob("*_counts.npz")):
        with np.load(path) as file:
            if file["counts"].ndim == 4 and len(file["counts"]) >= MIN_DRAWS:
                names.append(path.name)
    return names


POPULATIONS = load_populations()


def load(name):
    with np.load(DATA / name) as file:
        return file["counts"].astype(np.int64)


def mix_networks(modes, *, num_draws=40, seed=0):
    """Make draws out of networks: each block takes a mixture of its own."""
    networks = load("prairie_network_counts.npz")[modes]
    networks = networks.reshape(-1, *networks.shape[2:])
    rng = np.random.default_rng(seed)
    num_blocks = networks.shape[1]
    draws = []
    for shares in rng.dirichlet(np.ones(len(networks)), num_draws):
        by_block = rng.dirichlet(4 * shares + 1e-3, num_blocks)
        draws.append(np.einsum("bn,nbij->bij", by_block, networks))
    return np.stack(draws)


def plant(counts, share):
    """Turn a share of the wrong pixels of every block into right ones."""
    planted = counts * (1 - share)
    ids = np.arange(counts.shape[-2])
    planted[..., ids, ids] += share * counts.sum(axis=-1)
    return planted


def repeat(population, other=None, *, num_draws, repetitions, seed=0):
    """Yield counts of two modes: of disjoint draws, where there is one population."""
    rng = np.random.default_rng(seed)
    num_blocks = population.shape[1]
    for _ in range(repetitions):
        blocks = rng.integers(0, num_blocks, num_blocks)
        draws = rng.permutation(len(population))
        first, second = draws[:num_draws], draws[num_draws : 2 * num_draws]
        if other is not None:
            second = rng.permutation(len(other))[:num_draws]
        source = population if other is None else other
        yield (
            population[first][:, np.newaxis, blocks],
            source[second][:, np.newaxis, blocks],
        )


def count_misses(estimates, truth):
    return np.mean([not item.low <= truth <= item.high for item in estimates])


def test_the_real_counts_are_there():
    assert FOREST in POPULATIONS
    assert load(FOREST).shape == (32, 64, 8, 9)


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_mode_against_itself_is_rarely_rejected(name):
    pairs = repeat(load(name), num_draws=3, repetitions=200)
    tests = [estimate_difference(one, two, SCORE) for one, two in pairs]

    rejected = np.mean([item.p_value < 0.05 for item in tests])

    # 200 repetitions know a rate of 5 % to 3 points.
    assert 0.01 <= rejected <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize("num_draws", [3, 5])
@pytest.mark.parametrize("name", POPULATIONS)
def test_a_mode_against_itself_is_rejected_as_often_as_stated(name, num_draws):
    pairs = repeat(load(name), num_draws=num_draws, repetitions=1000)
    tests = [estimate_difference(one, two, SCORE) for one, two in pairs]

    assert 0.03 <= np.mean([item.p_value < 0.05 for item in tests]) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("num_draws", [3, 5])
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_of_scores_cover_as_often_as_stated(name, num_draws):
    pairs = repeat(load(name), num_draws=num_draws, repetitions=1000)
    estimates = [estimate_score(one, SCORE) for one, _ in pairs]
    truth = np.mean([item.value for item in estimates])

    assert 0.03 <= count_misses(estimates, truth) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("num_draws", [3, 5])
@pytest.mark.parametrize(
    "modes", [[1, 2], [0, 1], [6, 7]], ids=["scratch_full", "scratch", "head_only"]
)
def test_intervals_of_differences_cover_as_often_as_stated(modes, num_draws):
    forest, networks = load(FOREST), mix_networks(modes)
    pairs = repeat(networks, forest, num_draws=num_draws, repetitions=1000)
    estimates = [estimate_difference(one, two, SCORE) for one, two in pairs]
    truth = np.mean([item.value for item in estimates])

    # Made-up draws: half a point more is allowed than on the real ones.
    assert 0.025 <= count_misses(estimates, truth) <= 0.075


@pytest.mark.slow
def test_a_percentile_bootstrap_over_three_draws_covers_too_rarely():
    rng = np.random.default_rng(0)
    scores = []
    for one, _ in repeat(load(FOREST), num_draws=3, repetitions=500):
        scores.append(SCORE(one.sum(axis=2))[:, 0])
    truth = np.mean(scores)
    resampled = rng.integers(0, 3, (500, 3))

    ends = [
        np.quantile(item[resampled].mean(axis=1), [0.025, 0.975]) for item in scores
    ]

    assert np.mean([low <= truth <= high for low, high in ends]) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("num_draws", [3, 5])
@pytest.mark.parametrize("share", [0.02, 0.035, 0.05])
def test_a_planted_difference_is_found_as_often_as_stated(num_draws, share):
    forest = load(FOREST)
    better = plant(forest, share)
    tests = []
    rng = np.random.default_rng(1)
    for _ in range(1000):
        draws, blocks = rng.permutation(32), rng.integers(0, 64, 64)
        one = better[draws[:num_draws]][:, np.newaxis, blocks]
        two = forest[draws[num_draws : 2 * num_draws]][:, np.newaxis, blocks]
        tests.append(estimate_difference(one, two, SCORE))
    found = np.mean([item.p_value < 0.05 for item in tests])
    truth = float(np.mean([item.value for item in tests]))

    assert abs(found - compute_power(truth, *pool_precision(tests))) <= 0.04


@pytest.mark.slow
def test_the_smallest_difference_is_found_with_the_stated_power():
    forest = load(FOREST)
    pairs = repeat(forest, num_draws=3, repetitions=1000)
    tests = [estimate_difference(one, two, SCORE) for one, two in pairs]
    smallest = find_smallest_difference(*pool_precision(tests))

    # Moving the estimate is planting a difference in every repetition.
    found = np.mean(
        [item.low + smallest > 0 or item.high + smallest < 0 for item in tests]
    )

    assert abs(found - 0.8) <= 0.04


@pytest.mark.slow
def test_a_probability_of_being_best_comes_true_that_often():
    forest = load(FOREST)
    rng = np.random.default_rng(7)
    stated, came_true = [], []
    for _ in range(250):
        shares = rng.uniform(0, 0.08, 4)
        draws = rng.permutation(32)[:12].reshape(4, 3)
        blocks = rng.integers(0, 64, 64)
        modes = {
            str(mode): plant(forest[draws[mode]][:, np.newaxis, blocks], shares[mode])
            for mode in range(4)
        }
        best = estimate_best(modes, SCORE)
        stated += [best[str(mode)] for mode in range(4)]
        came_true += [mode == shares.argmax() for mode in range(4)]
    stated, came_true = np.array(stated), np.array(came_true)

    for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.01)):
        group = (stated >= low) & (stated < high)
        assert abs(came_true[group].mean() - stated[group].mean()) <= 0.12
