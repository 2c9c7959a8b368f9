"""What a file is, told by its content: soon, in little memory, without Keras."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cropseg.errors import (
    ModelError,
    ModelFileNotFoundError,
    ResourceError,
    UnsafeFileError,
)
from cropseg.models.header import read_header

LEGACY = Path(__file__).parents[3] / "shared" / "data" / "legacy_keras"
NAIP = LEGACY / "naip_unet_keras2.3.1.h5"
needs_legacy = pytest.mark.skipif(
    not NAIP.exists(), reason="the old Keras files lie beside the project only"
)

MEASURE = """
import sys
sys.modules["keras"] = None
from cropseg.errors import CropsegError
from cropseg.models.header import read_header
try:
    read_header(sys.argv[1])
except CropsegError as error:
    # Not `ru_maxrss`, which begins with the peak of the process that started this.
    status = open("/proc/self/status").read()
    print(error.exit_code, int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""
"""Reads a header as the command line does at first, with no Keras to import."""


@pytest.fixture
def foreign_path(build_unet, tmp_path):
    path = tmp_path / "foreign.keras"
    build_unet().save(path)
    return path


def change_config(path, edit):
    """Edit the config of a `.keras` file."""
    part = path.with_name("changed.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(part, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit(config["config"]["layers"])
                content = json.dumps(config).encode()
            new.writestr(name, content)
    part.replace(path)
    return path


def test_a_foreign_archive_tells_what_it_takes_and_gives(foreign_path):
    header = read_header(foreign_path)
    assert header.kind == "keras"
    assert header.keras_version.startswith("3.")
    assert (header.num_bands, header.num_classes) == (4, 3)
    assert header.size.num_weights >= header.weights.num_values


def test_a_bundle_is_one(bundle_path):
    header = read_header(bundle_path)
    assert (header.kind, header.num_bands, header.num_classes) == ("bundle", 5, 3)


def test_weights_only_do_not_tell_what_they_take(build_unet, tmp_path):
    path = tmp_path / "net.weights.h5"
    build_unet().save_weights(path)
    header = read_header(path)
    assert (header.kind, header.num_bands, header.config) == ("weights", None, None)


@needs_legacy
@pytest.mark.parametrize(
    ("name", "kind", "bands", "classes"),
    [
        (NAIP.name, "hdf5", 4, 5),
        ("landuse_unet_keras2.15.h5", "hdf5", 3, 7),
        ("unet_weights_only_keras2.3.0.h5", "weights", None, None),
    ],
)
def test_old_files_are_what_they_are(name, kind, bands, classes):
    header = read_header(LEGACY / name)
    assert (header.kind, header.num_bands, header.num_classes) == (kind, bands, classes)


@needs_legacy
def test_the_content_decides_and_not_the_ending(foreign_path, tmp_path):
    renamed = tmp_path / "model.keras"
    shutil.copy(NAIP, renamed)
    assert read_header(renamed).kind == "hdf5"
    foreign_path.rename(tmp_path / "model.h5")
    assert read_header(tmp_path / "model.h5").kind == "keras"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4166232\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "It is empty"),
        (POINTER, "git lfs pull"),
        (b"\n <!DOCTYPE html>\n<html><body>Not found", "a web page"),
        (b"<html>", "a web page"),
        (b"\x1f\x8b\x08rest", "unpack it"),
        (b"\x80\x04\x95rest", "pickle"),
        (b'{"class_name": "Functional"}', "JSON"),
        (np.random.default_rng(1).bytes(4000), "another format|other format"),
    ],
)
def test_what_is_no_model_is_told_by_what_it_is(content, words, tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words) as error:
        read_header(path)
    assert error.value.exit_code == 4


def test_a_missing_file_is_told_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(ModelFileNotFoundError, match=str(tmp_path)):
        read_header(tmp_path / "model.h5")


@pytest.mark.parametrize(
    ("inside", "words"),
    [("model.keras", r"Give .*model\.keras"), ("saved_model.pb", "SavedModel")],
)
def test_a_folder_is_told_with_what_to_give(inside, words, tmp_path):
    (tmp_path / inside).write_bytes(b"x")
    with pytest.raises(ModelError, match=words):
        read_header(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.h5")
    with pytest.raises(ModelError, match="no regular file"):
        read_header(tmp_path / "model.h5")


def test_a_file_that_may_not_be_read_is_told(foreign_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResourceError, match="permission"):
        read_header(foreign_path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_archive_that_is_cut_short_is_told(share, foreign_path):
    content = foreign_path.read_bytes()
    foreign_path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="no complete"):
        read_header(foreign_path)


def add_lambda(layers):
    layers[1] |= {"class_name": "Lambda", "config": {"name": "down_a", "function": 1}}


def add_stranger(layers):
    layers[1] |= {"module": "their.package", "class_name": "Attention"}


def blow_up(layers):
    layers[1]["config"]["filters"] = 10**9


def blow_up_inside(layers):
    layers[1]["config"]["kernel_size"] = [50_000, 50_000]


def make_shape_bomb(path):
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", (60_000, 60_000), "float32", chunks=(100, 100))
    return path


def make_zip_bomb(path):
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/more", bytes(2 * 10**8))
    return path


HOSTILE = {
    "lambda": lambda path: change_config(path, add_lambda),
    "stranger": lambda path: change_config(path, add_stranger),
    "filters": lambda path: change_config(path, blow_up),
    "kernel": lambda path: change_config(path, blow_up_inside),
    "shapes": make_shape_bomb,
    "zip": make_zip_bomb,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_as_unsafe(name, foreign_path):
    path = HOSTILE[name](foreign_path)
    with pytest.raises(UnsafeFileError) as error:
        read_header(path)
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, 5) for name in HOSTILE),
        ("html", 4),
        ("truncated", 4),
        ("pointer", 4),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_are_refused_in_five_seconds_and_500_mb(name, code, foreign_path):
    if name in HOSTILE:
        HOSTILE[name](foreign_path)
    else:
        content = {
            "html": b"<html>",
            "truncated": foreign_path.read_bytes()[:-500],
            "pointer": POINTER,
        }
        foreign_path.write_bytes(content[name])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(foreign_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,  # five seconds where nothing else runs
    )
    assert not done.stderr
    answer, peak = map(int, done.stdout.split())
    assert answer == code
    assert peak < 500


def test_a_network_that_claims_a_little_more_than_its_file_is_refused(foreign_path):
    def double(layers):
        for layer in layers[1:]:
            if "filters" in layer["config"]:
                layer["config"]["filters"] *= 400

    with pytest.raises(UnsafeFileError, match="the file holds"):
        read_header(change_config(foreign_path, double))
