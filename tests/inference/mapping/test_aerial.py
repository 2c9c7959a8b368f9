"""A real orthophoto of 25 cm, mapped by a model of three bands of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
import rasterio
import yaml

from cropseg.demo.areas import write_areas
from cropseg.errors import ModelError
from cropseg.inference.mapping.predict import predict_scenes
from cropseg.models.bundle import save_bundle
from cropseg.models.card import CardClass, Lineage
from cropseg.sites.site import open_site
from cropseg.training.train import train_site

CLIP = Path(__file__).parents[4] / "shared" / "data" / "aerial_25cm" / "clip_1.tif"
LANDSAT = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIP.exists(), reason="../shared/data is not there"),
]


def test_a_model_of_three_bands_maps_an_orthophoto(tmp_path):
    manifest, _ = write_areas(tmp_path, seed=0, size_px=256)
    document = yaml.safe_load(manifest.read_text())
    stored = document["bands"]
    document["bands"] = ["red", "green", "blue"]
    document["scenes"] = [{**item, "bands": stored} for item in document["scenes"]]
    manifest.write_text(yaml.safe_dump(document))
    run = train_site(
        open_site(manifest),
        out_dir=tmp_path / "run",
        encoder="classic_tiny",
        tile_size=64,
        batch_size=2,
        epochs=1,
        steps_per_epoch=4,
    )

    maps = predict_scenes(run.model_path, [CLIP], out_dir=tmp_path / "maps")

    with rasterio.open(maps[0]) as found, rasterio.open(CLIP) as clip:
        assert found.shape == clip.shape
        assert found.transform == clip.transform
        assert found.crs == clip.crs
        assert (found.read(1) < len(document["classes"])).all()


def test_a_model_of_seven_bands_is_refused_with_their_names(tmp_path, build_bundle):
    built = build_bundle(
        mean=[1000.0] * 7,
        std=[500.0] * 7,
        seed=0,
        site="prairie",
        classes=(CardClass(name="corn", color="#ffd400", train_pixels=1),) * 2,
        bands=LANDSAT,
        gsd_m=0.25,
        lineage=Lineage(mode="train"),
        fingerprint="0",
    )
    save_bundle(built.model, built.card, tmp_path / "model.keras")

    with pytest.raises(ModelError, match=", ".join(LANDSAT)) as caught:
        predict_scenes(tmp_path / "model.keras", [CLIP], out_dir=tmp_path / "maps")

    assert "has 3 bands (red, green, blue)" in str(caught.value)
    assert not (tmp_path / "maps").exists()
