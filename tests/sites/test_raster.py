"""Windowed reading: rasterio is the oracle, and no file does harm."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.grid import Window
from cropseg.sites.raster import open_raster, read_header

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ODD_DIR = DATA / "odd_rasters"
ODD_PATHS = sorted(ODD_DIR.iterdir()) if ODD_DIR.is_dir() else []
ODD_UNREADABLE = {
    "pillow_libtiff_segfault.tif",
    "pillow_seek_too_large.tif",
    "rasterio_compdcs.vrt",
    "rasterio_corrupt.tif",
}
HEIGHT, WIDTH, BANDS = 19, 26, 5
VALUES = np.arange(1, HEIGHT * WIDTH * BANDS + 1).reshape(HEIGHT, WIDTH, BANDS)

windows = st.builds(
    Window,
    row=st.integers(-30, 30),
    col=st.integers(-30, 30),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
orders = st.lists(st.integers(0, BANDS - 1), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def plain_path(tmp_path_factory, write_raster):
    return write_raster(
        tmp_path_factory.mktemp("plain") / "plain.tif",
        VALUES.astype("int16"),
        descriptions=("blue", "green", "red", "nir", ""),
    )


@given(window=windows, order=orders)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_window_over_the_edge_equals_rasterio_and_padding(plain_path, window, order):
    with rasterio.open(plain_path) as dataset:
        whole = np.moveaxis(dataset.read([band + 1 for band in order]), 0, -1)
    margin = ((80, 80), (80, 80))
    rows, cols = window.grow(0).slices_in(Window(row=-80, col=-80, height=0, width=0))

    with open_raster(plain_path) as reader:
        pixels = reader.read(window, order)

    expected = np.pad(whole, (*margin, (0, 0)))[rows, cols]
    inside = np.pad(np.ones((HEIGHT, WIDTH), bool), margin)[rows, cols]
    np.testing.assert_array_equal(pixels.values, expected)
    np.testing.assert_array_equal(pixels.valid, inside)
    assert pixels.values.dtype == np.int16


def test_a_header_says_what_the_file_says(plain_path):
    header = read_header(plain_path)

    assert (header.grid.height, header.grid.width) == (HEIGHT, WIDTH)
    assert header.grid.crs.to_epsg() == 32614
    assert header.grid.transform == Affine(10, 0, 600_005, 0, -8, 5_200_003)
    assert (header.num_bands, header.dtype) == (BANDS, "int16")
    assert header.band_names == ("blue", "green", "red", "nir", "")


@pytest.fixture
def read_all(tmp_path, write_raster):
    """Return a function that writes values and reads all or some bands of them."""

    def read(values, bands=None, **profile):
        path = write_raster(tmp_path / "scene.tif", values, **profile)
        with open_raster(path) as reader:
            order = range(values.shape[-1]) if bands is None else bands
            return reader.read(reader.header.grid.window, order)

    return read


def test_nodata_in_one_band_makes_a_pixel_invalid(read_all):
    values = VALUES.astype("int16")
    values[3, 4:9, 2] = -9999

    pixels = read_all(values, nodata=-9999)

    assert not pixels.valid[3, 4:9].any()
    assert pixels.valid.sum() == HEIGHT * WIDTH - 5
    np.testing.assert_array_equal(pixels.values, values)


def test_nodata_in_a_band_that_is_not_read_does_not_matter(read_all):
    values = VALUES.astype("int16")
    values[3, 4:9, 2] = -9999

    assert read_all(values, bands=[4, 0], nodata=-9999).valid.all()


@pytest.mark.parametrize("nodata", [np.nan, None, -1.0])
def test_what_is_not_finite_is_invalid(read_all, nodata):
    values = VALUES.astype("float32")
    values[0, :3, 1] = np.nan
    values[1, :2, 0] = np.inf

    valid = read_all(values, nodata=nodata).valid

    assert not valid[0, :3].any()
    assert not valid[1, :2].any()
    assert valid.sum() == HEIGHT * WIDTH - 5


def test_a_float_nodata_value_is_found_at_its_precision(read_all):
    values = VALUES.astype("float32")
    values[5, 6] = 0.1

    valid = read_all(values, nodata=0.1).valid

    assert not valid[5, 6]
    assert valid.sum() == HEIGHT * WIDTH - 1


def test_a_nodata_value_that_the_image_has_not_makes_nothing_invalid(read_all):
    assert read_all((VALUES % 200).astype("uint8"), nodata=None).valid.all()


def test_an_internal_mask_makes_pixels_invalid(tmp_path, write_raster):
    path = tmp_path / "scene.tif"
    mask = np.full((HEIGHT, WIDTH), 255, "uint8")
    mask[2:5, 7:9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, VALUES.astype("int16"))
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(mask)

    with open_raster(path) as reader:
        valid = reader.read(reader.header.grid.window, [0, 1]).valid

    np.testing.assert_array_equal(valid, mask > 0)


def test_a_transparent_pixel_is_invalid(read_all):
    values = (VALUES[..., :4] % 200 + 1).astype("uint8")
    values[..., 3] = 255
    values[6, 1:4, 3] = 0

    pixels = read_all(values, bands=[0, 1, 2], photometric="RGB", alpha="YES")

    assert not pixels.valid[6, 1:4].any()
    assert pixels.valid.sum() == HEIGHT * WIDTH - 3


def make_vrt(source):
    return (
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}">'
        "<GeoTransform>600005, 10, 0, 5200003, 0, -8</GeoTransform>"
        '<VRTRasterBand dataType="Int16" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


@pytest.mark.parametrize("name", ["scene.vrt", "scene.tif"])
def test_a_vrt_is_not_opened_under_any_name(tmp_path, plain_path, name):
    path = tmp_path / name
    path.write_text(make_vrt(plain_path))
    with rasterio.open(path) as dataset:  # it would read another file of the machine
        assert dataset.read(1)[0, 0] == 1

    with pytest.raises(DataError, match="cannot be opened as a GeoTIFF"):
        read_header(path)


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org/scene.tif",
        "/vsicurl/https://example.org/scene.tif",
        "s3://bucket/scene.tif",
        "zip://scenes.zip!scene.tif",
        "GTIFF_DIR:1:scene.tif",
        make_vrt("scene.tif"),
        "scene.tif",
        ".",
    ],
)
def test_what_is_no_local_file_is_not_found(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataFileNotFoundError, match="No file at"):
        read_header(Path(name))


@pytest.mark.parametrize("content", [b"", b"II*\0", b"not a picture"])
def test_a_file_that_is_no_geotiff_is_refused(tmp_path, content):
    path = tmp_path / "scene.tif"
    path.write_bytes(content)

    with pytest.raises(DataError, match="cannot be opened as a GeoTIFF"):
        read_header(path)


def test_a_planted_aux_xml_does_not_change_nodata(tmp_path, write_raster):
    path = write_raster(tmp_path / "scene.tif", VALUES.astype("int16"))
    Path(f"{path}.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32615</SRS>"
        '<PAMRasterBand band="1"><NoDataValue>1</NoDataValue></PAMRasterBand>'
        "</PAMDataset>"
    )
    with rasterio.open(path) as dataset:  # rasterio falls for it
        assert dataset.nodatavals[0] == 1

    with open_raster(path) as reader:
        assert reader.read(reader.header.grid.window, [0]).valid.all()
        assert reader.header.grid.crs.to_epsg() == 32614


def test_a_planted_mask_file_does_not_change_validity(tmp_path, write_raster):
    path = write_raster(tmp_path / "scene.tif", VALUES.astype("int16"))
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.write_mask(np.zeros((HEIGHT, WIDTH), "uint8"))
    assert Path(f"{path}.msk").is_file()

    with open_raster(path) as reader:
        assert reader.read(reader.header.grid.window, [0]).valid.all()


def test_a_truncated_file_is_an_error_where_it_is_read(tmp_path, write_raster):
    path = write_raster(
        tmp_path / "scene.tif", np.tile(VALUES, (9, 9, 1)).astype("int16")
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with open_raster(path) as reader:
        whole = reader.header.grid.window
        top = Window(row=0, col=0, height=9, width=whole.width)
        assert reader.read(top, [0]).valid.all()
        with pytest.raises(DataError, match=r"Cannot read rows 0-171 .*cut short"):
            reader.read(whole, [0])


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


@pytest.mark.skipif(not ODD_PATHS, reason="../shared/data/odd_rasters is not there")
def test_there_are_25_odd_rasters():
    assert len(ODD_PATHS) == 25
    assert {path.name for path in ODD_PATHS} >= ODD_UNREADABLE


@pytest.mark.skipif(not ODD_PATHS, reason="../shared/data/odd_rasters is not there")
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning")
@pytest.mark.parametrize("path", ODD_PATHS, ids=[path.name for path in ODD_PATHS])
def test_an_odd_raster_is_read_as_rasterio_reads_it_or_refused(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if path.name in ODD_UNREADABLE:
        with pytest.raises(DataError, match=re.escape(path.name)):
            read_some_bands(path)
    else:
        pixels = read_some_bands(path)
        indexes = list(range(1, pixels.values.shape[-1] + 1))
        with rasterio.open(path) as dataset:
            values = np.moveaxis(dataset.read(indexes), 0, -1)
            valid = dataset.read_masks(indexes).all(axis=0)
        valid &= np.isfinite(values).all(axis=-1)
        np.testing.assert_array_equal(pixels.valid, valid)
        np.testing.assert_array_equal(pixels.values[valid], values[valid])
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 300_000


def read_some_bands(path):
    with open_raster(path) as reader:
        bands = range(min(reader.header.num_bands, 8))
        return reader.read(reader.header.grid.window, bands)
