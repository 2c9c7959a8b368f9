"""Does a model fit a target site, and which labels may a run see? No Keras."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cropseg.errors import UsageError
from cropseg.files import hash_file
from cropseg.models.card import Card, fit_site_to_card, match_card_classes
from cropseg.sites.budget import Budget, LabelPool, draw_pool, open_pool
from cropseg.sites.site import Site
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.settings import TrainSettings

DEFAULT_EPOCHS = 6
"""Epochs of a transfer, where `train` has more."""

_FROM_MODEL = ("architecture", "encoder", "tile_size")


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


def prepare_target(site: Site, card: Card) -> Site:
    """Return the site with the model's bands, after checking that the two fit.

    Raises:
        ModelError: If bands, GSD or classes do not fit.
        DataError: If the site cannot be trained on.
    """
    site = fit_site_to_card(site, card)
    match_card_classes(card, site.classes)
    require_trainable(site, survey_site(site, card.tile_size))
    return site


def describe_transfer(
    site: Site,
    model_path: str | Path,
    settings: TrainSettings,
    what: Mapping[str, Any],
    *,
    command: str = "transfer",
) -> dict[str, Any]:
    """Return what decides the result of a transfer, as its run records it.

    Args:
        site: The target, with the model's bands.
        model_path: The source model.
        settings: How each run is trained.
        what: What is run: modes, labels and draws.
        command: `transfer` or `compare`.
    """
    return {
        "command": command,
        "site": site.name,
        "fingerprint": site.fingerprint,
        "from": str(model_path),
        "from_sha256": hash_file(Path(model_path)),
        **what,
        "settings": settings.to_json(),
    }


def choose_pool(
    site: Site, tile_size: int, budget: Budget | None, *, draw: int
) -> LabelPool:
    """Return the labels of a budget, or all of the training part."""
    if budget is None:
        return open_pool(site, tile_size)
    return draw_pool(site, tile_size, budget, draw=draw)
