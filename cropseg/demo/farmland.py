"""Draws made-up farmland from above: fields, tracks, hedges, trees and ponds.

Everything random comes from the one generator that is passed in, so equal seeds
give equal arrays. A pixel of the image is 0 in all bands where nothing was
recorded, and above 0 in all bands elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from cropseg.demo.crops import TREES, WATER, Area, Bands, Crop, Growth
from cropseg.demo.parcels import Border, Floats, Parcels, divide_ground, draw_noise

GSD_M: Final = 0.5
NODATA: Final = 0
UNKNOWN: Final = 0
POND_PX: Final = 55_000
"""About the area of land that has one pond."""
WOOD_TREE_PX: Final = 40
"""Ground per tree in a wood."""
HEDGE_TREE_PX: Final = 22
"""Ground per bush in a hedge."""
EDGE_TREE_PX: Final = 1700
"""Ground per tree at the edges of fields."""
EDGE_PX: Final = 4
"""How far from the edge trees stand in a field."""
GAP_NOISE: Final = -1.2
"""A hedge has gaps where its noise is below this."""
WHEELS_PX: Final = (0.7, 3.0)
"""Where wheels keep a track bare, from its middle."""
ASPHALT_PX: Final = 4.5
"""How far asphalt reaches from the middle of the road."""
BANK: Final = 1.25
"""How far reeds reach from the middle of a pond of radius 1."""
POND_SPACE: Final = 3
"""How far ponds keep from each other, on the same scale."""
SHADE_M: Final = 0.3
"""What lies less than this below the edge of a shadow is still in the sun."""
GRASS: Final[Bands] = (430, 780, 580, 3300)
GRAVEL: Final[Bands] = (1000, 1230, 1420, 2100)
ASPHALT: Final[Bands] = (800, 950, 1080, 1350)
REEDS: Final[Bands] = (400, 620, 520, 2200)
SKYLIGHT: Final[Bands] = (0.56, 0.48, 0.44, 0.42)
"""Share of the light that is left in shadow: most of the blue."""


@dataclass(frozen=True, kw_only=True)
class Farmland:
    """One area as a camera and a surveyor recorded it."""

    image: NDArray[np.uint16]
    """`(H, W, 4)` reflectance x 10000, `NODATA` where nothing was recorded."""
    labels: NDArray[np.uint8]
    """`(H, W)` label values, `UNKNOWN` between fields and in nodata."""


@dataclass(frozen=True, kw_only=True)
class _Canvas:
    """The picture while it is painted. Each step paints over the one before."""

    reflectance: Floats
    """`(H, W, 4)` reflectance x 10000."""
    height_m: Floats
    """`(H, W)` height over the ground."""
    labels: NDArray[np.uint8]
    """`(H, W)` label values."""


def draw_farmland(
    area: Area, *, height_px: int, width_px: int, rng: np.random.Generator
) -> Farmland:
    """Draw one area.

    Args:
        area: What grows there, on which soil and in which light.
        height_px: Rows of the image.
        width_px: Columns of the image.
        rng: Where everything random comes from.

    Returns:
        The image and its labels.
    """
    shape = (height_px, width_px)
    parcels = divide_ground(rng, shape)
    canvas = _Canvas(
        reflectance=_draw_soil(rng, shape, area.soil),
        height_m=np.zeros(shape, np.float32),
        labels=np.zeros(shape, np.uint8),
    )
    growths = _allot_crops(rng, parcels.field, area.growths)
    _grow_crops(rng, canvas, parcels, growths)
    values = [area.growths.index(growth) + 1 for growth in growths]
    canvas.labels[:] = np.take(values, parcels.field)
    _lay_borders(rng, canvas, parcels)
    _plant_trees(rng, canvas, parcels, area)
    _dig_ponds(rng, canvas, parcels, area)
    image = _record(rng, _light(canvas, area))
    missing = _find_missing(area, shape)
    image[missing] = NODATA
    canvas.labels[missing] = UNKNOWN
    return Farmland(image=image, labels=canvas.labels)


def _find_missing(area: Area, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return `(H, W)`, True where nothing is recorded."""
    a, b, c = area.nodata_edge
    y, x = (np.linspace(0, 1, size, dtype=np.float32) for size in shape)
    return np.asarray(a * x + b * y[:, None] > c)


def _draw_soil(rng: np.random.Generator, shape: tuple[int, int], soil: Bands) -> Floats:
    """Return `(H, W, 4)` bare soil: moist and dark in places, rough all over."""
    moist = 0.13 * draw_noise(rng, shape, 110) + 0.06 * draw_noise(rng, shape, 25)
    rough = 0.05 * rng.standard_normal(shape, dtype=np.float32)
    ground = np.exp(rough - moist)[..., None] * np.array(soil, np.float32)
    return np.asarray(ground, np.float32)


def _allot_crops(
    rng: np.random.Generator, field: NDArray[np.int32], growths: tuple[Growth, ...]
) -> list[Growth]:
    """Give each field the crop that lacks most area, so that none is left out."""
    sizes = np.bincount(field.ravel())
    lack = np.array([growth.share for growth in growths]) * field.size
    allotted = np.zeros(len(sizes), int)
    for number in rng.permutation(len(sizes)):
        allotted[number] = np.argmax(lack)
        lack[allotted[number]] -= sizes[number]
    return [growths[crop] for crop in allotted]


def _grow_crops(
    rng: np.random.Generator, canvas: _Canvas, parcels: Parcels, growths: list[Growth]
) -> None:
    """Cover the fields with leaves. The soil shows where the leaves do not."""
    shape = parcels.field.shape
    crops = [growth.crop for growth in growths]

    def spread(values: ArrayLike) -> Floats:
        """Give every pixel the value of its field."""
        return np.take(np.asarray(values, np.float32), parcels.field, axis=0)

    ripeness = spread([rng.uniform(*growth.ripeness) for growth in growths])
    ripeness += 0.08 * draw_noise(rng, shape, 40)
    lush, ripe = (spread([getattr(c, end) for c in crops]) for end in ("lush", "ripe"))
    # Fields of one crop differ about as much as crops do.
    vigour = rng.normal(0, 0.1, (len(crops), 1)) + rng.normal(0, 0.05, (len(crops), 4))
    leaf = spread(np.exp(vigour)) * _mix_colors(lush, ripe, np.clip(ripeness, 0, 1))
    leaf *= np.exp(0.05 * rng.standard_normal(shape, dtype=np.float32))[..., None]
    canopy = _draw_canopy(rng, parcels, growths)
    canvas.reflectance[:] += canopy[..., None] * (leaf - canvas.reflectance)
    canvas.height_m[:] = canopy * spread([crop.height_m for crop in crops])


def _draw_canopy(
    rng: np.random.Generator, parcels: Parcels, growths: list[Growth]
) -> Floats:
    """Return `(H, W)` share of the ground that leaves hide, 0 to 1: the texture."""
    shape = parcels.field.shape
    across, along = parcels.across_px, parcels.along_px

    def spread(name: str) -> Floats:
        values = [getattr(growth.crop, name) for growth in growths]
        return np.take(np.array(values, np.float32), parcels.field)

    stripes = rng.standard_normal((512, 512), dtype=np.float32)
    stripes = ndimage.gaussian_filter(stripes, (0.5, 5), mode="wrap")
    stripes /= stripes.std()
    places = (across.astype(int) % 512, (along / 3).astype(int) % 512)
    uneven = spread("streaks") * stripes[places]
    uneven += spread("clumps") * draw_noise(rng, shape, 3)
    uneven += spread("patches") * draw_noise(rng, shape, 14)
    uneven += 0.3 * draw_noise(rng, shape, 60)  # good and poor ground

    mean = np.array([rng.normal(growth.canopy, 0.05) for growth in growths], np.float32)
    share = np.clip(np.take(mean, parcels.field) * (1 + 0.3 * uneven), 0.02, 1)
    in_row, in_plant = _wave(across, spread("row_px")), _wave(along, spread("plant_px"))
    planted = _rise(3 * (in_row - np.cos(np.pi * share))) * _rise(4 * in_plant + 2)
    canopy = np.where(spread("row_px") > 0, planted, share)

    tramline_px = spread("tramline_px")
    lane = across % np.where(tramline_px > 0, tramline_px, 1)
    for wheel in (2, 6):  # 4 px apart: 2 m
        canopy *= 1 - 0.7 * (tramline_px > 0) * np.exp(-((lane - wheel) ** 2))
    canopy *= 1 - 0.3 * np.exp(-parcels.inset_px / 2)  # thin where the field ends
    return canopy.astype(np.float32)


def _wave(place: Floats, length: Floats) -> Floats:
    """Return a cosine of the given wave length, 1 where the length is 0."""
    return np.cos(2 * np.pi * place / np.where(length > 0, length, np.inf))


def _rise(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def _mix_colors(lush: ArrayLike, ripe: ArrayLike, ripeness: ArrayLike) -> Floats:
    """Return colours `(..., 4)` between lush and ripe for ripeness `(...)`."""
    share = np.asarray(ripeness, np.float32)[..., None]
    first, last = np.asarray(lush, np.float32), np.asarray(ripe, np.float32)
    return first + share * (last - first)


def _find_growth(area: Area, crop: Crop) -> tuple[int, Growth]:
    """Return the label value of a crop in an area, and how it grows there."""
    return next(
        (value, growth)
        for value, growth in enumerate(area.growths, start=1)
        if growth.crop == crop
    )


def _lay_borders(rng: np.random.Generator, canvas: _Canvas, parcels: Parcels) -> None:
    """Lay grass between the fields, and tracks and roads on it."""
    border, shape = parcels.border, parcels.border.shape
    between = border != Border.NONE
    rough = np.exp(0.08 * draw_noise(rng, shape, 3) + 0.08 * draw_noise(rng, shape, 20))
    off = parcels.offset_px + 0.3 * draw_noise(rng, shape, 8)
    wheels = (border == Border.TRACK) & (off > WHEELS_PX[0]) & (off < WHEELS_PX[1])
    road = (border == Border.ROAD) & (parcels.offset_px < ASPHALT_PX)
    for where, cover in ((between, GRASS), (wheels, GRAVEL), (road, ASPHALT)):
        canvas.reflectance[where] = rough[where, None] * np.array(cover, np.float32)
    canvas.height_m[between] = 0
    canvas.labels[between] = UNKNOWN


def _plant_trees(
    rng: np.random.Generator, canvas: _Canvas, parcels: Parcels, area: Area
) -> None:
    """Plant woods and hedges crown by crown, and single trees at field edges."""
    value, trees = _find_growth(area, TREES)
    shape = parcels.field.shape
    wood = canvas.labels == value
    closed = draw_noise(rng, shape, 30) > GAP_NOISE
    hedge = (parcels.border == Border.HEDGE) & closed
    edge = (parcels.inset_px < EDGE_PX) & (parcels.border != Border.ROAD)
    crowns = [
        *_place_crowns(rng, wood, WOOD_TREE_PX, radii_px=(4.5, 8.5), tops_m=(7, 13)),
        *_place_crowns(rng, hedge, HEDGE_TREE_PX, radii_px=(2.5, 5.5), tops_m=(2, 5)),
        *_place_crowns(rng, edge, EDGE_TREE_PX, radii_px=(4.5, 9), tops_m=(5, 11)),
    ]
    height_m, ripeness = np.zeros((2, *shape), np.float32)
    lumps = 1 + 0.12 * draw_noise(rng, shape, 2.5)
    for row, column, radius_px, top_m in crowns:
        window = tuple(
            slice(max(int(place - radius_px), 0), int(place + radius_px) + 1)
            for place in (row, column)
        )
        y, x = np.indices(lumps[window].shape)
        off = np.hypot(y + window[0].start - row, x + window[1].start - column)
        dome = top_m * np.sqrt(np.clip(1 - (off / radius_px) ** 2, 0, None))
        dome *= lumps[window]
        higher = dome > height_m[window]
        height_m[window][higher] = dome[higher]
        ripeness[window][higher] = rng.uniform(*trees.ripeness)
    grown = height_m > np.maximum(1, canvas.height_m)
    leaf = _mix_colors(trees.crop.lush, trees.crop.ripe, ripeness[grown])
    canvas.reflectance[grown] = leaf * lumps[grown, None]
    canvas.height_m[grown] = height_m[grown]
    canvas.labels[grown] = value
    canvas.labels[wood & ~grown] = UNKNOWN


def _place_crowns(
    rng: np.random.Generator,
    where: NDArray[np.bool_],
    tree_px: int,
    *,
    radii_px: tuple[float, float],
    tops_m: tuple[float, float],
) -> list[tuple[float, ...]]:
    """Return row, column, radius and height of a tree per `tree_px` of ground."""
    number = int(where.sum()) // tree_px
    if not number:
        return []
    spots = rng.choice(np.argwhere(where), number)
    radii = rng.uniform(*radii_px, (number, 1))
    tops = rng.uniform(*tops_m, (number, 1))
    return [tuple(crown) for crown in np.hstack([spots, radii, tops]).tolist()]


def _dig_ponds(
    rng: np.random.Generator, canvas: _Canvas, parcels: Parcels, area: Area
) -> None:
    """Dig ponds in the middle of fields, with reeds around them."""
    value, water = _find_growth(area, WATER)
    shape = parcels.field.shape
    y, x = np.indices(shape, dtype=np.float32)
    shore = 0.22 * draw_noise(rng, shape, 16)
    rough = np.exp(0.12 * draw_noise(rng, shape, 2.5))
    room = np.where(_find_missing(area, shape), 0, parcels.inset_px)
    for _ in range(max(1, round(parcels.field.size / POND_PX))):
        spots = (rng.random((40, 2)) * shape).astype(int)
        row, column = spots[np.argmax(room[tuple(spots.T)])]
        stretch = rng.uniform(0.75, 1.3)
        reach = np.hypot((y - row) * stretch, (x - column) / stretch)
        reach = reach / rng.uniform(15, 22) + shore
        room[reach < POND_SPACE] = 0
        reach[parcels.border >= Border.TRACK] = np.inf
        bank, pond = reach < BANK, reach < 1
        murk = rng.uniform(*water.ripeness)
        color = _mix_colors(water.crop.lush, water.crop.ripe, murk)
        canvas.reflectance[bank] = rough[bank, None] * np.array(REEDS)
        canvas.reflectance[pond] = color * (1.05 + 0.3 * shore[pond, None])
        canvas.height_m[bank] = 1.5 * rough[bank]
        canvas.height_m[pond] = 0
        canvas.labels[bank] = UNKNOWN
        canvas.labels[pond] = value


def _light(canvas: _Canvas, area: Area) -> Floats:
    """Return `(H, W, 4)` reflectance x 10000 as it looks under the area's sun."""
    azimuth, elevation = np.deg2rad([area.sun_azimuth_deg, area.sun_elevation_deg])
    down, right = -np.cos(azimuth), np.sin(azimuth)  # towards the sun
    height = canvas.height_m
    slope = np.gradient(ndimage.gaussian_filter(height, 0.6), GSD_M)
    bright = np.clip(1 - 0.16 * (down * slope[0] + right * slope[1]), 0.5, 1.35)
    shadow = np.zeros(height.shape, np.float32)
    fall_m = GSD_M * np.tan(elevation)
    reach = int(height.max() / fall_m) + 1
    padded = np.pad(height, reach)
    for step in range(1, reach + 1):
        row, column = reach + round(step * down), reach + round(step * right)
        above = padded[row:, column:][: height.shape[0], : height.shape[1]]
        np.maximum(shadow, above - step * fall_m - height > SHADE_M, out=shadow)
    shadow = ndimage.gaussian_filter(shadow, 0.6)[..., None]
    light = bright[..., None] * (1 - shadow) + np.array(SKYLIGHT, np.float32) * shadow
    light *= np.array(area.gain, np.float32)
    return np.asarray(canvas.reflectance * light, np.float32)


def _record(rng: np.random.Generator, light: Floats) -> NDArray[np.uint16]:
    """Return what the sensor makes of the light: slightly blurred, with noise."""
    image = ndimage.gaussian_filter(light, (0.55, 0.55, 0))
    image += (10 + 0.012 * image) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(image), 1, 65535), np.uint16)
