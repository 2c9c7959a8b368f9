"""Windowed reading of GeoTIFFs, with validity.

Only the GTiff driver is used, without side-car files, and only for files that
`locate_file` lets pass, so that a file can neither read other files of the machine
nor go to the network (HAZARDS 6). A reader belongs to one thread (HAZARDS 4).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from cropseg.errors import DataError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.location import (
    Location,
    RemoteFile,
    fingerprint_file,
    locate_file,
)
from cropseg.sites.raster_header import (
    RasterHeader,
    RasterOptions,
    count_block_bands,
    list_alpha_bands,
    list_masks,
    make_header,
    refuse_claims,
)

# GDAL looks here, once, where no environment of rasterio is around a read.
os.environ.setdefault("GDAL_CACHEMAX", "128")

GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 128 * 2**20,  # rasterio counts bytes, other than GDAL itself
}
"""Options for every read and write: no side-car files, 128 MiB of block cache."""

_ERRORS = (RasterioError, CPLE_BaseError, UnicodeDecodeError)  # no common base
_SIDECAR_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "NO", "GDAL_PAM_ENABLED": "YES"}
_NETWORK_OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,  # bytes per second,
    "GDAL_HTTP_LOW_SPEED_TIME": 30,  # for so many seconds, is as good as none
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
}
_TAIL_BYTES = 2**16  # room for the tags behind the last block


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a window of an image holds."""

    values: npt.NDArray[Any]
    """(height, width, bands): raw values in the file's dtype, or physical values in
    float32 where a scale or an offset applies. Band by band in memory."""
    valid: npt.NDArray[np.bool_]
    """(height, width), True where every band recorded something."""


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """Which tiles or strips of a GeoTIFF were ever written."""

    num_blocks: int
    """Number of blocks of all bands, overviews apart."""
    num_unwritten: int
    """Blocks that are not in the file. They read as nodata, or as 0."""
    looks_sparse: bool
    """Whether blocks seem left out on purpose (`SPARSE_OK`), not by a killed writer:
    some are there, and no bytes that nothing points to follow them."""


class RasterReader:
    """An open GeoTIFF, read window by window. Get one from `open_raster`."""

    def __init__(
        self, dataset: Any, location: Location, options: RasterOptions, size_bytes: int
    ) -> None:
        """Wrap an open rasterio dataset."""
        self._dataset = dataset
        self._location = location
        alpha = [] if options.alpha_is_band else list_alpha_bands(dataset)
        self._alpha = [band + 1 for band in alpha]
        bands = [band for band in range(dataset.count) if band not in alpha]
        self._indexes = [band + 1 for band in bands]
        self._mask_indexes = list_masks(dataset, options)
        self.header = make_header(dataset, bands, options, size_bytes)
        self._nodata = [
            _cast_nodata(value, self.header.file_dtype) for value in self.header.nodata
        ]

    @property
    def grid(self) -> Grid:
        """The grid of the raster."""
        return self.header.grid

    def read_tags(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return dict(self._dataset.tags())

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        """Read a window, which may reach over the edge of the raster.

        Args:
            window: What to read. Outside the raster nothing is valid and values are 0.
            bands: Positions of the bands, counted from 0 without alpha bands, in the
                order wanted.

        Returns:
            The pixels, (window.height, window.width, len(bands)).

        Raises:
            DataError: If the file cannot be read there.
        """
        grid = self.header.grid
        inside = window.clip(height=grid.height, width=grid.width)
        if inside == window and window.height and window.width:
            values, valid = self._read_inside(window, bands)
            return Pixels(values=values, valid=valid)
        shape = (window.height, window.width)
        values = np.zeros((*shape, len(bands)), self.header.dtype)
        valid = np.zeros(shape, np.bool_)
        if inside.height and inside.width:
            place = inside.slices_in(window)
            values[place], valid[place] = self._read_inside(inside, bands)
        return Pixels(values=values, valid=valid)

    def _read_inside(
        self, window: Window, bands: Sequence[int]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        indexes = [self._indexes[band] for band in bands]
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        masks = []
        try:
            values = self._dataset.read(indexes, window=area)
            if self._alpha:
                masks += list(self._dataset.read(self._alpha, window=area))
            if self._mask_indexes:
                masks += list(self._dataset.read_masks(self._mask_indexes, window=area))
        except _ERRORS as error:
            raise DataError(
                f"Cannot read rows {window.row}-{window.row_end} of {self._location}: "
                f"{error}. The file is damaged or cut short; copy it again."
            ) from error
        valid = np.ones(values.shape[1:], np.bool_)
        for mask in masks:
            valid &= mask > 0
        for layer, band in zip(values, bands, strict=True):
            if self._nodata[band] is not None:
                valid &= layer != self._nodata[band]
        if self.header.is_scaled:
            values = self._scale(values, bands)
        if values.dtype.kind == "f":
            for layer in values:
                valid &= np.isfinite(layer)
        return np.moveaxis(values, 0, -1), valid

    def _scale(
        self, values: npt.NDArray[Any], bands: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        # float32 holds 16-bit values exactly; wider ones would lose digits first.
        dtype = np.result_type(values.dtype, np.float32)
        scales = np.array([self.header.scales[band] for band in bands], dtype)
        offsets = np.array([self.header.offsets[band] for band in bands], dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # not finite: not valid
            scaled = values * scales[:, None, None]
            scaled += offsets[:, None, None]
            return scaled.astype(np.float32, copy=False)


@contextlib.contextmanager
def open_raster(
    location: Location, options: RasterOptions | None = None
) -> Iterator[RasterReader]:
    """Open a GeoTIFF for reading in this thread.

    Args:
        location: A local path, or a remote file from `locate_file`.
        options: What a manifest knows better than the file. By default nothing.

    Yields:
        A reader.

    Raises:
        DataFileNotFoundError: If there is no such file.
        DataError: If it is no GeoTIFF that can be read, claims more than it can hold,
            or does not go with the options.
        UnsafeFileError: If it is no regular file, or stands for other files.
        ResourceError: If it may not be read.
    """
    options = options or RasterOptions()
    if isinstance(location, RemoteFile):
        name = f"/vsicurl/{location}"
        settings = GDAL_OPTIONS | _NETWORK_OPTIONS
    else:
        locate_file(str(location), Path())
        name = str(location.absolute())
        settings = GDAL_OPTIONS
    size_bytes = fingerprint_file(location)[0]
    opening = settings
    if options.trust_sidecars and isinstance(location, Path):
        _refuse_unsafe_sidecars(location)
        opening = settings | _SIDECAR_OPTIONS
    with contextlib.ExitStack() as stack:
        if isinstance(location, RemoteFile):
            # A local file is read as it was opened, so that it may stay open while
            # others come and go: environments end in the order of a stack.
            stack.enter_context(rasterio.Env(**settings))
        try:
            with rasterio.Env(**opening):  # side-cars are read here, or never
                dataset = rasterio.open(name, driver="GTiff", sharing=False)
                stack.enter_context(dataset)
                refuse_claims(dataset, location, size_bytes)
                reader = RasterReader(dataset, location, options, size_bytes)
        except _ERRORS as error:
            raise DataError(
                f"{location} cannot be opened as a GeoTIFF: {error}. "
                "Convert it with gdal_translate, or copy it again."
            ) from error
        yield reader


def read_header(
    location: Location, options: RasterOptions | None = None
) -> RasterHeader:
    """Read what a GeoTIFF says about itself, and no pixels."""
    with open_raster(location, options) as reader:
        return reader.header


def find_unwritten_blocks(location: Location) -> BlockReport:
    """Count the blocks that were never written, without decoding any.

    A GeoTIFF whose writer was killed opens and reads without error, as zeros
    (HAZARDS 1). About 2 s for a million blocks.

    Args:
        location: A local or remote GeoTIFF.

    Returns:
        The counts.

    Raises:
        CropsegError: As `open_raster`.
    """
    with open_raster(location, RasterOptions(scale=(1.0,), offset=(0.0,))) as reader:
        try:
            return _report_blocks(reader.header, reader._dataset)  # noqa: SLF001
        except _ERRORS as error:
            raise DataError(
                f"The table of blocks of {location} cannot be read: {error}. The file "
                "is damaged or cut short; copy it again."
            ) from error


def _report_blocks(header: RasterHeader, dataset: Any) -> BlockReport:
    num_layers = dataset.count // count_block_bands(dataset)
    num_rows = math.ceil(header.grid.height / header.block_height)
    num_cols = math.ceil(header.grid.width / header.block_width)
    num_written = end_bytes = 0
    for layer in range(1, num_layers + 1):
        for row, col in itertools.product(range(num_rows), range(num_cols)):
            place = f"{col}_{row}"
            start = dataset.get_tag_item(f"BLOCK_OFFSET_{place}", "TIFF", layer)
            if start is not None:
                size = dataset.get_tag_item(f"BLOCK_SIZE_{place}", "TIFF", layer)
                num_written += 1
                end_bytes = max(end_bytes, int(start) + int(size or 0))
    num_blocks = num_layers * num_rows * num_cols
    # Overviews, masks and tables may follow the blocks; other bytes are lost blocks.
    stray_bytes = header.size_bytes - end_bytes - 16 * num_blocks
    may_follow = header.has_mask or any(map(dataset.overviews, dataset.indexes))
    return BlockReport(
        num_blocks=num_blocks,
        num_unwritten=num_blocks - num_written,
        looks_sparse=0 < num_written < num_blocks
        and (may_follow or stray_bytes < _TAIL_BYTES),
    )


def _cast_nodata(value: float | None, dtype: str) -> np.generic | None:
    """Return a nodata value as pixels hold it, or None where none can."""
    if value is None or math.isnan(value):
        return None  # what is not a number is never valid
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            return np.dtype(dtype).type(value)
    limits = np.iinfo(dtype)
    if not math.isfinite(value) or value != int(value):
        return None
    inside = limits.min <= int(value) <= limits.max
    return np.dtype(dtype).type(int(value)) if inside else None


def _refuse_unsafe_sidecars(path: Path) -> None:
    """Refuse a side-car that is itself a virtual file, which GDAL would follow."""
    for ending in (".msk", ".ovr"):
        sidecar = path.with_name(path.name + ending)
        if sidecar.exists():
            locate_file(str(sidecar), Path())
