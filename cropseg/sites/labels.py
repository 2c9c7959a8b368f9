"""What the labels of a scene are: a raster, or polygons and points.

Either reads as class ids on the grid of the image. 255 is "unknown"; what no polygon
covers is unknown too, and never a class.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError
from cropseg.sites.classes import (
    IGNORE,
    MAX_VALUES,
    ClassMap,
    Labels,
    write_value,
)
from cropseg.sites.grid import Grid, Window
from cropseg.sites.location import Location
from cropseg.sites.raster import RasterReader, open_raster
from cropseg.sites.raster_header import RasterHeader
from cropseg.sites.tiling import iterate_tiles
from cropseg.sites.vector import NO_FIELD, Fields, VectorSource, open_fields
from cropseg.sites.warp import warp_labels

FieldIds = npt.NDArray[np.int32]

_COUNT_PX: Final = 1024


class LabelReader(Protocol):
    """Reads the labels of a scene on the grid of its image."""

    def read_labels(self, window: Window) -> Labels:
        """Read class ids in a window, (height, width); 255 where unknown.

        Raises:
            DataError: If there is a label value that the manifest does not name.
        """

    def read_fields(self, window: Window) -> FieldIds:
        """Read the field of every pixel, (height, width); `NO_FIELD` for none."""

    def count_values(self) -> Counter[str]:
        """Count the pixels, or the fields, of every label value, named or not."""


@dataclass(frozen=True, kw_only=True)
class RasterLabels:
    """Labels that are pixels of a GeoTIFF."""

    path: Location
    """The file."""
    header: RasterHeader
    """What it says about itself."""

    noun = "pixels"

    @contextlib.contextmanager
    def open(self, classes: ClassMap, grid: Grid) -> Iterator[LabelReader]:
        """Open the labels for reading on a grid in this thread."""
        with open_raster(self.path) as reader:
            yield _RasterLabelReader(reader, self.path, classes, grid)


@dataclass(frozen=True, kw_only=True)
class FieldLabels:
    """Labels that are polygons or points of a vector file."""

    source: VectorSource
    """The file, and what the manifest says about it."""

    noun = "fields"

    @property
    def path(self) -> Location:
        """The file."""
        return self.source.path

    @contextlib.contextmanager
    def open(self, classes: ClassMap, grid: Grid) -> Iterator[LabelReader]:
        """Open the labels for reading on a grid; may be used from several threads."""
        fields = open_fields(self.source, grid.crs)
        yield _FieldLabelReader(fields, self.path, classes, grid)


LabelSource = RasterLabels | FieldLabels


@dataclass(frozen=True)
class _RasterLabelReader:
    reader: RasterReader
    path: Location
    classes: ClassMap
    grid: Grid

    def read_labels(self, window: Window) -> Labels:
        source_grid = self.reader.header.grid
        if not source_grid.list_differences(self.grid):
            return self._read(window)
        return warp_labels(self._read, source_grid, self.grid, window)

    def _read(self, window: Window) -> Labels:
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        pixels = self.reader.read(window, [0])
        try:
            labels[pixels.valid] = self.classes.encode(
                pixels.values[..., 0][pixels.valid]
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        return labels

    def read_fields(self, window: Window) -> FieldIds:
        return np.full((window.height, window.width), NO_FIELD, np.int32)

    def count_values(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for tile in iterate_tiles(self.reader.header.grid.window, core_size=_COUNT_PX):
            pixels = self.reader.read(tile.core, [0])
            values, amounts = np.unique(
                pixels.values[..., 0][pixels.valid], return_counts=True
            )
            names = map(write_value, values.tolist())
            counts.update(dict(zip(names, amounts.tolist(), strict=True)))
            if len(counts) > MAX_VALUES:
                raise DataError(
                    f"{self.path} holds more than {MAX_VALUES} different values; "
                    "expected the codes of classes. Name a label raster in `labels`."
                )
        return counts


@dataclass(frozen=True)
class _FieldLabelReader:
    fields: Fields
    path: Location
    classes: ClassMap
    grid: Grid

    def read_labels(self, window: Window) -> Labels:
        return self._table[self.read_fields(window)]

    def read_fields(self, window: Window) -> FieldIds:
        return self.fields.rasterize(self.grid, window)

    def count_values(self) -> Counter[str]:
        return self.fields.count_values()

    @cached_property
    def _table(self) -> Labels:
        """Class id of every field; the last one is for `NO_FIELD`, which is -1."""
        problem = self.classes.describe_unnamed(self.count_values(), "fields")
        if problem:
            raise DataError(f"{self.path}: {problem}")
        ids = self.classes.ids_by_value
        found = [ids.get(value or "", IGNORE) for value in self.fields.values]
        return np.array([*found, IGNORE], np.uint8)
