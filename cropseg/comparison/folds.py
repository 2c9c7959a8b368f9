"""How many folds a comparison has. No Keras."""

from __future__ import annotations

import logging

from cropseg.comparison.design import Design
from cropseg.errors import DataError
from cropseg.models.card import Card
from cropseg.sites.folds import take_fold
from cropseg.sites.site import Site
from cropseg.sites.split import BlockSplit, FoldSplit
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.transfer.target import ReuseOptions, fit_site

FEW_BLOCKS = 20
"""Below so many test blocks a comparison has folds, if nobody says otherwise."""

NUM_FOLDS = 5
"""How many it has then; as many as the manifest's split has, if it is one of folds."""

_log = logging.getLogger(__name__)


def choose_folds(
    site: Site, card: Card, reuse: ReuseOptions, design: Design
) -> int | None:
    """Return how many folds a site is compared in; None for its own test part.

    Args:
        site: The target site.
        card: Card of the model to start from.
        reuse: How the model is fitted to the site.
        design: What is compared.

    Raises:
        DataError: If folds are asked for, and the site is not split by blocks, or a
            fold cannot be trained on or tested.
    """
    if design.folds is None:
        return None
    if isinstance(design.folds, int):
        _check_folds(site, card, reuse, design.folds)
        return design.folds
    split = site.require_split()
    if not isinstance(split, BlockSplit | FoldSplit) or design.validation == "oracle":
        return None
    survey = survey_site(fit_site(site, card, reuse), card.tile_size)
    if survey.num_test_blocks >= FEW_BLOCKS:
        return None
    folds = split.folds if isinstance(split, FoldSplit) else NUM_FOLDS
    try:
        _check_folds(site, card, reuse, folds)
    except DataError as error:
        _log.warning(
            "%s has %d test blocks, and folds are not possible, so that the result "
            "says little beyond these blocks: %s",
            site.name,
            survey.num_test_blocks,
            error,
        )
        return None
    return folds


def _check_folds(site: Site, card: Card, reuse: ReuseOptions, folds: int) -> None:
    for fold in range(folds):
        target = fit_site(take_fold(site, folds=folds, fold=fold), card, reuse)
        try:
            require_trainable(target, survey_site(target, card.tile_size))
        except DataError as error:
            raise DataError(
                f"Fold {fold} of {folds} cannot be used. {error} Or give --folds none."
            ) from error
