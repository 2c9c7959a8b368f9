"""Names and colours are where QGIS looks for them, and where cropseg does."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil

from cropseg.errors import DataError
from cropseg.inference.outputs.legend import MapClass, embed_table, read_classes

NAMES = ["soybeans", "wheat & rye", "grassland", "água"]
TABLE = [
    ["0", "soybeans", "38", "115", "0", "255"],
    ["1", "wheat & rye", "216", "181", "107", "255"],
    ["2", "grassland", "232", "255", "191", "255"],
    ["3", "água", "74", "111", "163", "255"],
]


@pytest.fixture
def class_map(write_map, draw_patches):
    """The path of a class map of 1000 x 700 pixels, which has overviews."""
    return write_map(draw_patches(1000, 700, sigma=9)).classes_path


@pytest.fixture(scope="module")
def new_gdal():
    """GDAL 3.12, which finds the table in the TIFF. pyogrio brings one along."""
    if pyogrio.__gdal_version__ < (3, 12, 0):
        pytest.skip(f"pyogrio brings GDAL {pyogrio.__gdal_version__}")
    folder = Path(pyogrio.__file__).parent.parent / "pyogrio.libs"
    found = list(folder.glob("libgdal*"))
    if not found:
        pytest.skip("pyogrio was not installed from a wheel")
    library = ctypes.CDLL(str(found[0]))
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("GDALOpen", pointer, [text, number]),
        ("GDALGetRasterBand", pointer, [pointer, number]),
        ("GDALGetDefaultRAT", pointer, [pointer]),
        ("GDALRATGetRowCount", number, [pointer]),
        ("GDALRATGetColumnCount", number, [pointer]),
        ("GDALRATGetValueAsString", text, [pointer, number, number]),
        ("GDALRATGetUsageOfCol", number, [pointer, number]),
        ("GDALClose", number, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.GDALAllRegister()
    return library


def test_new_gdal_finds_the_attribute_table_inside_the_map(class_map, new_gdal):
    class_map.with_name(class_map.name + ".aux.xml").unlink()
    dataset = new_gdal.GDALOpen(str(class_map).encode(), 0)
    table = new_gdal.GDALGetDefaultRAT(new_gdal.GDALGetRasterBand(dataset, 1))
    columns = range(new_gdal.GDALRATGetColumnCount(table))
    found = [
        [new_gdal.GDALRATGetValueAsString(table, row, col).decode() for col in columns]
        for row in range(new_gdal.GDALRATGetRowCount(table))
    ]
    usages = [new_gdal.GDALRATGetUsageOfCol(table, col) for col in columns]
    new_gdal.GDALClose(dataset)
    assert found == TABLE
    assert usages == [5, 2, 6, 7, 8, 9]  # value, name, red, green, blue, alpha


def test_older_gdal_finds_the_names_beside_the_map(class_map, tmp_path):
    copy = tmp_path / "copy.vrt"
    rasterio.shutil.copy(class_map, copy, driver="VRT")
    text = copy.read_text(encoding="utf-8")
    places = [
        text.find(f"<Category>{name}") for name in ("soybeans", "wheat &amp; rye")
    ]
    assert -1 < places[0] < places[1]
    assert "<Category>água</Category>" in text


def test_the_table_takes_the_whole_room_that_was_kept_for_it(class_map):
    content = class_map.read_bytes()
    assert content.count(b'role="rat"><GDALRasterAttributeTable') == 1
    assert b"xxxxxxxx" not in content
    with rasterio.open(class_map) as found:
        assert found.overviews(1)
        assert set(found.tags(1)) <= {"DEFAULT_RASTER_ATTRIBUTE_TABLE"}


def test_the_classes_of_a_map_are_read_from_it_alone(class_map, card):
    class_map.with_name(class_map.name + ".aux.xml").write_text("<PAMDataset/>")
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), rasterio.open(class_map) as dataset:
        classes = read_classes(class_map, dataset)
    assert [item.name for item in classes] == NAMES
    assert [item.color for item in classes] == [item.color for item in card.classes]


def test_a_raster_that_is_no_map_of_cropseg_is_refused(write_raster, tmp_path):
    path = write_raster(tmp_path / "labels.tif", np.zeros((7, 5), "uint8"))
    with (
        rasterio.open(path) as dataset,
        pytest.raises(DataError, match="no class map of cropseg"),
    ):
        read_classes(path, dataset)


def test_a_table_without_room_is_refused(class_map):
    before = class_map.read_bytes()
    with pytest.raises(DataError, match="no room"):
        embed_table(class_map, (MapClass(name="corn", color="#ffffff"),))
    assert class_map.read_bytes() == before
