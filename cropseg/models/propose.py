"""Stages of a network that nobody described, proposed from its graph.

The encoder ends where the resolution is lowest, the decoder begins where it rises
again. What a network pools away and spreads over the image again (squeeze and
excite, pooled context) is a side branch and no lowest resolution. The user confirms
or edits the proposal in a file (`cropseg.models.stage_file`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cropseg.errors import ModelError
from cropseg.models.flat_graph import Call, FlatGraph, read_flat_graph
from cropseg.models.stage_file import StageEntry, choose_layers
from cropseg.models.stages import HEAD, Stage, has_variables
from cropseg.runtime import keras

_IMAGE_RANK = 4
_MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_COPRIME = (2, 3, 5, 7)
_MOST_POOLED = 4
"""A pooling by more than this, on a side, begins a side branch."""

_POOLINGS = ("MaxPooling2D", "AveragePooling2D", "Mean", "Max")
_GLOBAL = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One layer or operation of a flat network, and where it stands."""

    name: str
    """Its name."""
    operation: Any
    """The layer or operation."""
    sources: tuple[str, ...]
    """Names of those that it reads; none for one that reads the input."""
    side: int | None
    """Side of its output in pixels; None where that is no image."""
    num_channels: int
    """Channels of its output."""


def propose_stages(model: Any) -> tuple[Stage, ...]:
    """Propose the stages of an encoder-decoder network from its graph.

    Args:
        model: A network in cropseg's form (`cropseg.models.rebuild`), with or without
            normalisation in front.

    Returns:
        The stages, from input to output. Encoder stages end where the decoder reads
        from the encoder; decoder stages have one resolution each.

    Raises:
        ModelError: If there is no encoder or no decoder to be seen.
    """
    side, nodes = _measure_at_ease(model)
    branches = _find_side_branches(nodes)
    sides = _assign_sides(nodes, branches)
    encoder = _find_encoder(nodes, sides, branches)
    groups = [
        *(("encoder", names) for names in _group_encoder(nodes, sides, encoder)),
        *(("decoder", names) for names in _group_decoder(nodes, sides, encoder)),
        ("head", [HEAD]),
    ]
    weighted = {layer.name for layer in model.layers if has_variables(layer)}
    stages: list[Stage] = []
    for part, names in groups:
        layers = tuple(name for name in names if name in weighted)
        if layers:
            number = sum(stage.part == part for stage in stages) + 1
            stages.append(
                Stage(
                    name=HEAD if part == HEAD else f"{part}_{number}",
                    layers=layers,
                    stride=max(1, round(side / sides[names[-1]])),
                    part=part,
                )
            )
    missing = {"encoder", "decoder", "head"} - {stage.part for stage in stages}
    if missing:
        raise ModelError(
            f"No layer with weights is seen as {' or '.join(sorted(missing))} of model "
            f"{model.name!r}. Name its stages with --stages FILE."
        )
    return tuple(stages)


def resolve_stages(model: Any, entries: Sequence[StageEntry]) -> tuple[Stage, ...]:
    """Return the stages that a user named.

    Args:
        model: As for `propose_stages`.
        entries: The stages, from input to output, with names or patterns of layers.

    Raises:
        ModelError: If they do not divide the network.
    """
    weighted = [layer.name for layer in model.layers if has_variables(layer)]
    chosen = choose_layers(entries, weighted)
    if chosen[-1] != (HEAD,):
        raise ModelError(
            f"Stage head has {', '.join(chosen[-1])}; its one layer is {HEAD!r}, which "
            "gives the logits."
        )
    side, nodes = _measure_at_ease(model)
    sides = _assign_sides(nodes, _find_side_branches(nodes))
    return tuple(
        Stage(
            name=entry.name,
            part=entry.part,
            layers=layers,
            stride=max(1, round(side / sides[layers[-1]])),
        )
        for entry, layers in zip(entries, chosen, strict=True)
    )


def _measure_at_ease(model: Any) -> tuple[int, list[Node]]:
    """Measure a network at its own side, or at one that its maps are seen well at."""
    multiple = find_tile_multiple(model)
    side = multiple if _get_fixed_sides(model) else 8 * multiple
    graph = read_flat_graph(model)
    return side, measure_nodes(graph, side=side, num_bands=_num_bands(model))


def find_tile_multiple(model: Any) -> int:
    """Return what the sides of a network's tiles must be multiples of, in pixels.

    For a network of one fixed size that is its side.

    Raises:
        ModelError: If it does not give back the size that it takes.
    """
    graph, num_bands = read_flat_graph(model), _num_bands(model)

    def keeps_size(side: int) -> bool:
        try:
            last = measure_nodes(graph, side=side, num_bands=num_bands)[-1]
        except ModelError:
            return False
        return last.side == side

    sides = _get_fixed_sides(model)
    if sides is not None:
        if sides[0] != sides[1] or not keeps_size(sides[0]):
            raise ModelError(
                f"Model {model.name!r} takes images of {sides} and gives "
                f"{tuple(model.outputs[0].shape[1:3])}. Both must be one square."
            )
        return sides[0]
    for multiple in _MULTIPLES:
        if all(keeps_size(multiple * factor) for factor in _COPRIME):
            return multiple
    raise ModelError(
        f"Model {model.name!r} gives back the size that it takes for no multiple of "
        f"pixels up to {_MULTIPLES[-1]}."
    )


def _get_fixed_sides(model: Any) -> tuple[int, int] | None:
    height, width = model.inputs[0].shape[1:3]
    return None if height is None or width is None else (height, width)


def _num_bands(model: Any) -> int:
    return int(model.inputs[0].shape[-1])


def measure_nodes(graph: FlatGraph, *, side: int, num_bands: int) -> list[Node]:
    """Follow a square image of `side` pixels through a network.

    Returns:
        Its layers and operations, from input to output; the output is the last.

    Raises:
        ModelError: If it does not work at that size.
    """
    nodes: list[Node] = []

    def visit(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [x for x in keras.tree.flatten([args, kwargs]) if _is_tensor(x)]
        _check_sides(call, given)
        result = _measure_output(call.operation, args, kwargs)
        shape = tuple(result.shape)
        is_image = len(shape) == _IMAGE_RANK
        if None in shape or (is_image and shape[1] != shape[2]):
            raise ModelError(f"{call.operation.name} gives {shape}, no square.")
        nodes.append(
            Node(
                name=call.operation.name,
                operation=call.operation,
                sources=tuple(nodes[i].name for i in call.sources if i >= 0),
                side=shape[1] if is_image else None,
                num_channels=shape[-1],
            )
        )
        return result

    start = keras.KerasTensor((1, side, side, num_bands), dtype="float32")
    try:
        graph.run(start, visit)
    except ModelError:
        raise
    except (ValueError, TypeError) as error:
        raise ModelError(f"It does not take {side} pixels: {error}") from error
    nodes.append(nodes.pop(graph.output))
    return nodes


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _measure_output(
    operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if isinstance(operation, keras.layers.Layer) and len(args) == 1 and not kwargs:
        shapes = keras.tree.map_structure(lambda value: tuple(value.shape), args[0])
        return keras.KerasTensor(operation.compute_output_shape(shapes))
    return operation.compute_output_spec(*args, **kwargs)


def _check_sides(call: Call, given: Sequence[Any]) -> None:
    """Refuse images of different sizes: Keras joins their shapes without a look."""
    sides = {tuple(x.shape[1:3]) for x in given if len(x.shape) == _IMAGE_RANK}
    if type(call.operation).__name__ != "Concatenate":
        sides -= {(1, 1)}  # spread over the image
    if len(sides) > 1:
        raise ModelError(f"{call.operation.name} joins images of {sorted(sides)}.")


def _find_side_branches(nodes: Sequence[Node]) -> set[str]:
    """Find what is pooled away from the image, until it joins the image again."""
    known = {node.name: node for node in nodes}
    branches: set[str] = set()
    for node in nodes:
        before = [known[name].side for name in node.sources]
        is_pooled = type(node.operation).__name__ in _GLOBAL or (
            type(node.operation).__name__ in _POOLINGS
            and bool(before)
            and before[0] is not None
            and (node.side is None or before[0] > _MOST_POOLED * node.side)
        )
        if is_pooled or (node.sources and all(n in branches for n in node.sources)):
            branches.add(node.name)
    # Where the output itself is behind it, it is the main path.
    return set() if nodes[-1].name in branches else branches


def _assign_sides(nodes: Sequence[Node], branches: Collection[str]) -> dict[str, int]:
    """Give each node its side; one of a side branch has that of what it ends in."""
    sides: dict[str, int] = {}
    ends: dict[str, int] = {}
    for node in reversed(nodes):
        side = node.side if node.name not in branches else None
        sides[node.name] = side or ends.get(node.name) or 1
        for source in node.sources:
            ends[source] = max(ends.get(source, 0), sides[node.name])
    return sides


def _find_encoder(
    nodes: Sequence[Node], sides: Mapping[str, int], branches: Collection[str]
) -> set[str]:
    """Find all that the end of the lowest resolution comes from, with that end."""
    main = [node for node in nodes if node.name not in branches]
    lowest = min(sides[node.name] for node in main)
    # Padding makes a map a little larger for a while.
    bottom = [node for node in main if sides[node.name] < 2 * lowest]
    if lowest == nodes[-1].side:
        raise ModelError(
            "The resolution of this network never falls, so no encoder is seen. Name "
            "its stages with --stages FILE."
        )
    ends = _find_bottlenecks(bottom)
    inside: set[str] = set()
    sources = {node.name: node.sources for node in nodes}
    waiting = [ends[-1].name if ends else bottom[-1].name]
    while waiting:
        name = waiting.pop()
        if name not in inside:
            inside.add(name)
            waiting.extend(sources[name])
    return inside


def _find_bottlenecks(bottom: Sequence[Node]) -> list[Node]:
    """List the nodes of the lowest resolution that every path through it passes.

    From a convolution of one pixel on that narrows the features for good, they are
    the decoder's (Linknet, FPN), and left out.
    """
    names = {node.name for node in bottom}
    readers: dict[str, list[str]] = {name: [] for name in names}
    into: dict[str, int] = {}
    for node in bottom:
        inner = [name for name in node.sources if name in names]
        for name in inner:
            readers[name].append(node.name)
        into[node.name] = sum(into[name] for name in inner) + (not inner)
    out: dict[str, int] = {}
    for node in reversed(bottom):
        out[node.name] = sum(out[name] for name in readers[node.name]) or 1
    total = sum(into[name] for name in names if not readers[name])
    passed = [node for node in bottom if into[node.name] * out[node.name] == total]
    channels = {node.name: node.num_channels for node in bottom}
    for index, node in enumerate(passed):
        before = [channels[name] for name in node.sources if name in channels]
        if (
            index
            and before
            and _get_kernel(node) == 1
            and node.num_channels < before[0]
            and all(
                _get_kernel(other) <= 1 and other.num_channels <= node.num_channels
                for other in bottom[bottom.index(node) :]
            )
        ):
            return passed[:index]
    return passed


def _has_weights(node: Node) -> bool:
    is_layer = isinstance(node.operation, keras.layers.Layer)
    return is_layer and bool(node.operation.weights)


def _get_kernel(node: Node) -> int:
    """Return the side of a layer's kernel; 0 for one that is no convolution."""
    if not _has_weights(node):
        return 0
    return max(getattr(node.operation, "kernel_size", (0,)))


def _group_encoder(
    nodes: Sequence[Node], sides: Mapping[str, int], encoder: Collection[str]
) -> Iterator[list[str]]:
    """Divide the encoder where the decoder reads from it, or by resolution."""
    sources = {node.name: node.sources for node in nodes}
    read = {
        source
        for node in nodes
        if node.name not in encoder
        for source in node.sources
        if source in encoder
    }
    assigned: set[str] = set()
    for end in (node.name for node in nodes if node.name in read):
        found: set[str] = set()
        waiting = [end]
        while waiting:
            name = waiting.pop()
            if name not in found and name not in assigned:
                found.add(name)
                waiting.extend(sources[name])
        assigned |= found
        names = [node.name for node in nodes if node.name in found]
        # A stage of several may begin with its own step down.
        yield from _divide(nodes, names, sides, most=1 if len(read) == 1 else 2)


def _divide(
    nodes: Sequence[Node], names: Sequence[str], sides: Mapping[str, int], *, most: int
) -> Iterator[list[str]]:
    """Divide a stretch that has layers at more than `most` resolutions."""
    weighted = {n.name for n in nodes if _has_weights(n)}
    found = sorted({sides[n] for n in names if n in weighted}, reverse=True)
    if len(found) <= most:
        yield list(names)
        return
    for index, side in enumerate(found):
        is_last = index == len(found) - 1
        yield [
            name
            for name in names
            if sides[name] == side or (is_last and sides[name] not in found)
        ]


def _group_decoder(
    nodes: Sequence[Node], sides: Mapping[str, int], encoder: Collection[str]
) -> Iterator[list[str]]:
    names = [
        node.name for node in nodes if node.name not in encoder and node.name != HEAD
    ]
    for side in sorted({sides[name] for name in names}):
        yield [name for name in names if sides[name] == side]
