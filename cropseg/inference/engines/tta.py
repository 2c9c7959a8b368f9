"""Test-time augmentation: the mean over the eight ways to lay a square tile.

A network sees a field otherwise when it lies mirrored or turned. The mean of what it
then says varies less than each answer alone. It costs eight times the computing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.inference.engines.engine import Engine, T
from cropseg.models.card import Card

NUM_POSES: Final = 8
"""Ways to lay a square: four right angles, each mirrored or not."""

Floats = npt.NDArray[np.float32]


class AugmentedEngine:
    """An engine whose probabilities are the mean over the poses of a tile.

    The mean is taken in one order, so the result does not depend on what is under way.
    """

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self._engine = engine

    @property
    def name(self) -> str:
        """Name of the engine inside."""
        return self._engine.name

    @property
    def precision(self) -> str:
        """Precision of the engine inside."""
        return self._engine.precision

    @property
    def card(self) -> Card:
        """Card of the model."""
        return self._engine.card

    def stream(
        self, tiles: Iterable[tuple[T, Floats]], *, margin: int = 0
    ) -> Iterator[tuple[T, Floats]]:
        """Predict square tiles one after the other; see `Engine`.

        Raises:
            ValueError: If a tile is not square, as it could not be turned.
        """
        total: Floats | None = None
        posed = self._engine.stream(_pose_tiles(tiles), margin=margin)
        for (key, pose), found in posed:
            probabilities = unpose(found, pose)
            total = probabilities.copy() if total is None else total + probabilities
            if pose == NUM_POSES - 1:
                yield key, total / np.float32(NUM_POSES)
                total = None


def _pose_tiles(
    tiles: Iterable[tuple[T, Floats]],
) -> Iterator[tuple[tuple[T, int], Floats]]:
    for key, values in tiles:
        height, width = values.shape[:2]
        if height != width:
            raise ValueError(
                f"A tile of {height} x {width} pixels cannot be turned by a right "
                "angle. Give square tiles."
            )
        for pose in range(NUM_POSES):
            yield (key, pose), pose_tile(values, pose)


def pose_tile(values: Floats, pose: int) -> Floats:
    """Lay a tile: mirror its columns from pose 4 on, then turn by `pose` right angles.

    Args:
        values: (side, side, bands).
        pose: 0 to 7; 0 leaves it as it is.
    """
    laid = values[:, ::-1] if pose >= NUM_POSES // 2 else values
    return np.ascontiguousarray(np.rot90(laid, pose))


def unpose(values: Floats, pose: int) -> Floats:
    """Undo `pose_tile` on anything with the tile's rows and columns."""
    turned = np.rot90(values, -pose)
    return turned[:, ::-1] if pose >= NUM_POSES // 2 else turned
