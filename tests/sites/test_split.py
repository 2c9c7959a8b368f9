"""Splits: a pixel's part follows from where it lies, and train keeps away."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points
from scipy.spatial import cKDTree

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.site import open_site
from cropseg.sites.split import (
    NO_PART,
    PARTS,
    BlockSplit,
    NoSplit,
    RegionSplit,
    read_block_ids,
)

TRAIN, VAL, TEST = range(3)
TRANSFORMS = {
    "north up": Affine.scale(10, -8),
    "south up": Affine.scale(10, 8),
    "rotated": Affine.rotation(30) @ Affine.scale(10, -8),
}
quick = settings(max_examples=25, deadline=None)
kinds = st.sampled_from(sorted(TRANSFORMS))
seeds = st.integers(0, 99)


def make_grid(kind="north up", *, height=60, width=80, x=600_005, y=5_200_003, **crs):
    transform = Affine.translation(x, y) @ TRANSFORMS[kind]
    crs = crs.get("crs", CRS.from_epsg(32614))
    return Grid(height=height, width=width, transform=transform, crs=crs)


def make_split(**changes):
    values = {"block_m": 96, "gap_m": 0, "train": 0.6, "val": 0.2, "seed": 0}
    return BlockSplit(**(values | changes))


@given(
    kind=kinds,
    seed=seeds,
    rows=st.integers(-50, 50),
    cols=st.integers(-50, 50),
    x=st.integers(-2_000, 2_000),
    gap_m=st.sampled_from([0, 40, 96]),
)
@quick
def test_a_shifted_scene_keeps_the_parts_of_common_pixels(
    kind, seed, rows, cols, x, gap_m
):
    split = make_split(seed=seed, gap_m=gap_m)
    grid = make_grid(kind, x=x + 0.3)
    moved_window = Window(row=rows, col=cols, height=90, width=70)
    moved = Grid(
        height=90,
        width=70,
        transform=grid.get_window_transform(moved_window),
        crs=grid.crs,
    )
    old = np.full((300, 300), NO_PART + 1, int)
    new = old.copy()
    frame = Window(row=-100, col=-100, height=300, width=300)

    old[grid.window.slices_in(frame)] = split.read_parts(grid, grid.window)
    new[moved_window.slices_in(frame)] = split.read_parts(moved, moved.window)

    common = (old <= NO_PART) & (new <= NO_PART)
    assert common.any()
    np.testing.assert_array_equal(old[common], new[common])


@given(
    seed=seeds, row=st.integers(0, 40), col=st.integers(0, 50), size=st.integers(1, 20)
)
@quick
def test_a_window_has_the_parts_of_the_whole(seed, row, col, size):
    split, grid = make_split(seed=seed, gap_m=30), make_grid()
    window = Window(row=row, col=col, height=size, width=size + 3)

    parts = split.read_parts(grid, window)

    whole = split.read_parts(grid, grid.window)
    np.testing.assert_array_equal(parts, whole[window.slices_in(grid.window)])


def test_another_seed_is_another_split():
    grid = make_grid()

    first, second = (
        make_split(seed=seed).read_parts(grid, grid.window) for seed in (0, 1)
    )

    assert (first != second).mean() > 0.2


@given(
    train=st.floats(0, 1), test=st.floats(0, 1), seed=seeds, x=st.integers(-900, 900)
)
@quick
def test_shares_hold_within_every_square_of_five_blocks(train, test, seed, x):
    val = (1 - train) * (1 - test)
    split = BlockSplit(block_m=100, gap_m=0, train=train, val=val, seed=seed)
    transform = Affine.translation(500 * x, 500_000) @ Affine.scale(100, -100)
    grid = Grid(height=15, width=10, transform=transform, crs=CRS.from_epsg(32614))

    parts = split.read_parts(grid, grid.window)

    for rows in np.split(parts, 3, axis=0):
        for square in np.split(rows, 2, axis=1):
            shares = [(square == part).mean() for part in range(3)]
            assert shares == pytest.approx([train, val, 1 - train - val], abs=0.0401)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_block_lies_whole_in_one_part(kind):
    grid = make_grid(kind)
    split = make_split()

    parts = split.read_parts(grid, grid.window)

    ids = read_block_ids(split, grid, grid.window)
    assert len(np.unique(ids)) > 25
    for block in np.unique(ids):
        assert len(np.unique(parts[ids == block])) == 1
    assert set(np.unique(parts)) == {TRAIN, VAL, TEST}


def test_the_pattern_of_blocks_does_not_repeat():
    transform = Affine.scale(96, -96)
    grid = Grid(height=15, width=10, transform=transform, crs=CRS.from_epsg(32614))

    parts = make_split().read_parts(grid, grid.window)

    squares = [
        parts[row : row + 5, col : col + 5] for row in (0, 5, 10) for col in (0, 5)
    ]
    assert len({square.tobytes() for square in squares}) == 6


def locate(grid, window):
    return np.stack(grid.locate_pixels(window), axis=-1)


@given(kind=kinds, seed=seeds, gap_m=st.sampled_from([1, 8, 25, 50, 96]))
@quick
def test_no_train_pixel_lies_within_the_gap_of_a_val_or_test_pixel(kind, seed, gap_m):
    grid = make_grid(kind)
    around = grid.window.grow(15)
    inside = grid.window.slices_in(around)
    places = locate(grid, around)
    before = make_split(seed=seed).read_parts(grid, around)

    after = make_split(seed=seed, gap_m=gap_m).read_parts(grid, grid.window)

    for part in (TRAIN, VAL):
        stricter = places[(before > part)]
        if not len(stricter):
            continue
        distance, _ = cKDTree(stricter).query(places[inside], p=np.inf)
        was = before[inside] == part
        kept = after == part
        assert (distance[kept] > gap_m).all()
        assert not (kept & ~was).any()
        # Nothing more is lost than the gap and one pixel diagonal.
        assert (distance[was & ~kept] <= gap_m + 13).all()


@given(kind=kinds, seed=seeds, gap_m=st.integers(1, 96))
@quick
def test_the_gap_takes_nothing_from_the_test(kind, seed, gap_m):
    grid = make_grid(kind)

    before = make_split(seed=seed).read_parts(grid, grid.window)
    after = make_split(seed=seed, gap_m=gap_m).read_parts(grid, grid.window)

    np.testing.assert_array_equal(after == TEST, before == TEST)
    assert set(np.unique(after)) <= {TRAIN, VAL, TEST, NO_PART}


def test_a_gap_leaves_pixels_between_train_and_test():
    grid = make_grid()

    parts = make_split(gap_m=30).read_parts(grid, grid.window)

    assert {TRAIN, TEST, NO_PART} <= set(np.unique(parts))


def test_blocks_are_metres_where_the_crs_is_in_feet():
    feet = make_grid(crs=CRS.from_epsg(2264))
    metres = Grid(
        height=feet.height,
        width=feet.width,
        transform=Affine.scale(1200 / 3937) @ feet.transform,
        crs=CRS.from_epsg(32614),
    )

    parts = make_split(gap_m=20).read_parts(feet, feet.window)

    expected = make_split(gap_m=20).read_parts(metres, metres.window)
    assert (parts == expected).mean() > 0.999


@pytest.mark.parametrize("read", [BlockSplit.read_parts, read_block_ids])
def test_blocks_in_a_geographic_crs_are_refused(read):
    grid = make_grid(crs=CRS.from_epsg(4326))

    with pytest.raises(DataError, match=r"EPSG:4326\) is not projected"):
        read(make_split(), grid, grid.window)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_block_ids_are_the_squares_of_the_crs(kind):
    grid = make_grid(kind, x=-200, y=150)
    x, y = grid.locate_pixels(grid.window)
    squares = np.stack([y // 96, x // 96], axis=-1).reshape(-1, 2)

    ids = read_block_ids(make_split(), grid, grid.window).ravel()

    pairs = np.unique(np.column_stack([squares, ids]), axis=0)
    assert len(pairs) == len(np.unique(squares, axis=0)) == len(np.unique(ids))


def test_without_a_split_no_pixel_is_in_a_part():
    grid = make_grid()

    parts = NoSplit().read_parts(grid, Window(row=1, col=2, height=3, width=4))

    assert parts.shape == (3, 4)
    assert (parts == NO_PART).all()


@pytest.mark.parametrize("turn", [{}, {"degrees": 30}, {"south_up": True}])
def test_regions_in_another_crs_hold_the_pixels_whose_centre_they_hold(
    tmp_path, make_site, turn
):
    site = open_site(make_site(tmp_path, split="regions", **turn))
    grid = site.scenes[0].grid
    x, y = (axis.ravel() for axis in grid.locate_pixels(grid.window))
    lon, lat = transform_points(grid.crs, "EPSG:4326", x, y)
    expected = np.full(len(lon), NO_PART)
    for feature in json.loads((tmp_path / "split.geojson").read_text())["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        part = PARTS.index(feature["properties"]["part"])
        expected[shapely.contains_xy(polygon, lon, lat)] = part
    expected = expected.reshape(grid.height, grid.width)

    parts = site.split.read_parts(grid, grid.window)

    assert {TRAIN, VAL, TEST} <= set(np.unique(parts))
    assert (parts != expected).mean() < 1e-3
    window = Window(row=20, col=100, height=50, width=90)
    np.testing.assert_array_equal(
        site.split.read_parts(grid, window), parts[window.slices_in(grid.window)]
    )


def test_a_pixel_outside_all_regions_is_in_no_part(tmp_path, make_site):
    path = make_site(tmp_path, split="regions")
    edit_regions(tmp_path / "split.geojson", lambda features: features.pop(1))

    site = open_site(path)
    grid = site.scenes[0].grid
    parts = site.split.read_parts(grid, grid.window)

    assert (parts[:, 130:177] == NO_PART).all()
    assert (parts[:, :126] == TRAIN).all()
    assert (parts[:, 182:] == TEST).all()


def edit_regions(path, change):
    document = json.loads(path.read_text())
    change(document["features"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[0]["properties"].update(part="practice"), "parts .*'practice'"),
        (lambda f: [item["properties"].pop("part") for item in f], "a field `part`"),
        (lambda f: f[0]["properties"].update(part=None), "a field `part`"),
        (lambda f: f[0].update(geometry=None), "a polygon in every row"),
        (lambda f: f.clear(), "a field `part`"),
    ],
)
def test_regions_that_cannot_be_are_refused(tmp_path, make_site, change, message):
    make_site(tmp_path, split="regions")
    path = tmp_path / "split.geojson"
    edit_regions(path, change)
    grid = make_grid()

    with pytest.raises(DataError, match=message):
        RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.geojson", "hello", "no readable vector file"),
        ("a.csv", "a\n1\n", "needs a field `part`"),
        ("a.csv", "part,a\ntrain,1\n", "needs a CRS"),
    ],
)
def test_a_file_without_polygons_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    grid = make_grid()

    with pytest.raises(DataError, match=message):
        RegionSplit(regions_path=path, block_m=96).read_parts(grid, grid.window)


def test_a_missing_region_file_is_named_when_the_site_is_opened(tmp_path, make_site):
    path = make_site(tmp_path, split={"regions": "areas.geojson"})

    with pytest.raises(DataFileNotFoundError, match=r"areas\.geojson, which `split`"):
        open_site(path)


def test_regions_that_are_edited_are_read_again(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split="regions"))
    grid = site.scenes[0].grid
    assert VAL in site.split.read_parts(grid, grid.window)

    edit_regions(tmp_path / "split.geojson", lambda features: features.pop(1))

    assert VAL not in site.split.read_parts(grid, grid.window)
