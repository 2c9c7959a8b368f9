"""Checking a site before a minute is spent on training.

Every block of every file is read once. All that is found is collected; nothing is
raised but what makes reading impossible.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from cropseg.checks.file_checks import check_files, describe_files
from cropseg.checks.findings import Finding, sort_findings
from cropseg.checks.inspection import Inspection
from cropseg.checks.label_checks import check_fields, check_labels
from cropseg.checks.pixel_checks import check_content, check_pixels, has_extremes
from cropseg.checks.reference import Reference, compare_to_reference
from cropseg.checks.report import CheckReport
from cropseg.checks.separation import measure_separation
from cropseg.checks.split_checks import (
    check_classes,
    check_separation,
    check_split,
)
from cropseg.errors import CropsegError, DataError
from cropseg.sites.site import Site, open_site
from cropseg.sites.split import NoSplit


def check_manifest(
    manifest_path: str | Path,
    *,
    tile_size: int = 256,
    reference: Reference | None = None,
    allow_remote: Collection[str] = (),
) -> CheckReport:
    """Check a site whose manifest may be wrong.

    Args:
        manifest_path: The manifest.
        tile_size: Side of a training tile, in pixels.
        reference: What the site is to be compared to.
        allow_remote: Hosts that images and label rasters may be read from.

    Returns:
        The report. What stands in the way of opening the site is its only finding.

    Raises:
        DataFileNotFoundError: If there is no manifest.
        UnsafeFileError: If a path is refused as unsafe.
    """
    try:
        site = open_site(manifest_path, allow_remote=allow_remote)
    except DataError as error:
        if not Path(manifest_path).is_file():
            raise
        finding = Finding.from_error(error, "cannot-open", manifest_path)
        return CheckReport(site=None, findings=(finding,))
    return check_site(site, tile_size=tile_size, reference=reference)


def check_site(
    site: Site, *, tile_size: int = 256, reference: Reference | None = None
) -> CheckReport:
    """Read every pixel of a site and report what stands in the way of a training.

    Args:
        site: The site.
        tile_size: Side of a training tile, in pixels.
        reference: What the site is to be compared to.

    Returns:
        The report. It collects problems and raises nothing.
    """
    findings = check_files(site)
    has_split = site.split is not None
    if not has_split:
        findings.append(
            Finding(
                level="warning",
                code="no-split",
                message="The manifest has no `split`.",
                remedy="Add one to train on this site or to test a model on it.",
                path=str(site.manifest_path),
            )
        )
    scan = Inspection(site if has_split else replace(site, split=NoSplit()), tile_size)
    report = CheckReport(
        site=site, findings=(), files=tuple(describe_files(site)), tile_size=tile_size
    )
    try:
        scan.run()
    except CropsegError as error:
        findings.append(Finding.from_error(error, "not-readable", site.manifest_path))
        return replace(report, findings=sort_findings(findings))
    findings += [*check_pixels(scan), *check_labels(scan)]
    findings += [*check_content(scan), *check_fields(site)]
    report = replace(
        report,
        bands=scan.band_reports,
        survey=scan.survey,
        class_pixels=scan.class_pixels.sum(axis=0),
        looks=scan.looks.finish(),
    )
    if has_split:
        separation = measure_separation(scan.scenes, scan.scenes)
        findings += [
            *check_split(site, scan),
            *check_separation(separation, "this site", scan.scenes[0].grid),
        ]
        report = replace(report, separation=separation, block_counts=scan.block_counts)
    else:
        findings += check_classes(site, scan)
    if reference is not None and report.bands and not has_extremes(scan):
        distance, found = compare_to_reference(reference, site, scan)
        report = replace(report, distance=distance)
        findings += found
    return replace(report, findings=sort_findings(findings))
