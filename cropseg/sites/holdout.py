"""Holding out a part of a budget: labels that choose the best epoch, not the weights.

Someone with four labelled tiles has no validation blocks. What is held out of the four
is paid for: nothing is fitted to it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cropseg.errors import DataError
from cropseg.sites.budget import LabelPool, take_fields
from cropseg.sites.statistics import survey_site

_SHARE = 4
"""One of so many tiles, or fields, is held out."""

_LEAST = 2


def hold_out(pool: LabelPool) -> tuple[LabelPool, LabelPool]:
    """Part a pool of labels: a quarter of its tiles, or fields, is held out.

    Which ones follows from the pool alone, so it is the same for all modes.

    Args:
        pool: The labels that a run may see.

    Returns:
        The labels to fit on, and those held out: at least a tile, or field, of each.

    Raises:
        DataError: If the pool has one tile or field.
    """
    if pool.fields is not None:
        return _hold_out_fields(pool)
    count = len(pool.tiles)
    if count < _LEAST:
        raise _refuse(f"{count} tile")
    # The last tile stays: it may be visible in part, which the pool says of its last.
    held = set(_choose(count - 1, max(1, count // _SHARE)))
    fitted = tuple(tile for i, tile in enumerate(pool.tiles) if i not in held)
    kept = tuple(tile for i, tile in enumerate(pool.tiles) if i in held)
    return replace(pool, tiles=fitted), replace(pool, tiles=kept, last_rows=None)


def _hold_out_fields(pool: LabelPool) -> tuple[LabelPool, LabelPool]:
    site, visible = pool.site, pool.fields or frozenset()
    survey = survey_site(site, pool.tile_size)
    fields = [field for field in survey.fields if field.key in visible]
    if len(fields) < _LEAST:
        raise _refuse(f"{len(fields)} field")
    held = set(_choose(len(fields), max(1, len(fields) // _SHARE)))
    fitted = [field for i, field in enumerate(fields) if i not in held]
    kept = [field for i, field in enumerate(fields) if i in held]
    return take_fields(site, survey, fitted), take_fields(site, survey, kept)


def _choose(count: int, wanted: int) -> list[int]:
    order = np.random.default_rng([count, wanted]).permutation(count)
    return list(map(int, order[:wanted]))


def _refuse(has: str) -> DataError:
    return DataError(
        f"With --validation budget a quarter of the labels is held out, but a budget "
        f"has {has}; expected {_LEAST} at least. Ask for more labels, or give "
        "--validation none."
    )
