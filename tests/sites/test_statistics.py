"""The survey: counted again with rasterio and NumPy, and blind to the test."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from cropseg.errors import DataError
from cropseg.sites.scan import find_unnamed_labels
from cropseg.sites.site import open_site
from cropseg.sites.split import NO_PART, PARTS
from cropseg.sites.statistics import (
    require_trainable,
    survey_site,
)

TILE = 50
CLASS_VALUES = ([5], [22, 23], [176], [111])
GAPPED = {
    "block_m": 320,
    "gap_m": 60,
    "train": 0.6,
    "val": 0.2,
    "test": 0.2,
    "seed": 0,
}
OPTIONS = {
    "blocks": {},
    "gap": {"split": GAPPED},
    "regions": {"split": "regions"},
    "scenes": {"num_scenes": 2, "split": GAPPED},
    "rotated": {"degrees": 30},
    "south up": {"south_up": True},
    "NaN": {"dtype": "float32"},
}


def edit(path, change):
    """Change the values (bands, rows, columns) of a raster in place."""
    with rasterio.open(path, "r+") as dataset:
        values = dataset.read()
        change(values)
        dataset.write(values)


def read_scenes(site):
    """Read image, validity, label values and parts of every scene, whole."""
    for scene in site.scenes:
        with rasterio.open(scene.image_path) as dataset:
            image = np.moveaxis(dataset.read(), 0, -1)
            valid = dataset.read_masks().all(axis=0)
        with rasterio.open(scene.labels_path) as dataset:
            labels = dataset.read(1)
        yield image, valid, labels, site.split.read_parts(scene.grid, scene.grid.window)


@pytest.mark.parametrize("name", OPTIONS)
def test_class_pixels_equal_an_independent_count(tmp_path, make_site, name):
    site = open_site(make_site(tmp_path, **OPTIONS[name]))
    expected = np.zeros((3, 4), int)
    for _, valid, labels, parts in read_scenes(site):
        for part in range(3):
            for class_id, values in enumerate(CLASS_VALUES):
                chosen = np.isin(labels, values) & valid & (parts == part)
                expected[part, class_id] += chosen.sum()

    survey = survey_site(site, TILE)

    np.testing.assert_array_equal(survey.class_pixels, expected)
    assert (expected > 0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_band_statistics_equal_those_of_numpy_over_valid_training_pixels(
    tmp_path, make_site, name
):
    site = open_site(make_site(tmp_path, **OPTIONS[name]))
    pixels = np.concatenate(
        [
            image[valid & (parts == PARTS.index("train"))]
            for image, valid, _, parts in read_scenes(site)
        ]
    ).astype("float64")

    bands = survey_site(site, TILE).bands

    np.testing.assert_allclose(bands.mean, pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(bands.std, pixels.std(axis=0), rtol=1e-9)


def test_nothing_of_val_and_test_reaches_the_band_statistics(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split=GAPPED))
    before = survey_site(site, TILE)
    ((_, valid, _, parts),) = read_scenes(site)
    elsewhere = valid & (parts != PARTS.index("train"))
    assert (parts[valid] == NO_PART).any()

    def change(values):
        values[:, elsewhere] = 30_000

    edit(tmp_path / "scene_0.tif", change)

    after = survey_site(open_site(tmp_path / "site.yaml"), TILE)
    assert after is not before
    assert after.bands == before.bands


def test_training_pixels_do_reach_the_band_statistics(tmp_path, make_site):
    site = open_site(make_site(tmp_path))
    before = survey_site(site, TILE)
    ((_, valid, _, parts),) = read_scenes(site)

    def change(values):
        values[:, valid & (parts == PARTS.index("train"))] += 100

    edit(tmp_path / "scene_0.tif", change)

    after = survey_site(site, TILE).bands
    assert after.mean == pytest.approx(np.array(before.bands.mean) + 100)
    assert after.std == pytest.approx(before.bands.std)


def test_statistics_stay_exact_for_large_values_with_a_small_spread(
    tmp_path, make_site
):
    site = open_site(make_site(tmp_path, dtype="float64"))

    def change(values):
        values /= 4000
        values += 1e7

    edit(tmp_path / "scene_0.tif", change)
    ((image, valid, _, parts),) = read_scenes(site)
    train = image[valid & (parts == PARTS.index("train"))]

    bands = survey_site(site, TILE).bands

    np.testing.assert_allclose(bands.std, train.std(axis=0), rtol=1e-6)


def test_a_constant_band_has_a_spread_of_one(tmp_path, make_site):
    site = open_site(make_site(tmp_path))

    def change(values):
        values[2][values[2] != -9999] = 77

    edit(tmp_path / "scene_0.tif", change)

    bands = survey_site(site, TILE).bands
    assert (bands.mean[2], bands.std[2]) == (77, 1)


@pytest.mark.parametrize("name", OPTIONS)
def test_label_pixels_of_train_and_test_are_disjoint(tmp_path, make_site, name):
    site = open_site(make_site(tmp_path, **OPTIONS[name]))
    places = {"train": set(), "test": set()}
    for scene, (_, valid, labels, parts) in zip(
        site.scenes, read_scenes(site), strict=True
    ):
        x, y = scene.grid.locate_pixels(scene.grid.window)
        for part, found in places.items():
            chosen = valid & (labels != 0) & (parts == PARTS.index(part))
            found.update(zip(x[chosen].round(2), y[chosen].round(2), strict=True))

    survey = survey_site(site, TILE)

    assert not places["train"] & places["test"]
    for part, found in places.items():
        assert survey.class_pixels[PARTS.index(part)].sum() == len(found) > 0


def test_tiles_hold_all_training_labels_once(tmp_path, make_site):
    site = open_site(make_site(tmp_path, num_scenes=2))

    survey = survey_site(site, TILE)

    counted = np.sum([tile.train_pixels for tile in survey.tiles], axis=0)
    np.testing.assert_array_equal(counted, survey.class_pixels[0])
    places = {(tile.scene, tile.window) for tile in survey.tiles}
    assert len(places) == len(survey.tiles)
    assert {scene for scene, _ in places} == {0, 1}
    assert all(window.height == window.width == TILE for _, window in places)


def test_the_nodata_stripe_is_the_nodata_share(tmp_path, make_site):
    survey = survey_site(open_site(make_site(tmp_path)), TILE)

    assert survey.num_pixels == 192 * 256
    assert survey.nodata_share == pytest.approx(7 / 256)


def test_counts_do_not_depend_on_the_tile_size(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split=GAPPED))

    small, large = survey_site(site, 33), survey_site(site, 500)

    np.testing.assert_array_equal(small.class_pixels, large.class_pixels)
    assert small.bands.mean == pytest.approx(large.bands.mean)
    assert small.bands.std == pytest.approx(large.bands.std)


def test_labels_that_are_edited_are_surveyed_again(tmp_path, make_site):
    path = make_site(tmp_path)
    assert survey_site(open_site(path), TILE).class_pixels[:, 0].all()

    def change(values):
        values[values == 5] = 0

    edit(tmp_path / "scene_0_labels.tif", change)

    assert not survey_site(open_site(path), TILE).class_pixels[:, 0].any()


def test_unnamed_labels_of_all_scenes_are_listed(tmp_path, make_site):
    site = open_site(make_site(tmp_path, num_scenes=2, split="regions"))

    def change(values):
        values[0, 3, 5:9] = 81

    for index in range(2):
        edit(tmp_path / f"scene_{index}_labels.tif", change)

    assert len(find_unnamed_labels(site)) == 2
    with pytest.raises(DataError) as error:
        survey_site(site, TILE)
    for name in ("scene_0_labels.tif", "scene_1_labels.tif", "81 (4 pixels)"):
        assert name in str(error.value)


def test_a_site_without_labels_is_not_blamed_on_its_blocks(tmp_path, make_site):
    path = make_site(tmp_path)
    path.write_text(path.read_text().replace("labels: scene_0_labels.tif", "name: a"))
    site = open_site(path)

    with pytest.raises(DataError, match=r"No part of .* has a labelled pixel") as error:
        require_trainable(site, survey_site(site, TILE))

    assert "`labels`" in str(error.value)
    assert "block_m" not in str(error.value)


@pytest.mark.parametrize(
    ("shares", "part"), [((0, 0.5, 0.5), "train"), ((0.8, 0.2, 0), "test")]
)
def test_an_empty_part_is_an_error(tmp_path, make_site, shares, part):
    split = {"block_m": 320, **dict(zip(PARTS, shares, strict=True))}
    site = open_site(make_site(tmp_path, split=split))
    survey = survey_site(site, TILE)

    with pytest.raises(DataError, match=f"The {part} part has no labelled pixel"):
        require_trainable(site, survey)

    assert (survey.bands is None) == (part == "train")


def test_a_class_without_a_training_pixel_is_an_error(tmp_path, make_site):
    site = open_site(make_site(tmp_path))
    ((_, _, _, parts),) = read_scenes(site)

    def change(values):
        values[(values == 176) & (parts == PARTS.index("train"))] = 0

    edit(tmp_path / "scene_0_labels.tif", change)

    with pytest.raises(DataError, match=r"No training pixel of grassland\."):
        require_trainable(site, survey_site(site, TILE))


def test_an_empty_val_part_is_no_error(tmp_path, make_site):
    split = {"block_m": 320, "train": 0.6, "val": 0, "test": 0.4}
    site = open_site(make_site(tmp_path, split=split))
    survey = survey_site(site, TILE)

    require_trainable(site, survey)

    assert not survey.class_pixels[PARTS.index("val")].any()
