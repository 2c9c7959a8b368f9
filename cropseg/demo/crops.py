"""What grows in the two made-up areas, on which soil and in which light.

The crops are made to be told apart by rows and texture. Their colours run into
each other from field to field, and area 2 is flown later in the season: what
is green in area 1 may be dry in area 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BANDS: Final = ("blue", "green", "red", "nir")
"""Names of the bands, in file order."""

Bands = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What a label class looks like where it covers the ground."""

    name: str
    """The class name."""
    color: str
    """Colour of the class on maps, `#rrggbb`."""
    lush: Bands
    """Reflectance x 10000 of the green canopy, per band."""
    ripe: Bands
    """Reflectance x 10000 of the flowering, ripe or dry canopy, per band."""
    height_m: float = 0.0
    """Height of the canopy in metres."""
    row_px: float = 0.0
    """Distance between rows in pixels. 0: no rows."""
    plant_px: float = 0.0
    """Distance between plants in a row in pixels. 0: the row is closed."""
    tramline_px: float = 0.0
    """Distance between pairs of wheel tracks in pixels. 0: none."""
    streaks: float = 0.0
    """Strength of fine stripes along the rows, 0 to 1."""
    clumps: float = 0.0
    """Strength of blotches of 3 px, 0 to 1."""
    patches: float = 0.0
    """Strength of patches of 14 px, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How one crop stands in one area on the day of the flight."""

    crop: Crop
    """What grows."""
    share: float
    """Share of the field area that it gets. 0: it is found between fields only."""
    ripeness: tuple[float, float]
    """Least and greatest ripeness of a field: 0 is lush, 1 is ripe."""
    canopy: float = 1.0
    """Share of the ground that the leaves hide, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """One made-up rural area."""

    name: str
    """Name of the site and of its folder."""
    growths: tuple[Growth, ...]
    """The classes. The label value of a class is its place here, from 1."""
    soil: Bands
    """Reflectance x 10000 of the bare soil, per band."""
    gain: Bands
    """Factor of the light, per band."""
    sun_azimuth_deg: float
    """Where the sun stands, clockwise from north."""
    sun_elevation_deg: float
    """How high the sun stands over the horizon."""
    nodata_edge: tuple[float, float, float]
    """Nothing was recorded where `a * x + b * y > c`; x and y run from 0 to 1."""
    camera_gsd_m: float
    """Ground sampling distance of the image that is written."""
    fields_crs: str | None
    """CRS of the polygons that label it, or None where its labels are a raster."""
    origin_m: tuple[float, float]
    """Easting and northing of the upper left corner, multiples of the block."""


WHEAT: Final = Crop(
    name="wheat",
    color="#d8b56b",
    lush=(370, 720, 470, 3900),
    ripe=(850, 1300, 1650, 2900),
    height_m=0.7,
    tramline_px=40,
    streaks=0.55,
)
MAIZE: Final = Crop(
    name="maize",
    color="#ff9f1c",
    lush=(320, 660, 410, 4200),
    ripe=(640, 1000, 1050, 3000),
    height_m=1.3,
    row_px=6,
    streaks=0.5,
    clumps=0.25,
)
POTATOES: Final = Crop(
    name="potatoes",
    color="#8f5bb5",
    lush=(330, 700, 420, 4400),
    ripe=(640, 930, 950, 3000),
    height_m=0.7,
    row_px=4,
    tramline_px=72,
    clumps=0.3,
)
RAPESEED: Final = Crop(
    name="rapeseed",
    color="#f2e205",
    lush=(380, 780, 470, 4200),
    ripe=(560, 1380, 1250, 3900),
    height_m=1.2,
    tramline_px=48,
    clumps=0.6,
)
SUNFLOWER: Final = Crop(
    name="sunflower",
    color="#e4572e",
    lush=(340, 700, 430, 4200),
    ripe=(520, 1180, 1150, 3700),
    height_m=1.5,
    row_px=6,
    plant_px=5,
    clumps=0.25,
)
GRASSLAND: Final = Crop(
    name="grassland",
    color="#a8d977",
    lush=(390, 760, 500, 3900),
    ripe=(760, 1120, 1260, 2850),
    height_m=0.3,
    clumps=0.25,
    patches=0.7,
)
TREES: Final = Crop(
    name="trees",
    color="#1b6b3a",
    lush=(260, 470, 290, 3300),
    ripe=(380, 620, 500, 2900),
)
WATER: Final = Crop(
    name="water",
    color="#2f7fd1",
    lush=(420, 440, 300, 160),
    ripe=(430, 640, 450, 420),
)

AREA_1: Final = Area(
    name="area_1",
    growths=(
        Growth(crop=WHEAT, share=0.26, ripeness=(0.05, 0.65), canopy=0.85),
        Growth(crop=MAIZE, share=0.19, ripeness=(0.0, 0.35), canopy=0.6),
        Growth(crop=POTATOES, share=0.15, ripeness=(0.0, 0.45), canopy=0.6),
        Growth(crop=RAPESEED, share=0.15, ripeness=(0.05, 0.75), canopy=0.85),
        Growth(crop=GRASSLAND, share=0.2, ripeness=(0.05, 0.6), canopy=0.88),
        Growth(crop=TREES, share=0.05, ripeness=(0.0, 0.8)),
        Growth(crop=WATER, share=0.0, ripeness=(0.0, 1.0)),
    ),
    soil=(750, 1050, 1400, 2150),
    gain=(1.0, 1.0, 1.0, 1.0),
    sun_azimuth_deg=152,
    sun_elevation_deg=54,
    nodata_edge=(1.0, -0.8, 0.68),
    camera_gsd_m=0.5,
    fields_crs=None,
    origin_m=(64 * 6438, 64 * 84390),
)
"""Brown soil before noon in early summer. The upper right corner is missing."""

AREA_2: Final = Area(
    name="area_2",
    growths=(
        Growth(crop=GRASSLAND, share=0.21, ripeness=(0.3, 0.85), canopy=0.84),
        Growth(crop=MAIZE, share=0.22, ripeness=(0.0, 0.4), canopy=0.66),
        Growth(crop=POTATOES, share=0.15, ripeness=(0.2, 0.75), canopy=0.56),
        Growth(crop=SUNFLOWER, share=0.17, ripeness=(0.1, 0.85), canopy=0.66),
        Growth(crop=TREES, share=0.05, ripeness=(0.2, 1.0)),
        Growth(crop=WATER, share=0.0, ripeness=(0.2, 1.0)),
        Growth(crop=WHEAT, share=0.2, ripeness=(0.35, 0.95), canopy=0.82),
    ),
    soil=(860, 1280, 1800, 2600),
    gain=(0.9, 0.93, 0.98, 0.92),
    sun_azimuth_deg=236,
    sun_elevation_deg=41,
    nodata_edge=(0.09, 1.0, 0.98),
    camera_gsd_m=0.4,
    fields_crs="EPSG:4326",
    origin_m=(64 * 6720, 64 * 84249),
)
"""Pale red soil in the afternoon of late summer. The lower edge is missing.

No rapeseed, but sunflowers. It was flown lower, and its labels are polygons.
"""
