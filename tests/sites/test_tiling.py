"""Tiles: their cores partition the scene."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cropseg.sites.grid import Window
from cropseg.sites.tiling import iterate_tiles

areas = st.builds(
    Window,
    row=st.integers(-9, 9),
    col=st.integers(-9, 9),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
)


@given(area=areas, core_size=st.integers(1, 40), context=st.integers(0, 9))
def test_cores_partition_the_scene(area, core_size, context):
    visits = np.zeros((area.height + core_size, area.width + core_size), int)

    for tile in iterate_tiles(area, core_size=core_size, context=context):
        assert (tile.core.height, tile.core.width) == (core_size, core_size)
        visits[tile.core.slices_in(area)] += 1

    assert (visits[: area.height, : area.width] == 1).all()


@given(area=areas, core_size=st.integers(1, 40), context=st.integers(0, 9))
def test_no_tile_lies_outside_the_scene(area, core_size, context):
    tiles = list(iterate_tiles(area, core_size=core_size, context=context))

    assert len(tiles) == -(-area.height // core_size) * -(-area.width // core_size)


def test_context_lies_on_all_four_sides_of_a_core():
    area = Window(row=0, col=0, height=20, width=30)

    tile = list(iterate_tiles(area, core_size=16, context=3))[-1]

    assert tile.core == Window(row=16, col=16, height=16, width=16)
    assert tile.window == Window(row=13, col=13, height=22, width=22)
