"""The journal: a line for each scene, whatever happens to the process."""

from __future__ import annotations

import json
import resource
import signal
from dataclasses import replace

import pytest

from cropseg.errors import ResourceError
from cropseg.inference.mapping.journal import (
    JOURNAL_NAME,
    Journal,
    JournalEntry,
    read_journal,
)

DONE = JournalEntry(
    name="é east",
    fingerprint="abc",
    status="done",
    files={"east_classes.tif": 5},
    pixels={"corn": 3},
    seconds=1.5,
    engine="keras float32",
    warnings=("odd",),
)


def test_a_new_folder_has_an_empty_journal(tmp_path):
    assert read_journal(tmp_path) == ()
    assert Journal(tmp_path).find("east") is None
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append(DONE)
    journal.append(replace(DONE, name="west", status="failed", error="cut\nshort"))
    lines = (tmp_path / JOURNAL_NAME).read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["é east", "west"]
    again = Journal(tmp_path)
    found = again.find("é east")
    assert found is not None
    assert (found.pixels, found.warnings) == ({"corn": 3}, ["odd"])
    assert again.find("west").error == "cut\nshort"
    assert [entry.name for entry in again.list_done()] == ["é east"]


def test_the_last_line_of_a_scene_counts(tmp_path):
    journal = Journal(tmp_path)
    journal.append(replace(DONE, status="failed"))
    journal.append(DONE)
    journal.append(replace(DONE, kind="product", fingerprint="of a product"))
    assert journal.find(DONE.name) == DONE
    assert Journal(tmp_path).find(DONE.name).status == "done"
    assert Journal(tmp_path).find(DONE.name, kind="product").fingerprint == (
        "of a product"
    )


@pytest.mark.parametrize("num_bytes", [1, 30, -1])
def test_a_torn_last_line_is_passed_over_and_the_next_one_is_whole(num_bytes, tmp_path):
    Journal(tmp_path).append(DONE)
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:num_bytes])
    journal = Journal(tmp_path)
    assert len(read_journal(tmp_path)) == (2 if num_bytes == -1 else 1)
    journal.append(replace(DONE, name="west"))
    names = [entry.name for entry in read_journal(tmp_path)]
    assert names[0] == DONE.name
    assert names[-1] == "west"


@pytest.mark.parametrize(
    "line", [b"[1]", b"null", b"{}", b'"text"', b"\xff\xfe", b'{"name": "a"}']
)
def test_a_line_that_is_none_of_ours_is_passed_over(line, tmp_path):
    (tmp_path / JOURNAL_NAME).write_bytes(line + b"\n")
    Journal(tmp_path).append(DONE)
    assert [entry.name for entry in read_journal(tmp_path)] == [DONE.name]


def test_a_line_of_a_later_version_is_read(tmp_path):
    line = {"name": "a", "fingerprint": "f", "status": "done", "mood": "good"}
    (tmp_path / JOURNAL_NAME).write_text(json.dumps(line))
    (entry,) = read_journal(tmp_path)
    assert entry.name == "a"


def test_files_count_where_they_have_the_size_that_they_had(tmp_path):
    assert not DONE.has_files(tmp_path)
    path = tmp_path / "east_classes.tif"
    path.write_bytes(b"12345")
    assert DONE.has_files(tmp_path)
    assert not replace(DONE, status="failed").has_files(tmp_path)
    path.write_bytes(b"1234")
    assert not DONE.has_files(tmp_path)


def test_a_full_disk_is_told_and_the_journal_stays_readable(tmp_path):
    journal = Journal(tmp_path)
    journal.append(DONE)
    size = (tmp_path / JOURNAL_NAME).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(ResourceError, match="free space"):
            journal.append(replace(DONE, name="west"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Journal(tmp_path).find("west") is None
    journal.append(replace(DONE, name="north"))
    names = [entry.name for entry in read_journal(tmp_path)]
    assert names == [DONE.name, "north"]
