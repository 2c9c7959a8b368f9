"""The plain U-Net of cropseg: no pretrained weights, any number of bands.

Each level of the encoder is two 3 x 3 convolutions with batch normalisation,
and the first level works at full resolution, so that a field one pixel wide
keeps its edge. Every layer has a name of its own that tells where it stands.

References:
    Ronneberger, Fischer and Brox, 2015, https://doi.org/10.1007/978-3-319-24574-4_28
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from cropseg.runtime import keras

FILTERS = MappingProxyType(
    {"classic": (24, 48, 96, 192, 256), "classic_tiny": (8, 16, 32)}
)
"""Filters a level of each plain encoder, from full resolution downwards.

`classic_tiny` is for tests, demos and small machines.
"""


def get_tile_multiple(filters: Sequence[int]) -> int:
    """Return what a tile's sides are multiples of: one halving between levels.

    Example:
        >>> get_tile_multiple((8, 16, 32))
        4
    """
    return int(2 ** (len(filters) - 1))


def list_decoder_prefixes(filters: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the name prefixes of each decoder stage, from input to output."""
    return tuple((f"decoder_{number}_",) for number in range(1, len(filters)))


def scale_filters(filters: Sequence[int], width: int | None) -> tuple[int, ...]:
    """Return filters in the same proportions that begin with `width`.

    Example:
        >>> scale_filters((24, 48, 96, 192, 256), 12)
        (12, 24, 48, 96, 128)
    """
    if width is None:
        return tuple(filters)
    return tuple(round(count * width / filters[0]) for count in filters)


def bind_classic(filters: Sequence[int]) -> Callable[..., Any]:
    """Return the builder of a plain U-Net with these filters.

    Args:
        filters: Filters a level, from full resolution downwards.

    Returns:
        A function as `cropseg.models.zoo.Builder` describes it.
    """

    def build(pixels: Any, *, num_classes: int, width: int | None) -> Any:
        return build_classic(
            pixels, num_classes=num_classes, filters=scale_filters(filters, width)
        )

    return build


def build_classic(pixels: Any, *, num_classes: int, filters: Sequence[int]) -> Any:
    """Build a plain U-Net on top of an input.

    Args:
        pixels: Keras tensor `(N, H, W, bands)`; H and W are multiples of
            `get_tile_multiple(filters)`.
        num_classes: Number of classes.
        filters: Filters a level, from full resolution downwards.

    Returns:
        The logits, a Keras tensor `(N, H, W, num_classes)`, from a layer `head`.
    """
    skips: list[Any] = []
    x = pixels
    for level, count in enumerate(filters, start=1):
        if skips:
            x = keras.layers.MaxPooling2D(2, name=f"encoder_{level}_pool")(x)
        x = _convolve_twice(x, count, stage=f"encoder_{level}")
        skips.append(x)
    skips.pop()
    for number, count in enumerate(reversed(filters[:-1]), start=1):
        stage = f"decoder_{number}"
        x = keras.layers.UpSampling2D(
            2, interpolation="nearest", name=f"{stage}_upsampling"
        )(x)
        x = keras.layers.Concatenate(name=f"{stage}_skip")([x, skips.pop()])
        x = _convolve_twice(x, count, stage=stage)
    return keras.layers.Conv2D(
        num_classes, 1, kernel_initializer="he_normal", name="head"
    )(x)


def _convolve_twice(x: Any, filters: int, *, stage: str) -> Any:
    for number in (1, 2):
        x = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,  # the batch normalisation after it has a shift
            kernel_initializer="he_normal",
            name=f"{stage}_conv_{number}",
        )(x)
        x = keras.layers.BatchNormalization(name=f"{stage}_bn_{number}")(x)
        x = keras.layers.ReLU(name=f"{stage}_relu_{number}")(x)
    return x
