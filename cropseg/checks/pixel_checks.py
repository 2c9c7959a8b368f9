"""What the pixels of a site hold: too little, always the same, or the same twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cropseg.checks.duplicates import list_overlaps
from cropseg.checks.findings import Finding
from cropseg.checks.inspection import Inspection

_MUCH_NODATA: Final = 0.5
_LARGE_OVERLAP: Final = 0.01


def check_pixels(scan: Inspection) -> Iterator[Finding]:
    """Check what the values of each scene and of each band look like."""
    for scene, valid in zip(scan.site.scenes, scan.valid_pixels.tolist(), strict=True):
        share = 1 - valid / (scene.grid.height * scene.grid.width)
        if share > _MUCH_NODATA:
            yield Finding(
                level="warning",
                code="much-nodata",
                message=f"{share:.0%} of {scene.name} has no data.",
                remedy="See whether `nodata` is right.",
                path=str(scene.image_path),
            )
    for band in scan.band_reports:
        if band.lowest == band.highest:
            yield Finding(
                level="warning",
                code="band-constant",
                message=f"Band {band.name} is {band.lowest:g} everywhere.",
                remedy="Leave it out of `bands`.",
            )


def check_content(scan: Inspection) -> Iterator[Finding]:
    """Check for content that is there twice, and scenes that overlap."""
    names = [scene.name for scene in scan.site.scenes]
    for shared in scan.content.list_shared():
        pair = f"{names[shared.scene_a]} and {names[shared.scene_b]}"
        if shared.scene_a == shared.scene_b:
            pair = f"two places of {names[shared.scene_a]}"
        leaks = shared.num_train_test > 0
        yield Finding(
            level="error" if leaks else "warning",
            code="content-in-train-and-test" if leaks else "content-twice",
            message=f"The same pixels are in {pair} "
            f"({max(shared.share_a, shared.share_b):.0%} of the smaller)"
            + (", and some of them in train and in test." if leaks else "."),
            remedy="Remove the copy from `scenes`.",
            path=str(scan.site.scenes[shared.scene_b].image_path),
        )
    for overlap in list_overlaps([scene.grid for scene in scan.site.scenes]):
        share = max(overlap.share_a, overlap.share_b)
        if share > _LARGE_OVERLAP:
            yield Finding(
                level="note",
                code="scenes-overlap",
                message=f"{names[overlap.scene_a]} and {names[overlap.scene_b]} show "
                f"the same ground ({share:.0%} of the smaller), so it counts twice.",
            )
