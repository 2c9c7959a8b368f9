"""Cached features: the same training of the head, without the forward pass."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import UsageError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network
from cropseg.runtime import keras, start_run
from cropseg.training import features
from cropseg.training.features import CachedFeatures, split_at_head
from cropseg.training.locks import list_norms
from cropseg.training.losses import build_loss
from cropseg.training.phases import FROZEN, INFERENCE, RUNNING, FitPhase
from cropseg.training.trainer import build_network as build_trainer_network
from cropseg.training.trainer import compile_network

BANDS, CLASSES = 5, 4
PAIRS = [
    ("unet", "classic_tiny", "float32"),
    pytest.param("unet", "classic_tiny", "bfloat16", marks=pytest.mark.slow),
    pytest.param("fpn", "resnet18", "float32", marks=pytest.mark.slow),
    pytest.param("unet", "resnet18", "float32", marks=pytest.mark.slow),
]


class Batches(keras.utils.PyDataset):
    """Endless random batches, which count how often they are asked for."""

    num_batches = None

    def __init__(self, *, offset=0):
        super().__init__(workers=1)
        self.offset = offset
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        rng = np.random.default_rng(index + self.offset)
        images = rng.normal(5, 2, (2, 64, 32, BANDS)).astype("float32")
        labels = rng.integers(0, CLASSES, (2, 64, 32)).astype("uint8")
        labels[:, :9] = 255
        return images, labels


def build_head_trainer(
    architecture="unet", encoder="classic_tiny", precision="float32", *, policy=FROZEN
):
    """Return the network of a phase that trains the head alone."""
    start_run(0)
    network = build_network(architecture, encoder, num_bands=BANDS, num_classes=CLASSES)
    model = add_normalization(network, mean=[5.0] * BANDS, std=[2.0] * BANDS)
    phase = FitPhase(
        name="head",
        num_steps=4,
        trained=frozenset({"head"}),
        norms=dict.fromkeys(list_norms(model), policy),
    )
    return build_trainer_network(model, phase, precision)


def fit(network, batches, *, steps):
    """Train a network, and return its losses."""
    losses = []
    trainer = compile_network(
        network,
        rate=0.01,
        loss=build_loss("cross_entropy", class_weights=None),
        rates={},
    )

    def keep(_, logs):
        losses.append(float(logs["loss"]))
        trainer.reset_metrics()

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    options = {"shuffle": False, "verbose": 0, "callbacks": [callback]}
    trainer.fit(batches, epochs=1, steps_per_epoch=steps, **options)
    return losses


def read_weights(network):
    return {v.path: keras.ops.convert_to_numpy(v) for v in network.weights}


@pytest.mark.parametrize(("architecture", "encoder", "precision"), PAIRS)
def test_a_head_trained_on_kept_features_is_the_one_trained_on_tiles(
    architecture, encoder, precision
):
    whole = build_head_trainer(architecture, encoder, precision)
    before = read_weights(whole)
    expected = fit(whole, Batches(), steps=4)
    cut = build_head_trainer(architecture, encoder, precision)

    feature_model, head_model = split_at_head(cut)
    kept = CachedFeatures(Batches(), feature_model, num_steps=4)
    losses = fit(head_model, kept, steps=4)

    # Bits were equal too, on a CPU with TensorFlow 2.21; that is not promised.
    assert losses == pytest.approx(expected, rel=1e-5)
    after, ours = read_weights(whole), read_weights(cut)
    for path, value in after.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-5, atol=1e-5)
        moved = (value != before[path]).any()
        assert moved == path.startswith("head/")


def test_the_two_models_share_their_variables_with_the_trainer():
    trainer = build_head_trainer()

    feature_model, head_model = split_at_head(trainer)

    ids = {id(variable) for variable in trainer.weights}
    parts = [*feature_model.weights, *head_model.weights]
    assert {id(variable) for variable in parts} == ids
    assert head_model.trainable_weights == trainer.trainable_weights
    assert not feature_model.trainable_weights


def test_features_and_head_together_are_the_trainer():
    trainer = build_head_trainer(policy=FROZEN)
    images, _ = Batches()[0]

    feature_model, head_model = split_at_head(trainer)

    parts = head_model(feature_model.predict_on_batch(images))
    whole = trainer.predict_on_batch(images)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(parts), whole, rtol=1e-5, atol=1e-5
    )


def test_a_trainer_that_was_split_before_or_is_one_of_several_can_be_split():
    trainer = build_head_trainer()
    images, _ = Batches()[0]
    first, _ = split_at_head(trainer)

    again, _ = split_at_head(trainer)

    np.testing.assert_array_equal(
        first.predict_on_batch(images), again.predict_on_batch(images)
    )


def test_dropout_below_the_head_is_inactive():
    start_run(0)
    pixels = keras.Input((8, 6, 2))
    dropped = keras.layers.Dropout(0.5)(pixels)
    trainer = keras.Model(pixels, keras.layers.Conv2D(3, 1, name="head")(dropped))
    images = np.ones((2, 8, 6, 2), "float32")
    labels = np.zeros((2, 8, 6), "uint8")

    feature_model, _ = split_at_head(trainer)
    kept = CachedFeatures([(images, labels)], feature_model, num_steps=1)

    np.testing.assert_array_equal(kept[0][0], images)


@pytest.mark.parametrize("policy", [RUNNING, INFERENCE])
def test_a_norm_below_the_head_that_is_trained_is_refused(policy):
    trainer = build_head_trainer(policy=policy)

    with pytest.raises(UsageError, match=r"nothing below the head is trained; 10"):
        split_at_head(trainer)


def test_statistics_below_the_head_that_run_are_refused():
    trainer = build_head_trainer()
    norm = trainer.get_layer("encoder_1_bn_1")
    norm.trainable = True
    norm.gamma.trainable = norm.beta.trainable = False

    with pytest.raises(UsageError, match="1 layers are, encoder_1_bn_1 first"):
        split_at_head(trainer)


def test_a_layer_below_the_head_that_is_trained_is_refused():
    trainer = build_head_trainer()
    trainer.get_layer("decoder_2_conv_2").trainable = True

    with pytest.raises(UsageError, match="decoder_2_conv_2 first"):
        split_at_head(trainer)


@pytest.fixture(scope="module")
def feature_model():
    return split_at_head(build_head_trainer())[0]


def test_batches_are_computed_once_at_the_start_and_never_more_than_steps(
    feature_model,
):
    batches = Batches()
    seen = []

    kept = CachedFeatures(
        batches,
        feature_model,
        num_steps=3,
        show_progress=lambda *args: seen.append(args),
    )

    assert batches.asked == [0, 1, 2]
    assert seen == [(done, 3, "features") for done in (1, 2, 3)]
    for index in (0, 2, 1):
        images, labels = Batches()[index]
        expected = feature_model.predict_on_batch(images)
        np.testing.assert_array_equal(kept[index][0], expected)
        np.testing.assert_array_equal(kept[index][1], labels)
    assert kept[0][0].shape == (2, 64, 32, 8)
    assert batches.asked == [0, 1, 2]
    assert kept.num_batches is None


def test_what_does_not_fit_into_memory_repeats(feature_model, monkeypatch):
    one = 2 * 64 * 32 * (8 * 4 + 1)  # 8 channels of 4 bytes, and labels of 1
    monkeypatch.setattr(features, "_CACHE_BYTES", 3 * one + 1)

    kept = CachedFeatures(Batches(), feature_model, num_steps=10)

    assert kept.num_kept == 3
    for index in range(10):
        np.testing.assert_array_equal(kept[index][1], kept[index % 3][1])
    assert (kept[0][0] != kept[1][0]).any()


def test_one_batch_is_kept_even_where_it_does_not_fit(feature_model, monkeypatch):
    monkeypatch.setattr(features, "_CACHE_BYTES", 1)
    seen = []

    kept = CachedFeatures(
        Batches(),
        feature_model,
        num_steps=10,
        show_progress=lambda done, total, _: seen.append((done, total)),
    )

    assert kept.num_kept == 1
    assert seen == [(1, 1)]
    assert kept[7][0] is kept[0][0]


def test_a_phase_that_goes_on_sees_what_it_would_have_seen(feature_model, monkeypatch):
    one = 2 * 64 * 32 * (8 * 4 + 1)
    monkeypatch.setattr(features, "_CACHE_BYTES", 3 * one)
    whole = CachedFeatures(Batches(), feature_model, num_steps=10)

    later = CachedFeatures(Batches(), feature_model, num_steps=10, first_step=5)

    for index in range(5):
        for ours, theirs in zip(later[index], whole[5 + index], strict=True):
            np.testing.assert_array_equal(ours, theirs)
