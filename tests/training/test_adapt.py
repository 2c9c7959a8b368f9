"""Batch statistics of a site: exact, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network
from cropseg.runtime import keras, start_run
from cropseg.sites.statistics import survey_site
from cropseg.sites.unlabelled import UnlabelledTiles, list_unlabelled_tiles
from cropseg.training.adapt import measure_moments, recompute_statistics
from cropseg.training.locks import list_norms

SIZE = 32
STATISTICS = ("moving_mean", "moving_variance")


@pytest.fixture(scope="module")
def tiles(area_1):
    return list_unlabelled_tiles(area_1, SIZE)


def build_model(site, *, encoder="classic_tiny", seed=3):
    start_run(seed)
    bands = survey_site(site, SIZE).bands
    network = build_network("unet", encoder, num_bands=5, num_classes=4, width=4)
    model = add_normalization(network, mean=bands.mean, std=bands.std)
    rng = np.random.default_rng(seed)
    for name in list_norms(model):  # those of a new network would hide a lot
        layer = model.get_layer(name)
        for variable, low in ((layer.gamma, 0.5), (layer.beta, -0.5)):
            if variable is not None:
                variable.assign(rng.uniform(low, low + 1, variable.shape))
    return model


def recompute(model, norms, tiles, **changes):
    fill = survey_site(tiles.site, SIZE).bands.mean
    return recompute_statistics(
        model, norms, tiles, **{"batch_size": 4, "fill": fill} | changes
    )


def read_weights(model):
    return {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}


def read_images(tiles, fill):
    images = []
    for index in range(len(tiles)):
        pixels = tiles.read(index)
        images.append(np.where(pixels.valid[..., None], pixels.values, fill))
    return np.stack(images).astype(np.float32)


def measure_inputs(model, name, images):
    """Return mean and variance of what reaches a layer when a model predicts."""
    before = keras.Model(model.inputs[0], model.get_layer(name).input)
    values = keras.ops.convert_to_numpy(before(images, training=False))
    values = values.astype(np.float64).reshape(-1, values.shape[-1])
    return values.mean(axis=0), values.var(axis=0)


@pytest.mark.parametrize(
    "encoder", ["classic_tiny", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_statistics_are_those_of_what_reaches_each_normalisation(tiles, encoder):
    model = build_model(tiles.site, encoder=encoder)
    norms = list_norms(model)
    images = read_images(tiles, survey_site(tiles.site, SIZE).bands.mean)

    count = recompute(model, norms, tiles, batch_size=3)

    assert count == len(tiles)
    assert len(tiles) % 3  # the last batch has fewer tiles, and weighs less
    for name in norms:
        layer = model.get_layer(name)
        mean, variance = measure_inputs(model, name, images)
        spread = np.sqrt(variance.max())
        np.testing.assert_allclose(layer.moving_mean, mean, atol=1e-4 * spread)
        np.testing.assert_allclose(
            layer.moving_variance, variance, rtol=1e-3, atol=1e-6 * spread**2
        )


def test_only_the_statistics_of_the_named_move(tiles):
    model = build_model(tiles.site)
    before = read_weights(model)
    config = model.get_config()
    named = {"encoder_2_bn_1", "decoder_1_bn_2"}

    recompute(model, named, tiles)

    moved = {
        path for path, old in read_weights(model).items() if (old != before[path]).any()
    }
    assert moved == {f"{name}/{kind}" for name in named for kind in STATISTICS}
    assert model.get_config() == config


@pytest.mark.slow
def test_those_that_are_not_named_normalise_as_before(tiles):
    model = build_model(tiles.site)
    images = read_images(tiles, survey_site(tiles.site, SIZE).bands.mean)
    expected = measure_inputs(model, "decoder_1_bn_2", images)

    recompute(model, ["decoder_1_bn_2"], tiles)

    layer = model.get_layer("decoder_1_bn_2")
    np.testing.assert_allclose(layer.moving_mean, expected[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, expected[1], rtol=1e-3)


@pytest.mark.slow
def test_equal_calls_give_equal_bits_and_other_batches_the_same_but_rounding(tiles):
    found = []
    for batch_size in (4, 4, 1):
        model = build_model(tiles.site)
        norms = list_norms(model)
        recompute(model, norms[::-1], tiles, batch_size=batch_size)
        found.append(read_weights(model))

    first, same, other = found
    for path, values in first.items():
        np.testing.assert_array_equal(same[path], values)
        np.testing.assert_allclose(other[path], values, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_second_call_changes_nothing_but_rounding(tiles):
    model = build_model(tiles.site)
    norms = list_norms(model)
    recompute(model, norms, tiles)
    first = read_weights(model)

    recompute(model, norms, tiles)

    for path, values in read_weights(model).items():
        np.testing.assert_array_equal(values, first[path])


@pytest.mark.slow
def test_dropout_does_not_disturb(tiles):
    pixels = keras.Input((None, None, 5))
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Model(pixels, norm(keras.layers.Dropout(0.5)(pixels)))
    images = read_images(tiles, np.zeros(5)).reshape(-1, 5).astype(np.float64)

    recompute(model, ["norm"], tiles, fill=[0.0] * 5)

    np.testing.assert_allclose(norm.moving_mean, images.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, images.var(axis=0), rtol=1e-4)


@pytest.mark.slow
def test_two_normalisations_of_one_layer_get_the_same_statistics(tiles):
    pixels = keras.Input((None, None, 5))
    features = keras.layers.Conv2D(3, 1, name="conv")(pixels)
    norms = [keras.layers.BatchNormalization(name=f"norm_{n}") for n in range(3)]
    both = keras.layers.Add()([norm(features) for norm in norms[:2]])
    model = keras.Model(pixels, norms[2](both))

    recompute(model, ["norm_0", "norm_1", "norm_2"], tiles, fill=[0.0] * 5)

    first, second, last = (norm.moving_mean for norm in norms)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(last, np.zeros(3), atol=1e-4)
    np.testing.assert_allclose(norms[2].moving_variance, np.full(3, 4.0), rtol=1e-2)


def test_pixels_without_data_hold_the_fill(area_1):
    tiles = list_unlabelled_tiles(area_1, SIZE)
    assert not all(tiles.read(index).valid.all() for index in range(len(tiles)))
    model = build_model(area_1)
    expected = measure_inputs(
        model, "encoder_1_bn_1", read_images(tiles, np.full(5, 9999.0))
    )

    recompute(model, ["encoder_1_bn_1"], tiles, fill=[9999.0] * 5)

    layer = model.get_layer("encoder_1_bn_1")
    np.testing.assert_allclose(layer.moving_mean, expected[0], rtol=1e-3, atol=1e-4)


def test_of_many_tiles_some_are_drawn_the_same_every_time(tiles, monkeypatch):
    read = []
    original = UnlabelledTiles.read
    monkeypatch.setattr(
        UnlabelledTiles,
        "read",
        lambda self, index: read.append(index) or original(self, index),
    )
    model = build_model(tiles.site)

    counts = [
        recompute(
            model, ["encoder_1_bn_1"], tiles, batch_size=2, max_pixels=3 * SIZE**2 + 1
        )
        for _ in range(2)
    ]

    assert counts == [3, 3]
    assert read[:3] == read[3:]
    assert len(set(read)) == 3
    assert read[:3] != [0, 1, 2]  # not only the north of the first scene


def test_without_norms_nothing_is_read(tiles, monkeypatch):
    monkeypatch.setattr(UnlabelledTiles, "read", lambda *_: pytest.fail("read"))

    assert recompute(build_model(tiles.site), [], tiles) == 0


def test_a_name_that_is_no_batch_normalisation_is_refused(tiles):
    model = build_model(tiles.site)
    before = read_weights(model)

    with pytest.raises(
        ModelError, match=r"encoder_1_conv_1, nothing: .*encoder_1_bn_1"
    ):
        recompute(
            model,
            ["encoder_1_conv_1", "nothing", "encoder_1_bn_1"],
            tiles,
        )

    for path, values in read_weights(model).items():
        np.testing.assert_array_equal(values, before[path])


def test_moments_of_batches_are_those_of_all_values():
    rng = np.random.default_rng(0)
    values = rng.normal(1000, 2, (7, 3, 2, 4)).astype(np.float32)

    mean, variance = measure_moments([values[:5], values[5:]])

    flat = values.astype(np.float64).reshape(-1, 4)
    np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, flat.var(axis=0), rtol=1e-4)
    first = measure_moments([np.moveaxis(values, -1, 1)], axis=1)
    np.testing.assert_allclose(first[0], mean, rtol=1e-6)
