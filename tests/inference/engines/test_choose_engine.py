"""Which engine a model is run with, and what is said where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError, ModelFileNotFoundError, UsageError
from cropseg.inference.engines import choose_engine, openvino_package
from cropseg.inference.engines.choose_engine import open_engine


@pytest.fixture
def cpu(monkeypatch):
    """A machine without a GPU, whatever this one has."""
    monkeypatch.setattr(choose_engine, "_has_gpu", lambda: False)


def refuse(*_args, **_kwargs):
    raise ModelError("no counterpart")


@pytest.mark.usefixtures("cpu")
def test_auto_is_openvino_on_a_cpu(converted_path):
    engine = open_engine(converted_path, tile_size=32)
    assert (engine.name, engine.precision) == ("openvino", "float32")
    assert ((32, 32, 5), 0) in engine._compiled


@pytest.mark.usefixtures("cpu")
def test_auto_is_keras_where_openvino_is_missing(model_path, monkeypatch):
    monkeypatch.setattr(choose_engine, "has_openvino", lambda: False)
    assert open_engine(model_path, tile_size=32).name == "keras"


def test_auto_is_keras_where_there_is_a_gpu(model_path, monkeypatch):
    monkeypatch.setattr(choose_engine, "_has_gpu", lambda: True)
    assert open_engine(model_path, tile_size=32).name == "keras"


def test_an_engine_that_is_named_is_taken(converted_path, monkeypatch):
    monkeypatch.setattr(choose_engine, "_has_gpu", lambda: True)
    assert open_engine(converted_path, engine="openvino", tile_size=32).name == (
        "openvino"
    )
    keras = open_engine(converted_path, engine="keras", batch_size=3, tile_size=32)
    assert (keras.name, keras.batch_size) == ("keras", 3)


def test_both_engines_give_the_same_classes(converted_path, bundle):
    rng = np.random.default_rng(1)
    card = bundle.card
    tile = rng.normal(card.band_mean, card.band_std, (32, 48, 5)).astype("float32")
    found = [
        next(open_engine(converted_path, engine=name, tile_size=32).stream([(7, tile)]))
        for name in ("keras", "openvino")
    ]
    assert [key for key, _ in found] == [7, 7]
    np.testing.assert_array_equal(*(values.argmax(-1) for _, values in found))


def test_openvino_that_is_missing_is_named_with_its_remedy(model_path, monkeypatch):
    monkeypatch.setattr(openvino_package, "has_openvino", lambda: False)
    with pytest.raises(
        UsageError, match=r"pip install 'cropseg\[openvino\]'"
    ) as caught:
        open_engine(model_path, engine="openvino", tile_size=32)
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("cpu")
def test_auto_falls_back_on_keras_and_says_so(model_path, monkeypatch, caplog):
    monkeypatch.setattr(choose_engine, "OpenVinoEngine", refuse)
    assert open_engine(model_path, tile_size=32).name == "keras"
    assert "no counterpart" in caplog.text


def test_a_named_engine_has_no_substitute(model_path, monkeypatch):
    monkeypatch.setattr(choose_engine, "OpenVinoEngine", refuse)
    with pytest.raises(ModelError, match="no counterpart"):
        open_engine(model_path, engine="openvino", tile_size=32)


@pytest.mark.parametrize("option", ["engine", "precision"])
def test_an_unknown_name_is_refused_with_the_known_ones(model_path, option):
    with pytest.raises(
        UsageError, match=f"--{option} is tensorrt; .* auto, "
    ) as caught:
        open_engine(model_path, tile_size=32, **{option: "tensorrt"})
    assert caught.value.exit_code == 2


def test_a_model_that_is_not_there_is_said_before_anything_is_loaded(tmp_path):
    with pytest.raises(ModelFileNotFoundError, match="No model at"):
        open_engine(tmp_path / "model.keras", tile_size=32)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_is_none(monkeypatch, hidden):
    monkeypatch.setattr(choose_engine, "_GPU_NODES", ("null",))  # there is /dev/null
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not choose_engine._has_gpu()


@pytest.mark.parametrize(
    ("precision", "has_gpu"), [("bfloat16", True), ("float32", False)]
)
def test_a_gpu_counts_if_keras_knows_it(monkeypatch, precision, has_gpu):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("cropseg.runtime.resolve_precision", lambda _: precision)
    monkeypatch.setattr(choose_engine, "_GPU_NODES", ("null",))
    assert choose_engine._has_gpu() == has_gpu
    monkeypatch.setattr(choose_engine, "_GPU_NODES", ("no such device",))
    assert not choose_engine._has_gpu()
