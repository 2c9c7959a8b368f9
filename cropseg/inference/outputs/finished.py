"""Finished maps, opened for what is made of them: polygons, hectares, pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import rasterio

from cropseg.errors import DataError
from cropseg.inference.outputs.legend import MapClass, read_classes
from cropseg.inference.outputs.writer import RAW
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import GDAL_OPTIONS, RasterReader, open_raster
from cropseg.sites.tiling import iterate_tiles

CHUNK_PX: Final = 1024
"""Side of the squares in which maps are read: whole blocks, and few enough pixels that
a square of noise, with a polygon a pixel, fits into memory."""


@dataclass(frozen=True, kw_only=True)
class FinishedMap:
    """The files of one mapped scene."""

    scene: str
    """Its name."""
    classes_path: Path
    """The class map."""
    confidence_path: Path | None = None
    """The confidence of each pixel, where it was asked for."""


class MapReader:
    """An open map. Get one from `open_map`. For one thread (HAZARDS 4)."""

    def __init__(
        self,
        classes: tuple[MapClass, ...],
        map_reader: RasterReader,
        confidence_reader: RasterReader | None,
    ) -> None:
        """Wrap open rasters."""
        self.classes = classes
        """Its classes."""
        self.grid: Grid = map_reader.grid
        """Its grid."""
        self._map = map_reader
        self._confidence = confidence_reader

    @property
    def has_confidence(self) -> bool:
        """Whether the confidence of its pixels is there."""
        return self._confidence is not None

    def read_classes(self, window: Window) -> npt.NDArray[np.uint8]:
        """Read class ids, (height, width); 255 where there is no data.

        Raises:
            DataError: If the file is damaged, or holds an id that no class has.
        """
        ids = self._map.read(window, [0]).values[..., 0]
        if ids.size:
            wrong = (ids >= len(self.classes)) & (ids != IGNORE)
            if wrong.any():
                raise DataError(
                    f"The map holds class id {int(ids[wrong][0])}, but it has "
                    f"{len(self.classes)} classes. It was changed; map the scene again."
                )
        return np.ascontiguousarray(ids)

    def read_confidence(self, window: Window) -> npt.NDArray[np.float32] | None:
        """Read the confidence, 0 to 1, (height, width); NaN where there is no data."""
        if self._confidence is None:
            return None
        pixels = self._confidence.read(window, [0])
        return np.where(pixels.valid, pixels.values[..., 0], np.nan).astype(np.float32)

    def iterate_chunks(self) -> Iterator[Window]:
        """Cut the map into squares of `CHUNK_PX`, row by row."""
        for tile in iterate_tiles(self.grid.window, core_size=CHUNK_PX):
            yield tile.core.clip(height=self.grid.height, width=self.grid.width)


@contextlib.contextmanager
def open_map(finished: FinishedMap) -> Iterator[MapReader]:
    """Open a finished map for reading in this thread.

    Raises:
        DataError: If a file is missing or damaged, is no map of cropseg, or the
            confidence lies on another grid.
    """
    with contextlib.ExitStack() as stack:
        map_reader = stack.enter_context(open_raster(finished.classes_path, RAW))
        confidence_reader = None
        if finished.confidence_path is not None:
            # With the scale of the file, so that 250 reads as 1.
            confidence_reader = stack.enter_context(
                open_raster(finished.confidence_path)
            )
            differences = map_reader.grid.list_differences(confidence_reader.grid)
            if differences:
                raise DataError(
                    f"{finished.confidence_path} does not lie on the grid of "
                    f"{finished.classes_path}: {'; '.join(differences)}. Give the "
                    "confidence of the same map."
                )
        classes = _read_legend(finished.classes_path)
        yield MapReader(classes, map_reader, confidence_reader)


def read_common_classes(maps: Sequence[FinishedMap]) -> tuple[MapClass, ...]:
    """Return the classes that all of several maps have.

    Raises:
        DataError: If there is no map, or one has other classes than the first.
    """
    if not maps:
        raise DataError("There is no map. Give at least one.")
    first, *rest = maps
    classes = _read_legend(first.classes_path)
    for finished in rest:
        found = _read_legend(finished.classes_path)
        if found != classes:
            raise DataError(
                f"{finished.classes_path} has the classes {_list(found)}, but "
                f"{first.classes_path} has {_list(classes)}. Give maps of one model."
            )
    return classes


def _read_legend(path: Path) -> tuple[MapClass, ...]:
    with open_raster(path, RAW):  # refuses what is no plain GeoTIFF
        pass
    with (
        rasterio.Env(**GDAL_OPTIONS),
        rasterio.open(path, driver="GTiff", sharing=False) as dataset,
    ):
        return read_classes(path, dataset)


def _list(classes: tuple[MapClass, ...]) -> str:
    return ", ".join(item.name for item in classes)
