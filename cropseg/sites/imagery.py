"""The files of an image: one, several stacked along the bands, or a mosaic.

Whatever they are, they read as one image on one grid.
"""

from __future__ import annotations

import contextlib
import functools
import glob
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.grid import Grid, Window
from cropseg.sites.location import Location, locate_file
from cropseg.sites.manifest import SceneEntry
from cropseg.sites.raster import Pixels, open_raster, read_header
from cropseg.sites.raster_header import RasterHeader, RasterOptions
from cropseg.sites.warp import BandSource, WarpedSource, choose_grid

_ENDINGS: Final = (".tif", ".tiff")
_SIDECAR_ENDINGS: Final = (".msk", ".aux.xml")
_WORLD_ENDINGS: Final = (".tfw", ".tifw", ".wld")
_MAX_MISFIT_PX: Final = 0.01
_MAX_OPEN_FILES: Final = 32
_FREE_PX: Final = 2**30
_MAX_SPARSENESS: Final = 1000
"""How many pixels a mosaic may span for one that a tile holds, above `_FREE_PX`."""
_NAMELESS: Final = "scene"


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One GeoTIFF of an image."""

    location: Location
    """Where it is."""
    header: RasterHeader
    """What it says about itself."""
    options: RasterOptions
    """What the manifest says about it."""

    def list_files(self) -> tuple[Location, ...]:
        """Return the file, and those beside it that are trusted."""
        path = self.location
        if not self.options.trust_sidecars or not isinstance(path, Path):
            return (path,)
        beside = [path.with_name(path.name + ending) for ending in _SIDECAR_ENDINGS]
        beside += [path.with_suffix(ending) for ending in _WORLD_ENDINGS]
        return (path, *(file for file in beside if file.is_file()))


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image, which may consist of several files."""

    files: tuple[ImageFile, ...]
    """Its files, in the order of their bands or, in a mosaic, of their names."""
    is_mosaic: bool
    """Whether the files lie side by side. Where they overlap, the first that has
    data counts."""
    native_grid: Grid
    """The grid of the file, of the first of a stack, or over all of a mosaic."""
    grid: Grid
    """The grid on which it is read."""

    @property
    def path(self) -> Location:
        """Its first file."""
        return self.files[0].location

    @property
    def num_bands(self) -> int:
        """Number of its bands."""
        if self.is_mosaic:
            return self.files[0].header.num_bands
        return sum(file.header.num_bands for file in self.files)

    @property
    def is_resampled(self) -> bool:
        """Whether it is read on another grid than its own."""
        return self.grid != self.native_grid

    @contextlib.contextmanager
    def open(self) -> Iterator[BandSource]:
        """Open the image for reading on its grid in this thread."""
        with self._open(self.grid) as source:
            yield source

    @contextlib.contextmanager
    def open_native(self) -> Iterator[BandSource]:
        """Open the image for reading on its native grid in this thread."""
        with self._open(self.native_grid) as source:
            yield source

    @contextlib.contextmanager
    def _open(self, grid: Grid) -> Iterator[BandSource]:
        with contextlib.ExitStack() as stack:
            if self.is_mosaic:
                kept = self.files if len(self.files) <= _MAX_OPEN_FILES else ()
                opened = [stack.enter_context(_open_file(file)) for file in kept]
                yield _warp(_Mosaic(self.files, self.native_grid, opened), grid)
                return
            sources = [stack.enter_context(_open_file(file)) for file in self.files]
            sources = [_warp(source, grid) for source in sources]
            if len(sources) == 1:
                yield sources[0]
                return
            counts = [file.header.num_bands for file in self.files]
            yield _Stack(sources, counts)


def open_image(
    entry: SceneEntry,
    folder: Path,
    *,
    crs: CRS | None,
    gsd_m: float | None,
    allow_remote: Collection[str] = (),
) -> Image:
    """Read the headers of an image's files and check that they fit together.

    Args:
        entry: What the manifest says.
        folder: Folder that paths are relative to.
        crs: The site's CRS, or None for the image's own.
        gsd_m: The site's GSD, or None for the image's own.
        allow_remote: Hosts that files may be read from.

    Raises:
        DataFileNotFoundError: If a file is not there.
        DataError: If a file cannot be used, or the files do not fit together.
        UnsafeFileError: If a path is refused as unsafe.
    """
    locations, is_mosaic = _locate_files(entry.image, folder, allow_remote)
    files = _read_files(entry, locations, is_mosaic=is_mosaic)
    for file in files:
        _check_crs(file)
    if is_mosaic:
        native = _span_tiles(files)
    else:
        native = files[0].header.grid
        _check_stack(files, may_differ=gsd_m is not None)
    return Image(
        files=files,
        is_mosaic=is_mosaic,
        native_grid=native,
        grid=choose_grid(native, crs=crs, gsd_m=gsd_m),
    )


def _locate_files(
    image: str | tuple[str, ...], folder: Path, allow_remote: Collection[str]
) -> tuple[list[Location], bool]:
    """Return the files of an image, and whether they lie side by side."""
    names = (image,) if isinstance(image, str) else image
    try:
        return [locate_file(n, folder, allow_remote=allow_remote) for n in names], False
    except DataFileNotFoundError:
        # Looked for last, so that an address with a `?` is no pattern.
        tiles = _find_tiles(image, folder) if isinstance(image, str) else None
        if tiles is None:
            raise
    if not tiles:
        raise DataFileNotFoundError(
            f"No GeoTIFF at {folder / names[0]} (looked in {folder.absolute()}). Give "
            "a folder with .tif files, or a pattern that fits some."
        )
    return [locate_file(name, folder) for name in tiles], True


def _find_tiles(name: str, folder: Path) -> list[str] | None:
    """Return the files of a folder or a pattern, or None where it is neither."""
    if glob.has_magic(name):
        found = glob.glob(name, root_dir=folder)  # noqa: PTH207 - it may be absolute
        return sorted(found)
    try:
        found = [item.name for item in (folder / name).iterdir()]
    except (OSError, ValueError):
        return None
    return [
        f"{name}/{item}"
        for item in sorted(found)
        # What begins with a dot is no tile: macOS writes `._a.tif` beside `a.tif`.
        if item.lower().endswith(_ENDINGS) and not item.startswith(".")
    ]


def _read_files(
    entry: SceneEntry, locations: Sequence[Location], *, is_mosaic: bool
) -> tuple[ImageFile, ...]:
    files: list[ImageFile] = []
    first_band = 0
    for location in locations:
        options = RasterOptions(
            nodata=entry.nodata,
            trust_sidecars=entry.trust_sidecars,
            alpha_is_band=entry.alpha_is_band,
        )
        header = read_header(location, options)
        if entry.scale is not None or entry.offset is not None:
            options = replace(
                options,
                scale=_select(entry.scale, first_band, header.num_bands),
                offset=_select(entry.offset, first_band, header.num_bands),
            )
            header = read_header(location, options)
        files.append(ImageFile(location=location, header=header, options=options))
        first_band += 0 if is_mosaic else header.num_bands
    num_bands = files[0].header.num_bands if is_mosaic else first_band
    for key in ("scale", "offset"):
        given = getattr(entry, key)
        if isinstance(given, tuple) and len(given) != num_bands:
            raise DataError(
                f"`{key}` has {len(given)} numbers, but {locations[0]} has "
                f"{num_bands} bands. Give one number, or one a band."
            )
    return tuple(files)


def _select(
    given: float | tuple[float, ...] | None, first: int, count: int
) -> tuple[float, ...] | None:
    if given is None:
        return None
    if isinstance(given, tuple):
        return given[first : first + count]
    return (given,) * count


def _check_crs(file: ImageFile) -> None:
    problem = file.header.grid.describe_misplacement()
    if problem:
        raise DataError(
            f"{file.location} has {problem}, and so no place on the Earth. Set its CRS "
            "with gdal_edit.py -a_srs EPSG:...."
        )


def _check_stack(files: Sequence[ImageFile], *, may_differ: bool) -> None:
    first = files[0]
    for file in files[1:]:
        differences = first.header.grid.list_differences(file.header.grid)
        if differences and not may_differ:
            raise DataError(
                f"{file.location} does not lie on the grid of {first.location.name}: "
                f"{'; '.join(differences)}. Give the manifest `gsd_m`, and all files "
                "are resampled to it."
            )


def _span_tiles(files: Sequence[ImageFile]) -> Grid:
    """Return the grid over all tiles of a mosaic."""
    first = files[0].header.grid
    windows = [_place_tile(file, files[0]) for file in files]
    row, col = min(w.row for w in windows), min(w.col for w in windows)
    height = max(w.row_end for w in windows) - row
    width = max(w.col_end for w in windows) - col
    held_px = sum(w.height * w.width for w in windows)
    if height * width > max(_FREE_PX, _MAX_SPARSENESS * held_px):
        places = np.array([(w.row, w.col) for w in windows])
        strays = np.abs(places - np.median(places, axis=0)).max(axis=1)
        raise DataError(
            f"{files[int(strays.argmax())].location} lies {int(strays.max()):,} pixels "
            f"from most of the {len(files)} tiles of its scene, which so would have "
            f"{height:,} x {width:,} pixels (rows x columns), nearly all without data. "
            "Correct its position, or make it a scene of its own."
        )
    return Grid(
        height=height,
        width=width,
        transform=first.transform @ Affine.translation(col, row),
        crs=first.crs,
    )


def _place_tile(file: ImageFile, first: ImageFile) -> Window:
    """Return where a tile lies on the grid of the first one."""
    grid, base = file.header.grid, first.header.grid
    problem = None
    if file.header.num_bands != first.header.num_bands:
        problem = f"{file.header.num_bands} bands against {first.header.num_bands}"
    elif grid.crs != base.crs:
        problem = f"CRS {grid.crs.to_string()} against {base.crs.to_string()}"
    col, row = ~base.transform @ (grid.transform.c, grid.transform.f)
    end_col, end_row = ~base.transform @ (grid.transform @ (grid.width, grid.height))
    misfit = max(
        abs(value - round(value)) for value in (row, col, end_row, end_col)
    )  # fmt: skip
    same_size = (round(end_row - row), round(end_col - col)) == (
        grid.height,
        grid.width,
    )
    if problem is None and (misfit > _MAX_MISFIT_PX or not same_size):
        problem = f"it lies {misfit:.2f} pixels beside the grid, or its GSD differs"
    if problem:
        raise DataError(
            f"{file.location} does not fit beside {first.location.name}: {problem}. "
            "Tiles of one scene share bands, CRS and grid; make it a scene of its own."
        )
    return Window(row=round(row), col=round(col), height=grid.height, width=grid.width)


@contextlib.contextmanager
def _open_file(file: ImageFile) -> Iterator[BandSource]:
    with open_raster(file.location, file.options) as reader:
        yield reader


def _warp(source: BandSource, grid: Grid) -> BandSource:
    # Grids that differ by rounding alone are one: nothing is interpolated for that.
    if not source.grid.list_differences(grid):
        return source
    return WarpedSource(source=source, grid=grid)


@dataclass(frozen=True)
class _Stack:
    """Files whose bands follow each other."""

    sources: Sequence[BandSource]
    counts: Sequence[int]

    @property
    def grid(self) -> Grid:
        return self.sources[0].grid

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        valid = np.ones((window.height, window.width), np.bool_)
        planes = {}
        start = 0
        for source, count in zip(self.sources, self.counts, strict=True):
            wanted = [band for band in bands if start <= band < start + count]
            if wanted:
                pixels = source.read(window, [band - start for band in wanted])
                valid &= pixels.valid
                for position, band in enumerate(wanted):
                    planes[band] = pixels.values[..., position]
            start += count
        values = np.stack([planes[band] for band in bands], axis=-1)
        return Pixels(values=values, valid=valid)


@dataclass(frozen=True)
class _Mosaic:
    """Files that lie side by side.

    Few are open all the time, many only while they are read: rasterio's settings are
    a stack, so that none can be opened first and closed first.
    """

    files: Sequence[ImageFile]
    grid: Grid
    opened: Sequence[BandSource]
    """All of them, or none where there are many."""

    def read(self, window: Window, bands: Sequence[int]) -> Pixels:
        shape = (window.height, window.width)
        values = np.zeros((*shape, len(bands)), self._dtype)
        valid = np.zeros(shape, np.bool_)
        for index, place in enumerate(self._windows):
            part = place.intersect(window)
            if not part.height or not part.width:
                continue
            slices = part.slices_in(window)
            if valid[slices].all():
                continue
            inner = replace(part, row=part.row - place.row, col=part.col - place.col)
            with self._open(index) as source:
                pixels = source.read(inner, bands)
            new = pixels.valid & ~valid[slices]
            values[slices][new] = pixels.values[new]
            valid[slices] |= new
        return Pixels(values=values, valid=valid)

    @contextlib.contextmanager
    def _open(self, index: int) -> Iterator[BandSource]:
        if self.opened:
            yield self.opened[index]
            return
        with _open_file(self.files[index]) as source:
            yield source

    @functools.cached_property
    def _dtype(self) -> np.dtype[Any]:
        return np.result_type(*{file.header.dtype for file in self.files})

    @functools.cached_property
    def _windows(self) -> list[Window]:
        inverse = ~self.grid.transform
        windows = []
        for file in self.files:
            grid = file.header.grid
            col, row = inverse @ (grid.transform.c, grid.transform.f)
            place = {"row": round(row), "col": round(col)}
            windows.append(Window(**place, height=grid.height, width=grid.width))
        return windows


def name_image(entry: SceneEntry) -> str:
    """Return what a scene is called: its `name`, or the name of its file or folder."""
    if entry.name:
        return entry.name
    first = entry.image[0] if isinstance(entry.image, tuple) else entry.image
    path = Path(first)
    if not glob.has_magic(first):
        return path.stem or _NAMELESS
    plain = [part for part in path.parent.parts if not glob.has_magic(part)]
    return plain[-1].strip("./") or _NAMELESS if plain else _NAMELESS
