"""What kind of model file is this, and may it be read? Answered without Keras.

The content decides, never the ending. Whatever is wrong is found here: in under a
second, and before anything is read that could fill the memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cropseg.errors import (
    ModelError,
    ModelFileNotFoundError,
    ResourceError,
    UnsafeFileError,
)
from cropseg.models.hdf5 import Hdf5Header, read_hdf5_header
from cropseg.models.keras_archive import read_archive_header
from cropseg.models.network_config import (
    check_config,
    find_strangers,
    translate_config,
)
from cropseg.models.network_size import NetworkSize, measure_config

Kind = Literal["bundle", "keras", "hdf5", "weights", "network"]
"""A model of cropseg, a foreign `.keras` file, a full model in HDF5, weights only, or
no file: a network built in a script."""

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_START_BYTES = 512
_SPARE_WEIGHTS = 1_000_000

_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (b"<!doctype html", "a web page; download the file itself again"),
    (b"<html", "a web page; download the file itself again"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\x80\x02", "a Python pickle, which is never read"),
    (b"\x80\x04", "a Python pickle, which is never read"),
    (b"{", "JSON, a network without weights at best; give a file with weights"),
)
"""How files begin that are taken for models, in small letters, and what they are."""


@dataclass(frozen=True, kw_only=True)
class ModelHeader:
    """What a model file declares, all of it checked."""

    path: Path
    """The file."""
    kind: Kind
    """What it is."""
    keras_version: str | None
    """Version of the Keras that wrote it, where recorded."""
    config: dict[str, Any] | None
    """Its network, in the notation of Keras 3 or one that it reads; None in weights."""
    size: NetworkSize | None
    """Inputs, outputs and weights of its network; None in weights."""
    weights: Hdf5Header
    """The arrays of its layers."""

    @property
    def num_bands(self) -> int | None:
        """Bands that the network takes; None where the file does not say."""
        return self.size.inputs[0][-1] if self.size else None

    @property
    def num_classes(self) -> int | None:
        """Classes that the network gives; None where the file does not say."""
        return self.size.outputs[0][-1] if self.size else None


def read_header(path: str | Path) -> ModelHeader:
    """Read what a model file declares, and refuse what is damaged or unsafe.

    Raises:
        ModelFileNotFoundError: If there is no such file.
        ModelError: If it is damaged, or no model of Keras.
        UnsafeFileError: If building or reading it could do harm: code, links to other
            files, sizes beyond what it holds.
        ResourceError: If it may not be read.
    """
    path = Path(path)
    start = _read_start(path)
    if start.startswith(_ZIP):
        archive = read_archive_header(path)
        kind: Kind = "bundle" if archive.has_card else "keras"
        return _check_network(
            path,
            kind,
            weights=archive.weights,
            config=archive.config,
            keras_version=archive.keras_version,
        )
    if start.startswith(_HDF5):
        weights = read_hdf5_header(path, path=path, num_bytes=path.stat().st_size)
        return _check_network(
            path,
            "weights" if weights.config is None else "hdf5",
            weights=weights,
            config=weights.config,
            keras_version=weights.keras_version,
        )
    raise ModelError(f"{path} is no model file. {_describe_start(start)}")


def _check_network(
    path: Path,
    kind: Kind,
    *,
    weights: Hdf5Header,
    config: dict[str, Any] | None,
    keras_version: str | None,
) -> ModelHeader:
    size = None
    if config is not None:
        check_config(config, path)
        if kind == "hdf5":
            config = translate_config(config, path)
        size = _measure_network(config, weights, path)
    return ModelHeader(
        path=path,
        kind=kind,
        keras_version=keras_version,
        config=config,
        size=size,
        weights=weights,
    )


def check_bundle(path: Path) -> None:
    """Refuse a bundle that declares more than it holds, before Keras builds it.

    A network from a script may have layers whose size is not known here. Of such a
    one the archive and its arrays are checked, and the rest is up to Keras.

    Raises:
        ModelError: If it is damaged.
        UnsafeFileError: If building or reading it could fill the memory.
    """
    archive = read_archive_header(path)
    if not find_strangers(archive.config, path):
        _measure_network(archive.config, archive.weights, path)


def _measure_network(
    config: dict[str, Any], weights: Hdf5Header, path: Path
) -> NetworkSize:
    """Measure a network, and refuse one that does not belong to its weights."""
    size = measure_config(config, path)
    if size.num_weights > 2 * weights.num_values + _SPARE_WEIGHTS:
        raise UnsafeFileError(
            f"The network of {path} has {size.num_weights} weights, the file holds "
            f"{weights.num_values}. It is damaged, or made to fill the memory: get it "
            "from another source."
        )
    return size


def _read_start(path: Path) -> bytes:
    if not path.exists():
        raise ModelFileNotFoundError(
            f"No model at {path} (looked in {path.parent.absolute()}). Give the "
            "model.keras of a run, such as runs/area_1/model.keras."
        )
    if path.is_dir():
        if (path / "model.keras").is_file():
            advice = f"Give {path / 'model.keras'}."
        elif (path / "saved_model.pb").is_file():
            advice = (
                "It holds a SavedModel, which Keras 3 cannot train. Load it with the "
                "TensorFlow that wrote it, and save it with `model.save('model.h5')`."
            )
        else:
            advice = "Give the file inside."
        raise ModelError(f"{path} is a folder, not a model file. {advice}")
    if not path.is_file():
        raise ModelError(f"{path} is no regular file. Give a model file.")
    if not os.access(path, os.R_OK):
        raise ResourceError(f"Cannot read {path}: permission denied.")
    with path.open("rb") as stream:
        return stream.read(_START_BYTES)


def _describe_start(start: bytes) -> str:
    if not start:
        return "It is empty: copy or download it again."
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what in _OTHERS:
        if text.startswith(beginning):
            return f"It is {what}."
    return (
        f"It begins with {start[:8]!r}, not as a .keras archive or an HDF5 file does. "
        "It is damaged or of another format; give a model saved by Keras."
    )
