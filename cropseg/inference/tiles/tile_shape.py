"""The one shape in which the tiles of a scene are read and predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cropseg.errors import UsageError
from cropseg.sites.grid import Window

DEFAULT_TILE_SIZE: Final = 512
"""Side of a tile with its context, in pixels."""

DEFAULT_CONTEXT: Final = 64
"""Pixels of context around a core, on every side. See docs/performance.md."""

SEAM_SHARE: Final = 0.5
"""Width of a seam by the context, where tiles are blended. In a seam weigh pixels that
have less context, down to three quarters of it here; wider seams agreed less with the
whole scene in one tile (docs/performance.md)."""

SMALL_SCENES: Final = (128, 256, 384, 512)
"""Scenes up to such a side, in pixels, are one tile. Few sizes, as an engine prepares
itself for each."""

SMALL_CONTEXT: Final = 32
"""Pixels around a scene that is one tile. All of them mirror the scene, and tell
nothing that is not in it."""


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

    @property
    def seam(self) -> int:
        """Width in pixels, even, of what two tiles share where they are blended."""
        return min(round(SEAM_SHARE * self.context), self.core_size) // 2 * 2

    def find_margin(self, *, blend: bool) -> int:
        """Return the pixels on every side of a tile whose classes nobody asks for."""
        return self.context - self.seam // 2 if blend else self.context


def choose_tile_shape(
    multiple: int,
    *,
    size: int | None = None,
    context: int | None = None,
    scene: Window | None = None,
) -> TileShape:
    """Choose a tile shape that keeps tile origins on multiples of the stride.

    Args:
        multiple: What the network needs the side of a tile to be a multiple of.
        size: Side of a tile in pixels; the default is the multiple nearest to 512.
        context: Context in pixels; the default is 64, or a quarter of a small tile.
        scene: The whole scene at the model's GSD. Where neither size nor context is
            given, one of up to 512 pixels a side becomes one tile of the least of a
            few sizes that holds it. So the shape depends on this scene alone, and not
            on others that are mapped with it.

    Raises:
        UsageError: If a size is no multiple, or no core is left.
    """
    if size is None and context is None and scene is not None:
        shape = _choose_single_tile(multiple, scene)
        if shape is not None:
            return shape
    if size is None:
        size = max(1, round(DEFAULT_TILE_SIZE / multiple)) * multiple
    if context is None:
        context = min(DEFAULT_CONTEXT, size // 4) // multiple * multiple
    is_cut = size % multiple or context % multiple
    if is_cut or size <= 2 * context or context < 0:
        raise UsageError(
            f"Tile size {size} with context {context} does not fit this model: both "
            f"must be multiples of {multiple}, the context not below 0, and a tile "
            "wider than two contexts."
        )
    return TileShape(size=size, context=context)


def _choose_single_tile(multiple: int, scene: Window) -> TileShape | None:
    context = SMALL_CONTEXT // multiple * multiple
    for side in SMALL_SCENES:
        if max(scene.height, scene.width) <= side:
            core = -(-side // multiple) * multiple
            return TileShape(size=core + 2 * context, context=context)
    return None
