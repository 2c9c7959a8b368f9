"""The bundle: anybody's Keras loads it, and no broken model is saved or loaded."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from cropseg.errors import ModelError, ResourceError, UnsafeFileError
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.models import zoo
from cropseg.models.bundle import (
    add_normalization,
    hash_weights,
    list_versions,
    load_bundle,
    save_bundle,
)
from cropseg.models.card import CARD_NAME, read_card
from cropseg.runtime import keras
from cropseg.sites.raster import Pixels

QUICK = ("classic_tiny",)
LONGER = ("resnet34", "vgg19", *(f"efficientnetb{size}" for size in (1, 2, 3, 4)))
"""More of the same blocks as the smallest of their kind."""

RELOAD = """
import json, sys, zipfile
import keras, numpy as np
for line in sys.stdin:
    job = json.loads(line)
    keras.backend.clear_session()
    model = keras.models.load_model(job["model"])
    card = json.loads(zipfile.ZipFile(job["model"]).read("cropseg.json"))
    file = np.load(job["input"])
    values = file["values"].astype("float32")
    values[~file["valid"]] = card["nodata_fill"]
    np.save(job["output"], model.predict(values, verbose=0))
    strangers = [x for x in sys.modules if x.startswith(("cropseg", "segmentation_"))]
    print(json.dumps({"strangers": strangers, "compiled": model.compiled}), flush=True)
"""
"""What a user without cropseg does, for one model a line."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in zoo.ENCODERS
        if name not in LONGER
    ],
)
def saved(request, make_bundle, tmp_path_factory):
    """Save and load a bundle of each kind of encoder; give its path, and it."""
    built = make_bundle(request.param)
    path = tmp_path_factory.mktemp(request.param) / "model.keras"
    save_bundle(built.model, built.card, path)
    yield path, load_bundle(path)
    path.unlink()


@pytest.fixture(scope="module")
def predict_elsewhere():
    """Give a function that predicts in one process that imports only Keras."""
    with subprocess.Popen(
        [sys.executable, "-c", RELOAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",  # the repository is not on its path
        env={**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        text=True,
    ) as process:

        def predict(model_path, pixels, folder):
            job = {"model": model_path, "input": folder / "i.npz"}
            job["output"] = folder / "o.npy"
            np.savez(job["input"], values=pixels.values, valid=pixels.valid)
            document = {key: str(value) for key, value in job.items()}
            print(json.dumps(document), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, "the fresh process could not load or predict"
            assert json.loads(answer) == {"strangers": [], "compiled": False}
            return np.load(job["output"])

        yield predict
        process.stdin.close()


def make_pixels(card, *, tiles=2, height=32, width=64):
    """Make raw integers near the bands' means, with a patch of nodata."""
    rng = np.random.default_rng(4)
    shape = (tiles, height, width, len(card.bands))
    values = rng.normal(card.band_mean, card.band_std, shape).astype("int16")
    valid = np.ones(shape[:3], np.bool_)
    valid[0, 10:25, 40:] = valid[-1, :5] = False
    values[~valid] = -9999
    return Pixels(values=values, valid=valid)


def predict_here(bundle, pixels):
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    tiles = [
        engine.fill_nodata(Pixels(values=values, valid=valid))
        for values, valid in zip(pixels.values, pixels.valid, strict=True)
    ]
    return engine.predict(tiles)


@pytest.mark.slow
def test_a_process_with_nothing_but_keras_predicts_what_the_engine_predicts(
    saved, predict_elsewhere, tmp_path
):
    path, bundle = saved
    pixels = make_pixels(bundle.card)
    here = predict_here(bundle, pixels)
    there = predict_elsewhere(path, pixels, tmp_path)
    assert here.shape == (2, 32, 64, 3)
    assert np.ptp(here) > 1e-3  # a constant would agree by itself
    np.testing.assert_allclose(there, here, atol=1e-5, rtol=0)


def test_a_saved_model_is_flat_and_made_of_what_keras_has(saved):
    path, bundle = saved
    config = json.loads(zipfile.ZipFile(path).read("config.json"))
    entries = config["config"]["layers"]
    assert {entry["registered_name"] for entry in entries} == {None}
    assert {entry["module"] for entry in entries} == {"keras.layers"}
    for entry in entries:
        home = importlib.import_module(entry["module"])
        layer = bundle.model.get_layer(entry["name"])
        assert type(layer) is getattr(home, entry["class_name"])
    assert not {"Functional", "Lambda"} & {entry["class_name"] for entry in entries}


def test_normalisation_is_the_first_layer_and_computes_in_float32(saved):
    _, bundle = saved
    first, second, *others = bundle.model.layers
    assert (type(first), second.name) == (keras.layers.InputLayer, "band_normalization")
    assert second.input is bundle.model.inputs[0]
    assert second.compute_dtype == "float32"
    raw = np.asarray([bundle.card.band_mean, bundle.card.band_std], np.float32)
    np.testing.assert_allclose(np.asarray(second(raw[:1])), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(second(raw.sum(axis=0)[None])), 1, atol=1e-5)
    assert len({layer.name for layer in others}) == len(others)


def test_the_layers_of_the_card_are_those_of_the_model(saved):
    _, bundle = saved
    named = [name for stage in bundle.card.stages for name in stage.layers]
    weighted = [layer.name for layer in bundle.model.layers if layer.weights]
    assert set(weighted) <= set(named)
    assert bundle.card.stages[-1].layers == ("head",)


def test_normalisation_in_front_changes_neither_names_nor_weights():
    network = zoo.build_network("unet", "classic_tiny", num_bands=3, num_classes=2)
    model = add_normalization(network, mean=[10, 20, 30], std=[2, 4, 0.5])
    names = [layer.name for layer in network.layers]
    assert [x.name for x in model.layers] == [
        names[0],
        "band_normalization",
        *names[1:],
    ]
    assert hash_weights(model) == hash_weights(network)
    assert [w.path for w in model.weights] == [w.path for w in network.weights]
    shape = (1, 8, 12, 3)
    normal = np.random.default_rng(0).normal(0, 1, shape).astype("float32")
    raw = normal * np.float32([2, 4, 0.5]) + np.float32([10, 20, 30])
    np.testing.assert_allclose(
        np.asarray(model(raw)), np.asarray(network(normal)), atol=1e-5, rtol=0
    )


def test_a_compiled_model_is_saved_uncompiled_and_stays_compiled(make_bundle, tmp_path):
    built = make_bundle()
    built.model.compile(optimizer="sgd", loss=lambda _, found: keras.ops.mean(found))
    save_bundle(built.model, built.card, tmp_path / "model.keras")
    assert built.model.compiled
    assert not keras.models.load_model(tmp_path / "model.keras").compiled


def test_a_bundle_comes_back_with_the_same_weights(bundle, bundle_path):
    loaded = load_bundle(str(bundle_path))
    assert loaded.card == bundle.card
    for old, new in zip(
        bundle.model.get_weights(), loaded.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(new, old)


def test_a_saved_model_is_called_with_a_tensor_without_a_warning(bundle, bundle_path):
    loaded = keras.models.load_model(bundle_path)
    pixels = np.ones((1, 8, 12, 5), "float32")
    assert loaded.input.shape == (None, None, None, 5)
    found, expected = loaded(pixels), bundle.model(pixels)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-6)


def test_the_hash_tells_every_weight_and_two_that_were_swapped(make_bundle):
    model = make_bundle().model
    before = hash_weights(model)
    hashes = {before}
    for variable in model.weights:
        values = np.asarray(variable)
        changed = values.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        variable.assign(changed)
        hashes.add(hash_weights(model))
        variable.assign(values)
    assert len(hashes) == len(model.weights) + 1
    assert hash_weights(model) == before
    gamma, beta = model.get_layer("encoder_1_bn_1").trainable_weights
    gamma.assign(np.asarray(beta))
    beta.assign(np.ones_like(beta))
    assert hash_weights(model) not in hashes


def test_versions_name_what_computes():
    versions = list_versions()
    assert versions["keras"] == keras.__version__
    assert versions["backend"] == keras.backend.backend()
    assert versions[versions["backend"]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["head", "encoder_2_bn_1"])
def test_weights_that_are_not_finite_are_never_saved(
    value, name, make_bundle, bundle_path
):
    built, before = make_bundle(), bundle_path.read_bytes()
    variable = built.model.get_layer(name).weights[-1]  # bias, or moving variance
    values = np.asarray(variable).copy()
    values[1] = value
    variable.assign(values)
    with pytest.raises(ModelError, match=f"1 variables, {variable.path} first"):
        save_bundle(built.model, built.card, bundle_path)
    assert bundle_path.read_bytes() == before
    fresh = bundle_path.parent / "new" / "model.keras"
    with pytest.raises(ModelError):
        save_bundle(built.model, built.card, fresh)
    assert not fresh.parent.exists()


def fail_to_save(_, path, **_options):
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_to_add(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "method", "fail", "error"),
    [
        (keras.Model, "save", fail_to_save, ResourceError),
        (zipfile.ZipFile, "writestr", fail_to_add, ResourceError),
        (zipfile.ZipFile, "close", lambda _: None, ModelError),
    ],
    ids=["in the weights", "in the card", "at the end"],
)
@pytest.mark.parametrize("has_old", [True, False])
def test_a_failed_save_leaves_nothing_but_the_old_file(
    owner, method, fail, error, has_old, bundle, bundle_path, monkeypatch
):
    before = bundle_path.read_bytes()
    if not has_old:
        bundle_path.unlink()
    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(error) as caught:
        save_bundle(bundle.model, bundle.card, bundle_path)
    monkeypatch.undo()
    assert caught.value.exit_code == error.exit_code
    assert os.listdir(bundle_path.parent) == (["model.keras"] if has_old else [])  # noqa: PTH208
    if has_old:
        assert bundle_path.read_bytes() == before


def test_a_save_is_read_back_before_it_gets_its_name(bundle, bundle_path, monkeypatch):
    original = zipfile.ZipFile.writestr

    def damage(self, name, text, *rest):
        original(self, name, text, *rest)
        if name == CARD_NAME:
            place = self.getinfo("model.weights.h5").header_offset + 5000
            end = self.fp.tell()
            self.fp.seek(place)
            byte = self.fp.read(1)
            self.fp.seek(place)
            self.fp.write(bytes([byte[0] ^ 0xFF]))
            self.fp.seek(end)

    before = bundle_path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", damage)
    with pytest.raises(ModelError, match=r"damaged member: model\.weights\.h5"):
        save_bundle(bundle.model, bundle.card, bundle_path)
    monkeypatch.undo()
    assert bundle_path.read_bytes() == before
    assert [path.name for path in bundle_path.parent.iterdir()] == ["model.keras"]


def test_a_card_of_other_weights_is_refused(bundle_path, change_card):
    change_card(bundle_path, weights_sha256="0" * 64)
    with pytest.raises(ModelError, match="not those that its card was written for"):
        load_bundle(bundle_path)


def test_a_card_of_another_number_of_bands_is_refused(bundle_path, change_card):
    change_card(bundle_path, bands=("red", "nir"))
    with pytest.raises(ModelError, match=r"takes 5 bands, its card names 2"):
        load_bundle(bundle_path)


def test_a_card_of_another_number_of_classes_is_refused(bundle_path, change_card):
    classes = read_card(bundle_path).classes
    change_card(bundle_path, classes=classes[:-1])
    with pytest.raises(ModelError, match=rf"{len(classes)} classes apart, its card"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5", CARD_NAME])
def test_a_flipped_byte_in_any_member_is_refused(member, bundle_path):
    content = bytearray(bundle_path.read_bytes())
    with zipfile.ZipFile(bundle_path) as archive:
        info = archive.getinfo(member)
    content[info.header_offset + 30 + len(member) + info.compress_size // 2] ^= 0x10
    bundle_path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_bundle(bundle_path)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"no such thing"])
def test_an_archive_that_keras_cannot_load_is_refused(member, content, bundle_path):
    part = bundle_path.with_name("changed.keras")
    with zipfile.ZipFile(bundle_path) as old, zipfile.ZipFile(part, "w") as new:
        for name in old.namelist():
            text = content if name == member else old.read(name)
            if text is not None:
                new.writestr(name, text)
    with pytest.raises(ModelError) as error:
        load_bundle(part)
    assert error.value.exit_code == 4


def rewrite_network(path, change):
    """Change the layers of a bundle's network, and leave its weights and its card."""
    part = path.with_name("changed.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(part, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "config.json":
                config = json.loads(text)
                change(config["config"]["layers"])
                text = json.dumps(config)
            new.writestr(name, text)
    return part


def test_a_network_that_would_fill_the_memory_is_refused_unbuilt(
    bundle_path, monkeypatch
):
    def blow_up(layers):
        layer = next(item for item in layers if "filters" in item["config"])
        layer["config"]["filters"] = 10**9

    built = []
    monkeypatch.setattr(keras.models, "load_model", lambda *a, **_: built.append(a))
    with pytest.raises(UnsafeFileError, match="the file holds") as error:
        load_bundle(rewrite_network(bundle_path, blow_up))
    assert error.value.exit_code == 5
    assert not built


def test_an_archive_that_unpacks_to_far_more_than_it_has_is_refused(bundle_path):
    with zipfile.ZipFile(bundle_path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/more", bytes(10**8))
    with pytest.raises(UnsafeFileError, match="members declare"):
        load_bundle(bundle_path)


def test_a_layer_of_keras_whose_size_is_not_known_is_loaded(bundle, tmp_path):
    inputs = keras.Input((None, None, 5), name="pixels")
    output = keras.layers.EinsumDense("abcd,de->abce", (None, None, 3))(inputs)
    model = keras.Model(inputs, output)
    digest = hash_weights(model)
    card = bundle.card.model_copy(update={"weights_sha256": digest})
    save_bundle(model, card, tmp_path / "model.keras")
    assert hash_weights(load_bundle(tmp_path / "model.keras").model) == digest


def test_a_layer_with_code_of_its_own_is_refused(bundle, bundle_path):
    part = bundle_path.with_name("changed.keras")
    inputs = keras.Input((None, None, 5), name="pixels")
    output = keras.layers.Lambda(lambda x: x * 2, name="probabilities")(inputs)
    keras.Model(inputs, output).save(part)
    with zipfile.ZipFile(part, "a") as archive:
        archive.writestr(CARD_NAME, bundle.card.model_dump_json())
    with pytest.raises(ModelError, match="Keras cannot load"):
        load_bundle(part)
