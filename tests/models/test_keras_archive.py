"""The header of a `.keras` archive: read before Keras sees it."""

from __future__ import annotations

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from cropseg.errors import ModelError, ModelFileNotFoundError, UnsafeFileError
from cropseg.models.keras_archive import read_archive_header

CONFIG = {"class_name": "Functional", "config": {"name": "net", "layers": []}}


def make_weights(**options):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "last"
        group["0"] = np.zeros((3, 2), "float32")
        if options:
            group.create_dataset("1", **options)
    return content.getvalue()


def write_archive(path, *, method=zipfile.ZIP_STORED, **members):
    """Write an archive; a member None is left out."""
    content = {
        "metadata.json": json.dumps({"keras_version": "3.7.0"}),
        "config.json": json.dumps(CONFIG),
        "model.weights.h5": make_weights(),
    }
    content |= {name.replace("__", "."): value for name, value in members.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in content.items():
            if value is not None:
                archive.writestr(name, value)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.keras"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_tells_its_network_weights_and_version(method, path):
    header = read_archive_header(write_archive(path, method=method))
    assert header.config == CONFIG
    assert header.keras_version == "3.7.0"
    assert not header.has_card
    (layer,) = header.weights.layers
    assert (layer.name, layer.kind, layer.arrays[0].shape) == ("last", "dense", (3, 2))


def test_a_bundle_is_known_by_its_card(bundle_path):
    header = read_archive_header(bundle_path)
    assert header.has_card
    assert header.config["class_name"] == "Functional"
    assert header.weights.num_values > 1000


def test_a_missing_file_is_told(path):
    with pytest.raises(ModelFileNotFoundError):
        read_archive_header(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"config__json": None}, "without config.json"),
        ({"model__weights__h5": None}, "without model.weights.h5"),
        (
            {"config__json": None, "archive/data__pkl": b"x"},
            "looks like a model of PyTorch",
        ),
        ({"config__json": None, "model__keras": b"x"}, "give the model inside"),
    ],
)
def test_another_kind_of_archive_is_told(members, words, path):
    with pytest.raises(ModelError, match=words):
        read_archive_header(write_archive(path, **members))


@pytest.mark.parametrize("name", ["../evil.h5", "/etc/evil", "a/../../b", "C:/x"])
def test_members_outside_of_the_folder_are_refused(name, path):
    write_archive(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(UnsafeFileError, match="outside of its folder"):
        read_archive_header(path)


def test_a_member_that_is_there_twice_is_refused(path):
    write_archive(path)
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("config.json", "{}")
    with pytest.raises(UnsafeFileError, match="twice"):
        read_archive_header(path)


def test_a_zip_bomb_is_refused_unread(path):
    bomb = bytes(300 * 2**20)
    write_archive(path, method=zipfile.ZIP_DEFLATED, assets=bomb)
    assert path.stat().st_size < 400_000
    with pytest.raises(UnsafeFileError, match="members declare") as error:
        read_archive_header(path)
    assert error.value.exit_code == 5


def test_arrays_that_the_archive_cannot_hold_are_refused(path):
    weights = make_weights(shape=(50_000, 50_000), dtype="float32", chunks=(10, 10))
    with pytest.raises(UnsafeFileError, match="arrays up to"):
        read_archive_header(write_archive(path, model__weights__h5=weights))


def test_weights_that_are_cut_short_are_told(path):
    weights = make_weights()[:-100]
    with pytest.raises(ModelError, match="no complete HDF5 file"):
        read_archive_header(write_archive(path, model__weights__h5=weights))


def test_a_network_as_long_as_no_network_is_refused(path):
    rng = np.random.default_rng(0)
    text = json.dumps({**CONFIG, "more": rng.bytes(9 * 2**20).hex()})
    with pytest.raises(UnsafeFileError, match="at most"):
        read_archive_header(write_archive(path, config__json=text))


def test_a_flipped_bit_is_found_where_it_is_read(path):
    content = bytearray(write_archive(path).read_bytes())
    content[content.index(b'"net"') + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="Bad CRC"):
        read_archive_header(path)
