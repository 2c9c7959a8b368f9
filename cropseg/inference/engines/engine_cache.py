"""Where converted models are kept, so that a model is converted once. No Keras.

An entry is a folder of one model, one engine and one version: in `.model.engines`
beside `model.keras` or, where that cannot be written, in the user's cache. It counts
if its record is there and its files have the content that the record says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cropseg.errors import CropsegError, ModelError, ResourceError, UsageError
from cropseg.files import hash_file, write_json, write_whole
from cropseg.inference.engines.openvino_package import get_openvino_version

_NETWORK: Final = ("network.bin", "network.xml")
"""What `convert` writes."""

_RECORD: Final = "engine.json"
_LOCK: Final = ".lock"
_NUM_DIGITS: Final = 16
_VERSION: Final = 3
"""Raised whenever `convert` makes something else of the same model."""

_ERRORS: Final = {kind.exit_code: kind for kind in (UsageError, ResourceError)}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineCache:
    """The entries of one model for one version of an engine."""

    model_path: Path
    """The model file."""
    model_sha256: str
    """Its content."""
    version: str
    """Name and version of the engine, such as openvino-2026.4.1."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of the entry, the preferred one first; they may not be there."""
        name = f"{self.model_sha256[:_NUM_DIGITS]}-{self.version}"
        beside = self.model_path.absolute().parent / f".{self.model_path.stem}.engines"
        homes = [beside, *_find_user_cache()]
        return tuple(home / name for home in homes)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a document of the entry, or None where there is none."""
        for folder in self.folders:
            document = _read_json(folder / name)
            if document is not None:
                return document
        return None

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Keep a document with the entry, where a folder can be written."""
        for folder in self.folders:
            try:
                with _wait_for_lock(folder):
                    write_json(folder / name, document)
            except OSError as error:
                _log.info("Cannot keep %s in %s: %s", name, folder, error)
            else:
                return


def open_cache(model_path: Path, engine: str, version: str) -> EngineCache:
    """Return the cache of a model.

    Args:
        model_path: The model file.
        engine: Name of the engine.
        version: What else than the model decides what the engine does.
    """
    return EngineCache(
        model_path=model_path,
        model_sha256=hash_file(model_path),
        version=f"{engine}-{version}",
    )


def open_openvino_cache(model_path: Path) -> EngineCache:
    """Return the cache of a model for the OpenVINO that is installed."""
    return open_cache(model_path, "openvino", f"{get_openvino_version()}-{_VERSION}")


@contextlib.contextmanager
def open_network(cache: EngineCache) -> Iterator[Path]:
    """Give the folder with `network.xml` and `network.bin`, converted if need be.

    Where nothing can be kept, it is a folder that is gone at the end.

    Args:
        cache: The cache of the model for OpenVINO.

    Raises:
        ModelError: If the model cannot be converted.
        ResourceError: If there is no room for the converted model anywhere.
    """
    for folder in cache.folders:
        if _is_whole(folder, cache):
            yield folder
            return
    with tempfile.TemporaryDirectory(prefix="cropseg-engine-") as made:
        yield _make_network(cache, Path(made))


def _make_network(cache: EngineCache, made: Path) -> Path:
    """Convert the model, and return the folder where it is kept."""
    for folder in cache.folders:
        try:
            with _wait_for_lock(folder):
                # Another process may have made it while this one waited.
                if _is_whole(folder, cache):
                    return folder
                _convert_same(cache, made)
                _keep(made, folder, cache)
                # Where there are no locks, two may have written at once.
                if _is_whole(folder, cache):
                    return folder
        except OSError as error:
            _log.info("Cannot keep a converted model in %s: %s", folder, error)
    _convert_same(cache, made)
    return made


def _convert_same(cache: EngineCache, made: Path) -> None:
    """Convert the model, if it is still the one that the entry is named after."""
    _convert(cache.model_path, made)
    if hash_file(cache.model_path) != cache.model_sha256:
        raise ModelError(
            f"{cache.model_path} was replaced while it was converted. Call it again "
            "when nothing writes the model any more."
        )


def _convert(model_path: Path, folder: Path) -> None:
    if all((folder / name).exists() for name in _NETWORK):
        return
    _log.info("Converting %s for OpenVINO, once", model_path)
    home = str(Path(__file__).parents[3])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    # No GPU: this takes seconds, and TensorFlow would take all of its memory.
    changes = {
        "PYTHONPATH": os.pathsep.join(paths),
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    module = "cropseg.inference.engines.convert"
    command = [sys.executable, "-m", module, str(model_path), str(folder)]
    ended = subprocess.run(  # noqa: S603 - this package's own code
        command,
        env=os.environ | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode < 0:
        raise ModelError(
            f"The process that converts {model_path} was ended by signal "
            f"{-ended.returncode}. It takes 1.2 GB of memory; free some, or use "
            "--engine keras."
        )
    if ended.returncode:
        kind: type[CropsegError] = _ERRORS.get(ended.returncode, ModelError)
        raise kind(ended.stderr.strip() or f"{model_path} cannot be converted.")


def _keep(made: Path, folder: Path, cache: EngineCache) -> None:
    for name in _NETWORK:
        with write_whole(folder / name) as part:
            shutil.copyfile(made / name, part)
    record = {
        "model": cache.model_path.name,
        "model_sha256": cache.model_sha256,
        "version": cache.version,
        "files": {name: hash_file(made / name) for name in _NETWORK},
    }
    write_json(folder / _RECORD, record)


def _is_whole(folder: Path, cache: EngineCache) -> bool:
    record = _read_json(folder / _RECORD)
    if record is None or record.get("model_sha256") != cache.model_sha256:
        return False
    files = record.get("files")
    if not isinstance(files, dict) or not set(_NETWORK) <= set(files):
        return False
    try:
        return all(hash_file(folder / name) == files[name] for name in _NETWORK)
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


@contextlib.contextmanager
def _wait_for_lock(folder: Path) -> Iterator[None]:
    """Make a folder, and hold its lock once no other process does.

    Raises:
        OSError: If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w", encoding="utf-8") as stream:
        # On a disk without locks two processes may do the same work, no worse.
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _find_user_cache() -> list[Path]:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:  # a user without a home folder
        return []
    return [home / "cropseg" / "engines"]
