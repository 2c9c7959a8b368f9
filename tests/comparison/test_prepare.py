"""Equal terms: what each mode of a comparison sees of the same budget."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from cropseg.comparison.steps import Steps
from cropseg.errors import DataError
from cropseg.sites.budget import Budget, draw_pool
from cropseg.sites.site import open_site

MODES = ("full", "scratch", "pixel_forest")


def list_places(pool):
    return {(tile.scene, tile.window) for tile in pool.tiles}


def prepare_all(job):
    return {cell: job.prepare_run(cell) for cell in job.cells}


def test_without_validation_all_modes_see_the_whole_budget(prepare, source):
    jobs = prepare_all(prepare(source, modes=MODES, labels=("4tiles",), draws=1))

    assert all(len(job.pool.tiles) == 4 for job in jobs.values())
    assert len({tuple(job.pool.tiles) for job in jobs.values()}) == 1


def test_what_is_held_out_is_held_out_of_all_modes_alike(prepare, source):
    job = prepare(source, modes=MODES, labels=("8tiles",), draws=2, validation="budget")

    for draw in range(2):
        pool = draw_pool(job.target, 32, Budget(amount=8), draw=draw)
        jobs = [job.prepare_run(cell) for cell in job.cells if cell.draw == draw]
        fitted = {tuple(item.pool.tiles) for item in jobs}
        assert len(jobs) == 3
        assert len(fitted) == 1
        networks, forest = jobs[:2], jobs[2]
        held = {tuple(item.held_out.tiles) for item in networks}
        assert len(held) == 1
        assert len(next(iter(held))) == 2
        assert {*next(iter(held)), *next(iter(fitted))} == set(pool.tiles)
        held_pixels = sum(networks[0].held_out.class_pixels)
        assert forest.num_held_out == held_pixels
        assert sum(forest.pool.class_pixels) + held_pixels == sum(pool.class_pixels)


def test_an_oracle_sees_the_val_part_and_holds_nothing_out(prepare, source):
    job = prepare(source, modes=("full", "zero_shot"), validation="oracle", draws=1)

    runs = {cell.mode: item for cell, item in prepare_all(job).items()}

    assert runs["full"].uses_oracle
    assert runs["full"].held_out is None
    assert len(runs["full"].pool.tiles) == 2
    assert not runs["zero_shot"].uses_oracle
    assert all(item.record["validation"] == "oracle" for item in runs.values())
    assert job.record["validation"] == "oracle"


def test_an_oracle_without_a_val_part_is_refused(prepare, source, make_site, tmp_path):
    split = {"block_m": 320, "train": 0.7, "val": 0.0, "test": 0.3}
    site = open_site(make_site(tmp_path, split=split))

    with pytest.raises(DataError, match="The val part of"):
        prepare(source, site=site, validation="oracle")


def test_the_labels_of_a_fold_come_from_its_own_training_part(prepare, source):
    job = prepare(source, modes=MODES, draws=1, folds=3)

    pools = {}
    for cell, item in prepare_all(job).items():
        pools.setdefault(cell.fold, set()).add(frozenset(list_places(item.pool)))
        assert item.pool.site.split.fold == cell.fold
    assert set(pools) == {0, 1, 2}
    assert all(len(found) == 1 for found in pools.values())
    assert len(set.union(*pools.values())) > 1


def test_a_site_with_few_test_blocks_is_compared_in_folds(prepare, source):
    assert prepare(source, folds="auto").folds == 5
    assert prepare(source, folds="none").folds is None
    assert prepare(source, folds="auto", validation="oracle").folds is None


def test_a_manifest_that_has_folds_says_how_many(prepare, source, make_site, tmp_path):
    split = {"block_m": 320, "folds": 3, "fold": 1}
    site = open_site(make_site(tmp_path, split=split))

    job = prepare(source, site=site, folds="auto")

    assert job.folds == 3
    assert {cell.fold for cell in job.cells} == {0, 1, 2}


def test_a_site_with_many_test_blocks_has_no_folds(
    prepare, source, make_site, tmp_path
):
    split = {"block_m": 160, "train": 0.6, "val": 0.1, "test": 0.3}
    site = open_site(make_site(tmp_path, split=split))

    assert prepare(source, site=site, folds="auto").folds is None


def test_where_a_fold_cannot_be_tested_auto_does_without_and_says_so(
    prepare, source, make_site, tmp_path, caplog
):
    split = {"block_m": 1280, "train": 0.5, "val": 0.0, "test": 0.5, "seed": 1}
    site = open_site(make_site(tmp_path, height=200, width=256, split=split))

    with caplog.at_level(logging.WARNING):
        job = prepare(source, site=site, folds="auto", labels=("1tiles",))
    assert job.folds is None
    assert "folds are not possible" in caplog.text
    with pytest.raises(DataError, match=r"Fold \d of 5 cannot be used"):
        prepare(source, site=site, folds=5, labels=("1tiles",))


def test_steps_that_were_measured_enter_the_settings_and_the_folder(prepare, source):
    job = prepare(source, modes=MODES, draws=1)
    settled = replace(job, steps=Steps(epochs=4, per_epoch={"full": 7}))

    runs = {cell.mode: settled.prepare_run(cell).settings for cell in settled.cells}

    assert (runs["full"].epochs, runs["full"].steps_per_epoch) == (4, 7)
    assert (runs["scratch"].epochs, runs["scratch"].steps_per_epoch) == (4, 10)
    names = {cell.mode: name for cell, name in job.run_names.items()}
    later = {cell.mode: name for cell, name in settled.run_names.items()}
    assert names["full"] != later["full"]
    assert names["pixel_forest"] == later["pixel_forest"]  # it takes no steps
