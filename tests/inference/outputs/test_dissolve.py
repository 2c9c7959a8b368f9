"""Which neighbour gets a small area, whatever the areas are numbered."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.inference.outputs.dissolve import Areas, dissolve_small


def dissolve(class_ids, areas_m2, borders, *, order=None, least=10):
    """Return the class that each area has at last.

    `borders` are lengths by pairs of areas, `order` numbers the areas anew.
    """
    order = np.arange(len(class_ids)) if order is None else np.asarray(order)
    back = np.argsort(order)
    pairs = np.array([back[list(pair)] for pair in borders]).reshape(-1, 2).astype(int)
    groups, found = dissolve_small(
        Areas(
            class_ids=np.array(class_ids, np.uint8)[order],
            areas_m2=np.array(areas_m2, float)[order],
            first_pixels=np.arange(len(class_ids))[order],
            pairs=np.sort(pairs, axis=1),
            lengths_m=np.array(list(borders.values()), float),
        ),
        least,
    )
    return found[groups][back].tolist()


CASES = {
    "the longest border has it": (
        [0, 1, 2],
        [50, 5, 90],
        {(0, 1): 4, (1, 2): 3},
        [0, 0, 2],
    ),
    "then the largest": ([0, 1, 2], [50, 5, 90], {(0, 1): 4, (1, 2): 4}, [0, 2, 2]),
    "then the lowest class": (
        [3, 1, 2],
        [50, 5, 50],
        {(0, 1): 4, (1, 2): 4},
        [3, 2, 2],
    ),
    "a chain goes to its end": (
        [0, 1, 2, 1],
        [50, 5, 5, 5],
        {(0, 1): 5, (1, 2): 3, (2, 3): 2},
        [0, 0, 0, 0],
    ),
    "three that go to each other take the class of most": (
        [0, 1, 2, 1],
        [50, 5, 5, 5],
        {(0, 1): 2, (1, 2): 3, (2, 3): 4},
        [0, 1, 1, 1],
    ),
    "a pair takes the class of most": (
        [1, 2, 1],
        [4, 7, 4],
        {(0, 1): 3, (1, 2): 3},
        [1, 1, 1],
    ),
    "a large one keeps its class, however many come": (
        [0, 1, 1, 1],
        [12, 9, 9, 9],
        {(0, 1): 3, (0, 2): 3, (0, 3): 3},
        [0, 0, 0, 0],
    ),
    "what has no neighbour is dropped": ([0, 1], [50, 5], {}, [0, 255]),
    "no data is no neighbour": ([255, 1], [50, 5], {(0, 1): 9}, [255, 255]),
    "a pair that stays small is dropped": ([1, 2], [4, 5], {(0, 1): 3}, [255, 255]),
    "large ones stay": ([1, 2], [10, 11], {(0, 1): 3}, [1, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_small_area_goes_where_the_rules_say(case):
    class_ids, areas_m2, borders, expected = CASES[case]
    assert dissolve(class_ids, areas_m2, borders) == expected


def test_numbers_of_areas_decide_nothing():
    rng = np.random.default_rng(0)
    num_areas = 60
    class_ids = rng.integers(0, 3, num_areas)
    areas_m2 = rng.choice([2, 3, 5, 50], num_areas)  # with many that are equal
    borders = {}
    for first, second in rng.integers(0, num_areas, (150, 2)).tolist():
        if class_ids[first] != class_ids[second]:
            borders[min(first, second), max(first, second)] = rng.integers(1, 4)
    expected = dissolve(class_ids, areas_m2, borders)
    assert len(set(expected)) > 1
    for _ in range(20):
        order = rng.permutation(num_areas)
        assert dissolve(class_ids, areas_m2, borders, order=order) == expected
