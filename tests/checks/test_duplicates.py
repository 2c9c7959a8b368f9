"""Duplicated content: found at any offset, counted exactly, and not made up."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from cropseg.checks import duplicates
from cropseg.checks.duplicates import BLOCK_PX, ContentIndex, list_overlaps
from cropseg.errors import DataError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import NO_PART

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TRAIN, VAL, TEST = range(3)
UTM_14 = CRS.from_epsg(32614)


def draw_image(height, width, *, seed=0, dtype="int16", top=3000):
    rng = np.random.default_rng(seed)
    return rng.integers(0, top, (height, width, 3)).astype(dtype)


def add_scene(index, scene, values, *, valid=None, parts=None, tile_px=70):
    """Add a scene in tiles that overlap by a block."""
    height, width = values.shape[:2]
    valid = np.ones((height, width), bool) if valid is None else valid
    for row in range(0, height, tile_px):
        for col in range(0, width, tile_px):
            window = Window(
                row=row,
                col=col,
                height=min(tile_px + BLOCK_PX, height - row),
                width=min(tile_px + BLOCK_PX, width - col),
            )
            place = window.slices_in(Window(row=0, col=0, height=height, width=width))
            index.add(
                scene,
                window,
                values=values[place],
                valid=valid[place],
                parts=None if parts is None else parts[place],
            )


def list_shared(*scenes, **options):
    index = ContentIndex()
    for scene, values in enumerate(scenes):
        add_scene(index, scene, values, **options)
    return index.list_shared()


def make_grid(*, left=500_000.0, top=5_000_000.0, crs=UTM_14, xres=10.0, yres=8.0):
    transform = Affine(xres, 0, left, 0, -yres, top)
    return Grid(height=120, width=200, transform=transform, crs=crs)


def test_different_scenes_share_nothing():
    assert list_shared(draw_image(130, 210), draw_image(110, 90, seed=1)) == ()


@given(row=st.integers(0, 60), col=st.integers(0, 90))
@settings(max_examples=20, deadline=None)
def test_a_crop_is_found_at_any_offset(row, col):
    scene = draw_image(160, 210)
    crop = scene[row : row + 100, col : col + 120]
    (shared,) = list_shared(draw_image(90, 90, seed=1), scene, crop)
    assert (shared.scene_a, shared.scene_b, shared.share_b) == (1, 2, 1)
    assert shared.num_train_test == 0
    num_positions = (100 - BLOCK_PX + 1) * (120 - BLOCK_PX + 1)
    assert shared.num_blocks == pytest.approx(num_positions / 64, rel=0.35)
    whole = (160 - BLOCK_PX + 1) * (210 - BLOCK_PX + 1)
    assert shared.share_a == pytest.approx(num_positions / whole, abs=0.06)


def test_the_blocks_found_are_those_of_a_direct_search():
    """Every block of one scene, looked up by its bytes in the other."""
    scene = draw_image(90, 120, seed=3)
    other = draw_image(100, 80, seed=4)
    other[20:60, 10:55] = scene[31:71, 60:105]
    index = ContentIndex()
    add_scene(index, 0, scene)
    add_scene(index, 1, other)
    places = np.concatenate(index._found)

    def cut(values, row, col):
        return values[row : row + BLOCK_PX, col : col + BLOCK_PX].tobytes()

    ours = {cut(scene, row, col) for row in range(75) for col in range(105)}
    common = {
        (row, col)
        for row in range(85)
        for col in range(65)
        if cut(other, row, col) in ours
    }
    kept = {
        (int(row), int(col))
        for row, col in zip(
            places["row"][places["scene"] == 1],
            places["col"][places["scene"] == 1],
            strict=True,
        )
    }
    (shared,) = index.list_shared()
    assert shared.num_blocks == len(common & kept) > 0


def test_the_tiling_does_not_matter():
    scene, other = draw_image(160, 210), draw_image(150, 170, seed=1)
    other[40:120, 30:150] = scene[50:130, 60:180]
    expected = list_shared(scene, other)
    assert expected
    for tile_px in (33, 128, 500):
        assert list_shared(scene, other, tile_px=tile_px) == expected


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64"])
def test_equal_values_are_equal_in_another_dtype(dtype):
    scene = draw_image(100, 130)
    (shared,) = list_shared(scene, scene.astype(dtype))
    assert (shared.share_a, shared.share_b) == (1, 1)


def test_minus_zero_equals_zero():
    scene = draw_image(100, 130, dtype="float32", top=3)
    other = np.where(scene == 0, np.float32(-0.0), scene)
    (shared,) = list_shared(scene, other)
    assert shared.share_a == 1


def test_a_block_is_in_the_part_of_its_middle():
    parts = np.full((100, 130), TEST, "uint8")
    parts[:50, :70] = TRAIN
    index = ContentIndex()
    add_scene(index, 0, draw_image(100, 130), parts=parts)
    found = np.concatenate(index._found)
    half = BLOCK_PX // 2
    expected = 1 << parts[found["row"] + half, found["col"] + half]
    np.testing.assert_array_equal(found["parts"], expected)
    assert len(set(expected.tolist())) == 2


def test_another_band_order_is_another_content():
    scene = draw_image(100, 130)
    assert list_shared(scene, scene[..., ::-1]) == ()
    assert list_shared(scene, scene.transpose(1, 0, 2)) == ()


def test_constant_invalid_and_nearly_constant_blocks_never_count():
    scene = np.where(draw_image(100, 130) < 30, 8, 7)
    assert list_shared(scene, scene, scene) == ()
    noise = draw_image(100, 130)
    valid = np.zeros((100, 130), bool)
    assert list_shared(noise, noise, valid=valid) == ()
    valid[::BLOCK_PX, ::BLOCK_PX] = True
    assert list_shared(noise, noise, valid=~valid) == ()


def test_content_that_a_scene_has_twice_is_found():
    scene = draw_image(160, 210)
    scene[100:150, 20:90] = scene[11:61, 120:190]
    (shared,) = list_shared(scene)
    assert (shared.scene_a, shared.scene_b) == (0, 0)
    assert 0 < shared.share_a == shared.share_b < 0.2


def test_an_overlap_with_equal_parts_is_no_leak_and_a_moved_copy_is_one():
    scene = draw_image(160, 210)
    parts = np.full((160, 210), TRAIN, "uint8")
    parts[:, 100:] = TEST
    parts[:, 95:100] = NO_PART
    index = ContentIndex()
    add_scene(index, 0, scene, parts=parts)
    add_scene(index, 1, scene[:, 50:], parts=parts[:, 50:])
    (shared,) = index.list_shared()
    assert shared.num_blocks > 0
    assert shared.num_train_test == 0
    add_scene(index, 2, scene[:, 50:], parts=parts[:, :-50])
    leaks = {(s.scene_a, s.scene_b): s for s in index.list_shared()}
    assert leaks[0, 1].num_train_test == 0
    assert leaks[0, 2].num_train_test == leaks[1, 2].num_train_test
    # Test lies 50 columns further right in the copy than in the scene.
    share = leaks[0, 2].num_train_test / leaks[0, 2].num_blocks
    assert share == pytest.approx(50 / 145, abs=0.08)


@pytest.mark.parametrize(
    ("one", "other", "leaks"),
    [
        (TRAIN, TEST, True),
        (TEST, TRAIN, True),
        (TRAIN, VAL, False),
        (TEST, TEST, False),
        (TRAIN, NO_PART, False),
    ],
)
def test_only_train_against_test_is_a_leak(one, other, leaks):
    scene = draw_image(90, 110)
    index = ContentIndex()
    for position, part in enumerate((one, other)):
        parts = np.full(scene.shape[:2], part, "uint8")
        add_scene(index, position, scene, parts=parts)
    (shared,) = index.list_shared()
    assert shared.num_train_test == (shared.num_blocks if leaks else 0)


def test_memory_is_bounded_and_a_copy_is_still_found(monkeypatch):
    monkeypatch.setattr(duplicates, "_MAX_BLOCKS", 200)
    scene = draw_image(260, 310)
    index = ContentIndex()
    for position in range(2):
        add_scene(index, position, scene)
    add_scene(index, 2, draw_image(260, 310, seed=1))
    assert index._num_blocks <= 200
    assert index._num_blocks == sum(len(found) for found in index._found)
    (shared,) = index.list_shared()
    assert (shared.scene_a, shared.scene_b, shared.share_a) == (0, 1, 1)
    assert shared.num_blocks > 10


def test_many_bands_are_hashed_in_little_memory(monkeypatch):
    values = np.tile(draw_image(256, 300), 12)  # 36 bands, 5 MB
    index = ContentIndex()

    tracemalloc.start()
    try:
        add_scene(index, 0, values, tile_px=300)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak_bytes < 100e6  # 250 MB with all at once

    monkeypatch.setattr(duplicates, "_MAX_BYTES", 2**40)
    at_once = ContentIndex()
    add_scene(at_once, 0, values, tile_px=300)
    np.testing.assert_array_equal(at_once._gather(), index._gather())


def test_shapes_that_do_not_fit_are_refused():
    values = draw_image(40, 50)
    window = Window(row=0, col=0, height=50, width=40)
    with pytest.raises(DataError, match=r"window of \(50, 40\) pixels"):
        ContentIndex().add(0, window, values=values, valid=np.ones((40, 50), bool))


def test_nothing_added_is_nothing_shared():
    assert ContentIndex().list_shared() == ()
    tiny = draw_image(BLOCK_PX - 1, 60)
    assert list_shared(tiny, tiny) == ()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
def test_real_scenes_share_nothing_and_a_renamed_crop_is_found():
    index = ContentIndex()
    paths = [
        DATA / "prairie" / "rural_area_1.tif",
        DATA / "prairie" / "rural_area_2.tif",
        DATA / "aerial_25cm" / "clip_1.tif",
        DATA / "aerial_25cm" / "clip_2.tif",
        DATA / "denmark" / "RGB_small.tif",
    ]
    images = []
    for position, path in enumerate(paths):
        with rasterio.open(path) as dataset:
            values = np.moveaxis(dataset.read(), 0, -1)
            valid = dataset.dataset_mask() > 0
        images.append((values, valid))
        add_scene(index, position, values, valid=valid, tile_px=256)
    assert index.list_shared() == ()
    values, valid = (array[37:901, 101:700] for array in images[1])
    add_scene(index, len(paths), values, valid=valid, tile_px=256)
    (shared,) = index.list_shared()
    assert (shared.scene_a, shared.scene_b, shared.share_b) == (1, 5, 1)


@pytest.mark.parametrize("move", [{"left": 501_500}, {"top": 4_999_280}])
def test_footprints_overlap_by_their_share(move):
    # 2,000 m wide and 960 m high; a quarter of one of both in common.
    (overlap,) = list_overlaps([make_grid(), make_grid(**move)])
    assert (overlap.scene_a, overlap.scene_b) == (0, 1)
    assert overlap.share_a == pytest.approx(0.25)
    assert overlap.share_b == pytest.approx(0.25)


def test_shares_differ_where_the_sizes_do():
    small = make_grid(left=500_100, top=4_999_900, xres=2.0, yres=1.0)
    (overlap,) = list_overlaps([make_grid(), small])
    assert overlap.share_a == pytest.approx(400 * 120 / (2000 * 960))
    assert overlap.share_b == pytest.approx(1)


@pytest.mark.parametrize("left", [502_000, 501_998, 510_000])
def test_neighbours_do_not_overlap(left):
    assert list_overlaps([make_grid(), make_grid(left=left)]) == ()


def test_an_overlap_in_another_crs_is_found():
    # The same ground in UTM 14 and 13, where it is turned by about 4 degrees.
    there = make_grid(left=970_200, top=5_017_500, crs=CRS.from_epsg(32613), xres=20)
    here = make_grid(left=500_500, top=4_999_500, xres=1.0, yres=1.0)
    (overlap,) = list_overlaps([there, here])
    assert overlap.share_b == pytest.approx(1)
    assert overlap.share_a == pytest.approx(200 * 120 / (4000 * 960), rel=0.02)
    (turned,) = list_overlaps([here, there])
    assert turned.share_a == pytest.approx(overlap.share_b, rel=1e-3)
    assert turned.share_b == pytest.approx(overlap.share_a, rel=1e-3)


def test_all_pairs_are_listed_once_and_in_order():
    grids = [make_grid(left=500_000 + 900 * index) for index in (2, 0, 1, 9)]
    pairs = [(item.scene_a, item.scene_b) for item in list_overlaps(grids)]
    assert pairs == [(0, 1), (0, 2), (1, 2)]


def test_one_scene_overlaps_nothing():
    assert list_overlaps([]) == list_overlaps([make_grid()]) == ()
