"""The journal of a folder of maps: a line for every scene that was done or failed.

The file only grows, a line at a time. A process that is killed leaves at most a torn
last line, which is passed over. The last line of a scene counts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from cropseg.errors import ResourceError

JOURNAL_NAME: Final = "journal.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """What became of a scene, or of a file that is made of maps."""

    kind: str = "scene"
    """`scene` or `product`."""
    name: str
    """Name of the scene, or path of the file."""
    fingerprint: str
    """Stands for the files that it was made of, and what decided the result."""
    status: str
    """`done` or `failed`."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Names of its finished files, and their sizes in bytes."""
    pixels: Mapping[str, int] = field(default_factory=dict)
    """Pixels of its map by class."""
    seconds: float = 0.0
    """How long its bands took, and putting them together. Scenes overlap."""
    engine: str = ""
    """What predicted it, and at which precision; empty where that is not known."""
    warnings: tuple[str, ...] = ()
    """What is odd about it."""
    error: str | None = None
    """Why it failed."""

    def has_files(self, folder: Path) -> bool:
        """Tell whether it is done and its files lie in a folder as they were left."""
        return self.status == "done" and all(
            _get_size(folder / name) == size for name, size in self.files.items()
        )


class Journal:
    """Reads the journal of a folder and adds to it. One process may write it."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        self._path = folder / JOURNAL_NAME
        self._entries = {(e.kind, e.name): e for e in read_journal(folder)}

    def find(self, name: str, *, kind: str = "scene") -> JournalEntry | None:
        """Return the last entry of that name and kind, or None."""
        return self._entries.get((kind, name))

    def list_done(self) -> tuple[JournalEntry, ...]:
        """Return the last entries of scenes that are done."""
        return tuple(
            entry
            for (kind, _), entry in self._entries.items()
            if kind == "scene" and entry.status == "done"
        )

    def append(self, entry: JournalEntry) -> None:
        """Add a line, on the disk when this returns.

        Raises:
            ResourceError: If it cannot be written.
        """
        line = json.dumps(asdict(entry), allow_nan=False).encode() + b"\n"
        try:
            with self._path.open("ab+") as stream:
                end = stream.seek(0, os.SEEK_END)
                if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
                    line = b"\n" + line  # behind what a killed process began
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ResourceError(
                f"Cannot write {self._path}: {error.strerror or error}. Check the free "
                "space of the disk and your permission, and call it again: it goes on."
            ) from error
        self._entries[entry.kind, entry.name] = entry


def read_journal(folder: Path) -> tuple[JournalEntry, ...]:
    """Return the entries of the journal in a folder, the oldest first."""
    path = folder / JOURNAL_NAME
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ResourceError(
            f"Cannot read {path}: {error.strerror or error}. Check your permission."
        ) from error
    entries = (_parse_line(line) for line in lines)
    return tuple(entry for entry in entries if entry is not None)


def _parse_line(line: str) -> JournalEntry | None:
    known = {item.name for item in fields(JournalEntry)}
    try:
        found: Any = json.loads(line)
        given = {key: value for key, value in found.items() if key in known}
        return JournalEntry(**given)
    except (ValueError, TypeError, AttributeError):
        if line.strip():
            _log.info("Passed over a line of the journal that is not whole: %s", line)
        return None


def _get_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
