"""What can be chosen when scenes are mapped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cropseg.errors import UsageError, join_problems
from cropseg.inference.engines.engine import ENGINES, MIN_AGREEMENT, PRECISIONS

OUTPUT_GRIDS: Final = ("scene", "model")
"""On which pixels a map lies: those of its scene, or those that were predicted."""

POLYGON_FORMATS: Final = ("gpkg", "parquet")
"""Polygons of every scene in a file of its own, and how it ends."""


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How scenes are mapped."""

    tile_size: int | None = None
    """Side of the tiles with context, in pixels; None for 512, or less for a scene
    that is smaller."""
    context: int | None = None
    """Context on every side of a tile, in pixels; None for the default."""
    batch_size: int = 2
    """Tiles in a batch. It does not change the maps."""
    engine: str = "auto"
    """One of `ENGINES`."""
    precision: str = "auto"
    """One of `PRECISIONS`."""
    min_agreement: float = MIN_AGREEMENT
    """Share of pixels on which bfloat16 must agree with float32."""
    blend: bool = False
    """Whether neighbouring tiles fade into each other."""
    tta: bool = False
    """Whether the probabilities of eight turned and flipped copies are averaged."""
    region: Path | None = None
    """Polygons outside of which nothing is mapped."""
    output_grid: str = "scene"
    """One of `OUTPUT_GRIDS`."""
    scale: float = 1.0
    """What raw values are multiplied by, to get the units of the model."""
    confidence: bool = False
    """Whether maps of the confidence are written too."""
    probabilities: bool = False
    """Whether maps of the probability of every class are written too."""
    allow_remote: tuple[str, ...] = ()
    """Hosts that images may be read from."""
    cluster: str | None = None
    """`local:N` or the address of a dask scheduler; None for this process alone."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: If one cannot be used. All problems are listed.
        """
        problems = [
            f"`{name}` is {getattr(self, name)!r}; it must be one of "
            f"{', '.join(allowed)}."
            for name, allowed in (
                ("engine", ENGINES),
                ("precision", PRECISIONS),
                ("output_grid", OUTPUT_GRIDS),
            )
            if getattr(self, name) not in allowed
        ]
        if self.batch_size < 1:
            problems.append(f"`batch_size` is {self.batch_size}; it must be 1 or more.")
        if self.context is not None and self.context < 0:
            problems.append(f"`context` is {self.context}; it must be 0 or more.")
        if not 0 <= self.min_agreement <= 1:
            problems.append(
                f"`min_agreement` is {self.min_agreement}; it must be from 0 to 1."
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            problems.append(f"`scale` is {self.scale}; it must be above 0.")
        if problems:
            raise UsageError(join_problems("Options that cannot be used", problems))

    def describe_pixels(self) -> dict[str, Any]:
        """Return what decides the pixels of a map, as JSON values.

        Not the engine, which `auto` leaves open: the journal keeps what it came to.
        """
        return {
            "tile_size": self.tile_size,
            "context": self.context,
            "blend": self.blend,
            "tta": self.tta,
            "output_grid": self.output_grid,
            "scale": self.scale,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }


@dataclass(frozen=True, kw_only=True)
class ProductOptions:
    """What is made of finished maps. A later call can add to it."""

    polygons: str | None = None
    """One of `POLYGON_FORMATS`, or the path of one file for all scenes."""
    min_area: float = 0.0
    """Smaller polygons are dissolved, in m²."""
    simplify: float = 0.0
    """How far borders of polygons may move, in m."""
    parcels: Path | None = None
    """Fields that get their majority crop."""
    summary: bool = False
    """Whether hectares by crop are written."""
    quicklook: bool = False
    """Whether a small picture of every map is written."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: If one cannot be used. All problems are listed.
        """
        problems = [
            f"`{name}` is {value}; it must be 0 or more."
            for name in ("min_area", "simplify")
            if not (math.isfinite(value := getattr(self, name)) and value >= 0)
        ]
        if self.polygons is None and (self.min_area or self.simplify):
            problems.append("`min_area` and `simplify` are for `polygons`.")
        known = POLYGON_FORMATS
        if self.polygons is not None and self.polygons not in known:
            ending = Path(self.polygons).suffix.lstrip(".").lower()
            if ending not in known:
                problems.append(
                    f"`polygons` is {self.polygons!r}; it must be one of "
                    f"{', '.join(known)}, or a path that ends so."
                )
        if problems:
            raise UsageError(join_problems("Options that cannot be used", problems))
