"""The two made-up areas: what is written, what they hold, what they are good for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from cropseg.demo.areas import write_areas
from cropseg.demo.crops import (
    AREA_1,
    AREA_2,
    GRASSLAND,
    MAIZE,
    POTATOES,
    TREES,
    WHEAT,
    Area,
    Crop,
)
from cropseg.demo.farmland import Farmland, draw_farmland
from cropseg.errors import ResourceError, UsageError
from cropseg.sites.classes import IGNORE
from cropseg.sites.manifest import read_manifest
from cropseg.sites.site import open_site

SIZE_PX = 256
SEEDS = (0, 1, 2)
AREAS = (AREA_1, AREA_2)


@pytest.fixture(scope="module", params=SEEDS)
def manifest_paths(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    out_dir = tmp_path_factory.mktemp(f"seed_{request.param}")
    return write_areas(out_dir, seed=request.param, size_px=SIZE_PX)


@pytest.fixture(scope="module", params=AREAS, ids=lambda area: area.name)
def farmland(request: pytest.FixtureRequest) -> tuple[Area, Farmland]:
    rng = np.random.default_rng(3)
    area = request.param
    return area, draw_farmland(area, height_px=512, width_px=640, rng=rng)


def read_pixels(path: Path) -> NDArray[np.generic]:
    with rasterio.open(path) as raster:
        return np.asarray(raster.read())


def read_labels(manifest_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return class ids and validity of a whole area, as cropseg reads them."""
    site = replace(open_site(manifest_path), split=None)
    with site.open_scene(site.scenes[0]) as reader:
        window = site.scenes[0].grid.window
        return reader.read_labels(window), reader.read_pixels(window).valid


def find_value(area: Area, crop: Crop) -> int:
    return [growth.crop for growth in area.growths].index(crop) + 1


def list_files(out_dir: Path) -> dict[str, bytes]:
    files = (path for path in out_dir.rglob("*") if path.is_file())
    return {str(path.relative_to(out_dir)): path.read_bytes() for path in files}


def test_equal_seeds_write_equal_files(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in "abc")
    write_areas(first, seed=5, size_px=SIZE_PX)
    write_areas(second, seed=5, size_px=SIZE_PX)
    write_areas(other, seed=6, size_px=SIZE_PX)
    files = list_files(first)
    assert set(files) == {
        *(f"area_1/{name}" for name in ("scene.tif", "labels.tif", "manifest.yaml")),
        *(f"area_2/{name}" for name in ("scene.tif", "fields.gpkg", "manifest.yaml")),
    }
    # A GeoPackage holds the time at which it was written.
    fields = [geopandas.read_file(d / "area_2/fields.gpkg") for d in (first, second)]
    assert fields[0].equals(fields[1])
    del files["area_2/fields.gpkg"]
    again = list_files(second)
    assert all(again[name] == content for name, content in files.items())
    assert all(
        list_files(other)[name] != content
        for name, content in files.items()
        if name.endswith(".tif")
    )


def test_rasters_are_georeferenced_tiled_and_named(
    manifest_paths: tuple[Path, Path],
) -> None:
    corners = []
    for manifest_path, gsd_m in zip(manifest_paths, (0.5, 0.4), strict=True):
        with rasterio.open(manifest_path.with_name("scene.tif")) as scene:
            assert scene.crs.to_epsg() == 32633
            size = (SIZE_PX * 0.5 / gsd_m, (SIZE_PX + 128) * 0.5 / gsd_m)
            assert (scene.height, scene.width) == size
            assert scene.transform[:6][::4] == (gsd_m, -gsd_m)
            assert scene.dtypes == ("uint16",) * 4
            assert scene.descriptions == ("blue", "green", "red", "nir")
            assert scene.nodata == 0
            assert scene.profile["tiled"]
            assert scene.compression.name == "deflate"
            grid = (scene.crs, scene.transform, scene.shape)
            corners.append(np.array([scene.bounds.left, scene.bounds.top]))
        if gsd_m != 0.5:
            continue
        with rasterio.open(manifest_path.with_name("labels.tif")) as labels:
            assert (labels.crs, labels.transform, labels.shape) == grid
            assert labels.dtypes == ("uint8",)
            colors = labels.colormap(1)
        for entry in yaml.safe_load(manifest_path.read_text())["classes"]:
            (value,) = entry["values"]
            assert "#" + bytes(colors[value][:3]).hex() == entry["color"]
    assert 15_000 < np.hypot(*(corners[1] - corners[0])) < 25_000
    assert not np.any(np.array(corners) % 64)  # blocks of the split start here


def test_manifests_are_valid_and_name_every_label_value(
    manifest_paths: tuple[Path, Path],
) -> None:
    for manifest_path in manifest_paths:
        manifest = read_manifest(manifest_path)
        assert manifest.bands == ("blue", "green", "red", "nir")
        named = {value for entry in manifest.classes for value in entry.values}
        assert manifest.split is not None
        assert manifest.split.block_m == 64
        if manifest_path.parent.name == "area_2":
            fields = geopandas.read_file(manifest_path.with_name("fields.gpkg"))
            assert fields.crs.to_epsg() == 4326
            assert set(fields["crop"]) == named
            continue
        assert manifest.ignore == (0,)
        labels = read_pixels(manifest_path.with_name("labels.tif"))
        assert set(np.unique(labels).tolist()) == {0, *named}


def test_every_class_has_half_a_percent_of_the_pixels(
    manifest_paths: tuple[Path, Path],
) -> None:
    for manifest_path in manifest_paths:
        labels, _ = read_labels(manifest_path)
        shares = np.bincount(labels[labels != IGNORE], minlength=7) / labels.size
        assert len(shares) == 7
        assert shares.min() >= 0.005


def test_nodata_is_a_small_part_without_labels(
    manifest_paths: tuple[Path, Path],
) -> None:
    missing = []
    for manifest_path in manifest_paths:
        scene = read_pixels(manifest_path.with_name("scene.tif"))
        assert np.array_equal((scene == 0).any(axis=0), (scene == 0).all(axis=0))
        labels, valid = read_labels(manifest_path)
        missing.append(~valid)
        assert 0.02 < missing[-1].mean() < 0.12
        # At the edge, a pixel of the label grid may hold a bit of both.
        assert (labels[missing[-1]] == IGNORE).mean() > 0.99
    assert (missing[0] & missing[1]).mean() < 0.01


def test_area_2_lacks_one_crop_and_has_a_new_one(
    manifest_paths: tuple[Path, Path],
) -> None:
    first, second = (
        {entry.name: entry for entry in read_manifest(path).classes}
        for path in manifest_paths
    )
    assert set(first) - set(second) == {"rapeseed"}
    assert set(second) - set(first) == {"sunflower"}
    # Classes have to be matched by name: the same value means something else.
    assert any(first[n].values != second[n].values for n in set(first) & set(second))


@pytest.mark.parametrize(
    ("crop", "row_px"), [(MAIZE, 6), (POTATOES, 4)], ids=lambda value: str(value)[:20]
)
def test_rows_repeat_at_the_distance_of_their_crop(
    farmland: tuple[Area, Farmland], crop: Crop, row_px: float
) -> None:
    area, drawn = farmland
    is_crop = drawn.labels == find_value(area, crop)
    red = drawn.image[..., 2].astype(float)
    size = 24
    taper = np.outer(np.hanning(size), np.hanning(size))
    cycles = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    peaks = []
    for row, column in itertools.product(range(0, 488, 12), range(0, 616, 12)):
        window = np.s_[row : row + size, column : column + size]
        if is_crop[window].all():
            tile = red[window] - red[window].mean()
            power = np.abs(np.fft.fft2(tile * taper))
            power[cycles < 0.1] = 0  # slow changes of the ground are no rows
            peaks.append(cycles.flat[power.argmax()])
    assert len(peaks) > 20
    assert np.median(peaks) == pytest.approx(1 / row_px, abs=0.025)


def test_shadows_fall_away_from_the_sun(farmland: tuple[Area, Farmland]) -> None:
    area, drawn = farmland
    trees = drawn.labels == find_value(area, TREES)
    azimuth = np.deg2rad(area.sun_azimuth_deg)
    flat = np.isin(drawn.labels, [find_value(area, c) for c in (WHEAT, GRASSLAND)])

    def measure_brightness(towards_sun: int) -> float:
        step = np.rint(4 * towards_sun * np.array([-np.cos(azimuth), np.sin(azimuth)]))
        beside = np.roll(trees, step.astype(int), axis=(0, 1)) & flat
        return float(drawn.image[beside].mean())

    assert measure_brightness(-1) < 0.85 * measure_brightness(+1)


def test_texture_tells_more_than_a_pixel(farmland: tuple[Area, Farmland]) -> None:
    _, drawn = farmland
    pixels = drawn.image.astype(np.float32)
    detail = pixels[..., 2] / pixels.mean(axis=-1).clip(1)
    textures = [
        ndimage.gaussian_filter((detail - ndimage.gaussian_filter(detail, s)) ** 2, 6)
        for s in (1, 2, 4, 8)
    ]
    rows, columns = np.nonzero(drawn.labels)
    block = (rows // 128 + columns // 128) % 2
    rng = np.random.default_rng(0)
    train, test = (rng.choice(np.flatnonzero(block == part), 4000) for part in (0, 1))
    scores = []
    for features in (pixels, np.stack([*np.moveaxis(pixels, -1, 0), *textures], -1)):
        samples, truth = features[rows, columns], drawn.labels[rows, columns]
        forest = RandomForestClassifier(40, min_samples_leaf=5, random_state=0)
        forest.fit(samples[train], truth[train])
        scores.append(float((forest.predict(samples[test]) == truth[test]).mean()))
    assert scores[0] < 0.72
    assert scores[1] > scores[0] + 0.1


@pytest.mark.parametrize(
    ("seed", "size_px", "name"), [(-1, 256, "seed"), (0, 300, "size"), (0, 128, "size")]
)
def test_impossible_values_are_refused_by_name(
    tmp_path: Path, seed: int, size_px: int, name: str
) -> None:
    with pytest.raises(UsageError, match=f"`{name}"):
        write_areas(tmp_path / "areas", seed=seed, size_px=size_px)
    assert not (tmp_path / "areas").exists()


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="Choose a folder"):
        write_areas(tmp_path / "file", seed=0, size_px=SIZE_PX)
