"""Warnings where a scene is not what its model was trained on, and nowhere else."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from cropseg.errors import DataError
from cropseg.inference.scenes import sample
from cropseg.inference.scenes.drift import check_batch, check_scene
from cropseg.inference.scenes.mapped_scene import fit_scene
from cropseg.inference.scenes.sample import spread_windows
from cropseg.inference.scenes.scene_list import SceneRequest
from cropseg.sites.quantiles import QUANTILES

BANDS = ("blue", "green", "red", "nir")
PRAIRIE = Path(__file__).parents[3] / "shared" / "data" / "prairie"


def draw(height=360, width=420, *, seed=0):
    """Return reflectance x 10000 of fields of 20 pixels, (height, width, 4)."""
    rng = np.random.default_rng(seed)
    means = np.array([390.0, 700.0, 770.0, 2300.0])
    levels = np.exp(rng.normal(-0.1, [0.5, 0.4, 0.6, 0.4], (99, 99, 4)))
    fields = levels[np.ix_(np.arange(height) // 20, np.arange(width) // 20)]
    noise = np.exp(rng.normal(0, 0.05, (height, width, 4)))
    return (means * fields * noise).round()


def make_card(card, values, **changes):
    """Return a card that was trained on these values."""
    pixels = values.reshape(-1, values.shape[-1])
    quantiles = np.quantile(pixels, QUANTILES, axis=0).T
    return card.model_copy(
        update={
            "bands": BANDS,
            "gsd_m": 10.0,
            "band_mean": tuple(pixels.mean(axis=0).tolist()),
            "band_std": tuple(pixels.std(axis=0).tolist()),
            "band_quantiles": tuple(map(tuple, quantiles.tolist())),
            "nodata_fill": tuple(pixels.mean(axis=0).tolist()),
        }
        | changes
    )


@pytest.fixture
def card(seven_classes):
    return make_card(seven_classes, draw())


@pytest.fixture
def check(card, write_raster, tmp_path):
    """Return a function that writes values as a scene, and returns the warnings."""

    def check_values(values, *, card=card, gsd_m=10.0, **profile):
        where = Affine(gsd_m, 0, 600_005, 0, -gsd_m, 5_200_003)
        path = tmp_path / "scene.tif"
        write_raster(path, values.astype("float32"), **({"transform": where} | profile))
        request = SceneRequest(name="scene", files=(str(path),))
        return check_scene(fit_scene(request, card))

    return check_values


@pytest.mark.parametrize("size", [(360, 420), (64, 90), (20, 20), (9, 700)])
def test_other_fields_of_the_same_kind_do_not_warn(check, size):
    assert check(draw(*size, seed=1)) == ()


@pytest.mark.parametrize("gain", [0.7, 1.4])
def test_another_light_does_not_warn(check, gain):
    assert check(draw(seed=1) * gain) == ()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda v: v / 10_000, "about 0.0001 times .* Try --scale 10000"),
        (lambda v: v / 10_000 * 255, "about 0.0255 times .* Try --scale 39.22"),
        (lambda v: v * 10, "about 10 times .* Try --scale 0.1"),
        (lambda v: v + 1000, "about 1000 higher .* gdal_edit.py -offset -1000"),
        (lambda v: (v / 10_000 + 0.2) / 2.75e-5, "Landsat .* gdal_edit.py -scale"),
    ],
)
@pytest.mark.parametrize("size", [(360, 420), (100, 120)])
def test_other_units_are_told_with_what_brings_them_back(check, change, cause, size):
    (warning,) = check(change(draw(*size, seed=1)))
    assert warning.startswith("The scene does not look like what the model")
    assert re.search(cause, warning[warning.index("The values") :])


def test_a_warning_has_what_was_found_and_what_was_expected(check, card):
    values = draw(seed=1) / 10_000
    (warning,) = check(values)
    for index, band in enumerate(BANDS):
        found = f"{np.median(values[..., index]):.1g}"[:-1]
        low, high = (card.band_quantiles[index][end] for end in (0, -1))
        assert f"{band} {found}" in warning
        assert f"({low:.4g} to {high:.4g})" in warning


def test_scale_takes_the_warning_away(check, card, tmp_path):
    assert check(draw(seed=1) / 10_000)
    request = SceneRequest(name="scene", files=(str(tmp_path / "scene.tif"),))
    assert check_scene(fit_scene(request, card, scale=10_000)) == ()


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([2, 1, 0, 3], "red, blue look like blue, red"),
        ([3, 1, 2, 0], "nir, blue look like blue, nir"),
    ],
)
def test_bands_that_changed_places_are_named(check, order, said):
    (warning,) = check(draw(seed=1)[..., order])
    assert said in warning
    assert "(blue, green, red, nir) with gdal_translate -b" in warning
    assert "green " not in warning.partition("Bands seem")[0]
    assert check(draw(seed=1)[..., order], descriptions=[BANDS[i] for i in order]) == ()


def test_a_small_scene_is_not_judged_by_the_order_of_its_bands(check):
    assert check(draw(100, 100, seed=1)[..., [2, 1, 0, 3]]) == ()


def test_one_band_that_is_quite_different_is_told(check, card):
    quantiles = (*card.band_quantiles[:3], (1000.0, 1500.0, 1800.0, 2000.0, 2400.0))
    values = draw(seed=1)
    values[..., 3] = values[..., 3] / 8 + 3000  # hardly any contrast, and bright
    (warning,) = check(
        values, card=card.model_copy(update={"band_quantiles": quantiles})
    )
    assert "nir 3" in warning
    assert "blue 3" not in warning
    assert "No factor, offset or order" in warning


def test_nodata_that_is_not_declared_is_told(check):
    values = draw(seed=1)
    values[:, 200:] = 0
    (warning,) = check(values)
    assert "are 0 in all bands" in warning
    assert "-a_nodata 0" in warning
    assert 0.4 < int(re.findall(r"(\d+)%", warning)[0]) / 100 < 0.65
    assert check(values, nodata=0) == ()


def test_a_model_that_was_trained_with_zeros_expects_them(check, seven_classes):
    values = draw(seed=1)
    values[:, 200:] = 0
    assert check(values, card=make_card(seven_classes, values)) == ()


def test_a_scene_without_data_says_nothing(check):
    assert check(np.full((300, 400, 4), -1.0), nodata=-1) == ()


def test_a_scene_that_is_mostly_empty_is_looked_at_twice(check, monkeypatch):
    values = np.full((2000, 2000, 4), -1.0)
    values[160:1000, 160:260] = draw(840, 100, seed=1) / 10_000
    profile = {"nodata": -1, "compress": "deflate", "tiled": True}
    (warning,) = check(values, **profile)
    assert "--scale 10000" in warning
    monkeypatch.setattr(sample, "_SIDES", (6,))
    assert check(values, **profile) == ()


def test_small_scenes_are_judged_together(card, write_raster, tmp_path):
    def open_scenes(change):
        for index in range(30):
            values = change(draw(100, 100, seed=index)).astype("float32")
            path = tmp_path / f"{index}.tif"
            where = Affine(10, 0, 600_005, 0, -10, 5_200_003)
            write_raster(path, values, transform=where)
            request = SceneRequest(name=str(index), files=(str(path),))
            yield fit_scene(request, card)

    assert check_batch([]) == ()
    assert check_batch(list(open_scenes(lambda v: v))) == ()
    scenes = list(open_scenes(lambda v: v[..., [2, 1, 0, 3]]))
    assert check_scene(scenes[0]) == ()
    (warning,) = check_batch(scenes)
    assert "The batch of 30 scenes" in warning
    assert "red, blue look like blue, red" in warning


def test_a_scene_coarser_than_the_model_is_told(check):
    (warning,) = check(draw(60, 84, seed=1), gsd_m=30.0)
    assert "pixels of 30 m, and the model was trained at 10 m" in warning
    assert check(draw(60, 84, seed=1), gsd_m=14.0) == ()


def test_a_model_that_only_knows_means_is_judged_by_them(check, card):
    plain = card.model_copy(update={"band_quantiles": None})
    assert check(draw(seed=1), card=plain) == ()
    (warning,) = check(draw(seed=1) / 10_000, card=plain)
    assert "--scale 10000" in warning


def test_a_model_that_divides_by_255_says_nothing(check, card):
    update = {"band_quantiles": None, "band_mean": (0.0,) * 4, "band_std": (255.0,) * 4}
    assert check(draw(seed=1) * 99, card=card.model_copy(update=update)) == ()


@pytest.mark.parametrize("num_flat", [1, 4])
def test_a_band_that_was_the_same_everywhere_in_training_stops_nothing(
    check, seven_classes, num_flat
):
    values = draw()
    values[..., :num_flat] = 1.0
    (warning,) = check(draw(seed=1) / 10_000, card=make_card(seven_classes, values))
    assert ("--scale 10000" in warning) == (num_flat == 1)


def test_derived_bands_do_not_hide_a_factor(check, seven_classes):
    values = draw()
    card = make_card(seven_classes, values)
    ndvi = (values[..., 3] - values[..., 2]) / (values[..., 3] + values[..., 2])
    with_ndvi = make_card(
        seven_classes,
        np.concatenate([values, ndvi[..., None]], axis=-1),
        bands=(*BANDS, "ndvi"),
        derived={"ndvi": "(nir - red) / (nir + red)"},
    )
    assert card.bands == BANDS
    assert check(draw(seed=1), card=with_ndvi) == ()
    (warning,) = check(draw(seed=1) / 10_000, card=with_ndvi)
    assert "--scale 10000" in warning
    assert "ndvi" not in warning.partition("The values")[0]


def test_the_same_scene_warns_alike(check):
    values = draw(seed=1) * 0.05
    assert check(values) == check(values)


def test_a_damaged_scene_is_an_error(check, card, tmp_path):
    check(draw(seed=1), compress="deflate")
    path = tmp_path / "scene.tif"
    request = SceneRequest(name="scene", files=(str(path),))
    scene = fit_scene(request, card)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut short"):
        check_scene(scene)


@pytest.mark.parametrize(
    "profile",
    [{"tiled": True, "blockxsize": 512, "blockysize": 512}, {"blockysize": 1}],
)
def test_a_large_scene_is_looked_at_in_few_and_cheap_windows(card, tmp_path, profile):
    path = tmp_path / "large.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=6000,
        width=20_000,
        count=4,
        dtype="uint16",
        crs="EPSG:32614",
        transform=Affine(10, 0, 600_005, 0, -10, 5_200_003),
        sparse_ok=True,
        **profile,
    ):
        pass
    request = SceneRequest(name="large", files=(str(path),))
    scene = fit_scene(request, card)
    windows = list(spread_windows(scene, 6))
    assert 16 <= len(windows) <= 36
    assert {(w.height, w.width) for w in windows} == {(64, 64)}
    assert {w.row % 64 for w in windows} == {w.col % 64 for w in windows} == {0}
    started = time.process_time()
    check_scene(scene)
    assert time.process_time() - started < 2  # a tenth of it on an idle machine


@pytest.mark.skipif(
    not PRAIRIE.is_dir(), reason=f"the prairie pair is not in {PRAIRIE}"
)
@pytest.mark.parametrize("source", [1, 2])
def test_the_prairie_areas_do_not_warn_of_each_other(seven_classes, source):
    with rasterio.open(PRAIRIE / f"rural_area_{source}.tif") as dataset:
        names = dataset.descriptions
        pixels = dataset.read(masked=True)
    values = pixels.reshape(7, -1).T[~pixels.mask.any(axis=0).ravel()].data
    card = make_card(seven_classes, values, bands=tuple(map(str, range(7))), gsd_m=30.0)
    assert len(names) == 7
    for area in (1, 2):
        path = PRAIRIE / f"rural_area_{area}.tif"
        request = SceneRequest(name=path.stem, files=(str(path),), bands=card.bands)
        assert check_scene(fit_scene(request, card)) == ()
