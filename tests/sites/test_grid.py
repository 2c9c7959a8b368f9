"""Windows and grids: sizes, places, and what makes two grids one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio.transform
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform

from cropseg.sites.grid import Grid, Window

ORIGIN = Affine.translation(600_005, 5_200_003)
NORTH_UP = ORIGIN @ Affine.scale(10, -8)
TRANSFORMS = {
    "north up": NORTH_UP,
    "south up": ORIGIN @ Affine.scale(10, 8),
    "rotated": ORIGIN @ Affine.rotation(30) @ Affine.scale(10, -8),
}
UTM = CRS.from_epsg(32614)

windows = st.builds(
    Window,
    row=st.integers(-40, 40),
    col=st.integers(-40, 40),
    height=st.integers(0, 40),
    width=st.integers(0, 40),
)


def make_grid(**changes):
    values = {"height": 19, "width": 26, "transform": NORTH_UP, "crs": UTM}
    return Grid(**(values | changes))


@given(window=windows, height=st.integers(1, 30), width=st.integers(1, 30))
def test_a_clipped_window_holds_just_the_pixels_inside(window, height, width):
    inside = window.clip(height=height, width=width)
    pixels = {
        (row, col)
        for row in range(window.row, window.row_end)
        for col in range(window.col, window.col_end)
        if 0 <= row < height and 0 <= col < width
    }
    assert inside.height * inside.width == len(pixels)
    assert pixels == {
        (row, col)
        for row in range(inside.row, inside.row_end)
        for col in range(inside.col, inside.col_end)
    }


@given(window=windows, margin=st.integers(0, 9))
def test_a_window_is_found_again_in_the_one_grown_from_it(window, margin):
    outer = window.grow(margin)
    rows, cols = np.mgrid[outer.row : outer.row_end, outer.col : outer.col_end]

    place = window.slices_in(outer)

    expected = np.mgrid[window.row : window.row_end, window.col : window.col_end]
    np.testing.assert_array_equal(np.stack([rows[place], cols[place]]), expected)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_pixels_lie_where_rasterio_puts_their_centres(name):
    grid = make_grid(transform=TRANSFORMS[name])
    window = Window(row=-2, col=3, height=7, width=5)
    rows, cols = np.mgrid[-2:5, 3:8]

    x, y = grid.locate_pixels(window)

    expected = rasterio.transform.xy(grid.transform, rows.ravel(), cols.ravel())
    np.testing.assert_allclose(x.ravel(), expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(y.ravel(), expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_transform_of_a_window_starts_at_its_corner(name):
    grid = make_grid(transform=TRANSFORMS[name])
    window = Window(row=-2, col=3, height=7, width=5)

    transform = grid.get_window_transform(window)

    assert transform @ (1, 4) == pytest.approx(grid.transform @ (4, 2))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gsd_is_the_side_of_a_square_as_large_as_a_pixel(name):
    assert make_grid(transform=TRANSFORMS[name]).gsd_m == pytest.approx(math.sqrt(80))


def test_gsd_is_in_metres_where_the_crs_is_in_feet():
    assert make_grid(crs=CRS.from_epsg(2264)).gsd_m == pytest.approx(
        math.sqrt(80) * 0.3048006096
    )


def test_gsd_of_a_geographic_crs_agrees_with_utm():
    crs = CRS.from_epsg(4326)
    corner = Affine.translation(-99, 50) @ Affine.scale(3e-4, -2e-4)
    grid = make_grid(transform=corner, crs=crs)
    lon, lat = zip(*(corner @ (c, r) for c, r in ((0, 0), (1, 0), (0, 1))), strict=True)
    x, y = (np.array(values) for values in transform(crs, UTM, lon, lat))
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))

    assert grid.gsd_m == pytest.approx(math.sqrt(area), rel=0.01)


def test_a_grid_does_not_differ_from_itself():
    assert make_grid().list_differences(make_grid()) == []


def test_rounded_coordinates_are_no_difference():
    moved = Affine.translation(0.01, -0.01) @ NORTH_UP

    assert make_grid().list_differences(make_grid(transform=moved)) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"height": 26, "width": 19}, "shape 19 x 26 against 26 x 19"),
        ({"crs": CRS.from_epsg(32615)}, "CRS EPSG:32614 against EPSG:32615"),
        ({"crs": None}, "CRS EPSG:32614 against none"),
        ({"transform": Affine.translation(5, 0) @ NORTH_UP}, "transform"),
        ({"transform": Affine.translation(0, 4) @ NORTH_UP}, "transform"),
        ({"transform": TRANSFORMS["rotated"]}, "transform"),
        ({"transform": TRANSFORMS["south up"]}, "transform"),
    ],
)
def test_a_difference_is_said_in_words(change, word):
    (difference,) = make_grid().list_differences(make_grid(**change))

    assert word in difference


def test_a_small_error_of_scale_that_adds_up_is_a_difference():
    stretched = ORIGIN @ Affine.scale(10.005, -8)
    small, large = make_grid(width=10), make_grid(width=2000)

    assert small.list_differences(make_grid(width=10, transform=stretched)) == []
    assert large.list_differences(make_grid(width=2000, transform=stretched))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"crs": CRS.from_epsg(4326)}, "a CRS of degrees, but a latitude of 5.19"),
        ({"crs": None}, "no CRS"),
        ({"crs": CRS.from_epsg(4978)}, "a local CRS"),
        ({"crs": CRS.from_epsg(4326), "transform": Affine.scale(1, -1)}, None),
    ],
)
def test_a_grid_without_a_place_on_the_earth_says_why(change, problem):
    found = make_grid(**change).describe_misplacement()

    assert found == problem or (problem and found.startswith(problem))
