"""Divides the ground of a made-up area into fields, and says how they are driven.

Between any two fields lies a border of at least 3 px, so that no pixel holds two
crops.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FIELD_PX: Final = 7500
"""About the area of a field: 85 px square, so that a tile of 128 px has several."""
HEADLAND_PX: Final = 10
"""Width of the strip in which tractors turn."""

STRIP_PX: Final = 100
"""Parts wider than this may be cut lengthwise."""
STRIP_CHANCE: Final = 0.3
"""How often they are."""
CROSSWISE_CHANCE: Final = 0.15
"""How often a farmer drives along the shorter side of a field."""

Floats = NDArray[np.float32]


class Border(IntEnum):
    """What lies between two fields. Of two that meet, the greater is laid."""

    NONE = 0
    MARGIN = 1
    HEDGE = 2
    TRACK = 3
    ROAD = 4


_WIDTH_PX: Final = {
    Border.MARGIN: 3.0,
    Border.HEDGE: 7.0,
    Border.TRACK: 9.0,
    Border.ROAD: 14.0,
}


_BORDER_CHANCES: Final = (
    (0, 0, 0, 0, 1),
    (0, 0, 0.1, 0.9, 0),
    (0, 0, 0.1, 0.9, 0),
    (0, 0.6, 0.34, 0.06, 0),
)
"""Chances of the borders by how often the ground was divided before."""


@dataclass(frozen=True, kw_only=True)
class Parcels:
    """The ground, divided into fields."""

    field: NDArray[np.int32]
    """`(H, W)` number of the field, from 0."""
    border: NDArray[np.uint8]
    """`(H, W)` the `Border` that lies there."""
    offset_px: Floats
    """`(H, W)` distance from the middle of that border, on either side."""
    inset_px: Floats
    """`(H, W)` distance from the edge of the field."""
    across_px: Floats
    """`(H, W)` place across the rows of the field."""
    along_px: Floats
    """`(H, W)` place along the rows of the field."""


def divide_ground(rng: np.random.Generator, shape: tuple[int, int]) -> Parcels:
    """Divide the ground by one nearly straight line after the other.

    The lines within a part keep about the direction of the line that made it, as
    where land was shared out over time.
    """
    y, x = (
        np.ravel(place + 6 * draw_noise(rng, shape, 120)) for place in np.indices(shape)
    )
    field = np.zeros(x.size, np.int32)
    border = np.zeros(x.size, np.uint8)
    offset, across, along = np.zeros((3, x.size), np.float32)
    todo = [(np.arange(x.size), rng.uniform(0, np.pi), 0)]
    num_fields = 0
    while todo:
        pixels, angle, depth = todo.pop()
        angle += rng.normal(0, 0.08)
        side = np.cos(angle) * x[pixels] + np.sin(angle) * y[pixels]
        other = np.cos(angle) * y[pixels] - np.sin(angle) * x[pixels]
        if _measure(side) < _measure(other):
            side, other = other, side
        if pixels.size < FIELD_PX * rng.uniform(0.8, 1.8):
            if rng.random() < CROSSWISE_CHANCE:
                side, other = other, side
            field[pixels] = num_fields
            across[pixels] = other + rng.uniform(0, 100)
            along[pixels] = side + rng.uniform(0, 100)
            num_fields += 1
            continue
        if _measure(other) > STRIP_PX and rng.random() < STRIP_CHANCE:
            side = other
        distance = side - np.quantile(side[::7], rng.uniform(0.36, 0.64))
        kind = _choose_border(rng, depth)
        laid = (np.abs(distance) < _WIDTH_PX[kind] / 2) & (border[pixels] < kind)
        border[pixels[laid]] = kind
        offset[pixels[laid]] = np.abs(distance[laid])
        todo += [
            (pixels[half], angle, depth + 1) for half in (distance < 0, distance >= 0)
        ]
    inset = ndimage.distance_transform_edt(border.reshape(shape) == Border.NONE)
    rows = _turn_at_ends(inset, across.reshape(shape), along.reshape(shape))
    return Parcels(
        field=field.reshape(shape),
        border=border.reshape(shape),
        offset_px=offset.reshape(shape),
        inset_px=inset.astype(np.float32),
        across_px=rows[0],
        along_px=rows[1],
    )


def _measure(side: Floats) -> float:
    """Return how long a part is in one direction, strays apart."""
    low, high = np.quantile(side[::7], (0.03, 0.97))
    return float(high - low)


def _choose_border(rng: np.random.Generator, depth: int) -> Border:
    chances = _BORDER_CHANCES[min(depth, len(_BORDER_CHANCES) - 1)]
    return Border(rng.choice(len(Border), p=chances))


def _turn_at_ends(
    inset: Floats, across: Floats, along: Floats
) -> tuple[Floats, Floats]:
    """Swap the two directions where tractors turn: at both ends of the rows."""
    down, right = np.gradient(ndimage.gaussian_filter(inset, 2))
    towards_end, towards_side = (
        np.abs(down * slope[0] + right * slope[1])
        for slope in (np.gradient(along), np.gradient(across))
    )
    turned = (inset < HEADLAND_PX) & (towards_end > towards_side)
    return np.where(turned, along, across), np.where(turned, across, along)


def draw_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale_px: float
) -> Floats:
    """Return smooth noise of mean 0, deviation 1 and blotches of `scale_px`."""
    knots = [int(size / scale_px) + 5 for size in shape]
    noise = rng.standard_normal(knots, dtype=np.float32)
    for size, num in zip(shape, knots, strict=True):
        distance = np.arange(size)[:, None] / scale_px + 2 - np.arange(num)
        weights = np.exp(-2 * distance**2)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)  # deviation 1
        noise = (weights.astype(np.float32) @ noise).T
    return noise
