"""Whether a split can be trained and tested on, and keeps train and test apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from cropseg.checks.findings import Finding
from cropseg.checks.inspection import Inspection
from cropseg.checks.label_checks import write_metres
from cropseg.checks.seeds import suggest_seed
from cropseg.checks.separation import Separation
from cropseg.errors import DataError
from cropseg.sites.grid import Grid
from cropseg.sites.site import Site
from cropseg.sites.split import (
    PARTS,
    BlockSplit,
)
from cropseg.sites.statistics import require_trainable

_RARE_SHARE: Final = 0.001
_RARE_PIXELS: Final = 200
_FEW_TEST_BLOCKS: Final = 8


def check_split(site: Site, scan: Inspection) -> list[Finding]:
    """Find parts without labels, and classes that are absent or rare in a part."""
    survey, findings = scan.survey, []
    try:
        require_trainable(site, survey)
    except DataError as error:
        findings.append(
            Finding(
                level="error",
                code="not-trainable",
                message=str(error),
                path=str(site.manifest_path),
            )
        )
    for part, pixels in zip(PARTS, survey.class_pixels.tolist(), strict=True):
        names = zip(site.classes.names, pixels, strict=True)
        absent = [name for name, count in names if not count]
        if part == "train" or not absent:
            continue
        whole = len(absent) == len(pixels)
        findings.append(
            Finding(
                level="note",
                code=f"{part}-empty" if whole else f"{part}-classes-absent",
                message=(
                    f"The {part} part has no labelled pixel."
                    if whole
                    else f"The {part} part has no pixel of {', '.join(absent)}: no "
                    "score there."
                ),
                remedy="" if whole else _suggest_split(site, scan),
            )
        )
    train = survey.class_pixels[PARTS.index("train")]
    rare = [
        f"{name} ({count:,})"
        for name, count in zip(site.classes.names, train.tolist(), strict=True)
        if 0 < count < max(_RARE_PIXELS, _RARE_SHARE * train.sum())
    ]
    if rare:
        findings.append(
            Finding(
                level="note",
                code="classes-rare",
                message=f"Few training pixels of {', '.join(rare)}.",
                remedy="Label more, or join them with a class that is like them.",
            )
        )
    test = PARTS.index("test")
    num_test = sum(bool(counts[test].any()) for counts in scan.block_counts.values())
    if 0 < num_test < _FEW_TEST_BLOCKS:
        findings.append(
            Finding(
                level="note",
                code="few-test-blocks",
                message=f"The test part has {num_test} block(s); below "
                f"{_FEW_TEST_BLOCKS} a score has no interval.",
                remedy="Use smaller blocks, or `folds` instead of shares."
                if isinstance(site.split, BlockSplit)
                else "Use smaller blocks.",
            )
        )
    return findings


def _suggest_split(site: Site, scan: Inspection) -> str:
    """Say how every class gets into every part."""
    if not isinstance(site.split, BlockSplit):
        return "Move the split's borders, or use other blocks."
    counts = {block: pixels.sum(axis=0) for block, pixels in scan.block_counts.items()}
    found = suggest_seed(counts, site.split)
    names = ", ".join(site.classes.names[class_id] for class_id in found.too_rare)
    who = f"every class but {names}" if names else "every class"
    rest = f" Too few blocks have {names}; use smaller ones." if names else ""
    if found.seed is None:
        return f"No seed brings {who} into every part; use smaller blocks."
    if found.seed == site.split.seed:
        return rest.strip() or "The gap takes what is there; use a smaller `gap_m`."
    return f"`seed: {found.seed}` brings {who} into every part.{rest}"


def check_separation(
    separation: Separation, whose: str, grid: Grid
) -> Iterator[Finding]:
    """Tell how far train keeps from test, or that both lie on the same ground."""
    if separation.num_shared_pixels:
        pairs = "; ".join(f"{a} and {b}" for a, b in separation.shared_scenes)
        yield Finding(
            level="error",
            code="train-test-overlap",
            message=f"{separation.num_shared_pixels:,} training pixels of {whose} lie "
            f"on test pixels ({pairs}).",
            remedy="Remove one of the scenes, or choose a split by which the same "
            "ground is in the same part. Offset pixels need a `gap_m` of their side.",
        )
    elif math.isfinite(separation.distance_m):
        yield Finding(
            level="note",
            code="train-test-distance",
            message=f"Training pixels of {whose} keep "
            f"{write_metres(separation.distance_m)} "
            f"({separation.distance_m / grid.gsd_m:,.1f} pixels) from test pixels.",
        )
