"""Quantiles of each band over the training part, which outliers do not move."""

from __future__ import annotations

import functools

import numpy as np

from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site

QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
"""Which quantiles are measured."""

_MAX_TILES = 64
_TRAIN = PARTS.index("train")

BandQuantiles = tuple[tuple[float, ...], ...]
"""The quantiles of each band, in raw units."""


def measure_quantiles(site: Site, tile_size: int) -> BandQuantiles:
    """Measure the quantiles of each band over tiles with training labels.

    At most 64 tiles are read, spread evenly over the site. The labels themselves are
    not looked at.

    Args:
        site: The site, with a training part.
        tile_size: Side of a tile, in pixels.

    Returns:
        For each band, the quantiles of `QUANTILES`, in raw units.
    """
    return _measure_files(site, tile_size, site.fingerprint)


@functools.lru_cache(maxsize=64)  # all runs of a comparison ask for the same
def _measure_files(site: Site, tile_size: int, _fingerprint: str) -> BandQuantiles:
    tiles = survey_site(site, tile_size).tiles
    picks = np.linspace(0, len(tiles) - 1, min(len(tiles), _MAX_TILES)).astype(int)
    samples = []
    for tile in (tiles[index] for index in np.unique(picks)):
        scene = site.scenes[tile.scene]
        window = tile.window.clip(height=scene.grid.height, width=scene.grid.width)
        with site.open_scene(scene) as reader:
            pixels = reader.read_pixels(window)
        parts = site.require_split().read_parts(scene.grid, window)
        samples.append(pixels.values[pixels.valid & (parts == _TRAIN)])
    found = np.quantile(np.concatenate(samples).astype(np.float64), QUANTILES, axis=0)
    return tuple(tuple(column) for column in found.T.tolist())
