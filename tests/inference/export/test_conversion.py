"""Exported models, run by the runtimes that they are for and compared with Keras."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cropseg.errors import ConflictError, ModelError, ResourceError, UsageError
from cropseg.inference.engines.convert import trace_model
from cropseg.inference.export import conversion as export
from cropseg.inference.export import formats as export_formats
from cropseg.inference.export.conversion import export_model
from cropseg.inference.export.formats import EXPORT_FORMATS
from cropseg.runtime import import_tensorflow, keras

NAMES = {"onnx": "model.onnx", "openvino": "model.xml", "saved_model": "model"}


@pytest.fixture(autouse=True)
def small_check(monkeypatch):
    """Tiles of the check that take no time."""
    monkeypatch.setattr(export, "_CHECK_SIZE", 64)


@pytest.fixture
def tiles(bundle):
    rng = np.random.default_rng(4)
    card = bundle.card
    return rng.normal(card.band_mean, card.band_std, (2, 32, 32, 5)).astype("float32")


def run_onnx(path, tiles):
    """Run it as Deepness does, whose arrays are (tiles, bands, height, width)."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape[1:] == [5, 32, 32]
    keys = session.get_modelmeta().custom_metadata_map
    mean, std = (
        np.array(json.loads(keys[f"standardization_{name}"]), np.float32)
        for name in ("mean", "std")
    )
    values = (np.float32(tiles * 1.0 / 255.0) - mean) / std
    found = session.run(None, {given.name: np.transpose(values, (0, 3, 1, 2))})
    assert len(found) == 1
    return np.transpose(found[0], (0, 2, 3, 1))


def run_openvino(path, tiles):
    core = pytest.importorskip("openvino").Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"pixels": tiles})["probabilities"]


def run_saved_model(path, tiles):
    tensorflow = import_tensorflow()
    serve = tensorflow.saved_model.load(str(path)).signatures["serving_default"]
    return np.asarray(serve(pixels=tensorflow.constant(tiles))["probabilities"])


RUN = {"onnx": run_onnx, "openvino": run_openvino, "saved_model": run_saved_model}


def list_names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_every_format_has_a_writer():
    assert set(EXPORT_FORMATS) == set(export._WRITERS) == set(RUN)


@pytest.mark.parametrize("file_format", EXPORT_FORMATS)
def test_an_exported_model_gives_what_keras_gives(
    bundle, model_path, tmp_path, tiles, file_format
):
    path = tmp_path / NAMES[file_format]
    done = export_model(model_path, path, file_format=file_format, tile_size=32)
    expected = np.asarray(bundle.model(tiles, training=False))
    found = RUN[file_format](path, tiles)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    assert (done.path, done.tile_size, done.num_pixels) == (path, 32, 2 * 32 * 32)
    assert done.max_difference < 1e-4
    assert done.equal_share == 1
    beside = ["model.bin"] if file_format == "openvino" else []
    assert list_names(tmp_path) == [*beside, path.name]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["openvino", "saved_model"])
def test_without_a_tile_size_it_takes_tiles_of_any(
    bundle, model_path, tmp_path, tiles, file_format
):
    path = tmp_path / NAMES[file_format]
    done = export_model(model_path, path, file_format=file_format)
    assert done.tile_size is None
    for given in (tiles, tiles[:1, :16]):
        expected = np.asarray(bundle.model(given, training=False))
        found = RUN[file_format](path, given)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", EXPORT_FORMATS)
def test_what_is_too_far_from_keras_is_refused_and_nothing_is_left(
    model_path, tmp_path, monkeypatch, file_format
):
    monkeypatch.setattr(export, "MAX_DIFFERENCE", -1)
    path = tmp_path / NAMES[file_format]
    with pytest.raises(ModelError, match="not the one that Keras runs") as caught:
        export_model(model_path, path, file_format=file_format, tile_size=32)
    assert caught.value.exit_code == 4
    assert list_names(tmp_path) == []


def test_either_bound_refuses(tmp_path):
    kept = {"path": tmp_path, "file_format": "onnx", "tile_size": 32, "num_pixels": 9}
    close = export.Export(max_difference=0.004, equal_share=0.9995, **kept)
    export._refuse_if_far(close)
    for change in ({"max_difference": 0.006}, {"equal_share": 0.9985}):
        with pytest.raises(
            ModelError, match=r"allowed is 0\.005.*asked for are 99\.9%"
        ):
            export._refuse_if_far(replace(close, **change))


def test_numbers_that_are_none_are_as_far_as_can_be():
    expected = np.full((1, 2, 2, 3), 1 / 3, "float32")
    found = expected.copy()
    found[0, 0, 0, 1] = np.nan
    assert export._compare(found, expected)["max_difference"] == 1
    with pytest.raises(ModelError, match=r"\(1, 3, 2, 2\) where Keras"):
        export._compare(np.moveaxis(found, -1, 1), expected)


@pytest.mark.parametrize("file_format", ["onnx", "saved_model"])
def test_what_is_there_is_kept_until_it_is_to_be_replaced(
    model_path, tmp_path, file_format
):
    path = tmp_path / NAMES[file_format]
    path.mkdir() if file_format == "saved_model" else path.write_text("old")
    with pytest.raises(ConflictError, match="--overwrite") as caught:
        export_model(model_path, path, file_format=file_format)
    assert caught.value.exit_code == 7
    export_model(
        model_path, path, file_format=file_format, tile_size=32, overwrite=True
    )
    assert path.is_dir() == (file_format == "saved_model")
    assert path.is_dir() or path.read_bytes() != b"old"
    # So it may be replaced once more.
    assert path.is_file() or set(list_names(path)) <= export._SAVED_MODEL


def test_weights_of_another_model_are_not_overwritten(model_path, tmp_path):
    (tmp_path / "model.bin").write_text("old")
    with pytest.raises(ConflictError, match=r"model\.bin"):
        export_model(model_path, tmp_path / "model.xml", file_format="openvino")


def test_a_failing_disk_keeps_the_old_folder(model_path, tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "saved_model.pb").write_text("old")

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="No space left"):
        export_model(model_path, path, file_format="saved_model", overwrite=True)
    assert list_names(tmp_path) == ["model"]
    assert list_names(path) == ["saved_model.pb"]


@pytest.mark.parametrize("names", [["saved_model.pb", "model.keras"], None])
def test_a_folder_of_other_files_is_not_replaced(model_path, tmp_path, names):
    path = tmp_path / "run"
    if names is None:
        path.write_text("a file")
    else:
        path.mkdir()
        for name in names:
            (path / name).write_text("years of work")
    before = list_names(tmp_path)
    with pytest.raises(
        ConflictError, match=r"no part of a SavedModel, such as (mod|ru)"
    ):
        export_model(model_path, path, file_format="saved_model", overwrite=True)
    assert list_names(tmp_path) == before
    assert names is None or set(list_names(path)) == set(names)


@pytest.mark.slow
def test_old_and_new_files_of_openvino_never_stand_together(
    model_path, tmp_path, monkeypatch
):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    for file in (path, path.with_suffix(".bin")):
        file.write_text("old")
    replace_file = Path.replace

    def fail(self, target):
        if target == path:
            raise OSError(5, "Input/output error", str(self))
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ResourceError, match="Input/output"):
        export_model(model_path, path, file_format="openvino", overwrite=True)
    assert list_names(tmp_path) == ["model.bin"]


def test_what_onnx_has_no_counterpart_of_is_an_error_of_the_model(
    model_path, tmp_path, monkeypatch
):
    converter = pytest.importorskip("tf2onnx")

    def fail(*_args, **_options):
        raise KeyError("MadeUpOp")

    monkeypatch.setattr(converter.convert, "from_function", fail)
    with pytest.raises(ModelError, match=r"MadeUpOp.*another --format"):
        export_model(model_path, tmp_path / "m.onnx", file_format="onnx", tile_size=32)


@pytest.mark.parametrize(
    ("name", "file_format", "said"),
    [
        ("model.tflite", "tflite", "must be one of openvino, onnx, saved_model"),
        ("model.bin", "openvino", r"must end with \.xml"),
        ("model.xml", "onnx", r"must end with \.onnx"),
        ("model.pb", "saved_model", "must be a folder's name"),
        ("..", "saved_model", "must be a folder's name"),
    ],
)
def test_a_path_that_does_not_fit_the_format_is_refused(
    model_path, tmp_path, name, file_format, said
):
    with pytest.raises(UsageError, match=said):
        export_model(model_path, tmp_path / name, file_format=file_format)


def test_the_folder_one_is_in_is_no_name(model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="must be a folder's name"):
        export_model(model_path, ".", file_format="saved_model", overwrite=True)


def test_a_missing_package_is_named_with_its_remedy(model_path, tmp_path, monkeypatch):
    find = export_formats.importlib.util.find_spec
    monkeypatch.setattr(
        export_formats.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tf2onnx" else find(name, *rest),
    )
    with pytest.raises(UsageError, match=r"tf2onnx must .*cropseg\[onnx\]"):
        export_model(model_path, tmp_path / "model.onnx", file_format="onnx")


def test_a_tile_size_that_the_network_cannot_take_is_refused(model_path, tmp_path):
    with pytest.raises(UsageError, match="multiples of"):
        export_model(
            model_path, tmp_path / "model.onnx", file_format="onnx", tile_size=30
        )


def test_tracing_leaves_the_model_as_it_was(bundle):
    before = [dict(layer.__dict__) for layer in bundle.model.layers]
    trace_model(bundle.model)
    for layer, known in zip(bundle.model.layers, before, strict=True):
        assert layer.__dict__.keys() == known.keys()
    (layer,) = [x for x in bundle.model.layers if x.name == "band_normalization"]
    assert not isinstance(layer.mean, np.ndarray)


def test_a_network_that_interpolates_is_traced_for_any_size():
    pixels = keras.Input((None, None, 3))
    near = keras.layers.UpSampling2D(3)(pixels)
    model = keras.Model(
        pixels, keras.layers.UpSampling2D(2, interpolation="bilinear")(near)
    )
    function = trace_model(model)
    rng = np.random.default_rng(0)
    for shape in ((1, 4, 6, 3), (2, 8, 4, 3)):
        values = rng.normal(size=shape).astype("float32")
        found = np.asarray(function(values)["probabilities"])
        assert found.shape == (shape[0], shape[1] * 6, shape[2] * 6, 3)
        expected = np.asarray(model(values))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_backend_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match="KERAS_BACKEND=tensorflow"):
        trace_model(bundle.model)


def test_the_command_prints_how_far_it_is_from_keras(run, model_path, tmp_path):
    path = tmp_path / "model.onnx"
    asked = ("export", model_path, "--format", "onnx", "--out", path)
    code, out, _ = run(*asked, "--tile-size", 32, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["file"], document["format"]) == (str(path), "onnx")
    assert (document["tile_size"], document["equal_classes"]) == (32, 1)
    assert document["max_difference"] < 1e-4
    code, _, told = run(*asked)
    assert code == 7
    assert "--overwrite" in told
    code, out, _ = run(*asked, "--tile-size", 32, "--overwrite")
    assert code == 0
    assert "100.000% of the classes are the same" in out
    assert run("export", model_path, "--format", "a", "--out", path)[0] == 2
