"""Scenes through whatever does their bands, and into their finished files.

Bands are cut when their turn comes, those that an earlier call left are passed over,
and a scene whose bands are all done is put together, in a thread of its own and by one
process alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cropseg.errors import CropsegError
from cropseg.inference.mapping.assemble import assemble_scene
from cropseg.inference.mapping.jobs import BandJob, BandResult, SceneJob, cut_scene
from cropseg.inference.mapping.parts import read_engine, remove_empty
from cropseg.inference.mapping.pipeline import RunJobs, tell_bug

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SceneResult:
    """What became of a scene."""

    scene: SceneJob
    """The scene."""
    class_pixels: tuple[int, ...] = ()
    """Pixels of its map by class of the model."""
    seconds: float = 0.0
    """How long its bands took, and putting them together. Scenes overlap."""
    engine: str = ""
    """What predicted it, as `name_engine` gives it."""
    error: CropsegError | None = None
    """Why it failed; None where its files are whole and in their place."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its finished files, the class map first."""
        return tuple(self.scene.get_path(layer) for layer in self.scene.layers)


def map_scenes(
    run: RunJobs, scenes: Iterable[SceneJob], *, in_parts: bool = False
) -> Generator[SceneResult, None, None]:
    """Map scenes.

    Args:
        run: Does bands, as `run_jobs` does with an engine.
        scenes: The scenes, taken one by one when their turn comes, maybe in another
            thread.
        in_parts: Whether bands are done elsewhere, so that all are part files.

    Yields:
        A result for each scene, as it is finished. One that failed does not stop the
        others; its bands that are done stay for another call.
    """
    batch = _Batch(in_parts=in_parts)
    try:
        for band in run(batch.cut(scenes)):
            batch.take(band)
            yield from batch.take_finished()
        yield from batch.wait_for_rest()
    finally:
        batch.close()


@dataclass
class _Progress:
    """How far a scene is."""

    num_bands: int
    seconds: float = 0.0
    has_failed: bool = False


class _Batch:
    """The scenes that are under way."""

    def __init__(self, *, in_parts: bool) -> None:
        self._in_parts = in_parts
        self._scenes: dict[str, _Progress] = {}
        self._out_dirs: set[Path] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cropseg-assemble")
        self._assembled: deque[Future[SceneResult]] = deque()
        self._finished: deque[SceneResult] = deque()

    def cut(self, scenes: Iterable[SceneJob]) -> Iterator[BandJob]:
        """Yield the bands that are to do. This may run in a thread of its own."""
        for scene in scenes:
            bands = cut_scene(scene, in_parts=self._in_parts)
            todo = [band for band in bands if not band.is_done]
            with self._lock:
                self._out_dirs.add(scene.out_dir)
                progress = self._scenes[scene.name] = _Progress(num_bands=len(todo))
            if len(todo) < len(bands):
                done = len(bands) - len(todo)
                _log.info("%s: %d of %d bands are done", scene.name, done, len(bands))
            if not todo:
                self._assemble(scene, progress)
            for band in todo:
                if progress.has_failed:
                    break
                yield band

    def take(self, result: BandResult) -> None:
        """Note what became of a band, and go on with its scene if it was the last."""
        scene = result.job.scene
        progress = self._scenes[scene.name]
        if progress.has_failed:
            return
        progress.num_bands -= 1
        progress.seconds += result.seconds
        if result.error is not None:
            progress.has_failed = True
            self._finished.append(SceneResult(scene=scene, error=result.error))
        elif result.job.is_whole:
            done = SceneResult(
                scene=scene,
                class_pixels=result.class_pixels,
                seconds=result.seconds,
                engine=result.engine,
            )
            self._finished.append(done)
        elif not progress.num_bands:
            self._assemble(scene, progress)

    def take_finished(self) -> Iterator[SceneResult]:
        while self._assembled and self._assembled[0].done():
            self._finished.append(self._assembled.popleft().result())
        while self._finished:
            yield self._finished.popleft()

    def wait_for_rest(self) -> Iterator[SceneResult]:
        while self._assembled:
            self._finished.append(self._assembled.popleft().result())
            yield from self.take_finished()

    def close(self) -> None:
        """Stop what is under way, and wait until it has cleaned up."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        for folder in tuple(self._out_dirs):
            remove_empty(folder)

    def _assemble(self, scene: SceneJob, progress: _Progress) -> None:
        future = self._pool.submit(self._assemble_now, scene, progress.seconds)
        self._assembled.append(future)

    def _assemble_now(self, scene: SceneJob, seconds: float) -> SceneResult:
        started = time.monotonic()
        engine = read_engine(scene) or ""  # before the parts go
        try:
            pixels = assemble_scene(scene, is_stopped=self._stopped.is_set)
        except CropsegError as error:
            return SceneResult(scene=scene, seconds=seconds, error=error)
        except Exception as error:  # noqa: BLE001 - the other scenes go on
            return SceneResult(scene=scene, seconds=seconds, error=tell_bug(error))
        seconds += time.monotonic() - started
        return SceneResult(
            scene=scene, class_pixels=pixels, seconds=seconds, engine=engine
        )
