"""Batches of augmented tiles.

Batch k is a function of (seed, k) and the labels alone: not of the number of
workers, nor of what was asked for before. So a training that goes on from step k
sees what an uninterrupted one would have seen (HAZARDS 19b).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.runtime import keras
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.site import Scene
from cropseg.sites.split import PARTS
from cropseg.training.augment import build_augmentation

_RARE_SHARE = 0.5
"""Share of the tiles that are chosen for a class, each class as often as any other."""

_CACHE_BYTES = 2**30
"""Memory in which decoded tiles are kept. What does not fit is read again."""


@dataclass(frozen=True, kw_only=True)
class LabelledTile:
    """A tile with its surroundings, as it lies in memory."""

    values: npt.NDArray[Any]
    """Raw values, (side, side, bands), in the file's dtype."""
    valid: npt.NDArray[np.bool_]
    """(side, side), True where the image recorded something."""
    labels: npt.NDArray[np.uint8]
    """Class ids that the run may see, (side, side); 255 elsewhere."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.values.nbytes + self.valid.nbytes + self.labels.nbytes


class TileStore:
    """Reads the tiles of a label pool, and keeps them in memory while they fit."""

    def __init__(self, pool: LabelPool) -> None:
        """Take a pool of labels.

        Args:
            pool: The labels that the run may see.
        """
        self._pool = pool
        self.margin = pool.tile_size // 4
        self._kept: dict[int, LabelledTile] = {}
        self._room = _CACHE_BYTES
        self._lock = threading.Lock()
        self._visible = [self._mark_cells(i) for i in range(len(pool.site.scenes))]

    def get(self, index: int) -> LabelledTile:
        """Return a tile of the pool with a margin of a quarter of its side around."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        tile = self._read(index)
        with self._lock:
            if index not in self._kept and tile.num_bytes <= self._room:
                self._kept[index] = tile
                self._room -= tile.num_bytes
        return tile

    def _read(self, index: int) -> LabelledTile:
        tile = self._pool.tiles[index]
        scene = self._pool.site.scenes[tile.scene]
        window = tile.window.grow(self.margin)
        with self._pool.site.open_scene(scene) as reader:
            pixels, labels = reader.read_valid_labels(window)
        parts = self._pool.site.require_split().read_parts(scene.grid, window)
        labels[parts != PARTS.index("train")] = IGNORE
        labels[~self._look_up_visible(tile.scene, window)] = IGNORE
        return LabelledTile(values=pixels.values, valid=pixels.valid, labels=labels)

    def _mark_cells(self, scene_index: int) -> npt.NDArray[np.bool_]:
        """Mark the cells of a scene's tile grid that are in the pool."""
        scene: Scene = self._pool.site.scenes[scene_index]
        size = self._pool.tile_size
        shape = (-(-scene.grid.height // size), -(-scene.grid.width // size))
        cells = np.zeros(shape, np.bool_)
        for tile in self._pool.tiles:
            if tile.scene == scene_index:
                cells[tile.window.row // size, tile.window.col // size] = True
        return cells

    def _look_up_visible(
        self, scene_index: int, window: Window
    ) -> npt.NDArray[np.bool_]:
        size, cells = self._pool.tile_size, self._visible[scene_index]
        rows = np.arange(window.row, window.row_end) // size
        cols = np.arange(window.col, window.col_end) // size
        inside = (
            ((rows >= 0) & (rows < cells.shape[0]))[:, None]
            & ((cols >= 0) & (cols < cells.shape[1]))[None, :]
        )  # fmt: skip
        rows, cols = (
            np.clip(axis, 0, count - 1)
            for axis, count in zip((rows, cols), cells.shape, strict=True)
        )
        return inside & cells[np.ix_(rows, cols)]


class TileBatches(keras.utils.PyDataset):
    """Endless batches for `fit`; batch k is a function of (seed, k)."""

    def __init__(
        self,
        pool: LabelPool,
        *,
        batch_size: int,
        seed: int,
        statistics: tuple[Sequence[float], Sequence[float]],
        first_step: int = 0,
        workers: int = 1,
    ) -> None:
        """Prepare batches.

        Args:
            pool: The labels that the run may see.
            batch_size: Tiles in a batch.
            seed: The run's seed.
            statistics: Mean and standard deviation of each band, in raw units, by
                which brightness, contrast and noise are measured.
            first_step: The step that the first batch belongs to.
            workers: Threads that prepare batches.
        """
        super().__init__(workers=workers, max_queue_size=2 * workers)
        self._store = TileStore(pool)
        self._augmentation = build_augmentation(
            tile_size=pool.tile_size, num_bands=len(pool.site.bands)
        )
        self._batch_size = batch_size
        self._seed = seed
        self._mean, self._std = (np.asarray(item, np.float32) for item in statistics)
        self._first_step = first_step
        self._chances = _list_chances(pool)

    @property
    def num_batches(self) -> int | None:
        """None: the batches never end."""
        return None

    def __getitem__(
        self, index: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return a batch.

        Returns:
            Raw values, (tiles, side, side, bands), float32, and class ids,
            (tiles, side, side), uint8, 255 where unknown.
        """
        rng = np.random.default_rng([self._seed, self._first_step + index])
        views = [self._draw_view(rng) for _ in range(self._batch_size)]
        images, labels = zip(*views, strict=True)
        return np.stack(images), np.stack(labels)

    def _draw_view(
        self, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        row = 0
        if rng.random() < _RARE_SHARE:
            row = int(rng.integers(1, len(self._chances)))
        chances = self._chances[row]
        tile = self._store.get(int(rng.choice(len(chances), p=chances)))
        image = (tile.values.astype(np.float32) - self._mean) / self._std
        image[~tile.valid] = 0
        image, labels = self._augmentation.augment(
            image, tile.labels, int(rng.integers(2**31))
        )
        return image * self._std + self._mean, labels


def _list_chances(pool: LabelPool) -> npt.NDArray[np.float64]:
    """Return the chance of each tile: a row for any tile, then a row a class."""
    pixels = np.array([tile.train_pixels for tile in pool.tiles], np.float64).T
    pixels = pixels[pixels.any(axis=1)]
    weights = np.vstack([np.ones(pixels.shape[1]), pixels])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
