"""A converted network that computes of a tile only what its core needs.

By default the core is little more than half of a tile's pixels. What lies deep in a
network needs all of them, but the last layers, at high resolution, reach over the core
by a few pixels alone. So each layer is asked which part of its input it needs for the
part that is wanted of its output, from the last layer to the first. The result is the
same up to rounding: a convolution of a part takes the pixels beside it, not zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cropseg.inference.engines.openvino_package import import_openvino

Span = tuple[int, int]
"""First index along an axis, and the one after the last."""

Part = tuple[Span, ...]
"""Part of an array, along all of its axes."""

_NUM_OTHER_AXES: Final = 2
"""Axes of a convolved array before its rows and columns: tiles and channels."""

_RESULT: Final = "Result"


def crop_network(network: Any, margin: int) -> None:
    """Let a network give, and compute, only the middle of a tile.

    Args:
        network: An `openvino.Model` of fixed shape, whose one output is (tiles,
            classes, height, width). It is changed.
        margin: Pixels on every side of a tile that are not wanted.
    """
    if not margin:
        return
    passes = import_openvino().passes
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())  # sizes that are computed
    manager.run_passes(network)
    nodes = network.get_ordered_ops()
    needs = _find_needs(nodes, margin)
    for node in nodes:
        _read_parts(node, needs)
    for node in nodes:
        _compute_part(node, needs)
    network.validate_nodes_and_infer_types()


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """What is computed of a node, and what it takes."""

    output: Part | None = None
    """Part of its output that is computed; None for all of it."""
    inputs: list[Part]
    """Part that it needs of each input."""
    padding: list[Span] | None = None
    """Of a convolution of a part: the zeros before and after rows and columns. Of a
    transposed one: what is cut off there."""
    sizes: list[int] | None = None
    """Of a part that is resized: the lengths of its resized axes."""


def _find_needs(nodes: list[Any], margin: int) -> dict[str, _Needs]:
    """Find out for every node what must be computed, from the last to the first."""
    needs: dict[str, _Needs] = {}
    wanted: dict[str, Part] = {}
    for node in reversed(nodes):
        name, kind = node.get_name(), node.get_type_name()
        inputs = [_get_whole(value) for value in node.input_values()]
        if kind == _RESULT:
            needs[name] = _Needs(inputs=[_leave_margin(inputs[0], margin)])
        elif _is_divisible(node) and wanted[name] != _get_whole(node.output(0)):
            needs[name] = _ASKS[kind](node, wanted[name])
        else:
            needs[name] = _Needs(inputs=inputs)
        for value, part in zip(node.input_values(), needs[name].inputs, strict=True):
            source = value.get_node()
            if source.get_type_name() in _ASKS:
                known = wanted.get(source.get_name(), part)
                wanted[source.get_name()] = _unite(known, part)
    return needs


def _is_divisible(node: Any) -> bool:
    kind = node.get_type_name()
    if kind == "Interpolate":
        return _is_resized_plainly(node)
    if kind == "ConvolutionBackpropData":  # without gaps between what it spreads
        return all(axis.width >= axis.stride for axis in _list_axes(node))
    return kind in _ASKS


def _get_whole(value: Any) -> Part:
    return tuple((0, length) for length in value.get_shape())


def _leave_margin(whole: Part, margin: int) -> Part:
    others, spatial = whole[:_NUM_OTHER_AXES], whole[_NUM_OTHER_AXES:]
    return (*others, *((margin, end - margin) for _, end in spatial))


def _unite(one: Part, other: Part) -> Part:
    return tuple(
        (min(start, first), max(end, last))
        for (start, end), (first, last) in zip(one, other, strict=True)
    )


# What a part of an output needs, by the kind of a node.


def _ask_by_element(node: Any, part: Part) -> _Needs:
    inputs = []
    for value in node.input_values():
        shape = value.get_shape()  # aligned at the end, where numbers of axes differ
        spans = zip(shape, part[len(part) - len(shape) :], strict=True)
        inputs.append(tuple((0, 1) if side == 1 else span for side, span in spans))
    return _Needs(output=part, inputs=inputs)


def _ask_all_along_axis(node: Any, part: Part) -> _Needs:
    axis = node.get_attributes()["axis"] % len(part)
    wholes = [_get_whole(value) for value in node.input_values()]
    inputs = [(*part[:axis], whole[axis], *part[axis + 1 :]) for whole in wholes]
    output = (*part[:axis], _get_whole(node.output(0))[axis], *part[axis + 1 :])
    return _Needs(output=output, inputs=inputs)


def _ask_transposed(node: Any, part: Part) -> _Needs:
    order = node.input_value(1)
    places = np.argsort(order.get_node().get_data())
    inputs = [tuple(part[place] for place in places), _get_whole(order)]
    return _Needs(output=part, inputs=inputs)


def _ask_convolution(node: Any, part: Part) -> _Needs:
    needed, padding = [], []
    for axis, span in zip(_list_axes(node), part[_NUM_OTHER_AXES:], strict=True):
        start = span[0] * axis.stride - axis.before
        end = (span[1] - 1) * axis.stride - axis.before + axis.width
        needed.append((max(0, start), min(axis.length, end)))
        padding.append((max(0, -start), max(0, end - axis.length)))
    return _ask_for_channels(node, part, needed, padding)


def _ask_transposed_convolution(node: Any, part: Part) -> _Needs:
    needed, padding = [], []
    for axis, span in zip(_list_axes(node), part[_NUM_OTHER_AXES:], strict=True):
        first, last = span[0] + axis.before, span[1] - 1 + axis.before
        start = max(0, math.ceil((first - axis.width + 1) / axis.stride))
        end = min(axis.length, last // axis.stride + 1)
        needed.append((start, end))
        cut = first - start * axis.stride
        spread = (end - start - 1) * axis.stride + axis.width
        padding.append((cut, spread - cut - (span[1] - span[0])))
    return _ask_for_channels(node, part, needed, padding)


def _ask_for_channels(
    node: Any, part: Part, needed: list[Span], padding: list[Span]
) -> _Needs:
    """Ask for all channels where rows and columns are needed, and for all weights."""
    whole, *others = map(_get_whole, node.input_values())
    channels = _get_whole(node.output(0))[:_NUM_OTHER_AXES]
    return _Needs(
        output=(*channels, *part[_NUM_OTHER_AXES:]),
        inputs=[(*whole[:_NUM_OTHER_AXES], *needed), *others],
        padding=padding,
    )


def _ask_resized(node: Any, part: Part) -> _Needs:
    """Ask for whole pixels and, between which is interpolated, one more around them."""
    whole, *others = map(_get_whole, node.input_values())
    axes = node.input_value(_AXES_PLACE).get_node().get_data()
    reach = _REACHES[node.get_attributes()["mode"]]
    output, needed = list(part), list(part)
    for axis in axes:
        length = whole[axis][1]
        ratio = node.output(0).get_shape()[axis] // length
        start = max(0, part[axis][0] // ratio - reach)
        end = min(length, math.ceil(part[axis][1] / ratio) + reach)
        needed[axis], output[axis] = (start, end), (start * ratio, end * ratio)
    sizes = [output[axis][1] - output[axis][0] for axis in axes]
    return _Needs(output=tuple(output), inputs=[tuple(needed), *others], sizes=sizes)


def _is_resized_plainly(node: Any) -> bool:
    """Whether each pixel becomes a whole number, in a way that is the same for all."""
    given, shape = node.get_attributes(), node.input_value(0).get_shape()
    return (
        node.get_input_size() == _AXES_PLACE + 1
        and given["shape_calculation_mode"] == "sizes"
        and given["mode"] in _REACHES
        and given["coordinate_transformation_mode"] in _EVEN_MODES
        and not given["antialias"]
        and not any((*given["pads_begin"], *given["pads_end"]))
        and not any(np.remainder(node.output(0).get_shape(), shape))
    )


_AXES_PLACE: Final = 2
"""Which input of an `Interpolate` says along which axes."""

_REACHES: Final = {"nearest": 0, "linear": 1, "linear_onnx": 1}
"""Pixels beside one that a mode of `Interpolate` takes."""

_EVEN_MODES: Final = ("half_pixel", "tf_half_pixel_for_nn")
"""Those in which a part, resized, is a part of the whole, resized."""

_ELEMENTWISE: Final = (
    "Add",
    "Clamp",
    "Divide",
    "Elu",
    "Gelu",
    "HSwish",
    "Mish",
    "Multiply",
    "Relu",
    "Sigmoid",
    "Subtract",
    "Swish",
    "Tanh",
)
_ASKS: Final[dict[str, Callable[[Any, Part], _Needs]]] = {
    **dict.fromkeys(_ELEMENTWISE, _ask_by_element),
    "Concat": _ask_all_along_axis,
    "Interpolate": _ask_resized,
    "Softmax": _ask_all_along_axis,
    "Transpose": _ask_transposed,
    "Convolution": _ask_convolution,
    "GroupConvolution": _ask_convolution,
    "ConvolutionBackpropData": _ask_transposed_convolution,
}
"""A node of another kind needs all of its inputs, and is computed whole."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A convolution along rows or columns."""

    length: int
    """Of the input."""
    width: int
    """What the weights cover of it; of a transposed one, of the output."""
    stride: int
    before: int
    """Zeros before the input; of a transposed one, what is cut off the output."""


def _list_axes(node: Any) -> list[_Axis]:
    given = node.get_attributes()
    values, weights = (value.get_shape() for value in node.input_values()[:2])
    return [
        _Axis(length=length, width=(side - 1) * step + 1, stride=stride, before=before)
        for length, side, step, stride, before in zip(
            values[_NUM_OTHER_AXES:],
            weights[len(weights) - len(values) + _NUM_OTHER_AXES :],
            given["dilations"],
            given["strides"],
            given["pads_begin"],
            strict=True,
        )
    ]


# Changing the network.


def _read_parts(node: Any, needs: dict[str, _Needs]) -> None:
    """Let a node read parts of what is computed further than it needs."""
    operations = import_openvino().opset13
    for place, part in zip(node.inputs(), needs[node.get_name()].inputs, strict=True):
        source = place.get_source_output()
        computed = needs[source.get_node().get_name()].output or _get_whole(source)
        axes = [axis for axis, span in enumerate(part) if span != computed[axis]]
        if axes:
            bounds = [np.subtract(part[axis], computed[axis][0]) for axis in axes]
            starts, ends = np.transpose(bounds)
            cut = operations.slice(source, starts, ends, np.ones_like(starts), axes)
            place.replace_source_output(cut.output(0))


def _compute_part(node: Any, needs: dict[str, _Needs]) -> None:
    """Tell a node that counts pixels how many there are."""
    operations, own = import_openvino().opset13, needs[node.get_name()]
    if own.sizes is not None:
        sizes = operations.constant(np.array(own.sizes, np.int64))
        node.input(1).replace_source_output(sizes.output(0))
    if own.padding is not None:
        _convolve_part(node, own.padding)


def _convolve_part(node: Any, padding: list[Span]) -> None:
    """Replace a convolution of which a part is computed."""
    operations, given = import_openvino().opset13, node.get_attributes()
    values, weights = node.input_values()[:2]
    begin, end = (list(sides) for sides in zip(*padding, strict=True))
    strides, dilations = given["strides"], given["dilations"]
    kind = node.get_type_name()
    if kind == "ConvolutionBackpropData":
        made = operations.convolution_backprop_data(
            values, weights, strides, None, begin, end, dilations
        )
    elif kind == "GroupConvolution":
        made = operations.group_convolution(
            values, weights, strides, begin, end, dilations
        )
    else:
        made = operations.convolution(values, weights, strides, begin, end, dilations)
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(made.output(0))
