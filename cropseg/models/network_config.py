"""What the config of a network names: is it safe to build with this Keras? No Keras.

A config names classes for Keras to make. Only layers of Keras whose effect and size
are known are let through; code (`Lambda`), other packages and unknown classes are
refused. `translate_config` turns what Keras 2 wrote into what Keras 3 reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cropseg.errors import UnsafeFileError
from cropseg.models.network_size import (
    LAYERS,
    NETWORKS,
    OPERATIONS,
    RENAMED,
    told_as_damage,
)

_INITIALIZERS = frozenset(
    {"Zeros", "Ones", "Constant", "RandomNormal", "RandomUniform", "TruncatedNormal"}
    | {"VarianceScaling", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform"}
    | {"LecunNormal", "LecunUniform", "Orthogonal", "Identity", "IdentityInitializer"}
)

_OTHER_CLASSES = _INITIALIZERS | frozenset(
    # Values that layers are configured with. None of them runs code of the file.
    {"DTypePolicy", "Policy", "__keras_tensor__", "__ellipsis__", "__slice__"}
    | {"L1", "L2", "L1L2", "OrthogonalRegularizer"}
    | {"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}
)

_FUNCTIONS = frozenset(
    {"linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu"}
    | {"swish", "mish", "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish", "tanh"}
    | {"softmax", "log_softmax", "softplus", "softsign", "exponential"}
)

_ALWAYS_ONE = ("DepthwiseConv2D", "Conv2DTranspose", "SeparableConv2D")
"""Layers for which Keras 2.15 writes `groups: 1`, and Keras 3 takes no `groups`."""


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a config that names anything but known layers of Keras.

    Raises:
        UnsafeFileError: If it does; all names are listed.
    """
    found = find_strangers(config, path)
    if found:
        raise UnsafeFileError(
            f"{path} holds {', '.join(found[:8])}. From a file, only layers of "
            "Keras are loaded whose effect and size are known: no code (Lambda), no "
            "classes of other packages, no operations of TensorFlow. Where you trust "
            "the file, load it with Keras in a script, and hand the network over with "
            "`cropseg.transfer_to_site(model=...)`."
        )


def find_strangers(config: Mapping[str, Any], path: Path) -> list[str]:
    """Return what a config names that is no known layer of Keras, each once.

    Raises:
        ModelError: If it is no config of a network.
    """
    with told_as_damage(path):
        return sorted(set(_list_strangers(config)))


def _list_strangers(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _list_strangers(item)
    if not isinstance(node, Mapping):
        return
    name = node.get("class_name")
    if name is not None and not _is_known(str(name), node):
        module = node.get("module")
        yield f"{module}.{name}" if module else str(name)
        return
    for key, item in node.items():
        if key not in ("compile_config", "training_config"):  # never read
            yield from _list_strangers(item)


def _is_known(name: str, node: Mapping[str, Any]) -> bool:
    module = str(node.get("module") or "keras")
    registered = node.get("registered_name") or name
    if name == "function":
        return (
            module in ("builtins", "keras", "keras.activations")
            and node.get("config") in _FUNCTIONS
            and node.get("registered_name") in (None, "function", node.get("config"))
        )
    if registered not in (name, f"keras>{name}", f"Keras>{name}"):
        return False
    if module.startswith("keras.src.ops."):
        return name in OPERATIONS
    is_keras = module == "keras" or module.startswith("keras.")
    known = (*NETWORKS, *_OTHER_CLASSES, *LAYERS, *RENAMED)
    return is_keras and name in known


def translate_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a config of Keras 2 as Keras 3 reads it; one of Keras 3 stays as it is.

    Args:
        config: A checked config: `class_name` and `config`.
        path: What to call it in errors.

    Raises:
        ModelError: If it is no network.
    """
    with told_as_damage(path):
        translated: dict[str, Any] = _translate(config)
    return translated


def _translate(node: Any) -> Any:
    if isinstance(node, list):
        return [_translate(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    name, inner = node.get("class_name"), node.get("config")
    if name == "Sequential" and isinstance(inner, list):  # before Keras 2.2.3
        inner = {"name": "sequential", "layers": inner}
        node = {**node, "config": inner}
    if name == "Policy" and isinstance(inner, Mapping):
        return inner.get("name", "float32")
    node = {key: _translate(item) for key, item in node.items()}
    if not isinstance(inner, Mapping) or not isinstance(name, str):
        return node
    node["class_name"] = name = RENAMED.get(name, name)
    if name in NETWORKS and "module" not in node:
        if name == "Sequential":
            _put_input_first(node["config"])
        _count_from_zero(node["config"])
    elif name in LAYERS and "module" not in node:
        node["config"] = _translate_layer(name, node["config"])
    elif name in _INITIALIZERS and "module" not in node:
        node["config"].pop("dtype", None)  # as TensorFlow 1 wrote it
    return node


def _put_input_first(chain: dict[str, Any]) -> None:
    """Give a chain the input layer that its first layer's shape stood for."""
    first = chain["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if first["class_name"] == "InputLayer" or shape is None:
        return
    name = f"{first['config'].get('name', 'chain')}_input"
    config = {"batch_input_shape": shape, "dtype": "float32", "name": name}
    chain["layers"].insert(0, {"class_name": "InputLayer", "config": config})


def _count_from_zero(graph: dict[str, Any]) -> None:
    """Count the calls of nested networks as Keras 3 does: Keras 2 began with 1."""
    layers = graph.get("layers", ())
    for layer in layers:
        if layer["class_name"] != "InputLayer":
            layer["config"].pop("batch_input_shape", None)
    kinds = {
        layer["name"]: layer["class_name"]
        for layer in layers
        if isinstance(layer, dict) and "name" in layer
    }
    for layer in layers:
        for node in layer.get("inbound_nodes", ()):
            for source in node if isinstance(node, list) else ():
                if kinds.get(source[0]) in NETWORKS:
                    source[1] = max(0, source[1] - 1)
    for end in graph.get("output_layers", ()):
        # Of other networks than these, Keras 3 counts the outputs from 1 too.
        if isinstance(end, list) and kinds.get(end[0]) == "Sequential":
            end[1] = max(0, end[1] - 1)


def _translate_layer(name: str, config: dict[str, Any]) -> dict[str, Any]:
    if name in _ALWAYS_ONE and config.get("groups") == 1:
        del config["groups"]
    if name == "SeparableConv2D":  # those of the convolution that it was derived from
        for key in ("initializer", "regularizer", "constraint"):
            config.pop(f"kernel_{key}", None)
    if name == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    return config
