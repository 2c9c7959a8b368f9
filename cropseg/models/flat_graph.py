"""The graph of a network as a list of calls, with nested networks taken apart.

It is read from the config, the public form of a graph. What a call does with its
inputs is up to a visitor: build another network, or only follow the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cropseg.errors import ModelError
from cropseg.runtime import keras

INPUT_INDEX = -1
"""What stands for the network's input where a call says what it reads."""

_CONTEXT = ("training", "mask")
"""What Keras notes of a call that is no part of the graph."""


@dataclass(frozen=True)
class Source:
    """The output of another call, where it stands among the arguments of a call."""

    index: int
    """Position of that call in the list, or `INPUT_INDEX`."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a layer or an operation."""

    operation: Any
    """The layer or operation; never a network."""
    args: tuple[Any, ...]
    """Its arguments: a `Source`, a constant, or lists of them."""
    kwargs: Mapping[str, Any]
    """Its arguments by name."""
    parents: tuple[str, ...]
    """Names of the networks around it, the whole one left out."""

    @property
    def sources(self) -> tuple[int, ...]:
        """Positions of the calls that it reads."""
        given = _flatten([list(self.args), dict(self.kwargs)])
        return tuple(item.index for item in given if isinstance(item, Source))


@dataclass(frozen=True, kw_only=True)
class FlatGraph:
    """The calls of a network with one input and one output."""

    calls: tuple[Call, ...]
    """The calls, each after all that it reads."""
    output: int
    """Position of the call that gives the output."""

    def run(
        self,
        value: Any,
        visit: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any],
    ) -> Any:
        """Walk through the graph from its input to its output.

        Args:
            value: What stands for the input.
            visit: Called for each call in order, with its arguments filled in. Returns
                what stands for its output.

        Returns:
            What stands for the output.
        """
        values = {INPUT_INDEX: value}
        for index, call in enumerate(self.calls):
            args = tuple(_fill_in(item, values) for item in call.args)
            kwargs = {key: _fill_in(item, values) for key, item in call.kwargs.items()}
            values[index] = visit(call, args, kwargs)
        return values[self.output]


def read_flat_graph(model: Any) -> FlatGraph:
    """Read the graph of a functional or sequential Keras model.

    Raises:
        ModelError: If it has none, or not one input and one output.
    """
    require_graph(model)
    shapes = [[tuple(x.shape) for x in ends] for ends in (model.inputs, model.outputs)]
    if [len(ends) for ends in shapes] != [1, 1]:
        raise ModelError(
            f"Model {model.name!r} goes from {shapes[0]} to {shapes[1]}. It must take "
            "one image and give one. Cut it with `keras.Model(input, output)`."
        )
    calls: list[Call] = []
    (end,) = _trace(model, [Source(INPUT_INDEX)], _Trace(calls=calls))
    return FlatGraph(calls=tuple(calls), output=end.index)


def require_graph(model: Any) -> None:
    """Refuse a model whose layers cannot be told apart.

    Raises:
        ModelError: If it is subclassed, or was never built.
    """
    is_known = isinstance(model, keras.Model) and model.built
    if is_known and not isinstance(model, keras.Sequential):
        try:
            is_known = "input_layers" in model.get_config()
        except (NotImplementedError, TypeError, ValueError):
            is_known = False
    if not is_known or not model.inputs:
        raise ModelError(
            f"Model {getattr(model, 'name', model)!r} of class {type(model).__name__} "
            "has no graph: it is subclassed, or was not built. Build it with "
            "`keras.Model(inputs, outputs)`, so that its layers can be told apart."
        )


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """Where the calls of a network are written down."""

    calls: list[Call]
    parents: tuple[str, ...] = field(default=())

    def add(
        self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Write a call down; return what stands for its outputs, a list."""
        if isinstance(operation, keras.Model):
            require_graph(operation)
            parents = (*self.parents, operation.name)
            given = [x for x in _flatten([list(args)]) if isinstance(x, Source)]
            return _trace(operation, given, _Trace(calls=self.calls, parents=parents))
        self.calls.append(
            Call(
                operation=operation,
                args=tuple(args),
                kwargs=dict(kwargs),
                parents=self.parents,
            )
        )
        return [Source(len(self.calls) - 1)]


def _trace(model: Any, inputs: Sequence[Source], trace: _Trace) -> list[Source]:
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            inputs = trace.add(layer, inputs, {})
        return list(inputs)
    config = model.get_config()
    operations = {operation.name: operation for operation in model.operations}
    known = dict(zip(_list_ends(config["input_layers"]), inputs, strict=True))
    waiting = [
        (layer["name"], index, node)
        for layer in config["layers"]
        for index, node in enumerate(layer["inbound_nodes"])
    ]
    while waiting:
        later = []
        for name, index, node in waiting:
            if any(end not in known for end in _find_tensors(node)):
                later.append((name, index, node))
                continue
            args = [_read(item, known) for item in node["args"]]
            kwargs = {
                key: _read(item, known)
                for key, item in node["kwargs"].items()
                if key not in _CONTEXT
            }
            for output, source in enumerate(trace.add(operations[name], args, kwargs)):
                known[name, index, output] = source
        if len(later) == len(waiting):
            raise ModelError(f"Model {model.name!r} has a graph that is not connected.")
        waiting = later
    return [
        # Here, and only here, Keras counts the calls of a nested network from 1.
        known[name, index - _counts_from_one(operations[name]), output]
        for name, index, output in _list_ends(config["output_layers"])
    ]


def _counts_from_one(operation: Any) -> bool:
    return isinstance(operation, keras.Model) and not isinstance(
        operation, keras.Sequential
    )


_End = tuple[str, int, int]
"""Name of a layer, its call, its output: how a config names a tensor."""


def _list_ends(node: Any) -> list[_End]:
    """List the inputs or outputs of a network, in whatever structure."""
    if isinstance(node, Mapping):
        return [end for item in node.values() for end in _list_ends(item)]
    if len(node) == 3 and isinstance(node[0], str):  # noqa: PLR2004 - an `_End`
        return [(node[0], node[1], node[2])]
    return [end for item in node for end in _list_ends(item)]


def _find_tensors(node: Any) -> Iterator[_End]:
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            name, index, output = node["config"]["keras_history"]
            yield name, index, output
            return
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from _find_tensors(item)


def _read(node: Any, known: Mapping[_End, Source]) -> Any:
    if isinstance(node, Mapping):
        if node.get("class_name") == "__keras_tensor__":
            return known[next(_find_tensors(node))]
        return {key: _read(item, known) for key, item in node.items()}
    if isinstance(node, list | tuple):
        return [_read(item, known) for item in node]
    return node


def _fill_in(node: Any, values: Mapping[int, Any]) -> Any:
    if isinstance(node, Source):
        return values[node.index]
    if isinstance(node, Mapping):
        return {key: _fill_in(item, values) for key, item in node.items()}
    if isinstance(node, list):
        return [_fill_in(item, values) for item in node]
    return node


def _flatten(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _flatten(item)
        return
    yield node
