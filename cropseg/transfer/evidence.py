"""What can be measured of a target before anything is trained on it.

How many labels there are, and four answers to how much the site is like the source's:
the source's score without training, the features of its encoder, the values of the
bands, and the classes. Keras starts only where the network is run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cropseg.checks.similarity import BandSummary, compare_bands
from cropseg.errors import DataError, ModelError
from cropseg.models.card import Card, match_card_classes
from cropseg.sites.budget import LabelPool, open_pool
from cropseg.sites.statistics import survey_site
from cropseg.transfer.source import Source
from cropseg.transfer.target import ReuseOptions

SCORED_PARTS: Final = ("test", "val")
"""Parts of area 1 whose score the card may have, the better one first."""


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """The labels of one class that a run may see."""

    name: str
    """The class."""
    pixels: int
    """Its labelled pixels."""
    tiles: int
    """Tiles with such a pixel."""
    fields: int | None
    """Its fields; None where labels are pixels."""


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """What the source scores, untrained, on the labels that a run may see."""

    miou: float
    """Mean IoU over the shared classes that have a label here."""
    own_miou: float | None
    """Mean IoU over the same classes in area 1's own test part, or val part; None
    where the card has no score of them."""
    majority_miou: float
    """Mean IoU over the same classes of calling everything the commonest of them."""
    num_classes: int
    """Number of these classes."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured of a target and its source."""

    site: str
    """The target."""
    source_site: str
    """The site of the source."""
    labels: tuple[ClassLabels, ...]
    """The labels that a run may see, a class each, in the order of the site."""
    num_tiles: int
    """Tiles with such a label."""
    shared: tuple[str, ...]
    """Classes of the site that the source knows."""
    zero_shot: ZeroShot | None
    """The score without training; None where there is none."""
    feature_distance: float | None
    """How far the features of the encoder are from those of area 1, in standard
    deviations; None where the card has none, or the site too few tiles."""
    half_distance: float | None
    """How far the two sides of area 1 are apart in the same way."""
    band_distances: Mapping[str, float]
    """How far each shared band is from area 1, in its standard deviations there."""

    @property
    def num_pixels(self) -> int:
        """Labelled pixels that a run may see."""
        return sum(item.pixels for item in self.labels)

    @property
    def new(self) -> tuple[str, ...]:
        """Classes that the source does not know."""
        names = (item.name for item in self.labels)
        return tuple(name for name in names if name not in self.shared)

    @property
    def shared_share(self) -> float:
        """Share of the labelled pixels that are of a shared class, 0 to 1."""
        known = sum(item.pixels for item in self.labels if item.name in self.shared)
        return known / self.num_pixels if self.num_pixels else 0.0


def measure_evidence(
    source: Source, pool: LabelPool, reuse: ReuseOptions | None = None
) -> Evidence:
    """Measure what is known before a training.

    Labels are those of the pool. Images need no label, so features and bands are
    those of all tiles of the training part that have one.

    Args:
        source: The model to start from.
        pool: The labels that a run may see, of the site as the new model reads it.
        reuse: How the model is fitted to the site.

    Raises:
        DataError: If no label can be seen, or a file cannot be read.
        ModelError: If no class is shared, or the file holds another model.
    """
    card, site = source.card, pool.site
    labels = count_labels(pool)
    if not any(item.pixels for item in labels):
        raise DataError(
            f"Site {site.name} has no labelled pixel that a run may see, so nothing "
            "can be advised. Label some tiles or fields; until then `zero_shot` and "
            "`adabn` are the modes that need none."
        )
    matches = match_card_classes(card, site.classes)
    source = replace(source, load=functools.cache(source.load))
    return Evidence(
        site=site.name,
        source_site=card.site,
        labels=labels,
        num_tiles=len(pool.tiles),
        shared=tuple(matches),
        zero_shot=_score_source(source, pool, reuse, matches),
        feature_distance=_measure_feature_distance(source, pool),
        half_distance=card.features.half_distance if card.features else None,
        band_distances=_measure_bands(card, pool),
    )


def count_labels(pool: LabelPool) -> tuple[ClassLabels, ...]:
    """Count pixels, tiles and fields of each class that a run may see."""
    site = pool.site
    counts = np.array([tile.train_pixels for tile in pool.tiles], np.int64)
    counts = counts.reshape(-1, len(site.classes))
    fields: list[int] | None = None
    if site.vector_sources:
        survey = survey_site(site, pool.tile_size)
        class_ids = {field.key: field.class_id for field in survey.fields}
        keys = {key for tile in pool.tiles for key, _ in tile.train_fields}
        found = [class_ids[key] for key in keys]
        fields = np.bincount(
            np.array(found, np.int64), minlength=len(site.classes)
        ).tolist()
    return tuple(
        ClassLabels(
            name=name,
            pixels=int(counts[:, index].sum()),
            tiles=int((counts[:, index] > 0).sum()),
            fields=fields[index] if fields is not None else None,
        )
        for index, name in enumerate(site.classes.names)
    )


def _score_source(
    source: Source,
    pool: LabelPool,
    reuse: ReuseOptions | None,
    matches: Mapping[str, Sequence[str]],
) -> ZeroShot | None:
    """Score the source as it is, or return None where that cannot be done."""
    pixels = dict(zip(pool.site.classes.names, pool.class_pixels, strict=True))
    seen = [name for name in matches if pixels[name]]
    if not seen:
        return None
    from cropseg.transfer.zero_shot import score_zero_shot

    try:
        scores = score_zero_shot(source.load(), pool, reuse=reuse)
    except ModelError:  # classes that only training tells apart
        return None
    ious = {
        item.name: item.iou
        for item in scores.classes
        if item.name in seen and item.iou is not None
    }
    if not ious:
        return None
    return ZeroShot(
        miou=sum(ious.values()) / len(ious),
        own_miou=_get_own_miou(source.card, [matches[name] for name in ious]),
        majority_miou=max(pixels[n] for n in ious) / sum(pixels.values()) / len(ious),
        num_classes=len(ious),
    )


def _get_own_miou(card: Card, groups: Sequence[Sequence[str]]) -> float | None:
    """Return the mean IoU in area 1 of classes, each of which may be several there."""
    for part in SCORED_PARTS:
        rows = (card.scores.get(part) or {}).get("classes", ())
        ious = {row["name"]: row["iou"] for row in rows if row["iou"] is not None}
        known = [[ious[name] for name in group if name in ious] for group in groups]
        means = [sum(values) / len(values) for values in known if values]
        if means:
            return float(sum(means) / len(means))
    return None


def _measure_feature_distance(source: Source, pool: LabelPool) -> float | None:
    site, card = pool.site, source.card
    if card.features is None or site.bands != card.bands:
        return None
    from cropseg.inference.features import compare_features, measure_features

    tiles = open_pool(site, pool.tile_size).tiles
    features = measure_features(source.load(), site, tiles)
    return None if features is None else compare_features(card.features, features)


def _measure_bands(card: Card, pool: LabelPool) -> dict[str, float]:
    statistics = survey_site(pool.site, pool.tile_size).bands
    if statistics is None:
        return {}
    theirs = zip(card.bands, card.band_mean, card.band_std, strict=True)
    ours = zip(pool.site.bands, statistics.mean, statistics.std, strict=True)
    one, other = (
        [BandSummary(name=name, mean=mean, std=std) for name, mean, std in side]
        for side in (theirs, ours)
    )
    compared = compare_bands(one, other)
    return {band.name: band.distance for band in compared.distances}
