"""How true grids are to the ground; pyproj's own scale factors as the oracle."""

from __future__ import annotations

import math

import pytest
from affine import Affine
from pyproj import Geod, Proj
from rasterio.crs import CRS
from rasterio.warp import transform

from cropseg.errors import ModelError
from cropseg.sites.grid import Grid
from cropseg.sites.projection import (
    find_utm_zone,
    is_true_to_scale,
    measure_pixel,
)


def make_grid(crs, lon, lat, *, side=10.0, height=200, width=300, degrees=0.0):
    """Return a grid whose middle lies at a place."""
    crs = CRS.from_user_input(crs)
    (x,), (y,) = transform("EPSG:4326", crs, [lon], [lat])
    turn = Affine.rotation(degrees) @ Affine.scale(side, -side)
    move = Affine.translation(x, y) @ turn @ Affine.translation(-width / 2, -height / 2)
    return Grid(height=height, width=width, transform=move, crs=crs)


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:32633", "EPSG:3035", "EPSG:6933"])
@pytest.mark.parametrize("degrees", [0, 90])
def test_a_pixel_is_measured_as_the_projection_s_scale_factors_say(crs, degrees):
    grid = make_grid(crs, 14.2, 48.3, degrees=degrees)
    factors = Proj(crs).get_factors(14.2, 48.3)
    # Of cylindrical projections the parallels run along x.
    sides = (10 / factors.parallel_scale, 10 / factors.meridional_scale)
    if crs in {"EPSG:3857", "EPSG:6933"} and degrees:
        sides = sides[::-1]
    assert measure_pixel(grid) == pytest.approx(sides, rel=0.01)


def test_a_pixel_of_degrees_is_measured_on_the_ellipsoid():
    grid = make_grid("EPSG:4326", -97.7, 46.9, side=1e-4)
    geod = Geod(ellps="WGS84")
    *_, width = geod.inv(-97.7, 46.9, -97.6999, 46.9)
    *_, height = geod.inv(-97.7, 46.9, -97.7, 46.9001)
    assert measure_pixel(grid) == pytest.approx((width, height), rel=1e-4)
    assert width / height == pytest.approx(math.cos(math.radians(46.9)), rel=0.01)


@pytest.mark.parametrize(
    ("crs", "expected"),
    [
        ("EPSG:32633", True),
        ("EPSG:3035", True),  # equal-area of Europe: a few permille
        ("EPSG:2264", True),  # feet
        ("EPSG:3857", False),
        ("EPSG:6933", False),  # areas are right, sides are not
    ],
)
def test_crss_that_stretch_a_metre_are_told_from_others(crs, expected):
    lon, lat = (-79.0, 35.5) if crs == "EPSG:2264" else (14.2, 48.3)
    assert is_true_to_scale(make_grid(crs, lon, lat)) is expected


def test_web_mercator_is_true_to_scale_at_the_equator():
    assert is_true_to_scale(make_grid("EPSG:3857", 14.2, 3.0))


def test_a_grid_without_a_place_on_the_earth_is_believed():
    far = Affine(10, 0, 1e12, 0, -10, 1e12)
    crs = CRS.from_epsg(32633)
    assert is_true_to_scale(Grid(height=9, width=9, transform=far, crs=crs))


@pytest.mark.parametrize(
    ("lon", "lat", "code"),
    [
        (14.2, 48.3, 32633),
        (-97.7, 46.9, 32614),
        (18.5, -33.9, 32734),
        (-179.9, 10, 32601),
        (179.9, 10, 32660),
        (0.0, 0.1, 32631),
        (20, 86, 32661),
        (20, -86, 32761),
    ],
)
def test_the_utm_zone_is_that_of_the_middle(lon, lat, code):
    grid = make_grid("EPSG:4326", lon, lat, side=1e-4)
    assert find_utm_zone(grid, "x.tif") == CRS.from_epsg(code)


def test_a_scene_too_wide_for_a_zone_is_refused():
    fits = make_grid("EPSG:4326", 10, 48, side=0.1, width=290)
    assert find_utm_zone(fits, "x.tif") == CRS.from_epsg(32632)
    with pytest.raises(ModelError, match=r"x\.tif is 31 degrees of longitude wide"):
        find_utm_zone(make_grid("EPSG:4326", 10, 48, side=0.1, width=310), "x.tif")


def test_a_scene_across_the_180th_meridian_is_as_wide_as_it_is():
    grid = make_grid("EPSG:4326", 179.99, 48, side=1e-3)
    assert find_utm_zone(grid, "x.tif") == CRS.from_epsg(32660)
    grid = make_grid("EPSG:32660", 179.999, 48)
    assert find_utm_zone(grid, "x.tif") in map(CRS.from_epsg, (32660, 32601))
