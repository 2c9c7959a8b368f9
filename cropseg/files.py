"""The one way in which cropseg writes files.

A file under its final name is complete. It is written under a hidden name in
the same folder, verified, flushed to the disk and then renamed (HAZARDS 1-3).
A run's folder is locked while it is written, and remembers the settings that
made it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cropseg.errors import ConflictError, ResourceError

Json = Any


@contextlib.contextmanager
def write_whole(
    path: Path, *, verify: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Give a hidden path to write to, and rename it to `path` at the end.

    Args:
        path: Where the finished file belongs.
        verify: Called with the hidden path before the rename. It raises when the
            file is not complete.

    Yields:
        The hidden path, in the same folder and with the same ending.

    Raises:
        ResourceError: If the folder or the file cannot be written. Whatever stood
            under `path` is still there, and nothing new lies beside it.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if verify is not None:
            verify(part)
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        if isinstance(error, ConflictError | ResourceError) or error.errno is None:
            raise
        raise _resource_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resource_error(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"Cannot write {path}: {error.strerror or error}. "
        "Choose a folder that you may write to, on a disk with free space."
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Json) -> None:
    """Write a document to `path` as JSON with two spaces of indent."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, document: Json) -> None:
    """Write a document to `path` as YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def hash_settings(settings: Json) -> str:
    """Return twelve hexadecimal digits that stand for these settings."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def claim_out_dir(
    out_dir: Path,
    settings: Mapping[str, Json],
    *,
    overwrite: bool = False,
    record: str = "run.yaml",
) -> Iterator[None]:
    """Hold a run's folder while the run writes to it.

    The first call leaves the settings in `record`. A later call with the same
    settings may go on with what it finds. One with other settings is refused,
    so that no folder ever mixes two runs.

    Args:
        out_dir: The run's folder. It is made if it is not there.
        settings: Everything that decides what the run writes, as JSON values.
        overwrite: Empty the folder first.
        record: The name of the YAML file that holds the settings.

    Raises:
        ConflictError: If another process holds the folder, if it holds a run with
            other settings, or if it holds files that are no run of ours.
        ResourceError: If the folder cannot be written.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock = (out_dir / ".lock").open("w")
    except OSError as error:
        raise _resource_error(out_dir, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"{out_dir} is in use by another cropseg process. "
                "Wait for it to end, or choose another --out."
            ) from error
        try:
            _check_record(out_dir / record, settings, overwrite=overwrite)
            yield
        finally:
            (out_dir / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                out_dir.rmdir()  # succeeds only where the run left nothing


def _check_record(
    record_path: Path, settings: Mapping[str, Json], *, overwrite: bool
) -> None:
    settings = json.loads(json.dumps(settings))
    out_dir = record_path.parent
    strangers = [path for path in out_dir.iterdir() if path.name != ".lock"]
    if not record_path.exists():
        if strangers:
            raise ConflictError(
                f"{out_dir} holds {len(strangers)} files or folders, such as "
                f"{strangers[0].name}, but no {record_path.name} of an earlier "
                "run. Choose an empty or new folder for --out."
            )
        write_yaml(record_path, settings)
        return
    stored = yaml.safe_load(record_path.read_text(encoding="utf-8"))
    if overwrite:
        for path in strangers:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_yaml(record_path, settings)
        return
    changes = _describe_changes(stored, settings)
    if changes:
        raise ConflictError(
            f"{out_dir} holds a run with other settings: {'; '.join(changes)}. "
            "Choose another --out, or start again with --overwrite."
        )


def _describe_changes(stored: Json, settings: Json, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(settings, dict):
        return [
            change
            for key in sorted({*stored, *settings}, key=str)
            for change in _describe_changes(
                stored.get(key), settings.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if stored == settings else [f"{name} was {stored!r}, is {settings!r}"]
