"""Tiles of a site without their labels: what learns nothing of a crop may see more.

Scenes without labels count as much as those with. No pixel of such a tile lies in
the val or the test part: a model is scored on pixels that it has never seen, with
labels or without. Labels are neither opened nor read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, NoSplit, Split

_SCORED: Final = (PARTS.index("val"), PARTS.index("test"))
_MIN_VALID_SHARE: Final = 0.25
_STRIP_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True)
class UnlabelledTile:
    """A tile of a scene."""

    scene: int
    """Position of its scene in the site."""
    window: Window
    """Its pixels."""


@dataclass(frozen=True, kw_only=True)
class UnlabelledTiles:
    """The tiles of a site that may be learnt from without labels."""

    site: Site
    """The site."""
    tile_size: int
    """Side of a tile, in pixels."""
    tiles: tuple[UnlabelledTile, ...]
    """The tiles, scene by scene and row by row. None overlaps another of its scene."""

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tiles)

    def read(self, index: int) -> Pixels:
        """Read the site's bands in a tile. Threads may call this at once."""
        return _read_tile(self.site, self.tiles[index])


def list_unlabelled_tiles(site: Site, tile_size: int) -> UnlabelledTiles:
    """Find the tiles of all scenes that touch neither the val nor the test part.

    They are laid as close as they fit, wherever the split leaves room, and not on the
    tile grid of the labels, which cuts across blocks. Pixels of no part, in a gap or
    outside all regions, are free: nothing is scored there. A site without a split
    has no pixel that is scored, so all of it is free.

    Args:
        site: The site.
        tile_size: Side of a tile, in pixels.

    Returns:
        The tiles with data on a quarter of their pixels or more, one at least.

    Raises:
        DataError: If there is none.
    """
    return _list_tiles(site, tile_size, site.fingerprint)


@functools.lru_cache(maxsize=64)
def _list_tiles(site: Site, tile_size: int, _fingerprint: str) -> UnlabelledTiles:
    split = site.split or NoSplit()
    free = [
        UnlabelledTile(scene=index, window=window)
        for index, scene in enumerate(site.scenes)
        for window in _find_free_windows(split, scene.grid, tile_size)
    ]
    tiles = [
        tile for tile in free if _read_tile(site, tile).valid.mean() >= _MIN_VALID_SHARE
    ]
    if not tiles:
        raise DataError(
            f"Site {site.name} has {len(free)} tiles of {tile_size} pixels outside "
            f"val and test, and {len(tiles)} with data on "
            f"{_MIN_VALID_SHARE:.0%} of their pixels; expected one at least. Take a "
            "smaller `tile_size`, larger blocks (`block_m`) or regions, or add scenes "
            "without labels."
        )
    return UnlabelledTiles(site=site, tile_size=tile_size, tiles=tuple(tiles))


def _read_tile(site: Site, tile: UnlabelledTile) -> Pixels:
    scene = replace(site.scenes[tile.scene], labels=None)
    with site.open_scene(scene) as reader:
        return reader.read_pixels(tile.window)


def _find_free_windows(split: Split, grid: Grid, tile_size: int) -> Iterator[Window]:
    """Lay windows in a scene, each as far up and then left as the split allows."""
    # A scene that is smaller than a tile is read over its edge.
    height, width = max(grid.height, tile_size), max(grid.width, tile_size)
    rows_free = np.zeros(width, np.int64)  # unused free pixels from here upwards
    for strip in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - strip)
        window = Window(row=strip, col=0, height=rows, width=width)
        is_free = ~np.isin(split.read_parts(grid, window), _SCORED)
        for row, line in enumerate(is_free, start=strip + 1 - tile_size):
            rows_free = np.where(line, rows_free + 1, 0)
            for col in _find_runs(rows_free >= tile_size, tile_size):
                rows_free[col : col + tile_size] = 0
                yield Window(row=row, col=col, height=tile_size, width=tile_size)


def _find_runs(fits: npt.NDArray[np.bool_], length: int) -> list[int]:
    """Return where runs of `length` True begin, one behind the other."""
    edges = np.flatnonzero(np.diff(fits, prepend=False, append=False))
    return [
        start
        for first, end in edges.reshape(-1, 2).tolist()
        for start in range(first, end - length + 1, length)
    ]
