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
from collections.abc import Iterator
from typing import Any

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


def start_run(seed: int) -> None:
    """Begin a run: free the models of the last one and seed everything.

    Args:
        seed: The run's seed, 0 or greater. segmentation-models' initialisers take
            no seed of their own, so this is the one place that seeds globally.
    """
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(seed)


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
