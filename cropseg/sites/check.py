"""Checking a site before a minute is spent on training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from cropseg.errors import DataError
from cropseg.sites.site import Site, match_classes
from cropseg.sites.split import PARTS, NoSplit
from cropseg.sites.statistics import Survey, require_trainable, survey_site


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person should know of a site."""

    level: str
    """`error`, `warning` or `note`."""
    code: str
    """A short name that does not change."""
    message: str
    """What was found."""
    remedy: str = ""
    """What to do."""
    path: str = ""
    """The file that it was found in."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check of a site found."""

    site: Site
    """The site."""
    survey: Survey | None
    """Its survey, or None where it could not be read or has no split."""
    findings: tuple[Finding, ...]
    """All findings, errors first."""

    @property
    def is_ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        document: dict[str, Any] = {
            "ok": self.is_ok,
            "findings": [asdict(finding) for finding in self.findings],
            "site": self.site.name,
            "bands": list(self.site.bands),
            "gsd_m": self.site.gsd_m,
            "scenes": [
                {
                    "image": str(scene.image_path),
                    "rows": scene.grid.height,
                    "columns": scene.grid.width,
                    "crs": str(scene.grid.crs),
                }
                for scene in self.site.scenes
            ],
        }
        if self.survey:
            document["nodata_share"] = self.survey.nodata_share
            document["class_pixels"] = {
                part: dict(zip(self.site.classes.names, pixels, strict=True))
                for part, pixels in zip(
                    PARTS, self.survey.class_pixels.tolist(), strict=True
                )
            }
        return document


def check_site(
    site: Site,
    *,
    tile_size: int = 256,
    model_classes: Collection[str] | None = None,
    model_name: str = "the model",
) -> CheckReport:
    """Read every pixel of a site and report what stands in the way of a training.

    Args:
        site: The site.
        tile_size: Side of a training tile, in pixels.
        model_classes: Classes of a model that is to be transferred to the site.
        model_name: What to call it.

    Returns:
        The report. It collects problems and raises nothing.
    """
    findings: list[Finding] = []
    survey = None
    if site.split is None:
        findings.append(
            Finding(
                level="warning",
                code="no-split",
                message="The manifest has no `split`.",
                remedy="Add one to train on this site or to test a model on it.",
                path=str(site.manifest_path),
            )
        )
    try:
        if site.split is None:
            survey_site(replace(site, split=NoSplit()), tile_size)
        else:
            survey = survey_site(site, tile_size)
            findings += _check_parts(site, survey)
            require_trainable(site, survey)
    except DataError as error:
        findings.append(
            Finding(
                level="error",
                code="not-trainable" if site.split else "not-readable",
                message=str(error),
                path=str(site.manifest_path),
            )
        )
    if model_classes is not None:
        findings += _compare_classes(site, model_classes, model_name)
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.level))
    return CheckReport(site=site, survey=survey, findings=tuple(findings))


def _check_parts(site: Site, survey: Survey) -> list[Finding]:
    findings = []
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
                    else f"The {part} part has no pixel of {', '.join(absent)}, so "
                    "they have no score there."
                ),
                remedy="" if whole else "Change the split's `seed` or its blocks.",
            )
        )
    return findings


def _compare_classes(
    site: Site, model_classes: Collection[str], model_name: str
) -> list[Finding]:
    matches = match_classes(model_classes, site.classes)
    used = {name for names in matches.values() for name in names}
    groups = (
        ("classes-shared", "Shared", list(matches)),
        (
            "classes-new",
            "New here",
            [n for n in site.classes.names if n not in matches],
        ),
        ("classes-gone", "Not here", [n for n in model_classes if n not in used]),
    )
    findings = [
        Finding(
            level="note",
            code=code,
            message=f"{title}, against {model_name}: {', '.join(names)}.",
        )
        for code, title, names in groups
        if names
    ]
    if not matches:
        findings.append(
            Finding(
                level="error",
                code="no-class-shared",
                message=f"No class is shared with {model_name}.",
                remedy="Name the classes alike, or list other names in `from`.",
            )
        )
    return findings
