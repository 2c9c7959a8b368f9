"""A second small site, and the model of the first one, loaded."""

from __future__ import annotations

import pytest

from cropseg.sites.site import open_site


@pytest.fixture(scope="session")
def area_2(make_site, tmp_path_factory):
    """Return a site with other bands first, another class order, and a new class."""
    return open_site(
        make_site(
            tmp_path_factory.mktemp("sites") / "area_2",
            bands=("coastal", "swir1", "nir", "red", "green", "blue"),
            class_names=("corn", "water", "soybeans"),
            seed=1,
        )
    )


@pytest.fixture(scope="session")
def source(source_path):
    from cropseg.models.bundle import load_bundle

    return load_bundle(source_path)
