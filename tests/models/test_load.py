"""What people start from becomes one form, predicts what it did, and has a card."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from cropseg.errors import ModelError, ModelFileNotFoundError, UnsafeFileError
from cropseg.models import zoo
from cropseg.models.bundle import hash_weights, save_bundle
from cropseg.models.foreign import ForeignDescription, InputScaling
from cropseg.models.load import FOREIGN, adopt_network, load_source
from cropseg.models.rebuild import rebuild_network
from cropseg.models.stage_file import StageEntry
from cropseg.runtime import keras

LEGACY = Path(__file__).parents[3] / "shared" / "data" / "legacy_keras"
NAIP = LEGACY / "naip_unet_keras2.3.1.h5"
LANDUSE = LEGACY / "landuse_unet_keras2.15.h5"
needs_legacy = pytest.mark.skipif(
    not NAIP.exists(), reason="the old Keras files lie beside the project only"
)

BANDS = "red,green,blue,nir"
DESCRIPTION = ForeignDescription.from_options(
    bands=BANDS, classes="wheat,corn,water", normalization="mean:5,6,7,8 std:2,3,4,5"
)


@keras.saving.register_keras_serializable("theirs")
def their_loss(wanted, found):
    return keras.ops.mean(wanted - found)


def save(model, path, *, compiled=True):
    """Save a model, compiled with a loss that nobody else has."""
    if compiled:
        model.compile("adam", loss=their_loss, metrics=["accuracy"])
    model.save(path)
    return path


@pytest.fixture(params=["net.keras", "net.h5"])
def path(request, build_unet, tmp_path):
    return save(build_unet(), tmp_path / request.param)


def predict(model, pixels):
    return np.asarray(model(pixels, training=False))


def make_pixels(bands=4, side=16):
    rng = np.random.default_rng(2)
    return rng.uniform(0, 20, (2, side, side, bands)).astype("float32")


def test_a_foreign_model_predicts_what_it_did_from_raw_values(path, build_unet):
    source = load_source(path, DESCRIPTION, gsd_m=0.6)
    assert source.kind == ("keras" if path.suffix == ".keras" else "hdf5")
    names = [layer.name for layer in source.model.layers]
    assert names[:2] == ["pixels", "band_normalization"]
    assert names[-2:] == ["head", "probabilities"]
    pixels = make_pixels()
    scaled = (pixels - [5, 6, 7, 8]) / [2, 3, 4, 5]
    wanted = predict(build_unet(), scaled.astype("float32"))
    np.testing.assert_allclose(predict(source.model, pixels), wanted, atol=1e-6)


def test_a_foreign_model_gets_a_card(path):
    source = load_source(path, DESCRIPTION, gsd_m=0.6)
    card = source.card
    assert card.bands == ("red", "green", "blue", "nir")
    assert card.class_names == ("wheat", "corn", "water")
    assert len({item.color for item in card.classes}) == 3
    assert (card.architecture, card.encoder) == (FOREIGN, FOREIGN)
    assert (card.gsd_m, card.tile_size, card.tile_multiple) == (0.6, 256, 2)
    assert (card.band_mean, card.band_std) == ((5, 6, 7, 8), (2, 3, 4, 5))
    assert card.nodata_fill == card.band_mean
    assert card.weights_sha256 == hash_weights(source.model)
    assert card.versions["keras"].startswith("3.")
    assert [s.name for s in card.stages] == [s.name for s in source.stages]
    assert len(source.sha256) == 64
    assert source.is_foreign


def test_a_foreign_model_saved_as_a_bundle_comes_back(path, tmp_path):
    source = load_source(path, DESCRIPTION, gsd_m=0.6)
    save_bundle(source.model, source.card, tmp_path / "model.keras")
    again = load_source(tmp_path / "model.keras")
    assert again.kind == "bundle"
    assert again.card == source.card
    assert again.stages == source.stages
    assert again.is_foreign
    pixels = make_pixels()
    assert np.array_equal(predict(again.model, pixels), predict(source.model, pixels))


def test_a_foreign_network_is_rebuilt_under_the_names_of_its_weights(path):
    source = load_source(path, DESCRIPTION, gsd_m=0.6)
    network = rebuild_network(source.model, num_bands=6, num_classes=2)
    names = {weight.path for weight in source.model.weights}
    assert {weight.path for weight in network.weights} == names


def test_a_bundle_is_loaded_as_it_is(bundle, bundle_path):
    source = load_source(bundle_path)
    assert (source.kind, source.card) == ("bundle", bundle.card)
    assert source.stages == zoo.find_stages(source.model, "unet", "classic_tiny")
    assert not source.is_foreign


def test_the_ending_does_not_decide(path, tmp_path):
    other = tmp_path / "model.bin"
    path.rename(other)
    assert load_source(other, DESCRIPTION, gsd_m=1).model.count_params() > 100


def test_what_is_missing_is_asked_for_by_option(path):
    with pytest.raises(ModelError, match=r"--bands .*the model takes 4 bands"):
        load_source(path)


def test_a_gsd_comes_from_the_description_before_the_site(path):
    described = DESCRIPTION.model_copy(update={"gsd_m": 2.0})
    assert load_source(path, described, gsd_m=0.6).card.gsd_m == 2
    with pytest.raises(ModelError, match="GSD"):
        load_source(path, DESCRIPTION)


def test_a_tile_size_must_suit_the_network(path):
    described = DESCRIPTION.model_copy(update={"tile_size": 33})
    with pytest.raises(ModelError, match="multiples of 2"):
        load_source(path, described, gsd_m=1)


def test_stages_that_the_user_names_are_taken(path):
    stages = (
        StageEntry(name="all_down", part="encoder", layers=("down_*",)),
        StageEntry(name="all_up", part="decoder", layers=("up*", "drop")),
        StageEntry(name="head", part="head", layers=("head",)),
    )
    described = DESCRIPTION.model_copy(update={"stages": stages})
    source = load_source(path, described, gsd_m=1)
    assert [stage.name for stage in source.card.stages] == [
        "all_down",
        "all_up",
        "head",
    ]


def test_weights_that_are_no_numbers_are_refused(build_unet, tmp_path):
    model = build_unet()
    kernel = np.asarray(model.get_layer("up").kernel).copy()
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("up").kernel.assign(kernel)
    for name in ("net.keras", "net.h5"):
        path = save(model, tmp_path / name)
        with pytest.raises(ModelError, match=r"1 variables .* up/kernel .*not finite"):
            load_source(path, DESCRIPTION, gsd_m=1)


def test_a_flipped_bit_in_an_archive_is_found(build_unet, tmp_path):
    path = save(build_unet(), tmp_path / "net.keras")
    content = bytearray(path.read_bytes())
    kernel = np.asarray(build_unet().get_layer("up_conv").kernel).tobytes()
    content[content.index(kernel[:64]) + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match="Bad CRC"):
        load_source(path, DESCRIPTION, gsd_m=1)


def test_weights_only_go_into_a_network_of_the_zoo(tmp_path):
    keras.utils.set_random_seed(4)
    model = zoo.build_network("unet", "classic_tiny", num_bands=4, num_classes=3)
    path = tmp_path / "net.weights.h5"
    model.save_weights(path)
    described = DESCRIPTION.model_copy(
        update={"architecture": "unet", "encoder": "classic_tiny"}
    )
    source = load_source(path, described, gsd_m=1)
    assert source.kind == "weights"
    assert (source.card.architecture, source.card.encoder) == ("unet", "classic_tiny")
    assert not source.is_foreign
    assert source.card.weights_sha256 == hash_weights(model)
    assert source.stages == zoo.find_stages(model, "unet", "classic_tiny")


def test_weights_only_go_into_a_network_of_the_user(build_unet, tmp_path):
    path = tmp_path / "net.weights.h5"
    build_unet().save_weights(path)
    network = build_unet()
    for weight in network.weights:
        weight.assign(np.zeros(tuple(weight.shape)))
    source = load_source(path, DESCRIPTION, network=network, gsd_m=1)
    assert source.is_foreign
    assert source.card.weights_sha256 == hash_weights(build_unet())


def test_a_network_in_memory_is_adopted(build_unet):
    model = build_unet(side=32)
    source = adopt_network(model, DESCRIPTION, gsd_m=1)
    assert (source.kind, source.card.site) == ("network", "someones_unet")
    assert source.card.tile_size == 32
    assert source.sha256 == hash_weights(source.model) == hash_weights(model)
    described = DESCRIPTION.model_copy(update={"bands": ("red", "nir")})
    with pytest.raises(ModelError, match="takes 4 bands"):
        adopt_network(model, described, gsd_m=1)


def test_normalisation_inside_comes_after_that_of_the_user(build_unet):
    image = keras.Input((None, None, 4))
    value = keras.layers.Rescaling(0.5, offset=-1.0)(image)
    model = keras.Model(image, build_unet()(value))
    source = adopt_network(model, DESCRIPTION, gsd_m=1)
    # half of (x - 5) / 2, less 1: that is (x - 9) / 4
    assert (source.card.band_mean[0], source.card.band_std[0]) == (9, 4)
    pixels = make_pixels()
    scaled = ((pixels - [5, 6, 7, 8]) / [2, 3, 4, 5]).astype("float32")
    wanted = predict(model, scaled)
    np.testing.assert_allclose(predict(source.model, pixels), wanted, atol=1e-6)


def test_an_image_that_is_read_twice_is_normalised_once(build_unet, tmp_path):
    image = keras.Input((None, None, 4), name="image")
    half = build_unet(end="logits")(image) * 0.5  # a constant in the graph
    joined = keras.layers.Concatenate(name="late")([half, image])
    logits = keras.layers.Conv2D(3, 1, name="last")(joined)
    model = keras.Model(image, keras.layers.Softmax()(logits))
    told = DESCRIPTION.model_copy(update={"gsd_m": 1.0})

    source = load_source(save(model, tmp_path / "net.keras"), told)

    pixels = make_pixels()
    scaled = ((pixels - [5, 6, 7, 8]) / [2, 3, 4, 5]).astype("float32")
    wanted = predict(model, scaled)
    np.testing.assert_allclose(predict(source.model, pixels), wanted, atol=1e-6)
    save_bundle(source.model, source.card, tmp_path / "model.keras")
    again = load_source(tmp_path / "model.keras").model
    np.testing.assert_array_equal(predict(again, pixels), predict(source.model, pixels))
    rebuilt = rebuild_network(again, num_bands=5, num_classes=2)
    assert rebuilt.output_shape == (None, None, None, 2)


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net.weights.h5"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_normalisation_that_was_adapted_keeps_its_statistics(
    name, is_nested, build_unet, tmp_path
):
    def build():
        pixels = keras.Input((None, None, 4), name="raw")
        layer = keras.layers.Normalization(name="scale")
        scaled = layer(pixels)
        if is_nested:
            inner = keras.Model(pixels, scaled, name="front")
            pixels = keras.Input((None, None, 4), name="outer")
            scaled = inner(pixels)
        return layer, keras.Model(pixels, build_unet()(scaled))

    layer, model = build()
    layer.adapt(make_pixels() * [1, 20, 300, 4000])
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else model.save(path)
    network = build()[1] if "weights" in name else None
    told = DESCRIPTION.model_copy(update={"normalization": InputScaling()})

    source = load_source(path, told, network=network, gsd_m=1.0)

    pixels = make_pixels(side=8) * [1, 20, 300, 4000]
    np.testing.assert_allclose(
        predict(source.model, pixels), predict(model, pixels), atol=1e-5
    )
    assert source.card.band_mean[3] > 10_000


def test_a_chain_is_a_network_too(tmp_path):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 4)),
            layers.Conv2D(4, 3, padding="same", name="down"),
            layers.MaxPooling2D(),
            layers.Conv2D(5, 3, padding="same", name="low"),
            layers.UpSampling2D(),
            layers.Conv2D(4, 3, padding="same", name="up"),
            layers.Conv2D(3, 1, activation="softmax", name="last"),
        ]
    )
    for name in ("chain.keras", "chain.h5"):
        source = load_source(save(model, tmp_path / name), DESCRIPTION, gsd_m=1)
        assert [s.layers for s in source.stages] == [
            ("down",), ("low",), ("up",), ("head",),
        ]  # fmt: skip
        assert source.card.weights_sha256 == hash_weights(model)


@needs_legacy
@pytest.mark.parametrize(
    ("path", "classes", "side", "multiple", "parts"),
    [
        pytest.param(
            *(NAIP, "other,water,forest,field,built", 240, 16, (5, 4, 1)),
            marks=pytest.mark.slow,
        ),
        (LANDUSE, "a,b,c,d,e,f,g", 64, 4, (3, 2, 1)),
    ],
)
def test_old_models_predict_what_keras_predicts(path, classes, side, multiple, parts):
    bands = BANDS if path == NAIP else "red,green,blue"
    described = ForeignDescription.from_options(
        bands=bands, classes=classes, normalization="divide:255"
    )
    source = load_source(path, described, gsd_m=1)
    assert (source.card.tile_size, source.card.tile_multiple) == (side, multiple)
    assert source.model.input_shape == (None, None, None, len(source.card.bands))
    found = [stage.part for stage in source.stages]
    assert tuple(map(found.count, ("encoder", "decoder", "head"))) == parts
    pixels = make_pixels(len(source.card.bands), side=side)
    old = keras.models.load_model(path, compile=False)
    wanted = np.asarray(old([pixels / np.float32(255)], training=False))
    np.testing.assert_allclose(predict(source.model, pixels), wanted, atol=1e-5)


@needs_legacy
def test_the_weights_of_an_old_model_are_in_the_layers_of_their_names():
    described = ForeignDescription.from_options(
        bands=BANDS, classes="a,b,c,d,e", normalization="none"
    )
    source = load_source(NAIP, described, gsd_m=1)
    with h5py.File(NAIP) as file:
        weights = file["model_weights"]
        for layer in ("conv2d_7", "batch_normalization_12", "conv2d_28"):
            stored = weights[layer][layer]
            for weight in source.model.get_layer(layer).weights:
                name = weight.path.rpartition("/")[2]
                assert np.array_equal(np.asarray(weight), stored[f"{name}:0"][()])


def edit_layers(path, edit):
    """Change the layers in the config of a saved model, of either kind."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            edit(config["config"]["layers"])
            file.attrs["model_config"] = json.dumps(config)
        return
    part = path.with_name("changed.keras")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(part, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit(config["config"]["layers"])
                content = json.dumps(config).encode()
            new.writestr(name, content)
    part.replace(path)


def test_code_is_not_run(path):
    def edit(layers):
        config = {"name": "x", "function": {"class_name": "__lambda__", "config": {}}}
        layers[1] |= {"class_name": "Lambda", "config": config}

    edit_layers(path, edit)
    with pytest.raises(UnsafeFileError, match="Lambda"):
        load_source(path, DESCRIPTION, gsd_m=1)


def test_an_activation_that_nobody_has_is_told(path):
    def edit(layers):
        layers[1]["config"]["activation"] = "their_activation"

    edit_layers(path, edit)
    with pytest.raises(ModelError, match=r"Keras .* cannot load .*their_activation"):
        load_source(path, DESCRIPTION, gsd_m=1)


def test_weights_of_another_network_are_told(path):
    def edit(layers):
        layers[1]["config"]["filters"] = 8

    edit_layers(path, edit)
    with pytest.raises(ModelError):
        load_source(path, DESCRIPTION, gsd_m=1)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ModelFileNotFoundError):
        load_source(tmp_path / "model.h5", DESCRIPTION)


LOAD = """
import sys
from cropseg.models.foreign import ForeignDescription, InputScaling
from cropseg.models.load import load_source
d = ForeignDescription.from_options(
    bands="a,b,c,d", classes="x,y,z", normalization="none"
)
source = load_source(sys.argv[1], d, gsd_m=1)
print(source.model.predict_on_batch(__import__("numpy").ones((1, 8, 8, 4))).shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_fresh_process_of_any_backend_loads_it(backend, path):
    if backend == "jax":
        pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "(1, 8, 8, 3)\n", done.stderr


def test_nothing_is_left_in_the_temporary_folder(path, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    load_source(path, DESCRIPTION, gsd_m=1)
    assert not list(folder.iterdir())
    shutil.rmtree(folder)
