"""A scan meets every pixel of a site once, with all that is known of it."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.scan import find_unnamed_labels, scan_site
from cropseg.sites.site import open_site
from cropseg.sites.tiling import iterate_tiles


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_site):
    folder = tmp_path_factory.mktemp("scan")
    return open_site(make_site(folder, height=70, width=90, num_scenes=2))


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    core_size=st.integers(1, 100),
    context=st.integers(0, 20),
)
def test_each_pixel_is_in_exactly_one_core(height, width, core_size, context):
    area = Window(row=0, col=0, height=height, width=width)
    counts = np.zeros((height, width), int)

    for tile in iterate_tiles(area, core_size=core_size, context=context):
        inside = tile.core.clip(height=height, width=width)
        counts[inside.slices_in(area)] += 1
        assert tile.window == tile.core.grow(context)

    assert (counts == 1).all()


@settings(max_examples=15, deadline=None)
@given(tile_size=st.integers(7, 120))
def test_a_scan_holds_each_pixel_once_as_a_whole_read_has_it(site, tile_size):
    counts = [np.zeros((70, 90), int) for _ in site.scenes]
    expected = []
    for scene in site.scenes:
        with site.open_scene(scene) as reader:
            expected.append(reader.read_valid_labels(scene.grid.window))

    for tile in scan_site(site, tile_size):
        scene = site.scenes[tile.scene]
        place = tile.window.slices_in(scene.grid.window)
        pixels, labels = expected[tile.scene]
        counts[tile.scene][place] += 1
        np.testing.assert_array_equal(tile.pixels.values, pixels.values[place])
        np.testing.assert_array_equal(tile.pixels.valid, pixels.valid[place])
        np.testing.assert_array_equal(tile.labels, labels[place])
        parts = site.split.read_parts(scene.grid, scene.grid.window)
        np.testing.assert_array_equal(tile.parts, parts[place])
        assert (tile.labels[~tile.pixels.valid] == IGNORE).all()

    assert all((count == 1).all() for count in counts)


def test_unnamed_labels_of_all_scenes_are_listed_at_once(tmp_path, make_site):
    site = open_site(make_site(tmp_path, height=70, width=90, num_scenes=3))
    for index, value in ((0, 77), (2, 88)):
        with rasterio.open(tmp_path / f"scene_{index}_labels.tif", "r+") as dataset:
            labels = dataset.read(1)
            labels[60:62, 80:83] = value
            dataset.write(labels, 1)

    problems = find_unnamed_labels(site)

    assert len(problems) == 2
    with pytest.raises(DataError, match=r"(?s)Labels of site .*77 \(6 .*88 \(6 "):
        list(scan_site(site, 32))


def test_a_damaged_file_is_named_as_it_is(tmp_path, make_site):
    site = open_site(make_site(tmp_path, height=70, width=90))
    path = tmp_path / "scene_0.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(DataError, match=r"scene_0\.tif"):
        list(scan_site(site, 32))
