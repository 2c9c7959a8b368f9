"""The baseline that is no network: a random forest on single pixels.

It is what people use who have few labels. It sees the bands of the networks, the
indices that the manifest derives from them, and the same labels as a network of the
same budget and draw. It is scored on the same pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier

from cropseg.files import claim_out_dir
from cropseg.inference.evaluate import evaluate_predictor
from cropseg.inference.mosaic import DEFAULT_TILE_SIZE, TileShape
from cropseg.memory import read_peak_memory, reset_peak_memory
from cropseg.models.card import Card
from cropseg.runtime import count_cores
from cropseg.sites.budget import LabelPool, parse_budget
from cropseg.sites.classes import IGNORE
from cropseg.sites.formula import parse_formula
from cropseg.sites.grid import Window
from cropseg.sites.scene import Scene, SceneReader
from cropseg.sites.site import Site
from cropseg.sites.tiling import Tile
from cropseg.training.batches import TileStore
from cropseg.training.fit import FitResult
from cropseg.training.losses import compute_class_weights
from cropseg.training.run import (
    Run,
    describe_training,
    find_finished_run,
    finish_run,
)
from cropseg.training.settings import TrainSettings
from cropseg.transfer.modes import PIXEL_FOREST
from cropseg.transfer.target import (
    ReuseOptions,
    choose_pool,
    choose_settings,
    prepare_target,
)

NUM_TREES = 100
"""Trees of the forest."""

MAX_PIXELS = 100_000
"""Label pixels that a forest is fitted on; a larger pool is sampled at random."""

_MIN_LEAF = 3


def train_forest(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    card: Card,
    *,
    out_dir: str | Path,
    labels: str | None = None,
    draw: int = 0,
    reuse: ReuseOptions | None = None,
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
    target = prepare_target(site, card, reuse)
    budget = parse_budget(labels) if labels else None
    pool = choose_pool(target, chosen.tile_size, budget, draw=draw)
    record = {
        "command": PIXEL_FOREST,
        "fingerprint": target.fingerprint,
        "bands": list(target.bands),
        "tile_size": chosen.tile_size,
        "labels": str(budget) if budget else None,
        "draw": draw,
        "seed": chosen.seed,
        "class_weight_power": chosen.class_weight_power,
        "reuse": (reuse or ReuseOptions()).to_json(),
    }
    folder = Path(out_dir)
    with claim_out_dir(folder, record, overwrite=overwrite):
        finished = find_finished_run(folder)
        return finished or execute_forest(pool, chosen, folder)


def execute_forest(pool: LabelPool, settings: TrainSettings, out_dir: Path) -> Run:
    """Fit a forest on a pool of labels, score it and write the files of its run.

    Args:
        pool: The labels that it may see.
        settings: Seed and class weighting; the rest concerns networks.
        out_dir: Its folder, claimed by the caller.

    Returns:
        The run. It has no model file.
    """
    reset_peak_memory()
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
            values = add_indices(pixels.values[pixels.valid], pool.site)
            classes[pixels.valid] = forest.predict(values)
            yield window, classes

    shape = TileShape(size=DEFAULT_TILE_SIZE, context=0)
    evaluation = evaluate_predictor(predict, pool.site, part="test", shape=shape)
    training = describe_training(pool, FitResult(losses=(), epochs=()), settings)
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
