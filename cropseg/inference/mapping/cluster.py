"""Bands on the worker processes of dask.distributed, on this machine or on many.

A task is some bands: one of a huge scene, or several small scenes. Workers write part
files alone (`cluster_worker`). This process puts scenes together and keeps the
journal: there is one writer of finished files.

Tasks of a worker that died are given to another one. Bands whose workers died again
and again are done once more, each with nothing else on the cluster, so that the one
to blame is found and named and the others are done.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cropseg.errors import ModelError, ResourceError
from cropseg.inference.mapping.cluster_client import (
    PATIENCE_S,
    Show,
    check_workers,
    keep_dask_quiet,
    open_client,
    parse_address,
    require_distributed,
    show_workers,
)
from cropseg.inference.mapping.cluster_tasks import (
    DeadlyBandError,
    Jobs,
    TaskReport,
    WorkerStart,
    group_jobs,
    make_absolute,
    name_bands,
)
from cropseg.inference.mapping.cluster_worker import do_bands, remove_attempts
from cropseg.inference.mapping.jobs import BandJob, BandResult, EngineSettings
from cropseg.inference.mapping.parts import note_engine
from cropseg.inference.mapping.pipeline import RunJobs

_TASKS_AHEAD: Final = 2  # one under way and one ready, by worker
_LOOK_S: Final = 5
_VISIBLE_S: Final = 20  # network file systems tell of new files after some seconds

_log = logging.getLogger(__name__)

NoteEngine = Callable[[str], None]


@contextlib.contextmanager
def open_cluster(
    address: str,
    settings: EngineSettings,
    *,
    show: Show = _log.info,
    note_engine: NoteEngine = _log.info,
) -> Iterator[RunJobs]:
    """Start workers, or find those of a scheduler, and give them bands to do.

    Args:
        address: `local:N`, or the address of a scheduler. All its workers must see
            the model, the scenes and the output under the same paths.
        settings: How a worker opens its engine.
        show: Called with lines that tell how many workers there are, where the
            dashboard is, and with which bands workers died.
        note_engine: Called once with the engine and precision that workers compute
            with, before the first band is kept. It may raise to refuse them.

    Yields:
        What does bands: the same as `run_jobs` with the engine, in part files.

    Raises:
        UsageError: If the address cannot be used, or dask.distributed is missing.
        ResourceError: If the scheduler or its workers do not answer.
        ModelError: If a worker has another model, or another version of cropseg.
    """
    where = parse_address(address)
    require_distributed()
    settings = replace(settings, model_path=settings.model_path.absolute())
    out_dirs: set[Path] = set()
    with contextlib.ExitStack() as stack:
        stack.enter_context(keep_dask_quiet())
        stack.callback(_clean_up, out_dirs)  # when workers of this machine are gone
        client = stack.enter_context(open_client(where))
        seen = check_workers(client, settings.model_path)
        show_workers(client, show)

        def run(jobs: Iterable[BandJob]) -> Iterator[BandResult]:
            start = WorkerStart(
                settings=settings,
                seen=seen,
                num_local=where if isinstance(where, int) else None,
            )
            tasks = _Tasks(
                client, start, out_dirs=out_dirs, show=show, note_engine=note_engine
            )
            return tasks.run(jobs)

        yield run


def _clean_up(out_dirs: Iterable[Path]) -> None:
    for folder in out_dirs:
        remove_attempts(folder)


class _Tasks:
    """Gives tasks to the workers of a client, and takes what comes back, once."""

    def __init__(
        self,
        client: Any,
        start: WorkerStart,
        *,
        out_dirs: set[Path],
        show: Show = _log.info,
        note_engine: NoteEngine = _log.info,
    ) -> None:
        self._client, self._start, self._out_dirs = client, start, out_dirs
        self._show, self._note_engine = show, note_engine
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._under_way: dict[Any, Jobs] = {}
        self._suspects: deque[BandJob] = deque()
        self._engines: dict[str, str] = {}

    def run(self, jobs: Iterable[BandJob]) -> Iterator[BandResult]:
        """Do bands; see `RunJobs`."""
        groups = group_jobs(jobs)
        try:
            while self._fill(groups):
                yield from self._take(self._wait_for_one(), may_suspect=True)
            while self._suspects:
                job = self._suspects.popleft()
                self._submit((job,))
                yield from self._take(self._wait_for_one(), may_suspect=False)
        finally:
            self._client.cancel(list(self._under_way), force=True)

    def _fill(self, groups: Iterator[Jobs]) -> bool:
        """Keep the workers busy; tell whether anything is under way."""
        slots = _TASKS_AHEAD * max(1, self._count_workers())
        while len(self._under_way) < slots:
            group = next(groups, None)
            if group is None:
                break
            self._submit(group)
        return bool(self._under_way)

    def _submit(self, jobs: Jobs) -> None:
        self._out_dirs |= {job.scene.out_dir for job in jobs}
        first = jobs[0]
        more = f"-and-{len(jobs) - 1}" if len(jobs) > 1 else ""
        name = f"{first.scene.name}-{first.index}{more}"
        future = self._client.submit(
            do_bands,
            self._start,
            tuple(map(make_absolute, jobs)),
            key=f"{name}-{uuid.uuid4().hex}",
            pure=False,
        )
        self._under_way[future] = jobs
        future.add_done_callback(self._done.put)

    def _count_workers(self) -> int:
        try:
            return len(self._client.nthreads())
        except OSError as error:  # what a lost connection is
            raise _tell_lost(error) from error

    def _wait_for_one(self) -> Any:
        alone_since: float | None = None
        while True:
            with contextlib.suppress(queue.Empty):
                return self._done.get(timeout=_LOOK_S)
            if self._count_workers():
                alone_since = None
                continue
            now = time.monotonic()
            alone_since = alone_since or now
            if now - alone_since > PATIENCE_S:
                raise ResourceError(
                    f"No worker is left, for {PATIENCE_S} s. What is done stays: "
                    "start workers and call the same command again."
                )

    def _take(self, future: Any, *, may_suspect: bool) -> Iterator[BandResult]:
        from distributed import KilledWorker

        jobs = self._under_way.pop(future)
        if future.status == "cancelled":
            raise _tell_lost(None)
        error = future.exception()
        if isinstance(error, KilledWorker):
            if may_suspect:
                self._suspects.extend(jobs)
                self._show(f"Workers died with {name_bands(jobs)}; it is tried alone.")
                return
            (job,) = jobs
            yield BandResult(job=job, error=_tell_poison(job, error))
            return
        if error is not None:
            raise error
        report = future.result()
        self._check_engine(report)
        for job, result in zip(jobs, report.results, strict=True):
            yield _commit(result, job)

    def _check_engine(self, report: TaskReport) -> None:
        """Refuse to mix engines in one map, before anything of it is kept."""
        if report.engine not in self._engines:
            self._note_engine(report.engine)
        self._engines.setdefault(report.engine, report.worker)
        if len(self._engines) > 1:
            found = [f"{engine} ({at})" for engine, at in self._engines.items()]
            raise ModelError(
                f"Workers compute with {' and '.join(found)}, which would mix two "
                "results in one map. Say which: --engine and --precision."
            )


def _tell_poison(job: BandJob, error: Any) -> DeadlyBandError:
    rows = f"rows {job.window.row}-{job.window.row_end}"
    return DeadlyBandError(
        f"The {name_bands((job,))} ({rows}) ended {error.allowed_failures + 1} worker "
        f"processes, the last at {error.last_worker.address}, with nothing else under "
        "way. It may need more memory than a worker has, or its file makes a library "
        "crash: map this scene alone, without --cluster."
    )


def _tell_lost(error: OSError | None) -> ResourceError:
    return ResourceError(
        f"The connection to the dask scheduler is lost{f': {error}' if error else ''}. "
        "What is done stays: call the same command again."
    )


def _commit(result: BandResult, job: BandJob) -> BandResult:
    """Move the part files of an attempt to where those of the band belong."""
    attempt = result.job
    if result.error is not None:
        return replace(result, job=job)
    until = time.monotonic() + _VISIBLE_S
    while not attempt.is_done and time.monotonic() < until:
        time.sleep(_VISIBLE_S / 200)
    try:
        note_engine(job.scene, result.engine)
        for layer in job.scene.layers:
            attempt.get_part_path(layer).replace(job.get_part_path(layer))
    except OSError as error:
        told = ResourceError(
            f"A worker did the {name_bands((job,))}, but here its files cannot be "
            f"moved to {job.scene.parts_dir}: {error}. Choose --out on storage that "
            "all workers and this process see under one path."
        )
        return replace(result, job=job, error=told)
    finally:
        shutil.rmtree(attempt.scene.out_dir, ignore_errors=True)
    return replace(result, job=job)
