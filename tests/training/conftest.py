"""One short training of area 1 that many tests look at."""

from __future__ import annotations

import pytest

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
    """Return the settings of a short training, in place of those of a transfer."""
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def trained_run(area_1, tmp_path_factory):
    from cropseg.training.train import train_site

    return train_site(
        area_1, out_dir=tmp_path_factory.mktemp("runs") / "area_1", **SETTINGS
    )
