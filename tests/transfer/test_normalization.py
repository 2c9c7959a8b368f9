"""Normalisation of a transfer: of area 1, of area 2, or matched by quantiles."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.card import read_card
from cropseg.sites.quantiles import measure_quantiles
from cropseg.sites.site import open_site
from cropseg.sites.statistics import survey_site
from cropseg.transfer.normalization import choose_statistics

BANDS = ("coastal", "swir1", "nir", "red", "green", "blue")


@pytest.fixture(scope="module")
def brighter(make_site, tmp_path_factory):
    """Return area 1 through another sensor: every value times 1.5."""
    folder = tmp_path_factory.mktemp("sites") / "brighter"
    return open_site(make_site(folder, bands=BANDS[::-1][:5], seed=0, gain=1.5))


@pytest.fixture(scope="module")
def card(source_path, area_1):
    quantiles = measure_quantiles(area_1, 32)
    return read_card(source_path).model_copy(update={"band_quantiles": quantiles})


def test_by_default_the_numbers_are_those_of_the_source(card, area_2):
    site = area_2.select_bands(card.bands)

    found = choose_statistics("source", card, site, 32)

    assert found.mean == card.band_mean
    assert found.std == card.band_std


def test_a_band_that_the_source_does_not_have_has_the_numbers_of_the_site(card, area_2):
    site = area_2.select_bands(("nir", "coastal"))
    assert "coastal" not in card.bands
    own = survey_site(site, 32).bands

    found = choose_statistics("source", card, site, 32)

    assert found.mean == (card.band_mean[card.bands.index("nir")], own.mean[1])


def test_target_takes_those_of_the_site(card, area_2):
    site = area_2.select_bands(card.bands)

    found = choose_statistics("target", card, site, 32)

    assert found == survey_site(site, 32).bands
    assert found.mean != card.band_mean


def test_match_brings_median_and_quartiles_to_those_of_the_source(
    card, area_1, brighter
):
    site = brighter.select_bands(card.bands)

    found = choose_statistics("match", card, site, 32)

    theirs = np.array(measure_quantiles(area_1, 32)).T[1:4]
    ours = np.array(measure_quantiles(site, 32)).T[1:4]
    there = (theirs - card.band_mean) / card.band_std
    here = (ours - found.mean) / found.std
    np.testing.assert_allclose(here[1], there[1], atol=1e-9)
    np.testing.assert_allclose(here[2] - here[0], there[2] - there[0], atol=1e-9)


def test_match_without_quantiles_says_what_to_do(card, area_2):
    bare = card.model_copy(update={"band_quantiles": None})

    with pytest.raises(ModelError, match="does not have"):
        choose_statistics("match", bare, area_2.select_bands(card.bands), 32)
