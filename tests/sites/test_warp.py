"""Other grids: pixels lie where geometry says, and windows agree with the whole."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels, open_raster
from cropseg.sites.warp import WarpedSource, choose_grid, warp_labels

UTM, NEXT_UTM, DEGREES = map(CRS.from_epsg, (32614, 32615, 4326))
US_FEET = CRS.from_epsg(2264)
HEIGHT, WIDTH = 141, 113
PLACE = Affine.translation(600_005, 5_200_003)
GRIDS = {
    "north up": (PLACE @ Affine.scale(10, -8), UTM),
    "south up": (PLACE @ Affine.scale(10, 8), UTM),
    "rotated": (PLACE @ Affine.rotation(30) @ Affine.scale(10, -8), UTM),
    "degrees": (Affine(1.2e-4, 0, -97.7, 0, -8e-5, 46.94), DEGREES),
}
# Finer, coarser by less than 1.5 times, by more; in the CRS of most, and in another.
TARGETS = [
    (UTM, 4.0),
    (UTM, 12.0),
    (UTM, 31.0),
    (NEXT_UTM, 8.0),
    (NEXT_UTM, 31.0),
]
CASES = list(itertools.product(GRIDS, TARGETS))
EIGHTH_PX = 0.126  # GDAL's warper puts pixels right to an eighth


def make_grid(kind="north up", *, height=HEIGHT, width=WIDTH):
    where, crs = GRIDS[kind]
    return Grid(height=height, width=width, transform=where, crs=crs)


def crop(array, window, fill):
    """Cut a window out of an array, with `fill` where it reaches over the edge."""
    found = np.full((window.height, window.width, *array.shape[2:]), fill, array.dtype)
    inside = window.clip(height=array.shape[0], width=array.shape[1])
    whole = Window(row=0, col=0, height=array.shape[0], width=array.shape[1])
    found[inside.slices_in(window)] = array[inside.slices_in(whole)]
    return found


class ArraySource:
    """An image in memory."""

    def __init__(self, grid, values, valid=None):
        self.grid, self.values = grid, values
        self.valid = np.ones(values.shape[:2], bool) if valid is None else valid

    def read(self, window, bands):
        values = crop(self.values, window, 0)[..., list(bands)]
        return Pixels(values=values, valid=crop(self.valid, window, fill=False))


def warp_whole(labels, source_grid, grid, window=None, **options):
    def read(part):
        return crop(labels, part, IGNORE)

    return warp_labels(read, source_grid, grid, window or grid.window, **options)


def find_source_places(source_grid, grid):
    """Return column and row in the source of every pixel centre, by pyproj alone."""
    x, y = grid.locate_pixels(grid.window)
    shape = x.shape
    if grid.crs != source_grid.crs:
        x, y = transform(grid.crs, source_grid.crs, x.ravel(), y.ravel())
        x, y = np.reshape(x, shape), np.reshape(y, shape)
    inverse = ~source_grid.transform
    cols = inverse.a * x + inverse.b * y + inverse.c
    return cols, inverse.d * x + inverse.e * y + inverse.f


@functools.cache
def read_all(kind, target):
    """Warp random pixels and labels to another grid, whole."""
    rng = np.random.default_rng(0)
    source_grid = make_grid(kind)
    shape = (source_grid.height, source_grid.width)
    values = rng.integers(0, 1000, (*shape, 2)).astype(np.int16)
    grid = choose_grid(source_grid, crs=target[0], gsd_m=target[1])
    image = ArraySource(source_grid, values, rng.random(shape) > 0.05)
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    source = WarpedSource(source=image, grid=grid)
    pixels = source.read(grid.window, [1, 0])
    return source, labels, pixels, warp_whole(labels, source_grid, grid)


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_a_window_holds_what_the_same_crop_of_the_whole_holds(case, data):
    source, labels, pixels, whole = read_all(*case)
    grid = source.grid
    window = Window(
        row=data.draw(st.integers(-20, grid.height + 3)),
        col=data.draw(st.integers(-20, grid.width + 3)),
        height=data.draw(st.integers(1, 70)),
        width=data.draw(st.integers(1, 70)),
    )
    inside = window.clip(height=grid.height, width=grid.width)

    found = source.read(window, [1, 0])
    found_labels = warp_whole(labels, source.source.grid, grid, window)

    mine, theirs = inside.slices_in(window), inside.slices_in(grid.window)
    # An image that is not turned is warped at once: float32 rounds (up to 1000).
    np.testing.assert_allclose(found.values[mine], pixels.values[theirs], atol=1e-3)
    np.testing.assert_array_equal(found.valid[mine], pixels.valid[theirs])
    np.testing.assert_array_equal(found_labels[mine], whole[theirs])
    assert (found_labels.shape) == (window.height, window.width)


@pytest.mark.parametrize("case", [("rotated", TARGETS[0]), ("north up", TARGETS[3])])
def test_windows_of_a_turned_grid_agree_to_the_last_digit(case):
    source, _, pixels, _ = read_all(*case)
    grid = source.grid

    for row in range(0, grid.height - 37, 29):
        for col in range(0, grid.width - 51, 31):
            window = Window(row=row, col=col, height=37, width=51)
            found = source.read(window, [1, 0])
            place = window.slices_in(grid.window)
            np.testing.assert_array_equal(found.values, pixels.values[place])


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(GRIDS)),
    crs=st.sampled_from([UTM, NEXT_UTM]),
    gsd_m=st.floats(3, 60),
    ids=st.lists(st.integers(0, 254), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_labels_never_gain_a_value(kind, crs, gsd_m, ids, seed):
    source_grid = make_grid(kind, height=23, width=31)
    labels = np.random.default_rng(seed).choice(ids, (23, 31)).astype(np.uint8)
    grid = choose_grid(source_grid, crs=crs, gsd_m=gsd_m)

    found = warp_whole(labels, source_grid, grid)

    assert set(np.unique(found)) <= {*ids, IGNORE}
    assert set(np.unique(found)) & set(ids)


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_pixels_lie_where_their_coordinates_say(kind, target):
    source_grid = make_grid(kind)
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    # Each band grows along one axis, by 16 a pixel: a shift shows as a difference.
    image = ArraySource(source_grid, np.stack([16 * cols, 16 * rows], axis=-1))
    grid = choose_grid(source_grid, crs=target[0], gsd_m=target[1])

    pixels = WarpedSource(source=image, grid=grid).read(grid.window, [0, 1])

    places = np.stack(find_source_places(source_grid, grid), axis=-1)
    ratio = grid.gsd_m / source_grid.gsd_m
    margin = 2 * ratio + 1  # where an average misses its outer half
    inside = ((places > margin) & (places < np.array([WIDTH, HEIGHT]) - margin)).all(-1)
    assert inside.mean() > 0.25
    assert pixels.valid[inside].all()
    assert not pixels.valid[((places < -2 * ratio).any(-1))].any()
    tolerance = 0.002 if source_grid.crs == grid.crs else EIGHTH_PX
    if ratio > 1.5:
        tolerance += 0.6  # an average counts pixels as whole or half
    elif ratio > 1:
        tolerance += 0.1  # few pixels, weighted in steps
    np.testing.assert_allclose(
        pixels.values[inside] / 16, places[inside], atol=tolerance
    )


@pytest.mark.parametrize("kind", ["north up", "south up", "degrees"])
@pytest.mark.parametrize("target", TARGETS[:4])
def test_images_agree_with_a_warped_vrt(tmp_path, write_raster, kind, target):
    source_grid = make_grid(kind)
    rng = np.random.default_rng(3)
    smooth = rng.normal(500, 100, (HEIGHT, WIDTH, 2)).astype("float32")
    for axis in (0, 1):
        smooth = sum(np.roll(smooth, step, axis) for step in range(8)) / 8
    path = write_raster(
        tmp_path / "a.tif",
        smooth,
        transform=source_grid.transform,
        crs=source_grid.crs,
        nodata=math.nan,
    )
    grid = choose_grid(source_grid, crs=target[0], gsd_m=target[1])

    with open_raster(path) as reader:
        pixels = WarpedSource(source=reader, grid=grid).read(grid.window, [0, 1])
    coarse = grid.gsd_m > 1.5 * source_grid.gsd_m
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            nodata=math.nan,
            resampling=Resampling.average if coarse else Resampling.bilinear,
        ) as expected,
    ):
        values = np.moveaxis(expected.read(), 0, -1)

    inner = np.zeros(pixels.valid.shape, bool)
    inner[3:-3, 3:-3] = True  # at the edges a VRT averages what a block of it sees
    inner &= pixels.valid
    # Neighbours differ by about 18. GDAL errs by up to an eighth of a pixel between
    # CRSs, and goes by the sides of a block where it interpolates over several pixels.
    tolerance = 0.5 if source_grid.crs == grid.crs else 18 * EIGHTH_PX
    difference = np.abs(pixels.values[inner] - values[inner])
    assert inner.mean() > 0.5
    assert difference.max() < 4 * tolerance
    assert difference.mean() < tolerance / 2


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_labels_take_the_nearest_pixel(kind, target):
    source_grid = make_grid(kind)
    labels = np.random.default_rng(1).integers(0, 200, (HEIGHT, WIDTH)).astype(np.uint8)
    grid = choose_grid(source_grid, crs=target[0], gsd_m=target[1])

    found = warp_whole(labels, source_grid, grid, resampling=Resampling.nearest)

    cols, rows = find_source_places(source_grid, grid)
    window = Window(row=-1, col=-1, height=HEIGHT + 2, width=WIDTH + 2)
    bordered = crop(labels, window, IGNORE)
    row = np.floor(rows).clip(-1, HEIGHT).astype(int) + 1
    col = np.floor(cols).clip(-1, WIDTH).astype(int) + 1
    distance = np.minimum(abs(cols - np.rint(cols)), abs(rows - np.rint(rows)))
    error_px = 1e-6 if source_grid.crs == grid.crs else EIGHTH_PX
    clear = distance > error_px
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[clear], bordered[row, col][clear])
    assert (found[clear] != IGNORE).any()


def test_much_larger_pixels_take_the_class_of_the_majority():
    transform = Affine(2, 0, 600_000, 0, -2, 5_200_200)
    source_grid = Grid(height=20, width=30, transform=transform, crs=UTM)
    grid = choose_grid(source_grid, crs=None, gsd_m=10)
    rng = np.random.default_rng(5)
    ids = np.array([0, 3, IGNORE], np.uint8)
    labels = ids[rng.integers(0, 3, (20, 30))]

    found = warp_whole(labels, source_grid, grid)

    blocks = labels.reshape(4, 5, 6, 5).swapaxes(1, 2).reshape(4, 6, 25)
    counts = (blocks[..., None] == ids).sum(axis=2)
    ranked = np.sort(counts, axis=-1)
    clear = ranked[..., -1] > ranked[..., -2]
    assert found.shape == (4, 6)
    assert clear.sum() > 12
    np.testing.assert_array_equal(found[clear], ids[counts.argmax(axis=-1)][clear])
    assert IGNORE in found[clear]


@pytest.mark.parametrize(("ratio", "is_majority"), [(1.45, False), (1.55, True)])
def test_the_majority_counts_above_one_and_a_half_times(ratio, is_majority):
    transform = Affine(10, 0, 600_000, 0, -10, 5_200_000)
    source_grid = Grid(height=60, width=70, transform=transform, crs=UTM)
    labels = np.random.default_rng(2).integers(0, 3, (60, 70)).astype(np.uint8)
    grid = choose_grid(source_grid, crs=None, gsd_m=10 * ratio)

    found = warp_whole(labels, source_grid, grid)
    nearest = warp_whole(labels, source_grid, grid, resampling=Resampling.nearest)

    assert (found != nearest).any() == is_majority


@pytest.mark.parametrize("gsd_m", [4.0, 12.0, 31.0])
def test_a_pixel_is_valid_where_its_centre_is_or_any_pixel_of_an_average(gsd_m):
    source_grid = make_grid()
    valid = np.random.default_rng(7).random((HEIGHT // 10 + 1, WIDTH // 10 + 1)) > 0.3
    valid = valid.repeat(10, axis=0).repeat(10, axis=1)[:HEIGHT, :WIDTH]
    image = ArraySource(source_grid, np.full((HEIGHT, WIDTH, 2), 700, "int16"), valid)
    grid = choose_grid(source_grid, crs=None, gsd_m=gsd_m)

    pixels = WarpedSource(source=image, grid=grid).read(grid.window, [0, 1])

    cols, rows = find_source_places(source_grid, grid)
    tall, wide = (0.5 * gsd_m / size if gsd_m > 13 else 0 for size in (8, 10))
    window = Window(row=-9, col=-9, height=HEIGHT + 18, width=WIDTH + 18)
    bordered = crop(valid, window, fill=False)
    ends = [
        np.floor(np.stack([middle - half + 1e-9, middle + half - 1e-9])).astype(int) + 9
        for middle, half in ((rows, tall), (cols, wide))
    ]
    expected = [
        bordered[top : bottom + 1, left : right + 1].any()
        for (top, bottom), (left, right) in zip(
            ends[0].reshape(2, -1).T, ends[1].reshape(2, -1).T, strict=True
        )
    ]
    if gsd_m < 13:  # the two ends are the pixel at the centre
        expected = bordered[ends[0][1], ends[1][1]].ravel()
    np.testing.assert_array_equal(pixels.valid.ravel(), expected)
    np.testing.assert_allclose(pixels.values[pixels.valid], 700, rtol=1e-6)
    assert (pixels.values[~pixels.valid] == 0).all()


def test_a_turned_grid_is_interpolated_as_wide_as_a_straight_one():
    """GDAL takes the width of its kernel from the sides of two windows."""
    rng = np.random.default_rng(4)
    spreads = {}
    for kind in ("north up", "rotated"):
        source_grid = make_grid(kind)
        noise = rng.normal(0, 1, (HEIGHT, WIDTH, 1)).astype("float32")
        grid = choose_grid(source_grid, crs=None, gsd_m=12.0)
        source = WarpedSource(source=ArraySource(source_grid, noise), grid=grid)
        pixels = source.read(grid.window, [0])
        spreads[kind] = pixels.values[pixels.valid].std()

    assert spreads["rotated"] == pytest.approx(spreads["north up"], rel=0.08)


def test_an_image_that_fits_keeps_its_grid():
    grid = make_grid("rotated")

    assert choose_grid(grid, crs=None, gsd_m=None) is grid
    assert choose_grid(grid, crs=UTM, gsd_m=grid.gsd_m * 1.009) is grid
    assert choose_grid(grid, crs=UTM, gsd_m=grid.gsd_m * 1.011) is not grid


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_new_grids_share_their_lines_and_hold_the_image(kind, target):
    source_grid = make_grid(kind)
    crs, gsd_m = target

    grid = choose_grid(source_grid, crs=crs, gsd_m=gsd_m)

    assert grid.crs == crs
    assert grid.gsd_m == pytest.approx(gsd_m)
    assert grid.transform.c % gsd_m == pytest.approx(0, abs=1e-6)
    assert grid.transform.f % gsd_m == pytest.approx(0, abs=1e-6)
    corners = [(0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT)]
    x, y = zip(*(source_grid.transform @ corner for corner in corners), strict=True)
    x, y = transform(source_grid.crs, crs, x, y)
    for place in zip(x, y, strict=True):
        col, row = ~grid.transform @ place
        assert -1e-6 <= col <= grid.width + 1e-6
        assert -1e-6 <= row <= grid.height + 1e-6


def test_a_crs_in_feet_is_resampled_in_metres():
    transform = Affine(30, 0, 1_500_000, 0, -30, 600_000)
    source_grid = Grid(height=50, width=40, transform=transform, crs=US_FEET)

    grid = choose_grid(source_grid, crs=None, gsd_m=3.0)

    assert grid.gsd_m == pytest.approx(3.0)
    assert grid.transform.a == pytest.approx(3.0 * 3937 / 1200)
    assert grid.height == pytest.approx(50 * 9.144 / 3, abs=2)


def test_a_gsd_that_makes_absurdly_many_pixels_is_refused():
    transform = Affine(30, 0, 500_000, 0, -30, 6_000_000)
    native = Grid(height=1280, width=1270, transform=transform, crs=UTM)

    with pytest.raises(DataError, match=r"`gsd_m` of 0\.03 .* 1,280 x 1,270 pixels"):
        choose_grid(native, crs=None, gsd_m=0.03)  # km

    assert choose_grid(native, crs=None, gsd_m=1).width == 30 * 1270


def test_degrees_have_no_metres_to_resample_in():
    with pytest.raises(DataError, match=r"EPSG:4326 is not projected.*`crs`"):
        choose_grid(make_grid("degrees"), crs=None, gsd_m=5.0)


def test_an_image_that_has_no_place_in_the_crs_is_refused():
    transform = Affine(1.0, 0, -100.0, 0, -1.0, 95.0)  # north of the pole
    grid = Grid(height=17, width=7, transform=transform, crs=DEGREES)

    with pytest.raises(DataError, match="cannot be brought from EPSG:4326"):
        choose_grid(grid, crs=UTM, gsd_m=5000.0)


def test_a_nodata_value_that_float32_cannot_hold_is_no_data(tmp_path, write_raster):
    values = np.full((20, 30), 3.0)
    values[:, :10] = -np.finfo("float64").max
    path = write_raster(tmp_path / "a.tif", values, nodata=float(values[0, 0]))

    with open_raster(path) as reader:
        grid = choose_grid(reader.grid, crs=None, gsd_m=20.0)
        pixels = WarpedSource(source=reader, grid=grid).read(grid.window, [0])

    assert pixels.valid.any()
    assert (pixels.values[pixels.valid] == 3).all()


def test_pixels_that_would_take_absurdly_many_others_are_refused():
    source = make_grid()
    grid = choose_grid(source, crs=None, gsd_m=200_000.0)

    with pytest.raises(DataError, match=r"at once\. Choose a `gsd_m` nearer"):
        warp_whole(np.zeros((HEIGHT, WIDTH), "uint8"), source, grid)
