"""Writes the two made-up areas as any site comes: GeoTIFFs and a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio import features
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetWriter
from scipy import ndimage

from cropseg.demo.crops import AREA_1, AREA_2, BANDS, Area
from cropseg.demo.farmland import GSD_M, NODATA, UNKNOWN, Farmland, draw_farmland
from cropseg.errors import ResourceError, UsageError, join_problems
from cropseg.files import write_whole, write_yaml

CRS: Final = "EPSG:32633"
BLOCK_PX: Final = 128
"""Side of a block of the split in pixels: 64 m. Areas are whole blocks."""
MIN_SIZE_PX: Final = 256
"""The smallest height at which every class has a field."""
SHARES: Final = {
    AREA_1.name: {"train": 0.7, "val": 0.1, "test": 0.2},
    AREA_2.name: {"train": 0.5, "val": 0.1, "test": 0.4},
}
"""Shares of the blocks. Area 2 has few, so more of them test."""


def write_areas(out_dir: Path, *, seed: int, size_px: int = 768) -> tuple[Path, Path]:
    """Write two made-up rural areas, 20 km apart.

    Area 2 has other light, soil and season than area 1; one of area 1's crops is
    missing there and another is new. Equal seeds give equal areas.

    Args:
        out_dir: Where the folders `area_1` and `area_2` belong. Each gets
            `scene.tif`, labels and `manifest.yaml`. Those of area 1 are a raster,
            those of area 2 polygons in another CRS, and its GSD is 0.4 m.
        seed: From 0. Decides everything that is random.
        size_px: Height of an area in pixels of 0.5 m, a multiple of 128 from 256.
            It is 128 pixels wider than high.

    Returns:
        The manifests of area 1 and of area 2.

    Raises:
        UsageError: If the seed or the size is not possible.
        ResourceError: If a file cannot be written.
    """
    problems = []
    if seed < 0:
        problems.append(f"`seed` is {seed}; choose 0 or a larger number.")
    if size_px < MIN_SIZE_PX or size_px % BLOCK_PX:
        problems.append(
            f"`size_px` is {size_px}; choose a multiple of {BLOCK_PX}, "
            f"{MIN_SIZE_PX} or larger."
        )
    if problems:
        title = f"Cannot make up areas, {len(problems)} problem(s)"
        raise UsageError(join_problems(title, problems))
    first, second = np.random.default_rng(seed).spawn(2)
    return (
        _write_area(out_dir / AREA_1.name, AREA_1, size_px=size_px, rng=first),
        _write_area(out_dir / AREA_2.name, AREA_2, size_px=size_px, rng=second),
    )


def _write_area(
    out_dir: Path, area: Area, *, size_px: int, rng: np.random.Generator
) -> Path:
    farmland = draw_farmland(
        area, height_px=size_px, width_px=size_px + BLOCK_PX, rng=rng
    )
    _write_scene(out_dir / "scene.tif", farmland, area)
    if area.fields_crs is None:
        _write_labels(out_dir / "labels.tif", farmland, area)
    else:
        _write_fields(out_dir / "fields.gpkg", farmland, area)
    # The manifest comes last: where it stands, the files that it names do.
    manifest_path = out_dir / "manifest.yaml"
    write_yaml(manifest_path, _describe_site(area))
    return manifest_path


def _describe_site(area: Area) -> dict[str, Any]:
    by_name = area.fields_crs is not None
    scene = {"image": "scene.tif", "labels": "labels.tif"}
    if by_name:
        scene |= {"labels": "fields.gpkg", "field": "crop"}
    return {
        "site": area.name,
        "sensor": "made up",
        "bands": list(BANDS),
        "gsd_m": GSD_M,
        "classes": [
            {
                "name": growth.crop.name,
                "color": growth.crop.color,
                "values": [growth.crop.name if by_name else value],
            }
            for value, growth in enumerate(area.growths, start=1)
        ],
        "ignore": [] if by_name else [UNKNOWN],
        "scenes": [scene],
        "split": {
            "block_m": BLOCK_PX * GSD_M,
            "gap_m": 0,
            **SHARES[area.name],
            "seed": 0,
        },
    }


def _write_scene(path: Path, farmland: Farmland, area: Area) -> None:
    def describe(raster: DatasetWriter) -> None:
        raster.nodata = NODATA
        raster.descriptions = BANDS
        raster.colorinterp = tuple(ColorInterp[name] for name in BANDS)

    image = _photograph(farmland.image, area.camera_gsd_m)
    _write_raster(path, np.moveaxis(image, -1, 0), area, describe=describe)


def _photograph(image: NDArray[np.uint16], gsd_m: float) -> NDArray[np.uint16]:
    """Return the image as a camera with that GSD records it."""
    if gsd_m == GSD_M:
        return image
    rows, cols = (
        (np.arange(round(size * GSD_M / gsd_m)) + 0.5) * gsd_m / GSD_M - 0.5
        for size in image.shape[:2]
    )
    places = np.meshgrid(rows, cols, indexing="ij")
    finer = [
        ndimage.map_coordinates(
            band.astype(np.float32), places, order=1, mode="nearest"
        )
        for band in np.moveaxis(image, -1, 0)
    ]
    recorded = ndimage.map_coordinates(
        (image[..., 0] != NODATA).astype(np.uint8), places, order=0, mode="nearest"
    )
    values = np.rint(np.stack(finer, axis=-1)).clip(1, 65535).astype(np.uint16)
    values[recorded == 0] = NODATA
    return values


def _write_labels(path: Path, farmland: Farmland, area: Area) -> None:
    colors = {
        value: tuple(bytes.fromhex(growth.crop.color[1:]))
        for value, growth in enumerate(area.growths, start=1)
    }

    def describe(raster: DatasetWriter) -> None:
        raster.descriptions = ("class",)
        raster.write_colormap(1, {UNKNOWN: (0, 0, 0), **colors})

    _write_raster(path, farmland.labels[None], area, describe=describe)


def _write_fields(path: Path, farmland: Farmland, area: Area) -> None:
    """Write the labels as polygons with the name of the crop."""
    import geopandas
    from shapely.geometry import shape

    place = _place(area, GSD_M)
    found = features.shapes(
        farmland.labels, farmland.labels != UNKNOWN, transform=place
    )
    polygons, names = [], []
    for polygon, value in found:
        polygons.append(shape(polygon))
        names.append(area.growths[int(value) - 1].crop.name)
    fields = geopandas.GeoDataFrame({"crop": names}, geometry=polygons, crs=CRS)

    def verify(part: Path) -> None:
        if len(geopandas.read_file(part)) != len(fields):
            raise ResourceError(
                f"Wrote {path}, but what was read back differs. "
                "See whether the disk is full or broken."
            )

    with write_whole(path, verify=verify) as part:
        fields.to_crs(area.fields_crs).to_file(part, driver="GPKG", layer="fields")


def _place(area: Area, gsd_m: float) -> Affine:
    easting_m, northing_m = area.origin_m
    return Affine(gsd_m, 0, easting_m, 0, -gsd_m, northing_m)


def _write_raster(
    path: Path,
    pixels: NDArray[np.uint16] | NDArray[np.uint8],
    area: Area,
    *,
    describe: Callable[[DatasetWriter], None],
) -> None:
    """Write `(C, H, W)` pixels as a tiled GeoTIFF and read all of them back."""
    num_bands, height_px, width_px = pixels.shape
    profile = {
        "driver": "GTiff",
        "count": num_bands,
        "height": height_px,
        "width": width_px,
        "dtype": pixels.dtype,
        "crs": CRS,
        "transform": _place(area, area.camera_gsd_m),
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "predictor": 2,
    }

    def verify(part: Path) -> None:
        with rasterio.open(part) as raster:
            if not np.array_equal(raster.read(), pixels):
                raise ResourceError(
                    f"Wrote {path}, but what was read back differs. "
                    "See whether the disk is full or broken."
                )

    with write_whole(path, verify=verify) as part:
        try:
            with rasterio.open(part, "w", **profile) as raster:
                describe(raster)
                raster.write(pixels)
        except RasterioError as error:
            raise ResourceError(
                f"Cannot write {path}: {error}. "
                "Choose a folder that you may write to, on a disk with free space."
            ) from error
