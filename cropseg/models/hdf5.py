"""The header of a model in HDF5: what it declares, before any array is read.

A file of 23 kB can declare arrays of many gigabytes, or point to other files of
the machine. So every object is looked at first, and nothing that it says is
believed: what is declared must be able to lie in the file. No Keras here.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from cropseg.errors import CropsegError, ModelError, UnsafeFileError

MAX_EXPANSION = 10
"""How many times the size of the file its arrays may declare, if compressed."""

_SLACK_BYTES = 2**20
_MAX_OBJECTS = 50_000
_MAX_CONFIG_BYTES = 16 * 2**20
_MAX_NAMES_BYTES = 64 * 2**20
_NOT_READ = ("optimizer_weights", "optimizer")
_KEPT_BY_KERAS_3 = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """One array of a layer, as the file describes it."""

    name: str
    """Name of the variable, such as `kernel`; a number where none was recorded."""
    layer: str
    """Name of the layer right around it; the layer's own, unless it is nested."""
    path: str
    """Where it lies in the file."""
    shape: tuple[int, ...]
    """Its shape."""


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """The arrays of one layer."""

    name: str | None
    """Name of the layer; None where the file records none."""
    kind: str | None
    """Its class in small letters, such as `conv2d`; None where not recorded."""
    path: str
    """Where it lies in the file."""
    arrays: tuple[StoredArray, ...]
    """Its arrays, never none."""


@dataclass(frozen=True, kw_only=True)
class Hdf5Header:
    """What a model file in HDF5 says about itself."""

    keras_version: str | None
    """Version of the Keras that wrote it, where recorded."""
    config: dict[str, Any] | None
    """The network as Keras describes it; None where only weights are stored."""
    layers: tuple[StoredLayer, ...]
    """The layers that have arrays."""

    @property
    def num_values(self) -> int:
        """Numbers in all arrays."""
        return sum(
            math.prod(array.shape) for layer in self.layers for array in layer.arrays
        )


def read_hdf5_header(
    source: Path | BinaryIO, *, path: Path, num_bytes: int
) -> Hdf5Header:
    """Read what an HDF5 file declares.

    Args:
        source: The file: its path, or an open member of an archive.
        path: What to call it in errors.
        num_bytes: Its size.

    Raises:
        ModelError: If it is damaged or holds no Keras model.
        UnsafeFileError: If it points to other files, or declares more than it holds.
    """
    try:
        with h5py.File(source, "r") as file:
            _check_objects(file, path=path, num_bytes=num_bytes)
            return _read_header(file, path)
    except CropsegError:
        raise
    except RecursionError as error:
        raise UnsafeFileError(f"{path} is nested too deeply to be a model.") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is no complete HDF5 file ({error}). It is damaged or was cut "
            "short: copy or download it again."
        ) from error


def _check_objects(file: h5py.File, *, path: Path, num_bytes: int) -> None:
    """Look at every object that belongs to the weights, following no link."""
    limit = MAX_EXPANSION * num_bytes + _SLACK_BYTES
    declared = 0
    for name, dataset in _walk_datasets(file, path):
        if dataset.is_virtual or dataset.external:
            raise UnsafeFileError(
                f"{path} takes {name} from another file, which is refused. Save the "
                "model again with Keras, into one file."
            )
        if dataset.dtype.kind not in "fiub" and dataset.dtype.str != "|V2":
            raise ModelError(
                f"{name} of {path} holds {dataset.dtype}, not numbers; this is no "
                "model file of Keras."
            )
        declared += math.prod(dataset.shape) * dataset.dtype.itemsize
        if declared > limit:
            raise UnsafeFileError(
                f"{path} has {num_bytes} bytes, but its arrays up to {name} declare "
                f"{declared}. At most {MAX_EXPANSION} times the file is read. It is "
                "damaged, or made to fill the memory: get it from another source."
            )


def _walk_datasets(file: h5py.File, path: Path) -> Iterator[tuple[str, h5py.Dataset]]:
    seen: set[int] = set()
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            place = f"{prefix}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UnsafeFileError(
                    f"{path} has a link at {place} to another place or file, which is "
                    "refused. Save the model again with Keras."
                )
            if not prefix and name in _NOT_READ:
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or len(seen) > _MAX_OBJECTS:
                raise UnsafeFileError(
                    f"{path} is no tree of at most {_MAX_OBJECTS} objects: look at "
                    f"{place}. Save the model again with Keras."
                )
            seen.add(address)
            if isinstance(item, h5py.Dataset):
                yield place, item
            elif isinstance(item, h5py.Group):
                waiting.append((place, item))


def _read_header(file: h5py.File, path: Path) -> Hdf5Header:
    text = _read_text(file, "model_config", path)
    weights = file.get("model_weights", file)
    version = _read_text(file, "keras_version", path)
    if text is None and any(name in file for name in _KEPT_BY_KERAS_3):
        layers = tuple(_list_by_class(file))
    elif "layer_names" in weights.attrs or "layer_names0" in weights.attrs:
        version = version or _read_text(weights, "keras_version", path)
        layers = tuple(_list_by_name(weights))
    else:
        raise ModelError(
            f"{path} is an HDF5 file, but no model of Keras: it has "
            f"{', '.join([*file, *file.attrs][:8]) or 'nothing'} in place of "
            "`layer_names` or `layers`. Give a model or the weights of one."
        )
    config = None if text is None else parse_config(text, path)
    return Hdf5Header(keras_version=version, config=config, layers=layers)


def parse_config(text: str | bytes, path: Path) -> dict[str, Any]:
    """Parse the JSON text that describes a network.

    Raises:
        ModelError: If it is none.
        UnsafeFileError: If it is longer or deeper than that of any network.
    """
    if len(text) > _MAX_CONFIG_BYTES:
        raise UnsafeFileError(
            f"{path} describes its network in {len(text)} bytes; at most "
            f"{_MAX_CONFIG_BYTES} are read."
        )
    try:
        config = json.loads(text)
    except RecursionError as error:
        raise UnsafeFileError(f"{path} is nested too deeply to be a model.") from error
    except ValueError as error:
        raise ModelError(
            f"The network of {path} is no JSON: {error}. The file is damaged."
        ) from error
    if not isinstance(config, dict) or "class_name" not in config:
        raise ModelError(f"{path} holds no network of Keras. The file is damaged.")
    return config


def _read_text(group: h5py.Group, name: str, path: Path) -> str | None:
    if name not in group.attrs:
        return None
    value = group.attrs[name]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ModelError(f"`{name}` of {path} is no text. The file is damaged.")
    return value


def _read_names(group: h5py.Group, name: str) -> list[str]:
    """Read a list of names, which Keras splits where it is longer than 64 kB."""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs and parts != [name]:
        parts.append(f"{name}{len(parts)}")
    names: list[str] = []
    for part in parts:
        stored = group.attrs.get_id(part)
        if math.prod(stored.shape) * stored.dtype.itemsize > _MAX_NAMES_BYTES:
            raise ValueError(f"`{part}` is too long")  # told as damage by the caller
        names += [
            item.decode("utf-8") if isinstance(item, bytes) else str(item)
            for item in group.attrs[part]
        ]
    return names


def _list_by_name(weights: h5py.Group) -> Iterator[StoredLayer]:
    """List the layers of a full model, or of weights saved by Keras 2."""
    for name in _read_names(weights, "layer_names"):
        group = weights[name]
        arrays = tuple(
            _describe_array(group[stored], stored, layer=name)
            for stored in _read_names(group, "weight_names")
        )
        if arrays:
            yield StoredLayer(name=name, kind=None, path=group.name, arrays=arrays)


def _describe_array(dataset: h5py.Dataset, stored: str, *, layer: str) -> StoredArray:
    *around, name = stored.partition(":")[0].split("/")
    return StoredArray(
        name=name,
        layer=around[-1] if around else layer,
        path=dataset.name,
        shape=tuple(dataset.shape),
    )


def _list_by_class(file: h5py.File) -> Iterator[StoredLayer]:
    """List the layers of weights saved by Keras 3, which names only their classes."""
    waiting = deque(file[name] for name in _KEPT_BY_KERAS_3 if name in file)
    while waiting:
        group = waiting.popleft()
        if not isinstance(group.get("vars"), h5py.Group):
            waiting += [item for item in group.values() if isinstance(item, h5py.Group)]
            continue
        waiting += [
            item
            for key, item in group.items()
            if key != "vars" and isinstance(item, h5py.Group)
        ]
        name = group["vars"].attrs.get("name")  # recorded by newer versions only
        arrays = tuple(
            StoredArray(
                name=key,
                layer=name or group.name,
                path=dataset.name,
                shape=tuple(dataset.shape),
            )
            for key, dataset in sorted(
                group["vars"].items(), key=lambda item: (len(item[0]), item[0])
            )
        )
        if arrays:
            kind = re.sub(r"_\d+$", "", group.name.rpartition("/")[2])
            yield StoredLayer(name=name, kind=kind, path=group.name, arrays=arrays)
