"""The file that `--imagenet-weights` names: what it is, before Keras sees it.

Keras loads such a file by the order of its layers and believes what it declares. So its
header is checked as that of any other model file (HAZARDS 12-14). No Keras here.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from cropseg.errors import ModelError, ModelFileNotFoundError, UsageError
from cropseg.files import hash_file
from cropseg.models.hdf5 import StoredLayer
from cropseg.models.header import read_header

FOREIGN_ENCODERS: Final = (
    *("resnet18", "resnet34", "resnet50", "vgg16", "vgg19"),
    *("inceptionv3", "mobilenet", "mobilenetv2"),
    *(f"efficientnetb{number}" for number in range(5)),
)
"""The encoders of segmentation-models, for which there are ImageNet weights."""


def require_imagenet_encoder(encoder: str) -> None:
    """Check that there are ImageNet weights for an encoder.

    Raises:
        UsageError: If there are none.
    """
    if encoder not in FOREIGN_ENCODERS:
        raise UsageError(
            f"There are no ImageNet weights for encoder {encoder}. Choose one of "
            f"{', '.join(FOREIGN_ENCODERS)} for area 1, or another mode."
        )


def read_imagenet_file(path: Path, encoder: str) -> tuple[StoredLayer, ...]:
    """Return the layers of a file with ImageNet weights, after checking its header.

    Args:
        path: A file as segmentation-models or Keras Applications download it.
        encoder: The encoder that it is for.

    Raises:
        ModelFileNotFoundError: If the file is not there.
        ModelError: If it is damaged, or no such file.
        UnsafeFileError: If reading it could do harm.
    """
    remedy = f"Give the `_no_top.h5` file of {encoder}."
    if not path.is_file():
        raise ModelFileNotFoundError(
            f"No ImageNet weights at {path.absolute()}. {remedy}"
        )
    header = read_header(path)
    layers = header.weights.layers
    if header.kind != "weights" or any(layer.kind for layer in layers):
        kind = "a whole model" if header.config else "weights without names of layers"
        raise ModelError(
            f"The ImageNet weights of {encoder} cannot be loaded from {path}: it holds "
            f"{kind}. {remedy}"
        )
    return layers


def hash_imagenet_file(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once while it does not change."""
    status = path.stat()
    return _hash_file(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _hash_file(path: Path, _num_bytes: int, _mtime_ns: int) -> str:
    return hash_file(path)
