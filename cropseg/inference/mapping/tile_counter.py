"""How far a batch is, in tiles."""

from __future__ import annotations

import math
import threading

from cropseg.inference.mapping.jobs import BandJob, SceneJob
from cropseg.progress import ShowProgress
from cropseg.sites.grid import Window


class TileCounter:
    """Counts the tiles of a batch whose scenes are opened one by one.

    Scenes that were not opened yet are taken to be as large as the others.
    """

    def __init__(self, num_scenes: int, show_progress: ShowProgress) -> None:
        """Begin to count.

        Args:
            num_scenes: Scenes in all.
            show_progress: Called for every tile.
        """
        self._show = show_progress
        self._num_left = num_scenes
        self._num_opened = 0
        self._num_known = 0
        self._done = 0
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self, scene: SceneJob) -> None:
        """Say that a scene was opened."""
        num_tiles = _count_tiles(scene, scene.grid.window)
        with self._lock:
            self._num_left -= 1
            self._num_opened += 1
            self._num_known += num_tiles
            self._open[scene.name] = num_tiles

    def skip(self) -> None:
        """Say that a scene cannot be opened."""
        with self._lock:
            self._num_left -= 1

    def count(self, job: BandJob) -> None:
        """Count a tile."""
        with self._lock:
            self._advance(job.scene, 1)

    def count_band(self, job: BandJob) -> None:
        """Count the tiles of a band."""
        with self._lock:
            self._advance(job.scene, _count_tiles(job.scene, job.window))

    def end(self, scene: SceneJob) -> None:
        """Say that a scene is over: its other tiles were done before, or never are."""
        with self._lock:
            self._advance(scene, self._open.get(scene.name, 0))

    def _advance(self, scene: SceneJob, num_tiles: int) -> None:
        # Blending asks for the tiles along the edge of a band once more.
        num_tiles = min(num_tiles, self._open[scene.name])
        if not num_tiles:
            return
        self._open[scene.name] -= num_tiles
        self._done += num_tiles
        mean = self._num_known / self._num_opened
        total = self._num_known + round(mean * self._num_left)
        self._show(self._done, total, scene.scene.image.path.name)


def _count_tiles(scene: SceneJob, area: Window) -> int:
    core_size = scene.shape.core_size
    return math.ceil(area.height / core_size) * math.ceil(area.width / core_size)
