"""Writing a class map: a cloud-optimised GeoTIFF with colours and class names.

The COG driver keeps the whole raster in memory when it is written to directly. So
tiles go to a hidden tiled GeoTIFF, which is verified and then copied to a COG.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what `rasterio.shutil.copy` raises
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from cropseg.errors import DataError, ResourceError
from cropseg.files import write_whole
from cropseg.models.card import Card
from cropseg.sites.classes import IGNORE, parse_color
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import GDAL_OPTIONS, open_raster
from cropseg.sites.tiling import iterate_tiles

_BLOCK_PX = 512
_READ_PX = 2048


class ClassMapWriter:
    """Takes the windows of a class map. Get one from `write_class_map`."""

    def __init__(self, dataset: Any) -> None:
        """Wrap an open rasterio dataset."""
        self._dataset = dataset
        self.pixels = np.zeros(256, np.int64)

    def write(self, window: Window, classes: npt.NDArray[np.uint8]) -> None:
        """Write class ids, (height, width), into a window inside the raster."""
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        self._dataset.write(classes, 1, window=area)
        self.pixels += np.bincount(classes.ravel(), minlength=256)


@contextlib.contextmanager
def write_class_map(
    path: Path, grid: Grid, card: Card, tags: Mapping[str, str]
) -> Iterator[ClassMapWriter]:
    """Write a class map whose windows come one by one.

    Args:
        path: The finished map, ending in `.tif`.
        grid: Its grid: that of the scene.
        card: Card of the model; it has names and colours of the classes.
        tags: Further metadata.

    Yields:
        A writer. It must be given every pixel once.

    Raises:
        ResourceError: If the map cannot be written whole. Nothing is left behind.
    """
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": 1,
        "dtype": "uint8",
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": IGNORE,
        "tiled": True,
        "blockxsize": _BLOCK_PX,
        "blockysize": _BLOCK_PX,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    colors = {i: (*parse_color(item.color), 255) for i, item in enumerate(card.classes)}
    names = {f"class_{i}": name for i, name in enumerate(card.class_names)}
    tiles_path = path.with_name(f".{path.stem}.tiles{path.suffix}")
    with write_whole(path) as part, rasterio.Env(**GDAL_OPTIONS):
        try:
            with rasterio.open(tiles_path, "w", **profile) as dataset:
                dataset.write_colormap(1, colors | {IGNORE: (0, 0, 0, 0)})
                dataset.update_tags(
                    classes=json.dumps(card.class_names), **names, **tags
                )
                writer = ClassMapWriter(dataset)
                yield writer
            rasterio.shutil.copy(
                tiles_path,
                part,
                driver="COG",
                compress="deflate",
                overview_resampling="mode",
                blocksize=_BLOCK_PX,
            )
            _verify(part, writer.pixels)
        except (RasterioError, CPLE_BaseError) as error:
            raise ResourceError(
                f"Cannot write {path}: {error}. Check the free space of the disk; a "
                "map needs room for itself twice."
            ) from error
        finally:
            tiles_path.unlink(missing_ok=True)


def _verify(path: Path, pixels: npt.NDArray[np.int64]) -> None:
    """Read the map back and compare the pixels of each class (HAZARDS 1 and 2)."""
    found = np.zeros(256, np.int64)
    try:
        with open_raster(path) as reader:
            grid = reader.header.grid
            for tile in iterate_tiles(grid.window, core_size=_READ_PX):
                window = tile.core.clip(height=grid.height, width=grid.width)
                classes = reader.read(window, [0]).values
                found += np.bincount(classes.ravel(), minlength=256)
    except DataError as error:
        raise ResourceError(f"{path} cannot be read back: {error}") from error
    if (found != pixels).any():
        raise ResourceError(
            f"{path} was not written whole: {int(np.abs(found - pixels).sum())} pixels "
            "differ. The disk is full or faulty; nothing was kept."
        )
