"""Does a model fit a target site, and which labels may a run see? No Keras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from cropseg.errors import ModelError, UsageError
from cropseg.models.card import (
    Card,
    add_derived_bands,
    check_gsd,
    fit_site_to_card,
    match_card_classes,
)
from cropseg.sites.budget import Budget, LabelPool, draw_pool, open_pool
from cropseg.sites.classes import ClassMap
from cropseg.sites.resample import resample_site
from cropseg.sites.site import Site
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.settings import TrainSettings
from cropseg.transfer.normalization import NORMALIZATIONS, Normalization
from cropseg.transfer.source import Source

DEFAULT_EPOCHS = 6
"""Epochs of a transfer, where `train` has more."""

_FROM_MODEL = ("architecture", "encoder", "tile_size")

BandsFrom = Literal["model", "site"]
GsdChoice = Literal["same", "accept", "resample"]


@dataclass(frozen=True, kw_only=True)
class ReuseOptions:
    """How a model is fitted to a site: what is equal for all modes of a comparison."""

    normalization: Normalization = "source"
    """What bands are normalised by; one of `NORMALIZATIONS`."""
    bands_from: BandsFrom = "model"
    """`model`: the new model takes the bands of the source, which the site must have.
    `site`: it takes those of the site; filters of shared bands are kept."""
    gsd: GsdChoice = "same"
    """What is done where GSDs differ by over a tenth. `same`: an error. `accept`:
    nothing. `resample`: the site is read at the GSD of the model."""
    synonyms: Mapping[str, tuple[str, ...]] | None = None
    """For classes of the site, their names in the source, as `from` in a manifest."""
    imagenet_weights: Path | None = None
    """A local file with ImageNet weights, for the mode `imagenet`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: If one is not known.
        """
        choices = {
            "normalization": NORMALIZATIONS,
            "bands_from": get_args(BandsFrom),
            "gsd": get_args(GsdChoice),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"`{name}` is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(known)}."
                )

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the default, as JSON values."""
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = str(value) if isinstance(value, Path) else value
        if self.synonyms:
            found["synonyms"] = {k: list(v) for k, v in self.synonyms.items()}
        return found

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ReuseOptions:
        """Read what `to_json` returned."""
        given = dict(document)
        if "imagenet_weights" in given:
            given["imagenet_weights"] = Path(given["imagenet_weights"])
        if "synonyms" in given:
            given["synonyms"] = {k: tuple(v) for k, v in given["synonyms"].items()}
        return cls(**given)


def read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a table of class names from YAML, such as `wheat: [spring wheat]`.

    Raises:
        UsageError: If it cannot be read or is no such table.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read synonyms from {path}: {error}") from error
    expected = (
        f"{path} must hold class names of the site, each with its names in the model, "
        "such as `wheat: [spring wheat, winter wheat]`."
    )
    if not isinstance(document, Mapping):
        raise UsageError(expected)
    table = {}
    for name, names in document.items():
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, list) or not all(isinstance(n, str) for n in listed):
            raise UsageError(f"{expected} It has {name!r}: {names!r}.")
        table[str(name)] = tuple(listed)
    return table


def choose_settings(card: Card, settings: dict[str, Any]) -> TrainSettings:
    """Complete the settings of a transfer with those of the source model.

    Raises:
        UsageError: If a setting that the model decides is given and differs.
    """
    for name in _FROM_MODEL:
        value = getattr(card, name)
        if settings.get(name, value) != value:
            raise UsageError(
                f"`{name}` is {settings[name]!r}, but the model has {value!r}. A "
                "transfer takes it from the model; leave it out."
            )
    decided = {name: getattr(card, name) for name in _FROM_MODEL}
    return TrainSettings(**{"epochs": DEFAULT_EPOCHS, **settings, **decided})


def prepare_target(site: Site, card: Card, reuse: ReuseOptions | None = None) -> Site:
    """Return the site as the new model reads it, after checking that the two fit.

    Raises:
        ModelError: If bands, GSD or classes do not fit.
        DataError: If the site cannot be trained on.
        UsageError: If a synonym is of a class that the site does not have.
    """
    reuse = reuse or ReuseOptions()
    site = fit_site(site, card, reuse)
    match_card_classes(card, site.classes)
    require_trainable(site, survey_site(site, card.tile_size))
    return site


def fit_site(site: Site, card: Card, reuse: ReuseOptions) -> Site:
    """Return the site with the bands, GSD and class names that a transfer reads.

    Raises:
        ModelError: If bands or GSD do not fit.
        UsageError: If a synonym is of a class that the site does not have.
    """
    if reuse.synonyms:
        site = replace(site, classes=_add_synonyms(site.classes, reuse.synonyms))
    if reuse.gsd == "resample":
        site = resample_site(site, card.gsd_m)
    if reuse.bands_from == "model":
        return fit_site_to_card(site, card, accept_gsd=reuse.gsd == "accept")
    if reuse.gsd == "same":
        check_gsd(site, card)
    bands = site.bands
    site = add_derived_bands(site, card)
    if not set(bands) & set(card.bands):
        raise ModelError(
            f"The model knows the bands {', '.join(card.bands)}; site {site.name} has "
            f"{', '.join(bands)}. None is shared, and bands are matched by name: name "
            "them alike in the manifest."
        )
    return site.select_bands(bands)


def _add_synonyms(classes: ClassMap, table: Mapping[str, tuple[str, ...]]) -> ClassMap:
    unknown = [name for name in table if name not in classes.names]
    if unknown:
        raise UsageError(
            f"The synonyms name {', '.join(unknown)}, but the site's classes are "
            f"{', '.join(classes.names)}."
        )
    return replace(
        classes,
        classes=tuple(
            replace(item, source_names=table.get(item.name, item.source_names))
            for item in classes.classes
        ),
    )


def describe_transfer(
    site: Site,
    source: Source,
    settings: TrainSettings,
    what: Mapping[str, Any],
    *,
    reuse: ReuseOptions | None = None,
    command: str = "transfer",
) -> dict[str, Any]:
    """Return what decides the result of a transfer, as its run records it.

    Args:
        site: The target, as the new model reads it.
        source: The source model.
        settings: How each run is trained.
        what: What is run: modes, labels and draws.
        reuse: How the model is fitted to the site.
        command: `transfer` or `compare`.
    """
    record = {
        "command": command,
        "site": site.name,
        "fingerprint": site.fingerprint,
        "from": source.title,
        "from_sha256": source.sha256,
        **what,
        "settings": settings.to_json(),
    }
    if source.told:  # the same file, with other bands say, is another model
        record["from_card"] = dict(source.told)
    chosen = reuse.to_json() if reuse else {}
    return record | ({"reuse": chosen} if chosen else {})


def choose_pool(
    site: Site, tile_size: int, budget: Budget | None, *, draw: int
) -> LabelPool:
    """Return the labels of a budget, or all of the training part."""
    if budget is None:
        return open_pool(site, tile_size)
    return draw_pool(site, tile_size, budget, draw=draw)
