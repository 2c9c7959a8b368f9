"""What a source model scores on the labels of a budget, without any training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.evaluation.confusion import count_confusion
from cropseg.evaluation.scores import Scores, compute_scores
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.models.bundle import Bundle
from cropseg.models.card import Lineage
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.sites.statistics import BandStatistics
from cropseg.transfer.modes import PLANS
from cropseg.transfer.normalization import (
    NORMALIZATIONS,
    Normalization,
    choose_statistics,
)
from cropseg.transfer.start import start_transfer
from cropseg.transfer.target import ReuseOptions

_MAX_TILES: Final = 64
_CONTEXT_PX: Final = 32


Line = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Gain and offset of each band, (bands,)."""


def score_zero_shot(
    source: Bundle, pool: LabelPool, *, reuse: ReuseOptions | None = None
) -> Scores:
    """Score a source model, untrained, on labels that a run may see.

    At most 64 tiles are scored, spread evenly over the pool. No label of val or test
    is looked at.

    Args:
        source: The source model.
        pool: The labels, of the site as the new model reads it.
        reuse: How the model is fitted to the site.

    Raises:
        ModelError: If the model does not fit the site, or one of its classes is
            several of the site's.
    """
    engine, _ = _build_engine(source, pool, reuse or ReuseOptions())
    return _score(engine, pool, None)


def report_normalization(
    source: Bundle, pool: LabelPool, reuse: ReuseOptions
) -> dict[str, Any]:
    """Return the choice of normalisation, and the zero-shot score under each.

    Returns:
        `choice`, and `zero_shot_miou` by normalisation: on the labels that the run
        may see, None where it cannot be scored.
    """
    scores: dict[Normalization, float | None] = dict.fromkeys(NORMALIZATIONS)
    found = {"choice": reuse.normalization, "zero_shot_miou": scores}
    try:
        engine, own = _build_engine(source, pool, reuse)
    except ModelError:  # classes that only training tells apart
        return found
    for choice in NORMALIZATIONS:
        try:
            bands = choose_statistics(choice, source.card, pool.site, pool.tile_size)
        except ModelError:  # no quantiles
            continue
        # One model is enough: values are brought to where its own layer expects them.
        gain = np.divide(own.std, bands.std, dtype=np.float64)
        offset = np.asarray(own.mean) - gain * np.asarray(bands.mean)
        line = (gain.astype(np.float32), offset.astype(np.float32))
        scored = _score(engine, pool, None if bands == own else line)
        scores[choice] = round(scored.miou, 4)
    return found


def _build_engine(
    source: Bundle, pool: LabelPool, reuse: ReuseOptions
) -> tuple[KerasEngine, BandStatistics]:
    """Return the untrained model for the site, and what its bands are normalised by."""
    start = start_transfer(
        source,
        pool,
        PLANS["zero_shot"],
        num_steps=0,
        lineage=Lineage(mode="zero_shot"),
        reuse=reuse,
    )
    changes = {"nodata_fill": start.bands.mean, "bands": pool.site.bands}
    card = source.card.model_copy(update=changes)
    bundle = Bundle(model=start.model, card=card)
    return KerasEngine(bundle, batch_size=1, precision="float32"), start.bands


def _score(engine: KerasEngine, pool: LabelPool, line: Line | None) -> Scores:
    """Score a model on the visible labels of a pool, its values on a line."""
    context = _choose_context(engine)
    picks = np.linspace(0, len(pool.tiles) - 1, min(len(pool.tiles), _MAX_TILES))
    num_classes = len(pool.site.classes)
    total = np.zeros((num_classes, num_classes + 1), np.int64)
    for index in np.unique(picks.astype(int)):
        tile = pool.tiles[index]
        window = tile.window.grow(context)
        scene = pool.site.scenes[tile.scene]
        with pool.site.open_scene(scene) as reader:
            pixels, labels = reader.read_valid_labels(window)
            visible = pool.read_visible(reader, tile.scene, window)
        labels = np.where(visible, labels, IGNORE).astype(np.uint8)
        if line is not None:
            values = pixels.values.astype(np.float32) * line[0] + line[1]
            pixels = replace(pixels, values=values)
        prediction = engine.predict([engine.fill_nodata(pixels)])[0].argmax(axis=-1)
        core = tile.window.slices_in(window)
        total += count_confusion(
            labels[core], prediction[core], num_classes=num_classes
        )
    return compute_scores(total[None], pool.site.classes.names)


def _choose_context(engine: KerasEngine) -> int:
    """Return the pixels to read around a tile: none where the input size is fixed."""
    if not engine.takes_any_size:
        return 0
    multiple = engine.card.tile_multiple
    return -(-_CONTEXT_PX // multiple) * multiple
