"""Budgets: nested within a draw, different between draws, never too large."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import DataError, UsageError
from cropseg.sites.budget import (
    Budget,
    check_budgets,
    draw_pool,
    list_drawable_tiles,
    open_pool,
    parse_budget,
    parse_budgets,
)
from cropseg.sites.site import open_site
from cropseg.sites.statistics import survey_site

TILE = 32


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_site):
    return open_site(make_site(tmp_path_factory.mktemp("area_2")))


def get_places(pool):
    return [(tile.scene, tile.window.row, tile.window.col) for tile in pool.tiles]


@pytest.mark.parametrize("text", ["4tiles", " 4tiles\n", "004tiles"])
def test_a_budget_is_a_number_and_a_unit(text):
    budget = parse_budget(text)

    assert budget == Budget(amount=4, unit="tiles")
    assert str(budget) == "4tiles"


@pytest.mark.parametrize(
    "text", ["", "4", "tiles", "0tiles", "-4tiles", "4.5tiles", "4fields", "4 Tiles"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="such as 4tiles; got") as error:
        parse_budget(text)

    assert repr(text) in str(error.value)


def test_budgets_are_sorted_by_amount():
    budgets = parse_budgets(["16tiles", "4tiles", "100tiles"])

    assert [budget.amount for budget in budgets] == [4, 16, 100]


def test_a_small_budget_is_among_the_tiles_of_a_larger_one(site):
    pools = [
        get_places(draw_pool(site, TILE, Budget(amount=amount), draw=3))
        for amount in (2, 4, 9)
    ]

    assert [len(set(places)) for places in pools] == [2, 4, 9]
    assert set(pools[0]) < set(pools[1]) < set(pools[2])


def test_draws_differ_and_each_can_be_repeated(site):
    draws = [
        frozenset(get_places(draw_pool(site, TILE, Budget(amount=6), draw=draw)))
        for draw in (0, 1, 2, 0)
    ]

    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_only_tiles_labelled_on_a_quarter_are_drawn(site):
    survey = survey_site(site, TILE)

    drawable = list_drawable_tiles(survey)

    assert 0 < len(drawable) < len(survey.tiles)
    for tile in survey.tiles:
        is_enough = sum(tile.train_pixels) >= 0.25 * TILE**2
        assert (tile in drawable) == is_enough


def test_a_pool_counts_the_labels_that_it_shows(site):
    pool = draw_pool(site, TILE, Budget(amount=5), draw=1)

    counted = np.sum([tile.train_pixels for tile in pool.tiles], axis=0)
    assert pool.class_pixels == tuple(counted)
    assert pool.classes_seen == tuple(
        name for name, count in zip(site.classes.names, counted, strict=True) if count
    )


def test_the_whole_pool_holds_all_training_labels(site):
    pool = open_pool(site, TILE)

    assert pool.class_pixels == tuple(survey_site(site, TILE).class_pixels[0])
    assert pool.classes_seen == site.classes.names


def test_a_class_that_was_not_drawn_is_not_seen(site):
    pools = [draw_pool(site, 16, Budget(amount=1), draw=draw) for draw in range(9)]

    assert min(len(pool.classes_seen) for pool in pools) < len(site.classes)


def test_a_budget_as_large_as_the_pool_is_the_pool(site):
    size = len(list_drawable_tiles(survey_site(site, TILE)))

    assert len(draw_pool(site, TILE, Budget(amount=size), draw=0).tiles) == size


def test_a_budget_larger_than_the_pool_names_the_size_of_the_pool(site):
    size = len(list_drawable_tiles(survey_site(site, TILE)))
    message = rf"{size + 1}tiles .*has {size} tiles"

    with pytest.raises(DataError, match=message) as error:
        draw_pool(site, TILE, Budget(amount=size + 1), draw=0)

    assert error.value.exit_code == 3


def test_all_budgets_that_are_too_large_are_named(site):
    budgets = [Budget(amount=amount) for amount in (2, 500, 900)]

    with pytest.raises(DataError, match="budget of 500tiles, 900tiles was"):
        check_budgets(budgets, site, TILE)
