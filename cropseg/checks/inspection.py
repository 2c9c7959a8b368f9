"""One pass over a site: everything that a check counts.

While a block is read, another thread looks at the one before. (With two such threads
it took longer.) Counters see the blocks in their order.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from cropseg.checks.alignment import ShiftMeter
from cropseg.checks.blocks import BlockCounts
from cropseg.checks.duplicates import ContentIndex
from cropseg.checks.occupancy import Boxes, LabelledScene, find_boxes
from cropseg.checks.quicklook import QuickLooks
from cropseg.checks.summary import BandCounts, BandReport
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.scan import ScannedBlock, scan_site
from cropseg.sites.site import Site
from cropseg.sites.split import NO_PART, NoSplit, PartIds
from cropseg.sites.statistics import Survey, SurveyCounts

MAX_LOOKS: Final = 12
"""Scenes of which a quick-look is kept, the first ones."""

_SHIFT_BLOCKS: Final = 4
"""Blocks of a scene in which labels are laid over the image, spread evenly."""


class Inspection:
    """One pass over a site, and what it counted."""

    def __init__(self, site: Site, tile_size: int) -> None:
        """Prepare to read a site, which has a split or `NoSplit`."""
        self.site = site
        self.bands = BandCounts(site.bands)
        self.looks = QuickLooks(site, MAX_LOOKS)
        self.shifts = [ShiftMeter() for _ in site.scenes]
        self.valid_pixels = np.zeros(len(site.scenes), np.int64)
        self.class_pixels = np.zeros((len(site.scenes), len(site.classes)), np.int64)
        """Labelled pixels, in a part or in none, (scenes, classes)."""
        sizes = [scene.grid.height * scene.grid.width for scene in site.scenes]
        self.content = ContentIndex(min(sizes))
        has_split = not isinstance(site.split, NoSplit)
        self.blocks = BlockCounts(site) if has_split else None
        self._tile_size = tile_size
        self._sizes = sizes
        self._seen_pixels = np.zeros(len(site.scenes), np.int64)
        self._num_compared = np.zeros(len(site.scenes), np.int64)
        self._boxes: list[dict[int, list[Boxes]]] = [{} for _ in site.scenes]
        self._counts = SurveyCounts(site, tile_size)

    def run(self) -> None:
        """Read the site.

        Raises:
            DataError: If a file cannot be read or holds labels that nobody named.
        """
        # More threads in a product of matrices would only wait for one another.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as thread:
            waiting: list[Future[None]] = []
            for block in scan_site(self.site, self._tile_size):
                for future in waiting:
                    future.result()
                waiting = [thread.submit(self._add, block)]
            for future in waiting:
                future.result()

    def _add(self, block: ScannedBlock) -> None:
        # Values that are far too large are a finding, and no warning of numpy's.
        with np.errstate(over="ignore", invalid="ignore"):
            self._count(block)

    def _count(self, block: ScannedBlock) -> None:
        self._counts.add(block)
        self.bands.add(block.pixels.values, block.pixels.valid)
        self.valid_pixels[block.scene] += np.count_nonzero(block.pixels.valid)
        counts = np.bincount(block.labels.ravel(), minlength=IGNORE + 1)
        self.class_pixels[block.scene] += counts[: len(self.site.classes)]
        if self.blocks:
            self.blocks.add(block)
            self._find_boxes(block)
        self.looks.add(block)
        self.content.add(
            block.scene,
            block.window,
            values=block.pixels.values,
            valid=block.pixels.valid,
            parts=block.parts,
        )
        if self._is_due(block):
            self.shifts[block.scene].add(
                block.pixels.values, block.pixels.valid, block.labels
            )

    def _is_due(self, block: ScannedBlock) -> bool:
        """Whether labels are compared here: in a few blocks, spread over the scene."""
        scene = block.scene
        self._seen_pixels[scene] += block.labels.size
        share = self._seen_pixels[scene] / self._sizes[scene]
        if self._num_compared[scene] >= share * _SHIFT_BLOCKS:
            return False
        if not (block.labels != IGNORE).any():
            return False
        self._num_compared[scene] += 1
        return True

    @functools.cached_property
    def band_reports(self) -> tuple[BandReport, ...]:
        """The bands, once the site is read; none where no pixel is valid."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.bands.finish()

    @property
    def block_counts(self) -> dict[int, npt.NDArray[np.int64]]:
        """Labelled pixels of each block, (parts + 1, classes)."""
        return self.blocks.pixels if self.blocks else {}

    @functools.cached_property
    def survey(self) -> Survey:
        """The survey."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._counts.finish()

    @functools.cached_property
    def scenes(self) -> list[LabelledScene]:
        """The scenes as the parts of their labelled pixels."""
        return [
            replace(
                scene,
                boxes={
                    part: np.concatenate([np.empty((0, 4), np.int64), *boxes])
                    for part, boxes in found.items()
                },
            )
            for scene, found in zip(
                list_labelled_scenes(self.site), self._boxes, strict=True
            )
        ]

    def _find_boxes(self, block: ScannedBlock) -> None:
        core = block.core.slices_in(block.window)
        labelled = block.labels[core] != IGNORE
        parts = np.where(labelled, block.parts[core], NO_PART).astype(np.uint8)
        kept = self._boxes[block.scene]
        for part, boxes in find_boxes(parts, block.core).items():
            kept.setdefault(part, []).append(boxes)


def list_labelled_scenes(site: Site) -> list[LabelledScene]:
    """Return the labelled scenes of a site as the parts of their labelled pixels."""
    split = site.require_split()
    scenes = []
    for scene in site.scenes:

        def read_parts(window: Window, scene: Any = scene) -> PartIds:
            with site.open_scene(scene) as reader:
                _, labels = reader.read_valid_labels(window)
            parts = split.read_parts(scene.grid, window)
            return np.where(labels != IGNORE, parts, NO_PART).astype(np.uint8)

        scenes.append(
            LabelledScene(name=scene.name, grid=scene.grid, read_parts=read_parts)
        )
    return scenes
