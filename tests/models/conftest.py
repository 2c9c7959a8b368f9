"""A tiny bundle with random weights, and the card that goes with it."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropseg.models.bundle import Bundle, save_bundle
from cropseg.models.card import CARD_NAME, Card, CardClass, Lineage

BANDS = ("blue", "green", "red", "nir", "swir1")
CLASSES = (
    CardClass(name="soybeans", color="#267300", train_pixels=100),
    CardClass(name="wheat", color="#d8b56b", train_pixels=250),
    CardClass(name="grassland", color="#e8ffbf", train_pixels=30),
)
MEAN = (300.0, 500.5, 800.25, 2600.0, 1900.0)
STD = (40.0, 80.5, 160.0, 700.0, 333.0)


@pytest.fixture(scope="session")
def make_bundle(build_bundle: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """Return a function that builds a bundle of an encoder of `unet`."""

    def make(encoder: str = "classic_tiny", *, seed: int = 1) -> Bundle:
        return build_bundle(
            mean=MEAN,
            std=STD,
            encoder=encoder,
            seed=seed,
            site="rural-area-1",
            classes=CLASSES,
            bands=BANDS,
            gsd_m=9.0,
            sensor="made up",
            lineage=Lineage(mode="full", source_sha256="ab" * 32, source_site="area-0"),
            fingerprint="0123456789ab",
            scores={"test": {"miou": 0.5, "classes": [{"name": "wheat", "iou": None}]}},
        )

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    """A `classic_tiny` bundle in memory, which no test may change."""
    return make_bundle()


@pytest.fixture(scope="session")
def _saved(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.keras"
    save_bundle(bundle.model, bundle.card, path)
    return path


@pytest.fixture
def bundle_path(_saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved bundle, which a test may damage."""
    return Path(shutil.copy(_saved, tmp_path / "model.keras"))


@pytest.fixture(scope="session")
def change_card() -> Callable[..., None]:
    """Return a function that changes the card inside a saved bundle."""
    return _change_card


def _change_card(path: Path, **changes: Any) -> None:
    """Replace keys of the card; `text` replaces the whole of it, None removes it."""
    part = path.with_name("changed.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(part, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == CARD_NAME:
                card = Card.model_validate_json(content)
                text = card.model_copy(update=changes).model_dump_json()
                content = changes.get("text", text)
                if content is None:
                    continue
            new.writestr(name, content, zipfile.ZIP_DEFLATED)
    os.replace(part, path)  # noqa: PTH105 - as short as it is clear
