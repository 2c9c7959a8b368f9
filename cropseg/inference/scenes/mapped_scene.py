"""Scenes to map: any image with the model's bands, brought to the model's GSD.

A model knows a field by its size in pixels. So an image is read at the model's GSD, and
where its CRS does not tell metres as they are (degrees, Web Mercator) it is read in its
UTM zone. Its map comes back on its own pixels. docs/decisions/0019 says what is left
as it is, and why.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rasterio.crs import CRS

from cropseg.errors import DataError, ModelError, UsageError
from cropseg.inference.scenes.scene_list import SceneRequest
from cropseg.models.card import Card
from cropseg.sites.bands import BandReader
from cropseg.sites.grid import Grid
from cropseg.sites.imagery import Image, ImageFile, open_image
from cropseg.sites.manifest import SceneEntry
from cropseg.sites.projection import find_utm_zone, is_true_to_scale
from cropseg.sites.raster import read_header
from cropseg.sites.raster_header import RasterHeader
from cropseg.sites.warp import GSD_TOLERANCE, choose_grid

_PLAIN_COLORS: Final = {"gray", "undefined"}
"""What GDAL says of a band of which it knows nothing."""


@dataclass(frozen=True, kw_only=True)
class MappedScene:
    """An image that a model can map. It can be pickled."""

    name: str
    """What its files are called."""
    image: Image
    """The image. `grid` is where it is read, `native_grid` where its map belongs."""
    band_names: tuple[str, ...]
    """Names of its bands, in file order. There may be more than the model takes."""
    card: Card
    """Card of the model."""

    @contextlib.contextmanager
    def open(self) -> Iterator[BandReader]:
        """Open it for reading the model's bands, at its GSD, in this thread."""
        with self.image.open() as source:
            card = self.card
            yield BandReader(source, self.band_names, card.bands, card.derived)

    @contextlib.contextmanager
    def open_native(self) -> Iterator[BandReader]:
        """Open it for reading the model's bands on its own grid in this thread."""
        with self.image.open_native() as source:
            card = self.card
            yield BandReader(source, self.band_names, card.bands, card.derived)


def fit_scene(
    request: SceneRequest,
    card: Card,
    *,
    allow_remote: Collection[str] = (),
    scale: float = 1.0,
) -> MappedScene:
    """Open an image and bring it to a model.

    Bands are taken by name if the request or the file names them, else in the model's
    order. An image whose GSD is not the model's is resampled to it; one whose CRS is
    not true to scale is read in its UTM zone.

    Args:
        request: The scene.
        card: Card of the model.
        allow_remote: Hosts that images may be read from.
        scale: What brings its values to the units that the model was trained on. They
            are multiplied by it after the scale and offset that the file itself has.

    Returns:
        The scene. No pixel was read.

    Raises:
        UsageError: If the scale is no finite number above 0.
        ModelError: If its bands do not fit the model, or it is too wide to be read in
            one UTM zone.
        CropsegError: If it cannot be read.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(
            f"--scale is {scale:g}; expected a number above 0, such as 10000 for "
            "values from 0 to 1 where the model was trained on 0 to 10000."
        )
    if request.problem:
        raise DataError(request.problem)
    image = _open_image(request, card, allow_remote, alpha_is_band=False)
    names = _name_bands(request, image, card)
    if names is None and any(file.header.num_alpha_bands for file in image.files):
        # Of four 8-bit bands GDAL calls the last alpha unless told otherwise.
        image = _open_image(request, card, allow_remote, alpha_is_band=True)
        names = _name_bands(request, image, card)
    if names is None:
        raise _refuse_bands(request, image, card)
    image, names = _put_finest_first(image, names, card)
    if scale != 1:
        image = replace(image, files=tuple(_scale(f, scale) for f in image.files))
    return MappedScene(name=request.name, image=image, band_names=names, card=card)


def _open_image(
    request: SceneRequest,
    card: Card,
    allow_remote: Collection[str],
    *,
    alpha_is_band: bool,
) -> Image:
    """Open an image, to be read at the model's GSD."""
    files = request.files
    entry = SceneEntry(image=files[0], alpha_is_band=alpha_is_band)
    first = open_image(entry, Path(), crs=None, gsd_m=None, allow_remote=allow_remote)
    if len(files) == 1:
        return replace(first, grid=_choose_grid(first, card))
    entry = SceneEntry(image=files, alpha_is_band=alpha_is_band)
    crs = _choose_crs(first.native_grid, card, str(first.path))
    return open_image(
        entry, Path(), crs=crs, gsd_m=card.gsd_m, allow_remote=allow_remote
    )


def _choose_grid(image: Image, card: Card) -> Grid:
    native = image.native_grid
    crs = _choose_crs(native, card, str(image.path))
    return choose_grid(native, crs=crs, gsd_m=card.gsd_m)


def _choose_crs(native: Grid, card: Card, noun: str) -> CRS | None:
    """Return the CRS to read an image in, None for its own."""
    if abs(native.gsd_m / card.gsd_m - 1) <= GSD_TOLERANCE:
        return None  # as the model's own images are, in whatever CRS
    if native.crs.is_projected and is_true_to_scale(native):
        return None
    return find_utm_zone(native, noun)


def _put_finest_first(
    image: Image, names: tuple[str, ...], card: Card
) -> tuple[Image, tuple[str, ...]]:
    """Order stacked files by GSD, as the map comes back on the grid of the first."""
    if image.is_mosaic or len(image.files) == 1:
        return image, names
    ends = [0]
    for file in image.files:
        ends.append(ends[-1] + file.header.num_bands)
    order = sorted(
        range(len(image.files)), key=lambda i: image.files[i].header.grid.gsd_m
    )
    files = tuple(image.files[i] for i in order)
    ordered = replace(image, files=files, native_grid=files[0].header.grid)
    sorted_names = [name for i in order for name in names[ends[i] : ends[i + 1]]]
    return replace(ordered, grid=_choose_grid(ordered, card)), tuple(sorted_names)


def _scale(file: ImageFile, factor: float) -> ImageFile:
    header = file.header
    options = replace(
        file.options,
        scale=tuple(scale * factor for scale in header.scales),
        offset=tuple(offset * factor for offset in header.offsets),
    )
    return replace(file, options=options, header=read_header(file.location, options))


def _list_headers(image: Image) -> tuple[RasterHeader, ...]:
    """Return the headers of the files whose bands follow each other."""
    files = image.files[:1] if image.is_mosaic else image.files
    return tuple(file.header for file in files)


def _name_bands(
    request: SceneRequest, image: Image, card: Card
) -> tuple[str, ...] | None:
    """Return the names of the bands, in file order, or None if they do not fit.

    Raises:
        ModelError: If the file names some bands of the model, but not all, and these
            at other places than the model has them.
    """
    wanted = card.stored_bands
    known = {name.casefold(): name for name in wanted}
    given = request.bands
    if given is None:
        given = tuple(n for head in _list_headers(image) for n in head.band_names)
    elif len(given) != image.num_bands:
        return None
    named = [known.get(name.casefold()) for name in given]
    if all(named.count(name) == 1 for name in wanted):
        return tuple(
            name or f"{own or 'band'} ({place})"  # of no use to the model
            for place, (name, own) in enumerate(zip(named, given, strict=True), start=1)
        )
    if request.bands is not None or image.num_bands != len(wanted):
        return None
    if any(
        name not in {None, expected}
        for name, expected in zip(named, wanted, strict=True)
    ):
        raise ModelError(
            f"{image.path} names its bands {', '.join(map(str, given))}, but the model "
            f"takes {', '.join(wanted)}. Name the bands of the file as the model does, "
            "or take the names away to say that they are in the model's order."
        )
    return wanted


def _refuse_bands(request: SceneRequest, image: Image, card: Card) -> ModelError:
    names = list(request.bands or ())
    if not names:
        for header in _list_headers(image):
            names += [
                name or (color if color not in _PLAIN_COLORS else "unnamed")
                for name, color in zip(
                    header.band_names, header.color_names, strict=True
                )
            ]
    wanted = card.stored_bands
    count = f"{image.num_bands} band{'s' * (image.num_bands != 1)}"
    return ModelError(
        f"{image.path} has {count} ({', '.join(names)}), but the model takes "
        f"{len(wanted)}: {', '.join(wanted)}. Give scenes with these bands, in this "
        "order or named like them."
    )
