"""A tiny bundle with random weights, and the card that goes with it."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture(scope="session")
def build_unet() -> Callable[..., Any]:
    """Return a function that builds a network that cropseg knows nothing of."""
    return _build_unet


def _build_unet(
    *, bands: int = 4, classes: int = 3, side: int | None = None, end: str = "inside"
) -> Any:
    """Build a U-Net of two levels with names of its own and random statistics.

    Args:
        bands: Its bands.
        classes: Its classes.
        side: Side of its input; None for any.
        end: Where its softmax is: `inside` the last convolution, in an `activation`, a
            `softmax` layer, or nowhere: `logits`.
    """
    from cropseg.runtime import keras

    layers = keras.layers
    keras.utils.set_random_seed(7)
    image = keras.Input((side, side, bands), name="image")
    fine = layers.Conv2D(6, 3, padding="same", activation="relu", name="down_a")(image)
    fine = layers.BatchNormalization(name="down_a_bn")(fine)
    coarse = layers.MaxPooling2D(name="pool")(fine)
    coarse = layers.Conv2D(9, 3, padding="same", name="down_b")(coarse)
    coarse = layers.BatchNormalization(name="down_b_bn", scale=False)(coarse)
    coarse = layers.ReLU(name="down_b_relu")(coarse)
    back = layers.Conv2DTranspose(6, 2, strides=2, name="up")(coarse)
    joined = layers.Concatenate(name="join")([fine, back])
    joined = layers.Dropout(0.2, name="drop")(joined)
    joined = layers.Conv2D(5, 3, padding="same", name="up_conv")(joined)
    activation = "softmax" if end == "inside" else None
    result = layers.Conv2D(classes, 1, activation=activation, name="logits")(joined)
    if end == "activation":
        result = layers.Activation("softmax", name="act")(result)
    elif end == "softmax":
        result = layers.Softmax(name="soft")(result)
    model = keras.Model(image, result, name="someones_unet")
    rng = np.random.default_rng(5)
    for weight in model.weights:  # no statistic stays 0 or 1
        noise = rng.uniform(0.2, 0.6, tuple(weight.shape))
        weight.assign(np.asarray(weight) + noise)
    return model
