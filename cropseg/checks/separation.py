"""How far labelled training pixels lie from labelled test pixels: the proof.

The distance is exact, between pixel centres, within and between scenes and sites.
Memory does not grow with the pixels: of a scene only the boxes of its labelled cells
are kept, and the pixels of the few cells that can hold the nearest pair are read
again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from cropseg.checks.occupancy import (
    CELL_PX,
    TEST,
    TRAIN,
    Boxes,
    LabelledScene,
    Numbers,
    complete_boxes,
    locate_centers,
)
from cropseg.checks.overlap import count_shared_pixels
from cropseg.sites.grid import Grid, Window
from cropseg.sites.split import PartIds

_AGAIN_PX: Final = 256
"""Side of the windows in which cells are read again."""
_NUM_KEPT: Final = 256
"""Windows read again that are kept, about 20 MB."""
_NUM_FIRST: Final = 32
"""Pairs of cells that are tried in the order of what they promise."""
_CHUNK: Final = 1024
"""Cells whose neighbours are listed at a time."""
_WARP_SLACK: Final = 0.01
"""How far a cell may bulge over its corners in another CRS, in its diagonals.

One of 1 km bulges by about 2e-5, the curve of the Earth.
"""

_Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A labelled pixel."""

    scene: str
    """Name of its scene."""
    x: float
    """Its centre, in the CRS of its scene."""
    y: float
    """Its centre, in the CRS of its scene."""


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How training and test lie to one another."""

    distance_m: float
    """The smallest distance of a labelled training pixel from a labelled test pixel,
    between their centres. Infinite where one of them has no pixel at all."""
    train: Place | None
    """The training pixel of the nearest pair, or None where there is no pair."""
    test: Place | None
    """The test pixel of the nearest pair, or None where there is no pair."""
    num_shared_pixels: int
    """Training pixels that share their ground with a test pixel of another scene: the
    centre of one of the two lies in the other."""
    shared_scenes: tuple[tuple[str, str], ...]
    """Pairs of scenes (training, test) that share pixels."""


def measure_separation(
    train: Sequence[LabelledScene], test: Sequence[LabelledScene]
) -> Separation:
    """Measure how far training pixels lie from test pixels, over all scenes.

    Within a site, pass its scenes twice. Between two sites, pass those of the source
    and those of the target: the source's training against the target's test. Where
    scenes differ in CRS, or a CRS has no metres, distances are those of an
    equidistant projection around the first test scene.

    Args:
        train: Scenes whose training pixels count.
        test: Scenes whose test pixels count.

    Returns:
        The smallest distance, where it is, and how many pixels share their ground.
    """
    distinct = {id(scene): scene for scene in (*train, *test)}
    found = {key: complete_boxes(scene) for key, scene in distinct.items()}
    ours = [found[id(scene)] for scene in train]
    theirs = [found[id(scene)] for scene in test]
    search = None
    if ours and theirs:
        frame = _choose_frame([scene.grid for scene in (*theirs, *ours)])
        cells = _Cells(ours, TRAIN, frame), _Cells(theirs, TEST, frame)
        search = _search_nearest(*cells) if all(map(len, cells)) else None
    if search is None:
        return Separation(
            distance_m=math.inf,
            train=None,
            test=None,
            num_shared_pixels=0,
            shared_scenes=(),
        )
    # Two pixels of which one holds the other's centre are no further than this.
    widest_m = max(_get_diagonal_m(scene.grid, frame) for scene in found.values())
    shared = count_shared_pixels(ours, theirs) if search.best_m <= widest_m else (0, ())
    here, there = search.describe()
    return Separation(
        distance_m=search.best_m,
        train=here,
        test=there,
        num_shared_pixels=shared[0],
        shared_scenes=shared[1],
    )


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A plane in metres, turned so that the cells lie along its axes."""

    crs: CRS
    metres_per_unit: float
    x: float
    y: float
    radians: float

    def place(self, grid: Grid, rows: Numbers, cols: Numbers) -> Numbers:
        """Return where the centres of pixels lie, (..., 2)."""
        x, y = locate_centers(grid, rows, cols, self.crs)
        x = (x - self.x) * self.metres_per_unit
        y = (y - self.y) * self.metres_per_unit
        cos, sin = math.cos(self.radians), math.sin(self.radians)
        return np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)


def _choose_frame(grids: Sequence[Grid]) -> _Frame:
    grid = grids[0]
    x, y = grid.transform @ (grid.width / 2, grid.height / 2)
    if grid.crs.is_projected and all(grid.crs == other.crs for other in grids):
        _, metres_per_unit = grid.crs.linear_units_factor
        radians = math.atan2(grid.transform.d, grid.transform.a)
        return _Frame(
            crs=grid.crs, metres_per_unit=metres_per_unit, x=x, y=y, radians=radians
        )
    (lon,), (lat,) = transform_points(grid.crs, CRS.from_epsg(4326), [x], [y])
    crs = CRS.from_proj4(f"+proj=aeqd +lat_0={lat} +lon_0={lon} +datum=WGS84 +units=m")
    return _Frame(crs=crs, metres_per_unit=1.0, x=0.0, y=0.0, radians=0.0)


def _get_diagonal_m(grid: Grid, frame: _Frame) -> float:
    rows, cols = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    corners = frame.place(grid, rows + grid.height // 2, cols + grid.width // 2)
    return max(math.dist(*corners[:2]), math.dist(*corners[2:]))


class _Cells:
    """The cells of several scenes that hold pixels of a part."""

    def __init__(
        self, scenes: Sequence[LabelledScene], part: int, frame: _Frame
    ) -> None:
        self._scenes, self._part, self._frame = scenes, part, frame
        self._read = functools.lru_cache(maxsize=_NUM_KEPT)(self._read_around)
        boxes = [scene.get_boxes(part) for scene in scenes]
        self._boxes = np.concatenate(boxes)
        self._scene_ids = np.repeat(np.arange(len(scenes)), list(map(len, boxes)))
        spans = [
            self._span(scene.grid, each)
            for scene, each in zip(scenes, boxes, strict=True)
        ]
        self.low = np.concatenate([low for low, _ in spans])
        """The lowest coordinates of their pixel centres, in metres, (cells, 2)."""
        self.high = np.concatenate([high for _, high in spans])
        """The highest coordinates of their pixel centres, in metres, (cells, 2)."""

    def __len__(self) -> int:
        return len(self._boxes)

    @property
    def middles(self) -> Numbers:
        """The middles of the cells, in metres, (cells, 2)."""
        return (self.low + self.high) / 2

    @property
    def reach_m(self) -> float:
        """The largest distance of a pixel from the middle of its cell."""
        return float(np.hypot(*(self.high - self.low).T).max()) / 2

    def _span(self, grid: Grid, boxes: Boxes) -> tuple[Numbers, Numbers]:
        rows, cols = boxes[:, [0, 0, 2, 2]], boxes[:, [1, 3, 1, 3]]
        corners = self._frame.place(grid, rows.astype(float), cols.astype(float))
        low, high = corners.min(axis=1), corners.max(axis=1)
        if grid.crs == self._frame.crs:
            return low, high
        slack = _WARP_SLACK * np.hypot(*(high - low).T)[:, None]
        return low - slack, high + slack

    def _read_around(self, scene_id: int, row: int, col: int) -> tuple[Window, PartIds]:
        scene = self._scenes[scene_id]
        size = _AGAIN_PX + CELL_PX
        window = Window(row=row, col=col, height=size, width=size).clip(
            height=scene.grid.height, width=scene.grid.width
        )
        return window, scene.read_parts(window)

    def _read_pixels(self, cell: int) -> tuple[Grid, Numbers, Numbers]:
        """Return the grid of a cell, and rows and columns of its pixels."""
        row, col, last_row, last_col = self._boxes[cell].tolist()
        scene_id = int(self._scene_ids[cell])
        step = _AGAIN_PX
        window, parts = self._read(scene_id, row // step * step, col // step * step)
        box = Window(
            row=row, col=col, height=last_row - row + 1, width=last_col - col + 1
        )
        rows, cols = np.nonzero(parts[box.slices_in(window)] == self._part)
        rows, cols = (rows + row).astype("float64"), (cols + col).astype("float64")
        return self._scenes[scene_id].grid, rows, cols

    def read_points(self, cell: int) -> Numbers:
        """Return where the pixels of a cell lie, in metres, (pixels, 2)."""
        return self._frame.place(*self._read_pixels(cell))

    def describe(self, cell: int, pixel: int) -> Place:
        """Return the place of one pixel of a cell."""
        grid, rows, cols = self._read_pixels(cell)
        x, y = locate_centers(grid, rows, cols, grid.crs)
        name = self._scenes[self._scene_ids[cell]].name
        return Place(scene=name, x=float(x[pixel]), y=float(y[pixel]))


class _Search:
    """The search for the nearest pair of pixels."""

    def __init__(self, ours: _Cells, theirs: _Cells) -> None:
        self._ours, self._theirs = ours, theirs
        self._pair = (0, 0, 0, 0)
        self.best_m = math.inf
        """The smallest distance that was found so far."""

    def try_pairs(self, ours: _Indexes, theirs: _Indexes) -> None:
        """Look into pairs of cells, those first that promise most."""
        bounds = self._measure_gaps(ours, theirs)
        order = np.argsort(bounds, kind="stable")
        # The rest in the order of the cells: what was read then serves several pairs.
        order = np.concatenate([order[:_NUM_FIRST], np.sort(order[_NUM_FIRST:])])
        for index in order[bounds[order] < self.best_m].tolist():
            if bounds[index] < self.best_m:
                self._try_pair(int(ours[index]), int(theirs[index]))

    def _measure_gaps(self, ours: _Indexes, theirs: _Indexes) -> Numbers:
        return _measure_gaps(
            self._ours.low[ours],
            self._ours.high[ours],
            self._theirs.low[theirs],
            self._theirs.high[theirs],
        )

    def _try_pair(self, ours: int, theirs: int) -> None:
        from scipy.spatial import KDTree

        points, others = self._ours.read_points(ours), self._theirs.read_points(theirs)
        near = self._find_near(points, self._theirs, theirs)
        others_near = self._find_near(others, self._ours, ours)
        if not near.size or not others_near.size:
            return
        distances, which = KDTree(others[others_near]).query(points[near])
        first = int(distances.argmin())
        if distances[first] < self.best_m:
            self.best_m = float(distances[first])
            pixel, other = int(near[first]), int(others_near[which[first]])
            self._pair = (ours, pixel, theirs, other)

    def _find_near(self, points: Numbers, cells: _Cells, cell: int) -> _Indexes:
        gaps = _measure_gaps(points, points, cells.low[cell], cells.high[cell])
        return np.flatnonzero(gaps < self.best_m)

    def describe(self) -> tuple[Place, Place]:
        """Return the training pixel and the test pixel of the nearest pair."""
        return (
            self._ours.describe(*self._pair[:2]),
            self._theirs.describe(*self._pair[2:]),
        )


def _measure_gaps(
    low: Numbers, high: Numbers, other_low: Numbers, other_high: Numbers
) -> Numbers:
    """Return the distances between boxes: no pair of their points is nearer."""
    gaps = np.maximum(np.maximum(low - other_high, other_low - high), 0.0)
    return np.hypot(gaps[:, 0], gaps[:, 1])


def _search_nearest(ours: _Cells, theirs: _Cells) -> _Search:
    from scipy.spatial import KDTree

    tree = KDTree(theirs.middles)
    between, nearest = tree.query(ours.middles)
    reach_m = ours.reach_m + theirs.reach_m
    order = np.argsort(between, kind="stable")
    search = _Search(ours, theirs)
    search.try_pairs(order[:_NUM_FIRST], nearest[order[:_NUM_FIRST]])
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        chunk = np.sort(chunk[between[chunk] - reach_m < search.best_m])
        if not chunk.size:
            break
        found = tree.query_ball_point(
            ours.middles[chunk], search.best_m + reach_m, return_sorted=True
        )
        pairs = np.repeat(chunk, list(map(len, found)))
        search.try_pairs(pairs, np.concatenate(found).astype("int64"))
    return search
