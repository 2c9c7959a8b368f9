"""What the QGIS plugin reads, with its own rules written out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cropseg.inference.export.deepness import list_metadata
from cropseg.inference.tiles.tile_shape import TileShape


@pytest.fixture
def metadata(bundle):
    shape = TileShape(size=512, context=64)
    found = list_metadata(bundle.card, shape)
    return {key: json.loads(value) for key, value in found.items()}


def test_it_is_a_segmentation_model_with_its_classes_by_id(metadata, bundle):
    # The plugin writes the first letter large and looks the rest up.
    assert metadata["model_type"].capitalize() == "Segmentor"
    names = sorted(metadata["class_names"].items(), key=lambda item: int(item[0]))
    assert [int(key) for key, _ in names] == list(range(4))
    assert tuple(name for _, name in names) == bundle.card.class_names


def test_resolution_is_in_centimetres(metadata, bundle):
    assert metadata["resolution"] == pytest.approx(bundle.card.gsd_m * 100)
    assert metadata["resolution"] > 100


@pytest.mark.parametrize(
    ("size", "context", "percent"), [(512, 64, 25), (1024, 64, 13), (256, 0, 0)]
)
def test_half_of_the_overlap_is_the_context(bundle, size, context, percent):
    found = list_metadata(bundle.card, TileShape(size=size, context=context))
    assert (found["tile_size"], found["tiles_size"]) == (str(size), str(size))
    assert found["tiles_overlap"] == str(percent)
    # The plugin's stride is size * (1 - overlap), and it cuts half of the rest off.
    assert (size - round(size * (1 - percent / 100))) // 2 >= context


def test_raw_values_come_back_out_of_the_plugins_preprocessing(metadata):
    raw = np.arange(0, 65_536, 37, dtype="uint16")[:, None].repeat(5, axis=1)
    divided = np.float32(raw * 1.0 / 255.0)
    mean, std = (
        np.array([float(x) for x in metadata[f"standardization_{name}"]], np.float32)
        for name in ("mean", "std")
    )
    assert len(mean) == len(std) == 5
    np.testing.assert_allclose((divided - mean) / std, raw, rtol=3e-7)


def test_the_most_probable_class_counts_and_small_areas_stay(metadata):
    # The plugin blurs with a side of this, which 1 leaves as it is.
    assert metadata["seg_thresh"] == 0
    assert int(metadata["seg_small_segment"] // 2) * 2 + 1 == 1


def test_the_card_is_in_it(metadata, bundle):
    assert metadata["cropseg_bands"] == list(bundle.card.bands)
    assert type(bundle.card).model_validate(metadata["cropseg_card"]) == bundle.card
    assert math.isfinite(metadata["cropseg_card"]["gsd_m"])
