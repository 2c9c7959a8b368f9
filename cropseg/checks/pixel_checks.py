"""What the pixels of a site hold: too little, always the same, or the same twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cropseg.checks.duplicates import list_overlaps
from cropseg.checks.findings import Finding
from cropseg.checks.inspection import Inspection

_MUCH_NODATA: Final = 0.5
_LARGE_OVERLAP: Final = 0.01
_COPY_SHARE: Final = 0.9
"""Of two scenes that show as much of the same ground, one is a copy."""
_SLACK: Final = 1.5
"""Shares of content are counted on a sample, those of the ground are exact."""
_EXTREME: Final = 1e30
"""Beyond this no sensor measures, and sums of squares may overflow."""
_USUAL_NODATA: Final = {-99999.0, -32768.0, -32767.0, -9999.0, -999.0}
"""Lowest values that mostly stand for no data."""


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
    yield from _check_nodata(scan)


def has_extremes(scan: Inspection) -> bool:
    """Whether a band has values that nothing can be computed from."""
    ends = [end for band in scan.band_reports for end in (band.lowest, band.highest)]
    return any(abs(end) > _EXTREME for end in ends)


def _check_nodata(scan: Inspection) -> Iterator[Finding]:
    """Find numbers that stand for no data, and are read as values."""
    found: dict[float, list[str]] = {}
    for band in scan.band_reports:
        for end in dict.fromkeys((band.lowest, band.highest)):
            if abs(end) > _EXTREME or (end == band.lowest and end in _USUAL_NODATA):
                found.setdefault(end, []).append(band.name)
    if found:
        listed = "; ".join(f"{end:g} in {', '.join(on)}" for end, on in found.items())
        yield Finding(
            level="error" if has_extremes(scan) else "warning",
            code="nodata-undeclared",
            message=f"Values that mostly mean no data are read as data: {listed}.",
            remedy="Name the number as `nodata` of the scene.",
            path=str(scan.site.manifest_path),
        )


def check_content(scan: Inspection) -> Iterator[Finding]:
    """Check for content that is there twice, and scenes that overlap."""
    names = [scene.name for scene in scan.site.scenes]
    overlaps = {
        (overlap.scene_a, overlap.scene_b): max(overlap.share_a, overlap.share_b)
        for overlap in list_overlaps([scene.grid for scene in scan.site.scenes])
    }
    for shared in scan.content.list_shared():
        leaks = shared.num_train_test > 0
        share = max(shared.share_a, shared.share_b)
        overlap = overlaps.get((shared.scene_a, shared.scene_b), 0.0)
        if not leaks and share <= _SLACK * overlap and overlap < _COPY_SHARE:
            continue  # two cuts of one image overlap: that is said below
        where = f"{names[shared.scene_a]} and {names[shared.scene_b]}"
        whole, remedy = "the smaller", "Remove the copy from `scenes`."
        if shared.scene_a == shared.scene_b:
            where, whole = f"two places of {names[shared.scene_a]}", "it"
            remedy = "Look where the image repeats itself, and cut the copy off."
        yield Finding(
            level="error" if leaks else "warning",
            code="content-in-train-and-test" if leaks else "content-twice",
            message=f"The same pixels are in {where} ({_write_share(share)} of {whole})"
            + (", and some of them in train and in test." if leaks else "."),
            remedy=remedy,
            path=str(scan.site.scenes[shared.scene_b].image_path),
        )
    for (scene_a, scene_b), share in overlaps.items():
        if share > _LARGE_OVERLAP:
            yield Finding(
                level="note",
                code="scenes-overlap",
                message=f"{names[scene_a]} and {names[scene_b]} show the same ground "
                f"({share:.0%} of the smaller), so it counts twice.",
            )


def _write_share(share: float) -> str:
    return f"{share:.0%}" if share > _LARGE_OVERLAP else "under 1%"
