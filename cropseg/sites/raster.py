"""Windowed reading of GeoTIFFs, with validity.

Only the GTiff driver is used, without side-car files, and only for local paths,
so that a file can neither read other files of the machine nor go to the network
(HAZARDS 6). A reader belongs to one thread (HAZARDS 4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.grid import Grid, Window

GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_CACHEMAX": 128,
}
"""Options for every read and write: no side-car files, 128 MB of block cache."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a window of an image holds."""

    values: npt.NDArray[Any]
    """Raw values, (height, width, bands), in the file's dtype."""
    valid: npt.NDArray[np.bool_]
    """(height, width), True where every band recorded something."""


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """What a GeoTIFF says about itself."""

    grid: Grid
    """Its rows, columns, position and CRS."""
    num_bands: int
    """Number of bands."""
    dtype: str
    """NumPy dtype of the first band."""
    band_names: tuple[str, ...]
    """Descriptions of the bands, empty where a band has none."""


class RasterReader:
    """An open GeoTIFF, read window by window. Get one from `open_raster`."""

    def __init__(self, dataset: Any, path: Path) -> None:
        """Wrap an open rasterio dataset."""
        self._dataset = dataset
        self._path = path
        self.header = RasterHeader(
            grid=Grid(
                height=dataset.height,
                width=dataset.width,
                transform=dataset.transform,
                crs=dataset.crs,
            ),
            num_bands=dataset.count,
            dtype=dataset.dtypes[0],
            band_names=tuple(name or "" for name in dataset.descriptions),
        )

    def read_tags(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return dict(self._dataset.tags())

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        """Read a window, which may reach over the edge of the raster.

        Args:
            window: What to read. Outside the raster nothing is valid and values are 0.
            bands: Positions of the bands, counted from 0, in the order wanted.

        Returns:
            The pixels, (window.height, window.width, len(bands)).

        Raises:
            DataError: If the file cannot be read there.
        """
        grid = self.header.grid
        inside = window.clip(height=grid.height, width=grid.width)
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
        indexes = [band + 1 for band in bands]
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        try:
            values = np.moveaxis(self._dataset.read(indexes, window=area), 0, -1)
            valid = np.ones(values.shape[:2], np.bool_)
            if self._has_mask:
                valid &= self._dataset.dataset_mask(window=area) > 0
        except RasterioError as error:
            raise DataError(
                f"Cannot read rows {window.row}-{window.row_end} of {self._path}: "
                f"{error}. The file is damaged or cut short; copy it again."
            ) from error
        for position, band in enumerate(bands):
            nodata = self._dataset.nodatavals[band]
            if nodata is not None and not np.isnan(nodata):
                valid &= values[..., position] != nodata
        if np.issubdtype(values.dtype, np.floating):
            valid &= np.isfinite(values).all(axis=-1)
        return values, valid

    @property
    def _has_mask(self) -> bool:
        flags = {flag for band in self._dataset.mask_flag_enums for flag in band}
        return bool(flags & {MaskFlags.per_dataset, MaskFlags.alpha})


@contextlib.contextmanager
def open_raster(path: Path) -> Iterator[RasterReader]:
    """Open a local GeoTIFF for reading in this thread.

    Args:
        path: The file.

    Yields:
        A reader.

    Raises:
        DataFileNotFoundError: If there is no such file.
        DataError: If it is no GeoTIFF that can be read.
    """
    if not path.is_file():
        raise DataFileNotFoundError(
            f"No file at {path} (looked in {path.parent.absolute()}). Paths in a "
            "manifest are relative to the manifest."
        )
    with rasterio.Env(**GDAL_OPTIONS):
        try:
            dataset = rasterio.open(str(path.absolute()), driver="GTiff", sharing=False)
        except RasterioError as error:
            raise DataError(
                f"{path} cannot be opened as a GeoTIFF: {error}. "
                "Convert it with gdal_translate, or copy it again."
            ) from error
        with dataset:
            if dataset.dtypes[0].startswith("complex"):
                raise DataError(
                    f"{path} holds complex numbers ({dataset.dtypes[0]}); expected "
                    "integers or floats. Write its amplitude to a file of its own."
                )
            yield RasterReader(dataset, path)


def read_header(path: Path) -> RasterHeader:
    """Read what a GeoTIFF says about itself, and no pixels."""
    with open_raster(path) as reader:
        return reader.header
