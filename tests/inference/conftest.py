"""A model with random weights that fits a made-up site, and fast stand-ins for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine

from cropseg.inference.engines.engine import stream_in_batches
from cropseg.inference.mapping import jobs
from cropseg.inference.mapping.jobs import SceneJob
from cropseg.inference.scenes.mapped_scene import fit_scene
from cropseg.inference.scenes.scene_list import SceneRequest
from cropseg.inference.tiles.tile_shape import TileShape
from cropseg.models.bundle import Bundle, load_bundle, save_bundle
from cropseg.models.card import Card, CardClass, Lineage
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

    def stream(self, tiles, *, margin=0):
        return stream_in_batches(
            self.predict, tiles, batch_size=self.batch_size, margin=margin
        )

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


@pytest.fixture(scope="session")
def make_card() -> Callable[..., Card]:
    """Return a function that makes the card of a model of one band."""

    def make(classes: tuple[CardClass, ...], **changes: Any) -> Card:
        given = {
            "site": "area_1",
            "classes": classes,
            "bands": ("red",),
            "gsd_m": 1.0,
            "architecture": "unet",
            "encoder": "classic_tiny",
            "tile_size": 32,
            "tile_multiple": 4,
            "band_mean": (0.0,),
            "band_std": (1.0,),
            "nodata_fill": (0.0,),
            "stages": (),
            "seed": 0,
            "lineage": Lineage(mode="train"),
            "fingerprint": "of the site",
            "weights_sha256": "of the weights",
            "versions": {},
        }
        return Card(**given | changes)

    return make


@pytest.fixture
def seven_classes(make_card) -> Card:
    """The card of `ThresholdEngine`: one band, seven classes, pixels of 1 m."""
    classes = tuple(
        CardClass(name=f"crop {i}", color=f"#{i:02x}a0{i:02x}", train_pixels=1)
        for i in range(7)
    )
    return make_card(classes)


@pytest.fixture
def make_job(seven_classes, write_raster, tmp_path) -> Callable[..., SceneJob]:
    """Return a function that writes a scene and returns its job.

    Values are random whole numbers. Those of the scene's name, by which a map is
    compared, can be had from `read_values`.
    """

    def make(name, height, width, *, gsd_m=1.0, holes=(), **options):
        seed = sum(map(ord, name))
        values = np.random.default_rng(seed).integers(1, 999, (height, width), "int16")
        for hole in holes:
            values[hole] = -1
        where = Affine(gsd_m, 0, 600_005, 0, -gsd_m, 5_200_003)
        path = tmp_path / "scenes" / f"{name}.tif"
        write_raster(path, values, nodata=-1, transform=where)
        options = {
            "shape": TileShape(size=32, context=8),
            "out_dir": tmp_path / "maps",
            "fingerprint": "0123456789ab",
        } | options
        request = SceneRequest(name=name, files=(str(path),))
        scene = fit_scene(request, seven_classes)
        return SceneJob(name=name, scene=scene, **options)

    return make


@pytest.fixture
def read_values() -> Callable[[SceneJob], np.ndarray]:
    """Return a function that reads the values of a job's scene, (height, width)."""

    def read(job):
        with rasterio.open(job.scene.image.path) as scene:
            return scene.read(1)

    return read


@pytest.fixture
def read_layer() -> Callable[..., np.ndarray]:
    """Return a function that reads what a finished file of a job stores."""

    def read(job, number=0):
        with rasterio.open(job.get_path(job.layers[number])) as found:
            return np.moveaxis(found.read(), 0, -1)

    return read


@pytest.fixture
def small_bands(monkeypatch) -> None:
    """Let a band have one row of tiles, so that tiny scenes have several."""
    monkeypatch.setattr(jobs, "BAND_PIXELS", 1)


@pytest.fixture(scope="session")
def convert_here():
    """Stands in for `engine_cache._convert`: converts in this process, in a second."""
    from cropseg.inference.engines import convert

    def run(model_path: Path, folder: Path) -> None:
        if not (folder / "network.xml").exists():
            assert convert.main(str(model_path), str(folder)) == 0

    return run


@pytest.fixture(scope="session")
def converted_path(model_path: Path, convert_here) -> Path:
    """The model of `model_path`, with its engine for OpenVINO kept beside it."""
    pytest.importorskip("openvino")
    from cropseg.inference.engines import engine_cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_cache, "_convert", convert_here)
        cache = engine_cache.open_openvino_cache(model_path)
        with engine_cache.open_network(cache):
            return model_path
