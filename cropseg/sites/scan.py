"""Reading every pixel of a site, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cropseg.errors import DataError, join_problems
from cropseg.sites.classes import Labels
from cropseg.sites.grid import Window
from cropseg.sites.labels import FieldIds
from cropseg.sites.raster import Pixels
from cropseg.sites.site import Site
from cropseg.sites.split import PartIds
from cropseg.sites.tiling import iterate_tiles

_READ_PX: Final = 512


@dataclass(frozen=True, kw_only=True)
class ScannedBlock:
    """Some neighbouring tiles of a scene, with all that is known of their pixels."""

    scene: int
    """Position of its scene in the site."""
    core: Window
    """The pixels of its tiles that lie inside the scene."""
    window: Window
    """The core and its context, which may reach over the edge. The arrays below have
    this shape."""
    pixels: Pixels
    """The site's bands."""
    labels: Labels
    """Class ids; 255 where unknown or invalid."""
    fields: FieldIds
    """The field of each pixel, -1 for none."""
    parts: PartIds
    """The part of each pixel; `NO_PART` for none."""


def scan_site(
    site: Site, tile_size: int, *, context: int = 0
) -> Iterator[ScannedBlock]:
    """Read a site, every pixel once but for context.

    Args:
        site: The site, with a split.
        tile_size: Side of a tile, in pixels. Blocks hold whole tiles.
        context: Pixels to read around a block, on every side.

    Yields:
        Blocks of tiles, scene by scene and row by row.

    Raises:
        DataError: If a file cannot be read or holds labels that nobody named. The
            unnamed labels of all scenes are listed.
    """
    split = site.require_split()
    block_size = max(1, _READ_PX // tile_size) * tile_size
    for index, scene in enumerate(site.scenes):
        area = scene.grid.window
        with site.open_scene(scene) as reader:
            for tile in iterate_tiles(area, core_size=block_size):
                core = tile.core.clip(height=area.height, width=area.width)
                window = core.grow(context)
                try:
                    pixels, labels = reader.read_valid_labels(window)
                except DataError as error:
                    unnamed = find_unnamed_labels(site)
                    if not unnamed:
                        raise
                    title = f"Labels of site {site.name}"
                    raise DataError(join_problems(title, unnamed)) from error
                yield ScannedBlock(
                    scene=index,
                    core=core,
                    window=window,
                    pixels=pixels,
                    labels=labels,
                    fields=reader.read_fields(window),
                    parts=split.read_parts(scene.grid, window),
                )


def find_unnamed_labels(site: Site) -> list[str]:
    """List the label values that no class and no `ignore` names, scene by scene."""
    problems = []
    for scene in site.scenes:
        if scene.labels is None:
            continue
        with site.open_scene(scene) as reader:
            counts = reader.count_label_values()
        problem = site.classes.describe_unnamed(counts, scene.labels.noun)
        if problem:
            problems.append(f"{scene.labels_path}: {problem}")
    return problems
