"""A transfer that is prepared: what decides its result, and what is refused early."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from cropseg.errors import ModelError, ModelFileNotFoundError, UsageError
from cropseg.transfer.prepare import prepare_transfer
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions


def write_weights(path, value):
    """Write a file of one layer, in the format of ImageNet's weights."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["conv0"]
        group = file.create_group("conv0")
        group.attrs["weight_names"] = ["conv0/kernel:0"]
        group["conv0/kernel:0"] = np.full((7, 7, 3, 64), value, "f4")
    return path


@pytest.fixture
def prepare(area_2, source_path):
    """Return a function that prepares a mode with a file of ImageNet's weights."""
    source = find_source(source_path)

    def prepare_it(mode, weights_path, encoder="resnet18"):
        card = source.card.model_copy(update={"encoder": encoder})
        reuse = ReuseOptions(imagenet_weights=weights_path)
        made_up = replace(source, card=card)
        return prepare_transfer(area_2, made_up, mode=mode, reuse=reuse).record

    return prepare_it


def test_the_content_of_imagenet_weights_decides_the_result(prepare, tmp_path):
    path = write_weights(tmp_path / "a.h5", 1.0)
    first, full = prepare("imagenet", path), prepare("full", path)
    assert prepare("imagenet", path) == first

    write_weights(path, 2.0)

    other = prepare("imagenet", path)
    assert {key for key in first if first[key] != other[key]} == {"imagenet_sha256"}
    assert prepare("full", path) == full
    assert "imagenet_sha256" not in {**full, **prepare("imagenet", None)}


def test_weights_that_cannot_be_had_are_told_before_anything_is_loaded(
    prepare, tmp_path
):
    path = write_weights(tmp_path / "a.h5", 1.0)
    with pytest.raises(UsageError, match=r"encoder classic\. Choose one of resnet18"):
        prepare("imagenet", path, encoder="classic")
    with pytest.raises(ModelFileNotFoundError, match=r"b\.h5.*_no_top"):
        prepare("imagenet", tmp_path / "b.h5")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="no complete HDF5 file"):
        prepare("imagenet", path)
