"""The rasters that a map consists of: classes, and on request what stands behind them.

Every layer is uint8 with 255 where there is no data. Probabilities are stored in
steps of 0.004, so 250 is 1; the scale stands in the file, and GIS software applies it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cropseg.inference.tiles.mosaic import PredictedTile
from cropseg.models.card import Card
from cropseg.sites.classes import IGNORE

PROBABILITY_SCALE: Final = 0.004
"""What a stored confidence or probability is multiplied by. 250 steps have a short
decimal form, and leave 255 for no data."""

_STEPS: Final = 250

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One raster of a map. It can be pickled."""

    name: Literal["classes", "confidence", "probabilities"]
    """What it shows. Its file is `<scene>_<name>.tif`."""
    band_names: tuple[str, ...]
    """Name of each band."""
    overview: Literal["mode", "average"]
    """How overviews are made: the most frequent class, or the mean."""
    scale: float | None
    """What stored values are multiplied by, without an offset; None for class ids."""
    nodata: int = IGNORE
    """What is stored where there is no data."""

    @property
    def num_bands(self) -> int:
        """Number of bands."""
        return len(self.band_names)

    def name_file(self, scene: str) -> str:
        """Return the name of this layer's file for a scene."""
        return f"{scene}_{self.name}.tif"

    def encode(self, tile: PredictedTile) -> Bytes:
        """Return what is stored for a tile.

        Args:
            tile: The predicted core of a tile.

        Returns:
            (height, width, num_bands), uint8, 255 where the tile is not valid.
        """
        if tile.valid is None or tile.probabilities is None:
            shape = (tile.window.height, tile.window.width, self.num_bands)
            return np.full(shape, self.nodata, np.uint8)
        return _ENCODERS[self.name](tile)


def list_layers(
    card: Card, *, confidence: bool = False, probabilities: bool = False
) -> tuple[Layer, ...]:
    """List the layers that are wanted, the classes first.

    Args:
        card: Card of the model.
        confidence: Whether the probability of the class is stored too.
        probabilities: Whether the probability of every class is stored too.
    """
    layers = [Layer(name="classes", band_names=("class",), overview="mode", scale=None)]
    if confidence:
        layers.append(
            Layer(
                name="confidence",
                band_names=("confidence",),
                overview="average",
                scale=PROBABILITY_SCALE,
            )
        )
    if probabilities:
        layers.append(
            Layer(
                name="probabilities",
                band_names=card.class_names,
                overview="average",
                scale=PROBABILITY_SCALE,
            )
        )
    return tuple(layers)


def _encode_classes(tile: PredictedTile) -> Bytes:
    return tile.classes[..., None]


def _encode_confidence(tile: PredictedTile) -> Bytes:
    return _quantize(tile.confidence[..., None], tile)


def _encode_probabilities(tile: PredictedTile) -> Bytes:
    assert tile.probabilities is not None  # noqa: S101 - `encode` saw to that
    return _quantize(tile.probabilities, tile)


def _quantize(values: npt.NDArray[np.floating], tile: PredictedTile) -> Bytes:
    assert tile.valid is not None  # noqa: S101 - `encode` saw to that
    # A sum of probabilities may be above 1 by a rounding, and 251 means nothing.
    steps = np.rint(np.clip(values, 0, 1) * np.float32(_STEPS)).astype(np.uint8)
    steps[~tile.valid] = IGNORE
    return steps


_ENCODERS: Final[Mapping[str, Callable[[PredictedTile], Bytes]]] = {
    "classes": _encode_classes,
    "confidence": _encode_confidence,
    "probabilities": _encode_probabilities,
}
