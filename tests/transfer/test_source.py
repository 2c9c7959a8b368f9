"""The model that a transfer starts from: by what records tell it from another."""

from __future__ import annotations

import json

import pytest

from cropseg.errors import ConflictError
from cropseg.files import claim_out_dir
from cropseg.models.foreign import ForeignDescription
from cropseg.runtime import keras
from cropseg.transfer.prepare import prepare_transfer
from cropseg.transfer.source import find_source


@pytest.fixture(scope="module")
def foreign_path(area_2, tmp_path_factory):
    """Return a file that says nothing of its bands, classes and normalisation."""
    conv = {"padding": "same", "activation": "relu"}
    pixels = keras.Input((None, None, len(area_2.bands)))
    fine = keras.layers.Conv2D(4, 3, **conv)(pixels)
    coarse = keras.layers.Conv2D(4, 3, **conv)(keras.layers.MaxPooling2D()(fine))
    up = keras.layers.Conv2DTranspose(4, 2, strides=2)(coarse)
    both = keras.layers.Concatenate()([fine, up])
    logits = keras.layers.Conv2D(len(area_2.classes), 1)(both)
    path = tmp_path_factory.mktemp("models") / "theirs.keras"
    keras.Model(pixels, logits).save(path)
    return path


def describe(area, **changes):
    about = {
        "bands": area.bands,
        "classes": area.classes.names,
        "normalization": "divide:255",
        "tile_size": 32,
    }
    return ForeignDescription(**(about | changes))


def prepare(area, path, description=None):
    source = find_source(path, description=description, site=area)
    return prepare_transfer(area, source, mode="full").record


@pytest.mark.parametrize("name", ["bands", "classes", "normalization"])
def test_a_file_that_is_described_otherwise_is_another_model(
    area_2, foreign_path, tmp_path, name
):
    others = {
        "bands": area_2.bands[::-1],
        "classes": area_2.classes.names[::-1],
        "normalization": "divide:10000",
    }
    given = describe(area_2)
    first = prepare(area_2, foreign_path, given)
    other = prepare(area_2, foreign_path, describe(area_2, **{name: others[name]}))

    assert first["from_sha256"] == other["from_sha256"]
    assert first == prepare(area_2, foreign_path, given)
    with claim_out_dir(tmp_path, first):
        (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConflictError), claim_out_dir(tmp_path, other):
        pass
    document = json.loads(json.dumps(first["from_card"]))
    assert ForeignDescription(**document) == given


def test_a_bundle_says_all_of_itself(area_2, source_path):
    assert "from_card" not in prepare(area_2, source_path)
