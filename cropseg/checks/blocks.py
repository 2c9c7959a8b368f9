"""Labelled pixels of every block of a split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cropseg.sites.classes import IGNORE
from cropseg.sites.scan import ScannedBlock
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, index_blocks

NO_PART_ROW = len(PARTS)
"""The row for pixels that are in no part."""


class BlockCounts:
    """Takes a scan, and counts pixels by block of the split, part and class."""

    def __init__(self, site: Site) -> None:
        """Start at nothing."""
        self._site = site
        self._split = site.require_split()
        self.pixels: dict[int, npt.NDArray[np.int64]] = {}

    def add(self, block: ScannedBlock) -> None:
        """Count what was scanned. `pixels[block id]` is (parts + 1, classes)."""
        core = block.core.slices_in(block.window)
        labels, parts = block.labels[core], block.parts[core]
        known = labels != IGNORE
        if not known.any():
            return
        grid = self._site.scenes[block.scene].grid
        found, places = index_blocks(self._split, grid, block.core)
        shape = (len(found), len(PARTS) + 1, len(self._site.classes))
        index = places * shape[1] + np.minimum(parts, NO_PART_ROW)
        index *= shape[2]
        index += np.where(known, labels, 0)
        index = index.ravel() if known.all() else index[known]
        counts = np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)
        for block_id, pixels in zip(found.tolist(), counts, strict=True):
            if pixels.any():
                self.pixels[block_id] = self.pixels.get(block_id, 0) + pixels
