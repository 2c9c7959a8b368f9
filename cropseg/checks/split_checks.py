"""Whether a split can be trained and tested on, and keeps train and test apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from cropseg.checks.findings import Finding
from cropseg.checks.inspection import Inspection
from cropseg.checks.label_checks import write_metres
from cropseg.checks.seeds import MIN_PIXELS, suggest_seed
from cropseg.checks.separation import Separation
from cropseg.errors import DataError
from cropseg.sites.grid import Grid
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, BlockSplit, FoldSplit
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
        findings.append(Finding.from_error(error, "not-trainable", site.manifest_path))
    findings += _check_scored_parts(site, scan)
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


def _check_scored_parts(site: Site, scan: Inspection) -> Iterator[Finding]:
    """Find classes that val or test lacks, or of which it has next to nothing."""
    pixels = dict(zip(PARTS, scan.survey.class_pixels.tolist(), strict=True))
    if not any(pixels["val"]) and _has_val(site):
        yield Finding(
            level="note",
            code="val-empty",
            message="The val part has no labelled pixel: a training keeps its last "
            "epoch, not its best.",
        )
    for part in ("val", "test"):
        if not any(pixels[part]):  # a test part without labels is an error already
            continue
        counts = list(zip(site.classes.names, pixels[part], strict=True))
        absent = [name for name, count in counts if not count]
        if absent:
            yield Finding(
                level="note",
                code=f"{part}-classes-absent",
                message=f"The {part} part has no pixel of {', '.join(absent)}: no "
                "score there.",
                remedy=_suggest_split(site, scan),
            )
        rare = [f"{name} ({n:,})" for name, n in counts if 0 < n < MIN_PIXELS]
        if rare and part == "test":
            yield Finding(
                level="note",
                code="test-classes-rare",
                message=f"Few test pixels of {', '.join(rare)}: chance makes much of "
                "the score.",
                remedy="Label more, or choose another split.",
            )


def _has_val(site: Site) -> bool:
    """Whether the split means to have a val part."""
    if isinstance(site.split, BlockSplit):
        return site.split.val > 0
    return not isinstance(site.split, FoldSplit)


def check_classes(site: Site, scan: Inspection) -> Iterator[Finding]:
    """Find classes that no label of a site without a split has."""
    pixels = scan.class_pixels.sum(axis=0).tolist()
    counts = zip(site.classes.names, pixels, strict=True)
    absent = [name for name, count in counts if not count]
    if absent and any(pixels):
        yield Finding(
            level="note",
            code="classes-absent",
            message=f"No pixel has the label {', '.join(absent)}.",
            remedy="See whether `values` of the classes are those of the file.",
            path=str(site.manifest_path),
        )


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
        if site.split.gap_m:
            return rest.strip() or "The gap takes what is there; use a smaller `gap_m`."
        return rest.strip() or "Fields that cross parts lose it; use larger blocks."
    # A gap, and fields that cross parts, take pixels that were counted.
    is_sure = not site.split.gap_m and not site.vector_sources
    verb = "brings" if is_sure else "may bring"
    return f"`seed: {found.seed}` {verb} {who} into every part.{rest}"


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
