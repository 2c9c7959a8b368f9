"""The card: the passport of a saved model, read without Keras.

It is an extra member of the `.keras` archive, which Keras itself ignores.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cropseg.errors import CropsegError, ModelError, ModelFileNotFoundError
from cropseg.sites.classes import ClassMap
from cropseg.sites.formula import parse_formula
from cropseg.sites.site import Site, match_classes

CARD_NAME = "cropseg.json"
"""Name of the card's member in the archive."""

GSD_TOLERANCE = 0.1
"""How far a GSD may be from the model's, as a share."""

SCHEMA_VERSION = 1
_MAX_CARD_BYTES = 64 * 2**20

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
"""What `zipfile` raises where a byte of an archive is wrong."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True)


class CardClass(_Entry):
    """A class that the model predicts."""

    name: str
    """Its name."""
    color: str
    """Its colour, `#rrggbb`."""
    train_pixels: int
    """Label pixels of it that the model was trained on."""


class CardStage(_Entry):
    """One step of the network, from input to output."""

    name: str
    """Its name."""
    part: str
    """Encoder, decoder or head."""
    stride: int
    """Input pixels per pixel of its output."""
    layers: tuple[str, ...]
    """Names of its layers with variables."""


class Lineage(_Entry):
    """Where the weights came from."""

    mode: str
    """How they were made: `train`, or the transfer mode."""
    source_sha256: str | None = None
    """SHA-256 of the bundle that it was initialised from."""
    source_site: str | None = None
    """Site of that bundle."""
    labels: str | None = None
    """The budget, or None for all training labels."""
    draw: int | None = None
    """The draw of the budget."""


class CardFeatures(_Entry):
    """What the encoder's last features look like on the tiles of a site."""

    mean: tuple[float, ...]
    """Mean of each channel."""
    std: tuple[float, ...]
    """Standard deviation of each channel, between tiles too."""
    mean_error: tuple[float, ...]
    """Standard error of each mean, as tiles differ."""
    std_error: tuple[float, ...]
    """Standard error of each standard deviation."""
    num_tiles: int
    """Tiles that were looked at, 2 or more."""
    half_distance: float | None = None
    """How far the two sides of the site are apart, as `compare_features` measures
    it; None where there are fewer than four tiles."""


class Card(_Entry):
    """What cropseg must know of a model to use it."""

    schema_version: int = SCHEMA_VERSION
    """Version of this list of keys."""
    site: str
    """Site that it was trained on."""
    classes: tuple[CardClass, ...]
    """Its classes, in the order of its output."""
    bands: tuple[str, ...]
    """Its bands, in the order of its input."""
    derived: dict[str, str] = {}
    """Formulas of those of its bands that are computed from others."""
    gsd_m: float
    """Ground sampling distance of its training images, in metres."""
    units: str | None = None
    """Units of the values of its training images."""
    sensor: str | None = None
    """Sensor of its training images."""
    architecture: str
    """One of the zoo's architectures."""
    encoder: str
    """One of the zoo's encoders."""
    tile_size: int
    """Side of the tiles that it was trained on, in pixels."""
    tile_multiple: int
    """The side of a tile must be a multiple of this."""
    band_mean: tuple[float, ...]
    """Means that its first layer subtracts, in raw units."""
    band_std: tuple[float, ...]
    """Standard deviations that its first layer divides by, in raw units."""
    band_quantiles: tuple[tuple[float, ...], ...] | None = None
    """Quantiles of each band at 0.02, 0.25, 0.5, 0.75 and 0.98, in raw units."""
    nodata_fill: tuple[float, ...]
    """What a caller puts where a pixel has no data: the band means."""
    stages: tuple[CardStage, ...]
    """Its stages, from input to output."""
    seed: int
    """Seed of its training."""
    lineage: Lineage
    """Where its weights came from."""
    fingerprint: str
    """Fingerprint of the site's manifest and files."""
    weights_sha256: str
    """SHA-256 of all its weights, in order."""
    versions: dict[str, str]
    """Versions of cropseg, Keras and what it ran on."""
    scores: dict[str, Any] = {}
    """Scores by part of the split, as `evaluate --json` gives them."""
    features: CardFeatures | None = None
    """What its encoder makes of its training tiles, which tells how far another site
    is; None where it was not measured."""

    @field_validator("schema_version")
    @classmethod
    def _check_version(cls, version: int) -> int:
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"it was written by a newer cropseg, as version {version}; this one "
                f"reads up to {SCHEMA_VERSION}. Update cropseg"
            )
        return version

    @property
    def stored_bands(self) -> tuple[str, ...]:
        """Bands that an image must have: its own, then those only formulas use."""
        names = [band for band in self.bands if band not in self.derived]
        for formula in self.derived.values():
            names += [n for n in parse_formula(formula).names if n not in names]
        return tuple(names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes, in the order of its output."""
        return tuple(item.name for item in self.classes)


@contextlib.contextmanager
def check_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a `.keras` archive.

    Raises:
        ModelFileNotFoundError: If there is no such file.
        ModelError: If it is no `.keras` archive, or is found to be damaged while it
            is read.
    """
    if not path.is_file():
        raise ModelFileNotFoundError(
            f"No model at {path} (looked in {path.parent.absolute()}). Give the "
            "model.keras of a run, such as runs/area_1/model.keras."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except CropsegError:
        raise
    except _DAMAGE as error:
        raise ModelError(
            f"{path} is no complete .keras archive ({error}). It is damaged or of "
            "another format; give the model.keras that `cropseg train` wrote."
        ) from error


def read_card(path: str | Path) -> Card:
    """Read the card of a model file.

    Raises:
        ModelFileNotFoundError: If there is no such file.
        ModelError: If it is no `.keras` archive, or has no card that fits.
    """
    path = Path(path)
    with check_archive(path) as archive:
        try:
            size = archive.getinfo(CARD_NAME).file_size
        except KeyError as error:
            raise ModelError(
                f"{path} has no card ({CARD_NAME}), so its bands and classes are "
                "unknown. Give a model that cropseg saved."
            ) from error
        if size > _MAX_CARD_BYTES:
            raise ModelError(f"The card of {path} claims {size} bytes; it is damaged.")
        content = archive.read(CARD_NAME)
    try:
        return Card.model_validate_json(content)
    except ValidationError as error:
        raise ModelError(f"The card of {path} cannot be read: {error}") from error


def fit_site_to_card(site: Site, card: Card, *, accept_gsd: bool = False) -> Site:
    """Return the site with the model's bands, in the model's order.

    Args:
        site: The site.
        card: The model's card.
        accept_gsd: Whether another GSD is no error.

    Raises:
        ModelError: If the site lacks a band of the model, or another GSD.
    """
    site = add_derived_bands(site, card)
    stored = card.stored_bands
    missing = [band for band in stored if band not in site.manifest.bands]
    if missing:
        raise ModelError(
            f"The model was trained on bands {', '.join(stored)}; site "
            f"{site.name} has no {', '.join(missing)}. Bands are matched by name: "
            "name them alike in the manifest. A transfer can also build a model on "
            "the site's bands, with `--bands-from site`."
        )
    if not accept_gsd:
        check_gsd(site, card)
    return site.select_bands(card.bands)


def add_derived_bands(site: Site, card: Card) -> Site:
    """Return the site with the formulas that only the model has.

    Raises:
        ModelError: If both have a band of one name and different formulas.
    """
    for name, formula in card.derived.items():
        own = site.derived.get(name, formula)
        if own != formula:
            raise ModelError(
                f"The model's band {name} is {formula}; site {site.name} derives it "
                f"as {own}. Write the same formula, or give one another name."
            )
    return replace(site, derived={**card.derived, **site.derived})


def check_gsd(site: Site, card: Card) -> None:
    """Check that a site's GSD is that of the model, to a tenth.

    Raises:
        ModelError: If it is not.
    """
    if abs(site.gsd_m / card.gsd_m - 1) > GSD_TOLERANCE:
        raise ModelError(
            f"The model was trained at a GSD of {card.gsd_m:.4g} m; site {site.name} "
            f"has {site.gsd_m:.4g} m. Set `gsd_m: {card.gsd_m:.4g}` in the manifest, "
            "and its images are resampled. A transfer also takes `--resample-to-model` "
            "or `--accept-gsd`."
        )


def match_card_classes(card: Card, classes: ClassMap) -> dict[str, list[str]]:
    """Match a site's classes to the model's, by name.

    Raises:
        ModelError: If none is shared.
    """
    matches = match_classes(card.class_names, classes)
    if not matches:
        raise ModelError(
            f"The model knows {', '.join(card.class_names)}; the site has "
            f"{', '.join(classes.names)}. No class is shared, and classes are matched "
            "by name: name them alike, or list a class's other names in `from`."
        )
    return matches
