"""Splits: a pixel's part follows from where it lies, and train keeps away."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy.spatial import cKDTree

from cropseg.errors import DataError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import (
    NO_PART,
    BlockSplit,
    FoldSplit,
    NoSplit,
    index_blocks,
    locate_blocks,
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


def make_fold(**changes):
    values = {"block_m": 96, "gap_m": 0, "folds": 5, "fold": 0, "seed": 0}
    return FoldSplit(**(values | changes))


def number_pixels(split, grid, window):
    """Return the number of every pixel's block."""
    numbers, places = index_blocks(split, grid, window)
    return numbers[places]


makers = st.sampled_from([make_split, make_fold])


@given(
    make=makers,
    kind=kinds,
    seed=seeds,
    rows=st.integers(-50, 50),
    cols=st.integers(-50, 50),
    x=st.integers(-2_000, 2_000),
    gap_m=st.sampled_from([0, 40, 96]),
)
@quick
def test_a_shifted_scene_keeps_the_parts_of_common_pixels(
    make, kind, seed, rows, cols, x, gap_m
):
    split = make(seed=seed, gap_m=gap_m)
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

    ids = number_pixels(split, grid, grid.window)
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


@given(make=makers, kind=kinds, seed=seeds, gap_m=st.sampled_from([1, 8, 25, 50, 96]))
@quick
def test_no_train_pixel_lies_within_the_gap_of_a_val_or_test_pixel(
    make, kind, seed, gap_m
):
    grid = make_grid(kind)
    around = grid.window.grow(15)
    inside = grid.window.slices_in(around)
    places = locate(grid, around)
    before = make(seed=seed).read_parts(grid, around)

    after = make(seed=seed, gap_m=gap_m).read_parts(grid, grid.window)

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


@pytest.mark.parametrize("read", [BlockSplit.read_parts, index_blocks])
def test_blocks_in_a_geographic_crs_are_refused(read):
    grid = make_grid(crs=CRS.from_epsg(4326))

    with pytest.raises(DataError, match=r"EPSG:4326\) is not projected"):
        read(make_split(), grid, grid.window)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_block_ids_are_the_squares_of_the_crs(kind):
    grid = make_grid(kind, x=-200, y=150)
    x, y = grid.locate_pixels(grid.window)
    squares = np.stack([y // 96, x // 96], axis=-1).reshape(-1, 2)

    ids = number_pixels(make_split(), grid, grid.window).ravel()

    pairs = np.unique(np.column_stack([squares, ids]), axis=0)
    assert len(pairs) == len(np.unique(squares, axis=0)) == len(np.unique(ids))


@given(row=st.integers(-(10**6), 10**6), col=st.integers(-(2**23), 2**23 - 1))
def test_row_and_column_of_a_block_are_found_in_its_number(row, col):
    rows, cols = locate_blocks(np.array([row * 2**24 + col]))

    assert (rows.tolist(), cols.tolist()) == ([row], [col])


@given(kind=kinds, x=st.integers(-900, 900), y=st.integers(-900, 900))
@quick
def test_the_row_and_column_of_a_block_are_where_its_pixels_lie(kind, x, y):
    grid = make_grid(kind, x=x, y=y)
    east, north = grid.locate_pixels(grid.window)

    row, col = locate_blocks(number_pixels(make_split(), grid, grid.window))

    assert ((east >= col * 96) & (east < (col + 1) * 96)).all()
    assert ((north >= row * 96) & (north < (row + 1) * 96)).all()


@given(kind=kinds, seed=seeds, folds=st.integers(2, 11), gap_m=st.sampled_from([0, 20]))
@quick
def test_every_pixel_is_for_the_test_in_just_one_fold(kind, seed, folds, gap_m):
    grid = make_grid(kind)
    parts = np.stack(
        [
            make_fold(folds=folds, fold=fold, seed=seed, gap_m=gap_m).read_parts(
                grid, grid.window
            )
            for fold in range(folds)
        ]
    )

    assert ((parts == TEST).sum(axis=0) == 1).all()
    assert set(np.unique(parts)) <= {TRAIN, TEST, NO_PART}
    assert gap_m or NO_PART not in parts
    ids = number_pixels(make_fold(folds=folds), grid, grid.window)
    for block in np.unique(ids):
        assert len(np.unique(parts[:, ids == block] == TEST, axis=1).T) == 1


@pytest.mark.parametrize("folds", [2, 3, 5, 8])
def test_every_row_and_column_of_a_square_has_every_fold(folds):
    transform = Affine.translation(-700 * folds, 0) @ Affine.scale(100, -100)
    size = 3 * folds
    grid = Grid(height=size, width=size, transform=transform, crs=CRS.from_epsg(32614))
    for fold in range(folds):
        split = make_fold(block_m=100, folds=folds, fold=fold)
        is_test = split.read_parts(grid, grid.window) == TEST
        squares = is_test.reshape(3, folds, 3, folds)
        assert (squares.sum(axis=1) == 1).all()
        assert (squares.sum(axis=3) == 1).all()


def test_folds_do_not_repeat_and_change_with_the_seed():
    transform = Affine.scale(96, -96)
    grid = Grid(height=15, width=10, transform=transform, crs=CRS.from_epsg(32614))

    first, second = (
        make_fold(seed=seed).read_parts(grid, grid.window) for seed in (0, 1)
    )

    squares = first.reshape(3, 5, 2, 5).transpose(0, 2, 1, 3).reshape(6, 25)
    assert len(np.unique(squares, axis=0)) == 6
    assert (first != second).mean() > 0.1


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (0, 0), (5, 5), (5, -1)])
def test_a_fold_that_is_not_there_is_refused(folds, fold):
    with pytest.raises(DataError, match=f"fold {fold} of {folds} folds"):
        make_fold(folds=folds, fold=fold)


def test_without_a_split_no_pixel_is_in_a_part():
    grid = make_grid()

    parts = NoSplit().read_parts(grid, Window(row=1, col=2, height=3, width=4))

    assert parts.shape == (3, 4)
    assert (parts == NO_PART).all()
