"""A card without a network, and finished maps that tests draw pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from cropseg.inference.outputs.finished import FinishedMap
from cropseg.inference.outputs.layers import list_layers
from cropseg.inference.outputs.writer import write_layer
from cropseg.models.card import Card, CardClass
from cropseg.sites.grid import Grid

CLASSES = (
    ("soybeans", "#267300"),
    ("wheat & rye", "#d8b56b"),
    ("grassland", "#e8ffbf"),
    ("água", "#4a6fa3"),
)


@pytest.fixture(scope="session")
def card(make_card) -> Card:
    """The card of a model with four classes, of which one name is not ASCII."""
    classes = tuple(CardClass(name=n, color=c, train_pixels=9) for n, c in CLASSES)
    return make_card(classes, gsd_m=9.0)


@pytest.fixture(scope="session")
def make_grid():
    """Return a function that makes a grid of pixels 10 m wide and 8 m high."""

    def make(height=70, width=53, *, crs="EPSG:32614", transform=None) -> Grid:
        origin = Affine(10, 0, 600_005, 0, -8, 5_200_003)
        return Grid(
            height=height,
            width=width,
            transform=transform or origin,
            crs=CRS.from_string(crs),
        )

    return make


@pytest.fixture
def write_map(card, make_grid, tmp_path):
    """Return a function that writes class ids, and confidence, as a finished map."""

    def write(ids, *, scene="scene", grid=None, confidence=None) -> FinishedMap:
        ids = np.asarray(ids, np.uint8)
        grid = grid or make_grid(*ids.shape)
        paths: list[Path | None] = [None, None]
        for index, values in enumerate((ids, confidence)):
            if values is None:
                continue
            layer = list_layers(card, confidence=True)[index]
            if index:
                stored = np.rint(np.asarray(values) / layer.scale)
                values = np.where(ids == 255, 255, stored).astype(np.uint8)  # noqa: PLW2901
            paths[index] = tmp_path / "maps" / layer.name_file(scene)
            with write_layer(paths[index], grid, layer, card, tags={}) as writer:
                writer.write(grid.window, values[..., None])
        return FinishedMap(scene=scene, classes_path=paths[0], confidence_path=paths[1])

    return write


@pytest.fixture
def draw_patches():
    """Return a function that draws smooth areas of classes without any symmetry."""

    def draw(height=70, width=53, *, seed=0, num_classes=4, sigma=2.0):
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(seed)
        fields = [
            gaussian_filter(rng.normal(size=(height, width)), sigma)
            for _ in range(num_classes)
        ]
        ids = np.argmax(fields, axis=0).astype(np.uint8)
        ids[height // 4 : height // 3, width // 2 :] = 255
        return ids

    return draw
