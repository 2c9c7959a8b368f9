"""A small site, and one short training of it that many tests look at."""

from __future__ import annotations

import pytest

from cropseg.sites.site import open_site

SETTINGS = {
    "architecture": "unet",
    "encoder": "classic_tiny",
    "tile_size": 32,
    "batch_size": 2,
    "epochs": 2,
    "steps_per_epoch": 3,
}


@pytest.fixture(scope="session")
def settings():
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def area_1(make_site, tmp_path_factory):
    return open_site(make_site(tmp_path_factory.mktemp("sites") / "area_1"))


@pytest.fixture(scope="session")
def trained_run(area_1, tmp_path_factory):
    from cropseg.training.train import train_site

    return train_site(
        area_1, out_dir=tmp_path_factory.mktemp("runs") / "area_1", **SETTINGS
    )
