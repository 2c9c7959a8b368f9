"""Fewer products where a network doubles its resolution.

Decoders repeat each pixel twice in both directions and convolve the result with 3 x 3
weights, often beside features of the encoder. Such a convolution meets every pixel up
to four times. A transposed convolution of the pixels before they are repeated, whose
4 x 4 weights are sums of the 3 x 3 ones, gives the same with 4 products for 9.

Source: the sub-pixel view of a convolution after resizing, Shi 2016,
arXiv:1609.07009; the sums follow from it where resizing repeats pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.models.stages import read_graph
from cropseg.runtime import import_tensorflow, keras


@dataclass(frozen=True, kw_only=True)
class Doubling:
    """Layers that repeat pixels and convolve them, and nothing else reads between."""

    upsampling: Any
    """The `UpSampling2D`."""
    concatenation: Any | None
    """The `Concatenate` that sets other features beside them, if one does."""
    place: int
    """Which of its inputs the repeated pixels are."""
    first_channel: int
    """Their first channel in what is convolved."""
    convolution: Any
    """The `Conv2D`."""


def find_doublings(model: Any) -> list[Doubling]:
    """Find all places of a flat functional model that `fold_doublings` can change."""
    layers = {layer.name: layer for layer in model.layers}
    graph = read_graph(model)
    readers: dict[str, list[str]] = {name: [] for name in graph}
    for name, sources in graph.items():
        for source in sources:
            readers[source].append(name)
    outputs = set(model.output_names)

    def find_reader(layer: Any) -> Any:
        """Return the layer that reads this one, if no other does."""
        found = readers[layer.name]
        is_alone = len(found) == 1 and layer.name not in outputs
        return layers.get(found[0]) if is_alone else None

    doublings: list[Doubling] = []
    for layer in model.layers:
        if not _repeats_pixels(layer):
            continue
        reader, concatenation, place, first_channel = find_reader(layer), None, 0, 0
        if _joins_channels(reader):
            concatenation, sources = reader, graph[reader.name]
            place = sources.index(layer.name)
            widths = [source.shape[-1] for source in reader.input]
            first_channel = sum(widths[:place])
            reader = find_reader(reader)
        is_taken = any(reader is known.convolution for known in doublings)
        if _is_plain_convolution(reader) and not is_taken:
            doublings.append(
                Doubling(
                    upsampling=layer,
                    concatenation=concatenation,
                    place=place,
                    first_channel=first_channel,
                    convolution=reader,
                )
            )
    return doublings


@contextlib.contextmanager
def fold_doublings(model: Any) -> Iterator[None]:
    """Let a model be traced with fewer products; the results differ by rounding.

    Args:
        model: A flat functional model on TensorFlow. It is as before at the end.
    """
    with contextlib.ExitStack() as stack:
        for doubling in find_doublings(model):
            stack.enter_context(_fold(doubling))
        yield


def sum_weights(kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the weights of the transposed convolution, for those of a convolution.

    Args:
        kernel: (3, 3, channels, filters).

    Returns:
        (4, 4, filters, channels), for a stride of 2 and padding "same".
    """
    for axis in (0, 1):
        before, at, after = np.split(kernel, 3, axis)
        kernel = np.concatenate([after, at + after, before + at, before], axis)
    return np.ascontiguousarray(np.swapaxes(kernel, 2, 3))


@contextlib.contextmanager
def replace_call(layer: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Let a layer of Keras compute something else for a while."""
    before = vars(layer).get("call")
    layer.call = call
    try:
        yield
    finally:
        if before is None:
            del layer.call  # the method of its class is there again
        else:
            layer.call = before


def _repeats_pixels(layer: Any) -> bool:
    return (
        type(layer) is keras.layers.UpSampling2D
        and tuple(layer.size) == (2, 2)
        and layer.interpolation == "nearest"
        and layer.data_format == "channels_last"
    )


def _joins_channels(layer: Any) -> bool:
    return type(layer) is keras.layers.Concatenate and layer.axis in {-1, 3}


def _is_plain_convolution(layer: Any) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and tuple(layer.kernel_size) == (3, 3)
        and tuple(layer.strides) == (1, 1)
        and tuple(layer.dilation_rate) == (1, 1)
        and layer.groups == 1
        and layer.padding == "same"
        and layer.data_format == "channels_last"
    )


@contextlib.contextmanager
def _fold(doubling: Doubling) -> Iterator[None]:
    tensorflow = import_tensorflow()
    convolution = doubling.convolution
    kernel = np.asarray(convolution.kernel)
    repeated: list[Any] = []  # the pixels of the trace under way, before they are

    def join(inputs: list[Any]) -> Any:
        repeated.append(inputs[doubling.place])
        others = [x for place, x in enumerate(inputs) if place != doubling.place]
        return others[0] if len(others) == 1 else tensorflow.concat(others, axis=-1)

    def convolve(inputs: Any) -> Any:
        pixels = repeated.pop() if doubling.concatenation is not None else inputs
        start = doubling.first_channel
        end = start + pixels.shape[-1]
        shape = tensorflow.shape(pixels)
        sides = (shape[0], 2 * shape[1], 2 * shape[2], kernel.shape[-1])
        found = tensorflow.nn.conv2d_transpose(
            pixels, sum_weights(kernel[:, :, start:end]), sides, strides=2
        )
        if doubling.concatenation is not None:
            others = np.concatenate([kernel[:, :, :start], kernel[:, :, end:]], axis=2)
            found += tensorflow.nn.conv2d(inputs, others, strides=1, padding="SAME")
        if convolution.use_bias:
            found += convolution.bias
        return convolution.activation(found)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replace_call(doubling.upsampling, _pass_on))
        if doubling.concatenation is not None:
            stack.enter_context(replace_call(doubling.concatenation, join))
        stack.enter_context(replace_call(convolution, convolve))
        spec = convolution.input_spec  # says how many channels come
        convolution.input_spec = None
        try:
            yield
        finally:
            convolution.input_spec = spec


def _pass_on(values: Any) -> Any:
    return values
