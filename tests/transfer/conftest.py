"""Two small sites, and a model of the first one for all modes to start from."""

from __future__ import annotations

import pytest

from cropseg.sites.site import open_site

SETTINGS = {"batch_size": 2, "epochs": 1, "steps_per_epoch": 3}


@pytest.fixture(scope="session")
def settings():
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def area_1(make_site, tmp_path_factory):
    return open_site(make_site(tmp_path_factory.mktemp("sites") / "area_1"))


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
def source_path(area_1, tmp_path_factory):
    from cropseg.training.train import train_site

    folder = tmp_path_factory.mktemp("runs") / "area_1"
    given = SETTINGS | {"encoder": "classic_tiny", "tile_size": 32, "seed": 5}
    return train_site(area_1, out_dir=folder, **given).model_path


@pytest.fixture(scope="session")
def source(source_path):
    from cropseg.models.bundle import load_bundle

    return load_bundle(source_path)
