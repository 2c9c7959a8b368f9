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
        self, tiles: Iterable[tuple[T, npt.NDArray[np.float32]]], *, margin: int = 0
    ) -> Iterator[tuple[T, npt.NDArray[np.float32]]]:
        """Predict tiles one after the other, with several under way.

        Args:
            tiles: Anything that tells a tile from others, and its raw values with
                nodata filled, (height, width, bands). Shapes should be few: each is
                prepared for anew, and kept.
            margin: Pixels on every side of a tile that nobody asks for.

        Yields:
            The same, in the same order, with the probabilities of what is inside the
            margin, (height, width, classes), float32. A result may come some tiles
            after its tile was taken.
        """


def fill_nodata(pixels: Pixels, card: Card) -> npt.NDArray[np.float32]:
    """Return raw values with the model's band means where a pixel has no data.

    Returns:
        (height, width, bands). In memory lies band after band, as they come from the
        file and as OpenVINO takes them: turning them round took longer than this.
    """
    height, width, num_bands = pixels.values.shape
    planes = np.empty((num_bands, height, width), np.float32)
    for band, plane in enumerate(planes):
        plane[:] = pixels.values[..., band]
    if not pixels.valid.all():
        fill = np.broadcast_to(np.asarray(card.nodata_fill, np.float32), num_bands)
        planes[:, ~pixels.valid] = fill[:, np.newaxis]
    return np.moveaxis(planes, 0, -1)


def stream_in_batches(
    predict: Callable[[list[npt.NDArray[np.float32]]], npt.NDArray[Any]],
    tiles: Iterable[tuple[T, npt.NDArray[np.float32]]],
    *,
    batch_size: int,
    margin: int = 0,
) -> Iterator[tuple[T, npt.NDArray[np.float32]]]:
    """Predict whole tiles a batch at a time, in order, and leave the margin out.

    A batch is smaller where the shape of the tiles changes after it, and at the end.
    """
    inside = slice(margin, -margin or None)

    def predict_inside() -> Iterator[tuple[T, npt.NDArray[np.float32]]]:
        found = predict(batch)[:, inside, inside]
        yield from zip(keys, found, strict=True)

    keys: list[T] = []
    batch: list[npt.NDArray[np.float32]] = []
    for key, values in tiles:
        if batch and values.shape != batch[0].shape:
            yield from predict_inside()
            keys, batch = [], []
        keys.append(key)
        batch.append(values)
        if len(batch) == batch_size:
            yield from predict_inside()
            keys, batch = [], []
    if batch:
        yield from predict_inside()
