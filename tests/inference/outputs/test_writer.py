"""A layer under its final name is whole; of any other, nothing is left."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rio_cogeo.cogeo import cog_validate

from cropseg.errors import ResourceError
from cropseg.inference.outputs import writer
from cropseg.inference.outputs.layers import Layer, list_layers
from cropseg.inference.outputs.writer import read_part, write_layer, write_part
from cropseg.sites.grid import Window
from cropseg.sites.raster import open_raster

KILLED = """
import os, pickle, signal, sys
import numpy as np
from pathlib import Path
from cropseg.inference.outputs.writer import write_layer
from cropseg.sites.grid import Window
path, job = Path(sys.argv[1]), Path(sys.argv[2])
grid, layer, card = pickle.loads(job.read_bytes())
with write_layer(path, grid, layer, card, tags={}) as file:
    for row in range(0, 512, 64):
        window = Window(row=row, col=0, height=64, width=grid.width)
        file.write(window, np.ones((64, grid.width, 1), "uint8"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def grid(make_grid):
    """A grid of 700 x 530 pixels, so 2 x 2 blocks of 512, and some overviews."""
    return make_grid(700, 530)


@pytest.fixture
def layer(card):
    """The layer of the classes."""
    return list_layers(card)[0]


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
        values = classes[window.slices_in(grid.window)]
        file.write(window, values if values.ndim == 3 else values[..., None])
    if fail is not None:
        raise fail


def list_names(folder):
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def test_a_map_is_a_valid_cog_of_the_classes_on_the_grid(
    card, layer, grid, classes, out_dir
):
    path = out_dir / "map.tif"
    with write_layer(path, grid, layer, card, tags={"site": "area"}) as file:
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
    assert list_names(out_dir) == ["map.tif", "map.tif.aux.xml"]


def test_a_map_has_the_colours_and_names_of_the_classes(
    card, layer, grid, classes, out_dir
):
    path = out_dir / "map.tif"
    with write_layer(path, grid, layer, card, tags={"site": "area"}) as file:
        write_all(file, grid, classes)
    with rasterio.open(path) as found:
        colors, tags = found.colormap(1), found.tags()
    assert [colors[index] for index in range(4)] == [
        (0x26, 0x73, 0x00, 255),
        (0xD8, 0xB5, 0x6B, 255),
        (0xE8, 0xFF, 0xBF, 255),
        (0x4A, 0x6F, 0xA3, 255),
    ]
    assert json.loads(tags["classes"]) == list(card.class_names)
    assert [tags[f"class_{index}"] for index in range(4)] == json.loads(tags["classes"])
    assert tags["site"] == "area"


def test_overviews_take_the_most_frequent_class(card, layer, grid, out_dir):
    classes = np.full((700, 530), 3, "uint8")
    classes[::2, ::2] = 1  # what "nearest" would take
    path = out_dir / "map.tif"
    with write_layer(path, grid, layer, card, tags={}) as file:
        write_all(file, grid, classes)
    with rasterio.open(path, overview_level=0) as half:
        small = half.read(1)
    assert small.shape == (350, 265)
    assert (small == 3).all()


def test_a_map_that_was_not_given_every_pixel_is_not_kept(card, layer, grid, out_dir):
    path = out_dir / "map.tif"
    window = Window(row=600, col=520, height=20, width=10)
    file_pixels = np.full((20, 10, 1), 2, "uint8")
    with (
        pytest.raises(ResourceError, match="not written whole"),
        write_layer(path, grid, layer, card, tags={}) as file,
    ):
        file.write(window, file_pixels)
    assert list_names(out_dir) == []


class InterruptionError(Exception):
    """Something that goes wrong while windows are written."""


@pytest.mark.parametrize("error", [InterruptionError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("has_old", [True, False])
def test_an_error_midway_leaves_nothing_but_the_old_map(
    error, has_old, card, layer, grid, classes, out_dir
):
    path = out_dir / "map.tif"
    if has_old:
        out_dir.mkdir()
        path.write_bytes(b"old")
    with (
        pytest.raises(error),
        write_layer(path, grid, layer, card, tags={}) as file,
    ):
        write_all(file, grid, classes, fail=error)
    assert list_names(out_dir) == (["map.tif"] if has_old else [])
    assert not has_old or path.read_bytes() == b"old"


def test_a_map_that_reads_back_otherwise_is_not_kept(
    card, layer, grid, classes, out_dir, monkeypatch
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
        pytest.raises(
            ResourceError, match=r"maps/map.tif was not written whole: 2 values"
        ) as caught,
        write_layer(out_dir / "map.tif", grid, layer, card, tags={}) as file,
    ):
        write_all(file, grid, classes)
    assert caught.value.exit_code == 6
    assert list_names(out_dir) == []


def test_a_copy_that_is_cut_short_is_not_kept(
    card, layer, grid, classes, out_dir, monkeypatch
):
    copy = writer.rasterio.shutil.copy

    def copy_and_cut(source, target, **options):
        copy(source, target, **options)
        os.truncate(target, target.stat().st_size // 2)

    monkeypatch.setattr(writer.rasterio.shutil, "copy", copy_and_cut)
    with (
        pytest.raises(ResourceError),
        write_layer(out_dir / "map.tif", grid, layer, card, tags={}) as file,
    ):
        write_all(file, grid, classes)
    assert list_names(out_dir) == []


def test_a_copy_that_gdal_refuses_is_a_resource_error(
    card, layer, grid, classes, out_dir, monkeypatch
):
    copy = writer.rasterio.shutil.copy

    def copy_nowhere(source, target, **options):
        copy(source, target.parent / "no such folder" / target.name, **options)

    monkeypatch.setattr(writer.rasterio.shutil, "copy", copy_nowhere)
    with (
        pytest.raises(ResourceError, match="room for itself twice"),
        write_layer(out_dir / "map.tif", grid, layer, card, tags={}) as file,
    ):
        write_all(file, grid, classes)
    assert list_names(out_dir) == []


def test_overviews_of_a_copy_that_failed_are_not_left(
    card, layer, grid, classes, out_dir, monkeypatch
):
    def copy_and_fail(source, target, **options):
        del source, options
        target.with_name(f"{target.name}.ovr.tmp").touch()
        raise RasterioError("No space left on device")

    monkeypatch.setattr(writer.rasterio.shutil, "copy", copy_and_fail)
    with (
        pytest.raises(ResourceError, match="No space left"),
        write_layer(out_dir / "map.tif", grid, layer, card, tags={}) as file,
    ):
        write_all(file, grid, classes)
    assert list_names(out_dir) == []


@pytest.mark.parametrize("limit_bytes", [2_000, 40_000])
def test_a_full_disk_leaves_nothing(card, layer, grid, out_dir, limit_bytes):
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
            write_layer(path, grid, layer, card, tags={}) as file,
        ):
            write_all(file, grid, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list_names(out_dir) == []


def test_a_killed_writer_leaves_no_map_and_the_next_one_none_of_its_files(
    card, layer, grid, classes, out_dir, tmp_path
):
    path, job = out_dir / "map.tif", tmp_path / "job"
    out_dir.mkdir()
    job.write_bytes(pickle.dumps((grid, layer, card)))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, job],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list_names(out_dir)
    assert left
    assert all(name.startswith(".") for name in left)
    with write_layer(path, grid, layer, card, tags={}) as file:
        write_all(file, grid, classes)
    assert list_names(out_dir) == ["map.tif", "map.tif.aux.xml"]


@pytest.mark.parametrize("name", ["confidence", "probabilities"])
def test_probabilities_come_back_through_the_scale_of_their_file(
    name, card, grid, out_dir
):
    layers = list_layers(card, confidence=True, probabilities=True)
    layer = next(item for item in layers if item.name == name)
    shape = (grid.height, grid.width, layer.num_bands)
    stored = np.random.default_rng(0).integers(0, 251, shape, "uint8")
    stored[100:150] = 255
    path = out_dir / "layer.tif"
    with write_layer(path, grid, layer, card, tags={}) as file:
        write_all(file, grid, stored)
    assert cog_validate(path, strict=True) == (True, [], [])
    with open_raster(path) as reader:
        pixels = reader.read(grid.window, range(layer.num_bands))
    np.testing.assert_array_equal(pixels.valid, stored[..., 0] != 255)
    assert pixels.values.dtype == np.float32
    np.testing.assert_allclose(
        pixels.values[pixels.valid], stored[pixels.valid] * 0.004, atol=1e-6
    )
    with rasterio.open(path) as found:
        assert found.descriptions == layer.band_names
        assert ColorInterp.alpha not in found.colorinterp  # of four bands
        assert list_names(out_dir) == ["layer.tif"]


def test_overviews_of_probabilities_are_means_of_what_has_data(card, grid, out_dir):
    layer = list_layers(card, confidence=True)[1]
    stored = np.full((700, 530, 1), 100, "uint8")
    stored[::2, ::2] = 200
    stored[1::2, 1::2] = 255
    path = out_dir / "layer.tif"
    with write_layer(path, grid, layer, card, tags={}) as file:
        write_all(file, grid, stored)
    with rasterio.open(path, overview_level=0) as half:
        assert (half.read(1) == 133).all()


@pytest.mark.parametrize("num_bands", [1, 3, 4, 40])
def test_a_part_is_read_as_it_was_written(num_bands, grid, out_dir):
    layer = Layer(
        name="probabilities",
        band_names=tuple(f"band {i}" for i in range(num_bands)),
        overview="average",
        scale=0.004,
    )
    area = Window(row=130, col=0, height=170, width=530)
    stored = np.random.default_rng(0).integers(0, 256, (700, 530, num_bands), "uint8")
    path = out_dir / ".scene.part"
    with write_part(path, grid, area, layer) as file:
        for row in (250, 130, 200):  # in any order
            window = Window(row=row, col=0, height=70, width=530).intersect(area)
            window = (
                window if row != 250 else Window(row=270, col=0, height=30, width=530)
            )
            file.write(window, stored[window.slices_in(grid.window)])
    seen = np.zeros((700, 530), int)
    for window, values in read_part(path):
        place = window.slices_in(grid.window)
        np.testing.assert_array_equal(values, stored[place])
        seen[place] += 1
    expected = np.zeros((700, 530), int)
    expected[area.slices_in(grid.window)] = 1
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(
        file.counts[-1], np.bincount(stored[130:300, :, -1].ravel(), minlength=256)
    )


def test_a_part_that_was_not_given_every_pixel_is_not_kept(layer, grid, out_dir):
    area = Window(row=130, col=0, height=170, width=530)
    with (
        pytest.raises(ResourceError, match="not written whole"),
        write_part(out_dir / ".part.tif", grid, area, layer) as file,
    ):
        file.write(area, np.zeros((170, 529, 1), "uint8"))
    assert list_names(out_dir) == []


@pytest.mark.parametrize("num_bands", [1, 12])
def test_reading_back_takes_little_memory(num_bands, make_grid, out_dir):
    grid = make_grid(2600, 1700)
    layer = Layer(
        name="probabilities",
        band_names=tuple(f"band {i}" for i in range(num_bands)),
        overview="average",
        scale=0.004,
    )
    stored = np.zeros((grid.height, grid.width, num_bands), "uint8")
    with write_part(out_dir / ".part.tif", grid, grid.window, layer) as file:
        file.write(grid.window, stored)
        tracemalloc.start()
    peaks = [tracemalloc.get_traced_memory()[1]]
    tracemalloc.reset_peak()
    for _ in read_part(out_dir / ".part.tif"):
        pass
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    block_bytes = num_bands * 512**2  # 3 MiB of 12 bands
    assert 2**20 < max(peaks) < 5 * max(2**20, block_bytes)


def test_layers_of_several_scenes_may_be_open_at_a_time(card, layer, grid, out_dir):
    values = {n: np.full((700, 530, 1), i, "uint8") for i, n in enumerate("abc")}
    opened = {
        name: write_layer(out_dir / f"{name}.tif", grid, layer, card, tags={})
        for name in values
    }
    writers = {name: context.__enter__() for name, context in opened.items()}
    for name in "bac":  # in which the first to come is not the first to go
        writers[name].write(grid.window, values[name])
        opened[name].__exit__(None, None, None)
    for name in values:
        with rasterio.open(out_dir / f"{name}.tif") as found:
            np.testing.assert_array_equal(found.read(1), values[name][..., 0])
