"""Threads, seed and precision of a process; the one file that knows TensorFlow.

Importing this file starts Keras. Everything that needs Keras takes it from
here (`from cropseg.runtime import keras`), so that threads are set before the
first operation runs. With one inter-op thread, equal runs give bit-equal
weights on a CPU; with the default they do not (HAZARDS 19a).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import tempfile
from collections.abc import Hashable, Iterator
from typing import Any

# TensorFlow shows its SQLite to all libraries, and it has fewer functions than GDAL's.
# If it is loaded first, GDAL reads with a mixture of both: some GeoPackages crash it.
import pyogrio  # noqa: F401

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def _hold_back_stderr() -> Iterator[None]:
    """Hold back what C++ code writes to stderr, and show it only after an error.

    TensorFlow says on every start, whatever its log level, that it found no GPU.
    """
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _hold_back_stderr():
    import keras

JIT_COMPILE = "auto" if keras.backend.backend() == "jax" else False
"""Whether models are compiled with XLA. On a CPU TensorFlow is faster without."""

_MAX_SHARED = 32
"""Traced networks, source models and sites that are kept, about 20 MB each with the
default encoder: twice what ten modes need."""


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _set_threads() -> None:
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    # It warns where several models are traced one after the other, as they must be.
    tf.get_logger().setLevel(logging.ERROR)

    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.threading.set_intra_op_parallelism_threads(count_cores())
    except RuntimeError:
        _log.warning(
            "TensorFlow ran before cropseg was imported, so its threads stay as "
            "they are: two equal runs may differ in the last bits. Import cropseg "
            "first to avoid that."
        )


def _find_gpu() -> bool:
    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # what JAX raises where there is none
        return False


with _hold_back_stderr():
    _set_threads()
    _HAS_GPU = _find_gpu()


def import_tensorflow() -> Any:
    """Return TensorFlow, for its file formats: Keras may run on another backend."""
    with _hold_back_stderr():
        import tensorflow as tf
    return tf


def start_run(seed: int) -> None:
    """Begin a run: free the models of the last one and seed everything.

    Args:
        seed: The run's seed, 0 or greater. segmentation-models' initialisers take
            no seed of their own, so this is the one place that seeds globally.
    """
    keras.backend.clear_session(free_memory=False)  # which would collect as well
    gc.collect()
    keras.utils.set_random_seed(seed)


class Shared:
    """What the runs of a process have in common, by name; the oldest goes first."""

    def __init__(self, max_items: int = _MAX_SHARED) -> None:
        """Start with nothing."""
        self._items: dict[Hashable, Any] = {}
        self._max_items = max_items

    def get(self, key: Hashable) -> Any:
        """Return what was kept under a key, or None."""
        item = self._items.pop(key, None)
        if item is not None:
            self._items[key] = item  # now the newest
        return item

    def keep(self, key: Hashable, item: Any) -> None:
        """Keep something for the runs to come."""
        self._items[key] = item
        while len(self._items) > self._max_items:
            del self._items[next(iter(self._items))]

    def drop(self, key: Hashable) -> None:
        """Keep it no longer."""
        self._items.pop(key, None)


_shared: list[Shared] = []


@contextlib.contextmanager
def share_between_runs() -> Iterator[None]:
    """Let the runs inside share the source model, decoded tiles and traced networks.

    Results are the same bits as without. Only for runs whose models nobody looks at
    once they are over: a network is trained with the layers of the first run that had
    one like it, and what it learned is copied to the model of its own run.
    """
    is_first = not _shared
    _shared.append(_shared[-1] if _shared else Shared())
    if is_first:
        # What is there stays. Looking for garbage in it takes 0.4 s for each run.
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        _shared.pop()
        if is_first:
            gc.unfreeze()


def get_shared() -> Shared | None:
    """Return what the runs of this process share, or None where they share nothing."""
    return _shared[-1] if _shared else None


def get_shared_networks() -> Shared | None:
    """Return the same for networks, or None on a backend that passes weights around."""
    return get_shared() if keras.backend.backend() == "tensorflow" else None


def resolve_precision(precision: str) -> str:
    """Return `float32` or `bfloat16` for auto, float32 or bfloat16.

    `auto` is bfloat16 on a GPU and float32 on a CPU, where bfloat16 was slower
    (docs/decisions/0003-float32-on-cpu.md).
    """
    if precision != "auto":
        return precision
    return "bfloat16" if _HAS_GPU else "float32"


def compile_for_predict(model: Any) -> Any:
    """Let a model predict without XLA on TensorFlow, and return it."""
    model.jit_compile = JIT_COMPILE
    return model
