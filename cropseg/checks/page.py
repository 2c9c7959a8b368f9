"""The report of a check as one self-contained HTML page."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from cropseg.checks.quicklook import PART_COLORS, Picture, QuickLook
from cropseg.checks.report import CheckReport
from cropseg.files import write_text
from cropseg.sites.split import PARTS

_JPEG_QUALITY: Final = 85
_BAR_PX: Final = 44
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_STEP: Final = 1000


def write_page(report: CheckReport, path: Path) -> None:
    """Write the report of a check as an HTML page that needs no network.

    Args:
        report: The report. Of its scenes those are shown that it has a look of.
        path: A file that ends in `.html`.
    """
    template = open_template("page.html.j2", "cropseg.checks")
    write_text(path, template.render(**_describe(report)))


@functools.cache
def open_template(name: str, package: str) -> Any:
    """Return the template of a page. It finds `page.css`, which all pages share.

    Args:
        name: Name of the template's file.
        package: The package that it lies in.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(item, ".") for item in (package, "cropseg.checks")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _describe(report: CheckReport) -> dict[str, Any]:
    site, classes, looks = report.site, report.list_classes(), report.looks
    return {
        "report": report,
        "name": site.name if site else report.findings[0].path,
        "summary": _summarize(report),
        "looks": [_show_look(look) for look in looks],
        "num_hidden": len(site.scenes) - len(looks) if site else 0,
        "part_colors": PART_COLORS if any(look.has_parts for look in looks) else {},
        "parts": PARTS if site and site.split else ("all",),
        "classes": classes,
        "has_fields": bool(report.survey and report.survey.fields),
        "bands": list(_list_bands(report)),
        "files": list(_list_files(report)),
        "version": version("cropseg"),
        **_describe_distance(report),
    }


def _summarize(report: CheckReport) -> str:
    site = report.site
    if site is None:
        return "Its manifest or its files have to be corrected first."
    text = (
        f"{len(site.scenes)} scene(s), {len(site.bands)} bands, {len(site.classes)} "
        f"classes, GSD {site.gsd_m:.4g} m, {site.scenes[0].grid.crs.to_string()}"
    )
    if report.survey:
        text += f", no data on {report.survey.nodata_share:.1%} of the pixels"
    return f"{text}."


def _show_look(look: QuickLook) -> dict[str, Any]:
    scene, grid = look.scene, look.scene.grid
    text = (
        f"{grid.height:,} x {grid.width:,} pixels (rows x columns), "
        f"{grid.gsd_m:.4g} m, {grid.crs.to_string()}"
    )
    if look.step_px > 1:
        text += f"; one pixel in {look.step_px} is shown along rows and columns"
    return {
        "name": scene.name,
        "text": text,
        "pictures": [
            (
                panel.title,
                encode_picture(panel.picture, "png" if panel.is_flat else "jpeg"),
            )
            for panel in look.list_panels()
        ],
    }


def encode_picture(picture: Picture, kind: str) -> str:
    """Return the address of a picture that stands in the page itself.

    Args:
        picture: Shape (h, w, 3), uint8.
        kind: `png` or `jpeg`.
    """
    from matplotlib.image import imsave

    with io.BytesIO() as stream:
        # Borders are a pixel wide: subsampled colours would wash them out.
        jpeg = {"quality": _JPEG_QUALITY, "subsampling": 0}
        options = jpeg if kind == "jpeg" else {"optimize": True}
        imsave(stream, picture, format=kind, pil_kwargs=options)
        data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}"


def _list_bands(report: CheckReport) -> Iterator[dict[str, Any]]:
    distances = {}
    if report.distance:
        distances = {
            band.name: f"{band.distance:.2f} ({band.level})"
            for band in report.distance.bands.distances
        }
    for band in report.bands:
        heights = np.array(band.bin_shares)
        bars = np.round(heights / max(heights.max(), 1e-9) * _BAR_PX, 1).tolist()
        yield {
            "name": band.name,
            "lowest": f"{band.lowest:,.5g}",
            "mean": f"{band.mean:,.5g}",
            "std": f"{band.std:,.4g}",
            "highest": f"{band.highest:,.5g}",
            "distance": distances.get(band.name, ""),
            "bars": bars,
        }


def _describe_distance(report: CheckReport) -> dict[str, Any]:
    distance = report.distance
    shares = distance.class_shares if distance else None
    return {
        "has_distance": distance is not None,
        "reference": distance.reference if distance else "",
        "gsd_ratio": f"{distance.gsd_ratio:.3g}" if distance else "",
        "total_variation": f"{shares.total_variation:.0%}" if shares else "",
        "changes": [
            {
                "name": item.name,
                "there": f"{item.source_share:.1%}",
                "here": f"{item.target_share:.1%}",
                "change": f"{item.change:+.1%}",
            }
            for item in (shares.changes if shares else ())
        ],
    }


def _list_files(report: CheckReport) -> Iterator[dict[str, str]]:
    for file in report.files:
        row = {"path": file.path, "role": file.role}
        header = file.header
        if header is None:
            yield row | dict.fromkeys(
                ("size", "shape", "gsd", "crs", "num_bands", "dtype", "nodata"), ""
            )
            continue
        nodata = {str(value) for value in header.nodata if value is not None}
        yield row | {
            "size": _write_size(header.size_bytes),
            "shape": f"{header.grid.height:,} x {header.grid.width:,}",
            "gsd": f"{header.grid.gsd_m:.4g} m" if header.grid.crs else "",
            "crs": header.grid.crs.to_string()[:40] if header.grid.crs else "none",
            "num_bands": str(header.num_bands),
            "dtype": header.file_dtype,
            "nodata": ", ".join(sorted(nodata)) or "none",
        }


def _write_size(size_bytes: int) -> str:
    size, unit = float(size_bytes), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"
