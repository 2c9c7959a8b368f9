"""What a batch keeps of its scenes, and when it stops."""

from __future__ import annotations

import pytest

from cropseg.errors import DataError, ResourceError
from cropseg.inference.mapping.batch import SceneResult
from cropseg.inference.mapping.cluster_tasks import DeadlyBandError
from cropseg.inference.mapping.record import Recorder


@pytest.fixture
def note_all(make_job, tmp_path):
    """Return a function that notes scenes which failed."""
    recorder = Recorder(tmp_path, ())

    def note(errors):
        for index, error in enumerate(errors):
            scene = make_job(f"s{index}", 9, 9)
            recorder.note(SceneResult(scene=scene, error=error))
        return recorder

    return note


def test_scenes_in_a_row_that_cannot_be_written_end_a_batch(note_all):
    full = ResourceError("The disk is full.")
    with pytest.raises(ResourceError, match="3 scenes in a row could not be written"):
        note_all([full, DataError("damaged"), full, full, full])


def test_scenes_that_end_their_workers_do_not(note_all):
    """Suspects are tried one after the other, at the end; others wait behind them."""
    deadly = DeadlyBandError("It ended 3 worker processes.")
    assert len(note_all([deadly] * 5).failures) == 5
    assert deadly.exit_code == 6
