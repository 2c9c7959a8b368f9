"""The baseline that is no network: a random forest on the bands of single pixels.

It is what people use who have few labels. It sees the same labels as a network of
the same budget and draw, and is scored on the same pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier

from cropseg.inference.evaluate import evaluate_predictor
from cropseg.inference.mosaic import DEFAULT_TILE_SIZE, TileShape
from cropseg.runtime import count_cores
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.scene import Scene, SceneReader
from cropseg.sites.tiling import Tile
from cropseg.training.batches import TileStore
from cropseg.training.fit import FitResult
from cropseg.training.losses import compute_class_weights
from cropseg.training.run import Run, describe_training, finish_run
from cropseg.training.settings import TrainSettings

NUM_TREES = 100
"""Trees of the forest."""

MAX_PIXELS = 100_000
"""Label pixels that a forest is fitted on; a larger pool is sampled at random."""

_MIN_LEAF = 3


def execute_forest(pool: LabelPool, settings: TrainSettings, out_dir: Path) -> Run:
    """Fit a forest on a pool of labels, score it and write the files of its run.

    Args:
        pool: The labels that it may see.
        settings: Seed and class weighting; the rest concerns networks.
        out_dir: Its folder, claimed by the caller.

    Returns:
        The run. It has no model file.
    """
    started_at = time.perf_counter()
    forest = fit_forest(pool, settings)
    seconds = time.perf_counter() - started_at

    def predict(
        reader: SceneReader, scene: Scene, tiles: list[Tile]
    ) -> Iterator[tuple[Window, npt.NDArray[np.uint8]]]:
        for tile in tiles:
            window = tile.core.clip(height=scene.grid.height, width=scene.grid.width)
            pixels = reader.read_pixels(window)
            classes = np.full(pixels.valid.shape, IGNORE, np.uint8)
            classes[pixels.valid] = forest.predict(pixels.values[pixels.valid])
            yield window, classes

    shape = TileShape(size=DEFAULT_TILE_SIZE, context=0)
    evaluation = evaluate_predictor(predict, pool.site, part="test", shape=shape)
    training = describe_training(pool, FitResult(losses=(), epochs=()), settings)
    training["seconds"] = round(seconds, 2)
    return finish_run(out_dir, {"test": evaluation}, training)


def fit_forest(pool: LabelPool, settings: TrainSettings) -> Any:
    """Fit a random forest on the labelled pixels of a pool.

    Returns:
        A fitted scikit-learn classifier from bands, (pixels, bands), to class ids.
    """
    store = TileStore(pool)
    inner = slice(store.margin, store.margin + pool.tile_size)
    values, labels = [], []
    for index in range(len(pool.tiles)):
        tile = store.get(index)
        known = tile.labels[inner, inner] != IGNORE
        values.append(tile.values[inner, inner][known])
        labels.append(tile.labels[inner, inner][known])
    pixels, classes = np.concatenate(values), np.concatenate(labels)
    if len(classes) > MAX_PIXELS:
        rng = np.random.default_rng(settings.seed)
        chosen = rng.choice(len(classes), MAX_PIXELS, replace=False)
        pixels, classes = pixels[chosen], classes[chosen]
    weights = compute_class_weights(
        np.bincount(classes, minlength=len(pool.site.classes)),
        power=settings.class_weight_power,
    )
    forest = RandomForestClassifier(
        n_estimators=NUM_TREES,
        min_samples_leaf=_MIN_LEAF,
        class_weight={int(i): float(weights[i]) for i in np.unique(classes)},
        n_jobs=count_cores(),
        random_state=settings.seed,
    )
    return forest.fit(pixels, classes)
