"""Putting the arrays of a file into a network, layer by layer.

Layers are matched by recorded name, variables by recorded name and shape; a layer
without a recorded name, or with one that only differs, only where its class and
shapes leave one choice. The order in the file never decides: two layers of one
shape would be swapped in silence. What is left over, on either side, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError, join_problems
from cropseg.models.hdf5 import StoredArray, StoredLayer
from cropseg.runtime import keras

_MAX_LISTED = 20
_RANDOM_STATE = "seed_generator"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A layer of the network that has weights."""

    top: str
    """Name of the layer of the whole network that it is in."""
    name: str
    """Its name."""
    kind: str
    """Its class in small letters, as Keras names layers by itself."""
    variables: tuple[Any, ...]
    """Its weights."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(variable.shape) for variable in self.variables)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A layer of the file."""

    top: str | None
    name: str | None
    kind: str | None
    path: str
    arrays: tuple[StoredArray, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.arrays)

    def __str__(self) -> str:
        shapes = ", ".join(map(str, self.shapes))
        return f"{self.name or self.path.strip('/')} {shapes}"


def load_stored_weights(model: Any, layers: Sequence[StoredLayer], path: Path) -> None:
    """Put the arrays of an HDF5 file into a network.

    Args:
        model: The network; it is changed.
        layers: What the file holds, from its header.
        path: The file.

    Raises:
        ModelError: If a layer of the network has no match, an ambiguous one or one of
            another shape, or an array of the file has no place. All are listed, and
            the network is unchanged.
    """
    matches = match_weights(model, layers, path)
    variables = {variable.path: variable for variable in model.weights}
    with h5py.File(path, "r") as file:
        values = {name: _read_array(file, array) for name, array in matches.items()}
    for name, value in values.items():
        variables[name].assign(value)
    for layer in _list_layers(model):
        # An adapted `Normalization` computes with constants made of its variables.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _list_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _list_layers(layer)
        else:
            yield layer


def _read_array(file: h5py.File, array: StoredArray) -> npt.NDArray[Any]:
    values = file[array.path][()]
    if values.dtype.str == "|V2":  # how Keras stores bfloat16
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values)


def match_weights(
    model: Any, layers: Sequence[StoredLayer], path: Path
) -> dict[str, StoredArray]:
    """Find the array of each variable of a network.

    Returns:
        Paths of variables, and what belongs into each.

    Raises:
        ModelError: As `load_stored_weights` does.
    """
    paths = [variable.path for variable in model.weights]
    if len(set(paths)) < len(paths):
        raise ModelError(
            f"Two variables of model {model.name!r} have one path, so names cannot "
            "tell them apart. Give its layers names of their own."
        )
    places, stored = list(_list_places(model)), list(_list_stored(layers))
    pairs = _match_by_name(places, stored)
    pairs |= _match_by_shape(places, stored, pairs)
    problems: list[str] = []
    found: dict[str, StoredArray] = {}
    taken = set()
    for index, place in enumerate(places):
        if index in pairs:
            taken.add(pairs[index])
            found |= _match_variables(place, stored[pairs[index]], problems)
    free = [item for index, item in enumerate(stored) if index not in taken]
    for index, place in enumerate(places):
        if index not in pairs:
            fitting = [str(item) for item in free if _fits(place, item)]
            shapes = ", ".join(map(str, place.shapes))
            which = f"could be {' or '.join(fitting)}" if fitting else "is not there"
            problems.append(f"{place.name} {shapes} of the network {which}.")
    problems += [f"{item} of the file has no place in the network." for item in free]
    if problems:
        shown = problems[:_MAX_LISTED]
        if len(problems) > _MAX_LISTED:
            shown.append(f"and {len(problems) - _MAX_LISTED} more.")
        title = f"The weights of {path} do not fit the network without guessing"
        raise ModelError(
            join_problems(title, shown) + "\nName the layers of the network as in the "
            "file, or give the whole model: `model.save('model.keras')`."
        )
    return found


def _list_places(model: Any, top: str | None = None) -> Iterator[_Place]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _list_places(layer, top or layer.name)
        elif layer.weights:
            yield _Place(
                top=top or layer.name,
                name=layer.name,
                kind=_to_small_letters(type(layer).__name__),
                variables=tuple(layer.weights),
            )


def _to_small_letters(name: str) -> str:
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _list_stored(layers: Sequence[StoredLayer]) -> Iterator[_Stored]:
    """Take nested networks of Keras 2 apart: their arrays lie in one group."""
    for layer in layers:
        if layer.kind == _RANDOM_STATE:
            continue
        if layer.kind is not None:
            yield _Stored(
                top=None,
                name=layer.name,
                kind=layer.kind,
                path=layer.path,
                arrays=layer.arrays,
            )
            continue
        groups: dict[str, list[StoredArray]] = {}
        for array in layer.arrays:
            groups.setdefault(array.layer, []).append(array)
        for name, arrays in groups.items():
            yield _Stored(
                top=layer.name,
                # A name scope of TensorFlow is no layer: one group is one layer.
                name=name if len(groups) > 1 else layer.name,
                kind=None,
                path=layer.path,
                arrays=tuple(arrays),
            )


def _match_by_name(
    places: Sequence[_Place], stored: Sequence[_Stored]
) -> dict[int, int]:
    """Pair positions in both lists whose names agree, each at most once."""
    pairs: dict[int, int] = {}
    for index, place in enumerate(places):
        namesakes = [other for other in places if other.name == place.name]
        named = [
            number
            for number, item in enumerate(stored)
            if item.name == place.name and item.kind in (None, place.kind)
        ]
        exact = [number for number in named if stored[number].top == place.top]
        nested = [
            number
            for number, item in enumerate(stored)
            if item.name == item.top == place.top and not named
        ]
        if len(exact) == 1:
            pairs[index] = exact[0]
        elif len(named) == len(namesakes) == 1:
            pairs[index] = named[0]
        elif len(nested) == 1 and sum(o.top == place.top for o in places) == 1:
            pairs[index] = nested[0]  # a nested network of one layer
    return pairs


def _match_by_shape(
    places: Sequence[_Place], stored: Sequence[_Stored], pairs: dict[int, int]
) -> dict[int, int]:
    """Pair those left over where class and shapes leave one choice on both sides.

    A name that Keras made up is no sign of another name: `conv2d_3` of the file is
    not `conv2d_4` of the network only because it is left over.
    """
    free_places = [index for index in range(len(places)) if index not in pairs]
    used = set(pairs.values())
    free_stored = [index for index in range(len(stored)) if index not in used]
    found = {}
    for index in free_places:
        place = places[index]
        items = [n for n in free_stored if _fits(place, stored[n])]
        rivals = [
            n for n in free_places if items and _fits(places[n], stored[items[0]])
        ]
        if len(items) != 1 or len(rivals) != 1:
            continue
        name = stored[items[0]].name
        if name is None or not (
            _is_made_up(name, place) and _is_made_up(place.name, place)
        ):
            found[index] = items[0]
    return found


def _fits(place: _Place, item: _Stored) -> bool:
    return (
        item.kind in (None, place.kind)
        and len(item.arrays) == len(place.variables)
        and sorted(item.shapes) == sorted(place.shapes)
    )


def _is_made_up(name: str, place: _Place) -> bool:
    return re.fullmatch(rf"{re.escape(place.kind)}(_\d+)?", name) is not None


def _match_variables(
    place: _Place, item: _Stored, problems: list[str]
) -> dict[str, StoredArray]:
    """Pair the variables of one layer; numbers are positions, which its class fixes."""
    found: dict[str, StoredArray] = {}
    arrays = {array.name: array for array in item.arrays}
    missing = []
    for position, variable in enumerate(place.variables):
        name = variable.path.rpartition("/")[2]
        array = arrays.pop(name, None) or (
            arrays.pop(str(position), None) if item.kind else None
        )
        if array is None:
            missing.append(variable)
        else:
            found[variable.path] = array
    for variable in missing:  # such as `depthwise_kernel`, now `kernel`
        shape = tuple(variable.shape)
        fitting = [name for name, array in arrays.items() if array.shape == shape]
        rivals = [other for other in missing if tuple(other.shape) == shape]
        if len(fitting) == len(rivals) == 1:
            found[variable.path] = arrays.pop(fitting[0])
        else:
            which = f"could be {' or '.join(fitting)}" if fitting else "is not there"
            problems.append(f"{variable.path} {shape} of the network {which}.")
    problems += [
        f"{array.path} {array.shape} of the file has no place in the network."
        for array in arrays.values()
    ]
    for variable in place.variables:
        matched = found.get(variable.path)
        if matched is not None and matched.shape != tuple(variable.shape):
            problems.append(
                f"{variable.path} of the network has shape {tuple(variable.shape)}, "
                f"{matched.path} of the file {matched.shape}."
            )
    return found
