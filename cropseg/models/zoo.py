"""The networks that can be built: architectures times encoders.

Every network takes raw pixel values, is made of layers that Keras itself has,
and names each layer the same in every process. segmentation-models 1.0.1 is
unmaintained and needs parts of Keras 2. It is used in this file only, and what
it needs is there only while it is imported or builds. ImageNet weights are the one
thing that is downloaded, and only where they are asked for.

Not offered, with what Keras 3.15.1 says about it:

- `densenet*`: layer names with a slash, which Keras refuses.
- `seresnet*`, `seresnext*`, `senet154`, `resnext*`, `inceptionresnetv2`: they build
  and save, but hold Lambda layers, and Keras does not load those.
- `pspnet`: its pooling sizes are computed from one input size, so that it cannot
  take `(None, None, bands)`, and its logits are upsampled after the last convolution.
- `resnet101`, `resnet152`, `efficientnetb5` to `b7`: they build; nothing more was
  tested, because they are too large for the machines that the tests run on.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol
from unittest import mock

from cropseg.errors import UsageError
from cropseg.models import classic
from cropseg.models.imagenet_file import FOREIGN_ENCODERS, require_imagenet_encoder
from cropseg.models.stages import HEAD, Stage, derive_stages
from cropseg.runtime import keras

INPUT = "pixels"
"""Name of a network's input."""

OUTPUT = "probabilities"
"""Name of a network's last layer."""


class Builder(Protocol):
    """What builds a network between its input and its logits."""

    def __call__(self, pixels: Any, *, num_classes: int, width: int | None) -> Any:
        """Build the network on top of an input.

        Args:
            pixels: Keras tensor `(None, None, None, bands)`, float32, raw values.
            num_classes: Number of classes.
            width: Filters where the network is narrowest; None for its own choice.

        Returns:
            The logits `(None, None, None, num_classes)`, from a layer named `head`.
            Every layer that has variables has a name that does not depend on what
            was built before.
        """


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of segmentation-models."""

    class_name: str
    """Its name in segmentation-models."""
    tile_multiple: int
    """What a tile's sides are multiples of, with every encoder listed here."""
    width: int
    """Filters where its decoder is narrowest, if none are asked for."""
    decoder_prefixes: tuple[tuple[str, ...], ...]
    """For each decoder stage, from input to output, its layers' name prefixes."""


_UPWARDS = (("center_block",), *((f"decoder_stage{n}",) for n in range(5)))
_PYRAMID = tuple((f"fpn_stage_p{n}", f"segm_stage{n}") for n in (5, 4, 3, 2))

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "unet": Architecture(
            class_name="Unet", tile_multiple=32, width=16, decoder_prefixes=_UPWARDS
        ),
        "linknet": Architecture(
            class_name="Linknet", tile_multiple=32, width=16, decoder_prefixes=_UPWARDS
        ),
        "fpn": Architecture(
            class_name="FPN",
            tile_multiple=32,
            width=128,
            decoder_prefixes=(*_PYRAMID, ("final_stage",)),
        ),
    }
)
"""The architectures of segmentation-models. `unet` also has encoders of ours."""

ENCODERS: tuple[str, ...] = (*classic.FILTERS, *FOREIGN_ENCODERS)
"""The encoders; those in `classic.FILTERS` go with `unet` only."""


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    build: Builder
    tile_multiple: int
    decoder_prefixes: tuple[tuple[str, ...], ...]


def list_pairs() -> list[tuple[str, str]]:
    """Return every (architecture, encoder) that can be built, registered ones too."""
    return list(_recipes)


def get_tile_multiple(architecture: str, encoder: str) -> int:
    """Return what the sides of a tile must be multiples of, in pixels.

    Raises:
        UsageError: If there is no such pair.
    """
    return _get_recipe(architecture, encoder).tile_multiple


def build_network(
    architecture: str,
    encoder: str,
    *,
    num_bands: int,
    num_classes: int,
    width: int | None = None,
) -> Any:
    """Build a network with random weights.

    The weights come from Keras' global seed (`cropseg.runtime.start_run`).

    Args:
        architecture: Such as `unet`.
        encoder: Such as `classic`.
        num_bands: Number of bands of the images.
        num_classes: Number of classes.
        width: Filters where the network is narrowest: the first level of `classic`,
            the last decoder stage of `unet` and `linknet`, the segmentation blocks
            of `fpn`. All that are tied to it keep their proportion. None is the
            network's own choice.

    Returns:
        An uncompiled, flat functional model from `pixels` `(None, None, num_bands)`,
        float32 raw values, over the logits of `head` to `probabilities`
        `(None, None, num_classes)`, float32. Predict tiles of one shape only: FPN
        upsamples bilinearly, which fails on a second shape (HAZARDS 18).

    Raises:
        UsageError: If there is no such pair, a number is too small, or a registered
            builder does not end in a layer `head`.
    """
    recipe = _get_recipe(architecture, encoder)
    wanted = (("num_bands", num_bands, 1), ("num_classes", num_classes, 2))
    for name, value, least in (*wanted, ("width", 1 if width is None else width, 1)):
        if value < least:
            raise UsageError(f"{name} is {value}. It must be {least} or more.")
    pixels = keras.Input((None, None, num_bands), dtype="float32", name=INPUT)
    logits = recipe.build(pixels, num_classes=num_classes, width=width)
    output = keras.layers.Softmax(name=OUTPUT, dtype="float32")(logits)
    model = keras.Model(pixels, output, name=f"{architecture}_{encoder}")
    before_last = model.layers[-2].name
    if before_last != HEAD or logits.shape[-1] != num_classes:
        raise UsageError(
            f"The builder of {architecture}-{encoder} ends in a layer {before_last!r} "
            f"of {logits.shape[-1]} channels. It must end in a layer {HEAD!r} of "
            f"{num_classes} channels, one a class."
        )
    return model


def find_stages(model: Any, architecture: str, encoder: str) -> tuple[Stage, ...]:
    """Return the stages of a network of this pair, from input to output.

    Args:
        model: What `build_network` returned, the same after loading, or either with
            normalisation in front.
        architecture: The architecture that it was built with.
        encoder: The encoder that it was built with.

    Raises:
        UsageError: If there is no such pair.
        ModelError: If the model is not a network of this pair.
    """
    recipe = _get_recipe(architecture, encoder)
    return derive_stages(
        model, recipe.decoder_prefixes, tile_multiple=recipe.tile_multiple
    )


def build_pretrained_network(
    architecture: str, encoder: str, *, weights: str | None
) -> Any:
    """Build a network of segmentation-models with a pretrained encoder.

    Args:
        architecture: Such as `unet`.
        encoder: One of segmentation-models.
        weights: `imagenet`, which downloads them once, or the path of a file as the
            download would have given it. None leaves random ones.

    Returns:
        A functional model from three bands to logits of two classes, whose layers
        have the names that `build_network` gives them.

    Raises:
        UsageError: If there is no such pair, or the encoder is no one's but ours.
        Exception: If the weights cannot be had, or are another network's.
    """
    _get_recipe(architecture, encoder)  # whether there is such a pair
    require_imagenet_encoder(encoder)
    logits = _build_logits(
        (None, None, 3),
        num_classes=2,
        width=None,
        architecture=ARCHITECTURES[architecture],
        encoder=encoder,
        encoder_weights=weights,
    )
    clone = _clone_logits(logits, keras.Input((None, None, 3), name=INPUT))
    clone.set_weights(logits.get_weights())
    return clone


def register_builder(
    architecture: str,
    encoder: str,
    build: Builder,
    *,
    tile_multiple: int,
    decoder_prefixes: Sequence[Sequence[str]],
) -> None:
    """Add a network of your own under a name, for this process.

    Args:
        architecture: Its architecture's name, a new or an existing one.
        encoder: Its encoder's name, a new or an existing one.
        build: See `Builder`.
        tile_multiple: What the sides of its tiles must be multiples of, in pixels.
        decoder_prefixes: For each decoder stage, from input to output, the prefixes
            of its layers' names.

    Raises:
        UsageError: If the pair exists, or a value is not usable.
    """
    pair = (architecture, encoder)
    groups = tuple(tuple(group) for group in decoder_prefixes)
    if pair in _recipes:
        raise UsageError(f"{architecture}-{encoder} exists. Choose another name.")
    if tile_multiple < 1 or not any(groups) or not all(map(all, groups)):
        raise UsageError(
            f"{architecture}-{encoder} has tile_multiple {tile_multiple} and "
            f"decoder_prefixes {groups}. The first must be 1 or more, the second needs "
            "at least one prefix, and none may be empty."
        )
    _recipes[pair] = _Recipe(
        build=build, tile_multiple=tile_multiple, decoder_prefixes=groups
    )


def _get_recipe(architecture: str, encoder: str) -> _Recipe:
    recipe = _recipes.get((architecture, encoder))
    if recipe is not None:
        return recipe
    encoders = [name for family, name in _recipes if family == architecture]
    if not encoders:
        families = list(dict.fromkeys(family for family, _ in _recipes))
        raise UsageError(
            f"Architecture {architecture!r} is not known. "
            f"Choose one of {_sort_by_likeness(architecture, families)}."
        )
    others = [family for family, name in _recipes if name == encoder]
    problem = f"goes with {', '.join(others)} only" if others else "is not known"
    raise UsageError(
        f"Encoder {encoder!r} {problem}. With architecture {architecture!r}, "
        f"choose one of {_sort_by_likeness(encoder, encoders)}."
    )


def _sort_by_likeness(received: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(received, names, n=3)
    return ", ".join([*near, *(name for name in names if name not in near)])


def _build_foreign(
    pixels: Any,
    *,
    num_classes: int,
    width: int | None,
    architecture: Architecture,
    encoder: str,
) -> Any:
    """Build a network of segmentation-models, as a `Builder` does."""
    logits = _build_logits(
        tuple(pixels.shape[1:]),
        num_classes=num_classes,
        width=width,
        architecture=architecture,
        encoder=encoder,
    )
    return _clone_logits(logits, pixels).output


def _build_logits(
    input_shape: tuple[int | None, ...],
    *,
    num_classes: int,
    width: int | None,
    architecture: Architecture,
    encoder: str,
    encoder_weights: str | None = None,
) -> Any:
    """Build a network of segmentation-models up to its logits."""
    width = architecture.width if width is None else width
    options: dict[str, dict[str, Any]] = {
        "Unet": {"decoder_filters": tuple(width * n for n in (16, 8, 4, 2, 1))},
        "Linknet": {"decoder_filters": (None, None, None, None, width)},
        "FPN": {"pyramid_block_filters": 2 * width},
    }
    with _segmentation_models() as package:
        model = getattr(package, architecture.class_name)(
            encoder,
            input_shape=input_shape,
            classes=num_classes,
            activation="linear",
            encoder_weights=encoder_weights,
            **options[architecture.class_name],
        )
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    return keras.Model(model.input, convolutions[-1].output)


def _clone_logits(logits: Any, pixels: Any) -> Any:
    """Copy a network of segmentation-models onto an input, under lasting names."""
    names = {**_number_names(logits), logits.layers[-1].name: HEAD}
    return keras.models.clone_model(
        logits,
        input_tensors=pixels,
        clone_function=partial(_clone_layer, names=names),
    )


def _clone_layer(layer: Any, names: Mapping[str, str]) -> Any:
    """Copy a layer under its lasting name, of a class that Keras itself has."""
    config = {**layer.get_config(), "name": names.get(layer.name, layer.name)}
    kind = type(layer)
    # EfficientNet brings a function and a class of its own, which no other process
    # has. Keras has both, as `silu` and `Dropout`.
    if getattr(getattr(layer, "activation", None), "__name__", None) == "swish":
        config["activation"] = "silu"
    if kind.__name__ == "FixedDropout":
        kind = keras.layers.Dropout
    return kind.from_config(config)


def _number_names(model: Any) -> dict[str, str]:
    """Map the names that Keras made up to names that count from this model's start.

    Keras counts over the whole process. The numbers here rise in the order of
    building, and begin as in a fresh process: `conv2d`, `conv2d_1`. So InceptionV3
    has the names that Keras Applications gives it.
    """
    made_up: dict[str, list[tuple[int, str]]] = {}
    for layer in model.layers:
        stem, _, number = layer.name.rpartition("_")
        if not number.isdigit():
            stem, number = layer.name, "0"
        if stem.replace("_", "") == type(layer).__name__.lower():
            made_up.setdefault(stem, []).append((int(number), layer.name))
    return {
        name: f"{stem}_{index}" if index else stem
        for stem, numbered in made_up.items()
        for index, (_, name) in enumerate(sorted(numbered))
    }


@contextlib.contextmanager
def _segmentation_models() -> Iterator[Any]:
    """Give the package, and for that time what it needs of Keras 2.

    Its import prints, and registers a `swish` and a `FixedDropout` with Keras that
    would shadow Keras' own when another model is loaded. None of it outlives this
    context: each patch puts back what was there.
    """
    custom_objects = keras.saving.get_custom_objects()
    before = dict(custom_objects)
    with (
        mock.patch.dict(os.environ, SM_FRAMEWORK="keras"),
        mock.patch.object(keras.utils, "generic_utils", keras.utils, create=True),
        mock.patch.object(keras.backend, "int_shape", _int_shape, create=True),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        for message in (
            "This model usually expects 1 or 3 input channels",
            "`input_shape` is undefined or non-square",
            ".*invalid escape sequence",  # where Python first compiles the package
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield importlib.import_module("segmentation_models")
        finally:
            custom_objects.clear()
            custom_objects.update(before)


def _int_shape(tensor: Any) -> tuple[int | None, ...]:
    return tuple(tensor.shape)


_recipes: dict[tuple[str, str], _Recipe] = {
    ("unet", name): _Recipe(
        build=classic.bind_classic(filters),
        tile_multiple=classic.get_tile_multiple(filters),
        decoder_prefixes=classic.list_decoder_prefixes(filters),
    )
    for name, filters in classic.FILTERS.items()
} | {
    (name, encoder): _Recipe(
        build=partial(_build_foreign, architecture=architecture, encoder=encoder),
        tile_multiple=architecture.tile_multiple,
        decoder_prefixes=architecture.decoder_prefixes,
    )
    for name, architecture in ARCHITECTURES.items()
    for encoder in FOREIGN_ENCODERS
}
