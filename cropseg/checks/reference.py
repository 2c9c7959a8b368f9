"""How far a site is from another, or from the one of a model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace

from cropseg.checks.findings import Finding
from cropseg.checks.inspection import Inspection, list_labelled_scenes
from cropseg.checks.report import SiteDistance
from cropseg.checks.separation import measure_separation
from cropseg.checks.similarity import (
    BandSummary,
    compare_bands,
    compare_class_shares,
)
from cropseg.checks.split_checks import check_separation
from cropseg.sites.site import Site, match_classes
from cropseg.sites.split import PARTS


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Another site, or the model that was trained on it, that a site is compared to."""

    name: str
    """What to call it."""
    bands: tuple[BandSummary, ...]
    """Its bands."""
    class_pixels: Mapping[str, int]
    """Labelled training pixels of its classes."""
    gsd_m: float
    """Its GSD, in metres."""
    sensor: str | None = None
    """Its sensor."""
    units: str | None = None
    """Units of its values."""
    derived: Collection[str] = ()
    """Those of its bands that are computed from others, wherever it is applied."""
    site: Site | None = None
    """The site itself, where it is at hand."""


def describe_site(site: Site, tile_size: int) -> Reference:
    """Return what another site is compared to, after reading this one.

    Raises:
        DataError: If the site cannot be read or has no split.
    """
    site.require_split()
    scan = Inspection(site, tile_size)
    scan.run()
    correlations = scan.bands.correlate()
    train = scan.survey.class_pixels[PARTS.index("train")].tolist()
    return Reference(
        name=site.name,
        bands=tuple(
            band.summarize(correlations[band.name]) for band in scan.band_reports
        ),
        class_pixels=dict(zip(site.classes.names, train, strict=True)),
        gsd_m=site.gsd_m,
        sensor=site.manifest.sensor,
        units=site.manifest.units,
        derived=tuple(site.derived),
        site=site,
    )


def compare_to_reference(
    reference: Reference, site: Site, scan: Inspection
) -> tuple[SiteDistance, list[Finding]]:
    """Compare a site that was scanned to another one, in bands, classes and place."""
    correlations = scan.bands.correlate()
    bands = compare_bands(
        reference.bands,
        [band.summarize(correlations[band.name]) for band in scan.band_reports],
    )
    matches = match_classes(reference.class_pixels, site.classes)
    used = {name for names in matches.values() for name in names}
    ratio = site.gsd_m / reference.gsd_m
    pixels = scan.class_pixels.sum(axis=0).tolist()
    joined = _join_names(matches.values())
    here, there = Counter[str](), Counter[str]()
    for name, count in zip(site.classes.names, pixels, strict=True):
        first = matches.get(name, [name])[0]
        here[joined.get(first, first)] += count
    for name, count in reference.class_pixels.items():
        there[joined.get(name, name)] += count
    shares = None
    if sum(here.values()) and sum(there.values()):
        shares = compare_class_shares(there, here)
    distance = SiteDistance(
        reference=reference.name,
        gsd_ratio=ratio,
        bands=bands,
        class_shares=shares,
        shared=tuple(matches),
        new=tuple(name for name in site.classes.names if name not in matches),
        gone=tuple(name for name in reference.class_pixels if name not in used),
    )
    findings = [*_describe_distance(distance, reference, site)]
    if reference.site is not None and site.split is not None and reference.site.split:
        between = measure_separation(list_labelled_scenes(reference.site), scan.scenes)
        found = check_separation(between, reference.name, scan.scenes[0].grid)
        findings += [replace(item, code=f"{item.code}-between-sites") for item in found]
    return distance, findings


def _join_names(matches: Iterable[Sequence[str]]) -> dict[str, str]:
    """Give classes of the source that are one class here a name together."""
    groups: dict[str, tuple[str, ...]] = {}
    for names in matches:
        group = dict.fromkeys(
            joined for name in names for joined in groups.get(name, (name,))
        )
        groups |= dict.fromkeys(group, tuple(group))
    return {name: " + ".join(group) for name, group in groups.items()}


def _describe_distance(
    distance: SiteDistance, reference: Reference, site: Site
) -> Iterator[Finding]:
    whose, bands = reference.name, distance.bands
    note: Callable[..., Finding] = functools.partial(Finding, level="note")
    groups = (
        ("classes-shared", "Shared", distance.shared),
        ("classes-new", "New here", distance.new),
        ("classes-gone", "Not here", distance.gone),
    )
    for code, title, names in groups:
        if names:
            yield note(
                code=code, message=f"{title}, against {whose}: {', '.join(names)}."
            )
    if not distance.shared:
        yield Finding(
            level="error",
            code="no-class-shared",
            message=f"No class is shared with {whose}.",
            remedy="Name the classes alike, or list other names in `from`.",
        )
    missing = [name for name in bands.missing if name not in reference.derived]
    if missing:
        yield Finding(
            level="error",
            code="bands-missing",
            message=f"{whose} has bands that are not here: {', '.join(missing)}.",
            remedy="Name the bands alike, or train a model on those that both have.",
        )
    if bands.new:
        yield note(
            code="bands-new",
            message=f"Bands that {whose} does not have: {', '.join(bands.new)}.",
        )
    for swap in bands.swaps:
        yield Finding(
            level="warning",
            code="bands-swapped",
            message=f"Bands {', '.join(swap.names)} look like "
            f"{', '.join(swap.look_like)} of {whose}, in that order.",
            remedy="See whether `bands` names them in the order of the file.",
            path=str(site.manifest_path),
        )
    far = [band for band in bands.distances if band.level == "far"]
    if far:
        listed = ", ".join(f"{band.name} ({band.distance:.1f})" for band in far)
        yield Finding(
            level="warning",
            code="bands-far",
            message=f"Values are far from those of {whose}, in its standard "
            f"deviations: {listed}.",
            remedy="Compare units, scale, season and atmospheric correction.",
        )
    if abs(distance.gsd_ratio - 1) > 0.1:  # noqa: PLR2004 - DESIGN's 10 %
        yield Finding(
            level="error",
            code="gsd-differs",
            message=f"The GSD is {site.gsd_m:.4g} m, that of {whose} "
            f"{reference.gsd_m:.4g} m.",
            remedy=f"Set `gsd_m: {reference.gsd_m:.4g}`, and images are resampled.",
            path=str(site.manifest_path),
        )
    yield from _compare_texts(reference, site)


def _compare_texts(reference: Reference, site: Site) -> Iterator[Finding]:
    for key in ("sensor", "units"):
        here, there = getattr(site.manifest, key), getattr(reference, key)
        if here and there and here != there:
            yield Finding(
                level="note",
                code=f"{key}-other",
                message=f"`{key}` is {here!r}, that of {reference.name} {there!r}.",
            )
