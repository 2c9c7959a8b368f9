"""Windowed reading: rasterio is the oracle, and no file does harm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.grid import Window
from cropseg.sites.raster import find_unwritten_blocks, open_raster, read_header
from cropseg.sites.raster_header import RasterOptions

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

    with pytest.raises(UnsafeFileError, match="holds XML"):
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
        "/dev/zero",
    ],
)
def test_what_is_no_local_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UnsafeFileError):
        read_header(Path(name))


@pytest.mark.parametrize("name", ["scene.tif", "."])
def test_a_missing_file_is_not_found(tmp_path, monkeypatch, name):
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


KILLED = """
import os, signal, sys
import numpy as np
import rasterio
from rasterio.windows import Window
path, when = sys.argv[1:]
values = np.random.default_rng(0).integers(1, 9999, (2, 256, 640)).astype("int16")
profile = {"blockxsize": 128, "blockysize": 128, "tiled": True, "compress": "deflate"}
profile |= {"crs": "EPSG:32614", "transform": rasterio.Affine(10, 0, 5, 0, -8, 3)}
with rasterio.Env(GDAL_CACHEMAX=1000):
    dataset = rasterio.open(
        path, "w", driver="GTiff", width=640, height=384, count=2, dtype="int16",
        sparse_ok=when == "reopened", **profile,
    )
    dataset.write(values, window=Window(0, 0, 640, 256))
    if when == "reopened":
        dataset.close()
        dataset = rasterio.open(path, "r+", sharing=False)
        dataset.write(values[:, :128], window=Window(0, 256, 640, 128))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("when", "num_unwritten"), [("first", 15), ("reopened", 5)])
def test_the_file_of_a_killed_writer_has_unwritten_blocks(
    tmp_path, when, num_unwritten
):
    path = tmp_path / "scene.tif"
    writer = subprocess.run(
        [sys.executable, "-c", KILLED, path, when], check=False, timeout=60
    )
    assert writer.returncode == -signal.SIGKILL
    with rasterio.open(path) as dataset:  # nothing tells that it is not whole
        assert dataset.read(1)[256:].max() == 0

    report = find_unwritten_blocks(path)

    assert (report.num_blocks, report.num_unwritten) == (15, num_unwritten)
    assert not report.looks_sparse


@pytest.mark.parametrize(("interleave", "num_layers"), [("pixel", 1), ("band", 5)])
@pytest.mark.parametrize("sparse", [True, False])
def test_blocks_that_are_left_out_on_purpose_look_sparse(
    tmp_path, write_raster, interleave, num_layers, sparse
):
    values = np.zeros((40, 70, 5), "int16")
    values[:20, :30] = 7
    path = write_raster(
        tmp_path / "scene.tif",
        values,
        tiled=True,
        blockxsize=32,
        blockysize=32,
        interleave=interleave,
        sparse_ok=sparse,
    )

    report = find_unwritten_blocks(path)

    assert report.num_blocks == 6 * num_layers
    assert report.num_unwritten == (5 * num_layers if sparse else 0)
    assert report.looks_sparse == sparse


def test_a_file_without_any_block_does_not_look_sparse(tmp_path, write_raster):
    nothing = np.zeros((40, 70), "int16")
    path = write_raster(tmp_path / "scene.tif", nothing, sparse_ok=True)

    report = find_unwritten_blocks(path)

    assert report.num_unwritten == report.num_blocks > 0
    assert not report.looks_sparse


def test_bands_are_counted_without_an_alpha_band_between_them(tmp_path, write_raster):
    values = VALUES[..., :3].astype("uint16")
    values[4:6, :, 1] = 0
    path = write_raster(
        tmp_path / "scene.tif",
        values,
        photometric="MINISBLACK",
        alpha="NON-PREMULTIPLIED",
    )
    with open_raster(path) as reader:
        assert reader.header.num_bands == 2
        pixels = reader.read(Window(row=3, col=0, height=4, width=WIDTH), [1, 0])

    np.testing.assert_array_equal(pixels.values, values[3:7, :, [2, 0]])
    np.testing.assert_array_equal(pixels.valid.any(axis=1), [True, False, False, True])


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("red", "green", "blue", "nir"), RasterOptions()),
        (("red", "green", "blue", "alpha"), RasterOptions(alpha_is_band=True)),
    ],
)
def test_an_alpha_band_that_is_named_or_declared_is_data(
    tmp_path, write_raster, names, options
):
    values = (VALUES[..., :4] % 200).astype("uint8")
    path = write_raster(tmp_path / "scene.tif", values, descriptions=names)
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3].name == "alpha"

    with open_raster(path, options) as reader:
        assert reader.header.band_names == names
        pixels = reader.read(reader.header.grid.window, range(4))

    np.testing.assert_array_equal(pixels.values, values)
    assert pixels.valid.all()


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"],
)
def test_integers_stay_integers_and_their_extremes_can_be_nodata(read_all, dtype):
    limits = np.iinfo(dtype)
    lowest, highest = limits.min, limits.max
    values = (VALUES[..., :2] % 100 + 1).astype(dtype)
    values[0, 0], values[1, 1] = lowest, highest

    # A file keeps nodata as text of a float, too short for the ends of 64 bits.
    nodata = {"int64": -9999, "uint64": 0}.get(dtype, lowest)
    values[2, 2] = nodata
    pixels = read_all(values, nodata=nodata)

    assert pixels.values.dtype == dtype
    np.testing.assert_array_equal(pixels.values, values)
    np.testing.assert_array_equal(pixels.valid, (values != nodata).all(axis=-1))


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", -1), ("uint8", 256), ("int16", 0.5), ("int8", np.inf)],
)
def test_a_nodata_value_that_the_dtype_cannot_hold_makes_nothing_invalid(
    tmp_path, write_raster, dtype, nodata
):
    path = write_raster(tmp_path / "scene.tif", (VALUES % 100).astype(dtype))

    with open_raster(path, RasterOptions(nodata=nodata)) as reader:
        assert reader.read(reader.header.grid.window, [0]).valid.all()


@pytest.mark.parametrize(("nodata", "meant"), [(40, [40]), (np.nan, []), (None, [7])])
def test_the_nodata_value_of_the_manifest_replaces_that_of_the_file(
    tmp_path, write_raster, nodata, meant
):
    values = (VALUES % 100).astype("uint8")
    path = write_raster(tmp_path / "scene.tif", values, nodata=7)

    with open_raster(path, RasterOptions(nodata=nodata)) as reader:
        valid = reader.read(reader.header.grid.window, [1, 3]).valid

    expected = ~np.isin(values[..., [1, 3]], meant).any(axis=-1)
    np.testing.assert_array_equal(valid, expected)


@pytest.fixture
def scaled_path(tmp_path, write_raster):
    """An int32 file of 5 bands, each with a scale and an offset, and nodata 12."""
    path = write_raster(tmp_path / "scene.tif", VALUES.astype("int32"), nodata=12)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (0.5, 2, 3, 1, 1e-4)
        dataset.offsets = (0, -10, 100, 0, 1)
    return path


def test_the_scale_and_offset_of_a_file_give_physical_values(scaled_path):
    with open_raster(scaled_path) as reader:
        header = reader.header
        pixels = reader.read(Window(row=-1, col=0, height=9, width=9), [4, 1])

    assert (header.dtype, header.file_dtype) == ("float32", "int32")
    assert header.scales == (0.5, 2, 3, 1, 1e-4)
    assert header.offsets == (0, -10, 100, 0, 1)
    assert pixels.values.dtype == np.float32
    expected = VALUES[:8, :9][..., [4, 1]] * np.array([1e-4, 2]) + np.array([1, -10])
    np.testing.assert_allclose(pixels.values[1:], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        pixels.valid[1:], (VALUES[:8, :9][..., [4, 1]] != 12).all(axis=-1)
    )
    assert not pixels.valid[0].any()


def test_the_scale_of_the_manifest_replaces_that_of_the_file(scaled_path):
    options = RasterOptions(scale=(2.0,), offset=(1.0, 2.0, 3.0, 4.0, 5.0))
    with open_raster(scaled_path, options) as reader:
        header = reader.header
        values = reader.read(header.grid.window, [3]).values

    assert header.scales == (2.0,) * BANDS
    assert header.offsets == (1.0, 2.0, 3.0, 4.0, 5.0)
    np.testing.assert_array_equal(values, VALUES[..., [3]] * 2 + 4)


def test_a_scale_of_1_and_an_offset_of_0_give_raw_integers(scaled_path):
    options = RasterOptions(scale=(1.0,), offset=(0.0,))
    with open_raster(scaled_path, options) as reader:
        values = reader.read(reader.header.grid.window, range(BANDS)).values

    assert values.dtype == np.int32
    np.testing.assert_array_equal(values, VALUES)


TRUSTING = RasterOptions(trust_sidecars=True)


def test_a_trusted_aux_xml_changes_nodata(tmp_path, write_raster):
    values = (VALUES % 9).astype("int16")
    path = write_raster(tmp_path / "scene.tif", values)
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>1</NoDataValue>'
        "</PAMRasterBand></PAMDataset>"
    )

    with open_raster(path, TRUSTING) as reader:
        valid = reader.read(reader.header.grid.window, [0]).valid

    np.testing.assert_array_equal(valid, values[..., 0] != 1)


def test_a_trusted_mask_file_makes_pixels_invalid(tmp_path, write_raster):
    path = write_raster(tmp_path / "scene.tif", VALUES.astype("int16"))
    mask = np.full((HEIGHT, WIDTH), 255, "uint8")
    mask[2:5, 7:9] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(path, "r+") as dataset,
    ):
        dataset.write_mask(mask)

    with open_raster(path, TRUSTING) as reader:
        assert reader.header.has_mask
        valid = reader.read(reader.header.grid.window, [0]).valid

    np.testing.assert_array_equal(valid, mask > 0)


def test_a_trusted_mask_file_that_is_a_vrt_is_refused(tmp_path, write_raster):
    path = write_raster(tmp_path / "scene.tif", VALUES.astype("int16"))
    Path(f"{path}.msk").write_text(make_vrt(path))

    with pytest.raises(UnsafeFileError, match=r"scene\.tif\.msk holds XML"):
        read_header(path, TRUSTING)


def test_a_block_is_decoded_once_for_the_windows_that_share_it(tmp_path, write_raster):
    path = write_raster(
        tmp_path / "scene.tif",
        VALUES.astype("int16"),
        tiled=True,
        blockxsize=16,
        blockysize=16,
        compress="deflate",
    )
    with open_raster(path) as reader:
        window = Window(row=1, col=2, height=17, width=23)  # of four blocks
        first = reader.read(window, [0, 3]).values
        os.truncate(path, 0)  # only the cache knows the block now
        again = reader.read(window, [0, 3]).values

    np.testing.assert_array_equal(first, again)


def test_a_damaged_table_of_blocks_is_an_error(tmp_path, write_raster):
    path = write_raster(tmp_path / "scene.tif", VALUES.astype("int16"))
    content = path.read_bytes()
    # Tag 273, StripOffsets, of type 4 (LONG) becomes type 2 (ASCII).
    damaged = content.replace(b"\x11\x01\x04\x00", b"\x11\x01\x02\x00")
    assert damaged != content
    path.write_bytes(damaged)

    with pytest.raises(DataError, match=re.escape(str(path))):
        read_and_find_unwritten(path)


def read_and_find_unwritten(path):
    with open_raster(path) as reader:
        reader.read(reader.header.grid.window, [0])
    return find_unwritten_blocks(path)
