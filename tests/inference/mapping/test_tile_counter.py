"""Progress of a batch: every tile once, and an honest guess of what is to come."""

from __future__ import annotations

import pytest

from cropseg.inference.mapping.jobs import cut_scene
from cropseg.inference.mapping.tile_counter import TileCounter


def test_scenes_that_are_not_open_yet_are_taken_to_be_like_the_others(make_job):
    calls = []
    counter = TileCounter(4, lambda *call: calls.append(call))
    small, large = make_job("small", 16, 16), make_job("large", 32, 48)
    counter.begin(small)
    counter.count(cut_scene(small)[0])
    assert calls.pop() == (1, 4, "small.tif")
    counter.begin(large)
    counter.count(cut_scene(large)[0])
    assert calls.pop() == (2, 7 + 7, "large.tif")  # two more, of 3.5 tiles each
    counter.skip()
    counter.count(cut_scene(large)[0])
    assert calls.pop() == (3, 7 + 4, "large.tif")


def test_the_end_of_a_scene_counts_what_was_done_before(make_job):
    calls = []
    counter = TileCounter(1, lambda *call: calls.append(call))
    scene = make_job("scene", 32, 48)
    counter.begin(scene)
    counter.count(cut_scene(scene)[0])
    counter.end(scene)
    counter.end(scene)
    assert calls == [(1, 6, "scene.tif"), (6, 6, "scene.tif")]


def test_tiles_that_are_shown_twice_count_once(make_job):
    calls = []
    counter = TileCounter(1, lambda *call: calls.append(call))
    scene = make_job("scene", 16, 30)
    counter.begin(scene)
    for _ in range(5):
        counter.count(cut_scene(scene)[0])
    assert calls == [(1, 2, "scene.tif"), (2, 2, "scene.tif")]


@pytest.mark.usefixtures("small_bands")
def test_a_band_counts_all_its_tiles(make_job):
    calls = []
    counter = TileCounter(1, lambda *call: calls.append(call))
    scene = make_job("scene", 40, 30)
    counter.begin(scene)
    for band in cut_scene(scene):
        counter.count_band(band)
    assert [done for done, _, _ in calls] == [2, 4, 6]
