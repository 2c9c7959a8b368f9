"""What the bands of a site are normalised by, when a model of another site is used.

It can decide more than the transfer mode does, so it is chosen once for all modes of
a comparison, and reported with what the source scores under it without training.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from cropseg.errors import ModelError
from cropseg.models.card import Card
from cropseg.sites.quantiles import QUANTILES, measure_quantiles
from cropseg.sites.site import Site
from cropseg.sites.statistics import BandStatistics, survey_site

Normalization = Literal["source", "target", "match"]

NORMALIZATIONS: Final[tuple[Normalization, ...]] = get_args(Normalization)
"""What `--normalization` takes. `source`: the means and standard deviations of area 1.
`target`: those of area 2. `match`: a line per band that brings median and interquartile
range of area 2 to those of area 1, and then the statistics of area 1."""

_LOWER, _MEDIAN, _UPPER = (QUANTILES.index(q) for q in (0.25, 0.5, 0.75))


def choose_statistics(
    choice: Normalization, card: Card, site: Site, tile_size: int
) -> BandStatistics:
    """Return what is subtracted from and divided out of each band of a site.

    Args:
        choice: One of `NORMALIZATIONS`.
        card: The source's card.
        site: The target, with the bands that the new model takes.
        tile_size: Side of a tile, in pixels.

    Returns:
        Mean and standard deviation of each band, in raw units. A band that the source
        does not have is normalised by the site's own.

    Raises:
        ModelError: If the card lacks what the choice needs.
    """
    own = survey_site(site, tile_size).bands
    assert own is not None  # noqa: S101 - a target has a training part
    pairs = dict(zip(site.bands, zip(own.mean, own.std, strict=True), strict=True))
    if choice == "source":
        theirs = zip(card.band_mean, card.band_std, strict=True)
        pairs |= dict(zip(card.bands, theirs, strict=True))
    elif choice == "match":
        pairs |= _match_quantiles(card, site, tile_size)
    means, stds = zip(*(pairs[band] for band in site.bands), strict=True)
    return BandStatistics(mean=means, std=stds)


def _match_quantiles(
    card: Card, site: Site, tile_size: int
) -> dict[str, tuple[float, float]]:
    """Return mean and deviation that stand for the line, then the source's own.

    With the line `a + r x`, `(a + r x - mean) / std` is `(x - m) / s` for
    `m = (mean - a) / r` and `s = std / r`.
    """
    if card.band_quantiles is None:
        raise ModelError(
            "`match` needs the quantiles of the bands, which the card of this model "
            "does not have. Choose `source` or `target`, or train area 1 again."
        )
    theirs = dict(zip(card.bands, card.band_quantiles, strict=True))
    found = {}
    for band, ours in zip(site.bands, measure_quantiles(site, tile_size), strict=True):
        if band not in theirs:
            continue
        index = card.bands.index(band)
        spreads = [q[_UPPER] - q[_LOWER] for q in (theirs[band], ours)]
        ratio = spreads[0] / spreads[1] if min(spreads) > 0 else 1.0
        offset = theirs[band][_MEDIAN] - ratio * ours[_MEDIAN]
        mean = (card.band_mean[index] - offset) / ratio
        found[band] = (mean, card.band_std[index] / ratio)
    return found
