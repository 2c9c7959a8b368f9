"""Budgets: how many labels of a site a run may see, and which ones.

A draw is one random order of the site's training tiles. A budget of n tiles takes
the first n of it, so that the labels of a small budget are among those of a
larger one of the same draw.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cropseg.errors import DataError, UsageError
from cropseg.sites.site import Site
from cropseg.sites.statistics import Survey, SurveyedTile, survey_site

UNITS = ("tiles",)
"""What a budget may be counted in."""

_MIN_LABELLED_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount of labels."""

    amount: int
    """How many."""
    unit: str = "tiles"
    """Of what; one of `UNITS`."""

    def __str__(self) -> str:
        """Return it as it is given on the command line."""
        return f"{self.amount}{self.unit}"


def parse_budget(text: str) -> Budget:
    """Read a budget as it is given on the command line.

    Raises:
        UsageError: If it is none.

    Example:
        >>> parse_budget("16tiles")
        Budget(amount=16, unit='tiles')
    """
    found = re.fullmatch(r"(\d+)([a-z]+)", text.strip())
    if not found or int(found[1]) < 1 or found[2] not in UNITS:
        raise UsageError(
            f"A budget is a whole number and a unit ({', '.join(UNITS)}), such as "
            f"4tiles; got {text!r}."
        )
    return Budget(amount=int(found[1]), unit=found[2])


def parse_budgets(texts: Sequence[str]) -> list[Budget]:
    """Read several budgets, and return them from the smallest to the largest.

    Raises:
        UsageError: If one is no budget.
    """
    return sorted(map(parse_budget, texts), key=lambda budget: budget.amount)


@dataclass(frozen=True, kw_only=True)
class LabelPool:
    """The labels that a run may see: whole training tiles of a site."""

    site: Site
    """The site."""
    tile_size: int
    """Side of a tile, in pixels."""
    tiles: tuple[SurveyedTile, ...]
    """The tiles whose training labels are visible."""

    @property
    def class_pixels(self) -> tuple[int, ...]:
        """Visible label pixels of each class."""
        return tuple(np.sum([t.train_pixels for t in self.tiles], axis=0).tolist())

    @property
    def classes_seen(self) -> tuple[str, ...]:
        """Names of the classes with a visible label pixel."""
        pairs = zip(self.site.classes.names, self.class_pixels, strict=True)
        return tuple(name for name, count in pairs if count)


def open_pool(site: Site, tile_size: int) -> LabelPool:
    """Return all training labels of a site."""
    survey = survey_site(site, tile_size)
    return LabelPool(site=site, tile_size=tile_size, tiles=survey.tiles)


def list_drawable_tiles(survey: Survey) -> list[SurveyedTile]:
    """Return the tiles that a budget may draw: those labelled on a quarter or more."""
    least = _MIN_LABELLED_SHARE * survey.tile_size**2
    return [tile for tile in survey.tiles if sum(tile.train_pixels) >= least]


def draw_pool(site: Site, tile_size: int, budget: Budget, *, draw: int) -> LabelPool:
    """Draw a budget of labels from the training part.

    Args:
        site: The site.
        tile_size: Side of a tile, in pixels.
        budget: How many labels.
        draw: Which draw, 0 or greater. Equal draws are nested over budgets.

    Returns:
        The labels drawn.

    Raises:
        DataError: If the training part has fewer tiles.
    """
    check_budgets([budget], site, tile_size)
    drawable = list_drawable_tiles(survey_site(site, tile_size))
    order = np.random.default_rng([draw, len(drawable)]).permutation(len(drawable))
    tiles = tuple(drawable[index] for index in order[: budget.amount])
    return LabelPool(site=site, tile_size=tile_size, tiles=tiles)


def check_budgets(budgets: Sequence[Budget], site: Site, tile_size: int) -> None:
    """Refuse budgets that are larger than the pool.

    Raises:
        DataError: If the training part has fewer tiles.
    """
    num_drawable = len(list_drawable_tiles(survey_site(site, tile_size)))
    too_large = [str(budget) for budget in budgets if budget.amount > num_drawable]
    if too_large:
        raise DataError(
            f"A budget of {', '.join(too_large)} was asked for, but the training part "
            f"of {site.name} has {num_drawable} tiles with labels on at least "
            f"{_MIN_LABELLED_SHARE:.0%} of their pixels. Ask for fewer."
        )
