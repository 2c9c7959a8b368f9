"""The one shape of the tiles in which a part of a site is scored."""

from __future__ import annotations

import functools
from typing import Final

from cropseg.inference.tiles.tile_shape import TileShape, choose_tile_shape
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.tiling import iterate_tiles

_CORE_SHARES: Final = (1, 2 / 3, 1 / 3)
"""Sides of the cores that are tried, as shares of the default one."""


def choose_scoring_shape(site: Site, part: str, multiple: int) -> TileShape:
    """Choose the tiles of least pixels that cover a part, with the default context.

    Large tiles are the cheapest where a part is a whole scene. Where it is a strip, or
    blocks among those of other parts, most of a large tile would be computed in vain.

    Args:
        site: The site, with a split.
        part: train, val or test.
        multiple: What the network needs the side of a tile to be a multiple of.
    """
    return _choose(site, part, multiple, site.fingerprint)


@functools.lru_cache(maxsize=64)  # every run of a comparison asks for the same
def _choose(site: Site, part: str, multiple: int, _fingerprint: str) -> TileShape:
    default = choose_tile_shape(multiple)
    shapes = [default]
    for share in _CORE_SHARES[1:]:
        core_size = round(default.core_size * share / multiple) * multiple
        if core_size:
            size = core_size + 2 * default.context
            shapes.append(TileShape(size=size, context=default.context))
    return min(shapes, key=lambda shape: _count_pixels(site, part, shape))


def _count_pixels(site: Site, part: str, shape: TileShape) -> int:
    """Return how many pixels are computed for a part."""
    split, part_id = site.require_split(), PARTS.index(part)
    num_tiles = 0
    for scene in site.scenes:
        if scene.labels_path is None:
            continue
        area = scene.grid.window
        for tile in iterate_tiles(area, core_size=shape.core_size):
            core = tile.core.clip(height=area.height, width=area.width)
            num_tiles += bool((split.read_parts(scene.grid, core) == part_id).any())
    return num_tiles * shape.size**2
