"""What a worker process of a cluster does: bands, with one engine, as part files.

A process opens its engine once and does one task at a time. Each attempt writes in a
folder of its own, and the process that gave the task moves its files to their place.
So a task may be done twice, even at the same time, as when a worker that was given up
is alive, and nothing of it shows before it is asked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cropseg.errors import ModelError
from cropseg.files import hash_file
from cropseg.inference.engines.engine import Engine
from cropseg.inference.mapping.cluster_tasks import Jobs, TaskReport, WorkerStart
from cropseg.inference.mapping.jobs import (
    PARTS_DIR,
    BandJob,
    BandResult,
    name_engine,
)
from cropseg.inference.mapping.parts import remove_empty
from cropseg.inference.mapping.pipeline import run_jobs

_ATTEMPT: Final = ".attempt-"

_one_at_a_time = threading.Lock()
_opened: dict[WorkerStart, Engine] = {}


def look_around(model_path: str) -> str:
    """Return what a process has, in words: the version of cropseg, and the model."""
    path = Path(model_path)
    seen = hash_file(path)[:12] if path.is_file() else "no file"
    return f"cropseg {version('cropseg')} and {seen} at {path}"


def do_bands(start: WorkerStart, jobs: Jobs) -> TaskReport:
    """Do bands in this worker process, with its engine.

    Args:
        start: How the engine is opened, the first time.
        jobs: The bands.

    Returns:
        A result for each band, in their order. Its part files are whole, in a folder
        of this attempt.

    Raises:
        ModelError: If this process, which may have come late or serve many batches,
            has another model or version than the one that started the batch.
    """
    from distributed import get_worker

    with _one_at_a_time:
        worker = get_worker()
        if start not in _opened:
            _opened[start] = _open_engine(start, worker)
        engine = _opened[start]
        results = _attempt(engine, jobs)
        return TaskReport(
            results=results, engine=name_engine(engine), worker=str(worker.address)
        )


def _open_engine(start: WorkerStart, worker: Any) -> Engine:
    _opened.clear()  # one model in memory
    seen = look_around(str(start.settings.model_path))
    if seen != start.seen:
        raise ModelError(
            f"The worker {worker.address} cannot do this work: it has {seen}, but the "
            f"batch was started with {start.seen}. Let the model alone while it is "
            "used, and install one version everywhere. What is done stays."
        )
    if start.num_local is not None:
        _keep_to_cores(int(worker.name), start.num_local)
    return start.settings.open()


def _keep_to_cores(index: int, num_workers: int) -> None:
    """Leave the other cores to the other workers, before an engine counts them."""
    if not hasattr(os, "sched_setaffinity"):  # not on macOS
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[index % num_workers :: num_workers] or [cores[index % len(cores)]]
    os.sched_setaffinity(0, own)


def _attempt(engine: Engine, jobs: Jobs) -> tuple[BandResult, ...]:
    """Do bands in folders of this attempt alone. What fails leaves nothing."""
    attempts = [_move_aside(job) for job in jobs]
    results = {}
    with contextlib.ExitStack() as stack:
        for attempt in attempts:
            folder = attempt.scene.out_dir
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for result in run_jobs(engine, attempts):
            results[result.job.scene.out_dir] = result
        stack.pop_all()
    for folder, result in results.items():
        if result.error is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return tuple(results[attempt.scene.out_dir] for attempt in attempts)


def _move_aside(job: BandJob) -> BandJob:
    """Return a job whose files go to a folder of its own, below that of the parts."""
    scene = job.scene
    folder = scene.out_dir / PARTS_DIR / scene.name / f"{_ATTEMPT}{uuid.uuid4().hex}"
    return replace(job, scene=replace(scene, out_dir=folder))


def remove_attempts(out_dir: Path) -> None:
    """Remove what workers left that died, or whose work nobody waits for."""
    with contextlib.suppress(FileNotFoundError):
        for scene_dir in list((out_dir / PARTS_DIR).iterdir()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for folder in list(scene_dir.iterdir()):
                    if folder.name.startswith(_ATTEMPT):
                        shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                scene_dir.rmdir()  # raises where it has parts
    remove_empty(out_dir)
