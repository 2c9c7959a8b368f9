"""Converted models: made once, kept where one can write, never taken when damaged."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cropseg.errors import ModelError
from cropseg.inference.engines import engine_cache
from cropseg.inference.engines.engine_cache import open_network, open_openvino_cache
from cropseg.inference.engines.openvino_engine import OpenVinoEngine

pytest.importorskip("openvino")


@pytest.fixture
def path(tmp_path):
    """A model file; what it holds does not matter to the cache."""
    path = tmp_path / "run" / "model.keras"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def converted(monkeypatch):
    """The models that were converted, by a stand-in that takes no time."""
    done = []

    def convert(model_path, folder):
        done.append(model_path)
        for name in ("network.bin", "network.xml"):
            (folder / name).write_bytes(model_path.read_bytes() + name.encode())

    monkeypatch.setattr(engine_cache, "_convert", convert)
    return done


def open_once(path: Path) -> tuple[Path, bytes]:
    """Return the folder of the network and the content of its weights."""
    with open_network(open_openvino_cache(path)) as folder:
        return folder, (folder / "network.bin").read_bytes()


def list_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_model_is_converted_once_and_kept_beside_it(path, converted):
    folder, _ = open_once(path)
    assert folder.parent == path.parent / ".model.engines"
    assert open_once(path) == (folder, b"weightsnetwork.bin")
    assert converted == [path]
    assert list_files(folder) == [".lock", "engine.json", "network.bin", "network.xml"]


def test_another_model_under_the_same_name_is_converted_anew(path, converted):
    first, _ = open_once(path)
    path.write_bytes(b"other")
    second, content = open_once(path)
    assert content == b"othernetwork.bin"
    assert first != second
    assert len(converted) == 2


def test_an_engine_of_another_version_is_not_taken(path, converted, monkeypatch):
    first, _ = open_once(path)
    monkeypatch.setattr(engine_cache, "get_openvino_version", lambda: "9999.0")
    assert open_once(path)[0] != first
    assert len(converted) == 2


@pytest.mark.parametrize("name", ["network.bin", "network.xml"])
def test_a_flipped_bit_leads_to_a_new_conversion(path, converted, name):
    folder, content = open_once(path)
    damaged = bytearray((folder / name).read_bytes())
    damaged[3] ^= 1
    (folder / name).write_bytes(damaged)
    assert open_once(path) == (folder, content)
    assert len(converted) == 2


@pytest.mark.parametrize("record", [None, "", "[]", '{"files": {}}'])
def test_what_has_no_whole_record_does_not_count(path, converted, record):
    folder, content = open_once(path)
    if record is None:
        (folder / "engine.json").unlink()  # killed before it was written
    else:
        (folder / "engine.json").write_text(record)
    assert open_once(path) == (folder, content)
    assert len(converted) == 2


@pytest.mark.usefixtures("converted")
def test_the_record_names_the_model_and_what_its_files_hold(path):
    folder, _ = open_once(path)
    record = json.loads((folder / "engine.json").read_text())
    assert record["model_sha256"] == open_openvino_cache(path).model_sha256
    assert set(record["files"]) == {"network.bin", "network.xml"}


def test_where_the_folder_cannot_be_written_the_users_cache_is_taken(
    path, converted, home
):
    (path.parent / ".model.engines").write_text("in the way")
    folder, content = open_once(path)
    assert home in folder.parents
    assert open_once(path) == (folder, content)
    assert converted == [path]


def test_where_nothing_can_be_kept_the_model_is_converted_each_time(
    path, converted, home
):
    (path.parent / ".model.engines").write_text("in the way")
    home.write_text("in the way")
    for _ in range(2):
        folder, content = open_once(path)
        assert content == b"weightsnetwork.bin"
        assert not folder.exists()
    assert len(converted) == 2


@pytest.mark.usefixtures("converted")
def test_a_disk_that_fills_up_leaves_no_entry(path, monkeypatch):
    def fill_up(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    _, content = open_once(path)
    assert content == b"weightsnetwork.bin"
    assert list_files(path.parent) == [".lock", "model.keras"]


def test_a_model_that_is_replaced_meanwhile_is_not_kept_as_the_old_one(
    path, converted, monkeypatch
):
    convert = engine_cache._convert

    def convert_another(model_path, folder):
        model_path.write_bytes(b"other")
        convert(model_path, folder)

    monkeypatch.setattr(engine_cache, "_convert", convert_another)
    with pytest.raises(ModelError, match="was replaced while it was converted"):
        open_once(path)
    assert list_files(path.parent) == [".lock", "model.keras"]
    assert converted == [path]


@pytest.mark.usefixtures("converted")
def test_what_another_process_wrote_over_is_not_taken(path, home, monkeypatch):
    keep = engine_cache._keep

    def keep_spoilt(made, folder, cache):
        keep(made, folder, cache)
        if home not in folder.parents:
            (folder / "network.bin").write_bytes(b"half of it")

    monkeypatch.setattr(engine_cache, "_keep", keep_spoilt)
    folder, content = open_once(path)
    assert home in folder.parents
    assert content == b"weightsnetwork.bin"


def test_a_conversion_that_is_killed_says_so(path, monkeypatch):
    killed = SimpleNamespace(returncode=-9, stderr="a line of TensorFlow's")
    monkeypatch.setattr(engine_cache.subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(ModelError, match=r"ended by signal 9\. .* --engine keras"):
        open_once(path)


def test_two_that_start_together_convert_once(path, monkeypatch):
    entered, done = threading.Event(), []

    def convert(model_path, folder):
        done.append(model_path)
        entered.set()
        threading.Event().wait(0.3)
        for name in ("network.bin", "network.xml"):
            (folder / name).write_bytes(b"x")

    monkeypatch.setattr(engine_cache, "_convert", convert)
    first = threading.Thread(target=open_once, args=(path,))
    first.start()
    assert entered.wait(10)
    open_once(path)
    first.join()
    assert done == [path]


def test_documents_are_kept_with_the_entry(path):
    cache = open_openvino_cache(path)
    assert cache.read("a.json") is None
    cache.write("a.json", {"a": 1})
    assert cache.read("a.json") == {"a": 1}
    (cache.folders[0] / "a.json").write_text("{")
    assert cache.read("a.json") is None


def test_documents_that_cannot_be_kept_are_no_error(path, home):
    (path.parent / ".model.engines").write_text("in the way")
    home.write_text("in the way")
    cache = open_openvino_cache(path)
    cache.write("a.json", {"a": 1})
    assert cache.read("a.json") is None


@pytest.mark.slow
def test_a_process_of_its_own_converts_a_model(model_path, bundle, tmp_path):
    path = tmp_path / "copy" / "model.keras"
    path.parent.mkdir()
    shutil.copyfile(model_path, path)
    assert OpenVinoEngine(path).card == bundle.card
    assert len(list(path.parent.glob(".model.engines/*/engine.json"))) == 1


@pytest.mark.slow
def test_what_that_process_says_is_what_the_error_says(path):
    with pytest.raises(ModelError, match=r"model\.keras is no complete \.keras"):
        open_once(path)
    assert list_files(path.parent) == [".lock", "model.keras"]
