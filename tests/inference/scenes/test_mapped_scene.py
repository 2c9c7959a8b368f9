"""Bringing an image to a model: bands, GSD, CRS, units."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.vrt import WarpedVRT

from cropseg.errors import DataError, DataFileNotFoundError, ModelError, UsageError
from cropseg.inference.scenes.mapped_scene import fit_scene
from cropseg.inference.scenes.scene_list import SceneRequest
from cropseg.sites.projection import measure_pixel

BANDS = ("blue", "green", "red", "nir")


@pytest.fixture
def card(seven_classes):
    """A card of four bands at 10 m."""
    return seven_classes.model_copy(
        update={
            "bands": BANDS,
            "gsd_m": 10.0,
            "band_mean": (1.0,) * 4,
            "band_std": (1.0,) * 4,
            "nodata_fill": (1.0,) * 4,
        }
    )


@pytest.fixture
def write(write_raster, tmp_path):
    """Return a function that writes a scene, and gives the request for it."""

    def write_scene(values, name="scene", *, bands=None, **profile):
        where = Affine(10, 0, 600_005, 0, -10, 5_200_003)
        path = tmp_path / f"{name}.tif"
        write_raster(path, values, **({"transform": where} | profile))
        return SceneRequest(name=name, files=(str(path),), bands=bands)

    return write_scene


def draw(height=40, width=56, count=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 4000, (height, width, count)).astype("int16")


def read(scene):
    with scene.open() as reader:
        return reader.read_pixels(scene.image.grid.window)


def test_a_scene_like_the_model_s_is_read_as_it_is(write, card):
    values = draw()
    scene = fit_scene(write(values), card)
    assert scene.name == "scene"
    assert not scene.image.is_resampled
    np.testing.assert_array_equal(read(scene).values, values)
    assert pickle.loads(pickle.dumps(scene)) == scene  # noqa: S301 - our own


def test_bands_are_taken_by_the_names_in_the_file_and_others_left_out(write, card):
    values = draw(count=6)
    names = ("NIR", "swir", "Red", "green", "", "blue")
    scene = fit_scene(write(values, descriptions=names), card)
    np.testing.assert_array_equal(read(scene).values, values[..., [5, 3, 2, 0]])
    with scene.open_native() as reader:
        found = reader.read_pixels(scene.image.native_grid.window)
    np.testing.assert_array_equal(found.values, values[..., [5, 3, 2, 0]])


def test_names_of_the_request_go_before_those_of_the_file(write, card):
    values = draw()
    request = write(values, bands=BANDS[::-1], descriptions=BANDS)
    found = read(fit_scene(request, card)).values
    np.testing.assert_array_equal(found, values[..., ::-1])


def test_a_band_that_is_not_used_does_not_decide_what_is_valid(write, card):
    values = draw(count=5)
    values[:9, :, 1] = -1
    names = ("blue", "swir", "green", "red", "nir")
    scene = fit_scene(write(values, descriptions=names, nodata=-1), card)
    assert read(scene).valid.all()


def test_another_number_of_bands_is_refused_with_the_names_of_both(write, card):
    values = draw(count=3).astype("uint8")
    request = write(values)
    with pytest.raises(ModelError) as error:
        fit_scene(request, card)
    message = str(error.value)
    assert "has 3 bands (red, green, blue)" in message  # GDAL's guess of 8-bit bands
    assert "the model takes 4: blue, green, red, nir" in message
    assert error.value.exit_code == 4
    with pytest.raises(ModelError, match=r"1 band \(unnamed\)"):
        fit_scene(write(draw(count=1), "one"), card)


@pytest.mark.parametrize("bands", [BANDS[:3], ("blue", "green", "red", "swir")])
def test_a_request_whose_names_do_not_fit_is_refused(write, card, bands):
    with pytest.raises(ModelError, match="but the model takes 4"):
        fit_scene(write(draw(), bands=bands), card)


def test_a_fourth_band_that_gdal_calls_alpha_is_near_infrared(write, card):
    values = draw().astype("uint8")
    request = write(values)
    with rasterio.open(request.files[0]) as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
    np.testing.assert_array_equal(read(fit_scene(request, card)).values, values)


def test_several_files_are_stacked_and_the_finest_gives_the_grid(write, card):
    values = draw()
    parts = []
    for index, (name, step) in enumerate(zip(BANDS, (2, 1, 1, 2), strict=True)):
        where = Affine(10 * step, 0, 600_005, 0, -10 * step, 5_200_003)
        # A coarse pixel holds one value in all fine pixels below it.
        coarse = values[::step, ::step, index]
        parts += write(coarse, name, transform=where).files
    request = SceneRequest(name="stack", files=tuple(parts), bands=BANDS)
    scene = fit_scene(request, card)
    assert scene.image.native_grid.gsd_m == 10
    assert not scene.image.is_resampled
    pixels = read(scene)
    assert pixels.values.shape == (40, 56, 4)
    np.testing.assert_array_equal(pixels.values[..., 1:3], values[..., 1:3])
    with rasterio.open(parts[3]) as dataset:
        options = {"transform": scene.image.grid.transform, "height": 40, "width": 56}
        with WarpedVRT(dataset, resampling=1, **options) as warped:
            nir = warped.read(1)
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(pixels.values[..., 3][inner], nir[inner], atol=1)


def test_a_scene_of_another_gsd_is_read_at_the_model_s(write, card):
    where = Affine(4, 0, 600_005, 0, -4, 5_200_003)
    scene = fit_scene(write(draw(100, 140), transform=where), card)
    assert scene.image.grid.gsd_m == 10
    assert scene.image.grid.crs == scene.image.native_grid.crs
    assert scene.image.native_grid.gsd_m == 4


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_a_scene_not_true_to_scale_is_read_in_its_utm_zone(write, card, crs):
    """Rows are bright where they are on the ground, whatever the CRS says of metres."""
    x, y = (-97.7, 46.9) if crs == "EPSG:4326" else (-10_875_914.0, 5_925_000.0)
    side = 8e-5 if crs == "EPSG:4326" else 10.0
    values = draw(90, 70)
    values[:] = np.arange(90)[:, None, None]  # a ramp from north to south
    scene = fit_scene(
        write(values, crs=crs, transform=Affine(side, 0, x, 0, -side, y)),
        card.model_copy(update={"gsd_m": 12.0}),
    )
    grid = scene.image.grid
    assert grid.crs == CRS.from_epsg(32614)
    assert grid.gsd_m == pytest.approx(12)
    assert measure_pixel(grid) == pytest.approx((12, 12), rel=0.01)
    pixels = read(scene)
    with rasterio.open(scene.image.path) as dataset:
        options = {"transform": grid.transform, "height": grid.height}
        options |= {"width": grid.width, "crs": grid.crs, "nodata": -1}
        with WarpedVRT(dataset, resampling=1, **options) as warped:
            expected = warped.read(1)
    inner = pixels.valid & (expected > 2) & (expected < 87)
    assert inner.mean() > 0.7
    np.testing.assert_allclose(pixels.values[inner, 0], expected[inner], atol=1)
    column = pixels.values[:, grid.width // 2, 0][inner[:, grid.width // 2]]
    _, height = measure_pixel(scene.image.native_grid)
    assert np.diff(column).mean() == pytest.approx(12 / height, rel=0.02)


def test_a_geographic_scene_at_the_model_s_gsd_is_what_it_was_trained_on(write, card):
    where = Affine(1e-4, 0, -97.7, 0, -1e-4, 46.9)
    request = write(draw(), crs="EPSG:4326", transform=where)
    trained = card.model_copy(
        update={"gsd_m": fit_scene(request, card).image.native_grid.gsd_m * 1.005}
    )
    assert not fit_scene(request, trained).image.is_resampled


def test_a_geographic_scene_with_a_bad_latitude_is_refused(write, card):
    where = Affine(1e-4, 0, -97.7, 0, -1e-4, 96.9)
    with pytest.raises(DataError, match="latitude"):
        fit_scene(write(draw(), crs="EPSG:4326", transform=where), card)


def test_scale_multiplies_what_the_file_says_its_values_are(write, card):
    values = draw()
    plain, scaled = write(values, "plain"), write(values, "scaled", nodata=7)
    with rasterio.open(scaled.files[0], "r+") as dataset:
        dataset.scales, dataset.offsets = [1e-4] * 4, [-0.1] * 4
    found = read(fit_scene(plain, card, scale=0.5)).values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values * 0.5)
    scene = fit_scene(scaled, card, scale=10_000)
    pixels = read(scene)
    np.testing.assert_array_equal(pixels.valid, (values != 7).all(axis=-1))
    expected = values[pixels.valid].astype("float64") - 1000
    np.testing.assert_allclose(pixels.values[pixels.valid], expected, atol=0.01)
    unscaled = read(fit_scene(scaled, card))
    expected = values[unscaled.valid] * 1e-4 - 0.1
    np.testing.assert_allclose(unscaled.values[unscaled.valid], expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(write, card, scale):
    with pytest.raises(UsageError, match="--scale"):
        fit_scene(write(draw()), card, scale=scale)


def test_a_missing_file_is_told_when_it_is_fitted(card, tmp_path):
    path = str(tmp_path / "missing.tif")
    with pytest.raises(DataFileNotFoundError, match="missing"):
        fit_scene(SceneRequest(name="missing", files=(path,)), card)
