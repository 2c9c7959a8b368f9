"""Bands through an engine: right, in one stream, apart from each other's errors."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import shapely

from cropseg.errors import CropsegError, DataError, ResourceError
from cropseg.inference.mapping import assemble
from cropseg.inference.mapping.jobs import cut_scene
from cropseg.inference.mapping.pipeline import run_jobs
from cropseg.inference.outputs.writer import read_part
from cropseg.inference.scenes.region import open_region
from cropseg.inference.tiles.tile_shape import TileShape

SIZES = [(67, 103), (20, 33), (1, 70), (48, 16), (35, 47)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    left = [thread for thread in threading.enumerate() if "cropseg" in thread.name]
    assert left == []


@pytest.fixture
def scenes(make_job):
    return [make_job(f"s{i}", *size) for i, size in enumerate(SIZES)]


def cut_all(scenes, **options):
    return [band for scene in scenes for band in cut_scene(scene, **options)]


def read_parts(scene, number=0):
    """Put the parts of a layer together."""
    layer = scene.layers[number]
    shape = (scene.grid.height, scene.grid.width, layer.num_bands)
    found = np.full(shape, 200, "uint8")
    for band in cut_scene(scene, in_parts=True):
        for window, values in read_part(band.get_part_path(layer)):
            found[window.slices_in(scene.grid.window)] = values
    return found


class Counting:
    """An engine that counts its streams, and may go wrong."""

    def __init__(self, engine, *, fail_at=None, lookahead=0):
        self.engine, self.fail_at, self.lookahead = engine, fail_at, lookahead
        self.num_streams = self.num_tiles = 0
        self.threads = set()

    name, precision = "counting", "float32"
    card = SimpleNamespace(nodata_fill=0)

    def stream(self, tiles, *, margin):
        self.num_streams += 1
        waiting = []
        for key, probabilities in self.engine.stream(tiles, margin=margin):
            self.threads.add(threading.current_thread().name)
            self.num_tiles += 1
            if self.num_tiles == self.fail_at:
                raise MemoryError
            waiting.append((key, probabilities))
            if len(waiting) > self.lookahead:
                yield waiting.pop(0)
        yield from waiting


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_every_scene_is_mapped_as_its_pixels_say(
    batch_size, num_readers, scenes, make_engine, read_values, read_layer
):
    engine = make_engine(batch_size=batch_size)
    results = list(run_jobs(engine, cut_all(scenes), num_readers=num_readers))
    assert {result.job.scene.name for result in results} == {s.name for s in scenes}
    for result in results:
        scene = result.job.scene
        expected = read_values(scene) % 7
        assert result.error is None
        np.testing.assert_array_equal(read_layer(scene)[..., 0], expected)
        counts = np.bincount(expected.ravel(), minlength=7)
        assert result.class_pixels == tuple(counts)


@pytest.mark.usefixtures("small_bands")
def test_bands_become_parts_that_make_up_the_scene(scenes, make_engine, read_values):
    engine = make_engine(batch_size=2, radius=3)
    jobs = cut_all(scenes, in_parts=True)
    assert len(jobs) > len(scenes)
    assert all(result.error is None for result in run_jobs(engine, jobs))
    assert all(job.is_done for job in jobs)
    expected = make_engine(radius=3)
    for scene in scenes:
        values = np.pad(read_values(scene), 40, mode="reflect")[..., None]
        classes = expected.predict_one(values).argmax(axis=-1)[40:-40, 40:-40]
        np.testing.assert_array_equal(read_parts(scene)[..., 0], classes)


def test_tiles_of_all_scenes_share_one_stream_and_fill_batches(make_job, make_engine):
    scenes = [make_job(f"s{i}", 16, 16) for i in range(10)]
    engine = Counting(inner := make_engine(batch_size=4))
    assert len(list(run_jobs(engine, cut_all(scenes)))) == 10
    assert engine.num_streams == 1
    assert inner.batches == [4, 4, 2]
    assert engine.threads == {threading.current_thread().name}


def test_tiles_of_another_shape_get_a_stream_of_their_own(make_job, make_engine):
    sizes = [(32, 8), (32, 8), (64, 8), (64, 8), (64, 16), (32, 8)]
    shapes = [TileShape(size=size, context=context) for size, context in sizes]
    scenes = [make_job(f"s{i}", 40, 30, shape=s) for i, s in enumerate(shapes)]
    engine = Counting(make_engine(batch_size=50))
    results = list(run_jobs(engine, cut_all(scenes)))
    assert len(results) == 6
    assert all(result.error is None for result in results)
    assert engine.num_streams == 4


@pytest.mark.parametrize("lookahead", [pytest.param(0, marks=pytest.mark.slow), 40])
def test_an_engine_may_look_far_ahead(lookahead, make_job, make_engine):
    """With many one-tile scenes, no bound on scenes under way may stop the stream."""
    scenes = [make_job(f"s{i}", 10, 12) for i in range(60)]
    engine = Counting(make_engine(batch_size=5), lookahead=lookahead)
    assert len(list(run_jobs(engine, cut_all(scenes)))) == 60


def test_layers_agree_with_each_other(make_job, make_engine, read_layer, read_values):
    scene = make_job(
        "a", 35, 47, holes=[np.s_[:, 9:12]], confidence=True, probabilities=True
    )
    (result,) = run_jobs(make_engine(), cut_scene(scene))
    assert result.error is None
    classes, confidence, probabilities = (read_layer(scene, n) for n in range(3))
    invalid = read_values(scene) == -1
    assert (classes[..., 0] == 255).sum() == invalid.sum() == 35 * 3
    np.testing.assert_array_equal(confidence[..., 0], np.where(invalid, 255, 250))
    assert probabilities.shape == (35, 47, 7)
    best = np.where(invalid, 255, probabilities.argmax(axis=-1))
    np.testing.assert_array_equal(best, classes[..., 0])


@pytest.fixture
def region_path(tmp_path):
    """A square and a triangle, in another CRS than the scenes."""
    square = shapely.box(600_012, 5_199_960, 600_030, 5_199_990)
    triangle = shapely.Polygon(
        [(600_050, 5_199_990), (600_100, 5_199_950), (600_050, 5_199_940)]
    )
    shapes = geopandas.GeoSeries([square, triangle], crs="EPSG:32614")
    path = tmp_path / "region.gpkg"
    shapes.to_frame("geometry").to_crs("EPSG:4326").to_file(path)
    return path


def test_outside_of_the_region_nothing_is_mapped_nor_read(
    make_job, make_engine, read_values, read_layer, region_path
):
    region = open_region(region_path)
    scene = make_job("a", 67, 103, region=region)
    engine = make_engine(radius=3)
    (result,) = run_jobs(engine, cut_scene(scene))
    assert result.error is None
    wanted = region.on_grid(scene.grid).read(scene.grid.window)
    assert 0.05 < wanted.mean() < 0.5
    values = np.pad(read_values(scene), 40, mode="reflect")[..., None]
    expected = engine.predict_one(values).argmax(axis=-1)[40:-40, 40:-40]
    np.testing.assert_array_equal(
        read_layer(scene)[..., 0], np.where(wanted, expected, 255)
    )
    cores = [
        wanted[row : row + 16, col : col + 16].any()
        for row in range(0, 67, 16)
        for col in range(0, 103, 16)
    ]
    assert sum(engine.batches) == sum(cores) < len(cores)


def test_a_scene_that_cannot_be_read_stops_no_other(
    scenes, make_engine, read_values, read_layer
):
    bad = scenes[1]
    path = bad.scene.image.path
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    results = {r.job.scene.name: r for r in run_jobs(make_engine(), cut_all(scenes))}
    assert isinstance(results.pop(bad.name).error, DataError)
    assert len(results) == len(scenes) - 1
    for result in results.values():
        scene = result.job.scene
        assert result.error is None
        np.testing.assert_array_equal(read_layer(scene)[..., 0], read_values(scene) % 7)
    assert not [p for p in bad.out_dir.iterdir() if bad.name in p.name]


def test_a_scene_that_vanishes_midway_stops_no_other(scenes, make_engine):
    def vanish(jobs):
        for job in jobs:
            if job.scene.name == "s3":
                job.scene.scene.image.path.unlink()
            yield job

    results = list(run_jobs(make_engine(), vanish(cut_all(scenes))))
    failed = [result for result in results if result.error is not None]
    assert [result.job.scene.name for result in failed] == ["s3"]
    assert isinstance(failed[0].error, FileNotFoundError)
    assert len(results) == len(scenes)


def test_a_file_that_cannot_be_written_stops_no_other(scenes, make_engine, monkeypatch):
    write = assemble.write_layer

    def write_some(path, *arguments, **options):
        if path.name.startswith("s2"):
            raise ResourceError("The disk is full.")
        return write(path, *arguments, **options)

    monkeypatch.setattr(assemble, "write_layer", write_some)
    results = list(run_jobs(make_engine(), cut_all(scenes)))
    failed = [r.job.scene.name for r in results if r.error is not None]
    assert failed == ["s2"]
    assert len(results) == len(scenes)


def test_an_error_that_nobody_foresaw_is_one_of_its_scene(
    scenes, make_engine, monkeypatch
):
    write = assemble.write_layer

    def write_some(path, *arguments, **options):
        if path.name.startswith("s2"):
            raise ZeroDivisionError("oops")
        return write(path, *arguments, **options)

    monkeypatch.setattr(assemble, "write_layer", write_some)
    results = list(run_jobs(make_engine(), cut_all(scenes)))
    (error,) = [r.error for r in results if r.error is not None]
    assert type(error) is CropsegError
    assert error.exit_code == 70
    assert "ZeroDivisionError: oops" in str(error)


def list_files(scenes):
    folder = scenes[0].out_dir
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("fail_at", [1, 9, 30])
def test_an_engine_that_fails_ends_the_run_and_leaves_no_part(
    fail_at, scenes, make_engine
):
    engine = Counting(make_engine(), fail_at=fail_at)
    with pytest.raises(MemoryError):
        list(run_jobs(engine, cut_all(scenes)))
    assert not [name for name in list_files(scenes) if name.startswith(".")]


def test_jobs_that_cannot_be_listed_end_the_run(scenes, make_engine):
    def list_some():
        yield from cut_all(scenes[:2])
        raise KeyError("third")

    with pytest.raises(KeyError, match="third"):
        list(run_jobs(make_engine(), list_some()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_while_progress_is_shown_ends_the_run(
    error, scenes, make_engine
):
    shown = []

    def show(job):
        shown.append(job)
        if len(shown) == 9:
            raise error

    with pytest.raises(error):
        list(run_jobs(make_engine(), cut_all(scenes), show_tile=show))
    assert not [name for name in list_files(scenes) if name.startswith(".")]


def test_a_run_that_is_left_ends_its_threads(scenes, make_engine):
    results = run_jobs(make_engine(batch_size=1), cut_all(scenes))
    assert next(results).error is None
    results.close()  # the fixture looks for threads
    assert not [name for name in list_files(scenes) if name.startswith(".")]


def test_every_tile_is_shown_once_by_one_thread_at_a_time(scenes, make_engine):
    shown, busy = [], threading.Lock()

    def show(job):
        assert busy.acquire(blocking=False)
        time.sleep(0.001)
        shown.append(job.scene.name)
        busy.release()

    list(run_jobs(make_engine(), cut_all(scenes), show_tile=show))
    expected = {
        s.name: -(-s.grid.height // 16) * -(-s.grid.width // 16) for s in scenes
    }
    assert {name: shown.count(name) for name in {*shown}} == expected


def test_a_finished_band_is_told_while_no_tile_comes(make_job, make_engine):
    released = threading.Event()

    def list_some():
        yield from cut_all([make_job("s0", 16, 16)])
        assert released.wait(30)  # a scene that takes long to open, or has no data

    results = run_jobs(make_engine(batch_size=9), list_some())
    assert next(results).error is None
    released.set()
    assert list(results) == []


def test_scenes_without_data_are_mapped_without_the_engine(make_job, make_engine):
    scenes = [make_job(f"s{i}", 40, 30, holes=[np.s_[:]]) for i in range(20)]
    engine = make_engine()
    results = list(run_jobs(engine, cut_all(scenes)))
    assert engine.batches == []
    assert [sum(result.class_pixels) for result in results] == [0] * 20


def test_no_job_is_no_result(make_engine):
    assert list(run_jobs(make_engine(), [])) == []
