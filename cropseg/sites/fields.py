"""Fields that cross the parts of a split.

A field is one crop, sown and harvested as one. If training saw its one half, the
test of its other half would be worth little. So all of it belongs to the part that
holds most of it, and its pixels elsewhere are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cropseg.sites.labels import FieldLabels
from cropseg.sites.scene import FieldRule, Scene
from cropseg.sites.split import PARTS, Split
from cropseg.sites.tiling import iterate_tiles
from cropseg.sites.vector import NO_FIELD, VectorSource, open_fields

_TILE_PX: Final = 1024


def assign_fields(
    scenes: Sequence[Scene], split: Split
) -> dict[VectorSource, FieldRule]:
    """Find the part of every field.

    Args:
        scenes: The scenes of a site.
        split: Its split.

    Returns:
        For every vector file: the part of each of its fields. A field in several
        scenes is counted over all of them; a tie goes to the part that is first in
        `PARTS`.
    """
    num_places = len(PARTS) + 1  # the last one is no part
    counts: dict[VectorSource, np.ndarray] = {}
    for scene in scenes:
        if not isinstance(scene.labels, FieldLabels):
            continue
        source = scene.labels.source
        fields = open_fields(source, scene.grid.crs)
        total = counts.setdefault(
            source, np.zeros((len(fields.values), num_places), np.int64)
        )
        area = scene.grid.window
        for tile in iterate_tiles(area, core_size=_TILE_PX):
            window = tile.core.clip(height=area.height, width=area.width)
            ids = fields.rasterize(scene.grid, window)
            if (ids == NO_FIELD).all():
                continue
            places = np.minimum(split.read_parts(scene.grid, window), len(PARTS))
            known = ids != NO_FIELD
            index = ids[known].astype(np.int64) * num_places + places[known]
            total += np.bincount(index, minlength=total.size).reshape(total.shape)
    return {
        source: FieldRule(
            split=split,
            parts=total[:, :-1].argmax(axis=1).astype(np.uint8),
            is_cut=(total[:, :-1] > 0).sum(axis=1) > 1,
            is_whole=total[:, :-1].max(axis=1) == total.sum(axis=1),
        )
        for source, total in counts.items()
    }
