"""Bands through an engine: read, predicted and written at the same time.

A reading thread fills a queue with tiles, band after band and scene after scene. The
calling thread leads all of them through one stream of the engine, without a gap where
a scene ends, and hands each result to the thread of its band, which writes. So an
engine on all cores never waits for a file, and no more is in memory than the queues
take. Every dataset is opened, used and closed in one thread (HAZARDS 4).

    reading thread -> queue -> engine -> queue of the band -> thread of the band

The thread of a band runs `predict_area`, as anyone would who has an engine. What it is
given for one passes tiles on to the reading thread and takes results back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import CropsegError
from cropseg.inference.engines.engine import Engine, T
from cropseg.inference.mapping.assemble import write_band
from cropseg.inference.mapping.band_input import BandInput
from cropseg.inference.mapping.channel import Channel, ClosedError
from cropseg.inference.mapping.jobs import BandJob, BandResult, name_engine
from cropseg.inference.tiles.mosaic import PredictedTile, predict_area
from cropseg.models.card import Card

RunJobs = Callable[[Iterable[BandJob]], Iterator[BandResult]]
"""Does bands: in this process, or on a cluster. Results come in any order, one each."""

ShowTile = Callable[[BandJob], None]
"""Called when a tile is written, from any thread, by one at a time."""

_log = logging.getLogger(__name__)

_QUEUED_TILES = 4
_PATIENCE_S = 1.0
_UNWRITTEN_BANDS = 8
"""So many bands may be predicted and not yet written whole, before reading waits."""

Floats = npt.NDArray[np.float32]


def run_jobs(
    engine: Engine,
    jobs: Iterable[BandJob],
    *,
    show_tile: ShowTile | None = None,
    num_readers: int = 1,
) -> Iterator[BandResult]:
    """Predict bands and write their files.

    Args:
        engine: The model. It runs in the calling thread.
        jobs: The bands, taken one by one in a reading thread when their turn comes.
            Those whose tiles have one shape and follow each other share one stream.
        show_tile: Called for each tile that is written.
        num_readers: Threads that read, each a band of its own.

    Yields:
        A result for each band, as it is finished. That of a band that failed holds
        the error, and no file of it is left.

    Raises:
        Exception: What the engine, `jobs` or `show_tile` raises. Bands that are not
            finished leave nothing then, as when the iterator is closed.
    """
    run = _Run(engine, iter(jobs), show_tile or _show_nothing)
    try:
        run.start(num_readers)
        while not run.is_read:
            first = run.take_tile()
            if first is not None:
                found = engine.stream(run.take_like(first), margin=first.margin)
                for (relay, key), probabilities in found:
                    relay.give(key, probabilities)
                    yield from run.take_finished()
            yield from run.take_finished()
        yield from run.wait_for_rest()
    finally:
        run.close()


def _show_nothing(_job: BandJob) -> None:
    pass


@dataclass(frozen=True)
class _TileOnItsWay:
    relay: _Relay
    key: Any
    values: Floats
    margin: int


@dataclass(frozen=True)
class _AllRead:
    num_tiles: int
    error: BaseException | None


class _Relay:
    """Stands for the engine in the thread of a band."""

    def __init__(self, engine: Engine, job: BandJob) -> None:
        self.job = job
        self.name: str = engine.name
        self.precision: str = engine.precision
        self.card: Card = engine.card
        self.requests: Channel[tuple[Iterator[tuple[Any, Floats]], int]] = Channel(
            max_items=1
        )
        self._results: Channel[tuple[Any, Floats] | _AllRead] = Channel(
            max_items=_QUEUED_TILES
        )
        self._is_used = False

    def stream(
        self, tiles: Iterable[tuple[T, Floats]], *, margin: int = 0
    ) -> Iterator[tuple[T, Floats]]:
        """Let the reading thread take the tiles, and give back what comes of them."""
        if self._is_used:
            message = "The reading thread has gone on to the next band."
            raise RuntimeError(message)
        self._is_used = True
        self.requests.put((iter(tiles), margin))
        num_done, num_tiles = 0, None
        while num_done != num_tiles:
            result = self._results.get()
            if isinstance(result, _AllRead):
                if result.error is not None:
                    raise result.error
                num_tiles = result.num_tiles
            else:
                num_done += 1
                yield result

    def give(self, key: Any, probabilities: Floats) -> None:
        """Pass a result on; it is dropped where the band has failed."""
        try:
            self._results.put((key, probabilities))
        except ClosedError:
            _log.debug("A tile of %s is not wanted any more.", self.job.scene.name)

    def end_reading(self, num_tiles: int, error: BaseException | None) -> None:
        """Say that no more tiles follow, or that they cannot be read."""
        try:
            self._results.put(_AllRead(num_tiles, error))
        except ClosedError:
            _log.debug("Nobody waits for %s any more.", self.job.scene.name)

    def close(self) -> None:
        """Let nobody wait for this band."""
        self.requests.close()
        self._results.close()


class _Run:
    """The threads and queues of one call of `run_jobs`."""

    def __init__(
        self, engine: Engine, jobs: Iterator[BandJob], show_tile: ShowTile
    ) -> None:
        self._engine, self._jobs, self._show_tile = engine, jobs, show_tile
        self._tiles: Channel[_TileOnItsWay] = Channel(max_items=_QUEUED_TILES)
        self._held: _TileOnItsWay | None = None
        self._finished: deque[BandResult] = deque()
        self._fatal: list[BaseException] = []
        self._changed = threading.Condition()  # guards what follows, and the above two
        self._num_readers = 0
        self._unwritten: set[_Relay] = set()
        self._is_closed = False
        self._relays: dict[_Relay, threading.Thread] = {}
        self._readers: list[threading.Thread] = []
        self._taking_job = threading.Lock()
        self._showing = threading.Lock()
        self.is_read = False

    def start(self, num_readers: int) -> None:
        self._num_readers = num_readers
        for index in range(num_readers):
            reader = threading.Thread(
                target=self._read_all, name=f"cropseg-read-{index}", daemon=True
            )
            self._readers.append(reader)
            reader.start()

    # In the calling thread.

    def take_tile(self) -> _TileOnItsWay | None:
        """Return the next tile; None where none comes for a while, or ever."""
        held, self._held = self._held, None
        if held is not None:
            return held
        try:
            return self._tiles.get(_PATIENCE_S)
        except TimeoutError:
            return None
        except ClosedError:
            self._raise_fatal()
            self.is_read = True
            return None

    def take_like(
        self, first: _TileOnItsWay
    ) -> Iterator[tuple[tuple[_Relay, Any], Floats]]:
        """Yield a tile and those that follow, until one of another shape comes.

        The stream also ends where no tile comes for a while, as in a scene without
        data. An engine then gives what it has in hand, and the caller hears of bands
        that are finished.
        """
        tile: _TileOnItsWay | None = first
        while tile is not None:
            if (tile.values.shape, tile.margin) != (first.values.shape, first.margin):
                self._held = tile
                return
            yield (tile.relay, tile.key), tile.values
            tile = self.take_tile()

    def take_finished(self) -> Iterator[BandResult]:
        self._raise_fatal()
        while self._finished:
            yield self._finished.popleft()

    def wait_for_rest(self) -> Iterator[BandResult]:
        """Yield the results of the bands that are still being written."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._finished or self._fatal or not self._relays
                )
                is_last = not self._relays
            yield from self.take_finished()
            if is_last:
                return

    def close(self) -> None:
        """End all threads, and wait until they have cleaned up."""
        with self._changed:
            self._is_closed = True
            relays = dict(self._relays)
            self._changed.notify_all()
        self._tiles.close()
        for relay in relays:
            relay.close()
        for thread in (*self._readers, *relays.values()):
            thread.join()
        for thread in list(self._relays.values()):  # begun while it was closed
            thread.join()

    def _raise_fatal(self) -> None:
        if self._fatal:
            raise self._fatal[0]

    # In a reading thread.

    def _read_all(self) -> None:
        try:
            while (job := self._take_job()) is not None:
                self._read(job)
        except ClosedError:
            _log.debug("Reading ends with the run.")
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread
            self._fail(error)
        finally:
            with self._changed:
                self._num_readers -= 1
                is_last = not self._num_readers
            if is_last:
                self._tiles.end()

    def _take_job(self) -> BandJob | None:
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._unwritten) < _UNWRITTEN_BANDS or self._is_closed
            )
            if self._is_closed:
                return None
        with self._taking_job:
            return next(self._jobs, None)

    def _read(self, job: BandJob) -> None:
        """Start the thread of a band, and read the tiles that it asks for."""
        relay = _Relay(self._engine, job)
        source = BandInput(job.scene)
        writer = threading.Thread(
            target=self._write,
            args=(relay, source),
            name=f"cropseg-{job.scene.name}-{job.index}",
            daemon=True,
        )
        with self._changed:
            if self._is_closed:
                return
            self._relays[relay] = writer
            writer.start()
        try:
            tiles, margin = relay.requests.get()
        except ClosedError:
            return  # it failed, or the run ends
        num_tiles, failure = 0, None
        try:
            for key, values in tiles:
                self._tiles.put(_TileOnItsWay(relay, key, values, margin))
                num_tiles += 1
        except Exception as error:  # noqa: BLE001 - raised in the thread of the band
            failure = error
        finally:
            source.close()
        relay.end_reading(num_tiles, failure)

    # In the thread of a band.

    def _write(self, relay: _Relay, source: BandInput) -> None:
        job = relay.job
        result = None
        started = time.monotonic()
        engine = name_engine(self._engine)
        try:
            tiles = self._iterate_tiles(relay, source)
            pixels = write_band(job, tiles, engine=engine)
            seconds = time.monotonic() - started
            result = BandResult(
                job=job, class_pixels=pixels, seconds=seconds, engine=engine
            )
        except CropsegError as error:
            result = BandResult(job=job, error=error)
        except ClosedError:
            _log.debug("%s is left, as the run ends.", job.scene.name)
        except MemoryError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - the other scenes go on
            result = BandResult(job=job, error=tell_bug(error))
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread
            self._fail(error)
        finally:
            relay.close()
            with self._changed:
                if result is not None:
                    self._finished.append(result)
                self._unwritten.discard(relay)
                self._relays.pop(relay)
                self._changed.notify_all()

    def _iterate_tiles(
        self, relay: _Relay, source: BandInput
    ) -> Iterator[PredictedTile]:
        job = relay.job
        scene = job.scene
        for tile in predict_area(
            relay,
            source,
            scene.grid,
            job.window,
            shape=scene.shape,
            blend=scene.blend,
            keep=source.keep,
        ):
            yield tile
            with self._showing:
                self._show_tile(job)
        with self._changed:
            self._unwritten.add(relay)

    def _fail(self, error: BaseException) -> None:
        """Let the calling thread raise an error, wherever it waits."""
        with self._changed:
            self._fatal.append(error)
            self._changed.notify_all()
        self._tiles.close()


def tell_bug(error: Exception) -> CropsegError:
    """Return an error that nobody foresaw as one of a scene, which stops no other."""
    told = CropsegError(f"This is a bug of cropseg: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
