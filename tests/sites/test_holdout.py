"""Holding out: a quarter of a budget is seen by nothing that is fitted."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import DataError
from cropseg.sites.budget import Budget, draw_pool, open_pool, parse_budget
from cropseg.sites.holdout import hold_out
from cropseg.sites.site import open_site

TILE = 32


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_site):
    return open_site(make_site(tmp_path_factory.mktemp("area_2")))


def mark(pool):
    """Return what of the only scene a pool shows."""
    scene = pool.site.scenes[0]
    with pool.site.open_scene(scene) as reader:
        return pool.read_visible(reader, 0, scene.grid.window)


@pytest.mark.parametrize(
    ("amount", "expected"), [(2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (12, 3)]
)
def test_a_quarter_of_the_tiles_and_at_least_one_is_held_out(site, amount, expected):
    pool = draw_pool(site, TILE, Budget(amount=amount), draw=1)

    fitted, held = hold_out(pool)

    assert len(held.tiles) == expected
    assert len(fitted.tiles) == amount - expected
    assert {*fitted.tiles, *held.tiles} == set(pool.tiles)


@pytest.mark.parametrize("draw", range(3))
@pytest.mark.parametrize("labels", ["4tiles", "20ha", None])
def test_the_parts_of_a_pool_show_all_of_it_and_nothing_twice(site, draw, labels):
    pool = open_pool(site, TILE)
    if labels:
        pool = draw_pool(site, TILE, parse_budget(labels), draw=draw)

    fitted, held = hold_out(pool)

    np.testing.assert_array_equal(mark(fitted) | mark(held), mark(pool))
    assert not (mark(fitted) & mark(held)).any()
    for part in (fitted, held):
        assert sum(part.class_pixels) > 0
    total = np.add(fitted.class_pixels, held.class_pixels)
    np.testing.assert_array_equal(total, pool.class_pixels)


@pytest.mark.parametrize("amount", range(10, 190, 10))
def test_a_tile_that_is_visible_in_part_is_never_held_out(site, amount):
    pool = draw_pool(site, TILE, Budget(amount=amount, unit="ha"), draw=0)
    assert pool.last_rows is not None

    fitted, held = hold_out(pool)

    assert fitted.tiles[-1] == pool.tiles[-1]
    assert fitted.last_rows == pool.last_rows
    assert held.last_rows is None


def test_what_is_held_out_follows_from_the_pool_alone(site):
    pool = draw_pool(site, TILE, Budget(amount=8), draw=0)

    assert hold_out(pool) == hold_out(pool)


def test_which_tiles_are_held_out_of_all_labels_is_no_corner_of_the_site(site):
    pool = open_pool(site, TILE)

    _, held = hold_out(pool)

    rows = {tile.window.row for tile in held.tiles}
    assert len(rows) > len(held.tiles) / 8 + 1


def test_one_tile_cannot_be_parted(site):
    pool = draw_pool(site, TILE, Budget(amount=1), draw=0)

    with pytest.raises(DataError, match="budget has 1 tile; expected 2"):
        hold_out(pool)
