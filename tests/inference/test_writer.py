"""A class map under its final name is whole; of any other, nothing is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from cropseg.errors import ResourceError
from cropseg.inference import writer
from cropseg.inference.writer import write_class_map
from cropseg.sites.grid import Grid, Window

KILLED = """
import os, pickle, signal, sys
import numpy as np
from pathlib import Path
from cropseg.inference.writer import write_class_map
from cropseg.models.card import Card
from cropseg.sites.grid import Window
from cropseg.sites.raster import read_header
scene, path, card = sys.argv[1:]
grid = read_header(Path(scene)).grid
card = Card.model_validate_json(card)
with write_class_map(Path(path), grid, card, {}) as file:
    for row in range(0, 512, 64):
        window = Window(row=row, col=0, height=64, width=grid.width)
        file.write(window, np.ones((64, grid.width), "uint8"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def grid(write_raster, tmp_path):
    """A grid of 700 x 530 pixels, so 2 x 2 blocks of 512, and some overviews."""
    blank = np.zeros((700, 530), "uint8")
    with rasterio.open(write_raster(tmp_path / "scene.tif", blank)) as scene:
        return Grid(height=700, width=530, transform=scene.transform, crs=scene.crs)


@pytest.fixture
def classes(grid):
    """Class ids in an asymmetric pattern; the last 30 rows have no data."""
    rows, cols = np.indices((grid.height, grid.width))
    ids = ((rows // 60 + 2 * (cols // 45)) % 4).astype("uint8")
    ids[-30:] = 255
    return ids


@pytest.fixture
def out_dir(tmp_path):
    return tmp_path / "maps"


def write_all(file, grid, classes, *, rows=100, fail=None):
    """Write a map in strips, and fail after the last one if asked to."""
    for row in range(0, grid.height, rows):
        window = Window(row=row, col=0, height=rows, width=grid.width)
        window = window.clip(height=grid.height, width=grid.width)
        file.write(window, classes[window.slices_in(grid.window)])
    if fail is not None:
        raise fail


def list_names(folder):
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def test_a_map_is_a_valid_cog_of_the_classes_on_the_grid(
    bundle, grid, classes, out_dir
):
    path = out_dir / "map.tif"
    with write_class_map(path, grid, bundle.card, {"site": "area"}) as file:
        write_all(file, grid, classes)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as found:
        assert (found.crs, found.transform) == (grid.crs, grid.transform)
        assert found.shape == (700, 530)
        assert (found.count, found.dtypes, found.nodata) == (1, ("uint8",), 255)
        assert found.overviews(1)
        np.testing.assert_array_equal(found.read(1), classes)
        np.testing.assert_array_equal(found.dataset_mask() == 0, classes == 255)
    assert list_names(out_dir) == ["map.tif"]


def test_a_map_has_the_colours_and_names_of_the_classes(bundle, grid, classes, out_dir):
    path = out_dir / "map.tif"
    with write_class_map(path, grid, bundle.card, {"site": "area"}) as file:
        write_all(file, grid, classes)
    with rasterio.open(path) as found:
        colors, tags = found.colormap(1), found.tags()
    assert [colors[index] for index in range(4)] == [
        (0x26, 0x73, 0x00, 255),
        (0xD8, 0xB5, 0x6B, 255),
        (0xE8, 0xFF, 0xBF, 255),
        (0x4A, 0x6F, 0xA3, 255),
    ]
    assert json.loads(tags["classes"]) == ["soybeans", "wheat", "grassland", "water"]
    assert [tags[f"class_{index}"] for index in range(4)] == json.loads(tags["classes"])
    assert tags["site"] == "area"


def test_overviews_take_the_most_frequent_class(bundle, grid, out_dir):
    classes = np.full((700, 530), 3, "uint8")
    classes[::2, ::2] = 1  # what "nearest" would take
    path = out_dir / "map.tif"
    with write_class_map(path, grid, bundle.card, {}) as file:
        write_all(file, grid, classes)
    with rasterio.open(path, overview_level=0) as half:
        small = half.read(1)
    assert small.shape == (350, 265)
    assert (small == 3).all()


def test_a_map_that_was_not_given_every_pixel_is_not_kept(bundle, grid, out_dir):
    path = out_dir / "map.tif"
    window = Window(row=600, col=520, height=20, width=10)
    file_pixels = np.full((20, 10), 2, "uint8")
    with (
        pytest.raises(ResourceError, match="not written whole"),
        write_class_map(path, grid, bundle.card, {}) as file,
    ):
        file.write(window, file_pixels)
    assert list_names(out_dir) == []


class InterruptionError(Exception):
    """Something that goes wrong while windows are written."""


@pytest.mark.parametrize("error", [InterruptionError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("has_old", [True, False])
def test_an_error_midway_leaves_nothing_but_the_old_map(
    error, has_old, bundle, grid, classes, out_dir
):
    path = out_dir / "map.tif"
    if has_old:
        out_dir.mkdir()
        path.write_bytes(b"old")
    with (
        pytest.raises(error),
        write_class_map(path, grid, bundle.card, {}) as file,
    ):
        write_all(file, grid, classes, fail=error)
    assert list_names(out_dir) == (["map.tif"] if has_old else [])
    assert not has_old or path.read_bytes() == b"old"


def test_a_map_that_reads_back_otherwise_is_not_kept(
    bundle, grid, classes, out_dir, monkeypatch
):
    copy = writer.rasterio.shutil.copy

    def copy_less(source, target, **options):
        with rasterio.open(source, "r+") as dataset:
            dataset.write(np.zeros((1, 1, 1), "uint8"), window=((650, 651), (7, 8)))
        copy(source, target, **options)

    before = classes.copy()
    classes[650, 7] = 3
    assert before[650, 7] != 0
    monkeypatch.setattr(writer.rasterio.shutil, "copy", copy_less)
    with (
        pytest.raises(ResourceError, match="2 pixels differ") as caught,
        write_class_map(out_dir / "map.tif", grid, bundle.card, {}) as file,
    ):
        write_all(file, grid, classes)
    assert caught.value.exit_code == 6
    assert list_names(out_dir) == []


def test_a_copy_that_is_cut_short_is_not_kept(
    bundle, grid, classes, out_dir, monkeypatch
):
    copy = writer.rasterio.shutil.copy

    def copy_and_cut(source, target, **options):
        copy(source, target, **options)
        os.truncate(target, target.stat().st_size // 2)

    monkeypatch.setattr(writer.rasterio.shutil, "copy", copy_and_cut)
    with (
        pytest.raises(ResourceError),
        write_class_map(out_dir / "map.tif", grid, bundle.card, {}) as file,
    ):
        write_all(file, grid, classes)
    assert list_names(out_dir) == []


def test_a_copy_that_gdal_refuses_is_a_resource_error(
    bundle, grid, classes, out_dir, monkeypatch
):
    copy = writer.rasterio.shutil.copy

    def copy_nowhere(source, target, **options):
        copy(source, target.parent / "no such folder" / target.name, **options)

    monkeypatch.setattr(writer.rasterio.shutil, "copy", copy_nowhere)
    with (
        pytest.raises(ResourceError, match="room for itself twice"),
        write_class_map(out_dir / "map.tif", grid, bundle.card, {}) as file,
    ):
        write_all(file, grid, classes)
    assert list_names(out_dir) == []


@pytest.mark.parametrize("limit_bytes", [2_000, 40_000])
def test_a_full_disk_leaves_nothing(bundle, grid, out_dir, limit_bytes):
    """A limit on the size of a file stands in for the disk."""
    noise = np.random.default_rng(0).integers(0, 4, (700, 530), "uint8")
    path = out_dir / "map.tif"
    out_dir.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with (
            pytest.raises(ResourceError),
            write_class_map(path, grid, bundle.card, {}) as file,
        ):
            write_all(file, grid, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list_names(out_dir) == []


def test_a_killed_writer_leaves_no_map_and_the_next_one_none_of_its_files(
    bundle, grid, classes, out_dir, tmp_path
):
    path = out_dir / "map.tif"
    out_dir.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-c", KILLED),
            *(tmp_path / "scene.tif", path, bundle.card.model_dump_json()),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list_names(out_dir)
    assert left
    assert all(name.startswith(".") for name in left)
    with write_class_map(path, grid, bundle.card, {}) as file:
        write_all(file, grid, classes)
    assert list_names(out_dir) == ["map.tif"]
