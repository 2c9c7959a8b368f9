"""Does a model fit a site? Bands, GSD and names, as the options have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cropseg.errors import ModelError, UsageError
from cropseg.models.card import read_card
from cropseg.sites.resample import resample_site
from cropseg.sites.site import match_classes, open_site
from cropseg.transfer.target import ReuseOptions, fit_site, read_synonyms


@pytest.fixture(scope="module")
def card(source_path):
    return read_card(source_path)


@pytest.fixture
def open_area(make_site, tmp_path):
    return lambda **given: open_site(make_site(tmp_path / "area", **given))


def test_by_default_the_bands_of_the_model_are_read(card, area_2):
    assert fit_site(area_2, card, ReuseOptions()).bands == card.bands


def test_a_missing_band_is_an_error_that_names_the_way_out(card, open_area):
    site = open_area(bands=("nir", "red", "coastal"))

    with pytest.raises(ModelError, match="--bands-from site"):
        fit_site(site, card, ReuseOptions())


def test_the_bands_of_the_site_are_kept_where_that_is_asked_for(card, open_area):
    site = open_area(bands=("nir", "coastal", "red"))

    found = fit_site(site, card, ReuseOptions(bands_from="site"))

    assert found.bands == ("nir", "coastal", "red")


def test_no_shared_band_is_an_error(card, open_area):
    site = open_area(bands=("coastal", "swir2"))

    with pytest.raises(ModelError, match="None is shared"):
        fit_site(site, card, ReuseOptions(bands_from="site"))


def test_another_gsd_is_refused_accepted_or_resampled(card, open_area):
    site = open_area(xres=15.0, yres=12.0)

    with pytest.raises(ModelError, match="--resample-to-model"):
        fit_site(site, card, ReuseOptions())
    assert fit_site(site, card, ReuseOptions(gsd="accept")).gsd_m == site.gsd_m
    found = fit_site(site, card, ReuseOptions(gsd="resample"))
    assert found.gsd_m == pytest.approx(card.gsd_m, rel=0.01)


def test_a_resampled_site_is_that_of_a_manifest_with_gsd_m(make_site, tmp_path):
    plain = open_site(make_site(tmp_path / "a"))
    asked = open_site(make_site(tmp_path / "b", gsd_m=14.0))

    found = resample_site(plain, 14.0)

    assert found.scenes[0].grid == asked.scenes[0].grid
    assert found.fingerprint != plain.fingerprint
    window = found.scenes[0].grid.window
    values = []
    for site in (found, asked):
        with site.open_scene(site.scenes[0]) as reader:
            values.append(
                (reader.read_pixels(window).values, reader.read_labels(window))
            )
    np.testing.assert_array_equal(values[0][0], values[1][0])
    np.testing.assert_array_equal(values[0][1], values[1][1])


def test_synonyms_are_names_in_the_source(card, area_2, tmp_path):
    path = tmp_path / "names.yaml"
    path.write_text("corn: [wheat, grassland]\nwater: water\n")

    found = fit_site(area_2, card, ReuseOptions(synonyms=read_synonyms(path)))

    matches = match_classes(card.class_names, found.classes)
    assert matches["corn"] == ["wheat", "grassland"]
    assert matches["soybeans"] == ["soybeans"]


@pytest.mark.parametrize("text", ["[a, b]", "corn: 3", "corn: [1, 2]", "{", "- x"])
def test_a_table_of_names_that_is_none_is_told(tmp_path, text):
    path = tmp_path / "names.yaml"
    path.write_text(text)

    with pytest.raises(UsageError, match=r"names.yaml"):
        read_synonyms(path)


def test_synonyms_of_a_class_that_the_site_does_not_have_are_told(card, area_2):
    with pytest.raises(UsageError, match="rice"):
        fit_site(area_2, card, ReuseOptions(synonyms={"rice": ("wheat",)}))


@pytest.mark.parametrize(
    "given", [{"normalization": "zscore"}, {"gsd": "ignore"}, {"bands_from": "both"}]
)
def test_an_unknown_choice_is_told(given):
    with pytest.raises(UsageError, match="must be one of"):
        ReuseOptions(**given)


def test_what_differs_from_the_default_comes_back_from_json():
    options = ReuseOptions(
        normalization="target",
        synonyms={"wheat": ("spring wheat", "winter wheat")},
        imagenet_weights=Path("weights.h5"),
    )

    assert ReuseOptions.from_json(options.to_json()) == options
    assert ReuseOptions().to_json() == {}
