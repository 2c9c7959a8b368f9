"""What every engine does: raw pixels of whole tiles in, probabilities out.

No Keras here, so that an engine that needs none starts without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cropseg.models.card import Card
from cropseg.sites.raster import Pixels

T = TypeVar("T")

ENGINES: Final = ("auto", "keras", "openvino")
"""What can run a model."""

PRECISIONS: Final = ("auto", "float32", "bfloat16")
"""What it can compute in."""

MIN_AGREEMENT: Final = 0.995
"""Share of pixels on which a lower precision must give the class of float32."""


class Engine(Protocol):
    """Runs a model on tiles of one shape, or of a few.

    What it makes of a tile depends on the tile alone: not on those before and after
    it, nor on how many are under way.
    """

    @property
    def name(self) -> str:
        """Its name on the command line."""

    @property
    def precision(self) -> str:
        """What it computes in: float32 or bfloat16."""

    @property
    def card(self) -> Card:
        """Card of its model."""

    def stream(
        self, tiles: Iterable[tuple[T, npt.NDArray[np.float32]]]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32]]]:
        """Predict tiles one after the other, with several under way.

        Args:
            tiles: Anything that tells a tile from others, and its raw values with
                nodata filled, (height, width, bands). Shapes should be few: each is
                prepared for anew, and kept.

        Yields:
            The same, in the same order, with probabilities, (height, width, classes),
            float32. A result may come some tiles after its tile was taken.
        """


def fill_nodata(pixels: Pixels, card: Card) -> npt.NDArray[np.float32]:
    """Return raw values with the model's band means where a pixel has no data.

    Bands are copied one by one, as they come from the file: half the time of a copy
    that turns all of them round at once. Engines need no further copy then.
    """
    values = np.empty(pixels.values.shape, np.float32)
    for band in range(pixels.values.shape[2]):
        values[..., band] = pixels.values[..., band]
    values[~pixels.valid] = np.asarray(card.nodata_fill, np.float32)
    return values


def stream_in_batches(
    predict: Callable[[list[npt.NDArray[np.float32]]], npt.NDArray[Any]],
    tiles: Iterable[tuple[T, npt.NDArray[np.float32]]],
    *,
    batch_size: int,
) -> Iterator[tuple[T, npt.NDArray[np.float32]]]:
    """Predict tiles a batch at a time, in order.

    A batch is smaller where the shape of the tiles changes after it, and at the end.
    """
    keys: list[T] = []
    batch: list[npt.NDArray[np.float32]] = []
    for key, values in tiles:
        if batch and values.shape != batch[0].shape:
            yield from zip(keys, predict(batch), strict=True)
            keys, batch = [], []
        keys.append(key)
        batch.append(values)
        if len(batch) == batch_size:
            yield from zip(keys, predict(batch), strict=True)
            keys, batch = [], []
    if batch:
        yield from zip(keys, predict(batch), strict=True)
