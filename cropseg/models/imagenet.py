"""ImageNet weights of an encoder, in the form that standardised bands need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import CropsegError, ModelError
from cropseg.models.imagenet_file import read_imagenet_file
from cropseg.models.stages import find_encoder_end
from cropseg.models.stored_weights import load_stored_weights
from cropseg.models.zoo import build_pretrained_network, find_stages
from cropseg.runtime import keras

RGB: Final = ("red", "green", "blue")
"""What ImageNet's three bands are called in a manifest."""

_STD: Final = (0.229, 0.224, 0.225)
"""Standard deviations of ImageNet's bands, of values from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class _Input:
    """What an encoder was trained on."""

    bands: tuple[str, ...] = RGB
    """Its bands, in order."""
    scale: float | None = None
    """What values from 0 to 1 were multiplied by; None where they were standardised."""


_CAFFE = _Input(bands=RGB[::-1], scale=255.0)
_ONE_TO_ONE = _Input(scale=2.0)

_INPUTS: Final[Mapping[str, _Input]] = {
    "vgg16": _CAFFE,
    "vgg19": _CAFFE,
    "inceptionv3": _ONE_TO_ONE,
    "mobilenet": _ONE_TO_ONE,
    "mobilenetv2": _ONE_TO_ONE,
}
"""Encoders that were trained on other values than standardised red, green and blue."""

INPUT_NORM: Final = "bn_data"
"""The layer by which ResNets standardise their input; ours comes standardised."""


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """An encoder as ImageNet left it."""

    arrays: Mapping[str, npt.NDArray[Any]]
    """Its weights, by path. The decoder's are there too, and random."""
    bands: tuple[str, ...]
    """The bands that its first filters read, in order."""


def load_imagenet_encoder(
    architecture: str, encoder: str, weights_path: Path | None
) -> PretrainedEncoder:
    """Load the ImageNet weights of an encoder.

    Args:
        architecture: The architecture that it is part of.
        encoder: The encoder.
        weights_path: A file as segmentation-models or Keras Applications download
            it (`..._no_top.h5`), or None to download it once.

    Raises:
        ModelFileNotFoundError: If the file is not there.
        ModelError: If the weights cannot be had or are another network's.
        UnsafeFileError: If reading the file could do harm.
        UsageError: If the encoder has no such weights.
    """
    try:
        if weights_path is None:
            network = build_pretrained_network(
                architecture, encoder, weights="imagenet"
            )
        else:
            network = _load_file(architecture, encoder, weights_path)
    except (CropsegError, MemoryError):
        raise
    except Exception as error:  # Keras has no other where a download fails
        remedy = (
            "Give the `_no_top.h5` file of this encoder."
            if weights_path
            else "Download them elsewhere, and give the file as --imagenet-weights."
        )
        raise ModelError(
            f"The ImageNet weights of {encoder} cannot be loaded from "
            f"{weights_path or 'where they are published'}: {error}. {remedy}"
        ) from error
    made_for = _INPUTS.get(encoder, _Input())
    arrays = {v.path: np.asarray(v) for v in network.weights}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise ModelError(
            f"{len(bad)} variables of {weights_path or 'the download'}, {bad[0]} "
            "first, are not finite. The file is damaged: get it again."
        )
    if made_for.scale is not None:
        stem = next(path for path in arrays if path.endswith("kernel"))
        deviations = dict(zip(RGB, _STD, strict=True))
        factors = np.array([deviations[band] for band in made_for.bands])
        scaled = arrays[stem] * (factors * made_for.scale)[:, None]
        arrays[stem] = scaled.astype(arrays[stem].dtype)
    return PretrainedEncoder(arrays=arrays, bands=made_for.bands)


def _load_file(architecture: str, encoder: str, path: Path) -> Any:
    """Return a network whose encoder has the weights of a file.

    By the names of its layers, where they are those of the encoder. Keras goes by
    their order, which is left for files whose names it made up, as InceptionV3's.
    """
    layers = read_imagenet_file(path, encoder)
    network = build_pretrained_network(architecture, encoder, weights=None)
    end = find_encoder_end(network, find_stages(network, architecture, encoder))
    part = keras.Model(network.inputs[0], network.get_layer(end).output)
    names = {layer.name for layer in part.layers if layer.weights}
    if {layer.name for layer in layers} != names:
        return build_pretrained_network(architecture, encoder, weights=os.fspath(path))
    load_stored_weights(part, layers, path)
    return network
