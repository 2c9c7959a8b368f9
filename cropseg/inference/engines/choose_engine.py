"""The engine that a model is run with. Keras is imported only where it is chosen."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from cropseg.errors import ModelError, UsageError
from cropseg.inference.engines.engine import ENGINES, PRECISIONS, Engine
from cropseg.inference.engines.openvino_engine import OpenVinoEngine
from cropseg.inference.engines.openvino_package import has_openvino
from cropseg.models.card import read_card

_GPU_NODES: Final = ("nvidia[0-9]*", "kfd", "dxg")
"""Devices of GPUs that TensorFlow may know: NVIDIA, AMD, and either under Windows."""

_log = logging.getLogger(__name__)


def open_engine(
    model_path: str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int = 2,
    tile_size: int,
    margin: int = 0,
) -> Engine:
    """Open a model with the engine that suits the machine.

    `auto` is OpenVINO where it is installed and Keras has no GPU, else Keras.

    Args:
        model_path: A bundle.
        engine: One of `ENGINES`.
        precision: One of `PRECISIONS`; `auto` is float32 on a CPU.
        batch_size: Tiles in a batch of Keras. OpenVINO takes one at a time.
        tile_size: Side of most tiles, in pixels.
        margin: Pixels on every side of these that nobody will ask for.

    Raises:
        UsageError: If an option has another value, or names an engine that is not
            installed or cannot compute in the precision.
        ModelError: If the model cannot be loaded.
    """
    _check_choice("--engine", engine, ENGINES)
    _check_choice("--precision", precision, PRECISIONS)
    path = Path(model_path)
    read_card(path)  # says what is wrong with the file before anything is loaded
    if engine == "openvino" or (engine == "auto" and _suits_openvino()):
        try:
            return OpenVinoEngine(
                path, precision=precision, tile_size=tile_size, margin=margin
            )
        except ModelError as error:
            if engine == "openvino":
                raise
            _log.warning("Keras runs the model, as OpenVINO cannot: %s", error)
    from cropseg.inference.engines.keras_engine import KerasEngine
    from cropseg.models.bundle import load_bundle

    return KerasEngine(load_bundle(path), batch_size=batch_size, precision=precision)


def _check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError(f"{option} is {given}; it must be one of {', '.join(known)}.")


def _suits_openvino() -> bool:
    return has_openvino() and not _has_gpu()


def _has_gpu() -> bool:
    """Whether Keras computes on a GPU. Only where there is one is Keras asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if not any(any(Path("/dev").glob(pattern)) for pattern in _GPU_NODES):
        return False
    from cropseg.runtime import resolve_precision

    return resolve_precision("auto") == "bfloat16"
