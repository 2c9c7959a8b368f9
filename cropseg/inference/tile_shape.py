"""The one shape in which tiles are read and predicted."""

from __future__ import annotations

from dataclasses import dataclass

from cropseg.errors import UsageError

DEFAULT_TILE_SIZE = 512
"""Side of a tile with its context, in pixels."""

DEFAULT_CONTEXT = 64
"""Pixels of context around a core, on every side."""


@dataclass(frozen=True, kw_only=True)
class TileShape:
    """The one shape in which a scene is read and predicted."""

    size: int
    """Side of a tile with its context, in pixels."""
    context: int
    """Pixels of context on every side of the core."""

    @property
    def core_size(self) -> int:
        """Side of the core, in pixels."""
        return self.size - 2 * self.context


def choose_tile_shape(
    multiple: int,
    *,
    size: int | None = None,
    context: int | None = None,
) -> TileShape:
    """Choose a tile shape that keeps tile origins on multiples of the stride.

    Args:
        multiple: What the network needs the side of a tile to be a multiple of.
        size: Side of a tile in pixels; the default is the multiple nearest to 512.
        context: Context in pixels; the default is 64, or a quarter of a small tile.

    Raises:
        UsageError: If a size is no multiple, or no core is left.
    """
    if size is None:
        size = max(1, round(DEFAULT_TILE_SIZE / multiple)) * multiple
    if context is None:
        context = min(DEFAULT_CONTEXT, size // 4) // multiple * multiple
    if size % multiple or context % multiple or size <= 2 * context:
        raise UsageError(
            f"Tile size {size} with context {context} does not fit this model: both "
            f"must be multiples of {multiple}, and a tile wider than two contexts."
        )
    return TileShape(size=size, context=context)
