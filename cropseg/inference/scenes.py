"""Scenes to map: any image with the model's bands, brought to the model's GSD."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cropseg.errors import ModelError
from cropseg.models.card import GSD_TOLERANCE as MAX_GSD_TOLERANCE
from cropseg.models.card import Card
from cropseg.sites.bands import BandReader
from cropseg.sites.imagery import Image, open_image
from cropseg.sites.manifest import SceneEntry

_NO_PROJECTION: Final = "its CRS has no metres to resample in"


@dataclass(frozen=True, kw_only=True)
class MappedScene:
    """An image that a model can map."""

    image: Image
    """The image, read at the model's GSD."""
    band_names: tuple[str, ...]
    """Names of its bands, in file order."""
    card: Card
    """Card of the model."""

    @contextlib.contextmanager
    def open(self) -> Iterator[BandReader]:
        """Open it for reading the model's bands in this thread."""
        with self.image.open() as source:
            card = self.card
            yield BandReader(source, self.band_names, card.bands, card.derived)


def fit_scene(
    text: str, card: Card, *, allow_remote: Collection[str] = ()
) -> MappedScene:
    """Open an image and check that a model can map it.

    Bands are taken by name if the file names them, else in the model's order. An
    image whose GSD is not the model's is resampled to it.

    Args:
        text: Path of a GeoTIFF, or an address of an allowed host.
        card: Card of the model.
        allow_remote: Hosts that images may be read from.

    Raises:
        ModelError: If its bands or its GSD do not fit the model.
        CropsegError: If it cannot be read.
    """
    entry, folder = SceneEntry(image=text), Path()
    image = open_image(entry, folder, crs=None, gsd_m=None, allow_remote=allow_remote)
    if image.num_bands != len(card.stored_bands):
        with_alpha = entry.model_copy(update={"alpha_is_band": True})
        image = open_image(
            with_alpha, folder, crs=None, gsd_m=None, allow_remote=allow_remote
        )
        entry = with_alpha
    if image.num_bands != len(card.stored_bands):
        raise ModelError(
            f"{text} has {image.num_bands} bands, but the model takes "
            f"{len(card.stored_bands)}: {', '.join(card.stored_bands)}. Give scenes "
            "with these bands."
        )
    grid = image.native_grid
    if grid.crs.is_projected:
        image = open_image(
            entry, folder, crs=None, gsd_m=card.gsd_m, allow_remote=allow_remote
        )
    elif abs(grid.gsd_m / card.gsd_m - 1) > MAX_GSD_TOLERANCE:
        raise ModelError(
            f"{text} has a GSD of {grid.gsd_m:.4g} m, but the model was trained at "
            f"{card.gsd_m:.4g} m, and {_NO_PROJECTION}. Reproject the scene, to its "
            "UTM zone for example."
        )
    return MappedScene(image=image, band_names=_name_bands(image, card), card=card)


def _name_bands(image: Image, card: Card) -> tuple[str, ...]:
    """Return the names of the bands, in file order.

    Raises:
        ModelError: If the file names some bands of the model, but not all, and these
            at other places than the model has them.
    """
    known = {name.casefold(): name for name in card.stored_bands}
    header = image.files[0].header  # of a mosaic: that of its first tile
    named = [known.get((name or "").casefold()) for name in header.band_names]
    if set(named) == set(card.stored_bands):
        return tuple(name for name in named if name is not None)
    places = zip(named, card.stored_bands, strict=False)
    if any(name is not None and name != expected for name, expected in places):
        raise ModelError(
            f"{image.path} names its bands {', '.join(map(str, header.band_names))}, "
            f"but the model takes {', '.join(card.stored_bands)}. Name the bands of "
            "the file as the model does, or take the names away to say that they are "
            "in the model's order."
        )
    return card.stored_bands
