"""Files are whole or absent, and a folder belongs to one run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cropseg import files
from cropseg.errors import ConflictError, DataFileNotFoundError, ResourceError
from cropseg.files import (
    claim_out_dir,
    hash_file,
    hash_settings,
    write_json,
    write_text,
    write_whole,
    write_yaml,
)

SETTINGS = {"mode": "full", "seed": 0, "tiles": {"size": 64, "context": 8}}

HOLDER = """
import sys
from pathlib import Path
from cropseg.files import claim_out_dir
with claim_out_dir(Path(sys.argv[1]), {"seed": 0}):
    print("held", flush=True)
    sys.stdin.read()
"""


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(error: BaseException):
    def raise_error(*_args, **_kwargs):
        raise error

    return raise_error


# write_whole


def test_a_file_appears_under_its_name_at_the_end_only(tmp_path):
    path = tmp_path / "new" / "folders" / "a.json"
    with write_whole(path) as part:
        part.write_text("whole")
        assert part.parent == path.parent
        assert part.name.startswith(".")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list_names(path.parent) == ["a.json"]


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("map.tif", ".tif"),
        ("model.weights.h5", ".weights.h5"),
        ("model.keras", ".keras"),
        ("LICENSE", ""),
    ],
)
def test_the_hidden_file_keeps_the_ending_that_libraries_choose_by(
    tmp_path, name, ending
):
    with write_whole(tmp_path / name) as part:
        part.write_text("x")
        assert part.name.endswith(f".part{ending}")
    assert list_names(tmp_path) == [name]


def test_hidden_names_of_different_files_differ(tmp_path):
    names = ["a", "a.tif", "a.b.tif", "a.b", "b.tif", "a.tif.json"]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(write_whole(tmp_path / name)) for name in names]
        for part, name in zip(parts, names, strict=True):
            part.write_text(name)
    assert {name: (tmp_path / name).read_text() for name in names} == {
        name: name for name in names
    }


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit()])
def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with write_whole(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


def test_a_file_that_fails_its_check_does_not_replace_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []

    def refuse(part: Path) -> None:
        seen.append(part.read_text())
        raise ValueError("not complete")

    with (
        pytest.raises(ValueError, match="not complete"),
        write_whole(path, verify=refuse) as part,
    ):
        part.write_text("half")
    assert seen == ["half"]
    assert path.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


def test_a_checked_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with write_whole(path, verify=lambda part: part.stat()) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_leftover_of_a_killed_process_is_not_written_into(tmp_path):
    with write_whole(tmp_path / "a.gpkg") as part:
        part.write_text("x")
    part.write_text("leftover")
    with write_whole(tmp_path / "a.gpkg") as part:
        assert not part.exists()
        part.write_text("new")
    assert list_names(tmp_path) == ["a.gpkg"]


def test_what_libraries_put_beside_a_file_goes_with_it(tmp_path):
    def write_and_fail() -> None:
        with write_whole(tmp_path / "a.gpkg") as part:
            part.write_text("half")
            part.with_name(part.name + "-journal").write_text("journal")
            part.with_name(part.name + ".aux.xml").write_text("statistics")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        write_and_fail()
    assert list_names(tmp_path) == []


def test_a_path_below_a_file_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(ResourceError, match=f"Cannot write {path}: .* Choose"):
            write_text(path, "new")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_where_nothing_can_be_made_is_a_resource_error():
    with pytest.raises(ResourceError, match=r"Cannot write /proc/cropseg/a\.txt"):
        write_text(Path("/proc/cropseg/a.txt"), "new")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_full_or_forbidden_disk_keeps_the_old_file(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a.txt"
    path.write_text("old")
    error = OSError(code, os.strerror(code))
    monkeypatch.setattr(
        *{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], fail(error)
    )
    with pytest.raises(ResourceError, match=os.strerror(code)) as caught:
        write_text(path, "new")
    assert caught.value.__cause__ is error
    assert path.read_text() == "old"
    assert list_names(tmp_path) == ["a.txt"]


def test_a_full_disk_inside_the_block_is_a_resource_error(tmp_path):
    with (
        pytest.raises(ResourceError, match="No space left"),
        write_whole(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_input_missing_inside_the_block_is_not_blamed_on_the_output(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"input\.tif") as caught,
        write_whole(tmp_path / "a.txt") as part,
    ):
        part.write_text((tmp_path / "input.tif").read_text())
    assert not isinstance(caught.value, ResourceError)


@pytest.mark.parametrize("kind", [DataFileNotFoundError, ConflictError, ResourceError])
def test_our_own_errors_pass_through_unchanged(tmp_path, kind):
    error = kind("said already")
    with pytest.raises(kind) as caught, write_whole(tmp_path / "a.txt"):
        raise error
    assert caught.value is error


def test_file_and_folder_are_flushed_around_the_rename(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files, "_flush", lambda path: calls.append(path.name))
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda *paths: calls.append("rename") or replace(*paths)
    )
    write_text(tmp_path / "a.txt", "x")
    assert calls == [".a.part.txt", "rename", tmp_path.name]


# Documents and hashes


def test_documents_read_back_as_they_were_written(tmp_path):
    document = {"site": "Brændgård", "b": [1, 2.5, None], "a": {"on": True}}
    write_json(tmp_path / "a.json", document)
    write_yaml(tmp_path / "a.yaml", document)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == document
    text = (tmp_path / "a.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == document
    assert "Brændgård" in text
    assert text.index("site") < text.index("b:") < text.index("a:")


def test_rows_of_numbers_stay_on_a_line_and_texts_as_they_are(tmp_path):
    document = {"matrix": [[1, 20], [-3, 4.5e-07]], "text": "[\n  1,\n  2\n]", "e": []}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == document
    assert "\n    [1, 20],\n    [-3, 4.5e-07]\n" in text


def test_a_score_that_is_not_a_number_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"miou": float("nan")})
    assert list_names(tmp_path) == []


def test_settings_hash_by_value_and_not_by_order():
    one = hash_settings({"a": 1, "b": {"c": [1, 2], "d": None}})
    assert one == hash_settings({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert one != hash_settings({"a": 1, "b": {"c": [2, 1], "d": None}})
    assert len(one) == 12
    assert int(one, 16) >= 0


def test_a_file_hash_is_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# claim_out_dir


def test_a_new_folder_gets_the_settings_and_loses_the_lock(tmp_path):
    out_dir = tmp_path / "runs" / "a"
    with claim_out_dir(out_dir, SETTINGS):
        assert (out_dir / ".lock").exists()
        assert yaml.safe_load((out_dir / "run.yaml").read_text()) == SETTINGS
        (out_dir / "model.keras").write_text("m")
    assert list_names(out_dir) == ["model.keras", "run.yaml"]


def test_the_record_may_have_another_name(tmp_path):
    for _ in range(2):
        with claim_out_dir(tmp_path, SETTINGS, record="demo.yaml"):
            pass
    assert list_names(tmp_path) == ["demo.yaml"]


def test_the_same_settings_go_on_with_what_is_there(tmp_path):
    with claim_out_dir(tmp_path, SETTINGS):
        (tmp_path / "model.keras").write_text("first")
    before = (tmp_path / "run.yaml").stat()
    with claim_out_dir(tmp_path, dict(reversed(SETTINGS.items()))):
        assert (tmp_path / "model.keras").read_text() == "first"
    after = (tmp_path / "run.yaml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# Control characters and line separators are line breaks to YAML, not text.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
DOCUMENTS = st.dictionaries(
    TEXT,
    st.recursive(
        SCALARS,
        lambda values: st.lists(values) | st.dictionaries(st.text("ab:#1"), values),
        max_leaves=8,
    ),
    max_size=4,
)


@given(settings=DOCUMENTS)
def test_any_settings_equal_themselves_after_a_round_trip(tmp_path_factory, settings):
    out_dir = tmp_path_factory.mktemp("run")
    for _ in range(2):
        with claim_out_dir(out_dir, settings):
            pass


def test_other_settings_are_refused_and_every_change_is_named(tmp_path):
    with claim_out_dir(tmp_path, SETTINGS):
        (tmp_path / "model.keras").write_text("first")
    changed = {"mode": "full", "seed": 1, "tiles": {"size": 128, "context": 8}, "x": 5}
    with pytest.raises(ConflictError) as caught, claim_out_dir(tmp_path, changed):
        pytest.fail("the block ran")
    message = str(caught.value)
    assert "seed was 0, is 1; tiles.size was 64, is 128; x was None, is 5" in message
    assert "mode" not in message
    assert "context" not in message
    assert "--overwrite" in message
    assert list_names(tmp_path) == ["model.keras", "run.yaml"]
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == SETTINGS


@pytest.mark.parametrize("new", [SETTINGS, {"seed": 1}])
def test_overwrite_empties_the_folder(tmp_path, new):
    out_dir = tmp_path / "run"
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "scene.tif").write_text("pixels")
    with claim_out_dir(out_dir, SETTINGS):
        (out_dir / "checkpoints").mkdir()
        (out_dir / "checkpoints" / "1.npz").write_text("c")
        (out_dir / "model.keras").write_text("m")
        (out_dir / "scenes").symlink_to(kept)
    with claim_out_dir(out_dir, new, overwrite=True):
        assert list_names(out_dir) == [".lock", "run.yaml"]
        assert yaml.safe_load((out_dir / "run.yaml").read_text()) == new
    assert list_names(kept) == ["scene.tif"]


def test_an_overwrite_that_stops_half_way_can_be_called_again(tmp_path, monkeypatch):
    with claim_out_dir(tmp_path, SETTINGS):
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "z.txt").write_text("z")
    unlink = Path.unlink

    def refuse(path: Path, **options) -> None:
        if path.name == "z.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with (
            pytest.raises(ResourceError, match="Permission denied"),
            claim_out_dir(tmp_path, {"seed": 1}, overwrite=True),
        ):
            pytest.fail("the block ran")
    assert list_names(tmp_path) == ["run.yaml", "z.txt"]
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == SETTINGS
    with claim_out_dir(tmp_path, {"seed": 1}, overwrite=True):
        pass
    assert list_names(tmp_path) == ["run.yaml"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_files_of_someone_else_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.odt").write_text("years of work")
    (tmp_path / "run.yaml").mkdir()
    with (
        pytest.raises(ConflictError, match="holds 2 files or folders, such as"),
        claim_out_dir(tmp_path, SETTINGS, overwrite=overwrite),
    ):
        pytest.fail("the block ran")
    assert list_names(tmp_path) == ["run.yaml", "thesis.odt"]


def test_what_a_kill_during_the_first_write_leaves_is_no_hindrance(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.part.yaml").write_text("mode: fu")
    with claim_out_dir(tmp_path, SETTINGS):
        pass
    assert list_names(tmp_path) == ["run.yaml"]


@pytest.mark.parametrize("content", [b"a: [", b"", b"- 1\n", b"\xff\xfe\xfa"])
def test_a_damaged_record_is_a_conflict_that_overwrite_mends(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with (
        pytest.raises(ConflictError, match=r"run\.yaml .* cannot be read: .*overwrite"),
        claim_out_dir(tmp_path, SETTINGS),
    ):
        pytest.fail("the block ran")
    assert (tmp_path / "run.yaml").read_bytes() == content
    with claim_out_dir(tmp_path, SETTINGS, overwrite=True):
        pass
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == SETTINGS


def test_settings_that_are_no_json_make_no_folder(tmp_path):
    for value in (float("nan"), tmp_path):
        with (
            pytest.raises((TypeError, ValueError)),
            claim_out_dir(tmp_path / "run", {"a": value}),
        ):
            pytest.fail("the block ran")
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_run_that_wrote_nothing_leaves_no_trace(tmp_path, error):
    with pytest.raises(type(error)), claim_out_dir(tmp_path / "x" / "run", SETTINGS):
        raise error
    assert list_names(tmp_path) == []


def test_an_empty_folder_of_the_user_outlives_a_run_that_wrote_nothing(tmp_path):
    with pytest.raises(ValueError, match="no"), claim_out_dir(tmp_path, SETTINGS):
        raise ValueError("no")
    assert tmp_path.is_dir()
    assert list_names(tmp_path) == []


def test_a_run_that_wrote_something_can_go_on_after_an_error(tmp_path):
    def write_and_fail() -> None:
        with claim_out_dir(tmp_path / "run", SETTINGS):
            (tmp_path / "run" / "history.csv").write_text("step,loss\n")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_and_fail()
    assert list_names(tmp_path / "run") == ["history.csv", "run.yaml"]
    with claim_out_dir(tmp_path / "run", SETTINGS):
        pass


def test_an_error_on_the_second_call_keeps_the_first_run(tmp_path):
    with claim_out_dir(tmp_path / "run", SETTINGS):
        pass
    with (
        pytest.raises(ValueError, match="no"),
        claim_out_dir(tmp_path / "run", SETTINGS),
    ):
        raise ValueError("no")
    assert list_names(tmp_path / "run") == ["run.yaml"]


def test_a_folder_is_held_against_another_process_until_that_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        for overwrite in (False, True):
            with (
                pytest.raises(ConflictError, match="is in use by another run"),
                claim_out_dir(tmp_path / "run", {"seed": 0}, overwrite=overwrite),
            ):
                pytest.fail("the block ran")
        assert list_names(tmp_path / "run") == [".lock", "run.yaml"]
    finally:
        holder.kill()
        holder.communicate()
    with claim_out_dir(tmp_path / "run", {"seed": 0}):
        pass
    assert list_names(tmp_path / "run") == ["run.yaml"]


def test_a_folder_is_held_against_the_same_process(tmp_path):
    with claim_out_dir(tmp_path, SETTINGS):
        with (
            pytest.raises(ConflictError, match="is in use"),
            claim_out_dir(tmp_path, SETTINGS),
        ):
            pytest.fail("the block ran")
        assert (tmp_path / ".lock").exists()


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Between opening and locking, the last holder ends and removes the file."""
    flock = fcntl.flock
    calls = []

    def remove_then_flock(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "run" / ".lock").unlink()
            (tmp_path / "run").rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_then_flock)
    with claim_out_dir(tmp_path / "run", SETTINGS):
        assert len(calls) == 2
        assert (tmp_path / "run" / ".lock").exists()
        with pytest.raises(ConflictError), claim_out_dir(tmp_path / "run", SETTINGS):
            pytest.fail("the block ran")


def test_a_disk_without_locks_is_a_resource_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fail(OSError(errno.ENOLCK, "No locks")))
    with (
        pytest.raises(ResourceError, match=r"Cannot lock .*No locks"),
        claim_out_dir(tmp_path, SETTINGS),
    ):
        pytest.fail("the block ran")


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    paths = [tmp_path / "file", tmp_path / "file" / "run"]
    if Path("/proc/self").exists():
        paths.append(Path("/proc/cropseg/run"))
    for path in paths:
        with (
            pytest.raises(ResourceError, match="Cannot "),
            claim_out_dir(path, SETTINGS),
        ):
            pytest.fail("the block ran")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_that_the_user_removes_during_the_run_is_no_second_error(tmp_path):
    with claim_out_dir(tmp_path / "run", SETTINGS):
        for name in list_names(tmp_path / "run"):
            (tmp_path / "run" / name).unlink()
        (tmp_path / "run").rmdir()
    assert list_names(tmp_path) == []
