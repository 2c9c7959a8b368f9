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
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cropseg.errors import ConflictError, ResourceError

Json = Any

_SIDECARS = ("-journal", "-wal", "-shm", ".aux.xml", ".msk", ".ovr")
"""Endings of what SQLite and GDAL put beside a file that they write."""

_NUMBERS = re.compile(r"\[\n([-+\d.eE,\s]+)\]")
"""A list of numbers that `json` wrote a line each. No text holds a line break."""

_LOCK_NAME = ".lock"
_LOCK_ATTEMPTS = 20  # each costs microseconds, and is lost to a process that ends


@contextlib.contextmanager
def write_whole(
    path: Path, *, verify: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Give a hidden path to write to, and rename it to `path` at the end.

    Only one process may write a path at a time: `claim_out_dir` sees to that.

    Args:
        path: Where the finished file belongs.
        verify: Called with the hidden path before the rename. It raises when the
            file is not complete.

    Yields:
        The hidden path, in the same folder and with the same ending. Nothing
        lies there. What SQLite or GDAL put beside it is removed at the end.

    Raises:
        ResourceError: If the folder or the file cannot be written. Whatever stood
            under `path` is still there, and nothing new lies beside it.
    """
    part = _hidden_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)  # a killed process may have left one
        yield part
        if verify is not None:
            verify(part)
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except OSError as error:
        if error.errno is None or not _is_about(error, path, part):
            raise
        raise _resource_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(part)


def _hidden_path(path: Path) -> Path:
    # Split at the first dot: Keras takes nothing but `.weights.h5` for weights.
    stem, dot, endings = path.name.partition(".")
    return path.with_name(f".{stem}.part{dot}{endings}")


def _remove(part: Path) -> None:
    for ending in ("", *_SIDECARS):
        part.with_name(part.name + ending).unlink(missing_ok=True)


def _is_about(error: OSError, path: Path, part: Path) -> bool:
    """Tell an error in writing `path` from one in reading something else."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    named = Path(error.filename).absolute()
    return named.name.startswith(part.name) or named in (
        path.absolute(),
        *path.absolute().parents,
    )


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


def write_json(path: Path, document: Json, *, indent: int = 2) -> None:
    """Write a document to `path` as JSON with two spaces of indent, or another number.

    Lists of numbers stay on one line, as the rows of a matrix.
    """
    text = json.dumps(document, indent=indent, allow_nan=False)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n")


def write_yaml(path: Path, document: Json) -> None:
    """Write a document to `path` as YAML, keys in the order given."""
    write_text(path, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def hash_settings(settings: Json) -> str:
    """Return twelve hexadecimal digits that stand for these settings.

    Example:
        >>> hash_settings({"seed": 0, "epochs": 2})
        '615344f10f8e'
        >>> hash_settings({"epochs": 2, "seed": 0})
        '615344f10f8e'
    """
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_out_dir(
    out_dir: Path,
    settings: Mapping[str, Json] | None = None,
    *,
    overwrite: bool = False,
    record: str = "run.yaml",
) -> None:
    """Check early whether `claim_out_dir` would refuse a folder. Nothing is made.

    Args:
        out_dir: The run's folder.
        settings: As for `claim_out_dir`; None checks only that it can be written to.
        overwrite: Whether a run with other settings may be overwritten.
        record: As for `claim_out_dir`.

    Raises:
        ConflictError: If it holds a run with other settings.
        ResourceError: If a file stands in the way, or a permission is missing.
    """
    there = next(
        path
        for path in (out_dir.absolute(), *out_dir.absolute().parents)
        if path.exists()
    )
    if not there.is_dir():
        raise ResourceError(
            f"Cannot write to {out_dir}: {there} is a file, not a folder. Choose "
            "another folder for --out."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ResourceError(
            f"Cannot write to {out_dir}: no permission in {there}. Choose a folder "
            "that you may write to."
        )
    if settings is not None and not overwrite and (out_dir / record).is_file():
        _compare_record(out_dir / record, json.loads(json.dumps(settings)))


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
    so that no folder ever mixes two runs. A run that raises before it wrote
    anything leaves no trace: its record goes, and so do the folders made for it.

    Args:
        out_dir: The run's folder. It is made if it is not there.
        settings: Everything that decides what the run writes, as JSON values.
        overwrite: Empty the folder first, if it holds a run.
        record: The name of the YAML file that holds the settings.

    Raises:
        ConflictError: If another process holds the folder, if it holds a run with
            other settings, or if it holds files that are no run of ours.
        ResourceError: If the folder cannot be written.
    """
    settings = json.loads(json.dumps(settings, allow_nan=False))
    record_path = out_dir / record
    new_dirs = [path for path in (out_dir, *out_dir.parents) if not path.exists()]
    with _hold_lock(out_dir / _LOCK_NAME, new_dirs):
        try:
            is_new = _check_record(record_path, settings, overwrite=overwrite)
        except OSError as error:
            if error.errno is None:  # one of ours
                raise
            raise _resource_error(out_dir, error) from error
        try:
            yield
        except BaseException:
            if is_new and not _list_others(record_path):
                record_path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _hold_lock(lock_path: Path, new_dirs: list[Path]) -> Iterator[None]:
    """Hold the lock, then remove it and those of `new_dirs` that are empty."""
    descriptor = _take_lock(lock_path)
    try:
        yield
    finally:
        # Unlinked while it is held, so that nobody can hold a lock of this name
        # that is not the file of this name: `_take_lock` checks for that.
        with contextlib.suppress(OSError):
            lock_path.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for path in new_dirs:
                path.rmdir()  # raises, and so ends, where something is left


def _take_lock(lock_path: Path) -> int:
    """Make and lock the file, and return its open descriptor."""
    out_dir = lock_path.parent
    for _ in range(_LOCK_ATTEMPTS):
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # a process that ended removed the folder in between
        except OSError as error:
            raise _resource_error(out_dir, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_at(descriptor, lock_path):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConflictError(
                f"{out_dir} is in use by another run of cropseg. "
                "Wait for it to end, or choose another --out."
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise ResourceError(
                f"Cannot lock {lock_path}: {error.strerror}. Two runs could then "
                "write one folder. Choose --out on a disk that supports locks."
            ) from error
        os.close(descriptor)  # a process that ended removed the file in between
    raise ResourceError(
        f"Cannot make {lock_path}: {out_dir} cannot be made, or goes again at once. "
        "Choose a folder that you may write to for --out."
    )


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _check_record(
    record_path: Path, settings: Mapping[str, Json], *, overwrite: bool
) -> bool:
    """Refuse the folder, or leave the settings in it.

    Returns:
        Whether the record is new.
    """
    out_dir = record_path.parent
    others = _list_others(record_path)
    if not record_path.is_file():
        if others:
            raise ConflictError(
                f"{out_dir} holds {len(others)} files or folders, such as "
                f"{others[0].name}, but no {record_path.name} of an earlier "
                "run. Choose an empty or new folder for --out."
            )
    elif overwrite:
        for path in others:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        # The old record stands until the last file of its run is gone, so that a
        # kill in between leaves no file under a record that did not make it.
    else:
        _compare_record(record_path, settings)
        return False
    write_yaml(record_path, settings)
    return True


def _list_others(record_path: Path) -> list[Path]:
    ours = {_LOCK_NAME, _hidden_path(record_path).name}
    if record_path.is_file():
        ours.add(record_path.name)
    return sorted(
        path for path in record_path.parent.iterdir() if path.name not in ours
    )


def _compare_record(record_path: Path, settings: Mapping[str, Json]) -> None:
    out_dir = record_path.parent
    try:
        stored = yaml.safe_load(record_path.read_text(encoding="utf-8"))
        problem = "" if isinstance(stored, dict) else "it is not a mapping"
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
    if problem:
        raise ConflictError(
            f"{record_path} should hold the settings of the run in this folder, but "
            f"cannot be read: {problem}. Choose another --out, or start again with "
            "--overwrite."
        )
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
