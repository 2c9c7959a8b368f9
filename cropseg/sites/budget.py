"""Budgets: how many labels of a site a run may see, and which ones.

A draw is one random order of the site's training tiles, or fields. A budget takes
the first of it, so that the labels of a small budget are among those of a larger
one of the same draw and unit.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, UsageError
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.labels import FieldLabels
from cropseg.sites.scene import SceneReader
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import (
    FieldKey,
    Survey,
    SurveyedField,
    SurveyedTile,
    survey_site,
)
from cropseg.sites.vector import NO_FIELD

UNITS = ("tiles", "fields", "ha")
"""What a budget may be counted in."""

_MIN_LABELLED_SHARE = 0.25
_M2_PER_HA = 10_000
_TRAIN = PARTS.index("train")


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
    """Read several budgets of one unit, and return them from small to large.

    Raises:
        UsageError: If one is no budget, or they have several units.
    """
    budgets = sorted(map(parse_budget, texts), key=lambda budget: budget.amount)
    units = sorted({budget.unit for budget in budgets})
    if len(units) > 1:
        raise UsageError(
            f"Budgets in {' and '.join(units)} cannot be compared; give all in one "
            "unit."
        )
    return budgets


@dataclass(frozen=True, kw_only=True)
class LabelPool:
    """The labels that a run may see."""

    site: Site
    """The site."""
    tile_size: int
    """Side of a tile, in pixels."""
    tiles: tuple[SurveyedTile, ...]
    """The tiles with visible training labels, which alone are counted in them."""
    fields: frozenset[FieldKey] | None = None
    """The fields that are visible, or None for all labels of the tiles."""
    last_rows: int | None = None
    """Rows of the last tile that are visible, or None for all."""

    @property
    def class_pixels(self) -> tuple[int, ...]:
        """Visible label pixels of each class."""
        return tuple(np.sum([t.train_pixels for t in self.tiles], axis=0).tolist())

    @property
    def classes_seen(self) -> tuple[str, ...]:
        """Names of the classes with a visible label pixel."""
        pairs = zip(self.site.classes.names, self.class_pixels, strict=True)
        return tuple(name for name, count in pairs if count)

    @property
    def num_fields(self) -> int | None:
        """Number of fields with a visible label pixel; None where none is known."""
        if not self.site.vector_sources:
            return None
        return len({key for tile in self.tiles for key, _ in tile.train_fields})

    def read_visible(
        self, reader: SceneReader, scene_index: int, window: Window
    ) -> npt.NDArray[np.bool_]:
        """Say for every pixel of a window whether its label may be seen.

        Args:
            reader: The open scene.
            scene_index: Its position in the site.
            window: What to look at; it may reach over the edge.

        Returns:
            (window.height, window.width), True in the tiles and fields of the pool
            and in the training part.
        """
        visible = np.zeros((window.height, window.width), np.bool_)
        for cell in self._find_cells(scene_index, window):
            visible[cell.intersect(window).slices_in(window)] = True
        scene = self.site.scenes[scene_index]
        visible &= self.site.require_split().read_parts(scene.grid, window) == _TRAIN
        if self.fields is not None and visible.any():
            visible &= self._mark_fields(reader, scene_index, window)
        return visible

    def _find_cells(self, scene_index: int, window: Window) -> list[Window]:
        """Return the visible parts of tiles that reach into a window."""
        scenes, rows, row_ends, cols, col_ends = self._bounds
        is_near = (
            (scenes == scene_index)
            & (rows < window.row_end)
            & (row_ends > window.row)
            & (cols < window.col_end)
            & (col_ends > window.col)
        )
        return [self._get_cell(int(index)) for index in np.flatnonzero(is_near)]

    def _get_cell(self, index: int) -> Window:
        cell = self.tiles[index].window
        if index == len(self.tiles) - 1 and self.last_rows is not None:
            return replace(cell, height=self.last_rows)
        return cell

    @functools.cached_property
    def _bounds(self) -> npt.NDArray[np.int64]:
        """Scene, first and end row, first and end column of each tile, (5, tiles)."""
        cells = [self._get_cell(index) for index in range(len(self.tiles))]
        bounds = [
            (tile.scene, cell.row, cell.row_end, cell.col, cell.col_end)
            for tile, cell in zip(self.tiles, cells, strict=True)
        ]
        return np.array(bounds, np.int64).reshape(-1, 5).T

    def _mark_fields(
        self, reader: SceneReader, scene_index: int, window: Window
    ) -> npt.NDArray[np.bool_]:
        labels = self.site.scenes[scene_index].labels
        assert isinstance(labels, FieldLabels)  # noqa: S101 - only they have fields
        number = self.site.vector_sources.index(labels.source)
        ids = [field_id for source, field_id in self.fields or () if source == number]
        fields = reader.read_fields(window)
        return (fields != NO_FIELD) & np.isin(fields, ids)


def open_pool(site: Site, tile_size: int) -> LabelPool:
    """Return all training labels of a site."""
    survey = survey_site(site, tile_size)
    return LabelPool(site=site, tile_size=tile_size, tiles=survey.tiles)


def list_drawable_tiles(survey: Survey) -> list[SurveyedTile]:
    """Return the tiles that a budget may draw: those labelled on a quarter or more."""
    least = _MIN_LABELLED_SHARE * survey.tile_size**2
    return [tile for tile in survey.tiles if sum(tile.train_pixels) >= least]


def list_drawable_fields(survey: Survey) -> list[SurveyedField]:
    """Return the fields that a budget may draw: those of the training part."""
    return [field for field in survey.fields if field.pixels[_TRAIN]]


def draw_pool(site: Site, tile_size: int, budget: Budget, *, draw: int) -> LabelPool:
    """Draw a budget of labels from the training part.

    A budget in ha takes whole fields until it is reached, the last one going over
    it; or, where labels are pixels, tiles, of which the last is visible down to the
    row that reaches it.

    Args:
        site: The site.
        tile_size: Side of a tile, in pixels.
        budget: How many labels.
        draw: Which draw, 0 or greater. Equal draws are nested over budgets.

    Returns:
        The labels drawn.

    Raises:
        DataError: If the training part has fewer labels.
    """
    check_budgets([budget], site, tile_size)
    survey = survey_site(site, tile_size)
    if budget.unit == "tiles" or (budget.unit == "ha" and not survey.fields):
        tiles = list_drawable_tiles(survey)
        order = np.random.default_rng([draw, len(tiles)]).permutation(len(tiles))
        shuffled = [tiles[index] for index in order]
        if budget.unit == "tiles":
            chosen = tuple(shuffled[: budget.amount])
            return LabelPool(site=site, tile_size=tile_size, tiles=chosen)
        return _take_area(site, survey, shuffled, _count_pixels(budget, survey))
    fields = list_drawable_fields(survey)
    order = np.random.default_rng([draw, len(fields)]).permutation(len(fields))
    count = budget.amount
    if budget.unit == "ha":
        areas = np.cumsum([fields[index].pixels[_TRAIN] for index in order])
        count = int(np.searchsorted(areas, _count_pixels(budget, survey))) + 1
    return take_fields(site, survey, [fields[index] for index in order[:count]])


def _count_pixels(budget: Budget, survey: Survey) -> float:
    """Return how many pixels a budget in ha is."""
    return budget.amount * _M2_PER_HA / survey.pixel_m2


def take_fields(
    site: Site, survey: Survey, fields: Sequence[SurveyedField]
) -> LabelPool:
    """Return a pool of fields: their pixels in the tiles that they touch."""
    classes = {field.key: field.class_id for field in fields}
    tiles = []
    for tile in survey.tiles:
        mine = tuple(item for item in tile.train_fields if item[0] in classes)
        if mine:
            pixels = np.zeros(len(site.classes), np.int64)
            for key, count in mine:
                pixels[classes[key]] += count
            counts = tuple(pixels.tolist())
            tiles.append(replace(tile, train_pixels=counts, train_fields=mine))
    return LabelPool(
        site=site,
        tile_size=survey.tile_size,
        tiles=tuple(tiles),
        fields=frozenset(classes),
    )


def _take_area(
    site: Site, survey: Survey, tiles: Sequence[SurveyedTile], pixels: float
) -> LabelPool:
    """Return whole tiles, and of the last one as many rows as `pixels` needs."""
    chosen: list[SurveyedTile] = []
    for tile in tiles:
        chosen.append(tile)
        missing = pixels - sum(sum(item.train_pixels) for item in chosen[:-1])
        if sum(tile.train_pixels) >= missing:
            break
    pool = LabelPool(site=site, tile_size=survey.tile_size, tiles=tuple(chosen))
    last = chosen[-1]
    with site.open_scene(site.scenes[last.scene]) as reader:
        _, labels = reader.read_valid_labels(last.window)
        labels[~pool.read_visible(reader, last.scene, last.window)] = IGNORE
    counts = np.cumsum((labels != IGNORE).sum(axis=1))
    rows = int(np.searchsorted(counts, missing)) + 1
    known = labels[:rows][labels[:rows] != IGNORE]
    seen = np.bincount(known, minlength=len(site.classes))
    cut = replace(last, train_pixels=tuple(seen.tolist()))
    return replace(pool, tiles=(*chosen[:-1], cut), last_rows=rows)


def check_budgets(budgets: Sequence[Budget], site: Site, tile_size: int) -> None:
    """Refuse budgets that are larger than the pool.

    Raises:
        DataError: If the training part has fewer tiles, fields or hectares, or no
            fields are known.
    """
    survey = survey_site(site, tile_size)
    tiles, fields = list_drawable_tiles(survey), list_drawable_fields(survey)
    ha_per_pixel = survey.pixel_m2 / _M2_PER_HA
    if survey.fields:
        area_ha = sum(field.pixels[_TRAIN] for field in fields) * ha_per_pixel
    else:
        area_ha = sum(sum(tile.train_pixels) for tile in tiles) * ha_per_pixel
    amounts = {"tiles": len(tiles), "fields": len(fields), "ha": area_ha}
    too_large = [b for b in budgets if b.amount > amounts[b.unit]]
    if not too_large:
        return
    unit = too_large[0].unit
    if unit == "fields" and not survey.fields:
        raise DataError(
            f"A budget of {too_large[0]} was asked for, but the labels of {site.name} "
            "are pixels and have no fields. Ask for tiles or ha, or label by polygons."
        )
    # Rounded down: of 3.97 ha a budget of 4 ha is refused.
    has = f"{math.floor(amounts[unit] * 10) / 10:,.{int(unit == 'ha')}f} {unit}"
    if unit == "tiles":
        has += f" with labels on at least {_MIN_LABELLED_SHARE:.0%} of their pixels"
    raise DataError(
        f"A budget of {', '.join(map(str, too_large))} was asked for, but the training "
        f"part of {site.name} has {has}. Ask for fewer."
    )
