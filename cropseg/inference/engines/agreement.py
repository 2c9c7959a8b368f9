"""How far bfloat16 changes a map: measured once for a model, and held to a bound.

The measurement is kept beside the model with its converted engine, for the processor
that it was made on.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.inference.engines.choose_engine import open_engine
from cropseg.inference.engines.engine import MIN_AGREEMENT, Engine
from cropseg.inference.engines.engine_cache import (
    EngineCache,
    open_cache,
    open_openvino_cache,
)

NUM_TILES: Final = 8
"""Tiles that are compared: enough for half a percent, and seconds of work."""

MIN_PIXELS: Final = 10_000
"""A measurement on fewer pixels with data is not kept, and the next scene is measured
again: 50 of them would be half a percent."""

_CPU_INFO: Final = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SampleTile:
    """A tile that is compared, as the map of its scene would take it."""

    values: Values
    """Raw values with nodata filled, (height, width, bands)."""
    margin: int
    """Pixels on every side that are context alone, and do not count."""

    @property
    def core(self) -> Values:
        """The values inside the margin."""
        inside = slice(self.margin, -self.margin or None)
        return self.values[inside, inside]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often an engine gives the class that float32 gives."""

    engine: str
    """Name of the engine."""
    precision: str
    """What it computes in."""
    num_pixels: int
    """Pixels with data that were compared."""
    num_equal: int
    """Those with one class at both precisions."""

    @property
    def share(self) -> float:
        """Share of equal pixels; 1 where none was compared."""
        return self.num_equal / self.num_pixels if self.num_pixels else 1.0

    def __str__(self) -> str:
        """Return it as a sentence. Rounded up, a share could pass for its bound."""
        steps = (
            10_000 * self.num_equal // self.num_pixels if self.num_pixels else 10_000
        )
        return (
            f"{self.engine} at {self.precision} gives the class of float32 on "
            f"{steps / 100:.2f}% of {self.num_pixels:,} pixels."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "engine": self.engine,
            "precision": self.precision,
            "agreement": self.share,
            "num_pixels": self.num_pixels,
        }


def check_agreement(
    engine: Engine,
    model_path: str | Path,
    tiles: Iterable[SampleTile],
    *,
    min_agreement: float = MIN_AGREEMENT,
) -> Agreement | None:
    """Measure once how far an engine is from float32, and refuse it if too far.

    Args:
        engine: The engine, without averaging over turned tiles.
        model_path: The bundle that it runs.
        tiles: Tiles from all over a scene, as for `count_equal`. The first `NUM_TILES`
            are taken, and none where nothing needs to be measured.
        min_agreement: The least share that is accepted.

    Returns:
        What was measured, now or on an earlier call; None at float32.

    Raises:
        ModelError: If the share is smaller.
    """
    if engine.precision == "float32":
        return None
    cache = _open_cache(engine, Path(model_path))
    name = f"agreement_{engine.precision}.json"
    key = {"processor": _name_processor(), "engine": engine.name}
    found = _read(cache.read(name), key, engine)
    if found is None:
        found = _measure(engine, model_path, tiles)
        _log.info("%s", found)
        if found.num_pixels >= MIN_PIXELS:
            counts = {"num_pixels": found.num_pixels, "num_equal": found.num_equal}
            cache.write(name, key | counts)
    if found.share < min_agreement:
        raise ModelError(
            f"{found} At least {min_agreement:.2%} are asked for. Use --precision "
            "float32, or a lower --min-agreement if that is good enough."
        )
    return found


def _measure(
    engine: Engine, model_path: str | Path, tiles: Iterable[SampleTile]
) -> Agreement:
    chosen = list(itertools.islice(tiles, NUM_TILES))
    num_equal = num_pixels = 0
    if chosen:
        reference = open_engine(
            model_path,
            engine=engine.name,
            precision="float32",
            tile_size=chosen[0].values.shape[0],
            margin=chosen[0].margin,
        )
        num_equal, num_pixels = count_equal(engine, reference, chosen)
    return Agreement(
        engine=engine.name,
        precision=engine.precision,
        num_pixels=num_pixels,
        num_equal=num_equal,
    )


def count_equal(
    engine: Engine, reference: Engine, tiles: Iterable[SampleTile]
) -> tuple[int, int]:
    """Count the pixels to which two engines give the same class.

    Args:
        engine: An engine.
        reference: Another one of the same model.
        tiles: Tiles. A pixel whose bands all hold the fill value does not count.

    Returns:
        These pixels, and all that count.
    """
    kept = list(tiles)
    fill = np.asarray(engine.card.nodata_fill, np.float32)
    num_equal = num_pixels = 0
    pairs = zip(_classify(engine, kept), _classify(reference, kept), strict=True)
    for tile, (ours, theirs) in zip(kept, pairs, strict=True):
        counts = (tile.core != fill).any(axis=-1)
        num_pixels += int(counts.sum())
        num_equal += int(((ours == theirs) & counts).sum())
    return num_equal, num_pixels


def _classify(
    engine: Engine, tiles: list[SampleTile]
) -> Iterator[npt.NDArray[np.uint8]]:
    for margin, alike in itertools.groupby(tiles, key=lambda tile: tile.margin):
        values = (tile.values for tile in alike)
        for _, probabilities in engine.stream(enumerate(values), margin=margin):
            yield probabilities.argmax(axis=-1).astype(np.uint8)


def _open_cache(engine: Engine, model_path: Path) -> EngineCache:
    if engine.name == "openvino":
        return open_openvino_cache(model_path)
    version = importlib.metadata.version(engine.name)
    return open_cache(model_path, engine.name, version)


def _read(
    document: dict[str, Any] | None, key: dict[str, str], engine: Engine
) -> Agreement | None:
    """Return a kept measurement, or None if it is another machine's or damaged."""
    if document is None or any(document.get(name) != key[name] for name in key):
        return None
    num_pixels, num_equal = document.get("num_pixels"), document.get("num_equal")
    if not isinstance(num_pixels, int) or not isinstance(num_equal, int):
        return None
    if not 0 <= num_equal <= num_pixels:
        return None
    return Agreement(
        engine=engine.name,
        precision=engine.precision,
        num_pixels=num_pixels,
        num_equal=num_equal,
    )


def _name_processor() -> str:
    """Return what the processor calls itself, as far as the system tells."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
