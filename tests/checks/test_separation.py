"""Separation of train and test, against distances of all pairs of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points
from scipy.spatial.distance import cdist

from cropseg.checks import separation
from cropseg.checks.occupancy import LabelledScene, find_boxes
from cropseg.checks.separation import measure_separation
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import NO_PART, BlockSplit
from cropseg.sites.tiling import iterate_tiles

TRAIN, VAL, TEST = range(3)
UTM = CRS.from_epsg(32614)
TURNS = {
    "north up": Affine.scale(10, -8),
    "south up": Affine.scale(10, 8),
    "rotated": Affine.rotation(30) @ Affine.scale(10, -8),
}
quick = settings(max_examples=40, deadline=None)


def make_grid(*, height, width, x=0.0, y=0.0, turn="north up", crs=UTM):
    origin = Affine.translation(600_005 + x, 5_200_003 + y)
    return Grid(height=height, width=width, transform=origin @ TURNS[turn], crs=crs)


def make_scene(parts, grid, *, name="a", boxes=None):
    def read_parts(window):
        assert window.clip(height=grid.height, width=grid.width) == window
        return parts[window.slices_in(grid.window)]

    return LabelledScene(name=name, grid=grid, read_parts=read_parts, boxes=boxes)


def draw_parts(rng, height, width, density):
    """Draw blobs and single pixels of all parts, and nothing in between."""
    parts = np.full((height, width), NO_PART, "uint8")
    for part in rng.permutation(3):
        row, col = rng.integers(0, height), rng.integers(0, width)
        size = rng.integers(1, 30, 2)
        parts[row : row + size[0], col : col + size[1]] = part
        parts[rng.random((height, width)) < density] = part
    parts[rng.random((height, width)) < rng.random() / 2] = NO_PART
    return parts


def list_points(scenes, part, crs=UTM):
    """Return x and y of all pixels of a part, one array a scene."""
    points = []
    for scene in scenes:
        x, y = scene.grid.locate_pixels(scene.grid.window)
        mask = scene.read_parts(scene.grid.window) == part
        x, y = x[mask], y[mask]
        if scene.grid.crs != crs:
            x, y = map(np.array, transform_points(scene.grid.crs, crs, x, y))
        points.append(np.column_stack([x, y]))
    return points


def measure_all_pairs(train, test):
    ours = np.concatenate(list_points(train, TRAIN))
    theirs = np.concatenate(list_points(test, TEST))
    if not len(ours) or not len(theirs):
        return math.inf
    return float(cdist(ours, theirs).min())


def count_shared_pairwise(train, test):
    """Count training pixels that hold a test pixel's centre, or the other way."""
    count = 0
    for scene, points in zip(train, list_points(train, TRAIN), strict=True):
        shared = np.zeros(len(points), bool)
        for other, others in zip(test, list_points(test, TEST), strict=True):
            if other is scene:
                continue
            if not len(points) or not len(others):
                continue
            offsets = (others[None] - points[:, None]).reshape(-1, 2)
            for grid in (scene.grid, other.grid):
                a, b, _, d, e, _ = (~grid.transform)[:6]
                cols = np.abs(offsets @ [a, b]).reshape(len(points), -1)
                rows = np.abs(offsets @ [d, e]).reshape(len(points), -1)
                shared |= ((cols < 0.5) & (rows < 0.5)).any(axis=1)
        count += int(shared.sum())
    return count


seeds = st.integers(0, 2**31)
densities = st.sampled_from([0.0, 0.002, 0.05])


@given(seed=seeds, turn=st.sampled_from(sorted(TURNS)), density=densities)
@quick
def test_the_distance_is_that_of_the_nearest_of_all_pairs(seed, turn, density):
    rng = np.random.default_rng(seed)
    parts = draw_parts(rng, 70, 101, density)
    scenes = [make_scene(parts, make_grid(height=70, width=101, turn=turn))]

    found = measure_separation(scenes, scenes)

    assert found.distance_m == pytest.approx(measure_all_pairs(scenes, scenes))
    assert found.num_shared_pixels == 0


@given(
    seed=seeds,
    turns=st.tuples(*[st.sampled_from(sorted(TURNS))] * 3),
    spread=st.sampled_from([100, 900, 4000]),
    density=densities,
)
@quick
def test_pairs_between_scenes_count_too(seed, turns, spread, density):
    rng = np.random.default_rng(seed)
    scenes = []
    for index, turn in enumerate(turns):
        height, width = (int(size) for size in rng.integers(3, 60, 2))
        x, y = rng.uniform(0, spread, 2)
        grid = make_grid(height=height, width=width, turn=turn, x=x, y=y)
        parts = draw_parts(rng, height, width, density)
        scenes.append(make_scene(parts, grid, name=str(index)))

    found = measure_separation(scenes, scenes)

    assert found.distance_m == pytest.approx(measure_all_pairs(scenes, scenes))
    assert found.num_shared_pixels == count_shared_pairwise(scenes, scenes)


@given(seed=seeds, density=densities)
@quick
def test_the_search_is_right_with_many_cells_too(seed, density):
    rng = np.random.default_rng(seed)
    parts = draw_parts(rng, 300, 420, density / 20)
    grid = make_grid(height=300, width=420)
    windows = [
        tile.core.clip(height=300, width=420)
        for tile in iterate_tiles(grid.window, core_size=45)
    ]
    found = [find_boxes(parts[w.slices_in(grid.window)], w) for w in windows]
    boxes = {
        part: np.concatenate([each[part] for each in found]) for part in (TRAIN, TEST)
    }
    scenes = [make_scene(parts, grid, boxes=boxes)]

    # Few pairs at a time, so that every way through the search is taken.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separation, "_NUM_FIRST", 2)
        patch.setattr(separation, "_CHUNK", 3)
        found = measure_separation(scenes, scenes)

    assert found.distance_m == pytest.approx(measure_all_pairs(scenes, scenes))


@given(seed=seeds)
@quick
def test_boxes_hold_every_pixel_of_their_part_and_touch_it(seed):
    rng = np.random.default_rng(seed)
    parts = draw_parts(rng, 70, 101, 0.01)
    window = Window(row=5, col=-7, height=70, width=101)

    boxes = find_boxes(parts, window)

    for part in (TRAIN, TEST):
        covered = np.zeros_like(parts, bool)
        for row, col, last_row, last_col in (boxes[part] - [5, -7, 5, -7]).tolist():
            inside = (slice(row, last_row + 1), slice(col, last_col + 1))
            assert not covered[inside].any()
            covered[inside] = True
            mask = parts[inside] == part
            assert mask.shape[0] <= 32
            assert mask.shape[1] <= 32
            assert mask[0].any() and mask[-1].any()  # noqa: PT018
            assert mask[:, 0].any() and mask[:, -1].any()  # noqa: PT018
        assert covered[parts == part].all()


def test_the_nearest_pixels_are_named_with_their_scenes():
    first = np.full((40, 50), NO_PART, "uint8")
    second = np.full((30, 20), NO_PART, "uint8")
    first[5, 7], first[39, 49], second[0, 0], second[29, 19] = TRAIN, TRAIN, VAL, TEST
    train = make_scene(first, make_grid(height=40, width=50), name="west")
    test = make_scene(second, make_grid(height=30, width=20, x=600), name="east")

    found = measure_separation([train, test], [train, test])

    assert (found.train.scene, found.test.scene) == ("west", "east")
    assert (found.train.x, found.train.y) == (600_500, 5_199_687)
    assert (found.test.x, found.test.y) == (600_800, 5_199_767)
    assert found.distance_m == pytest.approx(math.hypot(300, 80))


@pytest.mark.parametrize("absent", [TRAIN, TEST])
def test_without_train_or_test_the_distance_is_infinite(absent):
    parts = np.full((40, 50), VAL, "uint8")
    parts[3, 4] = TRAIN + TEST - absent
    scenes = [make_scene(parts, make_grid(height=40, width=50))]

    found = measure_separation(scenes, scenes)

    assert found.distance_m == math.inf
    assert found.train is None
    assert found.test is None
    assert measure_separation([], scenes).distance_m == math.inf


def test_a_scene_that_lies_there_twice_with_other_parts_shares_its_pixels():
    parts = np.full((40, 50), NO_PART, "uint8")
    parts[10:20, 10:30] = TRAIN
    moved = np.full((60, 45), NO_PART, "uint8")
    moved[12:24, 5:40] = TEST
    train = make_scene(parts, make_grid(height=40, width=50), name="old")
    test = make_scene(moved, make_grid(height=60, width=45, x=50.5, y=-0.4), name="new")

    found = measure_separation([train], [test])

    # Columns 10-29 and rows 12-19 of the first lie in the second.
    assert found.num_shared_pixels == 20 * 8
    assert found.shared_scenes == (("old", "new"),)
    assert found.distance_m == pytest.approx(math.hypot(0.5, 0.4))


def test_parts_of_blocks_share_nothing_in_overlapping_scenes():
    split = BlockSplit(block_m=160, gap_m=0, train=0.6, val=0.2, seed=0)
    scenes = []
    for index in range(3):
        grid = make_grid(height=80, width=90, x=index * 200, y=index * 160)
        scenes.append(make_scene(split.read_parts(grid, grid.window), grid))

    found = measure_separation(scenes, scenes)

    assert found.num_shared_pixels == 0
    assert found.distance_m == 8


@pytest.mark.parametrize("gap_m", [9, 40, 100])
def test_a_gap_is_found_again_as_the_distance(gap_m):
    split = BlockSplit(block_m=160, gap_m=gap_m, train=0.6, val=0.0, seed=0)
    grid = make_grid(height=150, width=170)
    scenes = [make_scene(split.read_parts(grid, grid.window), grid)]

    found = measure_separation(scenes, scenes)

    assert gap_m < found.distance_m <= gap_m + 10


def warp_grid(grid, crs, scale=1.0):
    """Return a grid of another CRS that covers about the same ground."""
    x, y = grid.transform @ (0, 0)
    (x,), (y,) = transform_points(grid.crs, crs, [x], [y])
    return Grid(
        height=int(grid.height / scale),
        width=int(grid.width / scale),
        transform=Affine.translation(x, y) @ Affine.scale(10 * scale, -8 * scale),
        crs=crs,
    )


def map_to(point, scene, other):
    """Return the row and column of the other scene's pixel that holds a point."""
    x, y = transform_points(scene.grid.crs, other.grid.crs, *([v] for v in point))
    col, row = ~other.grid.transform @ (x[0], y[0])
    return math.floor(row), math.floor(col)


def list_pixels(scene, part):
    """Return row, column and centre of every pixel of a part."""
    rows, cols = np.nonzero(scene.read_parts(scene.grid.window) == part)
    places = zip(rows.tolist(), cols.tolist(), strict=True)
    return {(r, c): scene.grid.transform @ (c + 0.5, r + 0.5) for r, c in places}


def count_shared_by_mapping(train, test):
    ours, theirs = list_pixels(train, TRAIN), list_pixels(test, TEST)
    shared = {px for px, point in ours.items() if map_to(point, train, test) in theirs}
    shared |= {map_to(point, test, train) for point in theirs.values()} & set(ours)
    return len(shared)


@pytest.mark.parametrize("shift_m", [0.0, 3000.0])
def test_sites_in_two_crs_are_measured_on_one_plane(shift_m):
    rng = np.random.default_rng(3)
    ours = make_grid(height=60, width=80)
    theirs = warp_grid(
        make_grid(height=60, width=80, x=shift_m), CRS.from_epsg(32613), scale=1.5
    )
    train = make_scene(draw_parts(rng, 60, 80, 0.05), ours, name="train")
    test = make_scene(draw_parts(rng, 40, 53, 0.05), theirs, name="test")

    found = measure_separation([train], [test])

    # The scale of UTM at its edge is within 0.1 % of the ground's.
    expected = measure_all_pairs([train], [test])
    assert found.distance_m == pytest.approx(expected, rel=2e-3)
    assert found.num_shared_pixels == count_shared_by_mapping(train, test)
    assert (found.num_shared_pixels > 0) == (shift_m == 0)
    (x,), (y,) = transform_points(theirs.crs, UTM, [found.test.x], [found.test.y])
    place = (found.train.x, found.train.y)
    assert math.dist(place, (x, y)) == pytest.approx(found.distance_m, rel=2e-3)


def test_degrees_and_feet_become_metres():
    parts = np.full((60, 80), NO_PART, "uint8")
    parts[10, 10], parts[40, 50] = TRAIN, TEST
    feet = make_grid(height=60, width=80, crs=CRS.from_epsg(2264))
    degrees = Grid(
        height=60,
        width=80,
        transform=Affine.translation(9, 50) @ Affine.scale(1e-3, -5e-4),
        crs=CRS.from_epsg(4326),
    )
    (x, x2), (y, y2) = transform_points(
        degrees.crs, CRS.from_epsg(32632), [9.0105, 9.0505], [49.99475, 49.97975]
    )

    distances = []
    for grid in (feet, degrees):
        scene = make_scene(parts, grid)
        distances.append(measure_separation([scene], [scene]).distance_m)

    assert distances[0] == pytest.approx(math.hypot(400, 240) * 1200 / 3937)
    assert distances[1] == pytest.approx(math.dist((x, y), (x2, y2)), rel=1e-3)


def test_a_finer_test_site_inside_coarse_training_pixels_is_counted_once_a_pixel():
    parts = np.full((30, 40), NO_PART, "uint8")
    parts[10:12, 10:13] = TRAIN
    coarse = make_scene(parts, make_grid(height=30, width=40))
    fine_grid = Grid(
        height=300,
        width=410,
        transform=coarse.grid.transform @ Affine.scale(0.1, 0.1),
        crs=UTM,
    )
    fine = np.full((300, 410), NO_PART, "uint8")
    fine[100:103, 100:105] = TEST
    fine[118, 129] = TEST

    found = measure_separation([coarse], [make_scene(fine, fine_grid)])

    assert found.num_shared_pixels == 2


def test_only_cells_that_matter_are_read_again():
    parts = np.full((2000, 1500), NO_PART, "uint8")
    parts[:, :600], parts[:, 700:] = TRAIN, TEST
    grid = make_grid(height=2000, width=1500)
    scene = make_scene(parts, grid)
    read = []

    def read_parts(window):
        read.append(window.height * window.width)
        return scene.read_parts(window)

    watched = LabelledScene(name="a", grid=grid, read_parts=read_parts)
    found = measure_separation([watched], [watched])

    assert found.distance_m == 101 * 10
    assert sum(read) < 1.1 * parts.size
