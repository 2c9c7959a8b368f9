"""How large is the network that a config describes? Answered without building it.

Shapes are followed through the graph, layer by layer, and weights are counted. So
a network that does not belong to its file is refused before it takes memory. All
numbers are upper bounds: a size after a stride is rounded up. No Keras here.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cropseg.errors import CropsegError, ModelError, UnsafeFileError

Shape = tuple[int | None, ...]
"""Shape of one sample: without the batch. None is a size that is not fixed."""

_Sizes = tuple[Shape, int]
"""Shape of a layer's output, and how many weights it has. Both are upper bounds."""

NETWORKS = ("Functional", "Model", "Sequential")
"""The classes of whole networks."""

RENAMED = MappingProxyType(
    {
        "BatchNormalizationV1": "BatchNormalization",  # TensorFlow 1.14
        "BatchNormalizationV2": "BatchNormalization",
        "SyncBatchNormalization": "BatchNormalization",
        "FixedDropout": "Dropout",  # EfficientNet of segmentation-models
    }
)
"""Classes of Keras 2 and its packages that are now called otherwise."""

_MAX_LAYERS = 5000


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """What a config says of its network."""

    inputs: tuple[Shape, ...]
    """Shapes of its inputs, such as `(240, 240, 4)`."""
    outputs: tuple[Shape, ...]
    """Shapes of its outputs."""
    num_weights: int
    """Numbers in its weights, at most."""
    num_layers: int
    """Its layers."""


def measure_config(config: Mapping[str, Any], path: Path) -> NetworkSize:
    """Follow the shapes through a network, and count its weights.

    Args:
        config: A checked config: `class_name` and `config`.
        path: What to call it in errors.

    Raises:
        ModelError: If it is no graph of layers.
    """
    with told_as_damage(path):
        size = _measure_network(config)
        if not all(ends and ends[0] for ends in (size.inputs, size.outputs)):
            raise ValueError("it takes or gives nothing that has channels")
        return size


@contextlib.contextmanager
def told_as_damage(path: Path) -> Iterator[None]:
    """Turn what a config of another form raises into errors of cropseg."""
    try:
        yield
    except CropsegError:
        raise
    except RecursionError as error:
        raise UnsafeFileError(f"{path} is nested too deeply to be a model.") from error
    except (
        *(AttributeError, KeyError, IndexError, TypeError),
        *(ValueError, ArithmeticError),
    ) as error:
        raise ModelError(
            f"The network of {path} cannot be followed from input to output "
            f"({type(error).__name__}: {error}). The file is damaged, or its network "
            "is no functional or sequential model of Keras."
        ) from error


def _measure_network(
    config: Mapping[str, Any], given: Sequence[Shape] = ()
) -> NetworkSize:
    inner = config["config"]
    layers = inner if isinstance(inner, list) else inner["layers"]
    if len(layers) > _MAX_LAYERS:
        raise ValueError(f"{len(layers)} layers, more than {_MAX_LAYERS}")
    if config["class_name"] == "Sequential":
        return _measure_chain(layers, given)
    return _measure_graph(inner, given)


def _measure_chain(
    layers: Sequence[Mapping[str, Any]], given: Sequence[Shape]
) -> NetworkSize:
    shape: Shape | None = given[0] if given else None
    first = shape
    total = 0
    for layer in layers:
        if shape is None:
            shape = first = _read_input_shape(layer["config"])
        if layer["class_name"] != "InputLayer":
            shape, count = _measure_layer(layer, [shape])
            total += count
    if shape is None or first is None:
        raise ValueError("a sequential network without layers")
    return NetworkSize(
        inputs=(first,), outputs=(shape,), num_weights=total, num_layers=len(layers)
    )


def _measure_graph(inner: Mapping[str, Any], given: Sequence[Shape]) -> NetworkSize:
    """Measure each call of a layer once all that it reads is measured."""
    layers = {layer["name"]: layer for layer in inner["layers"]}
    names = _list_ends(inner["input_layers"])
    shapes: dict[tuple[str, int], Shape] = {}
    counts: dict[str, int] = {}
    for index, (name, _) in enumerate(names):
        known = given[index] if given else _read_input_shape(layers[name]["config"])
        shapes[name, 0] = known
    calls: dict[tuple[str, int], list[tuple[str, int]]] = {
        (name, index): list(_find_sources(node))
        for name, layer in layers.items()
        for index, node in enumerate(layer["inbound_nodes"])
    }
    readers: dict[tuple[str, int], list[tuple[str, int]]] = {}
    missing = {call: len(set(sources)) for call, sources in calls.items()}
    for call, sources in calls.items():
        for source in set(sources):
            readers.setdefault(source, []).append(call)
    ready = deque(shapes)
    while ready:
        for call in readers.get(ready.popleft(), []):
            missing[call] -= 1
            if not missing[call]:
                given_shapes = [shapes[source] for source in calls[call]]
                shapes[call], count = _measure_layer(layers[call[0]], given_shapes)
                counts[call[0]] = max(count, counts.get(call[0], 0))
                ready.append(call)
    outputs = tuple(
        # Keras counts the calls of a nested network from 1 where it is the output.
        shapes[end if end in shapes else (end[0], end[1] - 1)]
        for end in _list_ends(inner["output_layers"])
    )
    return NetworkSize(
        inputs=tuple(shapes[name, 0] for name, _ in names),
        outputs=outputs,
        num_weights=sum(counts.values()),
        num_layers=len(layers),
    )


def _list_ends(node: Any) -> list[tuple[str, int]]:
    """List the (layer, call) of a network's inputs or outputs, however nested."""
    if isinstance(node, Mapping):
        node = list(node.values())
    if len(node) > 1 and isinstance(node[0], str):
        return [(node[0], int(node[1]))]
    return [end for item in node for end in _list_ends(item)]


def _find_sources(node: Any) -> Iterator[tuple[str, int]]:
    """Find what a call reads, in the notation of Keras 2 or 3."""
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            name, index, _ = node["config"]["keras_history"]
            yield name, int(index)
            return
        node = list(node.values())
    if not isinstance(node, list):
        return
    is_call = len(node) >= 3 and isinstance(node[0], str)  # noqa: PLR2004
    if is_call and isinstance(node[1], int):
        yield node[0], node[1]
        return
    for item in node:
        yield from _find_sources(item)


def _read_input_shape(config: Mapping[str, Any]) -> Shape:
    shape = config.get("batch_shape") or config["batch_input_shape"]
    return tuple(shape[1:])


def _measure_layer(layer: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    name, config = layer["class_name"], layer["config"]
    if name in NETWORKS:
        size = _measure_network(layer, shapes)
        return size.outputs[0], size.num_weights
    module = str(layer.get("module") or "")
    known = OPERATIONS if module.startswith("keras.src.ops.") else LAYERS
    return known[RENAMED.get(name, name)](config, shapes)


def _product(sizes: Sequence[int | None]) -> int:
    return math.prod(size or 1 for size in sizes)


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value, value]
    if not all(isinstance(v, int) and v > 0 for v in values):
        raise ValueError(f"{value} in place of sizes")
    return values


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{key}` is {value}")
    return value


def _shrink(shape: Shape, steps: Sequence[int]) -> Shape:
    return tuple(
        None if size is None else -(-size // step)
        for size, step in zip(shape, steps, strict=False)
    )


def _grow(shape: Shape, steps: Sequence[int], extra: Sequence[int] = (0, 0)) -> Shape:
    return tuple(
        None if size is None else size * step + more
        for size, step, more in zip(shape, steps, extra, strict=False)
    )


def _channels(shape: Shape) -> int:
    if not shape or shape[-1] is None:
        raise ValueError("a layer on an unknown number of channels")
    return shape[-1]


def _keep(_: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    return shapes[0], 0


def _join(_: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    """Sum, product or the like: each side is the longest, as sides of 1 are spread."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(
        None if None in sizes else max(size or 1 for size in sizes)
        for sizes in zip(*padded, strict=True)
    ), 0


def _concatenate(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    axis = config.get("axis", -1)
    place = (axis if axis < 0 else axis - 1 - len(shapes[0])) + len(shapes[0])
    sizes = [shape[place] for shape in shapes]
    joined = None if None in sizes else sum(size or 0 for size in sizes)
    shape = _join(config, shapes)[0]
    return (*shape[:place], joined, *shape[place + 1 :]), 0


def _convolve(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    shape, filters = shapes[0], _count(config, "filters")
    kernel = _product(_pair(config["kernel_size"]))
    steps = _pair(config.get("strides", 1))
    size = kernel * _channels(shape) * filters + filters
    return (*_shrink(shape[:-1], steps), filters), size


def _convolve_back(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    filters, size = _count(config, "filters"), _convolve(config, shapes)[1]
    sides = _grow(
        shapes[0][:-1], _pair(config.get("strides", 1)), _pair(config["kernel_size"])
    )
    return (*sides, filters), size


def _convolve_apart(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    shape = shapes[0]
    depth = _channels(shape) * _count(config, "depth_multiplier", 1)
    size = _product(_pair(config["kernel_size"])) * depth
    steps = _pair(config.get("strides", 1))
    if "filters" not in config:  # DepthwiseConv2D
        return (*_shrink(shape[:-1], steps), depth), size + depth
    filters = _count(config, "filters")
    return (*_shrink(shape[:-1], steps), filters), size + (depth + 1) * filters


def _connect(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    units = _count(config, "units")
    return (*shapes[0][:-1], units), (_channels(shapes[0]) + 1) * units


def _normalize(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    axes = config.get("axis", -1)
    axes = axes if isinstance(axes, list) else [axes]
    sides = [shapes[0][axis if axis < 0 else axis - 1] for axis in axes]
    return shapes[0], 4 * _product(sides) + 1


def _bend(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    shared = {axis - 1 for axis in config.get("shared_axes") or ()}
    sides = [side for place, side in enumerate(shapes[0]) if place not in shared]
    return shapes[0], _product(sides)


def _pool(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    steps = _pair(config.get("strides") or config.get("pool_size", 2))
    return (*_shrink(shapes[0][:-1], steps), shapes[0][-1]), 0


def _pool_all(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    last = shapes[0][-1]
    return (
        (1,) * (len(shapes[0]) - 1) + (last,) if config.get("keepdims") else (last,)
    ), 0


def _enlarge(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    steps = _pair(config.get("size", 2))
    return (*_grow(shapes[0][:-1], steps), shapes[0][-1]), 0


def _pad(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    extra = [
        sum(side) if isinstance(side, list) else 2 * side for side in config["padding"]
    ]
    return (*_grow(shapes[0][:-1], (1, 1), extra), shapes[0][-1]), 0


def _resize(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    return (_count(config, "height"), _count(config, "width"), shapes[0][-1]), 0


def _flatten(_: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    return (_product(shapes[0]),), 0


def _reshape(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    target = config["target_shape"]
    rest = _product(shapes[0]) // max(1, _product([n for n in target if n != -1]))
    return tuple(rest if n == -1 else n for n in target), 0


def _permute(config: Mapping[str, Any], shapes: Sequence[Shape]) -> _Sizes:
    return tuple(shapes[0][place - 1] for place in config["dims"]), 0


_Measure = Callable[[Mapping[str, Any], Sequence[Shape]], _Sizes]

_NAMES: Mapping[_Measure, str] = {
    _keep: "InputLayer Activation ReLU LeakyReLU ELU Softmax Identity Dropout "
    "SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise Cropping2D CenterCrop "
    "ActivityRegularization Rescaling UnitNormalization",
    _join: "Add Subtract Multiply Average Maximum Minimum",
    _normalize: "BatchNormalization LayerNormalization "
    "GroupNormalization Normalization",
    _pool: "MaxPooling2D AveragePooling2D",
    _pool_all: "GlobalAveragePooling2D GlobalMaxPooling2D",
    _convolve_apart: "SeparableConv2D DepthwiseConv2D",
    _concatenate: "Concatenate",
    _convolve: "Conv2D",
    _convolve_back: "Conv2DTranspose",
    _connect: "Dense",
    _flatten: "Flatten",
    _permute: "Permute",
    _bend: "PReLU",
    _reshape: "Reshape",
    _resize: "Resizing",
    _enlarge: "UpSampling2D",
    _pad: "ZeroPadding2D",
}

LAYERS: Mapping[str, _Measure] = MappingProxyType(
    {name: measure for measure, names in _NAMES.items() for name in names.split()}
)
"""The layers that are loaded from a file, and what each does to shapes."""

_OPERATION_NAMES: Mapping[_Measure, str] = {
    _join: "Add Subtract Multiply Divide TrueDivide Maximum Minimum",
    _keep: "Relu Relu6 LeakyRelu Silu Gelu Elu Sigmoid Tanh Softmax",
    _concatenate: "Concatenate",
}

OPERATIONS: Mapping[str, _Measure] = MappingProxyType(
    {n: measure for measure, names in _OPERATION_NAMES.items() for n in names.split()}
)
"""The operations of `keras.ops` that a graph may hold, as `x + y` does."""
