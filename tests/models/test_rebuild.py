"""Any network comes into one form, predicts what it did, and can be built anew."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models import zoo
from cropseg.models.bundle import add_normalization
from cropseg.models.rebuild import find_class_axis, form_network, rebuild_network
from cropseg.runtime import keras

layers = keras.layers


def predict(model, pixels):
    return np.asarray(model(pixels, training=False))


def make_pixels(bands, side=8):
    return np.random.default_rng(3).uniform(0, 4, (2, side, side, bands)).astype("f4")


def soften(values):
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def list_names(model):
    return [layer.name for layer in model.layers]


@pytest.mark.parametrize("end", ["inside", "activation", "softmax", "logits"])
def test_every_end_becomes_logits_and_probabilities(end, build_unet):
    model = build_unet(end=end)
    network = form_network(model).network
    assert list_names(network)[0] == "pixels"
    assert list_names(network)[-2:] == ["head", "probabilities"]
    head = network.get_layer("head")
    assert head.get_config()["activation"] == "linear"
    assert type(network.layers[-1]) is layers.Softmax
    pixels = make_pixels(4)
    wanted = predict(model, pixels)
    wanted = soften(wanted) if end == "logits" else wanted
    np.testing.assert_allclose(predict(network, pixels), wanted, atol=1e-6)


def test_the_network_given_is_left_as_it_was(build_unet):
    model = build_unet()
    names, before = list_names(model), predict(model, make_pixels(4))
    form_network(model)
    rebuild_network(model, num_bands=2, num_classes=9)
    assert list_names(model) == names
    assert np.array_equal(predict(model, make_pixels(4)), before)


def test_other_layers_keep_their_names_and_settings(build_unet):
    model = build_unet()
    network = rebuild_network(model, num_bands=4, num_classes=3)
    kept = [name for name in list_names(model) if name not in ("image", "logits")]
    assert [n for n in list_names(network) if n in kept] == kept
    assert network.get_layer("down_b_bn").scale is False
    assert network.get_layer("drop").rate == 0.2


def test_a_network_is_built_for_other_bands_and_classes(build_unet):
    keras.utils.set_random_seed(1)
    network = rebuild_network(build_unet(), num_bands=7, num_classes=5)
    assert network.input_shape == (None, None, None, 7)
    assert network.output_shape == (None, None, None, 5)
    assert predict(network, make_pixels(7, side=10)).shape == (2, 10, 10, 5)


def test_new_weights_come_from_the_global_seed(build_unet):
    model = build_unet()
    found = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        network = rebuild_network(model, num_bands=4, num_classes=3)
        found.append(np.asarray(network.get_layer("down_a").kernel))
    old = np.asarray(model.get_layer("down_a").kernel)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], old)


def test_a_rebuilt_network_rebuilds_alike(build_unet):
    once = rebuild_network(build_unet(), num_bands=4, num_classes=3)
    whole = add_normalization(once, mean=[1.0] * 4, std=[2.0] * 4)
    again = rebuild_network(whole, num_bands=4, num_classes=3)
    assert list_names(again) == list_names(once)
    assert [w.path for w in again.weights] == [w.path for w in once.weights]


@pytest.mark.parametrize(
    "pair",
    [
        ("unet", "resnet18"),
        pytest.param(("fpn", "mobilenetv2"), marks=pytest.mark.slow),
    ],
)
def test_a_network_of_the_zoo_is_rebuilt_as_the_zoo_builds_it(pair):
    model = zoo.build_network(*pair, num_bands=4, num_classes=3)
    wanted = zoo.build_network(*pair, num_bands=6, num_classes=2)
    network = rebuild_network(model, num_bands=6, num_classes=2)
    assert sorted(list_names(network)) == sorted(list_names(wanted))
    shapes = {w.path: tuple(w.shape) for w in wanted.weights}
    assert {w.path: tuple(w.shape) for w in network.weights} == shapes


def test_normalisation_in_front_is_parted_from_the_network(build_unet):
    unet = build_unet()
    image = keras.Input((None, None, 4))
    scaled = layers.Rescaling(1 / 10, offset=-0.5)(image)
    scaled = layers.Normalization(
        mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 4.0, 9.0, 16.0]
    )(scaled)
    model = keras.Model(image, unet(scaled))
    form = form_network(model)
    mean, std = form.normalization
    np.testing.assert_allclose(mean, [6, 7, 8, 9], rtol=1e-6)
    np.testing.assert_allclose(std, [10, 20, 30, 40], rtol=1e-6)
    whole = add_normalization(form.network, mean=mean, std=std)
    pixels = 10 * make_pixels(4)
    np.testing.assert_allclose(
        predict(whole, pixels), predict(model, pixels), atol=1e-5
    )


def test_a_normalisation_that_was_adapted_is_parted_too(build_unet):
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal([1, 2, 3, 4], 2.0, (50, 4)))
    image = keras.Input((None, None, 4))
    form = form_network(keras.Model(image, build_unet()(layer(image))))
    np.testing.assert_allclose(form.normalization[0], np.asarray(layer.mean)[0], 1e-5)
    assert not any(isinstance(x, layers.Normalization) for x in form.network.layers)


def test_nothing_in_front_is_no_normalisation(build_unet):
    assert form_network(build_unet()).normalization is None


def test_a_normalisation_behind_other_layers_is_refused(build_unet):
    image = keras.Input((None, None, 4))
    value = layers.Conv2D(4, 1)(image)
    value = layers.Normalization(mean=0.0, variance=1.0, name="late")(value)
    with pytest.raises(ModelError, match="'late' behind other layers"):
        form_network(keras.Model(image, build_unet()(value)))


def build_nested():
    """Build a network of nested ones, as tutorials do, with names that meet."""
    inner = keras.Input((None, None, 3))
    fine = layers.Conv2D(4, 3, padding="same", name="conv")(inner)
    coarse = layers.Conv2D(6, 3, strides=2, padding="same", name="down")(fine)
    encoder = keras.Model(inner, [fine, coarse], name="encoder")
    up = keras.Sequential(
        [layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="conv")],
        name="up",
    )
    image = keras.Input((None, None, 3))
    fine, coarse = encoder(image, training=False)
    joined = layers.Concatenate()([up(coarse), fine])
    return keras.Model(image, layers.Conv2D(2, 1, name="last")(joined))


def test_nested_networks_are_taken_apart():
    model = build_nested()
    network = form_network(model).network
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    names = list_names(network)
    assert {"encoder_conv", "down", "up_conv", "head"} <= set(names)
    pixels = make_pixels(3)
    wanted = soften(predict(model, pixels))
    np.testing.assert_allclose(predict(network, pixels), wanted, atol=1e-6)
    assert list_names(form_network(network).network) == names


def test_operations_without_a_layer_are_kept():
    image = keras.Input((None, None, 3))
    value = layers.Conv2D(4, 3, padding="same", name="first")(image)
    value = keras.ops.relu(value + 2.0 * keras.ops.sigmoid(value))
    model = keras.Model(image, layers.Conv2D(2, 1)(value))
    network = form_network(model).network
    pixels = make_pixels(3)
    wanted = soften(predict(model, pixels))
    np.testing.assert_allclose(predict(network, pixels), wanted, atol=1e-6)


def test_a_layer_without_weights_that_is_shared_becomes_one_a_call():
    image = keras.Input((None, None, 3))
    relu, norm = layers.ReLU(name="relu"), layers.BatchNormalization
    value = relu(norm(name="a")(relu(layers.Conv2D(3, 1, name="c")(image))))
    model = keras.Model(image, layers.Conv2D(2, 1)(value))
    network = form_network(model).network
    assert [n for n in list_names(network) if "relu" in n] == ["relu", "relu_1"]


def test_a_layer_with_weights_that_is_shared_is_refused():
    image = keras.Input((None, None, 3))
    conv = layers.Conv2D(3, 1, name="twice")
    model = keras.Model(image, layers.Conv2D(2, 1)(conv(conv(image))))
    with pytest.raises(ModelError, match="calls twice more than once"):
        form_network(model)


def test_half_precision_becomes_float32():
    image = keras.Input((None, None, 3))
    value = layers.Conv2D(4, 3, dtype="mixed_float16", padding="same")(image)
    value = layers.Conv2D(2, 1, dtype="bfloat16")(value)
    network = form_network(keras.Model(image, value)).network
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    assert {str(weight.dtype) for weight in network.weights} == {"float32"}


def test_a_network_of_one_size_keeps_it_where_it_must():
    image = keras.Input((16, 16, 3))
    value = layers.Conv2D(4, 3, padding="same")(image)
    pooled = layers.AveragePooling2D(16)(value)
    spread = layers.UpSampling2D(16)(layers.Conv2D(4, 1)(pooled))
    value = layers.Concatenate()([value, spread])
    model = keras.Model(image, layers.Conv2D(2, 1)(value))
    # It would work on multiples of 16 too.
    network = rebuild_network(model, num_bands=5, num_classes=2)
    assert network.input_shape == (None, None, None, 5)
    fixed = layers.Resizing(16, 16)(value)
    model = keras.Model(image, layers.Conv2D(2, 1)(fixed))
    network = rebuild_network(model, num_bands=5, num_classes=2)
    assert network.input_shape == (None, 16, 16, 5)


@pytest.mark.parametrize(
    ("head", "axes"),
    [
        (lambda: layers.Conv2D(3, 1), {"kernel": 3, "bias": 0}),
        (lambda: layers.Conv2DTranspose(3, 2, strides=2), {"kernel": 2, "bias": 0}),
        (lambda: layers.Dense(3), {"kernel": 1, "bias": 0}),
    ],
)
def test_the_axis_of_the_classes_is_known(head, axes):
    image = keras.Input((None, None, 3))
    value = layers.Conv2D(5, 3, strides=1, padding="same")(image)
    layer = head()
    if isinstance(layer, layers.Conv2DTranspose):
        value = layers.MaxPooling2D()(value)
    model = keras.Model(image, layer(value))
    head = rebuild_network(model, num_bands=3, num_classes=7).get_layer("head")
    for variable in head.weights:
        axis = find_class_axis(head, variable) % len(variable.shape)
        assert axis == axes[variable.path.rpartition("/")[2]]
        assert variable.shape[axis] == 7


def end_in_sigmoid(value):
    return layers.Conv2D(1, 1, activation="sigmoid", name="last")(value)


def end_in_reshape(value):
    value = layers.Conv2D(2, 1)(value)
    return layers.Reshape((16, 16, 2), name="last")(value)


def end_in_upsampling(value):
    value = layers.Conv2D(2, 1)(layers.MaxPooling2D()(value))
    return layers.Softmax()(layers.UpSampling2D(name="last")(value))


def end_twice(value):
    return layers.Softmax()(
        layers.Conv2D(2, 1, activation="softmax", name="last")(value)
    )


def end_in_sum(value):
    return layers.Add(name="last")([value, value])


@pytest.mark.parametrize(
    "end", [end_in_sigmoid, end_in_reshape, end_in_upsampling, end_twice, end_in_sum]
)
def test_other_ends_are_refused_with_the_layer(end):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, end(layers.Conv2D(4, 3, padding="same")(image)))
    with pytest.raises(ModelError, match="ends in 'last'"):
        form_network(model)


def test_several_inputs_or_outputs_are_refused():
    image, more = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    value = layers.Conv2D(4, 1)(layers.Add()([image, more]))
    with pytest.raises(ModelError, match="must take one image"):
        form_network(keras.Model([image, more], value))
    one = layers.Conv2D(4, 1)(image)
    with pytest.raises(ModelError, match="and give one"):
        form_network(keras.Model(image, [one, layers.ReLU()(one)]))


def test_a_classifier_of_whole_images_is_refused():
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(image)))
    with pytest.raises(ModelError, match="It must take an image"):
        form_network(model)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="theirs")
        self.conv = layers.Conv2D(2, 1)

    def call(self, values):
        return self.conv(values)


def test_a_subclassed_model_is_refused():
    model = Subclassed()
    model(make_pixels(3))
    for refuse in (
        form_network,
        lambda m: rebuild_network(m, num_bands=3, num_classes=2),
    ):
        with pytest.raises(
            ModelError, match=r"'theirs' of class Subclassed .*subclassed"
        ):
            refuse(model)


def test_bands_that_a_layer_cannot_take_are_told():
    image = keras.Input((None, None, 4))
    value = layers.Conv2D(4, 1, groups=4, name="grouped")(image)
    model = keras.Model(image, layers.Conv2D(2, 1)(value))
    with pytest.raises(ModelError, match="cannot be built for 3 bands and 2 classes"):
        rebuild_network(model, num_bands=3, num_classes=2)
