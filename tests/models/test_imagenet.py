"""ImageNet weights: the real loading code, from a local file in the real format."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError, ModelFileNotFoundError, UsageError
from cropseg.models import zoo
from cropseg.models.imagenet import load_imagenet_encoder
from cropseg.runtime import keras


@pytest.mark.parametrize(
    "encoder",
    [
        "resnet18",
        pytest.param("vgg16", marks=pytest.mark.slow),
        pytest.param("mobilenetv2", marks=pytest.mark.slow),
    ],
)
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


def test_the_weights_of_another_encoder_are_refused(write_imagenet):
    path, _ = write_imagenet("resnet18")

    with pytest.raises(ModelError, match=r"mobilenetv2 cannot be loaded.*resnet18"):
        load_imagenet_encoder("unet", "mobilenetv2", path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFileNotFoundError, match=r"nothing\.h5"):
        load_imagenet_encoder("unet", "resnet18", tmp_path / "nothing.h5")


def test_our_own_encoder_has_no_imagenet_weights():
    with pytest.raises(UsageError, match="no ImageNet weights for encoder classic"):
        load_imagenet_encoder("unet", "classic", None)
