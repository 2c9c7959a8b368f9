"""Threads, seed and precision of a process; the one file that knows TensorFlow.

Importing this file starts Keras. Everything that needs Keras takes it from
here (`from cropseg.runtime import keras`), so that threads are set before the
first operation runs. With one inter-op thread, equal runs give bit-equal
weights on a CPU; with the default they do not (HAZARDS 19a).
"""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras

_log = logging.getLogger(__name__)

JIT_COMPILE = "auto" if keras.backend.backend() == "jax" else False
"""Whether models are compiled with XLA. On a CPU TensorFlow is faster without."""


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _set_threads() -> None:
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.threading.set_intra_op_parallelism_threads(count_cores())
    except RuntimeError:
        _log.warning(
            "TensorFlow ran before cropseg was imported, so its threads stay as "
            "they are: two equal runs may differ in the last bits. Import cropseg "
            "first to avoid that."
        )


_set_threads()


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

    `auto` is bfloat16 on a GPU and float32 on a CPU. On two cores of a Xeon with
    AVX512-BF16 a bfloat16 training step of the `classic` U-Net took 1.85 times as
    long as a float32 one (docs/decisions/0004-precision.md).
    """
    if precision != "auto":
        return precision
    devices = keras.distribution.list_devices("gpu")
    return "bfloat16" if devices else "float32"


def compile_for_predict(model: Any) -> Any:
    """Let a model predict without XLA on TensorFlow, and return it.

    On a CPU the XLA forward pass of the `classic` U-Net took 1.65 times as long.
    """
    model.jit_compile = JIT_COMPILE
    return model
