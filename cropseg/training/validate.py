"""Scoring a model between epochs on labels that were held out of a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.evaluation.confusion import count_confusion
from cropseg.evaluation.scores import compute_scores
from cropseg.runtime import compile_for_predict
from cropseg.sites.budget import LabelPool
from cropseg.training.tile_store import TileStore


def build_validator(
    model: Any, pool: LabelPool, *, fill: Sequence[float]
) -> Callable[[], float]:
    """Return a function that scores a model on the tiles of a pool.

    Tiles are kept in memory and predicted one by one, as large as in training.

    Args:
        model: The model, whose weights change between calls.
        pool: The labels that were held out.
        fill: What stands for nodata, a value a band.

    Returns:
        A function that returns the mean IoU, 0 to 1, over the classes that have a
        label pixel in the pool.
    """
    store = TileStore(pool)
    inner = slice(store.margin, store.margin + pool.tile_size)
    names = pool.site.classes.names
    filling = np.asarray(fill, np.float32)

    def read(index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        tile = store.get(index)
        values = tile.values[inner, inner].astype(np.float32)
        values[~tile.valid[inner, inner]] = filling
        return values, tile.labels[inner, inner]

    compile_for_predict(model)

    def validate() -> float:
        counts = np.zeros((len(names), len(names) + 1), np.int64)
        for index in range(len(pool.tiles)):
            values, labels = read(index)
            probabilities = np.asarray(model.predict_on_batch(values[np.newaxis]))
            predicted = probabilities[0].argmax(axis=-1)
            counts += count_confusion(labels, predicted, num_classes=len(names))
        return compute_scores(counts, names).miou

    return validate
