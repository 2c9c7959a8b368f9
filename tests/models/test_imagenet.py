"""ImageNet weights: the real loading code, from a local file in the real format."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from cropseg.errors import (
    ModelError,
    ModelFileNotFoundError,
    UnsafeFileError,
    UsageError,
)
from cropseg.models import zoo
from cropseg.models.imagenet import load_imagenet_encoder
from cropseg.models.imagenet_file import hash_imagenet_file, read_imagenet_file
from cropseg.runtime import keras


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18", "vgg16", "mobilenetv2"])
def test_every_weight_of_the_file_is_found_under_the_name_of_the_zoo(
    encoder, write_imagenet
):
    path, expected = write_imagenet(encoder)

    found = load_imagenet_encoder("unet", encoder, path)

    network = zoo.build_network("unet", encoder, num_bands=3, num_classes=2)
    assert set(found.arrays) == {v.path for v in network.weights}
    scaled = {"resnet18": None, "vgg16": "block1_conv1/kernel"}.get(
        encoder, "Conv1/kernel"
    )
    for name, values in expected.items():
        if name in found.arrays and name != scaled:
            np.testing.assert_array_equal(found.arrays[name], values, err_msg=name)
    if scaled:
        ratio = found.arrays[scaled] / expected[scaled]
        green = 0.224 * (255 if encoder == "vgg16" else 2)
        np.testing.assert_allclose(ratio[:, :, 1], green, rtol=1e-4)
    reverse = encoder == "vgg16"  # Caffe's order
    rgb = ("red", "green", "blue")
    assert found.bands == (rgb[::-1] if reverse else rgb)


@pytest.mark.slow
def test_without_a_file_the_published_one_is_downloaded(write_imagenet, monkeypatch):
    path, _ = write_imagenet("resnet18")
    asked = []

    def get_file(name, url, **_options):
        asked.append((name, url))
        return str(path)

    monkeypatch.setattr(keras.utils, "get_file", get_file)

    load_imagenet_encoder("unet", "resnet18", None)

    ((name, url),) = asked
    assert name == "resnet18_imagenet_1000_no_top.h5"
    assert url.startswith("https://")
    assert url.endswith(name)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def get_file(*_args, **_options):
        message = "URL fetch failure"
        raise Exception(message)  # noqa: TRY002 - what Keras raises

    monkeypatch.setattr(keras.utils, "get_file", get_file)

    with pytest.raises(ModelError, match="--imagenet-weights"):
        load_imagenet_encoder("unet", "resnet18", None)


@pytest.mark.slow
def test_the_weights_of_another_encoder_are_refused(write_imagenet):
    path, _ = write_imagenet("resnet18")

    with pytest.raises(ModelError, match=r"mobilenetv2 cannot be loaded.*resnet18"):
        load_imagenet_encoder("unet", "mobilenetv2", path)


@pytest.fixture
def change(write_imagenet, tmp_path):
    """Return a function that changes a copy of a file: its path, and its arrays."""

    def copy(edit):
        path, expected = write_imagenet("resnet18")
        shutil.copy(path, tmp_path / path.name)
        with h5py.File(tmp_path / path.name, "a") as file:
            edit(file)
        return tmp_path / path.name, expected

    return copy


@pytest.mark.slow
def test_layers_in_another_order_are_found_by_their_names(change):
    """Keras goes by the order, and would swap two layers of one shape in silence."""
    names = "stage1_unit1_conv2", "stage1_unit2_conv1"

    def swap(file):
        order = list(file.attrs["layer_names"])
        first, second = map(order.index, names)
        order[first], order[second] = names[::-1]
        file.attrs["layer_names"] = order

    path, expected = change(swap)

    found = load_imagenet_encoder("unet", "resnet18", path)

    for name in names:
        kernel = f"{name}/kernel"
        np.testing.assert_array_equal(found.arrays[kernel], expected[kernel])


def rename_all(file):
    """Rename the layers, as files of older versions have other numbers."""
    names = list(file.attrs["layer_names"])
    for name in names:
        file.move(name, f"old_{name}")
    file.attrs["layer_names"] = [f"old_{name}" for name in names]


@pytest.mark.slow
def test_layers_of_other_names_are_taken_in_their_order(change):
    path, expected = change(rename_all)

    found = load_imagenet_encoder("unet", "resnet18", path)

    np.testing.assert_array_equal(
        found.arrays["conv0/kernel"], expected["conv0/kernel"]
    )


def link(file):
    file["more"] = h5py.ExternalLink("/etc/hosts", "/")


def declare(file):
    file.create_dataset("more", (2**34,), "f4", chunks=(2**20,), compression="gzip")


def spoil(file):
    def find(name, item):
        return name if isinstance(item, h5py.Dataset) and "conv0" in name else None

    file[file.visititems(find)][0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (link, UnsafeFileError, "link at /more"),
        (declare, UnsafeFileError, "declare"),
        (spoil, ModelError, r"1 variables of .*conv0/kernel first, are not finite"),
    ],
)
def test_a_file_that_would_do_harm_is_refused(change, edit, error, message):
    path, _ = change(edit)

    with pytest.raises(error, match=message):
        load_imagenet_encoder("unet", "resnet18", path)


def test_weights_without_names_are_refused(tmp_path):
    pixels = keras.Input((4, 4, 3))
    path = tmp_path / "resnet18.weights.h5"
    keras.Model(pixels, keras.layers.Conv2D(2, 1)(pixels)).save_weights(path)

    with pytest.raises(ModelError, match=r"resnet18.weights.h5: .*Give the `_no_top"):
        read_imagenet_file(path, "resnet18")


def test_a_whole_model_is_refused(tmp_path):
    pixels = keras.Input((4, 4, 3))
    path = tmp_path / "model.keras"
    keras.Model(pixels, keras.layers.Conv2D(2, 1)(pixels)).save(path)

    with pytest.raises(ModelError, match="holds a whole model"):
        read_imagenet_file(path, "resnet18")


def test_a_file_that_changes_has_another_hash(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"one")
    first = hash_imagenet_file(path)

    path.write_bytes(b"three")

    assert hash_imagenet_file(path) != first


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFileNotFoundError, match=r"nothing\.h5"):
        load_imagenet_encoder("unet", "resnet18", tmp_path / "nothing.h5")


def test_our_own_encoder_has_no_imagenet_weights():
    with pytest.raises(UsageError, match="no ImageNet weights for encoder classic"):
        load_imagenet_encoder("unet", "classic", None)
