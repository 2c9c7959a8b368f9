"""What a mode forgot of area 1: scores on area 1's test part, before and after.

Before is the source model itself. Only classes that both areas have are scored, and
only labels of these; what is taken for any other class is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cropseg.comparison.summary.collect import Unit
from cropseg.errors import DataError
from cropseg.evaluation.scores import compute_scores
from cropseg.sites.site import Site

SOURCE_COUNTS: Final = "source.npz"
"""Name of the file with what area 1's own model scores there: `block_ids`, (blocks,),
and `counts`, (blocks, classes, classes + 1)."""


@dataclass(frozen=True, kw_only=True)
class SourceClasses:
    """The classes that both areas have, as area 1 knows them."""

    names: tuple[str, ...]
    """Their names in area 1, in its order."""
    counts: NDArray[np.int64]
    """Confusion counts of area 1's own model, (classes, classes + 1)."""


def read_source(
    folder: Path, source_site: Site | None, target_names: Sequence[str]
) -> SourceClasses | None:
    """Return what area 1's own model scores there, or None where it is not known.

    Args:
        folder: Folder of the comparison.
        source_site: The site of area 1.
        target_names: Class names of the target.
    """
    path = folder / SOURCE_COUNTS
    if source_site is None or not path.exists():
        return None
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        counts = file["counts"].sum(axis=0)
    names = source_site.classes.names
    shared = tuple(name for name in names if name in target_names)
    return SourceClasses(names=shared, counts=counts)


def score_source(counts: NDArray[np.integer], names: Sequence[str]) -> float | None:
    """Return the mean IoU over the shared classes, or None without a label pixel.

    Args:
        counts: Confusion counts on area 1, (classes, classes + 1), or with blocks in
            front.
        names: The shared classes, in the order of the rows.
    """
    try:
        return compute_scores(counts, names).miou
    except DataError:  # no pixel, or other classes than now
        return None


def describe_forgetting(
    units: Sequence[Unit], source: SourceClasses | None
) -> dict[str, Any] | None:
    """Return mean IoU on area 1 before and after a mode, and the difference.

    Args:
        units: What the mode has done.
        source: The classes, and what area 1's own model scores.

    Returns:
        `before`, `after` (the mean over all runs), `change` and `classes`; None where
        one of them was not measured.
    """
    if source is None:
        return None
    before = score_source(source.counts, source.names)
    runs = [arrays for unit in units for arrays in unit.arrays]
    after = [
        score_source(arrays["source_counts"], source.names)
        for arrays in runs
        if "source_counts" in arrays
    ]
    known = [score for score in after if score is not None]
    if before is None or len(known) < len(runs):
        return None
    mean = float(np.mean(known))
    return {
        "before": before,
        "after": mean,
        "change": mean - before,
        "classes": list(source.names),
    }
