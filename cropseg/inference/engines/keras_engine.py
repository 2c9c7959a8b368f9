"""The forward pass in Keras: raw pixels of whole tiles in, probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.inference.engines.engine import T, fill_nodata, stream_in_batches
from cropseg.models.bundle import Bundle
from cropseg.models.precision import copy_with_precision
from cropseg.models.twin import copy_variables, find_twin
from cropseg.runtime import compile_for_predict, resolve_precision
from cropseg.sites.raster import Pixels


class KerasEngine:
    """Runs a bundle on batches of tiles of one shape, or of a few.

    A batch is always filled up to `batch_size`, so that one shape is traced once.
    """

    name = "keras"

    def __init__(
        self, bundle: Bundle, *, batch_size: int, precision: str = "auto"
    ) -> None:
        """Prepare a bundle for prediction.

        Args:
            bundle: The model and its card.
            batch_size: Tiles in a batch.
            precision: auto, float32 or bfloat16.
        """
        self.card = bundle.card
        self.batch_size = batch_size
        self.precision = resolve_precision(precision)
        self._own = copy_with_precision(bundle.model, self.precision)
        self._model = compile_for_predict(find_twin(self._own, "predict"))

    @property
    def takes_any_size(self) -> bool:
        """Whether tiles of any size can be predicted, and not of one only."""
        return self._model.input_shape[1] is None

    def fill_nodata(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return raw values with the band means where a pixel has no data."""
        return fill_nodata(pixels, self.card)

    def predict(self, tiles: list[npt.NDArray[np.float32]]) -> npt.NDArray[Any]:
        """Predict up to a batch of tiles of one shape.

        Args:
            tiles: Raw values with nodata filled, each (height, width, bands).

        Returns:
            Probabilities, (tiles, height, width, classes), float32.

        Raises:
            ModelError: If the model takes tiles of one other size alone.
        """
        return self._predict(tiles, user=object())

    def _predict(
        self, tiles: list[npt.NDArray[np.float32]], *, user: object
    ) -> npt.NDArray[Any]:
        sides = self._model.input_shape[1:3]
        if not self.takes_any_size and tiles[0].shape[:2] != sides:
            height, width = tiles[0].shape[:2]
            raise ModelError(
                f"This model takes tiles of {sides[0]} x {sides[1]} pixels alone; got "
                f"{height} x {width}. Give --tile-size {sides[0]}."
            )
        batch = np.zeros((self.batch_size, *tiles[0].shape), np.float32)
        batch[: len(tiles)] = tiles
        self._take_weights(user)
        return self._run(batch)[: len(tiles)]

    def _take_weights(self, user: object) -> None:
        """Give the network that is run this model's weights, once for each user.

        Several engines may share it, and another one may have run since.
        """
        held = vars(self._model)
        if held.get("_user") is not user:
            copy_variables(self._own, self._model)
            held["_user"] = user

    def _run(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Run the model, with a trace of its own for each shape.

        TensorFlow would trace the second shape for tiles of any size, which fails
        where a network interpolates (HAZARDS 18). The traces lie with the model, which
        several engines may share.
        """
        traces = vars(self._model).setdefault("_traces", {})
        self._model.predict_function = traces.get(batch.shape)
        found = np.asarray(self._model.predict_on_batch(batch))
        traces[batch.shape] = self._model.predict_function
        return found

    def stream(
        self, tiles: Iterable[tuple[T, npt.NDArray[np.float32]]], *, margin: int = 0
    ) -> Iterator[tuple[T, npt.NDArray[np.float32]]]:
        """Predict tiles one after the other; see `Engine`.

        The weights are those that the model has at the first tile.
        """
        predict = partial(self._predict, user=object())
        return stream_in_batches(
            predict, tiles, batch_size=self.batch_size, margin=margin
        )
