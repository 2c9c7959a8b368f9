"""What a header says, and the claims for which a file is refused."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine

from cropseg.errors import DataError
from cropseg.sites.raster import read_header
from cropseg.sites.raster_header import MAX_BANDS, RasterOptions

HEIGHT, WIDTH, BANDS = 19, 26, 5
VALUES = np.arange(1, HEIGHT * WIDTH * BANDS + 1).reshape(HEIGHT, WIDTH, BANDS)


@pytest.fixture(scope="module")
def plain_path(tmp_path_factory, write_raster):
    return write_raster(
        tmp_path_factory.mktemp("plain") / "plain.tif",
        VALUES.astype("int16"),
        descriptions=("blue", "green", "red", "nir", ""),
    )


def test_a_header_says_what_the_file_says(plain_path):
    header = read_header(plain_path)

    assert (header.grid.height, header.grid.width) == (HEIGHT, WIDTH)
    assert header.grid.crs.to_epsg() == 32614
    assert header.grid.transform == Affine(10, 0, 600_005, 0, -8, 5_200_003)
    assert (header.num_bands, header.dtype) == (BANDS, "int16")
    assert header.band_names == ("blue", "green", "red", "nir", "")


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_refused(tmp_path, dtype):
    path = tmp_path / "scene.tif"
    profile = {"crs": "EPSG:32614", "transform": Affine.scale(10, -8)}
    with rasterio.open(
        path, "w", driver="GTiff", height=3, width=4, count=1, dtype=dtype, **profile
    ) as dataset:
        dataset.write(np.ones((1, 3, 4), "complex64"))

    with pytest.raises(DataError, match="complex numbers"):
        read_header(path)


def test_alpha_is_no_band(tmp_path, write_raster):
    values = (VALUES[..., :4] % 200 + 1).astype("uint8")
    path = write_raster(tmp_path / "scene.tif", values)  # GDAL makes the last alpha

    header = read_header(path)

    assert (header.num_bands, header.num_alpha_bands) == (3, 1)
    assert header.band_names == ("", "", "")
    assert header.color_names == ("red", "green", "blue")


def test_a_palette_is_one_band_of_colour_numbers(tmp_path, write_raster):
    path = write_raster(tmp_path / "scene.tif", (VALUES[..., 0] % 7).astype("uint8"))
    assert not read_header(path).has_palette
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (9, 8, 7, 255)})

    header = read_header(path)

    assert (header.has_palette, header.num_bands, header.dtype) == (True, 1, "uint8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RasterOptions(scale=(1.0, 2.0)), "Got 2 numbers as `scale`"),
        (RasterOptions(offset=(1.0,) * 6), "expected 1, or 5"),
        (RasterOptions(scale=(0.0,)), "no scale of 0"),
        (RasterOptions(offset=(np.inf,)), "finite"),
    ],
)
def test_a_scale_that_makes_no_sense_is_refused(plain_path, options, message):
    with pytest.raises(DataError, match=message):
        read_header(plain_path, options)


def test_a_description_that_is_not_utf_8_is_no_reason_to_refuse(tmp_path, write_raster):
    path = write_raster(
        tmp_path / "scene.tif", VALUES[..., 0].astype("int16"), descriptions=("gruen",)
    )
    path.write_bytes(path.read_bytes().replace(b"gruen<", b"gr\xfcn<\n"))

    assert read_header(path).band_names == ("",)


@pytest.mark.parametrize(
    ("size", "profile", "problem"),
    [
        ((9, 11, MAX_BANDS + 1), {"interleave": "band"}, "claims 4097 bands"),
        ((30_000, 9, 1), {"blockxsize": 20_000, "blockysize": 30_000}, "572 MiB each"),
        (
            (2_000_000, 3_000_000, 1),
            {"blockxsize": 16_384, "blockysize": 16_384},
            "small",
        ),
        ((30_000, 30_000, 1), {"blockxsize": 16, "blockysize": 16}, None),
    ],
)
def test_a_file_that_claims_the_absurd_is_refused_at_once(
    tmp_path, size, profile, problem
):
    path = tmp_path / "scene.tif"
    height, width, count = size
    tiles = {"tiled": True} if "blockxsize" in profile else {}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype="uint8",
        sparse_ok=True,
        crs="EPSG:32614",
        transform=Affine(10, 0, 600_005, 0, -8, 5_200_003),
        **tiles,
        **profile,
    ):
        pass

    if problem is None:
        assert read_header(path).block_width == 16
    else:
        with pytest.raises(DataError, match=problem):
            read_header(path)


@pytest.mark.parametrize(
    "where",
    [
        Affine(0, 0, 600_005, 0, 0, 5_200_003),
        Affine(10, 10, 600_005, 10, 10, 5_200_003),
        Affine(10, 0, np.nan, 0, -8, 5_200_003),
        Affine(10, 0, np.inf, 0, -8, 5_200_003),
        Affine(10, 0, 600_005, 0, -1e-12, 5_200_003),
    ],
)
def test_pixels_without_a_place_or_a_size_are_refused(tmp_path, write_raster, where):
    path = write_raster(tmp_path / "a.tif", np.ones((3, 4), "uint8"), transform=where)

    with pytest.raises(DataError, match="no place or no size"):
        read_header(path)
