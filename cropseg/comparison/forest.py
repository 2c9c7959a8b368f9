"""The baseline that is no network: a random forest on single pixels.

It is what people use who have few labels. It sees the bands of the networks, the
indices that the manifest derives from them, and the same labels as a network of the
same budget and draw. It is scored on the same pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier

from cropseg.comparison.prepare import prepare_forest
from cropseg.files import claim_out_dir
from cropseg.inference.evaluate import evaluate_predictor
from cropseg.inference.measure import Panel, Prediction
from cropseg.inference.tiles.tile_shape import DEFAULT_TILE_SIZE, TileShape
from cropseg.memory import read_peak_memory, reset_peak_memory
from cropseg.models.card import Card
from cropseg.runtime import count_cores
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.sites.formula import parse_formula
from cropseg.sites.scene import Scene, SceneReader
from cropseg.sites.site import Site
from cropseg.sites.tiling import Tile
from cropseg.training.finished import (
    Run,
    describe_training,
    find_finished_run,
    finish_run,
)
from cropseg.training.fit_job import FitResult
from cropseg.training.losses import compute_class_weights
from cropseg.training.settings import TrainSettings
from cropseg.training.tile_store import TileStore
from cropseg.transfer.target import ReuseOptions, choose_settings

NUM_TREES = 100
"""Trees of the forest."""

MAX_PIXELS = 100_000
"""Label pixels that a forest is fitted on; a larger pool is sampled at random."""

_MIN_LEAF = 3

_DIGITS = 9
"""Decimals of a share of votes that do not depend on the order of a sum."""


def train_forest(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    card: Card,
    *,
    out_dir: str | Path,
    labels: str | None = None,
    draw: int = 0,
    reuse: ReuseOptions | None = None,
    panel: Panel | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Fit a forest on labels of a site, in a folder of its own.

    Calling it again with the same settings returns the finished run.

    Args:
        site: The target site.
        card: Card of the model that a network would start from: it sees the same
            bands, in tiles of the same size.
        out_dir: The run's folder.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        reuse: How a model would be fitted to the site.
        panel: A window whose predicted classes are kept.
        overwrite: Start again in a folder that holds another run.
        **settings: Fields of `TrainSettings`. Seed and class weighting count; the rest
            concerns networks.

    Returns:
        The run. It has no model file and no weight report.

    Raises:
        UsageError: If a setting cannot be used.
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the site does not fit the card.
        ConflictError: If the folder holds another run.
    """
    chosen = choose_settings(card, settings)
    job = prepare_forest(site, card, chosen, labels=labels, draw=draw, reuse=reuse)
    folder = Path(out_dir)
    with claim_out_dir(folder, job.record, overwrite=overwrite):
        finished = find_finished_run(folder)
        return finished or execute_forest(job.pool, chosen, folder, panel=panel)


def execute_forest(
    pool: LabelPool,
    settings: TrainSettings,
    out_dir: Path,
    *,
    num_held_out: int = 0,
    panel: Panel | None = None,
) -> Run:
    """Fit a forest on a pool of labels, score it and write the files of its run.

    Args:
        pool: The labels that it may see.
        settings: Seed and class weighting; the rest concerns networks.
        out_dir: Its folder, claimed by the caller.
        num_held_out: Label pixels of its budget that the pool does without, because
            networks validate on them.
        panel: A window whose predicted classes are kept.

    Returns:
        The run. It has no model file.
    """
    reset_peak_memory()
    started_at = time.perf_counter()
    forest = fit_forest(pool, settings)
    seconds = time.perf_counter() - started_at

    def predict(
        reader: SceneReader, scene: Scene, tiles: Iterable[Tile]
    ) -> Iterator[Prediction]:
        for tile in tiles:
            window = tile.core.clip(height=scene.grid.height, width=scene.grid.width)
            pixels = reader.read_pixels(window)
            classes = np.full(pixels.valid.shape, IGNORE, np.uint8)
            confidence = np.zeros(pixels.valid.shape)
            if pixels.valid.any():
                values = add_indices(pixels.values[pixels.valid], pool.site)
                found = predict_classes(forest, values)
                classes[pixels.valid], confidence[pixels.valid] = found
            yield Prediction(window=window, classes=classes, confidence=confidence)

    shape = TileShape(size=DEFAULT_TILE_SIZE, context=0)
    evaluation = evaluate_predictor(
        predict, pool.site, part="test", shape=shape, panel=panel, whole_part=True
    )
    training = describe_training(pool, FitResult(losses=(), epochs=()), settings)
    training["label_pixels"] += num_held_out
    training["seconds"] = round(seconds, 2)
    training["peak_memory_bytes"] = read_peak_memory()
    return finish_run(out_dir, {"test": evaluation}, training)


def fit_forest(pool: LabelPool, settings: TrainSettings) -> Any:
    """Fit a random forest on the labelled pixels of a pool.

    Returns:
        A fitted scikit-learn classifier from what `add_indices` returns to class ids.
    """
    store = TileStore(pool)
    inner = slice(store.margin, store.margin + pool.tile_size)
    values, labels = [], []
    for index in range(len(pool.tiles)):
        tile = store.get(index)
        known = tile.labels[inner, inner] != IGNORE
        values.append(add_indices(tile.values[inner, inner][known], pool.site))
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


def predict_classes(
    forest: Any, values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Predict pixels with a fitted forest.

    Its threads add the votes of the trees up in any order, so that the last digits of
    a sum differ from call to call. They are cut off, and of classes with as many votes
    the first one is taken: equal pixels get equal classes.

    Returns:
        The class id of each pixel, and its share of the votes, each (pixels,).
    """
    shares = forest.predict_proba(values).round(_DIGITS)
    best = shares.argmax(axis=1)
    classes = forest.classes_.astype(np.uint8)[best]
    return classes, shares[np.arange(len(best)), best]


def add_indices(values: npt.NDArray[np.float32], site: Site) -> npt.NDArray[np.float32]:
    """Add the indices that a manifest derives from the bands that are read.

    A network may take the same, where its bands name them. One that has no value at
    a pixel is 0 there: the pixel stays, or the forest would see other labels.

    Args:
        values: The site's bands, (pixels, bands).
        site: The site.

    Returns:
        (pixels, bands + indices), float32.
    """
    planes = {name: values[:, i] for i, name in enumerate(site.bands)}
    formulas = [
        parse_formula(text)
        for name, text in site.derived.items()
        if name not in site.bands
    ]
    indices = [
        np.nan_to_num(formula.evaluate(planes), posinf=0.0, neginf=0.0)
        for formula in formulas
        if set(formula.names) <= set(planes)
    ]
    return np.column_stack([values, *indices]).astype(np.float32)
