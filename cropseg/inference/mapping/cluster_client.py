"""Worker processes of dask.distributed: started here, or found at an address.

A process that computes with another model or version would make another map, so all
that are there at the start are asked what they have.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

from cropseg.errors import ModelError, ResourceError, UsageError
from cropseg.inference.mapping.cluster_worker import look_around

PATIENCE_S: Final = 300
"""How long workers are waited for that restart, or wait in a queue of a cluster."""

_REMOTE: Final = ("tcp://", "tls://")
_LOCAL_FAILURES: Final = 2  # deaths of workers, after which dask gives a task back
_CONNECT_S: Final = 30
_LOGGERS: Final = ("distributed", "distributed.client")  # each has a level of its own

_log = logging.getLogger(__name__)

Show = Callable[[str], None]


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


def require_distributed() -> None:
    """Raise a UsageError if dask.distributed is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--cluster needs dask.distributed, which is not installed. Install it: "
            "pip install 'cropseg[cluster]'"
        ) from error


@contextlib.contextmanager
def keep_dask_quiet() -> Iterator[None]:
    """Let dask log only where cropseg logs as much: it says when it connects."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    if not _log.isEnabledFor(logging.INFO):
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def open_client(where: int | str) -> Iterator[Any]:
    """Start so many workers, or connect to a scheduler and wait for its first.

    Args:
        where: What `parse_address` returns.

    Yields:
        The client of dask.

    Raises:
        ResourceError: If the scheduler or its workers do not answer.
    """
    from distributed import Client

    if isinstance(where, int):
        with (
            _start_workers(where) as cluster,
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
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError as error:
            raise ResourceError(
                f"The scheduler at {where} has no worker after {PATIENCE_S} s. Start "
                f"some: dask worker {where} --nthreads 1"
            ) from error
        yield client


@contextlib.contextmanager
def _start_workers(number: int) -> Iterator[Any]:
    """Start worker processes that Ctrl-C does not reach: they are ended from here.

    A terminal sends it to all processes at once. A worker that starts while it is
    blocked never gets it, neither those that are started later in place of a dead one,
    as threads hand down what they block. One that comes meanwhile is raised after.
    """
    import dask
    from distributed import LocalCluster

    options = {
        "distributed.worker.multiprocessing-method": "spawn",  # HAZARDS 4
        "distributed.scheduler.allowed-failures": _LOCAL_FAILURES,
        # After it, a dead worker is given up for good if it is not back just then.
        "distributed.deploy.lost-worker-timeout": "30 days",
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(options))
        with _block_interrupts():
            cluster = stack.enter_context(
                LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=number,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
            )
        yield cluster


@contextlib.contextmanager
def _block_interrupts() -> Iterator[None]:
    resource_tracker.ensure_running()  # which would unblock them where it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def show_workers(client: Any, show: Show) -> None:
    """Say how many workers there are, and where the dashboard is."""
    workers = client.nthreads()
    noun = "worker process" if len(workers) == 1 else "worker processes"
    show(f"{len(workers)} {noun}; dashboard at {client.dashboard_link}")
    if not find_spec("bokeh"):
        show("The dashboard needs bokeh where the scheduler runs: pip install bokeh")


def check_workers(client: Any, model_path: Path) -> str:
    """Check that all workers have this model and this version of cropseg.

    Returns:
        What they have, in words.

    Raises:
        ModelError: If one has another.
    """
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
    return own
