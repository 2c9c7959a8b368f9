"""Connected areas of one class on a map that is read square by square.

An area is a set of pixels of one class that are joined by their sides. Squares are
labelled one by one; what meets at their edges is joined when all were seen. So areas
are the same whatever the squares are. In memory are one square, some 200 bytes for
each area of a square, and 40 more for each border of a small area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cropseg.inference.outputs.areas import measure_pixels_m2
from cropseg.inference.outputs.dissolve import (
    Areas,
    build_graph,
    connect,
    dissolve_small,
    list_pairs,
    sum_by,
)
from cropseg.inference.outputs.finished import MapReader
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.projection import is_true_to_scale, measure_pixel

Labels = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Components:
    """The connected areas of a map. Get them from `find_components`."""

    windows: tuple[Window, ...]
    """The squares, in the order in which they were read."""
    offsets: tuple[int, ...]
    """For each square, where its labels begin in `groups`."""
    groups: Ids
    """Area of each label of each square, one square behind the other."""
    class_ids: Bytes
    """Class of each area; 255 for those without data, or dropped."""
    areas_m2: Floats
    """Area of each, in square metres."""
    confidences: Floats
    """Mean confidence of the pixels of each; NaN where there is none."""
    last_squares: Ids
    """Position of the last square in which each has a pixel."""
    num_squares: Ids
    """Number of squares in which each has a pixel."""

    def draw(self, square: int, ids: Bytes) -> tuple[Labels, Ids]:
        """Return the areas of a square.

        Args:
            square: Its position.
            ids: Its class ids, (height, width), as they were read before.

        Returns:
            A number for each pixel, (height, width), and the area that each number
            stands for.
        """
        labels, num_labels = label_areas(ids)
        start = self.offsets[square]
        groups, numbers = np.unique(
            self.groups[start : start + num_labels], return_inverse=True
        )
        return numbers.astype(np.int32)[labels], groups


def find_components(reader: MapReader, *, min_area_m2: float = 0) -> Components:
    """Find the connected areas of a map.

    Args:
        reader: The map. It is read once.
        min_area_m2: Smallest area, in square metres. `dissolve_small` says where
            smaller ones go.

    Returns:
        The areas.

    Raises:
        DataError: If the map cannot be read.
    """
    scan = _Scan(reader, min_area_m2)
    for window in reader.iterate_chunks():
        scan.add(window)
    return scan.join()


def label_areas(ids: Bytes) -> tuple[Labels, int]:
    """Give the connected areas of equal values numbers.

    Args:
        ids: Values, (height, width).

    Returns:
        A number from 0 for each pixel, (height, width), and how many there are.
    """
    from scipy.sparse.csgraph import connected_components

    begins = np.ones(ids.shape, np.bool_)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    runs = np.cumsum(begins, dtype=np.int32).reshape(ids.shape) - 1
    # Two runs of neighbouring rows touch first where one of them begins.
    touches = (ids[1:] == ids[:-1]) & (begins[1:] | begins[:-1])
    graph = build_graph(runs[:-1][touches], runs[1:][touches], int(runs[-1, -1]) + 1)
    num_labels, labels = connected_components(graph, directed=False)
    return labels.astype(np.int32)[runs], int(num_labels)


class _Scan:
    """Takes the squares of a map, row by row."""

    def __init__(self, reader: MapReader, min_area_m2: float) -> None:
        self._reader = reader
        self._min_area_m2 = min_area_m2
        self._row_areas_m2 = measure_pixels_m2(reader.grid)
        self._sides_m = measure_sides_m(reader.grid)
        self._windows: list[Window] = []
        self._offsets: list[int] = []
        self._num_labels = 0
        # What each label of a square is, one square behind the other.
        self._class_ids: list[Bytes] = []
        self._areas_m2: list[Floats] = []
        self._sums: list[Floats] = []
        self._counts: list[Ids] = []
        self._first_pixels: list[Ids] = []
        # Labels that are one area, and how long borders of small areas are.
        self._joints: list[Ids] = []
        self._borders: list[tuple[Ids, Floats]] = []
        # The last row of pixels above, and the last column on the left: their labels
        # among all and their class ids.
        width = reader.grid.width
        self._above = np.zeros(width, np.int64), np.zeros(width, np.uint8)
        self._left: tuple[Ids, Bytes] | None = None

    def add(self, window: Window) -> None:
        """Label a square and join it with those before."""
        ids = self._reader.read_classes(window)
        labels, num_labels = label_areas(ids)
        self._windows.append(window)
        self._offsets.append(self._num_labels)
        self._measure(window, ids, labels, num_labels)
        if self._min_area_m2 > 0:
            self._find_first_pixels(window, labels, num_labels)
            self._measure_borders(labels)
        self._join_edges(window, ids, labels + np.int64(self._num_labels))
        self._num_labels += num_labels

    def _measure(
        self, window: Window, ids: Bytes, labels: Labels, num_labels: int
    ) -> None:
        class_ids = np.zeros(num_labels, np.uint8)
        class_ids[labels] = ids
        self._class_ids.append(class_ids)
        row_areas = self._row_areas_m2[window.row : window.row_end, None]
        self._areas_m2.append(sum_by(labels, row_areas, num_labels))
        confidence = self._reader.read_confidence(window)
        if confidence is not None:
            known = np.isfinite(confidence)
            self._sums.append(
                sum_by(labels, np.where(known, confidence, 0), num_labels)
            )
            self._counts.append(np.bincount(labels[known], minlength=num_labels))

    def _find_first_pixels(
        self, window: Window, labels: Labels, num_labels: int
    ) -> None:
        rows = np.arange(window.row, window.row_end)[::-1, None]
        cols = np.arange(window.col, window.col_end)[::-1]
        found = np.zeros(num_labels, np.int64)
        # Backwards, so that the first is written last.
        found[labels[::-1, ::-1]] = rows * self._reader.grid.width + cols
        self._first_pixels.append(found)

    def _measure_borders(self, labels: Labels) -> None:
        """Keep the borders of the areas that are small in this square."""
        small = self._areas_m2[-1] < self._min_area_m2
        small &= self._class_ids[-1] != IGNORE
        width_m, height_m = self._sides_m
        start = np.int64(self._num_labels)
        for first, second, length_m in (
            (labels[:, :-1], labels[:, 1:], height_m),
            (labels[:-1], labels[1:], width_m),
        ):
            counts = (first != second) & (small[first] | small[second])
            self._keep_borders(first[counts] + start, second[counts] + start, length_m)

    def _keep_borders(self, first: Ids, second: Ids, length_m: float) -> None:
        if len(first):
            pairs, numbers = list_pairs(first, second)
            self._borders.append((pairs, sum_by(numbers, length_m, len(pairs))))

    def _join_edges(self, window: Window, ids: Bytes, labels: Ids) -> None:
        cols = slice(window.col, window.col_end)
        width_m, height_m = self._sides_m
        if window.row > 0:
            above = self._above[0][cols], self._above[1][cols]
            self._join((labels[0], ids[0]), above, width_m)
        if window.col > 0 and self._left is not None:
            self._join((labels[:, 0], ids[:, 0]), self._left, height_m)
        self._above[0][cols], self._above[1][cols] = labels[-1], ids[-1]
        self._left = labels[:, -1].copy(), ids[:, -1].copy()

    def _join(
        self, here: tuple[Ids, Bytes], there: tuple[Ids, Bytes], length_m: float
    ) -> None:
        is_one = here[1] == there[1]
        self._joints.append(list_pairs(here[0][is_one], there[0][is_one])[0])
        if self._min_area_m2 > 0:
            self._keep_borders(here[0][~is_one], there[0][~is_one], length_m)

    def join(self) -> Components:
        """Join what was taken."""
        joints = np.concatenate([*self._joints, np.zeros((0, 2), np.int64)])
        groups, num_groups = connect(joints, self._num_labels)
        class_ids = np.zeros(num_groups, np.uint8)
        class_ids[groups] = np.concatenate(self._class_ids)
        if self._min_area_m2 > 0:
            areas = self._gather(groups, class_ids)
            merged, class_ids = dissolve_small(areas, self._min_area_m2)
            groups = merged[groups]
        return self._finish(groups, class_ids)

    def _gather(self, groups: Ids, class_ids: Bytes) -> Areas:
        """Put together what is known of each area."""
        num_groups = len(class_ids)
        first_pixels = np.full(num_groups, np.iinfo(np.int64).max)
        np.minimum.at(first_pixels, groups, np.concatenate(self._first_pixels))
        pairs, lengths_m = np.zeros((0, 2), np.int64), np.zeros(0)
        if self._borders:
            found = np.concatenate([pairs for pairs, _ in self._borders])
            pairs = np.sort(groups[found], axis=1)
            pairs, numbers = list_pairs(pairs[:, 0], pairs[:, 1])
            parts_m = np.concatenate([lengths for _, lengths in self._borders])
            lengths_m = sum_by(numbers, parts_m, len(pairs))
        return Areas(
            class_ids=class_ids,
            areas_m2=sum_by(groups, np.concatenate(self._areas_m2), num_groups),
            first_pixels=first_pixels,
            pairs=pairs,
            lengths_m=lengths_m,
        )

    def _finish(self, groups: Ids, class_ids: Bytes) -> Components:
        num_groups = len(class_ids)
        lengths = np.diff([*self._offsets, self._num_labels])
        squares = np.repeat(np.arange(len(self._offsets)), lengths)
        last = np.zeros(num_groups, np.int64)
        np.maximum.at(last, groups, squares)
        distinct, _ = list_pairs(groups, squares)
        confidences = np.full(num_groups, np.nan)
        if self._sums:
            counts = sum_by(groups, np.concatenate(self._counts), num_groups)
            sums = sum_by(groups, np.concatenate(self._sums), num_groups)
            np.divide(sums, counts, out=confidences, where=counts > 0)
        return Components(
            windows=tuple(self._windows),
            offsets=tuple(self._offsets),
            groups=groups,
            class_ids=class_ids,
            areas_m2=sum_by(groups, np.concatenate(self._areas_m2), num_groups),
            confidences=confidences,
            last_squares=last,
            num_squares=np.bincount(distinct[:, 0], minlength=num_groups),
        )


def measure_sides_m(grid: Grid) -> tuple[float, float]:
    """Return width and height of a pixel in metres, as in the middle of the grid.

    They are those of its projection or, in degrees and where it is far from true as
    Web Mercator is, those on the ground.

    Raises:
        DataError: If its middle has no place on the Earth.
    """
    if grid.crs.is_geographic or not is_true_to_scale(grid):
        return measure_pixel(grid)
    t = grid.transform
    metres = float(grid.crs.linear_units_factor[1])
    return math.hypot(t.a, t.d) * metres, math.hypot(t.b, t.e) * metres


def iterate_squares(
    reader: MapReader, components: Components
) -> Iterator[tuple[int, Window, Labels, Ids]]:
    """Read a map again and draw its areas.

    Yields:
        The position of each square, its window, and what `Components.draw` returns.
    """
    for square, window in enumerate(components.windows):
        numbers, groups = components.draw(square, reader.read_classes(window))
        yield square, window, numbers, groups
