"""What a check of a site found, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.checks.findings import Finding
from cropseg.checks.quicklook import QuickLook
from cropseg.checks.separation import Separation
from cropseg.checks.similarity import BandComparison, ClassComparison
from cropseg.checks.summary import BandReport, write_number
from cropseg.sites.raster_header import RasterHeader
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import Survey

_M2_PER_HA = 10_000


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """A file of a site."""

    path: str
    """Where it is."""
    role: str
    """`image` or `labels`."""
    scene: str
    """Its scene."""
    header: RasterHeader | None
    """What it says about itself; None for a vector file."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        document: dict[str, Any] = {
            "path": self.path,
            "role": self.role,
            "scene": self.scene,
        }
        header = self.header
        if header is not None:
            document |= {
                "rows": header.grid.height,
                "columns": header.grid.width,
                "crs": header.grid.crs.to_string() if header.grid.crs else None,
                "gsd_m": header.grid.gsd_m,
                "num_bands": header.num_bands,
                "dtype": header.file_dtype,
                "nodata": [write_number(value) for value in header.nodata],
                "compression": header.compression,
                "size_bytes": header.size_bytes,
            }
        return document


@dataclass(frozen=True, kw_only=True)
class SiteDistance:
    """How far a site is from another, or from the one of a model."""

    reference: str
    """What it is compared to."""
    gsd_ratio: float
    """GSD of the site by that of the other."""
    bands: BandComparison
    """Band by band."""
    class_shares: ClassComparison | None
    """Class by class, or None where one of them has no label."""
    shared: tuple[str, ...]
    """Classes of the site that the other has too."""
    new: tuple[str, ...]
    """Classes of the site that the other has not."""
    gone: tuple[str, ...]
    """Classes of the other that the site has not."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        shares = self.class_shares
        return {
            "reference": self.reference,
            "gsd_ratio": self.gsd_ratio,
            "bands": {
                "distances": [
                    asdict(band) | {"level": band.level}
                    for band in self.bands.distances
                ],
                "missing": list(self.bands.missing),
                "new": list(self.bands.new),
                "swaps": [asdict(swap) for swap in self.bands.swaps],
                "ambiguous": [list(pair) for pair in self.bands.ambiguous],
            },
            "classes": {
                "shared": list(self.shared),
                "new": list(self.new),
                "gone": list(self.gone),
                "total_variation": shares.total_variation if shares else None,
                "changes": [asdict(item) for item in shares.changes] if shares else [],
            },
        }


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check of a site found."""

    site: Site | None
    """The site, or None where it could not be opened."""
    findings: tuple[Finding, ...]
    """All findings, errors first."""
    tile_size: int = 256
    """Side of a training tile, in pixels."""
    files: tuple[FileReport, ...] = ()
    """Its files."""
    bands: tuple[BandReport, ...] = ()
    """Its bands; none where no pixel could be read."""
    survey: Survey | None = None
    """Its survey, or None where it could not be read."""
    class_pixels: npt.NDArray[np.int64] | None = None
    """Labelled pixels of each class, in a part or in none; None as for `survey`."""
    looks: tuple[QuickLook, ...] = ()
    """A quick-look of each scene, of 12 at most."""
    block_counts: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Labelled pixels of each block: part (the last row is no part) and class."""
    separation: Separation | None = None
    """How far train and test lie apart, or None without a split."""
    distance: SiteDistance | None = None
    """How far it is from another site, where one was given."""

    @property
    def is_ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def list_classes(self) -> list[dict[str, Any]]:
        """Return name, colour, and pixels, fields and hectares in each part.

        `all` has the pixels and hectares of all labels, in a part or in none.
        """
        if self.site is None or self.survey is None or self.class_pixels is None:
            return []
        ha_per_pixel = self.survey.pixel_m2 / _M2_PER_HA
        rows = []
        for class_id, item in enumerate(self.site.classes.classes):
            pixels = self.survey.class_pixels[:, class_id].tolist()
            mine = [f for f in self.survey.fields if f.class_id == class_id]
            row: dict[str, Any] = {"name": item.name, "color": item.color}
            for part, (name, count) in enumerate(zip(PARTS, pixels, strict=True)):
                fields = sum(1 for found in mine if found.pixels[part])
                row[name] = {
                    "pixels": count,
                    "ha": round(count * ha_per_pixel, 2),
                    "fields": fields if self.survey.fields else None,
                }
            count = int(self.class_pixels[class_id])
            row["all"] = {"pixels": count, "ha": round(count * ha_per_pixel, 2)}
            rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        document: dict[str, Any] = {
            "ok": self.is_ok,
            "findings": [asdict(finding) for finding in self.findings],
        }
        if self.site is None:
            return document
        document |= {
            "site": self.site.name,
            "bands": [band.to_json() for band in self.bands],
            "gsd_m": self.site.gsd_m,
            "crs": self.site.scenes[0].grid.crs.to_string(),
            "scenes": [
                {
                    "name": scene.name,
                    "image": str(scene.image_path),
                    "labels": str(scene.labels_path) if scene.labels_path else None,
                    "rows": scene.grid.height,
                    "columns": scene.grid.width,
                    "crs": scene.grid.crs.to_string(),
                    "gsd_m": scene.grid.gsd_m,
                    "resampled": scene.image.is_resampled,
                }
                for scene in self.site.scenes
            ],
            "files": [file.to_json() for file in self.files],
        }
        if self.survey:
            document["nodata_share"] = self.survey.nodata_share
            document["classes"] = self.list_classes()
        if self.separation:
            distance_m = self.separation.distance_m
            document["train_test_distance_m"] = (
                distance_m if math.isfinite(distance_m) else None
            )
            document["train_test_shared_pixels"] = self.separation.num_shared_pixels
        if self.distance:
            document["distance"] = self.distance.to_json()
        return document
