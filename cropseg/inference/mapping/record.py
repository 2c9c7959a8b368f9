"""What became of the scenes of a batch: in the journal, in the log, and for the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cropseg.errors import (
    ConflictError,
    CropsegError,
    PartialFailureError,
    ResourceError,
    join_problems,
)
from cropseg.inference.mapping.assemble import (
    ENGINE_TAG,
    SCENE_TAG,
    read_common_tags,
)
from cropseg.inference.mapping.batch import SceneResult
from cropseg.inference.mapping.cluster_tasks import DeadlyBandError
from cropseg.inference.mapping.journal import JOURNAL_NAME, Journal, JournalEntry
from cropseg.inference.mapping.parts import list_engines
from cropseg.inference.outputs.layers import Layer

_MAX_SHOWN: Final = 10
_MAX_UNWRITTEN: Final = 3
"""So many scenes in a row that cannot be written end a batch: the disk is full."""

_log = logging.getLogger(__name__)


class Recorder:
    """Notes what becomes of scenes. Threads may share it.

    A batch in which nothing was done yet leaves no journal, so that its folder is free
    for another try with other options.
    """

    def __init__(self, folder: Path, layers: Sequence[Layer]) -> None:
        """Read the journal of a folder.

        Args:
            folder: Folder of the maps.
            layers: What is written of every scene.
        """
        self.failures: dict[str, CropsegError] = {}
        """Why scenes failed in this call, by name."""
        self.product_failures: dict[str, CropsegError] = {}
        """Why files that are made of maps could not be, by name."""
        self.warnings: dict[str, tuple[str, ...]] = {}
        """What is odd about scenes, by name, if anything is."""
        self._folder, self._layers = folder, layers
        self._journal = Journal(folder)
        self._lock = threading.RLock()
        self._held: list[JournalEntry] = []
        self._num_unwritten = 0
        self._num_warned = 0
        self._holds_back = not (folder / JOURNAL_NAME).exists()

    def is_done(self, name: str, fingerprint: str) -> bool:
        """Tell whether a scene of that content is mapped, and note it if that was lost.

        The journal knows, or where its line was lost, what stands in the maps.
        """
        entry = self._find_done(name, fingerprint)
        if entry is None:
            return False
        if entry is not self._journal.find(name):
            self._append(entry)
        self._keep_warnings(name, entry.warnings)
        return True

    def knows(self, name: str, fingerprint: str) -> bool:
        """Tell the same, and write nothing: the folder may belong to someone else."""
        return self._find_done(name, fingerprint) is not None

    def _find_done(self, name: str, fingerprint: str) -> JournalEntry | None:
        entry = self._journal.find(name)
        if entry and entry.status == "done" and entry.fingerprint == fingerprint:
            # Files of another size are not those that were found to be whole.
            return entry if entry.has_files(self._folder) else None
        paths = [self._folder / layer.name_file(name) for layer in self._layers]
        tags = read_common_tags(paths)
        if tags.get(SCENE_TAG) != fingerprint:
            return None
        return JournalEntry(
            name=name,
            fingerprint=fingerprint,
            status="done",
            files=_list_sizes(paths),
            engine=tags.get(ENGINE_TAG, ""),
        )

    def require_engine(self, engine: str) -> None:
        """Refuse to mix engines in one folder: they differ at some pixels.

        Args:
            engine: What is about to map, as `name_engine` gives it.

        Raises:
            ConflictError: If scenes, or bands of one, were mapped by another.
        """
        others = self._list_engines() - {engine}
        if others:
            raise self._refuse_engine(others, f"{engine} would run")

    def require_choice(self, engine: str, precision: str) -> None:
        """Refuse what was asked for where the folder has maps of something else.

        Args:
            engine: One of `ENGINES`.
            precision: One of `PRECISIONS`.

        Raises:
            ConflictError: If scenes, or bands of one, were mapped by another.
        """
        others = {
            known
            for known in self._list_engines()
            if engine not in {"auto", known.partition(" ")[0]}
            or precision not in {"auto", known.partition(" ")[2]}
        }
        if others:
            raise self._refuse_engine(others, f"{engine} {precision} was asked for")

    def _list_engines(self) -> set[str]:
        done = {entry.engine for entry in self._journal.list_done()}
        return (done | list_engines(self._folder)) - {""}

    def _refuse_engine(self, others: set[str], now: str) -> ConflictError:
        name, _, precision = min(others).partition(" ")
        return ConflictError(
            f"Maps in {self._folder} were made by {' and '.join(sorted(others))}; now "
            f"{now}. Go on with --engine {name} --precision {precision}, choose "
            "another --out, or start again with --overwrite."
        )

    def note_warnings(self, name: str, warnings: Sequence[str]) -> None:
        """Note what is odd about a scene, and say so. Of many, some are said."""
        with self._lock:
            self._keep_warnings(name, warnings)
            for text in warnings:
                self._num_warned += 1
                level = (
                    logging.WARNING if self._num_warned <= _MAX_SHOWN else logging.INFO
                )
                _log.log(level, "%s: %s", name, text)
                if self._num_warned == _MAX_SHOWN:
                    _log.warning("More warnings stand in %s.", JOURNAL_NAME)

    def note_failure(
        self, name: str, error: CropsegError, *, fingerprint: str = ""
    ) -> None:
        """Note that a scene failed."""
        _log.info("%s: %s", name, error)  # raised when all are done
        with self._lock:
            self.failures[name] = error
            entry = JournalEntry(
                name=name,
                fingerprint=fingerprint,
                status="failed",
                warnings=self.warnings.get(name, ()),
                error=str(error),
            )
            self._append(entry)

    def note(self, result: SceneResult) -> None:
        """Note what became of a scene.

        Raises:
            ResourceError: If one scene after the other cannot be written.
        """
        scene = result.scene
        if result.error is not None:
            fingerprint = scene.fingerprint
            self.note_failure(scene.name, result.error, fingerprint=fingerprint)
            self._stop_where_none_is_written(result.error)
            return
        self._num_unwritten = 0
        names = scene.scene.card.class_names
        entry = JournalEntry(
            name=scene.name,
            fingerprint=scene.fingerprint,
            status="done",
            files=_list_sizes(result.paths),
            pixels=dict(zip(names, result.class_pixels, strict=True)),
            seconds=round(result.seconds, 3),
            engine=result.engine,
            warnings=self.warnings.get(scene.name, ()),
        )
        with self._lock:
            self._append(entry)

    def raise_failures(self, *, num_scenes: int) -> None:
        """Raise what failed, if anything did.

        Raises:
            CropsegError: The error of the only scene.
            PartialFailureError: If one of several scenes failed.
        """
        errors = self.failures | self.product_failures
        if not errors:
            return
        if len(errors) == 1 and (num_scenes == 1 or not self.failures):
            raise next(iter(errors.values()))
        problems = [f"{name}: {error}" for name, error in errors.items()]
        more = len(problems) - _MAX_SHOWN
        if more > 0:
            problems = [*problems[:_MAX_SHOWN], f"{more} more, see {JOURNAL_NAME}."]
        failed = f"{len(self.failures)} of {num_scenes} scenes"
        if self.product_failures:
            failed += f" and {len(self.product_failures)} files made of maps"
        is_all = len(self.failures) == num_scenes
        rest = "so none is mapped" if is_all else "the rest are mapped"
        raise PartialFailureError(join_problems(f"{failed} failed, {rest}", problems))

    def _append(self, entry: JournalEntry) -> None:
        with self._lock:
            if self._holds_back and entry.status == "failed":
                self._held.append(entry)
                return
            self._holds_back = False
            for held in self._held:
                self._journal.append(held)
            self._held.clear()
            self._journal.append(entry)

    def _keep_warnings(self, name: str, warnings: Sequence[str]) -> None:
        if warnings:
            self.warnings[name] = tuple(warnings)

    def _stop_where_none_is_written(self, error: CropsegError) -> None:
        is_about_disk = isinstance(error, ResourceError) and not isinstance(
            error, DeadlyBandError
        )
        self._num_unwritten = self._num_unwritten + 1 if is_about_disk else 0
        if self._num_unwritten == _MAX_UNWRITTEN:
            raise ResourceError(
                f"{_MAX_UNWRITTEN} scenes in a row could not be written, so the batch "
                f"was stopped. The last: {error} What is mapped stays; call it again "
                "to go on."
            ) from error


def _list_sizes(paths: Sequence[Path]) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in paths}
