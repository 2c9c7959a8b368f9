"""Batches of augmented tiles.

Batch k is a function of (seed, k) and the labels alone: not of the number of
workers, nor of what was asked for before. So a training that goes on from step k
sees what an uninterrupted one would have seen (HAZARDS 19b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, UsageError
from cropseg.runtime import keras
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.training.augment import build_augmentation
from cropseg.training.tile_store import LabelledTile, TileStore

_RARE_SHARE = 0.5
"""Share of the tiles that are chosen for a class, each class as often as any other."""

_PARTS_PER_POOL = 10**6
"""Label pixels that the pools of two sites are scaled to before they are added up."""

_MIN_MIXED = 2
"""Tiles in a batch, at least, where they come from two sites."""


@dataclass(frozen=True, kw_only=True)
class SourceTiles:
    """Tiles of the source site, to be mixed into the batches of another."""

    pool: LabelPool
    """Its labels, in tiles of the target's size and with the target's bands."""
    class_ids: npt.NDArray[np.uint8]
    """For each class id of the source that of the target, (256,); 255 where the
    target does not have the class, and for 255 itself."""
    share: float
    """Share of the tiles of a batch that come from here, above 0 and below 1."""

    def __post_init__(self) -> None:
        """Check that the numbers make sense.

        Raises:
            UsageError: If one does not.
        """
        ids = self.class_ids
        if ids.shape != (256,) or ids.dtype != np.uint8 or ids[IGNORE] != IGNORE:
            raise UsageError(
                f"Class ids of the source are mapped by an array of shape {ids.shape} "
                f"and type {ids.dtype}; expected (256,), uint8, with 255 at 255."
            )
        if not 0 < self.share < 1:
            raise UsageError(
                f"The share of source tiles is {self.share}; it must be above 0 and "
                "below 1."
            )

    def count_in_batch(self, batch_size: int) -> int:
        """Return how many tiles of a batch come from here; both sites have one.

        Raises:
            UsageError: If a batch has room for one tile alone.
        """
        if batch_size < _MIN_MIXED:
            raise UsageError(
                f"A batch of {batch_size} tile cannot mix two sites. Give a "
                "--batch-size of 2 or more."
            )
        return min(max(round(self.share * batch_size), 1), batch_size - 1)

    def count_pixels(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Return the label pixels of each tile in the target's classes.

        Args:
            num_classes: Classes of the target.

        Returns:
            Of shape (tiles, num_classes).
        """
        counts = np.zeros((len(self.pool.tiles), num_classes), np.int64)
        theirs = np.array([tile.train_pixels for tile in self.pool.tiles], np.int64)
        for source_id in range(theirs.shape[1]):
            class_id = self.class_ids[source_id]
            if class_id != IGNORE:
                counts[:, class_id] += theirs[:, source_id]
        return counts


def count_class_pixels(
    pool: LabelPool, source_tiles: SourceTiles | None = None
) -> npt.NDArray[np.int64]:
    """Return how often batches show each class, for the weights of the loss.

    Args:
        pool: The labels of the site.
        source_tiles: Tiles of the source site that are mixed in.

    Returns:
        Label pixels of each class, (classes,). With two sites those of each are
        scaled so that they make up their share.
    """
    own = np.array(pool.class_pixels, np.int64)
    if source_tiles is None:
        return own
    theirs = source_tiles.count_pixels(len(own)).sum(axis=0)
    mixed = (1 - source_tiles.share) * own / own.sum()
    mixed += source_tiles.share * theirs / max(theirs.sum(), 1)
    return np.ceil(mixed * _PARTS_PER_POOL).astype(np.int64)


class TileBatches(keras.utils.PyDataset):
    """Endless batches for `fit`; batch k is a function of (seed, k)."""

    def __init__(
        self,
        pool: LabelPool,
        *,
        batch_size: int,
        seed: int,
        statistics: tuple[Sequence[float], Sequence[float]],
        source_tiles: SourceTiles | None = None,
        workers: int = 1,
    ) -> None:
        """Prepare batches.

        Args:
            pool: The labels that the run may see.
            batch_size: Tiles in a batch.
            seed: The run's seed.
            statistics: Mean and standard deviation of each band, in raw units, by
                which brightness, contrast and noise are measured.
            source_tiles: Tiles of the source site, to be mixed into every batch.
            workers: Threads that prepare batches.

        Raises:
            UsageError: If a batch is too small for tiles of two sites.
            DataError: If the source site has no label of a class of this one.
        """
        super().__init__(workers=workers, max_queue_size=2 * workers)
        self._draws = [_list_own_tiles(pool)] * batch_size
        if source_tiles is not None:
            count = source_tiles.count_in_batch(batch_size)
            source = _list_source_tiles(source_tiles, len(pool.site.classes))
            self._draws[batch_size - count :] = [source] * count
        self._augmentation = build_augmentation(
            tile_size=pool.tile_size, num_bands=len(pool.site.bands)
        )
        self._seed = seed
        self._mean, self._std = (np.asarray(item, np.float32) for item in statistics)

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
            (tiles, side, side), uint8, 255 where unknown. Tiles of the source site
            come last.
        """
        rng = np.random.default_rng([self._seed, index])
        views = [self._draw_view(tiles, rng) for tiles in self._draws]
        images, labels = zip(*views, strict=True)
        return np.stack(images), np.stack(labels)

    def _draw_view(
        self, tiles: _Tiles, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        tile = tiles.draw(rng)
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
        if tiles.class_ids is not None:
            labels = tiles.class_ids[labels]
        return image, labels


class LaterBatches(keras.utils.PyDataset):
    """The batches of an endless stream from one on."""

    def __init__(self, batches: Any, first: int) -> None:
        """Take a stream.

        Args:
            batches: A `PyDataset`; it keeps its tiles in memory for whatever stream
                is taken of it next.
            first: Number of the batch that comes first, counted from 0.
        """
        super().__init__(workers=batches.workers, max_queue_size=batches.max_queue_size)
        self._batches = batches
        self._first = first

    @property
    def num_batches(self) -> int | None:
        """None: the batches never end."""
        return None

    def __getitem__(self, index: int) -> Any:
        """Return a batch as the stream has it."""
        return self._batches[self._first + index]


@dataclass(frozen=True, kw_only=True)
class _Tiles:
    """The tiles of one site, and how often each is drawn."""

    store: TileStore
    chances: npt.NDArray[np.float64]
    """Chance of each tile: a row for any tile, then a row a class."""
    class_ids: npt.NDArray[np.uint8] | None = None
    """What class ids become, (256,); None where they stay."""

    def draw(self, rng: np.random.Generator) -> LabelledTile:
        row = 0
        if rng.random() < _RARE_SHARE:
            row = int(rng.integers(1, len(self.chances)))
        chances = self.chances[row]
        return self.store.get(int(rng.choice(len(chances), p=chances)))


def _list_own_tiles(pool: LabelPool) -> _Tiles:
    pixels = np.array([tile.train_pixels for tile in pool.tiles], np.float64)
    every = np.ones(len(pixels))
    return _Tiles(store=TileStore(pool), chances=_list_chances(pixels, every))


def _list_source_tiles(source_tiles: SourceTiles, num_classes: int) -> _Tiles:
    """Leave out tiles without a label of a class that both sites have."""
    pixels = source_tiles.count_pixels(num_classes).astype(np.float64)
    if not pixels.any():
        raise DataError(
            f"No label of {source_tiles.pool.site.name} is of a class of this site, so "
            "their tiles cannot be mixed. Match the classes by `from` in the manifest."
        )
    return _Tiles(
        store=TileStore(source_tiles.pool),
        chances=_list_chances(pixels, np.where(pixels.any(axis=1), 1.0, 0.0)),
        class_ids=source_tiles.class_ids,
    )


def _list_chances(
    pixels: npt.NDArray[np.float64], every: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the chance of each tile, (1 + classes with labels, tiles)."""
    classes = pixels.T[pixels.any(axis=0)]
    weights = np.vstack([every, classes])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _repeat_bands(
    values: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Repeat a value per band along a row of pixels, (width * bands,).

    NumPy is six times faster along a row than along a few bands.
    """
    return np.tile(values, rows.shape[1] // len(values))
