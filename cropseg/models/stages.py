"""The stages of a network: what a transfer mode locks, trains or replaces.

A stage is a run of layers between two points at which features leave the
encoder or the resolution changes. Stages come from the network's graph: the
encoder hands features to the decoder at its skip connections and at its end,
and those places divide it. Every layer with variables is in exactly one stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cropseg.errors import ModelError
from cropseg.runtime import keras

if TYPE_CHECKING:
    from cropseg.models.card import CardStage

PARTS = ("encoder", "decoder", "head")
"""The parts of a network, from input to output."""

HEAD = "head"
"""Name of the layer that produces the logits."""

Graph = Mapping[str, tuple[str, ...]]
"""Names of what each layer or operation reads, in order from input to output."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a network, in order from input to output."""

    name: str
    """Such as `encoder_1`, `decoder_1`, `head`; numbers rise towards the output."""
    layers: tuple[str, ...]
    """Names of its layers that have variables, in order; never empty.

    A dropout layer counts: its random state is a variable.
    """
    stride: int
    """Input pixels per pixel of its output, on a side."""
    part: str
    """One of `PARTS`."""


def has_variables(layer: Any) -> bool:
    """Tell whether a layer belongs to a stage.

    A `Normalization` layer does not. It stands in front of the network and
    holds the bands' statistics, which no mode trains.
    """
    return bool(layer.variables) and not isinstance(layer, keras.layers.Normalization)


def derive_stages(
    model: Any, decoder_prefixes: Sequence[Sequence[str]], *, tile_multiple: int
) -> tuple[Stage, ...]:
    """Divide a network into stages by its graph.

    Args:
        model: A flat functional Keras model whose logits come from a layer `head`,
            with or without normalisation in front.
        decoder_prefixes: For each decoder stage, from input to output, the prefixes
            of its layers' names. A stage that matches no layer is left out.
        tile_multiple: What the sides of the network's input are multiples of.

    Returns:
        The stages, in order from input to output.

    Raises:
        ModelError: If the graph does not have that form.
    """
    graph = read_graph(model)
    decoder = _find_decoder(graph, decoder_prefixes)
    if not decoder or HEAD not in graph:
        raise ModelError(
            f"Model {model.name!r} has no stages of this architecture: it has "
            f"{len(decoder)} layers whose names begin with one of "
            f"{sorted(prefix for group in decoder_prefixes for prefix in group)}, and "
            f"{'a' if HEAD in graph else 'no'} layer {HEAD!r}. Name the architecture "
            "and the encoder that the model was built with."
        )
    strides = _measure_strides(model, graph, side=8 * tile_multiple)
    groups = [
        *_group_encoder(graph, decoder),
        *_group_decoder(decoder, decoder_prefixes),
        (HEAD, HEAD, (HEAD,)),
    ]
    weighted = {layer.name for layer in model.layers if has_variables(layer)}
    counts = dict.fromkeys(PARTS, 0)
    stages = []
    for part, end, names in groups:
        layers = tuple(name for name in names if name in weighted)
        if not layers:
            continue  # such as the last pooling of a VGG
        counts[part] += 1
        name = HEAD if part == HEAD else f"{part}_{counts[part]}"
        stages.append(Stage(name=name, layers=layers, stride=strides[end], part=part))
    _check_complete(model, stages)
    return tuple(stages)


def read_graph(model: Any) -> Graph:
    """Read from a flat functional model's config which layer reads which.

    The config is used because it is the public form of the graph, and stays right
    for a network that was called on a second input.
    """
    return {
        layer["name"]: tuple(_find_sources(layer["inbound_nodes"]))
        for layer in model.get_config()["layers"]  # sorted from input to output
    }


def find_encoder_end(model: Any, stages: Sequence[Stage | CardStage]) -> str:
    """Return the name of the layer that gives the encoder's last features.

    It is the first one that all layers of the last encoder stage lead to, or the
    activation behind it if nothing else reads it.

    Raises:
        ModelError: If there is none.
    """
    graph = read_graph(model)
    last = {s.part: frozenset(s.layers) for s in stages}["encoder"]
    reached: dict[str, frozenset[str]] = {}
    for name, sources in graph.items():
        reached[name] = frozenset({name} & last).union(*(reached[s] for s in sources))
        if reached[name] == last:
            return _pass_activations(model, name)
    raise ModelError(
        f"Model {model.name!r} has no layer that all layers of its last encoder stage "
        f"lead to: {', '.join(sorted(last))}. Name the stages so that the last of the "
        "encoder ends in one layer."
    )


def _pass_activations(model: Any, name: str) -> str:
    graph = read_graph(model)
    layers = {layer.name: layer for layer in model.layers}
    pixels = (1, 64, 64, 1)
    while True:
        readers = [reader for reader, sources in graph.items() if name in sources]
        layer = layers.get(readers[0]) if len(readers) == 1 else None
        if (
            layer is None
            or len(graph[layer.name]) > 1
            or has_variables(layer)
            or layer.compute_output_shape(pixels) != pixels
        ):
            return name
        name = layer.name


def _find_sources(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            yield node["config"]["keras_history"][0]
            return
        node = tuple(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from _find_sources(child)


def _find_decoder(graph: Graph, prefixes: Sequence[Sequence[str]]) -> list[str]:
    """List the layers that a prefix names, and all that come after them."""
    starts = tuple(prefix for group in prefixes for prefix in group)
    decoder: dict[str, None] = {}
    for name, sources in graph.items():
        if name.startswith(starts) or any(source in decoder for source in sources):
            decoder[name] = None
    return list(decoder)


def _group_encoder(
    graph: Graph, decoder: Sequence[str]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Divide the encoder where the decoder reads from it."""
    inside = set(decoder)
    read = {source for name in decoder for source in graph[name]} - inside
    assigned: set[str] = set()
    for end in (name for name in graph if name in read):
        found: set[str] = set()
        waiting = [end]
        while waiting:
            name = waiting.pop()
            if name not in found and name not in assigned:
                found.add(name)
                waiting.extend(graph[name])
        assigned |= found
        yield "encoder", end, tuple(name for name in graph if name in found)


def _group_decoder(
    decoder: Sequence[str], prefixes: Sequence[Sequence[str]]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for group in prefixes:
        names = tuple(name for name in decoder if name.startswith(tuple(group)))
        if names:
            yield "decoder", names[-1], names


def _measure_strides(model: Any, graph: Graph, *, side: int) -> dict[str, int]:
    """Follow the shape of a square input of `side` pixels through the layers."""
    shapes: dict[str, Any] = {}
    strides = {}
    operations = {operation.name: operation for operation in model.operations}
    for name, sources in graph.items():
        operation = operations[name]
        given = [shapes[source] for source in sources]
        if not given:
            shapes[name] = (1, side, side, operation.batch_shape[-1])
        elif isinstance(operation, keras.layers.Layer):
            shapes[name] = operation.compute_output_shape(
                given[0] if len(given) == 1 else given
            )
        else:  # calling a network on a tensor puts a `convert_to_tensor` in front
            tensors = [keras.KerasTensor(shape) for shape in given]
            shapes[name] = operation.compute_output_spec(*tensors).shape
        if len(shapes[name]) == 4:  # noqa: PLR2004 - (N, H, W, C)
            strides[name] = side // shapes[name][1]
    return strides


def _check_complete(model: Any, stages: Sequence[Stage]) -> None:
    places: dict[str, list[str]] = {
        layer.name: [] for layer in model.layers if has_variables(layer)
    }
    for stage in stages:
        for name in stage.layers:
            places[name].append(stage.name)
    wrong = {name: found for name, found in places.items() if len(found) != 1}
    empty = [part for part in PARTS if part not in {stage.part for stage in stages}]
    if wrong or empty:
        raise ModelError(
            f"Model {model.name!r} does not divide into stages. Parts without a "
            f"layer: {empty}. Layers that are not in exactly one stage: {wrong}. Give "
            "each of its layers a name with one prefix of the decoder's stages, or "
            "none of them."
        )
