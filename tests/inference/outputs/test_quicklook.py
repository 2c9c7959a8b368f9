"""The picture shows the map in its colours, the right way up, with a legend."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from matplotlib.image import imread

from cropseg.errors import DataError
from cropseg.inference.outputs import quicklook
from cropseg.inference.outputs.quicklook import choose_length, write_quicklook

COLORS = {0: (0x26, 0x73, 0x00), 1: (0xD8, 0xB5, 0x6B), 3: (0x4A, 0x6F, 0xA3)}


def read_picture(path):
    return np.rint(imread(path)[..., :3] * 255).astype(int)


def find_color(picture, color):
    """Return the rows and columns of the pixels of a colour."""
    return np.nonzero((picture == color).all(axis=-1))


@pytest.fixture
def quarters():
    """Class 0 above, 1 below on the left, 3 below on the right."""
    ids = np.zeros((60, 100), "uint8")
    ids[40:, :70] = 1
    ids[40:, 70:] = 3
    return ids


def test_the_picture_has_the_map_the_right_way_up(write_map, quarters, tmp_path):
    path = tmp_path / "map.png"
    write_quicklook(write_map(quarters), path)
    picture = read_picture(path)
    centres = {
        class_id: [np.median(axis) for axis in find_color(picture, color)]
        for class_id, color in COLORS.items()
    }
    assert centres[0][0] < centres[1][0]  # rows
    assert centres[1][1] < centres[3][1]  # columns
    counts = {i: len(find_color(picture, color)[0]) for i, color in COLORS.items()}
    assert counts[1] / counts[3] == pytest.approx(70 / 30, rel=0.1)


def test_pixels_are_as_wide_and_high_as_on_the_ground(write_map, tmp_path):
    ids = np.zeros((50, 50), "uint8")
    ids[:, :] = 3  # 10 m wide and 8 m high
    path = tmp_path / "map.png"
    write_quicklook(write_map(ids), path)
    rows, cols = find_color(read_picture(path), COLORS[3])
    inside = cols < np.percentile(cols, 95)  # without the legend
    width = np.ptp(cols[inside]) / 0.95
    assert np.ptp(rows) / width == pytest.approx(0.8, rel=0.1)


def test_a_large_map_is_read_from_its_overviews(write_map, tmp_path, monkeypatch):
    monkeypatch.setattr(quicklook, "_LONGEST_PX", 256)
    ids = np.ones((1024, 1024), "uint8")
    ids[::4, ::4] = 0  # what a look at single pixels of the whole map would show
    path = tmp_path / "map.png"
    write_quicklook(write_map(ids), path)
    picture = read_picture(path)
    assert len(find_color(picture, COLORS[1])[0]) > 20_000
    assert len(find_color(picture, COLORS[0])[0]) < 100


@pytest.mark.parametrize("shape", [(3, 700), (700, 3), (1, 1)])
def test_maps_of_odd_shapes_have_a_picture(shape, write_map, tmp_path):
    path = tmp_path / "map.png"
    write_quicklook(write_map(np.ones(shape, "uint8")), path)
    assert len(find_color(read_picture(path), COLORS[1])[0]) > 1000


def test_a_map_without_data_or_in_degrees_has_a_picture(write_map, make_grid, tmp_path):
    grid = make_grid(
        30, 40, crs="EPSG:4326", transform=Affine(1e-4, 0, 11, 0, -1e-4, 57)
    )
    path = tmp_path / "map.png"
    write_quicklook(write_map(np.full((30, 40), 255), grid=grid, scene="$a_b$"), path)
    assert read_picture(path).shape[1] > 500


def test_equal_maps_give_equal_pictures(write_map, quarters, tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        write_quicklook(write_map(quarters), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_damaged_map_is_an_error(write_map, tmp_path):
    finished = write_map(np.random.default_rng(0).integers(0, 4, (600, 700)))
    content = finished.classes_path.read_bytes()
    finished.classes_path.write_bytes(content[: len(content) * 2 // 3])
    path = tmp_path / "map.png"
    with pytest.raises(DataError):
        write_quicklook(finished, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("most", "length"),
    [
        (1, 1),
        (1.9, 1),
        (240, 200),
        (0.05, 0.05),
        (9999, 5000),
        (np.nextafter(1000, 0), 500),
    ],
)
def test_a_scale_bar_has_a_round_length(most, length):
    assert choose_length(most) == pytest.approx(length)
