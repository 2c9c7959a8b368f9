"""Rebuild the two prairie areas from a clone of the public dataset Ag-Net.

Usage: python scripts/make_prairie.py CLONE OUT

CLONE is a clone of github.com/ZihengSun/Ag-Net-Dataset (MIT; imagery and labels are US
public domain). OUT gets rural_area_1.tif, rural_area_1_labels.tif and those of area 2.

The clone holds tiles of 128 pixels without coordinates. Their row and column say how
they lie to each other, and that is kept; the position on the Earth is a stand-in.
Exit codes are those of cropseg: 2 for a wrong call, 3 for wrong data.
"""

import sys
import warnings
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from cropseg.errors import CropsegError, DataError, ResourceError, UsageError
from cropseg.files import write_whole
from cropseg.sites.raster import GDAL_OPTIONS, open_raster

Array = npt.NDArray[Any]

AREAS: Final = {"rural_area_1": (5, 12), "rural_area_2": (45, 22)}
"""Row and column of the north-western tile of each area."""
SIDE_TILES: Final = 10
TILE_PX: Final = 128
PIXEL_M: Final = 30
ORIGIN_M: Final = (400_000, 5_380_000)
"""Easting and northing that tile (0, 0) is given: its north-western corner."""
CRS: Final = "EPSG:32614"
BANDS: Final = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
"""Landsat 8's bands 1 to 7, in surface reflectance x 10,000."""
NODATA: Final = -9999
UNKNOWN: Final = 0


class Area(NamedTuple):
    """One area, put together."""

    image: Array
    """(bands, height, width), int16; `NODATA` where a tile is missing."""
    labels: Array
    """(1, height, width), uint8; `UNKNOWN` where a tile is missing."""
    num_missing: int
    """Tiles of which at least one of the eight files is not there."""


def read_area(clone: Path, first_row: int, first_col: int) -> Area:
    """Read the tiles of an area. Of a tile, all eight files count, or none."""
    side = SIDE_TILES * TILE_PX
    image = np.full((len(BANDS), side, side), NODATA, np.int16)
    labels = np.full((1, side, side), UNKNOWN, np.uint8)
    num_missing = 0
    for place in np.ndindex(SIDE_TILES, SIDE_TILES):
        tile = f"2015245_{first_row + place[0]}_{first_col + place[1]}"
        band_paths = [
            clone / "input_32bit" / f"lc8_{tile}_{number}.tif"
            for number in range(1, len(BANDS) + 1)
        ]
        label_path = clone / "target" / f"cdl_{tile}.tif"
        if not all(path.exists() for path in (*band_paths, label_path)):
            num_missing += 1
            continue
        rows, cols = (slice(i * TILE_PX, (i + 1) * TILE_PX) for i in place)
        for band, path in zip(image, band_paths, strict=True):
            band[rows, cols] = read_tile(path, np.int16, NODATA)
        labels[0, rows, cols] = read_tile(label_path, np.uint8, UNKNOWN)
    if num_missing == SIDE_TILES**2:
        raise DataError(
            f"{clone} holds not one whole tile of the {SIDE_TILES} x {SIDE_TILES} from "
            f"row {first_row}, column {first_col}: the last one needs {band_paths[0]} "
            "and 7 files more. Clone the dataset again, in full."
        )
    return Area(image, labels, num_missing)


def read_tile(path: Path, dtype: type[np.integer[Any]], fill: int) -> Array:
    """Read one band of a tile as whole numbers; `fill` stands where it has no data."""
    with open_raster(path) as reader:
        grid, num_bands = reader.grid, len(reader.header.nodata)
        if (num_bands, grid.height, grid.width) != (1, TILE_PX, TILE_PX):
            raise DataError(
                f"{path} has {num_bands} band(s) of {grid.height} x {grid.width} "
                f"pixels; a tile has one of {TILE_PX} x {TILE_PX} pixels. Clone the "
                "dataset again."
            )
        pixels = reader.read(grid.window, [0])
    values = np.where(pixels.valid, pixels.values[..., 0].astype(np.float64), fill)
    limits = np.iinfo(dtype)
    fits = (values >= limits.min) & (values <= limits.max) & (values % 1 == 0)
    if not fits.all():
        raise DataError(
            f"{path} holds {values[~fits][0]}; expected whole numbers from "
            f"{limits.min} to {limits.max}. Clone the dataset again."
        )
    return values.astype(dtype)


def write_raster(
    path: Path, pixels: Array, corner: tuple[int, int], **profile: Any
) -> None:
    """Write (bands, height, width), its first pixel in a tile, and read it back."""
    row, col = corner
    step_m = TILE_PX * PIXEL_M
    west, north = ORIGIN_M[0] + col * step_m, ORIGIN_M[1] - row * step_m
    profile |= {
        "driver": "GTiff",
        "dtype": pixels.dtype,
        "crs": CRS,
        "transform": Affine(PIXEL_M, 0, west, 0, -PIXEL_M, north),
        "tiled": True,
        "compress": "deflate",
    }
    profile |= zip(("count", "height", "width"), pixels.shape, strict=True)

    def verify(part: Path) -> None:
        with rasterio.open(part) as dataset:
            if not np.array_equal(dataset.read(), pixels):
                raise ResourceError(f"{path} cannot be read back as it was written.")

    try:
        with (
            rasterio.Env(**GDAL_OPTIONS),
            write_whole(path, verify=verify) as part,
            rasterio.open(part, "w", **profile) as dataset,
        ):
            dataset.write(pixels)
            if len(pixels) == len(BANDS):
                names = enumerate(BANDS, 1)
                dataset.descriptions = [f"B{i} {name}" for i, name in names]
    except RasterioError as error:
        raise ResourceError(f"Cannot write {path}: {error}.") from error


def main(clone: str, out: str) -> None:
    """Put both areas together, then write them."""
    for name in ("input_32bit", "target"):
        if not (Path(clone) / name).is_dir():
            raise DataError(
                f"There is no folder {Path(clone) / name}. CLONE must be a clone of "
                "github.com/ZihengSun/Ag-Net-Dataset."
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        areas = {name: read_area(Path(clone), *place) for name, place in AREAS.items()}
    for name, area in areas.items():
        path, labels_path = (Path(out) / f"{name}{end}.tif" for end in ("", "_labels"))
        extra = {"nodata": NODATA, "predictor": 2, "interleave": "pixel"}
        write_raster(path, area.image, AREAS[name], **extra)
        write_raster(labels_path, area.labels, AREAS[name], nodata=UNKNOWN)
        print(f"{path}: {area.num_missing} of {SIDE_TILES**2} tiles are missing")


if __name__ == "__main__":
    try:
        if len(sys.argv) != 3:
            raise UsageError((__doc__ or "").splitlines()[2])
        main(*sys.argv[1:])
    except CropsegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
