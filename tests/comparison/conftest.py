"""A target site, and stubs that stand for a model and for fitting one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from cropseg.comparison.design import Design
from cropseg.comparison.prepare import prepare_comparison
from cropseg.models.card import Card, CardClass, CardStage, Lineage
from cropseg.sites.site import open_site
from cropseg.transfer.source import Source


@pytest.fixture(scope="session")
def area_2(make_site, tmp_path_factory):
    return open_site(
        make_site(
            tmp_path_factory.mktemp("sites") / "area_2",
            class_names=("corn", "water", "soybeans"),
            seed=1,
        )
    )


class FakeFit:
    """Stands for `fit_model`: takes no time and remembers what it was given."""

    def __init__(self):
        self.jobs = []
        self.raises = {}
        """What to raise at which call, counted from 0."""

    def __call__(self, job):
        from cropseg.training.fit_job import FitResult
        from cropseg.training.history import Epoch

        self.jobs.append(job)
        error = self.raises.pop(len(self.jobs) - 1, None)
        if error:
            raise error
        epoch = Epoch(
            epoch=1, step=2, loss=1.0, learning_rate=0.1, val_miou=None, seconds=0.5
        )
        return FitResult(losses=(1.0, 1.0), epochs=(epoch,))


@pytest.fixture
def fake_fit(monkeypatch):
    fake = FakeFit()
    monkeypatch.setattr("cropseg.training.run.fit_model", fake)
    return fake


@pytest.fixture(scope="session")
def make_fake_fit():
    return FakeFit


STAGES = tuple(
    CardStage(name=name, part=part, layers=(name,), stride=stride)
    for name, part, stride in (
        *(("encoder_1", "encoder", 1), ("encoder_2", "encoder", 2)),
        *(("decoder_1", "decoder", 1), ("head", "head", 1)),
    )
)
SETTINGS = {"epochs": 2, "steps_per_epoch": 10, "batch_size": 2}


@pytest.fixture(scope="session")
def site(tmp_path_factory, make_site):
    return open_site(make_site(tmp_path_factory.mktemp("area_2")))


@pytest.fixture
def source(tmp_path, site):
    """Return a model of which the card is there, in the folder of its run."""
    folder = tmp_path / "area_1"
    folder.mkdir()
    training = {"steps": 100, "seconds": 50.0}
    metrics = json.dumps({"training": training})
    (folder / "metrics.json").write_text(metrics, encoding="utf-8")
    record = yaml.safe_dump({"settings": {"batch_size": 4}})
    (folder / "run.yaml").write_text(record, encoding="utf-8")
    (folder / "model.keras").write_bytes(bytes(1000))
    card = Card(
        site="area_1",
        classes=tuple(
            CardClass(name=item.name, color=item.color, train_pixels=1)
            for item in site.classes.classes
        ),
        bands=site.bands,
        gsd_m=site.gsd_m,
        architecture="unet",
        encoder="classic_tiny",
        tile_size=32,
        tile_multiple=4,
        band_mean=(0.0,) * len(site.bands),
        band_std=(1.0,) * len(site.bands),
        nodata_fill=(0.0,) * len(site.bands),
        stages=STAGES,
        seed=0,
        lineage=Lineage(mode="train"),
        fingerprint="0",
        weights_sha256="0",
        versions={},
    )
    return Source(
        title="model.keras", sha256="ab", card=card, run_dir=folder, load=lambda: None
    )


@pytest.fixture
def prepare(site):
    """Return a function that prepares a comparison of 3 runs, or of another design."""
    names = {field.name for field in dataclasses.fields(Design)}
    default = {"modes": ("full", "zero_shot"), "labels": ("2tiles",), "draws": 2}

    def prepare_it(source, *, site=site, source_site=None, **changes):
        given = {"folds": None} | default | SETTINGS | changes
        design = Design(**{k: v for k, v in given.items() if k in names})
        settings = {k: v for k, v in given.items() if k not in names}
        return prepare_comparison(
            site, source, design, source_site=source_site, **settings
        )

    return prepare_it
