"""Folds: each block of a site is for the test once.

Where few blocks can be tested on, one split says more of its blocks than of the site.
A fold is a copy of a site whose manifest asks for that fold, so that surveys, caches
and fingerprints tell folds apart by themselves.
"""

from __future__ import annotations

from dataclasses import replace

from cropseg.errors import DataError
from cropseg.sites.manifest import SplitEntry
from cropseg.sites.site import Site
from cropseg.sites.split import BlockSplit, FoldSplit


def take_fold(site: Site, *, folds: int, fold: int) -> Site:
    """Return a site with one fold of its blocks for the test, the others to train on.

    Blocks, gap and seed stay those of the manifest.

    Args:
        site: A site that is split by blocks.
        folds: Number of folds, 2 or more.
        fold: Which one is for the test, from 0.

    Raises:
        DataError: If the site is not split by blocks, or there is no such fold.
    """
    split = site.require_split()
    if not isinstance(split, BlockSplit | FoldSplit):
        raise DataError(
            f"Folds were asked for, but {site.manifest_path} is split by `regions`, "
            "which say what is for the test. Give --folds none, or split by blocks: "
            "`block_m` with `train`, `val` and `test`."
        )
    chosen = FoldSplit(
        block_m=split.block_m,
        gap_m=split.gap_m,
        folds=folds,
        fold=fold,
        seed=split.seed,
    )
    entry = SplitEntry(
        block_m=split.block_m,
        gap_m=split.gap_m,
        folds=folds,
        fold=fold,
        seed=split.seed,
    )
    manifest = site.manifest.model_copy(update={"split": entry})
    return replace(site, split=chosen, manifest=manifest)
