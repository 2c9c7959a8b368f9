"""Jobs: bands of whole tile rows, the same for everyone, and plain values."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cropseg.inference.mapping import jobs
from cropseg.inference.mapping.jobs import cut_scene


@pytest.mark.parametrize(("height", "width"), [(67, 103), (16, 20), (1, 70), (300, 9)])
@pytest.mark.parametrize("pixels", [1, 3_000, 10**9])
def test_bands_are_whole_tile_rows_and_partition_the_scene(
    height, width, pixels, make_job, monkeypatch
):
    monkeypatch.setattr(jobs, "BAND_PIXELS", pixels)
    job = make_job("scene", height, width)
    times = np.zeros((height, width), int)
    bands = cut_scene(job, in_parts=True)
    for index, band in enumerate(bands):
        assert band.index == index
        assert band.window.row % job.shape.core_size == 0
        assert band.window.width == width
        times[band.window.slices_in(job.grid.window)] += 1
    assert (times == 1).all()
    if pixels == 1:
        assert len(bands) == -(-height // 16)
    if pixels == 10**9:
        assert len(bands) == 1


def test_bands_have_nearly_the_same_height(make_job, monkeypatch):
    monkeypatch.setattr(jobs, "BAND_PIXELS", 16 * 5 * 10)  # five rows of tiles
    heights = [band.window.height for band in cut_scene(make_job("scene", 16 * 11, 10))]
    assert heights == [64, 64, 48]


def test_only_a_scene_of_one_band_on_its_own_grid_needs_no_parts(make_job, monkeypatch):
    (whole,) = cut_scene(make_job("a", 40, 30))
    assert whole.is_whole
    (elsewhere,) = cut_scene(make_job("a", 40, 30), in_parts=True)
    assert not elsewhere.is_whole
    (resampled,) = cut_scene(make_job("b", 40, 30, gsd_m=0.5))
    assert not resampled.is_whole
    (kept,) = cut_scene(make_job("b", 40, 30, gsd_m=0.5, on_model_grid=True))
    assert kept.is_whole
    monkeypatch.setattr(jobs, "BAND_PIXELS", 1)
    assert not any(band.is_whole for band in cut_scene(make_job("a", 40, 30)))


def test_jobs_can_be_pickled(make_job):
    for band in cut_scene(make_job("scene", 40, 30, confidence=True)):
        again = pickle.loads(pickle.dumps(band))  # noqa: S301 - made here
        assert again == band
        assert again.scene.get_path(again.scene.layers[1]).name == (
            "scene_confidence.tif"
        )


def test_a_band_is_done_when_all_its_parts_are_there(make_job):
    (band,) = cut_scene(make_job("scene", 40, 30, confidence=True), in_parts=True)
    classes, confidence = map(band.get_part_path, band.scene.layers)
    assert classes.parent == confidence.parent
    assert classes.parent.is_relative_to(band.scene.out_dir / ".parts")
    assert not band.is_done
    classes.parent.mkdir(parents=True)
    classes.touch()
    assert not band.is_done
    confidence.touch()
    assert band.is_done


def test_other_content_has_other_parts(make_job):
    old = cut_scene(make_job("scene", 40, 30), in_parts=True)[0]
    new = cut_scene(make_job("scene", 40, 30, fingerprint="new"), in_parts=True)[0]
    assert old.get_part_path(old.scene.layers[0]) != new.get_part_path(
        new.scene.layers[0]
    )
