"""Batches of augmented tiles.

Batch k is a function of (seed, k) and the labels alone: not of the number of
workers, nor of what was asked for before. So a training that goes on from step k
sees what an uninterrupted one would have seen (HAZARDS 19b).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.runtime import keras
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.sites.location import RemoteFile
from cropseg.sites.scene import SceneReader
from cropseg.training.augment import build_augmentation

_RARE_SHARE = 0.5
"""Share of the tiles that are chosen for a class, each class as often as any other."""

_MAX_OPEN_SCENES = 8

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
    """Reads the tiles of a label pool, and keeps them in memory while they fit.

    One thread reads for all: a handle belongs to one thread (HAZARDS 4), and blocks
    that neighbouring tiles share are decoded once.
    """

    def __init__(self, pool: LabelPool) -> None:
        """Take a pool of labels.

        Args:
            pool: The labels that the run may see.
        """
        self._pool = pool
        self.margin = pool.tile_size // 4
        self._kept: dict[int, LabelledTile] = {}
        self._room = _CACHE_BYTES
        self._opened: dict[int, tuple[SceneReader, contextlib.ExitStack]] = {}
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="tiles")

    def get(self, index: int) -> LabelledTile:
        """Return a tile of the pool with a margin of a quarter of its side around.

        Any thread may call this.
        """
        kept = self._kept.get(index)
        return kept or self._reading.submit(self._get_or_read, index).result()

    def _get_or_read(self, index: int) -> LabelledTile:
        tile = self._kept.get(index)  # while this waited, it may have been read
        if tile is None:
            tile = self._read(index)
            if tile.num_bytes <= self._room:
                self._kept[index] = tile
                self._room -= tile.num_bytes
        return tile

    def _read(self, index: int) -> LabelledTile:
        tile = self._pool.tiles[index]
        window = tile.window.grow(self.margin)
        with self._open_scene(tile.scene) as reader:
            pixels, labels = reader.read_valid_labels(window)
            visible = self._pool.read_visible(reader, tile.scene, window)
        labels[~visible] = IGNORE
        values = np.ascontiguousarray(pixels.values)
        return LabelledTile(values=values, valid=pixels.valid, labels=labels)

    @contextlib.contextmanager
    def _open_scene(self, index: int) -> Iterator[SceneReader]:
        """Open a scene, or take it as it was left open."""
        scene = self._pool.site.scenes[index]
        if any(isinstance(file.location, RemoteFile) for file in scene.image.files):
            with self._pool.site.open_scene(scene) as reader:
                yield reader
            return
        if index not in self._opened:
            while len(self._opened) >= _MAX_OPEN_SCENES:
                self._opened.pop(next(iter(self._opened)))[1].close()
            stack = contextlib.ExitStack()
            reader = stack.enter_context(self._pool.site.open_scene(scene))
            self._opened[index] = (reader, stack)
        yield self._opened[index][0]


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
        image = tile.values.astype(np.float32)
        rows = image.reshape(len(image), -1)
        rows -= _repeat_bands(self._mean, rows)
        rows /= _repeat_bands(self._std, rows)
        if not tile.valid.all():
            image[~tile.valid] = 0
        image, labels = self._augmentation.augment(
            image, tile.labels, int(rng.integers(2**31))
        )
        rows = image.reshape(len(image), -1)
        rows *= _repeat_bands(self._std, rows)
        rows += _repeat_bands(self._mean, rows)
        return image, labels


def _repeat_bands(
    values: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Repeat a value per band along a row of pixels, (width * bands,).

    NumPy is six times faster along a row than along a few bands.
    """
    return np.tile(values, rows.shape[1] // len(values))


def _list_chances(pool: LabelPool) -> npt.NDArray[np.float64]:
    """Return the chance of each tile: a row for any tile, then a row a class."""
    pixels = np.array([tile.train_pixels for tile in pool.tiles], np.float64).T
    pixels = pixels[pixels.any(axis=1)]
    weights = np.vstack([np.ones(pixels.shape[1]), pixels])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
