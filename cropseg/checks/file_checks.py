"""What the files of a site say of themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cropseg.checks.findings import Finding
from cropseg.checks.report import FileReport
from cropseg.errors import CropsegError
from cropseg.sites.labels import FieldLabels
from cropseg.sites.location import Location
from cropseg.sites.projection import MAX_STRETCH, find_utm_zone, measure_pixel
from cropseg.sites.raster import find_unwritten_blocks
from cropseg.sites.site import Site

_RGB: Final = {"red", "green", "blue"}


def describe_files(site: Site) -> Iterator[FileReport]:
    """Yield what each file of a site says about itself."""
    for scene in site.scenes:
        for file in scene.image.files:
            yield FileReport(
                path=str(file.location),
                role="image",
                scene=scene.name,
                header=file.header,
            )
        if scene.labels is not None and not isinstance(scene.labels, FieldLabels):
            yield FileReport(
                path=str(scene.labels.path),
                role="labels",
                scene=scene.name,
                header=scene.labels.header,
            )
        elif scene.labels is not None:
            yield FileReport(
                path=str(scene.labels.path),
                role="labels",
                scene=scene.name,
                header=None,
            )


def check_files(site: Site) -> list[Finding]:
    """Find unwritten blocks, palettes, wrong names of bands, metres that are none."""
    findings: list[Finding] = []
    seen: set[Location] = set()
    for scene in site.scenes:
        for file in scene.image.files:
            header = file.header
            findings += _check_blocks(file.location, seen)
            if header.has_palette:
                findings.append(
                    Finding(
                        level="warning",
                        code="image-palette",
                        message=f"{file.location.name} has a palette: its values are "
                        "numbers of colours, no brightness.",
                        remedy="Expand it with `gdal_translate -expand rgb`.",
                        path=str(file.location),
                    )
                )
        if scene.labels is not None and not isinstance(scene.labels, FieldLabels):
            findings += _check_blocks(scene.labels.path, seen)
        findings += _check_band_names(scene.name, scene.band_names, scene.image.files)
        if scene.image.is_resampled:
            native = scene.image.native_grid
            findings.append(
                Finding(
                    level="note",
                    code="resampled",
                    message=f"{scene.name} is resampled from {native.gsd_m:.4g} m in "
                    f"{native.crs.to_string()} to {scene.grid.gsd_m:.4g} m in "
                    f"{scene.grid.crs.to_string()}.",
                    path=str(scene.image_path),
                )
            )
    return [*findings, *_check_metres(site)]


def _check_metres(site: Site) -> Iterator[Finding]:
    """Find a CRS whose metres are not those of the ground, as in Web Mercator."""
    for scene in site.scenes:  # all in one CRS, and near to one another: one says it
        grid = scene.grid
        if not grid.crs.is_projected:
            continue
        try:
            gsd_m = math.sqrt(math.prod(measure_pixel(grid)))
            if abs(gsd_m / grid.gsd_m - 1) <= MAX_STRETCH:
                continue
            utm = find_utm_zone(grid, scene.name).to_string()
        except CropsegError:  # no place on the Earth, or too wide for one zone
            continue
        yield Finding(
            level="warning",
            code="metres-stretched",
            message=f"{grid.crs.to_string()} stretches metres: a pixel of {scene.name} "
            f"that it calls {grid.gsd_m:.4g} m wide is {gsd_m:.4g} m on the ground. "
            "GSD, blocks and hectares are taken as the CRS says them, and fit no site "
            "in another one.",
            remedy=f"Set `crs: {utm}` and `gsd_m: {gsd_m:.2g}`, and images are "
            "resampled.",
            path=str(site.manifest_path),
        )
        return


def _check_blocks(location: Location, seen: set[Location]) -> list[Finding]:
    if location in seen:  # one file may serve many scenes
        return []
    seen.add(location)
    try:
        blocks = find_unwritten_blocks(location)
    except CropsegError:  # reading says so in its own words
        return []
    if not blocks.num_unwritten:
        return []
    share = blocks.num_unwritten / blocks.num_blocks
    return [
        Finding(
            level="note" if blocks.looks_sparse else "error",
            code="blocks-left-out" if blocks.looks_sparse else "blocks-unwritten",
            message=f"{location.name} lacks {blocks.num_unwritten:,} of its "
            f"{blocks.num_blocks:,} blocks ({share:.0%}); they read as no data or 0.",
            remedy=""
            if blocks.looks_sparse
            else "Its writer seems to have been stopped. Write or copy it again.",
            path=str(location),
        )
    ]


def _check_band_names(
    scene_name: str, names: Sequence[str], files: Sequence[Any]
) -> list[Finding]:
    """Compare the manifest's names with what the file calls its bands."""
    said = [name.lower() for file in files for name in file.header.band_names]
    if len(said) != len(names):
        said = [name.lower() for name in files[0].header.band_names]
    given = [name.lower() for name in names]
    if len(said) == len(given) and said != given and sorted(said) == sorted(given):
        return [
            Finding(
                level="error",
                code="bands-order",
                message=f"The file of {scene_name} calls its bands {', '.join(said)}, "
                f"the manifest {', '.join(names)}.",
                remedy="Name the bands in the order of the file.",
                path=str(files[0].location),
            )
        ]
    colors = [name for file in files for name in file.header.color_names]
    pairs = [
        (place, color, name)
        for place, (color, name) in enumerate(zip(colors, given, strict=False), start=1)
        if color in _RGB
    ]
    wrong = [
        f"band {place} is {color}, the manifest says {name}"
        for place, color, name in pairs
        if color != name
    ]
    # Writers call any three bands red, green and blue: of near infrared, red and green
    # that says nothing.
    if wrong and {name for _, _, name in pairs} == _RGB:
        return [
            Finding(
                level="warning",
                code="bands-color",
                message=f"Colours in the file of {scene_name} contradict the manifest: "
                f"{'; '.join(wrong)}.",
                remedy="See in a picture which of the two is right.",
                path=str(files[0].location),
            )
        ]
    return []
