"""Stages proposed from a graph: those of the zoo where its names say nothing."""

from __future__ import annotations

import pytest

from cropseg.errors import ModelError
from cropseg.models import zoo
from cropseg.models.bundle import add_normalization
from cropseg.models.propose import find_tile_multiple, propose_stages, resolve_stages
from cropseg.models.rebuild import form_network
from cropseg.models.stage_file import StageEntry
from cropseg.runtime import keras

layers = keras.layers

QUICK = [("unet", "classic_tiny"), ("fpn", "resnet18")]


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, marks=[] if pair in QUICK else [pytest.mark.slow])
        for pair in zoo.list_pairs()
    ],
)
def test_parts_of_the_zoo_are_found_without_its_names(pair):
    keras.backend.clear_session()
    model = zoo.build_network(*pair, num_bands=5, num_classes=3)
    wanted = {x: s.part for s in zoo.find_stages(model, *pair) for x in s.layers}
    found = {x: s.part for s in propose_stages(model) for x in s.layers}
    assert found.keys() == wanted.keys()
    other = {name for name in wanted if wanted[name] != found[name]}
    # VGG ends in a pooling. What follows it at that size is the decoder's by its name
    # only: a plain U-Net has the same layers there, and counts them to its encoder.
    has_center = pair[1].startswith("vgg") and pair[0] != "fpn"
    assert all(name.startswith("center_block") for name in other)
    assert bool(other) == has_center
    assert find_tile_multiple(model) == zoo.get_tile_multiple(*pair)


@pytest.mark.parametrize(
    "encoder",
    ["classic", "resnet18", pytest.param("inceptionv3", marks=pytest.mark.slow)],
)
def test_stages_of_a_u_net_are_those_of_the_zoo(encoder):
    model = zoo.build_network("unet", encoder, num_bands=5, num_classes=3)
    wanted = zoo.find_stages(model, "unet", encoder)
    assert propose_stages(model) == wanted
    whole = add_normalization(model, mean=[0.0] * 5, std=[1.0] * 5)
    assert propose_stages(whole) == wanted


def describe(stages):
    return {stage.name: (stage.stride, stage.layers) for stage in stages}


def test_stages_of_someones_u_net(build_unet):
    network = form_network(build_unet()).network
    assert describe(propose_stages(network)) == {
        "encoder_1": (1, ("down_a", "down_a_bn")),
        "encoder_2": (2, ("down_b", "down_b_bn")),
        "decoder_1": (1, ("up", "drop", "up_conv")),
        "head": (1, ("head",)),
    }


def squeeze(value, name):
    """Weigh channels by what the whole image holds."""
    pooled = layers.GlobalAveragePooling2D()(value)
    pooled = layers.Dense(value.shape[-1], name=f"{name}_se")(pooled)
    return layers.Multiply()([value, layers.Reshape((1, 1, value.shape[-1]))(pooled)])


def convolve(value, filters, name, strides=1):
    return layers.Conv2D(filters, 3, strides, padding="same", name=name)(value)


def build_squeezed(side=None):
    image = keras.Input((side, side, 3))
    fine = squeeze(convolve(image, 4, "down_1"), "down_1")
    mid = squeeze(convolve(fine, 6, "down_2", 2), "down_2")
    low = squeeze(convolve(mid, 8, "down_3", 2), "down_3")
    # The context of the whole image, spread over the lowest map again.
    context = layers.GlobalAveragePooling2D(keepdims=True)(low)
    context = layers.Conv2D(8, 1, name="context")(context)
    low = convolve(layers.Add()([low, context]), 8, "bottom")
    value = layers.Concatenate()([layers.UpSampling2D()(low), mid])
    value = squeeze(convolve(value, 6, "up_2"), "up_2")
    value = layers.Concatenate()([layers.UpSampling2D()(value), fine])
    value = convolve(value, 4, "up_1")
    return keras.Model(image, layers.Conv2D(2, 1, name="head")(value))


def test_what_is_pooled_and_spread_again_is_no_lowest_resolution():
    stages = describe(propose_stages(form_network(build_squeezed()).network))
    assert stages == {
        "encoder_1": (1, ("down_1", "down_1_se")),
        "encoder_2": (2, ("down_2", "down_2_se")),
        "encoder_3": (4, ("down_3", "down_3_se", "context", "bottom")),
        "decoder_1": (2, ("up_2", "up_2_se")),
        "decoder_2": (1, ("up_1",)),
        "head": (1, ("head",)),
    }


def test_a_network_of_one_size_has_the_same_stages():
    image = keras.Input((32, 32, 3))
    value = layers.Resizing(32, 32)(image)
    model = keras.Model(image, build_squeezed(32)(value))
    network = form_network(model).network
    assert network.input_shape == (None, 32, 32, 3)
    assert find_tile_multiple(network) == 32
    free = describe(propose_stages(form_network(build_squeezed()).network))
    assert describe(propose_stages(network)) == free


def test_a_network_without_skips_is_divided_by_resolution():
    image = keras.Input((None, None, 3))
    value = image
    for number, filters in enumerate((4, 5, 6, 7), start=1):
        value = convolve(value, filters, f"down_{number}")
        value = layers.MaxPooling2D()(value) if number < 4 else value
    for number in (3, 2, 1):
        value = convolve(layers.UpSampling2D()(value), 4, f"up_{number}")
    model = keras.Model(image, layers.Conv2D(2, 1, name="head")(value))
    stages = describe(propose_stages(form_network(model).network))
    assert stages == {
        "encoder_1": (1, ("down_1",)),
        "encoder_2": (2, ("down_2",)),
        "encoder_3": (4, ("down_3",)),
        "encoder_4": (8, ("down_4",)),
        "decoder_1": (4, ("up_3",)),
        "decoder_2": (2, ("up_2",)),
        "decoder_3": (1, ("up_1",)),
        "head": (1, ("head",)),
    }


def test_a_network_that_never_falls_has_no_stages():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, convolve(convolve(image, 4, "a"), 2, "head"))
    with pytest.raises(ModelError, match="never falls"):
        propose_stages(form_network(model).network)


def test_a_network_without_decoder_says_so():
    image = keras.Input((None, None, 3))
    value = layers.UpSampling2D()(convolve(image, 4, "a", strides=2))
    model = keras.Model(image, convolve(value, 2, "head"))
    with pytest.raises(ModelError, match=r"seen as decoder .*--stages"):
        propose_stages(form_network(model).network)


def test_a_network_that_gives_another_size_is_refused():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Conv2D(2, 3)(image))
    with pytest.raises(ModelError, match="gives back the size"):
        form_network(model)


def make_entries(**stages):
    return tuple(
        StageEntry(name=name, part=name.partition("_")[0], layers=names)
        for name, names in stages.items()
    )


def test_stages_that_a_user_names_are_taken(build_unet):
    network = form_network(build_unet()).network
    stages = resolve_stages(
        network,
        make_entries(
            encoder_all=("down_*",), decoder_all=("up*", "drop"), head=("head",)
        ),
    )
    assert [(s.name, s.part, s.stride) for s in stages] == [
        ("encoder_all", "encoder", 2),
        ("decoder_all", "decoder", 1),
        ("head", "head", 1),
    ]
    assert stages[1].layers == ("up", "drop", "up_conv")


def test_the_head_is_one_layer(build_unet):
    network = form_network(build_unet()).network
    entries = make_entries(
        encoder_1=("down_*",), decoder_1=("up", "drop"), head=("up_conv", "head")
    )
    with pytest.raises(ModelError, match="its one layer is 'head'"):
        resolve_stages(network, entries)
