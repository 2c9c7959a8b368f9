"""The tile shape of a scene: the default, and one small tile for a small scene.

What holds for every shape is tested with the tiles themselves, in `test_mosaic`.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropseg.inference.tiles.tile_shape import TileShape, choose_tile_shape
from cropseg.sites.grid import Window


def scene_of(height, width):
    return Window(row=0, col=0, height=height, width=width)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (1, 1, 192),
        (128, 90, 192),
        (129, 90, 320),
        (256, 256, 320),
        (200, 384, 448),
        (512, 512, 576),
    ],
)
def test_a_small_scene_is_one_tile_that_holds_it(height, width, size):
    shape = choose_tile_shape(16, scene=scene_of(height, width))
    assert (shape.size, shape.context) == (size, 32)
    assert shape.core_size >= max(height, width)


@pytest.mark.parametrize(("height", "width"), [(513, 20), (20, 513), (5000, 5000)])
def test_a_larger_scene_has_the_default_shape(height, width):
    assert choose_tile_shape(16, scene=scene_of(height, width)) == TileShape(
        size=512, context=64
    )


def test_a_shape_that_is_asked_for_holds_for_small_scenes_too():
    small = scene_of(100, 100)
    assert choose_tile_shape(16, size=512, scene=small).size == 512
    assert choose_tile_shape(16, context=16, scene=small).context == 16
    assert choose_tile_shape(16).size == 512


def test_a_scene_of_256_pixels_costs_less_by_pixel_than_a_large_one():
    small = choose_tile_shape(32, scene=scene_of(256, 256))
    large = choose_tile_shape(32)
    by_pixel = (small.size / 256) ** 2, (large.size / large.core_size) ** 2
    assert by_pixel[0] < by_pixel[1] <= 1.8
    wide = choose_tile_shape(32, size=1024)
    assert (wide.size / wide.core_size) ** 2 <= 1.35


@pytest.mark.parametrize(
    ("size", "context", "seam"),
    [(512, 64, 32), (320, 32, 16), (40, 16, 8), (32, 3, 2), (64, 31, 2), (64, 0, 0)],
)
def test_nobody_asks_for_more_than_the_core_and_the_seams(size, context, seam):
    shape = TileShape(size=size, context=context)
    assert shape.seam == seam
    assert shape.find_margin(blend=False) == context
    assert shape.find_margin(blend=True) == context - seam // 2


@given(
    multiple=st.integers(1, 96), height=st.integers(1, 700), width=st.integers(1, 700)
)
def test_a_small_scene_keeps_to_what_the_network_needs(multiple, height, width):
    shape = choose_tile_shape(multiple, scene=scene_of(height, width))
    assert shape.size % multiple == shape.context % multiple == 0
    if max(height, width) <= 512:
        assert shape.core_size >= max(height, width)


def test_there_are_few_shapes():
    shapes = {
        choose_tile_shape(32, scene=scene_of(side, side)) for side in range(1, 900)
    }
    assert len(shapes) == 5
