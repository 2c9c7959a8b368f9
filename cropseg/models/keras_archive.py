"""The header of a `.keras` archive: what it declares, before Keras sees it. No Keras.

Keras unpacks an archive into memory or into a folder of its own, and builds the
network before it looks at the weights. So both are looked at here first.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from cropseg.errors import ModelError, UnsafeFileError
from cropseg.models.card import CARD_NAME, check_archive
from cropseg.models.hdf5 import (
    MAX_EXPANSION,
    Hdf5Header,
    parse_config,
    read_hdf5_header,
)

_CONFIG = "config.json"
_METADATA = "metadata.json"
_WEIGHTS = "model.weights.h5"

_SLACK_BYTES = 2**20
_MAX_MEMBERS = 1000
_MAX_CONFIG_BYTES = 16 * 2**20
_ENCRYPTED = 0x1


@dataclass(frozen=True, kw_only=True)
class ArchiveHeader:
    """What a `.keras` archive says about itself."""

    keras_version: str | None
    """Version of the Keras that wrote it, where recorded."""
    config: dict[str, Any]
    """The network as Keras describes it."""
    weights: Hdf5Header
    """The header of its weights."""
    has_card: bool
    """Whether cropseg saved it."""


def read_archive_header(path: Path) -> ArchiveHeader:
    """Read what a `.keras` archive declares.

    Raises:
        ModelFileNotFoundError: If there is no such file.
        ModelError: If it is damaged or another kind of archive.
        UnsafeFileError: If it declares more than it holds, or members that would be
            written outside of their folder.
    """
    with check_archive(path) as archive:
        _check_members(archive, path)
        names = archive.namelist()
        missing = [name for name in (_CONFIG, _WEIGHTS) if name not in names]
        if missing:
            raise ModelError(
                f"{path} is a zip archive with {', '.join(names[:5]) or 'nothing'} and "
                f"without {', '.join(missing)}: no .keras file. {_explain(names)}"
            )
        config = parse_config(_read_small(archive, _CONFIG, path), path)
        version = None
        if _METADATA in names:
            metadata = json.loads(_read_small(archive, _METADATA, path))
            if isinstance(metadata, dict):
                version = str(metadata.get("keras_version"))
        weights = _read_weights(archive, path)
    return ArchiveHeader(
        keras_version=version,
        config=config,
        weights=weights,
        has_card=CARD_NAME in names,
    )


def _explain(names: list[str]) -> str:
    if any(name.endswith("data.pkl") for name in names):
        return "It looks like a model of PyTorch, which cropseg cannot read."
    if any(name.endswith((".keras", ".h5", ".hdf5")) for name in names):
        return "Unpack it, and give the model inside."
    return "Save the model again with `model.save('model.keras')`."


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(members) > _MAX_MEMBERS or len(set(names)) < len(names):
        raise UnsafeFileError(
            f"{path} has {len(members)} members, some perhaps twice; a .keras file "
            f"has at most {_MAX_MEMBERS}, each once."
        )
    for member in members:
        steps = member.filename.replace("\\", "/").split("/")
        if ".." in steps or not steps[0] or ":" in steps[0]:
            raise UnsafeFileError(
                f"{path} has a member {member.filename!r}, which would be unpacked "
                "outside of its folder."
            )
        if member.flag_bits & _ENCRYPTED:
            raise ModelError(f"{path} is encrypted. Save it without a password.")
    num_bytes = path.stat().st_size
    declared = sum(member.file_size for member in members)
    if declared > MAX_EXPANSION * num_bytes + _SLACK_BYTES:
        raise UnsafeFileError(
            f"{path} has {num_bytes} bytes, but its members declare {declared}. At "
            f"most {MAX_EXPANSION} times the file is unpacked. It is damaged, or made "
            "to fill the memory: get it from another source."
        )


def _read_small(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _MAX_CONFIG_BYTES:
        raise UnsafeFileError(
            f"{name} of {path} has {size} bytes; at most {_MAX_CONFIG_BYTES} are read."
        )
    return archive.read(name)


def _read_weights(archive: zipfile.ZipFile, path: Path) -> Hdf5Header:
    member = archive.getinfo(_WEIGHTS)
    size = member.file_size
    with archive.open(member) as stream, tempfile.TemporaryFile() as copy:
        source = cast("BinaryIO", stream)
        if member.compress_type != zipfile.ZIP_STORED:
            # Going back in a compressed member starts it again from the beginning.
            while block := stream.read(2**20):
                copy.write(block)
            source = cast("BinaryIO", copy)
        return read_hdf5_header(source, path=path, num_bytes=size)
