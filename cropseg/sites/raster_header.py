"""What a GeoTIFF says about itself, and the claims for which none is read.

What a header claims is checked before any pixel is read: a small file can claim what
takes absurd memory or time (HAZARDS 7). A manifest may know better than the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags

from cropseg.errors import DataError, join_problems
from cropseg.sites.grid import Grid
from cropseg.sites.location import Location

MAX_BANDS = 4096
"""More bands are refused: a year of daily images of 11 bands has fewer."""
MAX_BLOCK_BYTES = 512 * 2**20
"""Larger blocks, decoded, are refused: reading one takes 1.3 times as much memory."""
_MAX_EXPANSION = 20_000  # Deflate gives at most 1032 bytes for one, ZSTD ten times that
_FREE_BYTES = 2**30  # so much may any file claim to hold
_FREE_BLOCKS = 2**20
_MAX_ROUNDING_PX = 0.01
_ENTRY_BYTES = 4  # what a block takes in a file's table of contents, at the least
_ALPHA_NAMES = {"", "alpha", "transparency", "opacity", "mask"}


@dataclass(frozen=True, kw_only=True)
class RasterOptions:
    """What a manifest knows better than the file."""

    nodata: float | None = None
    """Replaces the file's nodata value. NaN: no whole number means nodata."""
    scale: tuple[float, ...] | None = None
    """Replaces the file's factors: one for each band, or one for all."""
    offset: tuple[float, ...] | None = None
    """Replaces the file's offsets, added after the factor; likewise."""
    trust_sidecars: bool = False
    """Whether `.msk`, `.aux.xml` and world files beside a local file are read."""
    alpha_is_band: bool = False
    """Whether alpha bands are data. Of four 8-bit bands, GDAL writes the last as alpha
    unless it is told not to, near infrared too."""


@dataclass(frozen=True, kw_only=True)
class RasterHeader:
    """What a GeoTIFF says about itself, overridden by options."""

    grid: Grid
    """Its rows, columns, position and CRS."""
    num_bands: int
    """Number of bands, without alpha."""
    dtype: str
    """NumPy dtype of the values that are read, the same for all bands."""
    band_names: tuple[str, ...]
    """Descriptions of the bands, empty where a band has none."""
    file_dtype: str
    """NumPy dtype in the file; a GeoTIFF has one for all bands."""
    nodata: tuple[float | None, ...]
    """The value of each band that means nodata, before scaling."""
    scales: tuple[float, ...]
    """Factor of each band, 1 where none applies."""
    offsets: tuple[float, ...]
    """What is added to each band after the factor, 0 where nothing is."""
    color_names: tuple[str, ...]
    """How each band is to be shown: `red`, `gray`, `palette`, `undefined`..."""
    num_alpha_bands: int
    """Alpha bands, which are validity and no bands."""
    has_mask: bool
    """Whether there is a mask besides nodata and alpha."""
    block_height: int
    """Rows of a block, in pixels."""
    block_width: int
    """Columns of a block, in pixels."""
    compression: str | None
    """Name of the codec, or None."""
    size_bytes: int
    """Size of the file."""

    @property
    def is_scaled(self) -> bool:
        """Whether a scale or an offset applies to a band."""
        return _is_scaled(self.scales, self.offsets)

    @property
    def has_palette(self) -> bool:
        """Whether the values are numbers of colours, so no brightness."""
        return "palette" in self.color_names


def make_header(
    dataset: Any, bands: Sequence[int], options: RasterOptions, size_bytes: int
) -> RasterHeader:
    """Make the header of an open dataset.

    Args:
        dataset: A dataset of rasterio.
        bands: Positions of the bands that are data, counted from 0.
        options: What a manifest knows better than the file.
        size_bytes: Size of the file.

    Returns:
        The header.

    Raises:
        DataError: If the scales or offsets are not as many as the bands, not finite,
            or a scale is 0.
    """
    file_dtype = dataset.dtypes[0]
    found = [dataset.scales[band] for band in bands]
    scales = _choose(options.scale, found, f"`scale` of {dataset.name}")
    found = [dataset.offsets[band] for band in bands]
    offsets = _choose(options.offset, found, f"`offset` of {dataset.name}")
    if not all(map(math.isfinite, scales + offsets)) or 0 in scales:
        raise DataError(
            f"{dataset.name} has scales {scales} and offsets {offsets}; expected "
            "finite numbers and no scale of 0. Give others in the manifest."
        )
    names, nodata = _read_names(dataset), options.nodata
    block_height, block_width = dataset.block_shapes[0]
    return RasterHeader(
        grid=Grid(
            height=dataset.height,
            width=dataset.width,
            transform=dataset.transform,
            crs=dataset.crs,
        ),
        num_bands=len(bands),
        dtype="float32" if _is_scaled(scales, offsets) else file_dtype,
        band_names=tuple(names[band] for band in bands),
        file_dtype=file_dtype,
        nodata=tuple(
            dataset.nodatavals[band] if nodata is None else nodata for band in bands
        ),
        scales=scales,
        offsets=offsets,
        color_names=tuple(dataset.colorinterp[band].name for band in bands),
        num_alpha_bands=dataset.count - len(bands),
        has_mask=bool(list_masks(dataset, options)),
        block_height=block_height,
        block_width=block_width,
        compression=dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION"),
        size_bytes=size_bytes,
    )


def _choose(
    given: tuple[float, ...] | None, found: list[float], noun: str
) -> tuple[float, ...]:
    """Return what a manifest gives, one number a band, or else what a file has."""
    if given is None:
        return tuple(found)
    if len(given) not in {1, len(found)}:
        raise DataError(
            f"Got {len(given)} numbers as {noun}; expected 1, or {len(found)}: one "
            "for each band of the file."
        )
    return given * len(found) if len(given) == 1 else given


def _is_scaled(scales: Sequence[float], offsets: Sequence[float]) -> bool:
    return any(scale != 1 for scale in scales) or any(offsets)


def _read_names(dataset: Any) -> list[str]:
    try:
        return [name or "" for name in dataset.descriptions]
    except UnicodeDecodeError:  # rasterio expects UTF-8, old files have Latin-1
        return [""] * dataset.count


def list_alpha_bands(dataset: Any) -> list[int]:
    """Return the bands that are alpha, unless their description says otherwise."""
    return [
        band
        for band, (color, name) in enumerate(
            zip(dataset.colorinterp, _read_names(dataset), strict=True)
        )
        if color == ColorInterp.alpha and name.strip().lower() in _ALPHA_NAMES
    ]


def list_masks(dataset: Any, options: RasterOptions) -> list[int]:
    """Return the indexes of the bands whose masks, besides nodata, must be read."""
    shared, own = False, []
    for index, flags in zip(dataset.indexes, dataset.mask_flag_enums, strict=True):
        if not flags:
            own.append(index)
        is_nodata = MaskFlags.nodata in flags and options.nodata is not None
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            shared |= not is_nodata
    return own or ([1] if shared else [])


def count_block_bands(dataset: Any) -> int:
    """Return how many bands a block holds: all or one."""
    layout = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE")
    return int(dataset.count) if layout == "PIXEL" else 1


def _tells_pixels_apart(dataset: Any) -> bool:
    """Whether neighbouring pixels have different coordinates, by more than rounding."""
    where = dataset.transform
    farthest = max(
        map(abs, (*(where @ (dataset.width, dataset.height)), where.c, where.f))
    )
    sides = (math.hypot(where.a, where.d), math.hypot(where.b, where.e))
    if not math.isfinite(farthest) or not all(map(math.isfinite, sides)):
        return False
    least = math.ulp(farthest) / _MAX_ROUNDING_PX
    return bool(abs(where.determinant) > least * max(sides))


def refuse_claims(dataset: Any, location: Location, size_bytes: int) -> None:
    """Refuse a file that claims what would take absurd memory or time to read.

    Raises:
        DataError: If it has too many bands, too large blocks, complex numbers, no
            usable transform, or is far too small for what it claims.
    """
    if dataset.count > MAX_BANDS:
        raise DataError(
            f"{location} claims {dataset.count} bands; at most {MAX_BANDS} are read. "
            "The file is damaged, or split it with gdal_translate -b."
        )
    dtype = dataset.dtypes[0]
    if dtype.startswith("complex"):
        raise DataError(
            f"{location} holds complex numbers ({dtype}); expected integers or "
            "floats. Write its amplitude to a file of its own."
        )
    problems = []
    terms = tuple(dataset.transform)[:6]
    if not _tells_pixels_apart(dataset):
        problems.append(
            f"Its transform, {terms}, gives its pixels no place or no size. Set the "
            "right one with gdal_edit.py -a_ullr, or copy the file again."
        )
    height, width = dataset.block_shapes[0]
    block_bands = count_block_bands(dataset)
    pixel_bytes = np.dtype(dtype).itemsize
    block_bytes = height * width * block_bands * pixel_bytes
    if block_bytes > MAX_BLOCK_BYTES:
        problems.append(
            f"Its blocks of {height} x {width} pixels (rows x columns) hold "
            f"{block_bytes / 2**20:.0f} MiB each, and one is read whole for every "
            f"pixel; at most {MAX_BLOCK_BYTES >> 20} MiB are read. Rewrite it with "
            "gdal_translate -co TILED=YES."
        )
    num_blocks = math.ceil(dataset.height / height) * math.ceil(dataset.width / width)
    num_blocks *= dataset.count // block_bands
    total_bytes = dataset.height * dataset.width * dataset.count * pixel_bytes
    if total_bytes > max(_FREE_BYTES, size_bytes * _MAX_EXPANSION) or (
        num_blocks > max(_FREE_BLOCKS, size_bytes // _ENTRY_BYTES)
    ):
        problems.append(
            f"It claims {dataset.height} x {dataset.width} pixels (rows x columns) in "
            f"{dataset.count} bands and {num_blocks} blocks, but is {size_bytes} bytes "
            "small. It is damaged or was never written; make it again."
        )
    if problems:
        raise DataError(join_problems(f"{location} cannot be read", problems))
