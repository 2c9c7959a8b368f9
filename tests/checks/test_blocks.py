"""Labelled pixels of every block: against the survey, and one pixel at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cropseg.checks.blocks import NO_PART_ROW, BlockCounts
from cropseg.sites.scan import scan_site
from cropseg.sites.site import open_site
from cropseg.sites.split import NO_PART, PARTS, index_blocks
from cropseg.sites.statistics import survey_site

TILE = 64
SPLITS = {
    "blocks": "blocks",
    "gap": {"block_m": 320, "gap_m": 30, "train": 0.6, "val": 0.2, "test": 0.2},
    "folds": {"block_m": 200, "folds": 3, "fold": 1},
    "regions": "regions",
}


def count_blocks(site, context=0):
    counts = BlockCounts(site)
    for block in scan_site(site, TILE, context=context):
        counts.add(block)
    return counts.pixels


@pytest.mark.parametrize("context", [0, 6])
@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("split", SPLITS)
def test_counts_are_those_of_single_pixels(
    tmp_path, make_site, monkeypatch, split, degrees, context
):
    monkeypatch.setattr("cropseg.sites.scan._READ_PX", 64)
    site = open_site(make_site(tmp_path, split=SPLITS[split], degrees=degrees))

    found = count_blocks(site, context)

    (scene,) = site.scenes
    with site.open_scene(scene) as reader:
        _, labels = reader.read_valid_labels(scene.grid.window)
    numbers, places = index_blocks(site.split, scene.grid, scene.grid.window)
    ids = numbers[places]
    parts = site.split.read_parts(scene.grid, scene.grid.window)
    known = labels < len(site.classes)
    expected = Counter(
        zip(
            ids[known].tolist(),
            np.where(parts == NO_PART, NO_PART_ROW, parts)[known].tolist(),
            labels[known].tolist(),
            strict=True,
        )
    )
    counted = {
        (block, row, class_id): int(pixels[row, class_id])
        for block, pixels in found.items()
        for row, class_id in zip(*pixels.nonzero(), strict=True)
    }
    assert counted == expected
    assert all(pixels.any() for pixels in found.values())


@pytest.mark.parametrize("split", SPLITS)
def test_the_sum_of_all_blocks_is_the_survey(tmp_path, make_site, split):
    site = open_site(make_site(tmp_path, split=SPLITS[split], num_scenes=2))

    pixels = sum(count_blocks(site).values())

    assert pixels.shape == (len(PARTS) + 1, len(site.classes))
    expected = survey_site(site, TILE).class_pixels
    np.testing.assert_array_equal(pixels[: len(PARTS)], expected)
