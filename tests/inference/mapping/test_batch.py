"""Scenes become finished files once, whatever ended the call before."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rio_cogeo.cogeo import cog_validate

from cropseg.errors import ConflictError, DataError, ResourceError
from cropseg.inference.mapping import assemble, batch
from cropseg.inference.mapping.assemble import assemble_scene
from cropseg.inference.mapping.batch import map_scenes
from cropseg.inference.mapping.channel import ClosedError
from cropseg.inference.mapping.jobs import cut_scene
from cropseg.inference.mapping.parts import list_engines
from cropseg.inference.mapping.pipeline import run_jobs
from cropseg.inference.scenes.region import open_region

KILLED = """
import os, pickle, signal, sys, time
from functools import partial
from types import SimpleNamespace
import numpy as np
from cropseg.inference.mapping import jobs
from cropseg.inference.mapping.assemble import assemble_scene
from cropseg.inference.mapping.batch import map_scenes
from cropseg.inference.mapping.channel import ClosedError
from cropseg.inference.mapping.pipeline import run_jobs

class Engine:
    name, precision, card = "threshold", "float32", SimpleNamespace(nodata_fill=0)
    def stream(self, tiles, *, margin):
        for number, (key, values) in enumerate(tiles):
            if number == last:
                time.sleep(1)  # until what came before is written
                os.kill(os.getpid(), signal.SIGKILL)
            inside = values[margin:-margin, margin:-margin, 0].astype("int64")
            yield key, np.eye(7, dtype="float32")[inside % 7]

jobs.BAND_PIXELS = 1
with open(sys.argv[1], "rb") as file:
    scenes, last = pickle.load(file)
for result in map_scenes(partial(run_jobs, Engine()), scenes):
    assert result.error is None, result.error
"""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    left = [thread for thread in threading.enumerate() if "cropseg" in thread.name]
    assert left == []


@pytest.fixture
def scenes(make_job):
    return [make_job(f"s{i}", *size) for i, size in enumerate([(67, 103), (35, 47)])]


def run(engine):
    return partial(run_jobs, engine)


def list_names(scene):
    """List what is in the folder of the maps, hidden files of all folders too."""
    folder = scene.out_dir
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return sorted(name for name in names if not name.endswith(".aux.xml"))


def expect(scene, read_values):
    values = read_values(scene)
    return np.where(values == -1, 255, values % 7)


@pytest.mark.usefixtures("small_bands")
def test_a_scene_of_many_bands_is_put_together_and_its_parts_go(
    make_job, make_engine, read_values, read_layer
):
    holes = [np.s_[:, 9:12], np.s_[20:60, 50:]]
    options = {"confidence": True, "probabilities": True}
    scene = make_job("s0", 67, 103, holes=holes, **options)
    assert len(cut_scene(scene)) == 5
    (result,) = map_scenes(run(make_engine()), [scene])
    assert result.error is None
    expected = expect(scene, read_values)
    np.testing.assert_array_equal(read_layer(scene)[..., 0], expected)
    np.testing.assert_array_equal(
        read_layer(scene, 1)[..., 0], np.where(expected == 255, 255, 250)
    )
    assert result.class_pixels == tuple(np.bincount(expected.ravel(), minlength=8)[:7])
    for path in result.paths:
        assert cog_validate(path, strict=True) == (True, [], [])
    assert list_names(scene) == sorted(path.name for path in result.paths)


def test_memory_is_given_back_between_bands_and_not_after_each_small_scene(
    scenes, make_engine, request, monkeypatch
):
    released = []
    monkeypatch.setattr(assemble, "release_memory", lambda: released.append(1))
    list(map_scenes(run(make_engine()), scenes, in_parts=True))
    assert not released

    request.getfixturevalue("small_bands")
    again = [replace(scene, out_dir=scene.out_dir / "again") for scene in scenes]
    list(map_scenes(run(make_engine()), again))
    assert len(released) == sum(len(cut_scene(scene)) for scene in again)


@pytest.mark.parametrize("in_parts", [True, False])
def test_parts_or_not_the_files_are_the_same(in_parts, scenes, make_engine, tmp_path):
    for scene in scenes:
        whole = replace(scene, out_dir=tmp_path / "whole")
        list(map_scenes(run(make_engine()), [whole]))
        list(map_scenes(run(make_engine()), [scene], in_parts=in_parts))
        for layer in scene.layers:
            one, other = (job.get_path(layer).read_bytes() for job in (whole, scene))
            assert one == other


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize(
    "last",
    [17, *(pytest.param(last, marks=pytest.mark.slow) for last in (0, 5, 26, 40))],
)
def test_a_killed_process_goes_on_from_its_last_band(
    last, scenes, make_engine, read_values, read_layer, tmp_path
):
    state = tmp_path / "state"
    state.write_bytes(pickle.dumps((scenes, last)))
    command = [sys.executable, "-c", KILLED, state]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = scenes[0].out_dir
    finished = set(folder.glob("*.tif")) if folder.exists() else set()
    for path in finished:
        assert cog_validate(path, strict=True)[0]
    left = [s for s in scenes if s.get_path(s.layers[0]) not in finished]
    bands = [band for scene in left for band in cut_scene(scene)]
    num_cols = {scene.name: -(-scene.grid.width // 16) for scene in scenes}
    num_tiles = sum(num_cols[b.scene.name] for b in bands if not b.is_done)

    engine = make_engine(batch_size=1)
    results = list(map_scenes(run(engine), left))

    assert [result.error for result in results] == [None] * len(left)
    assert len(engine.tiles) == num_tiles
    assert (num_tiles < 5 * 7 + 3 * 3) == (last > 10)
    for scene in scenes:
        np.testing.assert_array_equal(
            read_layer(scene)[..., 0], expect(scene, read_values)
        )
    assert list_names(scenes[0]) == ["s0_classes.tif", "s1_classes.tif"]


@pytest.mark.usefixtures("small_bands")
def test_a_scene_whose_bands_are_all_done_needs_no_engine(
    scenes, make_engine, read_values, read_layer
):
    bands = [band for scene in scenes for band in cut_scene(scene)]
    assert all(r.error is None for r in run_jobs(make_engine(), bands))
    assert list_names(scenes[0])[0].startswith(".parts")
    engine = make_engine()
    results = list(map_scenes(run(engine), scenes))
    assert len(results) == 2
    assert engine.batches == []
    for scene in scenes:
        np.testing.assert_array_equal(
            read_layer(scene)[..., 0], expect(scene, read_values)
        )
    assert ".parts" not in list_names(scenes[0])


@pytest.mark.usefixtures("small_bands")
def test_parts_of_other_content_are_not_used_and_go(scenes, make_engine, read_layer):
    old = replace(scenes[0], fingerprint="old")
    list(run_jobs(make_engine(), cut_scene(old)[:2]))
    engine = make_engine(batch_size=1)
    (result,) = map_scenes(run(engine), scenes[:1])
    assert result.error is None
    assert len(engine.tiles) == 5 * 7
    assert list_names(scenes[0]) == ["s0_classes.tif"]
    assert read_layer(scenes[0]).max() < 7


@pytest.mark.usefixtures("small_bands")
def test_a_failed_band_stops_its_scene_alone_and_the_others_stay(
    scenes, make_engine, monkeypatch, read_values, read_layer
):
    write = assemble.write_part

    def write_some(path, grid, area, layer):
        if "s0" in path.parts and area.row == 32:
            raise ResourceError("The disk is full.")
        return write(path, grid, area, layer)

    monkeypatch.setattr(assemble, "write_part", write_some)
    results = {r.scene.name: r for r in map_scenes(run(make_engine()), scenes)}
    assert str(results["s0"].error) == "The disk is full."
    assert results["s1"].error is None
    assert not scenes[0].get_path(scenes[0].layers[0]).exists()
    np.testing.assert_array_equal(
        read_layer(scenes[1])[..., 0], expect(scenes[1], read_values)
    )

    monkeypatch.undo()
    engine = make_engine(batch_size=1)
    monkeypatch.setattr("cropseg.inference.mapping.jobs.BAND_PIXELS", 1)
    (again,) = map_scenes(run(engine), scenes[:1])
    assert again.error is None
    assert 7 <= len(engine.tiles) < 5 * 7  # what was done is kept
    np.testing.assert_array_equal(
        read_layer(scenes[0])[..., 0], expect(scenes[0], read_values)
    )


@pytest.mark.usefixtures("small_bands")
def test_a_part_that_was_damaged_fails_its_scene_and_is_made_again(
    scenes, make_engine, read_values, read_layer
):
    bands = cut_scene(scenes[0])
    list(run_jobs(make_engine(), bands))
    part = bands[2].get_part_path(scenes[0].layers[0])
    os.truncate(part, part.stat().st_size // 2)
    (result,) = map_scenes(run(make_engine()), scenes[:1])
    assert isinstance(result.error, DataError)
    assert f"{part}, a band that was done before, was damaged" in str(result.error)
    assert not scenes[0].get_path(scenes[0].layers[0]).exists()

    engine = make_engine(batch_size=1)
    (again,) = map_scenes(run(engine), scenes[:1])
    assert again.error is None
    assert len(engine.tiles) == 7
    np.testing.assert_array_equal(
        read_layer(scenes[0])[..., 0], expect(scenes[0], read_values)
    )


@pytest.mark.usefixtures("small_bands")
def test_a_damaged_part_of_a_resampled_scene_is_made_again(make_job, make_engine):
    scene = make_job("s0", 90, 70, gsd_m=0.5)
    bands = cut_scene(scene)
    list(run_jobs(make_engine(), bands))
    bands[1].get_part_path(scene.layers[0]).write_bytes(b"no raster")
    (result,) = map_scenes(run(make_engine()), [scene])
    assert isinstance(result.error, DataError)
    (again,) = map_scenes(run(make_engine()), [scene])
    assert again.error is None


@pytest.mark.usefixtures("small_bands")
def test_bands_of_two_engines_are_not_put_into_one_map(scenes, make_engine):
    scene = scenes[0]
    bands = cut_scene(scene)
    list(run_jobs(make_engine(), bands[:2]))
    assert list_engines(scene.out_dir) == {"threshold float32"}
    other = make_engine()
    other.name = "other"
    (result,) = map_scenes(run(other), [scene])
    assert isinstance(result.error, ConflictError)
    assert "computed by threshold float32; now other float32" in str(result.error)
    assert not scene.get_path(scene.layers[0]).exists()
    assert not any(band.is_done for band in bands[2:])

    (result,) = map_scenes(run(make_engine()), [scene])
    assert (result.error, result.engine) == (None, "threshold float32")
    with rasterio.open(scene.get_path(scene.layers[0])) as found:
        assert found.tags()["cropseg_engine"] == "threshold float32"


@pytest.mark.parametrize("limit_bytes", [1_000, 20_000])
def test_a_full_disk_leaves_nothing_under_a_final_name(
    limit_bytes, make_job, make_engine
):
    """A limit on the size of a file stands in for the disk."""
    scene = make_job("s0", 400, 300, shape=replace_shape(make_job), confidence=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        (result,) = map_scenes(run(make_engine()), [scene])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(result.error, ResourceError)
    assert not scene.get_path(scene.layers[0]).exists()
    assert not [name for name in list_names(scene) if name.startswith(".")]


def replace_shape(make_job):
    return replace(make_job("shape", 9, 9).shape, size=144)


@pytest.mark.usefixtures("small_bands")
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_bands_and_no_map(error, scenes, make_engine):
    shown = []

    def show(job):
        shown.append(job)
        if len(shown) == 20:
            raise error

    engine = make_engine()
    runs = partial(run_jobs, engine, show_tile=show)
    with pytest.raises(error):
        list(map_scenes(runs, scenes))
    names = list_names(scenes[0])
    assert "s0_classes.tif" not in names
    assert not [name for name in names if ".part." in name or ".tiles." in name]
    assert any(band.is_done for band in cut_scene(scenes[0]))


@pytest.mark.usefixtures("small_bands")
def test_a_scene_is_put_together_whole_or_not_at_all(scenes, make_engine):
    list(run_jobs(make_engine(), cut_scene(scenes[0])))
    asked = []

    def is_stopped():
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(ClosedError):
        assemble_scene(scenes[0], is_stopped=is_stopped)
    assert all(name.startswith(".parts") for name in list_names(scenes[0]))
    assert sum(assemble_scene(scenes[0])) == 67 * 103
    # The folder of all parts is for the end: another band may be about to use it.
    assert list_names(scenes[0]) == [".parts", "s0_classes.tif"]


def test_a_batch_that_is_left_stops_putting_together(scenes, make_engine, monkeypatch):
    begun, stopped = threading.Event(), []

    def wait(_scene, *, is_stopped):
        begun.set()
        while not is_stopped():
            time.sleep(0.01)
        stopped.append(True)
        raise ClosedError

    monkeypatch.setattr(batch, "assemble_scene", wait)
    monkeypatch.setattr(batch._Batch, "take_finished", lambda _: iter([None]))
    results = map_scenes(run(make_engine()), scenes, in_parts=True)
    next(results)
    assert begun.wait(30)
    results.close()
    assert stopped == [True]


@pytest.mark.usefixtures("small_bands")
def test_the_other_bands_of_a_failed_scene_are_not_begun(
    make_job, make_engine, monkeypatch
):
    def fail(*_arguments):
        raise ResourceError("The disk is full.")

    monkeypatch.setattr(assemble, "write_part", fail)
    scene = make_job("s0", 16 * 120, 16)
    run_slowly = partial(run_jobs, make_engine(batch_size=1))
    read = []

    def run_some(bands):
        def list_read():
            for band in bands:
                read.append(band)
                time.sleep(0.05)
                yield band

        yield from run_slowly(list_read())

    (result,) = map_scenes(run_some, [scene])
    assert str(result.error) == "The disk is full."
    assert len(read) < 80


def test_scenes_are_planned_when_their_turn_comes(make_job, make_engine):
    planned = []

    def plan():
        for index in range(40):
            planned.append(index)
            yield make_job(f"s{index}", 9, 12)

    results = map_scenes(run(make_engine(batch_size=1)), plan())
    assert next(results).error is None
    assert len(planned) < 30
    assert len(list(results)) == 39


@pytest.fixture
def region(tmp_path):
    square = shapely.box(600_012, 5_199_960, 600_030, 5_199_990)
    path = tmp_path / "region.gpkg"
    geopandas.GeoDataFrame(geometry=[square], crs="EPSG:32614").to_file(path)
    return open_region(path)


@pytest.mark.parametrize("gsd_m", [0.5, 0.7, pytest.param(2.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("has_region", [True, False])
@pytest.mark.usefixtures("small_bands")
def test_a_resampled_scene_comes_back_on_its_own_pixels(
    gsd_m, has_region, make_job, make_engine, read_values, read_layer, region
):
    options = {"confidence": True, "region": region if has_region else None}
    scene = make_job("s0", 90, 70, gsd_m=gsd_m, holes=[np.s_[:, 9:12]], **options)
    on_model = replace(
        scene, on_model_grid=True, region=None, out_dir=scene.out_dir / "model"
    )
    for job in (scene, on_model):
        (result,) = map_scenes(run(make_engine()), [job])
        assert result.error is None
    found, confidence = read_layer(scene)[..., 0], read_layer(scene, 1)[..., 0]
    wanted = read_values(scene) != -1
    native = scene.out_grid
    if has_region:
        wanted &= open_region(region.path).on_grid(native).read(native.window)
        assert 0.001 < wanted.mean() < 0.9
    np.testing.assert_array_equal(found != 255, wanted)
    np.testing.assert_array_equal(confidence != 255, wanted)
    x, y = native.locate_pixels(native.window)
    inverse = ~scene.grid.transform
    cols = np.floor(inverse.a * x + inverse.c).astype(int)
    rows = np.floor(inverse.e * y + inverse.f).astype(int)
    nearest = read_layer(on_model)[..., 0][rows, cols]
    same = (found == nearest)[wanted & (nearest != 255)]
    assert same.mean() > 0.99  # GDAL rounds places to an eighth of a pixel
    assert read_layer(on_model).shape[:2] == (scene.grid.height, scene.grid.width)
