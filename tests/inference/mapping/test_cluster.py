"""Bands on worker processes: the same bits, whatever dies, and the one to blame named.

Most tests run an engine without Keras, which is sent to the workers with its class.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from cropseg.errors import DataError, ModelError, ResourceError, UsageError
from cropseg.inference.engines.engine import stream_in_batches
from cropseg.inference.mapping import (
    cluster,
    cluster_client,
    cluster_tasks,
    cluster_worker,
    jobs,
)
from cropseg.inference.mapping.batch import map_scenes
from cropseg.inference.mapping.cluster_client import check_workers, parse_address
from cropseg.inference.mapping.cluster_tasks import (
    TaskReport,
    WorkerStart,
    group_jobs,
    make_absolute,
)
from cropseg.inference.mapping.cluster_worker import look_around
from cropseg.inference.mapping.jobs import cut_scene
from cropseg.inference.mapping.pipeline import run_jobs
from cropseg.inference.mapping.predict import predict_scenes

INTERRUPTED = """
import pickle, sys, time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

@dataclass(frozen=True)
class Settings:
    model_path: Path
    def open(self):
        return Engine()

class Engine:
    name, precision, card = "slow", "float32", SimpleNamespace(nodata_fill=0)
    def stream(self, tiles, *, margin):
        for key, values in tiles:
            time.sleep(0.2)
            inside = values[margin:-margin, margin:-margin, :1]
            yield key, inside.repeat(7, axis=-1)

def main():
    from cropseg.inference.mapping import cluster, cluster_tasks
    from cropseg.inference.mapping.batch import map_scenes

    cluster_tasks._TASK_BANDS = 1
    with open(sys.argv[1], "rb") as file:
        path, scenes = pickle.load(file)
    print("starting", flush=True)
    with cluster.open_cluster("local:2", Settings(path)) as run:
        for result in map_scenes(run, scenes, in_parts=True):
            assert result.error is None, result.error
            print("mapping", flush=True)

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted")
"""

POISON = 32_000
"""A pixel that ends the process that predicts it."""


@dataclass(frozen=True, kw_only=True)
class FakeSettings:
    """How a worker comes by `DyingEngine`."""

    model_path: Path
    """Any file."""
    dies_once_at: Path | None = None
    """A file that is written when a process ends itself, so that only one does."""

    def open(self):
        return DyingEngine(self.dies_once_at)


class DyingEngine:
    """Predicts from single values; ends its process at poison, or once in all."""

    name, precision = "dying", "float32"
    card = SimpleNamespace(nodata_fill=0)

    def __init__(self, dies_once_at=None):
        self.dies_once_at = dies_once_at
        self.num_tiles = 0

    def stream(self, tiles, *, margin=0):
        return stream_in_batches(self.predict, tiles, batch_size=2, margin=margin)

    def predict(self, tiles):
        self.num_tiles += len(tiles)
        if any((tile == POISON).any() for tile in tiles) or self.is_to_die():
            os.kill(os.getpid(), signal.SIGKILL)
        bands = np.stack(tiles)[..., 0].astype("int64")
        return np.eye(7, dtype="float32")[bands % 7]

    def is_to_die(self):
        if self.dies_once_at is None or self.num_tiles < 4:
            return False
        try:
            self.dies_once_at.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@pytest.fixture(autouse=True, scope="module")
def send_classes_of_this_file():
    """Workers cannot import a file of tests."""
    cloudpickle = pytest.importorskip("cloudpickle")
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def any_file(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"not a model")
    return path


@pytest.fixture
def scenes(make_job):
    sizes = [(67, 103), (20, 33), (150, 70), (48, 16)]
    return [make_job(f"s{i}", *size) for i, size in enumerate(sizes)]


@pytest.fixture
def two_workers(any_file):
    """Return a function that opens a cluster of two processes."""

    def open_two(show=lambda _: None, note=lambda _: None, **settings):
        fake = FakeSettings(model_path=any_file, **settings)
        return cluster.open_cluster("local:2", fake, show=show, note_engine=note)

    return open_two


def map_all(run, scenes):
    return {r.scene.name: r for r in map_scenes(run, iter(scenes), in_parts=True)}


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local:1", 1),
        ("local:16", 16),
        ("tcp://10.0.0.7:8786", "tcp://10.0.0.7:8786"),
        ("tls://scheduler.example:8786", "tls://scheduler.example:8786"),
    ],
)
def test_an_address_is_read(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "local", "local:0", "local:-1", "local:two", "tcp://host", "10.0.0.7:1"],
)
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="local:N") as error:
        parse_address(text)
    assert text in str(error.value)


def test_without_dask_it_says_what_to_install(monkeypatch, any_file):
    monkeypatch.setitem(sys.modules, "distributed", None)
    settings = FakeSettings(model_path=any_file)
    with (
        pytest.raises(UsageError, match=r"pip install 'cropseg\[cluster\]'"),
        cluster.open_cluster("local:2", settings),
    ):
        pass


@pytest.mark.usefixtures("small_bands")
def test_small_bands_are_sent_together_and_large_ones_alone(scenes, monkeypatch):
    bands = [band for scene in scenes for band in cut_scene(scene, in_parts=True)]
    monkeypatch.setattr(cluster_tasks, "_TASK_PIXELS", 2000)
    groups = list(group_jobs(iter(bands)))
    assert [band for group in groups for band in group] == bands
    assert {len(group) for group in groups} >= {1, 2}
    for group in groups:
        pixels = sum(band.window.height * band.window.width for band in group)
        assert pixels <= 2000 or len(group) == 1
    monkeypatch.setattr(cluster_tasks, "_TASK_BANDS", 1)
    assert {len(group) for group in group_jobs(bands)} == {1}


def test_bands_are_taken_as_they_are_needed(scenes, monkeypatch):
    monkeypatch.setattr(cluster_tasks, "_TASK_BANDS", 1)
    taken = []
    bands = (taken.append(b) or b for scene in scenes for b in cut_scene(scene))
    next(group_jobs(bands))
    assert len(taken) == 2


def test_a_job_means_the_same_in_another_folder(make_job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = make_job("s", 20, 33, out_dir=Path("maps"))
    image = job.scene.image
    here = image.files[0].location.relative_to(tmp_path)
    near = replace(image, files=(replace(image.files[0], location=here),))
    job = replace(job, scene=replace(job.scene, image=near))
    (band,) = cut_scene(job, in_parts=True)
    far = make_absolute(band)
    assert far.scene.out_dir == tmp_path / "maps"
    assert far.scene.scene.image.files[0].location == tmp_path / here
    assert replace(far, scene=job) == band


def test_workers_with_another_model_are_refused(any_file):
    own = look_around(str(any_file))
    other = own.replace(str(any_file), "elsewhere")
    client = SimpleNamespace(run=lambda _look, _path: {"tcp://a:1": own})
    assert check_workers(client, any_file) == own
    client = SimpleNamespace(run=lambda _, __: {"tcp://a:1": own, "tcp://b:1": other})
    with pytest.raises(ModelError, match=r"1 of 2 workers .*\n?.*tcp://b:1 cropseg"):
        check_workers(client, any_file)
    any_file.write_bytes(b"a newer model")
    assert look_around(str(any_file)) != own
    any_file.unlink()
    assert "no file" in look_around(str(any_file))


def test_two_engines_are_not_mixed_in_one_map():
    noted = []
    run = cluster._Tasks(None, None, out_dirs=set(), note_engine=noted.append)
    for engine, worker in (("keras float32", "a"), ("keras float32", "b")):
        run._check_engine(TaskReport(results=(), engine=engine, worker=worker))
    assert noted == ["keras float32"]
    with pytest.raises(ModelError, match=r"keras float32 \(a\) and openvino float32"):
        run._check_engine(TaskReport(results=(), engine="openvino float32", worker="c"))


def test_a_worker_opens_the_model_that_the_batch_was_started_with(
    any_file, make_job, monkeypatch
):
    """Workers of a scheduler outlive a batch, and may come after its start."""
    distributed = pytest.importorskip("distributed")
    worker = SimpleNamespace(address="tcp://b:1", name="b")
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.setattr(cluster_worker, "_opened", {})
    bands = cut_scene(make_job("s", 20, 33), in_parts=True)
    settings = FakeSettings(model_path=any_file)

    def start():
        seen = look_around(str(any_file))
        return WorkerStart(settings=settings, seen=seen, num_local=None)

    first = start()
    report = cluster_worker.do_bands(first, bands)
    assert [result.error for result in report.results] == [None]
    (engine,) = cluster_worker._opened.values()
    cluster_worker.do_bands(first, bands)
    assert list(cluster_worker._opened.values()) == [engine]
    any_file.write_bytes(b"trained again")
    cluster_worker.do_bands(start(), bands)
    assert list(cluster_worker._opened.values()) != [engine]
    with pytest.raises(ModelError, match=r"tcp://b:1 cannot do this work"):
        cluster_worker.do_bands(first, bands)


@pytest.mark.cluster
def test_a_scheduler_that_does_not_answer_is_told(monkeypatch, any_file):
    monkeypatch.setattr(cluster_client, "_CONNECT_S", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ResourceError, match="No dask scheduler answers") as error,
        cluster.open_cluster(address, FakeSettings(model_path=any_file)),
    ):
        pass
    assert error.value.exit_code == 6


@pytest.mark.cluster
@pytest.mark.usefixtures("small_bands")
def test_workers_make_the_files_that_one_process_makes(
    scenes, two_workers, tmp_path, caplog
):
    alone = [replace(scene, out_dir=tmp_path / "alone") for scene in scenes]
    list(map_scenes(lambda bands: run_jobs(DyingEngine(), bands), iter(alone)))
    told, noted = [], []
    with two_workers(told.append, noted.append) as run:
        results = map_all(run, scenes)
    assert all(result.error is None for result in results.values())
    assert len(results) == len(scenes)
    files = list_files(tmp_path / "alone")
    assert list_files(tmp_path / "maps") == files
    for name in files:
        one, other = (tmp_path / folder / name for folder in ("alone", "maps"))
        assert other.read_bytes() == one.read_bytes()
    assert noted == ["dying float32"]
    assert "2 worker processes; dashboard at http://127.0.0.1:" in told[0]
    assert ":0/" not in told[0]
    assert not [item for item in caplog.records if item.name.startswith("distributed")]


@pytest.mark.cluster
@pytest.mark.usefixtures("small_bands")
def test_what_a_dead_worker_had_in_hand_is_done_by_another(
    scenes, two_workers, tmp_path, read_layer, read_values
):
    mark = tmp_path / "died"
    with two_workers(dies_once_at=mark) as run:
        results = map_all(run, scenes)
    assert mark.exists()
    for scene in scenes:
        assert results[scene.name].error is None
        np.testing.assert_array_equal(read_layer(scene)[..., 0], read_values(scene) % 7)
    assert not list((tmp_path / "maps").rglob(".*"))


@pytest.mark.cluster
@pytest.mark.usefixtures("small_bands")
def test_a_worker_that_died_is_replaced_even_if_it_is_the_only_one(
    scenes, any_file, tmp_path, monkeypatch
):
    """dask gives up a worker that starts again for longer than this, and forever."""
    pytest.importorskip("distributed")  # its defaults come first
    dask = pytest.importorskip("dask")
    monkeypatch.setattr(cluster, "PATIENCE_S", 10)
    mark = tmp_path / "died"
    fake = FakeSettings(model_path=any_file, dies_once_at=mark)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        cluster.open_cluster("local:1", fake) as run,
    ):
        results = map_all(run, scenes)
    assert mark.exists()
    assert [result.error for result in results.values()] == [None] * len(scenes)


@pytest.mark.cluster
@pytest.mark.usefixtures("small_bands")
def test_a_scene_that_ends_its_workers_is_named_and_the_others_are_mapped(
    scenes, two_workers, read_layer, read_values
):
    poisoned = scenes[2]
    with rasterio.open(poisoned.scene.image.path, "r+") as dataset:
        values = dataset.read(1)
        values[40, 50] = POISON  # in the third row of tiles
        dataset.write(values, 1)
    told = []
    with two_workers(told.append) as run:
        results = map_all(run, scenes)
    error = results.pop("s2").error
    assert isinstance(error, ResourceError)
    assert "band 3 of s2 (rows 32-48) ended 3 worker processes" in str(error)
    assert any("tried alone" in line for line in told)
    assert len(results) == 3
    for name, result in results.items():
        assert result.error is None, name
        scene = result.scene
        np.testing.assert_array_equal(read_layer(scene)[..., 0], read_values(scene) % 7)


@pytest.mark.cluster
def test_a_scene_that_cannot_be_read_does_not_stop_the_others(scenes, two_workers):
    scenes[1].scene.image.path.unlink()
    with two_workers() as run:
        results = map_all(run, scenes)
    assert isinstance(results["s1"].error, DataError)
    assert [name for name, r in results.items() if r.error] == ["s1"]
    assert not list((scenes[0].out_dir / jobs.PARTS_DIR).rglob(".attempt-*"))


@pytest.mark.cluster
@pytest.mark.usefixtures("small_bands")
def test_a_run_that_is_left_can_be_followed_by_another(
    scenes, two_workers, monkeypatch
):
    monkeypatch.setattr(cluster_tasks, "_TASK_BANDS", 1)
    bands = [band for scene in scenes for band in cut_scene(scene, in_parts=True)]
    with two_workers() as run:
        results = run(iter(bands))
        first = next(results)
        results.close()
        assert first.job in bands
        assert first.job.is_done
        rest = list(run(band for band in bands if not band.is_done))
    assert all(result.error is None for result in rest)
    assert all(band.is_done for band in bands)


@pytest.mark.cluster
def test_an_engine_that_is_refused_leaves_no_part(scenes, two_workers):
    def refuse(engine):
        message = f"not {engine}"
        raise ModelError(message)

    with (
        pytest.raises(ModelError, match="not dying float32"),
        two_workers(note=refuse) as run,
    ):
        map_all(run, scenes)
    assert not list(scenes[0].out_dir.rglob("*.tif"))


@pytest.fixture
def heard_interrupts():
    """Children hear Ctrl-C, also where the tests run behind a shell's `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.cluster
@pytest.mark.usefixtures("heard_interrupts")
def test_ctrl_c_in_a_terminal_ends_workers_quietly(any_file, make_job, tmp_path):
    """A terminal sends it to the workers too, also while they are being started."""
    scenes = [make_job(f"s{i}", 9, 9) for i in range(200)]
    state = tmp_path / "state"
    state.write_bytes(pickle.dumps((any_file, scenes)))
    command = [sys.executable, "-c", INTERRUPTED, state]
    for line in ("starting", "mapping"):
        with subprocess.Popen(
            command,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while process.stdout.readline().strip() != line:
                assert process.poll() is None
            # Not at once: Python loses an interrupt that meets a `__del__`.
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)
            out, told = process.communicate(timeout=100)
        assert out.endswith("interrupted\n")
        assert told == ""
        assert not list(scenes[0].out_dir.rglob(".attempt-*"))


@pytest.mark.cluster
def test_a_scheduler_that_dies_is_told(scenes, any_file, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(cluster_tasks, "_TASK_BANDS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    start = [sys.executable, "-m", "distributed.cli.dask_"]
    port = address.rpartition(":")[2]
    places = ["--host", "127.0.0.1", "--port", port, "--dashboard-address", ":0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    work = [address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    work += ["--local-directory", str(tmp_path), "--death-timeout", "5"]
    scheduler = subprocess.Popen([*start[:2], f"{start[2]}scheduler", *places], **quiet)
    worker = subprocess.Popen([*start[:2], f"{start[2]}worker", *work], **quiet)
    fake = FakeSettings(model_path=any_file)
    try:
        with cluster.open_cluster(address, fake) as run:
            results = map_scenes(run, iter(scenes), in_parts=True)
            assert next(results).error is None
            scheduler.kill()
            with pytest.raises(ResourceError, match="connection to the dask"):
                list(results)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.cluster
def test_a_real_model_maps_the_same_bits_though_a_worker_is_killed(
    model_path, site, tmp_path, monkeypatch
):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(jobs, "BAND_PIXELS", 1)
    monkeypatch.setattr(cluster_tasks, "_TASK_BANDS", 1)
    images = [str(scene.image_path) for scene in site.scenes]
    options = {"tile_size": 32, "engine": "keras", "confidence": True}
    predict_scenes(model_path, images, out_dir=tmp_path / "alone", **options)
    killed = []

    def kill_one():
        parts = tmp_path / "maps" / jobs.PARTS_DIR
        found = []
        while not found:
            time.sleep(0.02)
            with contextlib.suppress(FileNotFoundError):  # an attempt that ended
                found = list(parts.rglob("classes-*.tif"))
        for process in psutil.Process().children(recursive=True):
            command = process.cmdline()
            if "spawn_main" in " ".join(command):
                killed.append(process.pid)
                process.kill()
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    predict_scenes(
        model_path, images, out_dir=tmp_path / "maps", cluster="local:2", **options
    )
    killer.join()
    assert killed
    for path in sorted((tmp_path / "alone").glob("*.tif")):
        assert (tmp_path / "maps" / path.name).read_bytes() == path.read_bytes()
