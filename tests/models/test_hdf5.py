"""The header of an HDF5 model: read without an array, and refused where unsafe."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from cropseg.errors import ModelError, UnsafeFileError
from cropseg.models.hdf5 import read_hdf5_header

LEGACY = Path(__file__).parents[3] / "shared" / "data" / "legacy_keras"
NAIP = LEGACY / "naip_unet_keras2.3.1.h5"
needs_legacy = pytest.mark.skipif(
    not NAIP.exists(), reason="the old Keras files lie beside the project only"
)


def read(path):
    return read_hdf5_header(path, path=path, num_bytes=path.stat().st_size)


@pytest.fixture
def weights_path(tmp_path):
    """A file of weights only, as Keras 2 writes it."""
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv", b"pool", b"inner"]
        file.attrs["keras_version"] = b"2.4.0"
        file.create_group("pool").attrs["weight_names"] = np.zeros(0)
        conv = file.create_group("conv")
        conv.attrs["weight_names"] = [b"scope/conv/kernel:0", b"scope/conv/bias:0"]
        conv["scope/conv/kernel:0"] = np.zeros((3, 3, 2, 4), "float32")
        conv["scope/conv/bias:0"] = np.zeros(4, "float32")
        inner = file.create_group("inner")
        inner.attrs["weight_names0"] = [b"a/kernel:0"]
        inner.attrs["weight_names1"] = [b"b/kernel:0"]
        for name in "ab":
            inner[f"{name}/kernel:0"] = np.zeros((1, 1, 4, 2), "float32")
    return path


def change(path, edit):
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def test_layers_of_keras_2_come_with_names_and_shapes(weights_path):
    header = read(weights_path)
    assert header.config is None
    assert header.keras_version == "2.4.0"
    assert [layer.name for layer in header.layers] == ["conv", "inner"]
    kernel, bias = header.layers[0].arrays
    assert (kernel.name, kernel.layer, kernel.shape) == ("kernel", "conv", (3, 3, 2, 4))
    assert (bias.name, bias.shape) == ("bias", (4,))
    assert header.num_values == 72 + 4 + 16


def test_names_that_keras_split_over_two_attributes_are_joined(weights_path):
    inner = read(weights_path).layers[1]
    assert [array.layer for array in inner.arrays] == ["a", "b"]


def test_layers_of_keras_3_come_with_class_and_recorded_name(tmp_path):
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for place, name in (
            ("layers/conv2d", "first"),
            ("layers/conv2d_1", None),
            ("layers/functional/layers/dense_2", "nested"),
        ):
            group = file.create_group(f"{place}/vars")
            if name:
                group.attrs["name"] = name
            for number in range(11):
                group[str(number)] = np.zeros(number + 1, "float32")
        file.create_group("layers/pooling/vars")
    layers = {layer.path: layer for layer in read(path).layers}
    assert {p: (x.name, x.kind) for p, x in layers.items()} == {
        "/layers/conv2d": ("first", "conv2d"),
        "/layers/conv2d_1": (None, "conv2d"),
        "/layers/functional/layers/dense_2": ("nested", "dense"),
    }
    sizes = [array.shape[0] for array in layers["/layers/conv2d"].arrays]
    assert sizes == list(range(1, 12))  # 10 comes after 9, not after 1


@needs_legacy
@pytest.mark.parametrize(
    ("name", "version", "has_config", "num_values", "num_layers"),
    [
        (NAIP.name, "2.3.1", True, 480_133, 59),
        ("landuse_unet_keras2.15.h5", "2.15.0", True, 118_375, 11),
        ("unet_weights_only_keras2.3.0.h5", "2.3.0", False, 120_825, 18),
    ],
)
def test_old_files_are_what_they_are(name, version, has_config, num_values, num_layers):
    header = read(LEGACY / name)
    assert header.keras_version == version
    assert (header.config is not None) == has_config
    assert (header.num_values, len(header.layers)) == (num_values, num_layers)


@needs_legacy
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_told(share, tmp_path):
    content = NAIP.read_bytes()
    path = tmp_path / "model.h5"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="no complete HDF5 file"):
        read(path)


def test_a_file_of_something_else_is_told_with_what_it_has(tmp_path):
    path = tmp_path / "data.h5"
    change(path, lambda file: file.create_dataset("temperature", data=[1.0]))
    with pytest.raises(ModelError, match=r"no model of Keras: it has temperature"):
        read(path)


def test_texts_in_place_of_numbers_are_refused(weights_path):
    def edit(file):
        del file["conv/scope/conv/bias:0"]
        file["conv/scope/conv/bias:0"] = ["a", "b"]

    with pytest.raises(ModelError, match="not numbers"):
        read(change(weights_path, edit))


def link_outside(file):
    file["conv/more"] = h5py.ExternalLink("/etc/passwd", "/x")


def link_inside(file):
    file["conv/more"] = h5py.SoftLink("/inner")


def link_in_circles(file):
    file["conv/more"] = file["conv"]


def store_outside(file):
    file.create_dataset("conv/more", (8,), "uint8", external=[("/etc/hostname", 0, 8)])


def map_virtually(file):
    layout = h5py.VirtualLayout((4,), "float32")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (4,))
    file.create_virtual_dataset("conv/more", layout)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (link_outside, "link at /conv/more"),
        (link_inside, "link at /conv/more"),
        (link_in_circles, "no tree"),
        (store_outside, "from another file"),
        (map_virtually, "from another file"),
    ],
)
def test_what_points_elsewhere_is_refused_as_unsafe(edit, words, weights_path):
    with pytest.raises(UnsafeFileError, match=words) as error:
        read(change(weights_path, edit))
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (40_000, 40_000), "chunks": (100, 100)},  # nothing of it is stored
        {"shape": (40_000, 40_000)},
        {"data": np.zeros(30_000_000, "uint8"), "compression": "gzip"},
    ],
)
def test_arrays_larger_than_the_file_can_hold_are_refused(options, weights_path):
    def edit(file):
        file.create_dataset("conv/more", **{"dtype": "uint8", **options})

    with pytest.raises(UnsafeFileError, match="declare"):
        read(change(weights_path, edit))
    assert weights_path.stat().st_size < 100_000


def test_compressed_weights_are_read(weights_path):
    values = np.round(np.random.default_rng(0).normal(size=100_000), 2)

    def edit(file):
        file.create_dataset("conv/x", data=values, compression="gzip")

    assert read(change(weights_path, edit)).num_values == 92


def test_optimizer_state_is_not_looked_at(weights_path):
    def edit(file):
        file.create_dataset("optimizer_weights/m", (40_000, 40_000), "float32")

    assert read(change(weights_path, edit)).num_values == 92


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"config": {}}'])
def test_a_network_that_is_none_is_told(text, weights_path):
    def edit(file):
        file.attrs["model_config"] = text

    with pytest.raises(ModelError, match="damaged"):
        read(change(weights_path, edit))


def test_a_network_nested_without_end_is_refused(weights_path):
    def edit(file):
        file.attrs.create("model_config", "[" * 60_000)

    with pytest.raises(UnsafeFileError, match="nested"):
        read(change(weights_path, edit))


def test_a_full_model_comes_with_its_network(weights_path):
    def edit(file):
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"conv"]
        file.move("conv", "model_weights/conv")
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {}})

    header = read(change(weights_path, edit))
    assert header.config == {"class_name": "Model", "config": {}}
    assert [layer.path for layer in header.layers] == ["/model_weights/conv"]
