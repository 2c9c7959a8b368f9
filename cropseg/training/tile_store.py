"""Decoded tiles of a label pool, kept in memory while they fit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.runtime import get_shared
from cropseg.sites.budget import LabelPool
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.location import RemoteFile
from cropseg.sites.scene import SceneReader
from cropseg.sites.site import Site

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


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """A tile with its surroundings, as the files have it."""

    values: npt.NDArray[Any]
    """Raw values, (side, side, bands), in the file's dtype."""
    valid: npt.NDArray[np.bool_]
    """(side, side), True where the image recorded something."""
    labels: npt.NDArray[np.uint8]
    """All class ids, (side, side); nobody writes to them."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.values.nbytes + self.valid.nbytes + self.labels.nbytes


class _DecodedTiles:
    """What was decoded for any pool of a site, while it fits. For several threads."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, Window], _Decoded] = {}
        self._room = _CACHE_BYTES
        self._lock = threading.Lock()

    def get(self, scene: int, window: Window) -> _Decoded | None:
        """Return a window of a scene, or None where it was not kept."""
        return self._kept.get((scene, window))

    def keep(self, scene: int, window: Window, tile: _Decoded) -> None:
        """Keep a window of a scene for all pools, if there is room."""
        with self._lock:
            if tile.num_bytes <= self._room and (scene, window) not in self._kept:
                self._kept[scene, window] = tile
                self._room -= tile.num_bytes


def _open_decoded(site: Site) -> _DecodedTiles | None:
    """Return what runs decoded of a site; None where they share nothing."""
    shared = get_shared()
    if shared is None:
        return None
    key = ("tiles", site, site.fingerprint)
    found: _DecodedTiles | None = shared.get(key)
    if found is None:
        found = _DecodedTiles()
        shared.keep(key, found)
    return found


class TileStore:
    """Reads the tiles of a label pool, and keeps them in memory while they fit.

    Pools of a site share what is decoded where the runs of a process share something,
    for budgets of a draw are nested; each sees the labels of its own tiles alone.

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
        self._decoded = _open_decoded(pool.site)
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
            decoded = self._decode(reader, tile.scene, window)
            visible = self._pool.read_visible(reader, tile.scene, window)
        return LabelledTile(
            values=decoded.values,
            valid=decoded.valid,
            labels=np.where(visible, decoded.labels, np.uint8(IGNORE)),
        )

    def _decode(self, reader: SceneReader, scene: int, window: Window) -> _Decoded:
        shared = self._decoded
        found = shared.get(scene, window) if shared else None
        if found is None:
            pixels, labels = reader.read_valid_labels(window)
            values = np.ascontiguousarray(pixels.values)
            found = _Decoded(values=values, valid=pixels.valid, labels=labels)
            if shared:
                shared.keep(scene, window, found)
        return found

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
