"""A model with random weights that fits a made-up site, and fast stand-ins for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cropseg.inference.engine import stream_in_batches
from cropseg.models.bundle import Bundle, load_bundle, save_bundle
from cropseg.models.card import CardClass, Lineage
from cropseg.sites.site import Site, open_site


@pytest.fixture(scope="session")
def site(make_site: Callable[..., Path], tmp_path_factory) -> Site:
    """Two scenes of 67 x 103 pixels, 5 bands and 4 classes, cut by regions."""
    folder = tmp_path_factory.mktemp("site") / "area_1"
    return open_site(
        make_site(folder, height=67, width=103, num_scenes=2, split="regions")
    )


@pytest.fixture(scope="session")
def model_path(
    site: Site, build_bundle: Callable[..., Bundle], tmp_path_factory
) -> Path:
    """A saved `classic_tiny` of the site's bands and classes, with random weights."""
    scene = site.scenes[0]
    with site.open_scene(scene) as reader:
        pixels = reader.read_pixels(scene.grid.window)
    values = pixels.values[pixels.valid].astype("float64")
    built = build_bundle(
        mean=values.mean(axis=0).tolist(),
        std=values.std(axis=0).tolist(),
        seed=3,
        site=site.name,
        classes=tuple(
            CardClass(name=item.name, color=item.color, train_pixels=9)
            for item in site.classes.classes
        ),
        bands=site.bands,
        gsd_m=site.gsd_m,
        lineage=Lineage(mode="train"),
        fingerprint=site.fingerprint,
    )
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_bundle(built.model, built.card, path)
    return path


@pytest.fixture(scope="session")
def bundle(model_path: Path) -> Bundle:
    """The same, loaded."""
    return load_bundle(model_path)


class ThresholdEngine:
    """Predicts from the mean of a square around each pixel: no network, exact."""

    def __init__(self, *, batch_size: int = 2, radius: int = 0) -> None:
        self.batch_size = batch_size
        self.radius = radius
        self.batches: list[int] = []
        self.tiles: list[np.ndarray] = []

    name = "threshold"
    precision = "float32"

    @property
    def card(self):
        return SimpleNamespace(nodata_fill=0)

    def stream(self, tiles):
        return stream_in_batches(self.predict, tiles, batch_size=self.batch_size)

    def predict(self, tiles):
        self.batches.append(len(tiles))
        self.tiles += tiles
        return np.stack([self.predict_one(tile) for tile in tiles])

    def predict_one(self, tile):
        """Return one of seven classes for each pixel, as probabilities."""
        reach = range(-self.radius, self.radius + 1)
        band = tile[..., 0].astype("int64")
        total = sum(np.roll(band, (dy, 2 * dx), (0, 1)) for dy in reach for dx in reach)
        return np.eye(7, dtype="float32")[total % 7]


@pytest.fixture
def make_engine() -> type[ThresholdEngine]:
    """An engine that needs no Keras; see `ThresholdEngine`."""
    return ThresholdEngine
