"""The forward pass in OpenVINO, for CPUs. No Keras.

A tile is a request of its own, so that neither the other tiles nor how many are under
way can change its result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError, UsageError
from cropseg.inference.engines.crop_network import crop_network
from cropseg.inference.engines.engine import T
from cropseg.inference.engines.engine_cache import open_network, open_openvino_cache
from cropseg.inference.engines.openvino_package import import_openvino
from cropseg.models.card import read_card

_DEVICE: Final = "CPU"
_HINTS: Final = {"float32": "f32", "bfloat16": "bf16"}
_CAPABILITY: Final = "BF16"

_MAX_SHAPES: Final = 8
"""Tile shapes that stay compiled, each with memory for its activations."""

_MIN_UNDER_WAY: Final = 2
"""One request at a time is half as fast."""

_NUM_SPARE: Final = 1
"""Requests that wait, so that no stream is idle while a result is taken."""

Values = npt.NDArray[np.float32]

_Key = tuple[tuple[int, ...], int]
"""Shape of a tile, (height, width, bands), and its margin."""


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """A network for tiles of one shape and margin."""

    network: Any
    """The `openvino.CompiledModel`."""
    num_under_way: int
    """Requests that should be under way."""
    idle: list[Any] = field(default_factory=list)
    """Its requests that are not under way."""


@dataclass(frozen=True, kw_only=True)
class _UnderWay(Generic[T]):
    """A tile that is being predicted."""

    key: T
    """What the caller calls it."""
    request: Any
    """The `openvino.InferRequest`, which reads `batch` until it is done."""
    batch: Values
    """The tile, (1, bands, height, width)."""
    compiled: _Compiled
    """Where the request belongs."""


class OpenVinoEngine:
    """Runs a converted bundle on tiles of a few shapes; see `Engine`."""

    name = "openvino"

    def __init__(
        self,
        model_path: Path,
        *,
        precision: str = "auto",
        tile_size: int | None = None,
        margin: int = 0,
    ) -> None:
        """Open a model, which is converted where no converted one is kept.

        Args:
            model_path: A bundle.
            precision: auto, float32 or bfloat16; auto is float32.
            tile_size: Side of tiles that are prepared for at once, in pixels.
            margin: Pixels on every side of these that nobody will ask for.

        Raises:
            UsageError: If OpenVINO is not installed, or the processor cannot compute
                in this precision.
            ModelError: If the model cannot be read or converted.
        """
        openvino = import_openvino()
        self.card = read_card(model_path)
        self.precision = "float32" if precision == "auto" else precision
        self._core = openvino.Core()
        known = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if self.precision == "bfloat16" and _CAPABILITY not in known:
            raise UsageError(
                "OpenVINO cannot compute in bfloat16 on this processor. Use "
                "--precision float32."
            )
        with open_network(open_openvino_cache(model_path)) as folder:
            # Its weights stay mapped, also once a temporary folder is gone.
            self._network = self._core.read_model(folder / "network.xml")
        self._compiled: dict[_Key, _Compiled] = {}
        if tile_size is not None:
            self._compile((tile_size, tile_size, len(self.card.bands)), margin)

    def stream(
        self, tiles: Iterable[tuple[T, Values]], *, margin: int = 0
    ) -> Iterator[tuple[T, Values]]:
        """Predict tiles one after the other; see `Engine`.

        They may be of several shapes.

        Raises:
            ModelError: If the model does not take tiles of such a shape.
        """
        waiting: deque[_UnderWay[T]] = deque()
        try:
            for key, values in tiles:
                started = self._start(key, values, margin)
                waiting.append(started)
                if len(waiting) > started.compiled.num_under_way:
                    yield _finish(waiting.popleft())
            while waiting:
                yield _finish(waiting.popleft())
        finally:
            # Where the caller stops early: a request reads its tile to the end.
            for left in waiting:
                _finish(left)

    def _start(self, key: T, values: Values, margin: int) -> _UnderWay[T]:
        compiled = self._compile(values.shape, margin)
        if compiled.idle:
            request = compiled.idle.pop()
        else:
            request = compiled.network.create_infer_request()
        planes = np.moveaxis(values, -1, 0)
        batch = np.ascontiguousarray(planes, np.float32)[np.newaxis]
        request.start_async({0: batch}, share_inputs=True)
        return _UnderWay(key=key, request=request, batch=batch, compiled=compiled)

    def _compile(self, shape: tuple[int, ...], margin: int) -> _Compiled:
        """Return the network for such tiles, the latest one last."""
        compiled = self._compiled.pop((shape, margin), None)
        if compiled is None:
            compiled = self._compile_anew(shape, margin)
        self._compiled[shape, margin] = compiled
        while len(self._compiled) > _MAX_SHAPES:
            del self._compiled[next(iter(self._compiled))]
        return compiled

    def _compile_anew(self, shape: tuple[int, ...], margin: int) -> _Compiled:
        # Where nothing is said, a processor with AMX computes in bfloat16, and threads
        # are tied to cores, the same ones in every process: other work on them, such
        # as reading the next tile, would hold a tile up while another core is idle.
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "ENABLE_CPU_PINNING": False,
        }
        network = self._network.clone()
        height, width, num_bands = shape
        try:
            network.reshape([1, num_bands, height, width])
            crop_network(network, margin)
            made = self._core.compile_model(network, _DEVICE, hints)
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO cannot run this model on tiles of {height} x {width} "
                f"pixels and {num_bands} bands: {error}. Use another --tile-size, or "
                "--engine keras."
            ) from error
        num_streams = int(made.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        under_way = max(num_streams, _MIN_UNDER_WAY) + _NUM_SPARE
        return _Compiled(network=made, num_under_way=under_way)


def _finish(started: _UnderWay[T]) -> tuple[T, Values]:
    started.request.wait()
    # A copy: the request writes its next result to the same place.
    planes = started.request.get_output_tensor().data[0].copy()
    started.compiled.idle.append(started.request)
    return started.key, np.moveaxis(planes, 0, -1)
