"""The forward pass: one shape, nodata filled, nothing changed by its neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.models.bundle import Bundle
from cropseg.runtime import keras, share_between_runs
from cropseg.sites.raster import Pixels


@pytest.fixture
def tiles(bundle):
    rng = np.random.default_rng(0)
    card = bundle.card
    values = rng.normal(card.band_mean, card.band_std, (3, 16, 24, 5))
    return list(values.astype("float32"))


def test_a_pixel_without_data_becomes_the_band_means(bundle):
    engine = KerasEngine(bundle, batch_size=1, precision="float32")
    values = np.arange(2 * 3 * 5, dtype="int16").reshape(2, 3, 5)
    valid = np.array([[True, True, False], [True, False, True]])
    filled = engine.fill_nodata(Pixels(values=values, valid=valid))
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[valid], values[valid])
    expected = np.float32(bundle.card.nodata_fill)
    np.testing.assert_array_equal(filled[0, 2], expected)
    np.testing.assert_array_equal(filled[1, 1], expected)
    assert values[0, 2, 0] == 10  # what was read stays as it was


def test_a_filled_pixel_has_the_value_nought_after_normalisation(bundle):
    engine = KerasEngine(bundle, batch_size=1, precision="float32")
    nothing = Pixels(
        values=np.full((1, 1, 5), np.nan, "float32"), valid=np.zeros((1, 1), np.bool_)
    )
    layer = bundle.model.get_layer("band_normalization")
    normal = np.asarray(layer(engine.fill_nodata(nothing)))
    np.testing.assert_allclose(normal, 0, atol=1e-6)


def test_a_tile_is_predicted_as_the_model_does_it(bundle, tiles):
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    expected = np.asarray(bundle.model(np.stack(tiles[:2]), training=False))
    found = engine.predict(tiles[:2])
    assert (found.shape, found.dtype) == ((2, 16, 24, 4), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_a_batch_that_is_not_full_gives_as_many_tiles_as_it_got(bundle, tiles):
    one = KerasEngine(bundle, batch_size=1, precision="float32")
    expected = np.concatenate([one.predict([tile]) for tile in tiles])
    engine = KerasEngine(bundle, batch_size=4, precision="float32")
    for count in (1, 3):
        found = engine.predict(tiles[:count])
        np.testing.assert_array_equal(found, expected[:count])


def test_the_network_sees_one_batch_size_only(bundle, tiles, monkeypatch):
    engine = KerasEngine(bundle, batch_size=3, precision="float32")
    shapes = []
    predict = engine._model.predict_on_batch
    monkeypatch.setattr(
        engine._model,
        "predict_on_batch",
        lambda batch: (shapes.append(batch.shape), predict(batch))[1],
    )
    for count in (1, 2, 3):
        engine.predict(tiles[:count])
    assert set(shapes) == {(3, 16, 24, 5)}


def test_bfloat16_is_a_choice_of_the_engine_and_leaves_the_bundle_alone(bundle, tiles):
    half = KerasEngine(bundle, batch_size=1, precision="bfloat16")
    whole = KerasEngine(bundle, batch_size=1, precision="float32")
    difference = np.abs(half.predict(tiles[:1]) - whole.predict(tiles[:1]))
    assert 0 < difference.max() < 0.1
    assert {layer.compute_dtype for layer in bundle.model.layers} == {"float32"}


def test_engines_that_share_a_trace_predict_with_their_own_weights(
    build_bundle, bundle, tiles
):
    other = build_bundle(
        mean=bundle.card.band_mean,
        std=bundle.card.band_std,
        seed=bundle.card.seed + 1,
        **{
            name: getattr(bundle.card, name)
            for name in ("site", "classes", "bands", "gsd_m", "lineage", "fingerprint")
        },
    )
    bundles = (bundle, other)
    expected = [KerasEngine(item, batch_size=2).predict(tiles[:2]) for item in bundles]
    with share_between_runs():
        engines = [KerasEngine(item, batch_size=2) for item in bundles]
        for index in (0, 1, 0):
            found = engines[index].predict(tiles[:2])
            np.testing.assert_array_equal(found, expected[index])
        twice = [(0, tiles[0]), (1, tiles[1])] * 2
        streams = [engine.stream(twice) for engine in engines]
        for pair in zip(*streams, strict=True):  # batch by batch, in turn
            for index, (key, found) in enumerate(pair):
                np.testing.assert_array_equal(found, expected[index][key])
    assert (expected[0] != expected[1]).any()


def test_a_stream_takes_the_weights_that_its_model_has_then(bundle, tiles):
    model = keras.models.clone_model(bundle.model)
    with share_between_runs():
        changed = Bundle(model=model, card=bundle.card)
        engine = KerasEngine(changed, batch_size=2, precision="float32")
        for factor in (1, 2):  # as a training does between two scores
            for variable in model.trainable_variables:
                variable.assign(variable * factor)
            whole = np.asarray(model(np.stack(tiles[:2])))
            for key, found in engine.stream(enumerate(tiles[:2])):
                np.testing.assert_allclose(found, whole[key], atol=1e-5)


def test_tiles_of_several_shapes_are_batched_apart_and_stay_in_order(bundle, tiles):
    mixed = [tiles[0], tiles[1], tiles[2], tiles[0][:, :16], tiles[1][:, :16], tiles[1]]
    one = KerasEngine(bundle, batch_size=1, precision="float32")
    expected = [one.predict([tile])[0] for tile in mixed]
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    found = list(engine.stream(enumerate(mixed)))
    assert [key for key, _ in found] == list(range(len(mixed)))
    for (_, ours), theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_margin_is_cut_off(bundle, tiles):
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    whole = dict(engine.stream(enumerate(tiles)))
    for key, found in engine.stream(enumerate(tiles), margin=3):
        np.testing.assert_array_equal(found, whole[key][3:-3, 3:-3])


def test_a_network_that_interpolates_takes_a_second_shape(bundle):
    pixels = keras.Input((None, None, 5))
    upsampled = keras.layers.UpSampling2D(2, interpolation="bilinear")(pixels)
    model = keras.Model(pixels, upsampled)
    engine = KerasEngine(Bundle(model=model, card=bundle.card), batch_size=1)
    for shape in ((8, 4, 5), (4, 12, 5), (8, 4, 5)):
        tile = np.random.default_rng(0).normal(size=shape).astype("float32")
        found = engine.predict([tile])[0]
        np.testing.assert_allclose(found, model(tile[None])[0], atol=1e-6)


def test_engines_that_share_a_network_each_take_a_shape_of_their_own(bundle):
    pixels = keras.Input((None, None, 5))
    upsampled = keras.layers.UpSampling2D(2, interpolation="bilinear")(pixels)
    model = keras.Model(pixels, upsampled)
    with share_between_runs():
        for shape in ((8, 4, 5), (4, 12, 5), (8, 4, 5)):
            engine = KerasEngine(Bundle(model=model, card=bundle.card), batch_size=1)
            tile = np.random.default_rng(0).normal(size=shape).astype("float32")
            found = engine.predict([tile])[0]
            np.testing.assert_allclose(found, model(tile[None])[0], atol=1e-6)


def test_a_network_of_one_size_says_which(bundle):
    pixels = keras.Input((8, 8, 5))
    model = keras.Model(pixels, keras.layers.Softmax()(pixels))
    engine = KerasEngine(Bundle(model=model, card=bundle.card), batch_size=1)
    assert engine.predict([np.ones((8, 8, 5), "float32")]).shape == (1, 8, 8, 5)
    with pytest.raises(ModelError, match=r"8 x 8 pixels alone; got 16 x 8.*size 8"):
        engine.predict([np.ones((16, 8, 5), "float32")])
