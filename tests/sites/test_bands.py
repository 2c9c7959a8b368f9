"""Bands are taken by name, in any order, and computed from others."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import yaml

from cropseg.sites.bands import BandReader
from cropseg.sites.grid import Window
from cropseg.sites.raster import Pixels
from cropseg.sites.site import open_site

NAMES = ("nir", "blue", "red")
NDVI = {"ndvi": "(nir - red) / (nir + red)"}
WINDOW = Window(row=0, col=0, height=5, width=7)


class ArraySource:
    """Bands in memory that note which of them were read."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def read(self, _window, bands):
        self.asked.append(list(bands))
        valid = np.ones(self.values.shape[:2], bool)
        valid[4] = False
        return Pixels(values=self.values[..., list(bands)], valid=valid)


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    return ArraySource(rng.integers(1, 5000, (5, 7, 3)).astype("uint16"))


def test_bands_come_in_the_order_wanted(source):
    pixels = BandReader(source, NAMES, ("red", "nir"), {}).read_pixels(WINDOW)

    np.testing.assert_array_equal(pixels.values, source.values[..., [2, 0]])
    assert pixels.values.dtype == np.uint16


def test_a_derived_band_is_computed_from_bands_that_are_not_wanted(source):
    pixels = BandReader(source, NAMES, ("ndvi", "blue"), NDVI).read_pixels(WINDOW)

    nir, blue, red = np.moveaxis(source.values.astype("float64"), -1, 0)
    expected = np.stack([(nir - red) / (nir + red), blue], axis=-1)[:4]
    np.testing.assert_allclose(pixels.values[:4], expected, rtol=1e-6)
    assert pixels.values.dtype == np.float32
    assert pixels.valid[:4].all()
    assert not pixels.valid[4].any()


def test_each_band_is_read_once_and_no_other(source):
    BandReader(source, NAMES, ("nir", "ndvi"), NDVI).read_pixels(WINDOW)
    BandReader(source, NAMES, ("blue",), NDVI).read_pixels(WINDOW)

    assert source.asked == [[0, 2], [1]]


@pytest.mark.parametrize("numbers", [(0, 0), (65535, 0)])
def test_a_pixel_where_a_formula_has_no_value_is_invalid(source, numbers):
    source.values[2, 3, [0, 2]] = numbers
    source.values[2, 4, [0, 2]] = (7, 7)
    derived = {"ratio": "nir / red", **NDVI}

    pixels = BandReader(source, NAMES, ("ndvi", "ratio"), derived).read_pixels(WINDOW)

    assert not pixels.valid[2, 3]
    assert pixels.valid[2, 4]
    np.testing.assert_array_equal(pixels.values[2, 3], 0)
    np.testing.assert_allclose(pixels.values[2, 4], [0, 1])
    assert np.isfinite(pixels.values).all()


def test_unsigned_bands_do_not_wrap_around_in_a_formula(source):
    source.values[0, 0] = (10, 1, 30)

    reader = BandReader(source, NAMES, ("less",), {"less": "nir - red"})

    assert reader.read_pixels(WINDOW).values[0, 0, 0] == -20


def test_scenes_may_have_their_bands_in_different_orders(tmp_path, make_site):
    make_site(tmp_path, bands=("red", "nir", "blue"), num_scenes=2)
    with rasterio.open(tmp_path / "scene_1.tif") as dataset:
        stored = dataset.read(window=((0, 5), (0, 7))).astype("float32")
    scenes = [
        {"image": "scene_0.tif", "bands": ["red", "nir", "blue"]},
        {"image": "scene_1.tif", "bands": ["blue", "extra", "red"]},
    ]
    path = tmp_path / "site.yaml"
    document = yaml.safe_load(path.read_text()) | {
        "bands": ["red", "blue"],
        "derived": {"sum": "red + blue"},
        "scenes": scenes,
    }
    path.write_text(yaml.safe_dump(document))

    site = open_site(path)
    with site.open_scene(site.scenes[1]) as reader:
        found = reader.read_pixels(WINDOW).values

    assert site.bands == ("red", "blue", "sum")
    expected = [stored[2], stored[0], stored[2] + stored[0]]
    np.testing.assert_array_equal(found, np.stack(expected, axis=-1))
    assert site.select_bands(("sum", "blue")).bands == ("sum", "blue")


def test_a_formula_sees_all_digits_of_its_bands():
    values = np.full((5, 7, 3), 2**24, "int32")
    values[..., 0] += 1  # which float32 does not hold
    source = ArraySource(values)

    pixels = BandReader(source, NAMES, ("d",), {"d": "nir - red"}).read_pixels(WINDOW)

    assert (pixels.values[pixels.valid] == 1).all()


def test_what_float32_cannot_hold_is_invalid_beside_a_derived_band():
    values = np.full((5, 7, 3), 2.0)
    values[1, 2, 0] = 1e300
    source = ArraySource(values)

    pixels = BandReader(source, NAMES, ("nir", "ndvi"), NDVI).read_pixels(WINDOW)

    assert not pixels.valid[1, 2]
    assert pixels.valid.sum() == 4 * 7 - 1
