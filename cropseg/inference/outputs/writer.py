"""Writing a layer of a map: a cloud-optimised GeoTIFF with colours and class names.

The COG driver keeps the whole raster in memory when it is written to directly. So
tiles go to a hidden tiled GeoTIFF, which is copied to a hidden COG. That is read back
and compared with what was given before it gets its name. GDAL's settings are entered
for each step alone, as layers of several scenes may be open at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what `rasterio.shutil.copy` raises
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from cropseg.errors import DataError, ResourceError
from cropseg.files import write_whole
from cropseg.inference.outputs.layers import Layer
from cropseg.inference.outputs.legend import (
    MapClass,
    embed_table,
    list_classes,
    reserve_table,
    tag_classes,
    write_sidecar,
)
from cropseg.models.card import Card
from cropseg.sites.classes import parse_color
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import GDAL_OPTIONS, open_raster, read_header
from cropseg.sites.raster_header import RasterOptions
from cropseg.sites.tiling import iterate_tiles

RAW: Final = RasterOptions(scale=(1.0,), offset=(0.0,))
"""How a layer is opened to read what is stored, not what it means."""

_BLOCK_PX: Final = 512
_MIN_BLOCK_PX: Final = 64
_MAX_BLOCK_BYTES: Final = 4 * 2**20  # a block holds all bands
_READ_BYTES: Final = 2**20
"""What is read back at a time, and a few times in memory. With 16 MiB, what the
threads of several bands left in their heaps made 70 MB of a scene of 400 megapixels."""

_COG_LEVEL: Final = 5
"""Of deflate. 6, the default, took 0.57 s for 0.39 s and made a map of 26 megapixels of
real labels 4 % smaller."""

_COUNTED: Final = 2**16  # NumPy widens what it counts to eight times its size
_ORIGIN_TAG: Final = "cropseg_origin"

Bytes = npt.NDArray[np.uint8]


class LayerWriter:
    """Takes the windows of a layer. Get one from `write_layer` or `write_part`."""

    def __init__(self, dataset: Any, area: Window) -> None:
        """Wrap an open rasterio dataset that holds `area` of its grid."""
        self._dataset = dataset
        self._area = area
        self.counts: npt.NDArray[np.int64] = np.zeros((dataset.count, 256), np.int64)
        """How often each value was written to each band, (num_bands, 256)."""

    def write(self, window: Window, values: Bytes) -> None:
        """Write stored values, (height, width, num_bands), into a window of the grid.

        Raises:
            ResourceError: If the disk takes no more.
        """
        row, col = window.row - self._area.row, window.col - self._area.col
        place = RasterioWindow(col, row, window.width, window.height)
        with _name_problems(self._dataset.name):
            self._dataset.write(np.moveaxis(values, -1, 0), window=place)
        self.counts += _count_values(values)


@contextlib.contextmanager
def write_layer(
    path: Path, grid: Grid, layer: Layer, card: Card, *, tags: Mapping[str, str]
) -> Iterator[LayerWriter]:
    """Write a layer of a map whose windows come one by one, in any order.

    Args:
        path: The finished file, ending in `.tif`.
        grid: Its grid.
        layer: What it is.
        card: Card of the model; it has names and colours of the classes.
        tags: Further metadata.

    Yields:
        A writer. It must be given every pixel once.

    Raises:
        ResourceError: If the file cannot be written whole. No part of it is left
            behind; names of classes may stand in a side-car that nothing reads.
    """
    classes = list_classes(card)
    tiles_path = path.with_name(f".{path.stem}.tiles{path.suffix}")
    with write_whole(path) as part:
        try:
            with _write_tiles(tiles_path, grid, grid.window, layer) as writer:
                _describe(writer._dataset, layer, classes, tags)  # noqa: SLF001
                yield writer
            with _name_problems(path), rasterio.Env(**GDAL_OPTIONS):
                rasterio.shutil.copy(
                    tiles_path,
                    part,
                    driver="COG",
                    compress="deflate",
                    level=_COG_LEVEL,
                    overview_resampling=layer.overview,
                    blocksize=_choose_block(layer),
                    bigtiff="if_safer",
                    num_threads="ALL_CPUS",  # nothing else is left to do by then
                )
            if layer.scale is None:
                embed_table(part, classes)
            _verify(part, path, writer.counts)
            if layer.scale is None:
                write_sidecar(path, classes)  # first, so that no map is without it
        finally:
            tiles_path.unlink(missing_ok=True)
            # Overviews on their way into the COG, where GDAL gave up or was killed.
            part.with_name(f"{part.name}.ovr.tmp").unlink(missing_ok=True)


@contextlib.contextmanager
def write_part(
    path: Path, grid: Grid, area: Window, layer: Layer
) -> Iterator[LayerWriter]:
    """Write a part of a layer that is put together with others later.

    Args:
        path: The finished part, ending in `.tif`.
        grid: The grid of the whole layer.
        area: The part of it.
        layer: What it is.

    Yields:
        A writer. Windows are those of the whole grid, inside `area`. It must be given
        every pixel of `area` once.

    Raises:
        ResourceError: If the part cannot be written whole. Nothing is left behind.
    """
    with write_whole(path) as part:
        with _write_tiles(part, grid, area, layer) as writer:
            writer._dataset.update_tags(**{_ORIGIN_TAG: f"{area.row} {area.col}"})  # noqa: SLF001
            yield writer
        _verify(part, path, writer.counts)


def read_part(path: Path) -> Iterator[tuple[Window, Bytes]]:
    """Read a part that `write_part` wrote.

    Yields:
        Windows of the whole grid that partition the part, and their stored values,
        (height, width, num_bands).

    Raises:
        DataError: If it cannot be read.
    """
    with open_raster(path, RAW) as reader:
        row, col = map(int, reader.read_tags()[_ORIGIN_TAG].split())
    for window, values in _read_all(path):
        yield replace(window, row=window.row + row, col=window.col + col), values


@contextlib.contextmanager
def _write_tiles(
    path: Path, grid: Grid, area: Window, layer: Layer
) -> Iterator[LayerWriter]:
    """Open a tiled GeoTIFF for an area of a grid, and close it at the end."""
    block = _choose_block(layer)
    profile = {
        "driver": "GTiff",
        "height": area.height,
        "width": area.width,
        "count": layer.num_bands,
        "dtype": "uint8",
        "crs": grid.crs,
        "transform": grid.get_window_transform(area),
        "nodata": layer.nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "interleave": "pixel",
        # Three bands are no colours, and a fourth is no alpha.
        "photometric": "minisblack",
        # Tiles and blocks do not meet at their edges, so a block may be written more
        # than once, and each time anew where it grew.
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "if_safer",
    }
    with _name_problems(path), rasterio.Env(**GDAL_OPTIONS):
        dataset = rasterio.open(path, "w", **profile)
    try:
        yield LayerWriter(dataset, area)
    finally:
        with _name_problems(path), rasterio.Env(**GDAL_OPTIONS):
            dataset.close()


def _describe(
    dataset: Any, layer: Layer, classes: tuple[MapClass, ...], tags: Mapping[str, str]
) -> None:
    """Say in a file what its values mean."""
    dataset.update_tags(**tag_classes(classes), **tags)
    dataset.descriptions = layer.band_names
    if layer.scale is None:
        colors = {i: (*parse_color(item.color), 255) for i, item in enumerate(classes)}
        dataset.write_colormap(1, colors | {layer.nodata: (0, 0, 0, 0)})
        reserve_table(dataset, classes)
        return
    dataset.scales = (layer.scale,) * layer.num_bands
    others = (ColorInterp.undefined,) * (layer.num_bands - 1)
    dataset.colorinterp = (ColorInterp.gray, *others)


def _choose_block(layer: Layer) -> int:
    """Return the side of a block: smaller where many bands share it."""
    block = _BLOCK_PX
    while block > _MIN_BLOCK_PX and block**2 * layer.num_bands > _MAX_BLOCK_BYTES:
        block //= 2
    return block


def _verify(part: Path, path: Path, counts: npt.NDArray[np.int64]) -> None:
    """Read a file back and compare how often each value occurs (HAZARDS 1 and 2)."""
    found = np.zeros_like(counts)
    try:
        for _, values in _read_all(part):
            found += _count_values(values)
    except DataError as error:
        raise ResourceError(f"{path} cannot be read back: {error}") from error
    if (found != counts).any():
        raise ResourceError(
            f"{path} was not written whole: {int(np.abs(found - counts).sum())} values "
            "differ. The disk is full or faulty; nothing was kept."
        )


def _read_all(path: Path) -> Iterator[tuple[Window, Bytes]]:
    """Read a raster in squares of whole blocks: of one, if it is that large.

    It is opened anew for each row of squares. GDAL keeps what it read of an open file,
    and drops what it read of the scenes for that.
    """
    header = read_header(path, RAW)
    bands = range(header.num_bands)
    side = header.block_height
    while 4 * side**2 * len(bands) <= _READ_BYTES:
        side *= 2
    grid = header.grid
    for row in range(0, grid.height, side):
        squares = replace(grid.window, row=row, height=side)
        with open_raster(path, RAW) as reader:
            for tile in iterate_tiles(squares, core_size=side):
                window = tile.core.clip(height=grid.height, width=grid.width)
                yield window, reader.read(window, bands).values


def _count_values(values: Bytes) -> npt.NDArray[np.int64]:
    """Return how often each value occurs in each band, (num_bands, 256)."""
    height, width, num_bands = values.shape
    counts = np.zeros((num_bands, 256), np.int64)
    step = max(1, _COUNTED // width)
    for row in range(0, height, step):
        for band in range(num_bands):
            rows = values[row : row + step, :, band].ravel()
            counts[band] += np.bincount(rows, minlength=256)
    return counts


@contextlib.contextmanager
def _name_problems(path: Path | str) -> Iterator[None]:
    """Turn GDAL's errors in writing a file into one that says what to do."""
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        raise ResourceError(
            f"Cannot write {path}: {error}. Check the free space of the disk; a "
            "map needs room for itself twice."
        ) from error
