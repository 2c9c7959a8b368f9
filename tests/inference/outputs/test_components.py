"""Connected areas are the same whatever squares a map is read in."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from cropseg.inference.outputs import finished
from cropseg.inference.outputs.components import (
    find_components,
    iterate_squares,
    label_areas,
    measure_sides_m,
)
from cropseg.inference.outputs.finished import open_map


def draw_all(components, reader):
    """Return the area of each pixel."""
    areas = np.zeros((reader.grid.height, reader.grid.width), int)
    for _, window, numbers, groups in iterate_squares(reader, components):
        areas[window.slices_in(reader.grid.window)] = groups[numbers]
    return areas


def find(finished_map, **options):
    """Return the class and the area of each pixel, and the components."""
    with open_map(finished_map) as reader:
        components = find_components(reader, **options)
        areas = draw_all(components, reader)
    return components.class_ids[areas], areas, components


def are_alike(first, second):
    """Whether two drawings have the same areas, by whatever numbers."""
    pairs = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 1, 255]),
    )
)
def test_areas_are_those_of_each_value_that_scipy_finds(ids):
    labels, num_labels = label_areas(ids)
    assert sorted(set(labels.ravel().tolist())) == list(range(num_labels))
    expected = np.zeros(ids.shape, int)
    for value in np.unique(ids):
        found, _ = ndimage.label(ids == value)
        expected[ids == value] = found[ids == value] + expected.max()
    assert are_alike(labels, expected)


@pytest.mark.parametrize("square", [7, 16, 1024])
def test_areas_do_not_depend_on_the_squares(
    square, write_map, draw_patches, monkeypatch
):
    monkeypatch.setattr(finished, "CHUNK_PX", square)
    ids = draw_patches(sigma=1.2)
    classes, areas, components = find(write_map(ids))
    np.testing.assert_array_equal(classes, ids)
    assert are_alike(areas, label_areas(ids)[0])
    sizes = np.bincount(areas.ravel())
    np.testing.assert_allclose(components.areas_m2, sizes * 80)


@pytest.mark.parametrize("square", [7, 16, 1024])
def test_an_area_has_the_mean_confidence_of_its_pixels(
    square, write_map, draw_patches, monkeypatch
):
    monkeypatch.setattr(finished, "CHUNK_PX", square)
    ids = draw_patches()
    rng = np.random.default_rng(1)
    confidence = rng.integers(0, 251, ids.shape) * 0.004
    _, areas, components = find(write_map(ids, confidence=confidence))
    expected = ndimage.mean(confidence, areas, range(len(components.class_ids)))
    expected[components.class_ids == 255] = np.nan
    np.testing.assert_allclose(components.confidences, expected, rtol=1e-5)


@pytest.mark.parametrize("square", [7, 16, 1024])
@pytest.mark.parametrize("min_area_m2", [80, 1000, 20_000])
def test_no_area_is_smaller_than_the_least_and_none_touches_its_own_class(
    square, min_area_m2, write_map, draw_patches, monkeypatch
):
    monkeypatch.setattr(finished, "CHUNK_PX", square)
    ids = draw_patches(sigma=0.7)
    classes, areas, components = find(write_map(ids), min_area_m2=min_area_m2)
    assert (classes[ids == 255] == 255).all()
    assert are_alike(areas[classes != 255], label_areas(classes)[0][classes != 255])
    has_data = components.class_ids != 255
    sizes = np.bincount(areas.ravel())
    np.testing.assert_allclose(components.areas_m2, sizes * 80)
    assert components.areas_m2[has_data].min() >= min_area_m2
    monkeypatch.setattr(finished, "CHUNK_PX", 1024)
    whole, _, _ = find(write_map(ids), min_area_m2=min_area_m2)
    np.testing.assert_array_equal(classes, whole)


def test_a_small_area_goes_to_the_neighbour_with_the_longest_border(write_map):
    ids = np.zeros((30, 40), "uint8")
    ids[:, 20:] = 1
    ids[10:14, 18:21] = 2  # three columns: two lie in class 0
    ids[20:24, 19:22] = 3  # two lie in class 1
    classes, _, _ = find(write_map(ids), min_area_m2=13 * 80)
    assert (classes[10:14, 18:21] == 0).all()
    assert (classes[20:24, 19:22] == 1).all()


def test_a_border_is_as_long_as_on_the_ground(write_map):
    ids = np.zeros((30, 40), "uint8")
    ids[15:] = 1
    ids[10:15, 3:7] = 2  # 4 x 10 m to class 1; 2 x 5 x 8 m + 40 m to class 0
    ids[15:20, 20:23] = 3  # 3 x 10 m to class 0; 2 x 5 x 8 m + 30 m to class 1
    ids[13:17, 39] = 2  # 10 + 2 x 8 m to either: the larger has it
    classes, _, _ = find(write_map(ids), min_area_m2=21 * 80)
    assert classes[12, 5] == 0
    assert classes[17, 21] == 1
    assert (ids == 0).sum() < (ids == 1).sum()
    assert (classes[13:17, 39] == 1).all()


def test_a_small_area_inside_small_ones_goes_where_they_go(write_map):
    ids = np.zeros((30, 40), "uint8")
    ids[10:15, 10:15] = 1
    ids[12, 12] = 2
    classes, _, components = find(write_map(ids), min_area_m2=30 * 80)
    assert (classes == 0).all()
    assert (components.areas_m2 > 0).sum() == 1


def test_large_areas_that_a_small_one_parted_become_one(write_map):
    ids = np.zeros((30, 40), "uint8")
    ids[:, 20] = 3
    classes, areas, _ = find(write_map(ids), min_area_m2=31 * 80)
    assert (classes == 0).all()
    assert len(np.unique(areas)) == 1


def test_a_small_area_among_pixels_without_data_is_dropped(write_map):
    ids = np.full((30, 40), 255, "uint8")
    ids[3:20, 5:20] = 1
    ids[25:27, 30:33] = 2
    ids[27, 30] = 3
    classes, _, _ = find(write_map(ids), min_area_m2=10 * 80)
    np.testing.assert_array_equal(classes == 1, ids == 1)
    assert (classes[ids != 1] == 255).all()


def test_small_areas_among_themselves_become_one_of_the_class_of_most(write_map):
    ids = np.full((30, 40), 255, "uint8")
    ids[5:15, 5:15:2] = 1
    ids[5:15, 6:15:2] = 3
    ids[5:8, 5:15] = 2
    classes, areas, components = find(write_map(ids), min_area_m2=50 * 80)
    assert len(np.unique(areas[5:15, 5:15])) == 1
    assert (classes[5:15, 5:15] == 1).all()  # 35 pixels, as many as 3 has
    assert sorted(components.areas_m2[components.class_ids != 255]) == [100 * 80]


@pytest.mark.parametrize(
    ("crs", "x", "y", "side"),
    [
        ("EPSG:3857", 1.2e6, 6.6e6, 10),  # a metre of it is 1.6 m there
        ("EPSG:6933", 1e6, 6e6, 10),  # squares of it are none
        ("EPSG:4326", 11, 57, 1e-4),
        ("EPSG:4807", 2, 54, 1e-4),  # grads, from Paris
    ],
)
def test_the_sides_of_a_pixel_are_those_on_the_ground(make_grid, crs, x, y, side):
    grid = make_grid(crs=crs, transform=Affine(side, 0, x, 0, -side, y))
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    places = [
        to_degrees.transform(*(grid.transform @ place))
        for place in ((26, 35), (27, 35), (26, 36))
    ]
    expected = [
        pyproj.Geod(ellps="WGS84").inv(*places[0], *other)[2] for other in places[1:]
    ]
    assert measure_sides_m(grid) == pytest.approx(expected, rel=1e-4)


def test_the_sides_of_a_pixel_that_is_nearly_true_are_as_its_crs_says(make_grid):
    assert measure_sides_m(make_grid()) == (10, 8)
