"""What is done of scenes under way: the part files of bands, and what computed them.

They lie in a hidden folder in that of the maps until their scene is put together. Two
engines differ at some pixels, so parts remember theirs, and no other adds to them.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cropseg.errors import ConflictError, DataError
from cropseg.files import write_text
from cropseg.inference.mapping.jobs import PARTS_DIR, SceneJob

_ENGINE_NAME: Final = "engine.txt"

_noting = threading.Lock()
"""Bands of a scene are written by threads, and a file by one at a time."""


def note_engine(scene: SceneJob, engine: str) -> None:
    """Note what computes the parts of a scene, before the first of them is there.

    Args:
        scene: The scene.
        engine: Name and precision, as `name_engine` gives them.

    Raises:
        ConflictError: If parts of it were computed by another.
        ResourceError: If it cannot be written.
    """
    with _noting:
        known = read_engine(scene)
        if known is None:
            write_text(scene.parts_dir / _ENGINE_NAME, engine)
        elif known != engine:
            raise ConflictError(
                f"Bands of {scene.name} were computed by {known}; now {engine} would "
                "add to them. Choose it with --engine and --precision, or start again "
                "with --overwrite."
            )


def read_engine(scene: SceneJob) -> str | None:
    """Return what computed the parts of a scene, or None where there are none yet."""
    try:
        return (scene.parts_dir / _ENGINE_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def list_engines(out_dir: Path) -> set[str]:
    """Return what computed the parts of all scenes in a folder of maps."""
    return {
        path.read_text(encoding="utf-8")
        for path in (out_dir / PARTS_DIR).glob(f"*/*/{_ENGINE_NAME}")
        if any(path.parent.glob("*.tif"))
    }


@contextlib.contextmanager
def blame_part(path: Path) -> Iterator[None]:
    """Remove a part that cannot be read, as another call could not read it either.

    Raises:
        DataError: If reading it raises one.
    """
    try:
        yield
    except DataError as error:
        path.unlink(missing_ok=True)
        raise DataError(
            f"{path}, a band that was done before, was damaged and is removed. Call "
            "the same command again: that band is done anew."
        ) from error


def remove_parts(scene: SceneJob) -> None:
    """Remove the parts of a scene, those of earlier content too."""
    shutil.rmtree(scene.out_dir / PARTS_DIR / scene.name, ignore_errors=True)


def remove_empty(out_dir: Path) -> None:
    """Remove the folder of all parts if none is left.

    Not while bands are under way: one may be making its own folder in it just then.
    """
    with contextlib.suppress(OSError):
        (out_dir / PARTS_DIR).rmdir()
