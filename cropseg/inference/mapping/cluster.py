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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from cropseg.errors import ModelError, ResourceError, UsageError
from cropseg.inference.mapping.cluster_tasks import (
    Jobs,
    TaskReport,
    group_jobs,
    make_absolute,
    name_bands,
)
from cropseg.inference.mapping.cluster_worker import (
    do_bands,
    look_around,
    remove_attempts,
)
from cropseg.inference.mapping.jobs import BandJob, BandResult, EngineSettings
from cropseg.inference.mapping.pipeline import RunJobs

_REMOTE: Final = ("tcp://", "tls://")
_TASKS_AHEAD: Final = 2  # one under way and one ready, by worker
_LOCAL_FAILURES: Final = 2  # deaths of workers, after which dask gives a task back
_CONNECT_S: Final = 30
_PATIENCE_S: Final = 300  # for workers that restart, or wait in a queue of a cluster
_LOOK_S: Final = 5
_VISIBLE_S: Final = 20  # network file systems tell of new files after some seconds

_log = logging.getLogger(__name__)

Show = Callable[[str], None]
NoteEngine = Callable[[str], None]


def parse_address(text: str) -> int | str:
    """Read what `--cluster` takes.

    Returns:
        A number of worker processes of this machine, or the address of a scheduler.

    Raises:
        UsageError: If it is neither `local:N` nor `tcp://HOST:PORT`.

    Example:
        >>> parse_address("local:4")
        4
        >>> parse_address("tcp://10.0.0.7:8786")
        'tcp://10.0.0.7:8786'
    """
    kind, _, number = text.partition(":")
    if kind == "local" and number.isascii() and number.isdigit() and int(number):
        return int(number)
    if text.startswith(_REMOTE) and text.rpartition(":")[2].isdigit():
        return text
    raise UsageError(
        f"--cluster is {text}; it must be local:N for N processes on this machine, or "
        "tcp://HOST:PORT (or tls://) of a dask scheduler."
    )


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
    _require_distributed()
    settings = replace(settings, model_path=settings.model_path.absolute())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_keep_dask_quiet())
        client = stack.enter_context(_open_client(where))
        _check_workers(client, settings.model_path)
        _show_cluster(client, show)
        workers = where if isinstance(where, int) else None

        def run(jobs: Iterable[BandJob]) -> Iterator[BandResult]:
            tasks = _Tasks(
                client,
                settings,
                local_workers=workers,
                show=show,
                note_engine=note_engine,
            )
            return tasks.run(jobs)

        yield run


def _require_distributed() -> None:
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--cluster needs dask.distributed, which is not installed. Install it: "
            "pip install 'cropseg[cluster]'"
        ) from error


@contextlib.contextmanager
def _keep_dask_quiet() -> Iterator[None]:
    """Let dask log only where cropseg logs as much: it says when it connects."""
    logger = logging.getLogger("distributed")
    before = logger.level
    if not _log.isEnabledFor(logging.INFO):
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _open_client(where: int | str) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    if isinstance(where, int):
        options = {
            "distributed.worker.multiprocessing-method": "spawn",  # HAZARDS 4
            "distributed.scheduler.allowed-failures": _LOCAL_FAILURES,
        }
        with (
            dask.config.set(options),
            LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=where,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,  # type: ignore[no-untyped-call]
        ):
            yield client
        return
    try:
        client = Client(where, timeout=_CONNECT_S)  # type: ignore[no-untyped-call]
    except OSError as error:  # TimeoutError is one
        raise ResourceError(
            f"No dask scheduler answers at {where}: {error}. Start one with `dask "
            "scheduler`, and check the address and the firewall."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            raise ResourceError(
                f"The scheduler at {where} has no worker after {_PATIENCE_S} s. Start "
                f"some: dask worker {where} --nthreads 1"
            ) from error
        yield client


def _show_cluster(client: Any, show: Show) -> None:
    workers = client.nthreads()
    noun = "worker process" if len(workers) == 1 else "worker processes"
    show(f"{len(workers)} {noun}; dashboard at {client.dashboard_link}")
    if not find_spec("bokeh"):
        show("The dashboard needs bokeh where the scheduler runs: pip install bokeh")


def _check_workers(client: Any, model_path: Path) -> None:
    """Check that all workers have this model and this version of cropseg."""
    own = look_around(str(model_path))
    found = client.run(look_around, str(model_path))
    others = {worker: seen for worker, seen in found.items() if seen != own}
    if others:
        worker, seen = next(iter(others.items()))
        raise ModelError(
            f"{len(others)} of {len(found)} workers cannot do this work. Here there "
            f"is {own}, on {worker} {seen}. Install one version everywhere, and put "
            "the model on storage that all workers see under one path."
        )


class _Tasks:
    """Gives tasks to the workers of a client, and takes what comes back, once."""

    def __init__(
        self,
        client: Any,
        settings: EngineSettings,
        *,
        local_workers: int | None = None,
        show: Show = _log.info,
        note_engine: NoteEngine = _log.info,
    ) -> None:
        self._client, self._settings, self._show = client, settings, show
        self._local_workers, self._note_engine = local_workers, note_engine
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._under_way: dict[Any, Jobs] = {}
        self._suspects: deque[BandJob] = deque()
        self._engines: dict[str, str] = {}
        self._out_dirs: set[Path] = set()

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
            for folder in self._out_dirs:
                remove_attempts(folder)

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
            self._settings,
            tuple(map(make_absolute, jobs)),
            self._local_workers,
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
            if now - alone_since > _PATIENCE_S:
                raise ResourceError(
                    f"No worker is left, for {_PATIENCE_S} s. What is done stays: "
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


def _tell_poison(job: BandJob, error: Any) -> ResourceError:
    rows = f"rows {job.window.row}-{job.window.row_end}"
    return ResourceError(
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
        job.scene.parts_dir.mkdir(parents=True, exist_ok=True)
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
