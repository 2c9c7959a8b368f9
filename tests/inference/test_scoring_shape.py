"""The tiles of a scored part: the context stays, and least is computed in vain."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.inference.scoring_shape import choose_scoring_shape
from cropseg.inference.tiles.tile_shape import TileShape, choose_tile_shape
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS


@pytest.fixture(scope="module")
def wide_site(make_site, tmp_path_factory):
    """A scene of 600 x 640 pixels: val are the columns 320 to 448, test the rest."""
    folder = tmp_path_factory.mktemp("wide") / "area"
    return open_site(make_site(folder, height=600, width=640, split="regions"))


def count_pixels(site, part, shape):
    """What a part costs, from its mask alone."""
    grid = site.scenes[0].grid
    inside = site.split.read_parts(grid, grid.window) == PARTS.index(part)
    rows, cols = (axis // shape.core_size for axis in np.nonzero(inside))
    return len(set(zip(rows.tolist(), cols.tolist(), strict=True))) * shape.size**2


@pytest.mark.parametrize(
    ("part", "size"), [("train", 512), ("val", 384), ("test", 512)]
)
def test_least_is_computed(wide_site, part, size):
    found = choose_scoring_shape(wide_site, part, 32)
    assert found == TileShape(size=size, context=64)
    costs = {
        side: count_pixels(wide_site, part, TileShape(size=side, context=64))
        for side in (256, 384, 512)
    }
    assert costs[size] == min(costs.values()) < max(costs.values())


def test_a_small_scene_needs_no_large_tile(site):
    assert choose_scoring_shape(site, "test", 32) == TileShape(size=256, context=64)


@pytest.mark.parametrize("multiple", [16, 48, 160, 512, 1024])
def test_tiles_fit_every_network_and_keep_the_context(wide_site, multiple):
    default = choose_tile_shape(multiple)
    for part in PARTS:
        found = choose_scoring_shape(wide_site, part, multiple)
        assert found.context == default.context
        assert found.size % multiple == 0
        assert 0 < found.core_size <= default.core_size
