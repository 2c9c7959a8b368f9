"""Batch statistics of a site, measured on its tiles without labels (AdaBN).

Each batch normalisation gets the mean and variance of what really reaches it, with
all normalisations before it already adapted. No weight changes.

References:
    Li, Wang, Shi, Liu and Hou, 2017, arXiv:1603.04779: statistics of the target in
    place of those of the source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.models.stages import Graph, read_graph
from cropseg.runtime import keras
from cropseg.sites.unlabelled import UnlabelledTiles

MAX_PIXELS = 2**22
"""Pixels that are looked at: 64 tiles of 256 pixels. Features of all of them are
kept at once, which takes about 1 GB with a `classic` network."""

Batches = list[Any]
"""Tensors of equal shape, the last with fewer tiles."""


def recompute_statistics(
    model: Any,
    norms: Collection[str],
    tiles: UnlabelledTiles,
    *,
    batch_size: int,
    fill: Sequence[float],
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Measure the statistics of batch normalisations on tiles of a site.

    They are exact: all tiles go through the network together, from one of the
    normalisations to the next, so that each is measured on features that the final
    statistics of those before it made. Filled pixels count as they do in training.

    Args:
        model: A flat functional model on raw values. Its moving means and variances
            change in place, and nothing else does.
        norms: Names of the batch normalisations to measure.
        tiles: Tiles of the site, with the bands of the model.
        batch_size: Tiles that are computed at once. It does not change the result,
            but for rounding.
        fill: Value of each band where there is no data, as the card has it.
        max_pixels: Pixels to look at, at most. Of more, some tiles are drawn at
            random, the same for equal tiles.

    Returns:
        How many tiles were read; 0 where no norms are named.

    Raises:
        ModelError: If a name is not that of a batch normalisation of the model.
    """
    if not norms:
        return 0
    route = _find_route(model, norms)
    chosen = _choose_tiles(tiles, max_pixels)
    starts = range(0, len(chosen), batch_size)
    kept: dict[str, Batches] = {
        route.entry: [
            _read_batch(tiles, chosen[start : start + batch_size], fill)
            for start in starts
        ]
    }
    for number, name in enumerate(route.norms):
        source = route.sources[name]
        if source not in kept:
            kept[source] = _compute(route, source, kept)
        layer = model.get_layer(name)
        mean, variance = measure_moments(kept[source], axis=layer.axis)
        layer.moving_mean.assign(mean.astype(np.float32))
        layer.moving_variance.assign(variance.astype(np.float32))
        later = {route.sources[name] for name in route.norms[number + 1 :]}
        wanted = later.union(*(route.needs[s] for s in later if s not in kept))
        kept = {key: batches for key, batches in kept.items() if key in wanted}
    return len(chosen)


@dataclass(frozen=True, kw_only=True)
class _Route:
    """Where features are kept on the way from the input to the normalisations."""

    entry: str
    """Name of the input."""
    norms: tuple[str, ...]
    """Names of the normalisations, from input to output."""
    sources: Mapping[str, str]
    """Name of the layer that each normalisation reads."""
    needs: Mapping[str, frozenset[str]]
    """For each of these layers: those of them, or the input, that it follows from."""
    outputs: Mapping[str, Any]
    """The symbolic output of every layer."""


def _find_route(model: Any, norms: Collection[str]) -> _Route:
    layers = {layer.name: layer for layer in model.layers}
    kind = keras.layers.BatchNormalization
    wrong = [name for name in norms if not isinstance(layers.get(name), kind)]
    if wrong:
        known = [name for name, layer in layers.items() if isinstance(layer, kind)]
        raise ModelError(
            f"{', '.join(sorted(wrong))}: no batch normalisation of model "
            f"{model.name!r} has that name; it has {', '.join(known) or 'none'}."
        )
    graph = read_graph(model)
    ordered = tuple(name for name in graph if name in norms)
    sources = {name: graph[name][0] for name in ordered}
    outputs: dict[str, Any] = {}

    def record(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs[operation.name] = operation(*args, **kwargs)
        return outputs[operation.name]

    # The layers are shared. A layer's own `output` may be that of another model.
    copy = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=record
    )
    entry = next(iter(graph))
    outputs[entry] = copy.inputs[0]
    stops = {entry, *sources.values()}
    return _Route(
        entry=entry,
        norms=ordered,
        sources=sources,
        needs={name: _look_back(graph, name, stops) for name in sources.values()},
        outputs=outputs,
    )


def _look_back(graph: Graph, name: str, stops: Collection[str]) -> frozenset[str]:
    """Return the stops that a layer follows from, with no other stop between."""
    found: set[str] = set()
    waiting, seen = list(graph[name]), set(graph[name])
    while waiting:
        source = waiting.pop()
        if source in stops:
            found.add(source)
            continue
        waiting += [item for item in graph[source] if item not in seen]
        seen.update(graph[source])
    return frozenset(found)


def _compute(route: _Route, source: str, kept: Mapping[str, Batches]) -> Batches:
    """Return the output of a layer for all tiles, from what was kept before it."""
    names = sorted(route.needs[source])
    inputs = [route.outputs[name] for name in names]
    step = keras.Model(inputs if len(names) > 1 else inputs[0], route.outputs[source])
    return [
        step(list(values) if len(names) > 1 else values[0], training=False)
        for values in zip(*(kept[name] for name in names), strict=True)
    ]


def measure_moments(
    batches: Iterable[Any], *, axis: int = -1
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and variance over batches, each (channels,).

    Batches are added up as Chan (1983) does, which stays exact for many pixels.

    Args:
        batches: Arrays or tensors with at least one value a channel.
        axis: The axis of the channels.
    """
    total, mean, squares = 0, np.float64(0), np.float64(0)
    for batch in batches:
        axes = [i for i in range(len(batch.shape)) if i != axis % len(batch.shape)]
        count = int(np.prod([batch.shape[i] for i in axes]))
        centre = keras.ops.mean(batch, axis=axes, keepdims=True)
        spread = keras.ops.mean(keras.ops.square(batch - centre), axis=axes)
        values, spread = (
            keras.ops.convert_to_numpy(item).astype(np.float64).ravel()
            for item in (centre, spread)
        )
        shift = values - mean
        squares = squares + count * (spread + shift**2 * total / (total + count))
        mean = mean + shift * count / (total + count)
        total += count
    return np.asarray(mean), np.asarray(squares / total)


def _choose_tiles(tiles: UnlabelledTiles, max_pixels: int) -> list[int]:
    count = max(1, max_pixels // tiles.tile_size**2)
    if count >= len(tiles):
        return list(range(len(tiles)))
    rng = np.random.default_rng(len(tiles))
    return sorted(rng.choice(len(tiles), count, replace=False).tolist())


def _read_batch(
    tiles: UnlabelledTiles, indexes: Sequence[int], fill: Sequence[float]
) -> npt.NDArray[np.float32]:
    side = tiles.tile_size
    batch = np.empty((len(indexes), side, side, len(tiles.site.bands)), np.float32)
    for values, index in zip(batch, indexes, strict=True):
        pixels = tiles.read(index)
        values[:] = pixels.values
        values[~pixels.valid] = fill
    return batch
