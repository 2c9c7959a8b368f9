"""The shift of labels against their image: found, with its sign, and not made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage

from cropseg.checks.alignment import (
    MARGIN_PX,
    Shift,
    ShiftMeter,
    _divide_by_error,
    measure_shift,
)
from cropseg.demo.areas import write_areas
from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site
from cropseg.sites.tiling import iterate_tiles

SHARED = Path(__file__).parents[2].parent / "shared"
PRAIRIE = SHARED / "data" / "prairie"
DENMARK = SHARED / "data" / "denmark"
SHIFTS = ((2, 0), (0, 2), (-2, 2), (-2, -2), (0, -2), (1, 0), (0, -1), (3, 0), (-3, 3))


def draw_fields(shape=(230, 310), *, noise=0.5, seed=0):
    """Draw fields with rounded outlines, and an image of three bands that fits them."""
    rng = np.random.default_rng(seed)
    relief = ndimage.gaussian_filter(rng.normal(size=shape), 7)
    labels = np.digitize(relief, np.quantile(relief, (0.25, 0.5, 0.75))).astype("uint8")
    spectra = rng.uniform(0, 3, (4, 3))
    values = 1000 + 300 * (spectra[labels] + rng.normal(0, noise, (*shape, 3)))
    return values.astype("int16"), np.ones(shape, bool), labels


def cut(values, valid, labels, core_size=100):
    """Yield tiles whose inner parts partition the scene."""
    area = Window(row=0, col=0, height=labels.shape[0], width=labels.shape[1])
    margins = ((MARGIN_PX, core_size),) * 2
    arrays = (
        np.pad(values, (*margins, (0, 0))),
        np.pad(valid, margins),
        np.pad(labels, margins, constant_values=IGNORE),
    )
    for tile in iterate_tiles(area, core_size=core_size, context=MARGIN_PX):
        where = tile.window.slices_in(area.grow(MARGIN_PX))
        yield tuple(array[where] for array in arrays)


def move(labels, rows, cols):
    return np.roll(labels, (rows, cols), (0, 1))


def read_site(manifest_path):
    """Return values, validity and labels of the only scene of a site."""
    site = open_site(manifest_path)
    (scene,) = site.scenes
    with site.open_scene(scene) as reader:
        pixels = reader.read_pixels(scene.grid.window)
        return pixels.values, pixels.valid, reader.read_labels(scene.grid.window)


def read_polygons(image_path, vector_path, field):
    """Return values, validity and labels of an image with polygons."""
    import geopandas

    with rasterio.open(image_path) as dataset:
        values = np.moveaxis(dataset.read(), 0, -1)
        valid = dataset.dataset_mask() > 0
        polygons = geopandas.read_file(vector_path).to_crs(dataset.crs)
        codes = {code: i for i, code in enumerate(sorted(polygons[field].unique()))}
        labels = rasterize(
            zip(polygons.geometry, polygons[field].map(codes), strict=True),
            out_shape=dataset.shape,
            transform=dataset.transform,
            fill=IGNORE,
            dtype="uint8",
        )
    return values, valid, labels


@given(rows=st.integers(-3, 3), cols=st.integers(-3, 3), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_any_shift_of_up_to_three_pixels_is_found_with_its_sign(rows, cols, seed):
    values, valid, labels = draw_fields(seed=seed)
    shift = measure_shift(cut(values, valid, move(labels, rows, cols)))
    assert (shift.rows, shift.cols) == (rows, cols)
    assert shift.is_shifted == ((rows, cols) != (0, 0))


def test_the_correlation_is_that_of_a_direct_count():
    values, valid, labels = draw_fields()
    moved = move(labels, 2, -1)
    shift = measure_shift(cut(values, valid, moved))
    image = values.astype(float)
    steps = [np.roll(image, 1, axis) - np.roll(image, -1, axis) for axis in (0, 1)]
    edges = np.sqrt(np.abs(steps[0]) + np.abs(steps[1]))
    inner = slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX)

    def correlate(ids):
        near = [np.roll(ids, step, axis) for axis in (0, 1) for step in (-1, 1)]
        boundaries = np.any([ids != other for other in near], axis=0)[inner].ravel()
        bands = edges[inner].reshape(-1, 3).T
        return np.mean([np.corrcoef(band, boundaries)[0, 1] for band in bands])

    assert shift.correlation == pytest.approx(correlate(labels), abs=1e-4)
    assert shift.correlation_unmoved == pytest.approx(correlate(moved), abs=1e-4)


@pytest.mark.parametrize("core_size", [33, 64, 400])
def test_the_tiling_does_not_matter(core_size):
    values, valid, labels = draw_fields()
    valid[50:90, 120:200] = False
    labels = move(labels, 1, 2)
    labels[150:, :140] = IGNORE
    first = measure_shift(cut(values, valid, labels))
    other = measure_shift(cut(values, valid, labels, core_size))
    assert (other.rows, other.cols) == (first.rows, first.cols) == (1, 2)
    assert other.num_boundary_px == first.num_boundary_px
    assert other.correlation == pytest.approx(first.correlation, rel=1e-5)
    assert other.correlation_lowest == pytest.approx(first.correlation_lowest, abs=1e-5)


def test_bands_need_no_common_unit():
    values, valid, labels = draw_fields()
    labels = move(labels, 0, 2)
    scaled = values * np.array([1e-4, 1.0, 300.0])
    one = measure_shift(cut(values, valid, labels))
    other = measure_shift(cut(scaled, valid, labels))
    assert other.correlation == pytest.approx(one.correlation, rel=1e-4)


def test_a_constant_band_and_nan_outside_of_the_data_change_no_shift():
    values, valid, labels = draw_fields()
    values = values.astype("float32")
    values[..., 1] = 7
    valid[:60] = False
    values[:60] = np.nan
    shift = measure_shift(cut(values, valid, move(labels, -2, 0)))
    assert (shift.rows, shift.cols, shift.is_shifted) == (-2, 0, True)


def test_the_edge_of_the_data_is_no_edge_of_a_field():
    """Labels that end where the data end must not hide a shift of the fields."""
    values, valid, labels = draw_fields(noise=1.5)
    stripes = np.arange(310) // 12 % 3 == 0
    valid[:, stripes] = False
    values[:, stripes] = -9999
    labels = move(labels, 2, 0)
    labels[:, stripes] = IGNORE
    shift = measure_shift(cut(values, valid, labels))
    assert (shift.rows, shift.cols, shift.is_shifted) == (2, 0, True)


def test_ground_far_from_all_labels_does_not_count():
    values, valid, labels = draw_fields()
    labels[:, 120:] = IGNORE
    expected = measure_shift(cut(values, valid, labels))
    values[:, 130:] = np.random.default_rng(0).integers(0, 9000, (230, 180, 3))
    assert measure_shift(cut(values, valid, labels)) == expected


def test_nodata_of_any_size_counts_nothing():
    values, valid, labels = draw_fields()
    values = values.astype("float64")
    valid[:60] = False
    expected = measure_shift(cut(values, valid, labels))
    values[0:60:2], values[1:60:2] = np.inf, np.finfo("float64").min
    assert measure_shift(cut(values, valid, labels)) == expected


def test_the_confidence_is_in_standard_errors():
    """For a mean, the jackknife gives the textbook standard error."""
    numbers = np.random.default_rng(0).normal(3, 2, 20)
    rest = (numbers.sum() - numbers) / 19
    error = numbers.std(ddof=1) / np.sqrt(20)
    confidence = _divide_by_error(numbers.mean(), rest)
    assert confidence == pytest.approx(numbers.mean() / error)


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_have_nothing_to_do_with_the_image_are_not_shifted(seed):
    values, valid, _ = draw_fields(seed=seed)
    _, _, labels = draw_fields(seed=seed + 100)
    assert not measure_shift(cut(values, valid, labels)).is_shifted


@pytest.mark.parametrize("width_px", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_shrunk_fields_are_not_shifted(width_px, seed):
    values, valid, labels = draw_fields((300, 410), seed=seed)
    border = ndimage.grey_dilation(labels, 3) != ndimage.grey_erosion(labels, 3)
    if width_px > 1:
        border = ndimage.binary_dilation(border, iterations=width_px - 1)
    labels = np.where(border, IGNORE, labels).astype("uint8")
    assert not measure_shift(cut(values, valid, labels)).is_shifted


def test_too_few_boundaries_give_no_verdict():
    values, valid, labels = draw_fields()
    labels[40:] = IGNORE
    labels[:40] = 0
    shift = measure_shift(cut(values, valid, labels))
    assert 0 < shift.num_boundary_px <= 2 * 310
    few = labels.copy()
    few[:, 100:] = IGNORE
    shift = measure_shift(cut(values, valid, few))
    assert not shift.has_verdict
    assert not shift.is_shifted


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (3, 2)])
def test_a_tile_without_inner_pixels_counts_nothing(shape):
    tile = np.zeros((*shape, 2)), np.ones(shape, bool), np.zeros(shape, "uint8")
    shift = measure_shift([tile])
    assert (shift.rows, shift.cols, shift.num_boundary_px) == (0, 0, 0)


def test_no_tiles_give_no_verdict():
    assert not measure_shift([]).has_verdict


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("confidence", 5.0, True),
        ("confidence", 4.9, False),
        ("correlation_unmoved", 0.381, False),
        ("num_boundary_px", 499, False),
        ("correlation_lowest", -0.2, False),
    ],
)
def test_a_shift_is_reported_from_the_stated_thresholds_on(field, value, expected):
    fields = {
        "rows": 2,
        "cols": 0,
        "correlation": 0.4,
        "correlation_unmoved": 0.379,
        "correlation_lowest": -0.19,
        "confidence": 5.0,
        "num_boundary_px": 500,
    }
    assert Shift(**fields).is_shifted
    assert Shift(**fields | {field: value}).is_shifted == expected


def test_shapes_that_do_not_fit_are_refused():
    meter = ShiftMeter()
    values, valid, labels = draw_fields((40, 50))
    meter.add(values, valid, labels)
    with pytest.raises(DataError, match=r"\(40, 50\)"):
        meter.add(values, valid, labels[:-1])
    with pytest.raises(DataError, match="one meter for each scene"):
        meter.add(values[..., :2], valid, labels)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_areas_are_aligned_and_a_shift_of_theirs_is_found(tmp_path, seed):
    for manifest_path in write_areas(tmp_path, seed=seed, size_px=512):
        values, valid, labels = read_site(manifest_path)
        assert not measure_shift(cut(values, valid, labels, 256)).is_shifted
        shift = measure_shift(cut(values, valid, move(labels, -2, 2), 256))
        assert (shift.rows, shift.cols, shift.is_shifted) == (-2, 2, True)


@pytest.mark.slow
@pytest.mark.skipif(not PRAIRIE.is_dir(), reason="../shared/data/prairie is not there")
@pytest.mark.parametrize("kind", ["labels of area 1", "labels of area 2", "parcels"])
def test_prairie_labels_are_aligned_and_a_shift_is_found(kind):
    area = 1 if kind == "labels of area 1" else 2
    folder = Path(__file__).parents[2] / "data_manifests"
    values, valid, labels = read_site(folder / f"prairie_area_{area}.yaml")
    if kind == "parcels":
        _, _, labels = read_polygons(
            PRAIRIE / "rural_area_2.tif", PRAIRIE / "rural_area_2_parcels.gpkg", "code"
        )
    check_shifts(values, valid, labels, SHIFTS)


@pytest.mark.skipif(not DENMARK.is_dir(), reason="../shared/data/denmark is not there")
def test_danish_polygons_are_aligned_and_a_shift_is_found():
    values, valid, labels = read_polygons(
        DENMARK / "RGB_small.tif", DENMARK / "marker2016_small.shp", "AfgKode"
    )
    # They lie half a pixel too high, so that one row down is hardly a shift.
    check_shifts(values, valid, labels, [shift for shift in SHIFTS if shift != (1, 0)])


def check_shifts(values, valid, labels, shifts):
    assert not measure_shift(cut(values, valid, labels, 256)).is_shifted
    for rows, cols in shifts:
        shift = measure_shift(cut(values, valid, move(labels, rows, cols), 256))
        assert (shift.rows, shift.cols, shift.is_shifted) == (rows, cols, True)
