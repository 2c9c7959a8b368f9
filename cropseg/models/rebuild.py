"""Any network in the form that cropseg works with, and the same with new sizes.

The form: one input `pixels`, every layer in one flat graph and called once, logits
from a layer `head`, then softmax as `probabilities`; all of it float32. Bands are
normalised in front of it (`cropseg.models.bundle.add_normalization`), so a network
that begins with its own normalisation is parted from it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.models.bundle import HEAD_LAYER, NORMALIZATION_LAYER
from cropseg.models.flat_graph import INPUT_INDEX, Call, FlatGraph, read_flat_graph
from cropseg.models.propose import find_tile_multiple
from cropseg.models.zoo import INPUT, OUTPUT
from cropseg.runtime import keras

_RESERVED = (INPUT, NORMALIZATION_LAYER, HEAD_LAYER, OUTPUT)
_IMAGE_RANK = 4
_HEADS = ("Conv2D", "Conv2DTranspose", "Dense")
_PASSING = ("Identity", "Dropout", "SpatialDropout2D", "ActivityRegularization")

Affine = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Means and standard deviations, one a band: `(x - mean) / std`."""


@dataclass(frozen=True, kw_only=True)
class NetworkForm:
    """A network in cropseg's form."""

    network: Any
    """From `pixels`, normalised, to `probabilities`; with the weights it had."""
    normalization: Affine | None
    """What the network itself did to its bands at first; None if nothing."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is kept, renamed and left out when a network is built again."""

    graph: FlatGraph
    """The calls of the network."""
    head: Any
    """The layer of the logits."""
    dropped: frozenset[int]
    """Calls that are passed over: normalisation in front, softmax at the end."""
    normalization: Affine | None
    """What those in front did."""
    names: tuple[str, ...]
    """New names of the calls that are kept, in order."""


def form_network(model: Any) -> NetworkForm:
    """Bring a network into cropseg's form, with its weights.

    Args:
        model: A functional or sequential Keras model with one image in and one value
            a class and pixel out: logits, or softmax in the last layer or after it.

    Raises:
        ModelError: If it is subclassed or of another shape.
    """
    plan = _plan_form(model)
    sizes = {"num_bands": model.inputs[0].shape[-1], "num_classes": None}
    network, copies = _build(model, plan, **sizes)
    for original, copy in copies:
        copy.set_weights(original.get_weights())
    return NetworkForm(network=network, normalization=plan.normalization)


def rebuild_network(model: Any, *, num_bands: int, num_classes: int) -> Any:
    """Build the same network again, for other bands and classes, with new weights.

    The weights come from Keras' global seed (`cropseg.runtime.start_run`). Layers
    keep their names, but for the input, the logits and the last one. A layer that
    has no weights and is called more than once becomes one layer a call.

    Args:
        model: A functional or sequential Keras model as `form_network` takes it, such
            as the network of a foreign file or one built in a script.
        num_bands: Number of bands of the images.
        num_classes: Number of classes.

    Returns:
        A network as `cropseg.models.zoo.build_network` returns it, from `pixels` over
        `head` to `probabilities`. Its input is `(None, None, num_bands)` where the
        graph works at every size, otherwise of the size that it has.

    Raises:
        ModelError: If it is subclassed, of another shape, or does not work on that
            many bands.
    """
    plan = _plan_form(model)
    try:
        return _build(model, plan, num_bands=num_bands, num_classes=num_classes)[0]
    except (ValueError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"Model {model.name!r} cannot be built for {num_bands} bands and "
            f"{num_classes} classes: {error}"
        ) from error


def find_class_axis(head: Any, variable: Any) -> int:
    """Return the axis of a head's variable that counts classes.

    Args:
        head: The layer `head`.
        variable: One of its variables.
    """
    is_kernel = len(variable.shape) == _IMAGE_RANK
    return -2 if is_kernel and isinstance(head, keras.layers.Conv2DTranspose) else -1


def _plan_form(model: Any) -> _Plan:
    """Look at a network, and decide what becomes of each of its layers."""
    graph = read_flat_graph(model)
    shapes = [tuple(tensor.shape) for tensor in (model.inputs[0], model.outputs[0])]
    if any(len(shape) != _IMAGE_RANK or shape[-1] is None for shape in shapes):
        raise ModelError(
            f"Model {model.name!r} goes from {shapes[0]} to {shapes[1]}. It must take "
            "an image (N, height, width, bands) and give (N, height, width, classes)."
        )
    head, after = _find_head(model, graph)
    front, normalization = _find_normalization(model, graph, num_bands=shapes[0][-1])
    dropped = frozenset({*front, *after})
    kept = [call for index, call in enumerate(graph.calls) if index not in dropped]
    _check_calls(model, kept)
    return _Plan(
        graph=graph,
        head=head,
        dropped=dropped,
        normalization=normalization,
        names=_choose_names(kept, head),
    )


def _find_head(model: Any, graph: FlatGraph) -> tuple[Any, list[int]]:
    """Find the layer of the logits, and the calls after it."""
    after: list[int] = []
    has_softmax = False
    index = graph.output
    while True:
        call = graph.calls[index]
        layer, activation = call.operation, _get_activation(call.operation)
        if type(layer).__name__ in _HEADS:
            if activation == "linear" or (activation == "softmax" and not has_softmax):
                return layer, after
            break
        if _is_softmax(layer) and not has_softmax:
            has_softmax = True
        elif not (
            type(layer).__name__ in _PASSING
            or (type(layer).__name__ == "Activation" and activation == "linear")
        ):
            break
        if len(call.sources) != 1 or call.sources[0] == INPUT_INDEX:
            break
        after.append(index)
        index = call.sources[0]
    raise ModelError(
        f"Model {model.name!r} ends in {layer.name!r}, a {type(layer).__name__} with "
        f"activation {activation}{' and softmax' * has_softmax}. Its logits must come "
        f"from a {' or '.join(_HEADS)} with one channel a class, followed by nothing "
        "or by softmax. Change its end in a script, and hand the network over with "
        "`cropseg.transfer_to_site(model=...)`."
    )


def _get_activation(layer: Any) -> str:
    function = getattr(layer, "activation", None)
    return "none" if function is None else str(getattr(function, "__name__", function))


def _is_softmax(layer: Any) -> bool:
    if type(layer).__name__ == "Softmax":
        return getattr(layer, "axis", -1) in (-1, _IMAGE_RANK - 1)
    return type(layer).__name__ == "Activation" and _get_activation(layer) == "softmax"


def _find_normalization(
    model: Any, graph: FlatGraph, *, num_bands: int
) -> tuple[list[int], Affine | None]:
    """Find what a network does to its bands at first, before anything with weights."""
    front: list[int] = []
    mean, std = np.zeros(num_bands), np.ones(num_bands)
    last = INPUT_INDEX
    while True:
        readers = [i for i, call in enumerate(graph.calls) if last in call.sources]
        if len(readers) != 1:
            break
        affine = _read_affine(graph.calls[readers[0]].operation, num_bands)
        if affine is None:
            break
        # ((x - mean) / std - m) / s is (x - (mean + std m)) / (std s)
        mean, std = mean + std * affine[0], std * affine[1]
        last = readers[0]
        front.append(last)
    if not (std > 0).all() or not np.isfinite([mean, std]).all():
        raise ModelError(
            f"Model {model.name!r} normalises its bands to mean {mean.tolist()}, "
            f"standard deviation {std.tolist()} at first, which cannot be kept."
        )
    strangers = [
        call.operation.name
        for index, call in enumerate(graph.calls)
        if isinstance(call.operation, keras.layers.Normalization) and index not in front
    ]
    if strangers:
        raise ModelError(
            f"Model {model.name!r} has a Normalization {strangers[0]!r} behind other "
            "layers. Only what stands right behind the input can be kept."
        )
    return front, ((mean, std) if front else None)


def _read_affine(layer: Any, num_bands: int) -> Affine | None:
    """Return the means and deviations of a layer that does nothing else."""
    if isinstance(layer, keras.layers.Normalization):
        if layer.mean is None or layer.get_config().get("invert"):
            return None
        mean = np.asarray(layer.mean, np.float64).reshape(-1)
        variance = np.asarray(layer.variance, np.float64).reshape(-1)
        std = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    elif isinstance(layer, keras.layers.Rescaling):
        scale = np.asarray(layer.scale, np.float64).reshape(-1)
        if not scale.all():
            return None
        mean, std = -np.asarray(layer.offset, np.float64).reshape(-1) / scale, 1 / scale
    else:
        return None
    if not {mean.size, std.size} <= {1, num_bands}:
        return None
    return np.broadcast_to(mean, num_bands), np.broadcast_to(std, num_bands)


def _check_calls(model: Any, calls: list[Call]) -> None:
    counts: dict[int, int] = {}
    for call in calls:
        counts[id(call.operation)] = counts.get(id(call.operation), 0) + 1
    shared = [
        call.operation.name
        for call in calls
        if counts[id(call.operation)] > 1 and _has_weights(call.operation)
    ]
    if shared:
        raise ModelError(
            f"Model {model.name!r} calls {', '.join(dict.fromkeys(shared))} more than "
            "once. A layer with weights must be called once, so that it is in one "
            "stage: give each call a layer of its own."
        )
    other = [
        call.operation.name
        for call in calls
        if getattr(call.operation, "data_format", "channels_last") == "channels_first"
    ]
    if other:
        raise ModelError(
            f"Model {model.name!r} has its channels first, in {other[0]!r} among "
            "others. Build it with `data_format='channels_last'`."
        )


def _has_weights(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer) and bool(operation.weights)


def _choose_names(calls: list[Call], head: Any) -> tuple[str, ...]:
    """Keep each name, unless two calls have it or it means something else here."""
    own = [call.operation.name for call in calls]
    chosen: list[str] = []
    for call in calls:
        name = call.operation.name
        if call.operation is head:
            chosen.append(HEAD_LAYER)
            continue
        is_unique = own.count(name) == 1 and name not in _RESERVED
        stem = name if is_unique else "_".join((*call.parents, name))
        stem = f"{stem}_layer" if stem in _RESERVED else stem
        new, number = stem, 1
        while new in chosen or (new != name and new in own):
            new, number = f"{stem}_{number}", number + 1
        chosen.append(new)
    return tuple(chosen)


def _build(
    model: Any, plan: _Plan, *, num_bands: int | None, num_classes: int | None
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Build the network at any size where that works, otherwise at its own."""
    own = tuple(model.inputs[0].shape[1:3])
    for sides in dict.fromkeys([(None, None), own]):
        pixels = keras.Input((*sides, num_bands), dtype="float32", name=INPUT)
        try:
            network, copies = _build_at(
                model, plan, pixels=pixels, num_classes=num_classes
            )
        except (ValueError, TypeError):
            if sides == own:
                raise
            continue
        try:
            find_tile_multiple(network)
        except ModelError:
            if sides == own:
                raise
            continue
        return network, copies
    raise ModelError(f"Model {model.name!r} has no size that it works at.")


def _build_at(
    model: Any, plan: _Plan, *, pixels: Any, num_classes: int | None
) -> tuple[Any, list[tuple[Any, Any]]]:
    copies: list[tuple[Any, Any]] = []
    positions, names = itertools.count(), iter(plan.names)

    def visit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = call.operation
        if next(positions) in plan.dropped:
            return args[0]
        config = {**operation.get_config(), "name": next(names)}
        if isinstance(operation, keras.layers.Layer):
            config["dtype"] = "float32"
        if operation is plan.head:
            config["activation"] = "linear"
            if num_classes is not None:
                config["units" if "units" in config else "filters"] = num_classes
        copy = type(operation).from_config(config)
        result = copy(*args, **kwargs)
        if _has_weights(operation):
            copies.append((operation, copy))
        return result

    logits = plan.graph.run(pixels, visit)
    output = keras.layers.Softmax(name=OUTPUT, dtype="float32")(logits)
    return keras.Model(pixels, output, name=model.name), copies
