"""Which seed of a split brings every class into every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.sites.split import SQUARE, BlockSplit, locate_blocks

NUM_SEEDS: Final = 1000
"""Seeds that are tried, from 0."""
MIN_PIXELS: Final = 100
"""How many pixels of a class make it present in a part."""

ClassPixels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SeedSuggestion:
    """What `suggest_seed` found."""

    seed: int | None
    """The smallest seed with which every class that can be is in every part, or None
    where no seed does it."""
    too_rare: tuple[int, ...]
    """Ids of classes that no seed brings into every part: too few blocks or pixels.
    They were left out of the search."""


def suggest_seed(
    block_counts: Mapping[int, ClassPixels],
    split: BlockSplit,
    *,
    min_pixels: int = MIN_PIXELS,
) -> SeedSuggestion:
    """Find a seed with which every class is in train, val and test.

    Parts that get no block, as their share is 0 or tiny, are left out. Pixels that a
    gap takes are not looked at: they depend on where in a block a class lies.

    Args:
        block_counts: For each block, as numbered by `index_blocks`, the labelled
            pixels of every class, (classes,), in whatever part.
        split: The split. All but its seed stays.
        min_pixels: How many pixels of a class make it present in a part.

    Returns:
        The seed, and the classes that no seed helps.
    """
    counts = np.array(list(block_counts.values()), "int64")
    counts = counts.reshape(len(block_counts), -1)
    rows, cols = locate_blocks(np.array(list(block_counts), "int64"))
    places = list(zip(rows.tolist(), cols.tolist(), strict=True))
    wanted = _list_parts(split)
    num_blocks = (counts > 0).sum(axis=0)
    is_rare = num_blocks < len(wanted)
    is_rare |= counts.sum(axis=0) < min_pixels * len(wanted)
    holders = []
    # Rarest first: they rule out most seeds with least work.
    for class_id in np.argsort(num_blocks, kind="stable").tolist():
        if not is_rare[class_id]:
            blocks = np.flatnonzero(counts[:, class_id])
            pixels = counts[blocks, class_id].tolist()
            named = (places[block] for block in blocks.tolist())
            holders.append(list(zip(named, pixels, strict=True)))
    too_rare = tuple(np.flatnonzero(is_rare).tolist())
    for seed in range(NUM_SEEDS):
        tried = replace(split, seed=seed)
        missing = dict.fromkeys(wanted, min_pixels)
        if all(_reaches_all(tried, blocks, missing) for blocks in holders):
            return SeedSuggestion(seed=seed, too_rare=too_rare)
    return SeedSuggestion(seed=None, too_rare=too_rare)


def _list_parts(split: BlockSplit) -> set[int]:
    """Return the parts that get blocks: a small share may get none."""
    side = range(SQUARE)
    return {split.choose_part(row=row, col=col) for row in side for col in side}


def _reaches_all(
    split: BlockSplit,
    blocks: Sequence[tuple[tuple[int, int], int]],
    min_pixels: Mapping[int, int],
) -> bool:
    """Tell whether a class of these blocks and pixels has enough in every part."""
    missing = dict(min_pixels)
    for (row, col), pixels in blocks:
        part = split.choose_part(row=row, col=col)
        if part in missing:
            missing[part] -= pixels
            if missing[part] <= 0:
                del missing[part]
                if not missing:
                    return True
    return False
