"""Folds: each block is for the test once, and nothing confuses two folds."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from cropseg.errors import DataError
from cropseg.sites.budget import Budget, draw_pool
from cropseg.sites.folds import take_fold
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site

TILE = 32
FOLDS = 3
SPLIT = {"block_m": 320, "gap_m": 20, "train": 0.6, "val": 0.2, "test": 0.2, "seed": 4}


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_site):
    return open_site(make_site(tmp_path_factory.mktemp("area"), split=SPLIT))


def read_parts(site):
    grid = site.scenes[0].grid
    return site.require_split().read_parts(grid, grid.window)


def test_each_pixel_is_for_the_test_in_one_fold_but_for_the_gaps(site):
    tested = sum(
        (read_parts(take_fold(site, folds=FOLDS, fold=fold)) == PARTS.index("test"))
        for fold in range(FOLDS)
    )

    np.testing.assert_array_equal(tested, np.ones_like(tested))


def test_a_fold_is_what_a_manifest_that_asks_for_it_opens(site):
    text = site.manifest_path.read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    document["split"] = {"block_m": 320, "gap_m": 20, "folds": 3, "fold": 1, "seed": 4}
    path = site.manifest_path.with_name("fold_1.yaml")
    path.write_text(yaml.safe_dump(document), encoding="utf-8")

    asked, taken = open_site(path), take_fold(site, folds=FOLDS, fold=1)

    assert taken.split == asked.split
    assert taken.fingerprint == asked.fingerprint


def test_surveys_and_draws_of_folds_are_not_taken_for_one_another(site):
    surveys, draws, fingerprints = set(), set(), {site.fingerprint}
    for fold in range(FOLDS):
        target = take_fold(site, folds=FOLDS, fold=fold)
        surveys.add(survey_site(target, TILE).class_pixels.tobytes())
        pool = draw_pool(target, TILE, Budget(amount=2), draw=0)
        parts = read_parts(target)
        for tile in pool.tiles:  # drawn from the training part of this fold
            inside = parts[tile.window.slices_in(target.scenes[0].grid.window)]
            assert (inside == PARTS.index("train")).any()
        draws.add(tuple(tile.window for tile in pool.tiles))
        fingerprints.add(target.fingerprint)

    assert len(surveys) == FOLDS
    assert len(draws) == FOLDS
    assert len(fingerprints) == FOLDS + 1


def test_folds_of_another_seed_are_another_partition(make_site, tmp_path):
    parts = []
    for seed in (0, 1):
        manifest = make_site(tmp_path / str(seed), split=SPLIT | {"seed": seed})
        fold = take_fold(open_site(manifest), folds=FOLDS, fold=0)
        parts.append(read_parts(fold))

    assert (parts[0] != parts[1]).any()


def test_test_blocks_are_those_with_a_labelled_test_pixel(site):
    grid = site.scenes[0].grid
    parts = read_parts(site)
    with site.open_scene(site.scenes[0]) as reader:
        _, labels = reader.read_valid_labels(grid.window)
    x, y = grid.locate_pixels(grid.window)
    tested = (parts == PARTS.index("test")) & (labels != 255)
    blocks = {
        (int(a // 320), int(b // 320))
        for a, b in zip(x[tested], y[tested], strict=True)
    }

    assert survey_site(site, TILE).num_test_blocks == len(blocks) > 2


def test_a_site_that_is_split_by_regions_has_no_folds(make_site, tmp_path):
    site = open_site(make_site(tmp_path, split="regions"))

    with pytest.raises(DataError, match="--folds none"):
        take_fold(site, folds=FOLDS, fold=0)


def test_there_is_no_fold_beyond_the_last(site):
    with pytest.raises(DataError, match="fold 3 of 3"):
        take_fold(site, folds=FOLDS, fold=3)
