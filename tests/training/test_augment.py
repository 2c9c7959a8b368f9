"""Augmented views: a function of tile and seed that invents nothing."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropseg.errors import DataError, UsageError
from cropseg.sites.classes import IGNORE
from cropseg.training import augment as module
from cropseg.training.augment import build_augmentation

TILE = 24
SIDE = 36
SEEDS = range(200)


def make_tile(num_bands=5, side=SIDE, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 3, (side, side, num_bands)).astype(np.float32)
    labels = rng.choice([0, 1, 3, IGNORE], (side, side)).astype(np.uint8)
    return image, labels


@pytest.fixture
def shapes_only(monkeypatch):
    """Switch brightness, contrast and noise off."""
    monkeypatch.setattr(module, "COMMON_OFFSET_SD", 0.0)
    monkeypatch.setattr(module, "BAND_OFFSET_SD", 0.0)
    monkeypatch.setattr(module, "GAIN_RANGE", (1.0, 1.0))
    monkeypatch.setattr(module, "MAX_NOISE_SD", 0.0)


@pytest.fixture
def unzoomed(monkeypatch):
    """Switch zooms off."""
    monkeypatch.setattr(module, "ZOOM_PROBABILITY", 0.0)


@pytest.mark.parametrize("num_bands", [1, 2, 3, 4, 5, 6, 7, 9, 13])
@pytest.mark.parametrize("side", [TILE, TILE + 1, SIDE])
def test_a_view_has_the_tile_size_for_any_number_of_bands(num_bands, side):
    augmentation = build_augmentation(tile_size=TILE, num_bands=num_bands)
    image, labels = make_tile(num_bands, side)

    for seed in range(8):
        view, view_labels = augmentation.augment(image, labels, seed)
        assert view.shape == (TILE, TILE, num_bands)
        assert view.dtype == np.float32
        assert view_labels.shape == (TILE, TILE)
        assert view_labels.dtype == np.uint8
        assert np.isfinite(view).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63), margin=st.integers(0, 9))
def test_no_view_invents_a_class(seed, margin):
    augmentation = build_augmentation(tile_size=TILE, num_bands=2)
    rng = np.random.default_rng(margin)
    side = TILE + 2 * margin
    # 0 is no class here, so that a fill with 0 would show.
    labels = rng.choice([2, 7, 200], (side, side)).astype(np.uint8)
    image = rng.normal(0, 1, (side, side, 2)).astype(np.float32)

    _, view_labels = augmentation.augment(image, labels, seed)

    assert set(np.unique(view_labels)) <= {2, 7, 200}


@pytest.mark.usefixtures("shapes_only")
def test_views_of_a_tile_without_gaps_have_no_fill():
    augmentation = build_augmentation(tile_size=TILE, num_bands=2)
    image = np.full((SIDE, SIDE, 2), 5.0, dtype=np.float32)
    labels = np.ones((SIDE, SIDE), dtype=np.uint8)

    for seed in SEEDS:
        view, view_labels = augmentation.augment(image, labels, seed)
        assert np.allclose(view, 5.0, atol=1e-5)
        assert (view_labels == 1).all()


def test_pixels_without_data_stay_0_and_unknown():
    augmentation = build_augmentation(tile_size=TILE, num_bands=3)
    image, labels = make_tile(3)
    labels[labels == IGNORE] = 0
    image[:, 10:20] = 0
    labels[:, 10:20] = IGNORE
    num_gaps = 0

    for seed in SEEDS:
        view, view_labels = augmentation.augment(image, labels, seed)
        gap = (view == 0).all(axis=-1)
        num_gaps += gap.sum()
        assert (view_labels[gap] == IGNORE).all()
        # Only the seam, where the gap is mixed with its surroundings, is not 0.
        assert gap.sum() >= 0.75 * (view_labels == IGNORE).sum()
    assert num_gaps > 0


@pytest.mark.usefixtures("shapes_only")
def test_labels_stay_with_their_pixels():
    classes = 4
    augmentation = build_augmentation(tile_size=TILE, num_bands=classes)
    labels = np.random.default_rng(3).integers(0, classes, (SIDE, SIDE))
    image = np.eye(classes, dtype=np.float32)[labels] + 0.5

    for seed in SEEDS:
        view, view_labels = augmentation.augment(image, labels.astype(np.uint8), seed)
        # Bands hold the share of each class; the nearest pixel has 1/4 or more.
        share = np.take_along_axis(view - 0.5, view_labels[..., None], axis=-1)
        assert share.min() > 0.24


def test_equal_seeds_give_equal_views_whatever_came_before():
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)
    image, labels = make_tile()
    view, view_labels = augmentation.augment(image, labels, 11)
    np.random.seed(3)  # noqa: NPY002  # the global state must not matter
    for seed in range(5):
        augmentation.augment(*make_tile(seed=1), seed)

    again, labels_again = augmentation.augment(image, labels, 11)

    assert np.array_equal(view, again)
    assert np.array_equal(view_labels, labels_again)


def test_two_threads_give_the_views_of_one():
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)
    image, labels = make_tile()
    alone = [augmentation.augment(image, labels, seed) for seed in SEEDS]

    with ThreadPoolExecutor(2) as pool:
        together = list(
            pool.map(lambda seed: augmentation.augment(image, labels, seed), SEEDS)
        )

    for (view, view_labels), (other, other_labels) in zip(alone, together, strict=True):
        assert np.array_equal(view, other)
        assert np.array_equal(view_labels, other_labels)


def test_an_augmentation_goes_to_another_process():
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)
    image, labels = make_tile()
    view, _ = augmentation.augment(image, labels, 4)

    there = pickle.loads(pickle.dumps(augmentation))  # noqa: S301  # our own bytes

    assert np.array_equal(there.augment(image, labels, 4)[0], view)


@pytest.mark.parametrize("side", [TILE, SIDE])
def test_the_tile_is_left_as_it_was_and_the_view_is_a_copy(side):
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)
    image, labels = make_tile(side=side)
    before, labels_before = image.copy(), labels.copy()

    for seed in range(40):
        view, view_labels = augmentation.augment(image, labels, seed)
        view[:] = 9
        view_labels[:] = 9

    assert np.array_equal(image, before)
    assert np.array_equal(labels, labels_before)


@pytest.mark.usefixtures("shapes_only", "unzoomed")
def test_all_eight_orientations_are_equally_likely():
    # albumentations seeds all transforms alike, which ties both flips together.
    augmentation = build_augmentation(tile_size=4, num_bands=1)
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = labels[..., None].astype(np.float32)
    expected = {
        np.rot90(start, turns).tobytes()
        for start in (labels, labels.T)
        for turns in range(4)
    }

    found = [augmentation.augment(image, labels, seed)[1].tobytes() for seed in SEEDS]

    assert set(found) == expected
    assert min(found.count(view) for view in expected) > len(SEEDS) / 8 / 2.5


@pytest.mark.usefixtures("shapes_only", "unzoomed")
def test_a_view_without_zoom_holds_pixels_exactly_as_read():
    augmentation = build_augmentation(tile_size=TILE, num_bands=1)
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    numbers = np.arange(1, SIDE * SIDE + 1, dtype=np.float32).reshape(SIDE, SIDE, 1)
    corners = set()

    for seed in SEEDS:
        view, _ = augmentation.augment(numbers, labels, seed)
        assert np.isin(view, numbers).all()
        assert len(np.unique(view)) == TILE * TILE
        corners.add(divmod(int(view.min()) - 1, SIDE))

    rows, columns = (set(values) for values in zip(*corners, strict=True))
    assert rows == columns == set(range(SIDE - TILE + 1))


@pytest.mark.usefixtures("shapes_only")
def test_zooms_span_their_range_in_and_out(monkeypatch):
    monkeypatch.setattr(module, "ZOOM_PROBABILITY", 1.0)
    augmentation = build_augmentation(tile_size=TILE, num_bands=1)
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    ramp = np.add.outer(np.arange(1, SIDE + 1), 1000 * np.arange(1, SIDE + 1))
    zooms = []

    for seed in SEEDS:
        view, _ = augmentation.augment(ramp[..., None].astype(np.float32), labels, seed)
        steps = {
            round(float(np.abs(np.diff(view[..., 0], axis=axis)[8, 8])), 2)
            for axis in (0, 1)
        }
        zooms.append(1 / min(steps))

    assert 0.79 < min(zooms) < 0.83
    assert 1.2 < max(zooms) < 1.27
    assert 70 < sum(zoom < 1 for zoom in zooms) < 130


@pytest.mark.parametrize("zoom", [0.8, 1.0, 1.25])
def test_the_edges_of_the_window_are_the_edges_of_the_view(zoom):
    row, column = 3.25, 1.5
    matrix = module._place(zoom, row, column)

    first = matrix @ [column - 0.5, row - 0.5, 1]
    last = matrix @ [column + TILE / zoom - 0.5, row + TILE / zoom - 0.5, 1]

    assert first == pytest.approx([-0.5, -0.5])
    assert last == pytest.approx([TILE - 0.5, TILE - 0.5])


@pytest.mark.usefixtures("shapes_only")
def test_without_surroundings_a_view_is_never_zoomed_out(monkeypatch):
    monkeypatch.setattr(module, "ZOOM_PROBABILITY", 1.0)
    augmentation = build_augmentation(tile_size=TILE, num_bands=1)
    labels = np.zeros((TILE, TILE), dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(1, TILE + 1), (TILE, TILE))[..., None]

    for seed in range(60):
        view, _ = augmentation.augment(ramp.astype(np.float32), labels, seed)
        assert view.max() - view.min() <= TILE - 1
        assert np.abs(np.diff(view[..., 0], axis=0)).max() < 1.01
        assert np.abs(np.diff(view[..., 0], axis=1)).max() < 1.01


@pytest.mark.usefixtures("unzoomed")
def test_brightness_contrast_and_noise_have_the_strength_they_state():
    num_bands = 6
    augmentation = build_augmentation(tile_size=TILE, num_bands=num_bands)
    rng = np.random.default_rng(0)
    image = np.full((TILE, TILE, num_bands), -4.0, dtype=np.float32)
    image[rng.random((TILE, TILE)) < 0.5] = 4.0
    labels = np.zeros((TILE, TILE), dtype=np.uint8)
    gains, offsets, noises = [], [], []

    for seed in SEEDS:
        view, _ = augmentation.augment(image, labels, seed)
        high = np.array([view[..., band][view[..., band] > 0] for band in range(6)])
        low = np.array([view[..., band][view[..., band] < 0] for band in range(6)])
        gains.append((high.mean(axis=1) - low.mean(axis=1)) / 8)
        offsets.append((high.mean(axis=1) + low.mean(axis=1)) / 2)
        noises.append(high.std(axis=1).mean())

    gains, offsets = np.array(gains), np.array(offsets)
    assert 0.89 < gains.min() < 0.91
    assert 1.09 < gains.max() < 1.11
    assert np.corrcoef(gains[:, 0], gains[:, 1])[0, 1] < 0.3
    assert offsets.mean(axis=1).std() == pytest.approx(0.1, rel=0.2)
    within = (offsets - offsets.mean(axis=1, keepdims=True)).std(ddof=0)
    assert within == pytest.approx(0.05 * np.sqrt(5 / 6), rel=0.1)
    assert 0.045 < max(noises) < 0.055
    assert np.mean(noises) == pytest.approx(0.025, rel=0.2)


def test_values_are_never_clipped():
    augmentation = build_augmentation(tile_size=TILE, num_bands=2)
    image = np.full((SIDE, SIDE, 2), -50.0, dtype=np.float32)
    image[..., 1] = 900.0

    for seed in range(20):
        view, _ = augmentation.augment(image, np.zeros((SIDE, SIDE), np.uint8), seed)
        assert (np.abs(view[..., 0] + 50) < 10).all()
        assert (np.abs(view[..., 1] - 900) < 100).all()


@pytest.mark.usefixtures("unzoomed")
def test_noise_differs_between_pixels_and_bands():
    augmentation = build_augmentation(tile_size=TILE, num_bands=2)
    image = np.ones((TILE, TILE, 2), dtype=np.float32)

    view, _ = augmentation.augment(image, np.zeros((TILE, TILE), np.uint8), 0)

    first, second = view[..., 0].ravel(), view[..., 1].ravel()
    assert len(np.unique(first)) > 0.9 * TILE * TILE
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("image_shape", "labels_shape"),
    [
        ((SIDE, SIDE, 4), (SIDE, SIDE)),
        ((5, SIDE, SIDE), (SIDE, SIDE)),
        ((SIDE, SIDE, 5), (SIDE, SIDE - 1)),
        ((SIDE, SIDE + 1, 5), (SIDE, SIDE + 1)),
        ((TILE - 1, TILE - 1, 5), (TILE - 1, TILE - 1)),
        ((SIDE, SIDE), (SIDE, SIDE)),
        ((), ()),
    ],
)
def test_tiles_of_other_shapes_are_refused(image_shape, labels_shape):
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)

    with pytest.raises(DataError, match="shape"):
        augmentation.augment(
            np.zeros(image_shape, np.float32), np.zeros(labels_shape, np.uint8), 0
        )


@pytest.mark.parametrize(
    ("image_type", "labels_type"),
    [(np.float64, np.uint8), (np.uint16, np.uint8), (np.float32, np.int64)],
)
def test_tiles_of_other_types_are_refused(image_type, labels_type):
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)
    image, labels = make_tile()

    with pytest.raises(DataError, match="float32 and class ids as uint8"):
        augmentation.augment(image.astype(image_type), labels.astype(labels_type), 0)


def test_a_negative_seed_is_refused():
    augmentation = build_augmentation(tile_size=TILE, num_bands=5)

    with pytest.raises(UsageError, match="-1"):
        augmentation.augment(*make_tile(), -1)


@pytest.mark.parametrize(("tile_size", "num_bands"), [(0, 3), (8, 0)])
def test_empty_tiles_are_refused(tile_size, num_bands):
    with pytest.raises(UsageError, match="1 or more"):
        build_augmentation(tile_size=tile_size, num_bands=num_bands)
