"""Whether labels lie on their image, and whether fields are sound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform as transform_points

from cropseg.checks.alignment import Shift
from cropseg.checks.duplicates import list_overlaps
from cropseg.checks.findings import Finding
from cropseg.checks.inspection import Inspection
from cropseg.sites.classes import IGNORE, write_value
from cropseg.sites.grid import Grid
from cropseg.sites.labels import FieldLabels, LabelSource, RasterLabels
from cropseg.sites.scene import Scene
from cropseg.sites.site import Site
from cropseg.sites.vector import open_fields

_LONG_M: Final = 1000


def check_labels(scan: Inspection) -> Iterator[Finding]:
    """Check where the labels of each scene lie, and that there are any."""
    counted = [
        (scene, scene.labels, meter, count)
        for scene, meter, count in zip(
            scan.site.scenes,
            scan.shifts,
            scan.class_pixels.sum(axis=1).tolist(),
            strict=True,
        )
        if scene.labels is not None
    ]
    # One file may label many scenes, and some of them not at all.
    used = {labels.path for _, labels, _, count in counted if count}
    yield from _check_nodata(scan.site)
    for scene, labels, meter, count in counted:
        path, shift = str(labels.path), meter.finish()
        if not count:
            yield _describe_unlabelled(scene, labels, is_used=labels.path in used)
        elif shift.is_shifted:
            yield Finding(
                level="warning",
                code="labels-shifted",
                message=f"The labels of {scene.name} seem to lie "
                f"{_describe_shift(shift)}: moved back, their boundaries fit the edges "
                f"of the image at a correlation of {shift.correlation:.2f}, as they "
                f"are at {shift.correlation_unmoved:.2f}.",
                remedy="Lay both over each other in QGIS, and correct the labels' "
                "position or CRS.",
                path=path,
            )


def _check_nodata(site: Site) -> Iterator[Finding]:
    """Find classes whose value the label raster calls no data: they are unknown."""
    ids = site.classes.ids_by_value
    rasters = {
        scene.labels.path: scene.labels.header
        for scene in site.scenes
        if isinstance(scene.labels, RasterLabels)
    }
    for path, header in rasters.items():
        value = write_value(header.nodata[0])
        class_id = ids.get(value, IGNORE)
        if class_id != IGNORE:
            name = site.classes.names[class_id]
            yield Finding(
                level="warning",
                code="labels-nodata",
                message=f"{path.name} says that {value} means no data, the manifest "
                f"that it is {name}. Such pixels are taken as unknown.",
                remedy=f"If they are {name}, use `gdal_edit.py -unsetnodata`; if not, "
                f"move {value} from `values` to `ignore`.",
                path=str(path),
            )


def _describe_shift(shift: Shift) -> str:
    """Say where labels lie, such as `2 rows too low and 1 columns too far left`."""
    texts = []
    if shift.rows:
        where = "low" if shift.rows > 0 else "high"
        texts.append(f"{abs(shift.rows)} row(s) too {where}")
    if shift.cols:
        where = "right" if shift.cols > 0 else "left"
        texts.append(f"{abs(shift.cols)} column(s) too far {where}")
    return " and ".join(texts)


def _describe_unlabelled(
    scene: Scene, labels: LabelSource, *, is_used: bool
) -> Finding:
    grid = _locate_labels(labels, scene.grid)
    if list_overlaps([scene.grid, grid]):
        return Finding(
            level="note" if is_used else "warning",
            code="labels-none",
            message=f"No pixel of {scene.name} has a label that is a class.",
            remedy="See whether `values` of the classes are those of the file.",
            path=str(labels.path),
        )
    return Finding(
        level="note" if is_used else "error",
        code="labels-elsewhere",
        message=f"No label lies in {scene.name}: {_describe_gap(scene.grid, grid)}.",
        remedy="Correct the position or the CRS of the labels, or name those of this "
        "ground.",
        path=str(labels.path),
    )


def _locate_labels(labels: LabelSource, grid: Grid) -> Grid:
    """Return the grid of labels; of polygons and points one pixel around all."""
    if not isinstance(labels, FieldLabels):
        return labels.header.grid
    import shapely

    fields = open_fields(labels.source, grid.crs)
    left, bottom, right, top = shapely.total_bounds(fields.geometries).tolist()
    side = math.sqrt(abs(grid.transform.determinant))  # points have no width
    width, height = right - left + 2 * side, top - bottom + 2 * side
    transform = Affine(width, 0, left - side, 0, -height, top + side)
    return Grid(height=1, width=1, transform=transform, crs=fields.crs)


def _describe_gap(image: Grid, labels: Grid) -> str:
    """Say how far the middle of labels is from that of an image."""
    crs = f"the labels are in {labels.crs.to_string()}, the image in "
    crs += image.crs.to_string()
    x, y = labels.transform @ (labels.width / 2, labels.height / 2)
    try:
        (x,), (y,) = transform_points(labels.crs, image.crs, [x], [y])
    except (CPLE_BaseError, RasterioError):
        x = y = math.inf
    distance = math.dist((x, y), image.transform @ (image.width / 2, image.height / 2))
    if not math.isfinite(distance):
        return f"{crs}, where they have no place"
    metres_per_unit = image.gsd_m / math.sqrt(abs(image.transform.determinant))
    distance_m = distance * metres_per_unit
    return f"their middles are {write_metres(distance_m)} apart; {crs}"


def write_metres(distance_m: float) -> str:
    """Return a distance with its unit, rounded to whole metres where it is long."""
    return f"{distance_m:,.0f} m" if distance_m >= _LONG_M else f"{distance_m:.4g} m"


def check_fields(site: Site) -> Iterator[Finding]:
    """Tell of fields that were repaired, left out, or overlap."""
    for source in site.vector_sources:
        fields = open_fields(source, site.scenes[0].grid.crs)
        path = str(source.path)
        counted = (
            ("fields-repaired", fields.num_repaired, "were invalid and are repaired"),
            ("fields-empty", fields.num_dropped, "have no geometry and are left out"),
            ("fields-unlabelled", fields.num_unlabelled, "have no value: unknown"),
            (
                "fields-overlap",
                fields.count_overlaps(),
                "overlap; the smaller one counts where they do",
            ),
        )
        for code, count, text in counted:
            if count:
                yield Finding(
                    level="note",
                    code=code,
                    message=f"{count:,} of {len(fields.values):,} fields of "
                    f"{source.path.name} {text}.",
                    path=path,
                )
