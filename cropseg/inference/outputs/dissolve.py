"""Giving small areas of a map to their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.sites.classes import IGNORE

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Connected areas of a map, and how long their borders are."""

    class_ids: Bytes
    """Class of each; 255 where there is no data."""
    areas_m2: Floats
    """How large each is."""
    first_pixels: Ids
    """Position of the first pixel of each, row by row. It decides what is equal
    otherwise, as numbers of areas depend on how the map was read."""
    pairs: Ids
    """Neighbours, (n, 2), each pair once. All neighbours of small areas are there."""
    lengths_m: Floats
    """Length of the border of each pair."""


def dissolve_small(areas: Areas, min_area_m2: float) -> tuple[Ids, Bytes]:
    """Give small areas to their neighbours.

    Each small area goes to the neighbour with which it has the longest border: of equal
    ones to the largest, then to the lowest class. Small areas that go to each other
    are one from then on, of the class that most of it has. That is repeated until no
    area is small but those that have no neighbour; these are dropped.

    Args:
        areas: The areas of a map.
        min_area_m2: What is smaller is small.

    Returns:
        For each area, the number of the one that it belongs to now, and the class of
        each of these, 255 where there is no data or where it was dropped.
    """
    groups = np.arange(len(areas.class_ids), dtype=np.int64)
    has_data = (areas.class_ids[areas.pairs] != IGNORE).all(axis=1)
    areas = Areas(
        class_ids=areas.class_ids,
        areas_m2=areas.areas_m2,
        first_pixels=areas.first_pixels,
        pairs=areas.pairs[has_data],
        lengths_m=areas.lengths_m[has_data],
    )
    while True:
        is_small = areas.areas_m2 < min_area_m2
        joints = _choose_neighbours(areas, is_small)
        if not len(joints):
            break
        joined, _ = connect(joints, len(is_small))
        class_ids = _choose_classes(areas, is_small, joined)[joined]
        # What met as different classes may be of one class now.
        same = class_ids[areas.pairs[:, 0]] == class_ids[areas.pairs[:, 1]]
        joined, num_joined = connect(
            np.concatenate([joints, areas.pairs[same]]), len(is_small)
        )
        areas = _merge(areas, class_ids, joined, num_joined)
        groups = joined[groups]
    class_ids = areas.class_ids.copy()
    class_ids[areas.areas_m2 < min_area_m2] = IGNORE
    return groups, class_ids


def _choose_neighbours(areas: Areas, is_small: npt.NDArray[np.bool_]) -> Ids:
    """Return the small areas that have a neighbour, and that with the longest border.

    Returns:
        Pairs, (n, 2).
    """
    sides = np.concatenate([areas.pairs, areas.pairs[:, ::-1]])
    lengths_m = np.concatenate([areas.lengths_m, areas.lengths_m])
    goes = is_small[sides[:, 0]]
    small, near = sides[goes].T
    keys = (
        areas.first_pixels[near],
        areas.class_ids[near],
        -areas.areas_m2[near],
        -lengths_m[goes],
        small,  # the last key counts first
    )
    order = np.lexsort(keys)
    small, first = np.unique(small[order], return_index=True)
    return np.stack([small, near[order][first]], axis=1)


def _choose_classes(
    areas: Areas, is_small: npt.NDArray[np.bool_], joined: Ids
) -> Bytes:
    """Return the class of each joined area.

    At most one of the areas that were joined is large, as only small ones go.
    """
    keys, numbers = np.unique(
        joined * 256 + areas.class_ids.astype(np.int64), return_inverse=True
    )
    owners, class_ids = keys // 256, keys % 256
    totals = sum_by(numbers, areas.areas_m2, len(keys))
    order = np.lexsort((-class_ids, totals, owners))  # the largest is written last
    found = np.zeros(int(joined.max()) + 1, np.uint8)
    found[owners[order]] = class_ids[order]
    found[joined[~is_small]] = areas.class_ids[~is_small]
    return found


def _merge(areas: Areas, class_ids: Bytes, joined: Ids, num_joined: int) -> Areas:
    pairs = np.sort(joined[areas.pairs], axis=1)
    is_border = pairs[:, 0] != pairs[:, 1]
    pairs, numbers = list_pairs(pairs[is_border, 0], pairs[is_border, 1])
    found = np.zeros(num_joined, np.uint8)
    found[joined] = class_ids
    first_pixels = np.full(num_joined, np.iinfo(np.int64).max)
    np.minimum.at(first_pixels, joined, areas.first_pixels)
    return Areas(
        class_ids=found,
        areas_m2=sum_by(joined, areas.areas_m2, num_joined),
        first_pixels=first_pixels,
        pairs=pairs,
        lengths_m=sum_by(numbers, areas.lengths_m[is_border], len(pairs)),
    )


def connect(pairs: Ids, num_nodes: int) -> tuple[Ids, int]:
    """Give the groups of nodes that pairs connect a number each.

    Args:
        pairs: Nodes, (n, 2).
        num_nodes: Number of nodes.

    Returns:
        The group of each node, and how many groups there are.
    """
    from scipy.sparse.csgraph import connected_components

    graph = build_graph(pairs[:, 0], pairs[:, 1], num_nodes)
    num_groups, groups = connected_components(graph, directed=False)
    return groups.astype(np.int64), int(num_groups)


def build_graph(
    first: npt.NDArray[np.integer], second: npt.NDArray[np.integer], num_nodes: int
) -> Any:
    """Return a graph, as SciPy understands it, with an edge from each to each."""
    from scipy.sparse import coo_array

    joined = np.ones(len(first), np.bool_)
    return coo_array((joined, (first, second)), shape=(num_nodes, num_nodes)).tocsr()


def list_pairs(first: Ids, second: Ids) -> tuple[Ids, Ids]:
    """Return the distinct pairs, (n, 2), and which of them each pair is."""
    if not len(first):
        return np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    # One number a pair: sorting rows of two takes ten times as long.
    base = np.int64(second.min())
    span = np.int64(second.max()) - base + 1
    keys, numbers = np.unique(first * span + (second - base), return_inverse=True)
    return np.stack([keys // span, keys % span + base], axis=1), numbers


def sum_by(
    labels: npt.NDArray[np.integer], values: npt.ArrayLike, num_labels: int
) -> Floats:
    """Return the sum of the values of each label."""
    weights = np.broadcast_to(values, labels.shape).ravel()
    sums = np.bincount(labels.ravel(), weights=weights, minlength=num_labels)
    return np.asarray(sums, np.float64)
