"""Running the grid: nothing twice, one failure alone, and how far it is."""

from __future__ import annotations

import errno
import json
import logging
from types import SimpleNamespace

import pytest

from cropseg.comparison import run_cells as module
from cropseg.comparison.run_cells import run_cells
from cropseg.comparison.steps import STEPS_NAME
from cropseg.errors import ConflictError, DivergedError, UsageError
from cropseg.files import write_json
from cropseg.training.computing import describe_computing
from cropseg.training.finished import Run
from cropseg.training.tensorboard import EVENTS_NAME

PANEL = SimpleNamespace(name="a window")


class FakeRuns:
    """Stands for what trains: writes a run's last file, and remembers its calls."""

    def __init__(self):
        self.calls = []
        self.raises = {}
        """What to raise at which call, counted from 0."""

    def run_transfer(self, job, out_dir, *, show_progress, measures, **_options):
        show_progress(1, 2, "loss 1.000")
        return self._finish(job, out_dir, measures)

    def execute_forest(self, pool, settings, out_dir, **measures):
        job = SimpleNamespace(pool=pool, settings=settings)
        return self._finish(job, out_dir, measures)

    def _finish(self, job, out_dir, measures):
        self.calls.append(SimpleNamespace(job=job, out_dir=out_dir, measures=measures))
        error = self.raises.pop(len(self.calls) - 1, None)
        if error:
            raise error
        out_dir.mkdir(parents=True, exist_ok=True)
        metrics = {"training": {"seconds": 1.0}}
        (out_dir / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        return Run(out_dir=out_dir, metrics=metrics)


@pytest.fixture
def fake(monkeypatch):
    runs = FakeRuns()
    monkeypatch.setattr(module, "run_transfer", runs.run_transfer)
    monkeypatch.setattr(module, "execute_forest", runs.execute_forest)
    monkeypatch.setattr(module, "choose_panel", lambda _site: PANEL)
    monkeypatch.setattr(module, "write_panel", lambda *_given: None)
    return runs


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a comparison: its results, and what it showed."""

    def run_it(job, **options):
        shown = []
        results = run_cells(
            job, tmp_path, lambda *given: shown.append(given), **options
        )
        return results, shown

    return run_it


MODES = ("full", "zero_shot", "pixel_forest")


def test_a_second_call_runs_only_what_was_added(fake, run, prepare, source):
    first, _ = run(prepare(source, modes=MODES))
    names = [call.out_dir.name for call in fake.calls]
    again, _ = run(prepare(source, modes=MODES))
    assert len(fake.calls) == len(names) == len(first) == 1 + 2 * 2
    grown = prepare(
        source, modes=(*MODES, "scratch"), labels=("2tiles", "1tiles"), draws=3, seeds=2
    )

    results, _ = run(grown)

    assert [result.run.out_dir for result in again] == [r.run.out_dir for r in first]
    assert len(results) == 1 + 3 * 2 * 3 * 2
    new = [call.out_dir.name for call in fake.calls[len(names) :]]
    assert len(new) == len(results) - len(names)
    assert not set(new) & set(names)


def test_the_folder_of_a_run_is_its_name_and_a_hash(fake, run, prepare, source):
    results, _ = run(prepare(source, modes=MODES))

    for result in results:
        name, _, digest = result.run.out_dir.name.rpartition("-")
        assert name == result.cell.name
        assert len(digest) == 12
        assert int(digest, 16) >= 0
    assert len(fake.calls) == len(results)


@pytest.mark.parametrize("changes", [{"backend": "torch"}, {"precision": "bfloat16"}])
def test_a_comparison_does_not_go_on_computed_in_another_way(
    fake, run, prepare, source, tmp_path, changes
):
    job = prepare(source, modes=MODES)
    module.refuse_mixture(job, tmp_path)
    results, _ = run(job)
    module.refuse_mixture(job, tmp_path)  # an earlier version did not write it down
    forest = next(r for r in results if r.cell.mode == "pixel_forest")
    for result in results:
        path = result.run.out_dir / "metrics.json"
        computed_with = describe_computing("auto") | changes
        if result is not forest:
            document = {"training": {"computed_with": computed_with}}
            path.write_text(json.dumps(document), encoding="utf-8")

    module.refuse_mixture(job, tmp_path)  # nothing is left
    (forest.run.out_dir / "metrics.json").unlink()
    module.refuse_mixture(job, tmp_path)  # nor is a network
    with pytest.raises(ConflictError, match=f"{next(iter(changes))} was"):
        module.refuse_mixture(prepare(source, modes=MODES, draws=3), tmp_path)
    assert len(fake.calls) == len(results)


@pytest.mark.usefixtures("fake")
def test_runs_whose_steps_were_measured_are_not_mixed_either(
    run, prepare, source, tmp_path
):
    modes = ("full", "scratch")
    write_json(tmp_path / STEPS_NAME, {"epochs": 8})
    results, _ = run(prepare(source, modes=modes, until_flat=True).take_steps(tmp_path))
    computed_with = describe_computing("auto") | {"backend": "torch"}
    for result in results:
        document = {"training": {"computed_with": computed_with}}
        write_json(result.run.out_dir / "metrics.json", document)

    grown = prepare(source, modes=modes, until_flat=True, draws=3)  # as a new call
    with pytest.raises(ConflictError, match="backend was"):
        module.refuse_mixture(grown, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("The loss is nan."),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        RuntimeError("surprise"),
    ],
)
def test_whatever_one_run_raises_the_others_finish(
    fake, run, prepare, source, caplog, error
):
    fake.raises[1] = error
    job = prepare(source, modes=MODES)

    with caplog.at_level(logging.INFO):
        results, _ = run(job)

    failed = [result for result in results if result.run is None]
    assert len(results) == len(fake.calls) == 5
    assert [result.cell for result in failed] == [job.cells[1]]
    assert str(error) in failed[0].failure
    assert "Traceback" in caplog.text  # for whoever has to find out why
    assert job.cells[1].name in caplog.text
    fake.raises.clear()

    again, _ = run(job)  # tries what failed, only

    assert len(fake.calls) == 6
    assert all(result.run for result in again)


def test_a_run_that_fails_in_its_preparation_is_one_run_alone(
    fake, run, prepare, source, monkeypatch
):
    job = prepare(source, modes=MODES)
    _ = job.run_names
    prepare_run = type(job).prepare_run

    def fail(self, cell):
        if cell == job.cells[0]:
            raise UsageError("This one cannot.")
        return prepare_run(self, cell)

    monkeypatch.setattr(type(job), "prepare_run", fail)

    results, _ = run(job)

    assert [bool(result.run) for result in results] == [False, *[True] * 4]
    assert len(fake.calls) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConflictError("In use.")])
def test_an_interruption_ends_the_comparison(fake, run, prepare, source, error):
    fake.raises[1] = error

    with pytest.raises(type(error)):
        run(prepare(source, modes=MODES))

    assert len(fake.calls) == 2


def test_progress_is_that_of_the_whole_grid(fake, run, prepare, source):
    job = prepare(source, modes=MODES)

    _, shown = run(job)

    dones = [done for done, _, _ in shown]
    assert dones == sorted(dones)
    assert {total for _, total, _ in shown} == {5 * job.settings.num_steps}
    texts = [text for _, _, text in shown]
    assert texts[0].startswith("run 1 of 5, about 10 s left: zero_shot-0tiles-draw0")
    last = texts[-1]
    assert last.startswith("run 5 of 5, about ")
    assert " left: " in last
    assert len(fake.calls) == 5


def test_finished_runs_count_as_done_in_the_progress(fake, run, prepare, source):
    run(prepare(source))

    _, shown = run(prepare(source, draws=3))

    assert shown[0][2].startswith("run 4 of 4, about 1 s left: full-2tiles-draw2")
    assert shown[0][0] == 3 * shown[0][1] / 4
    assert len(fake.calls) == 4


def test_runs_of_later_draws_that_are_finished_are_not_in_the_time_left(
    fake, run, prepare, source
):
    run(prepare(source, modes=("full",)))

    _, shown = run(prepare(source, modes=("scratch", "full")))

    # Two runs of 5 s; those of `full` took 1 s each, and one of them comes in between.
    texts = [text for _, _, text in shown]
    assert texts[0].startswith("run 1 of 4, about 10 s left: scratch-2tiles-draw0")
    assert len(fake.calls) == 4


@pytest.mark.parametrize(
    ("validation", "parts"),
    [("none", ("test",)), ("budget", ("test",)), ("oracle", ("val", "test"))],
)
def test_the_val_part_is_scored_only_where_an_oracle_needs_it(
    fake, run, prepare, source, validation, parts
):
    run(prepare(source, validation=validation, draws=1))

    assert {call.measures["parts"] for call in fake.calls} == {parts}


def test_every_run_is_scored_on_the_source_site_where_it_is_given(
    fake, run, prepare, source, site
):
    run(prepare(source, modes=("full", "zero_shot"), source_site=site))

    assert all(call.measures["source_site"] is site for call in fake.calls)


def test_the_panel_is_shown_only_by_runs_that_are_tested_there(
    fake, run, prepare, source
):
    job = prepare(source, modes=MODES, draws=1, folds=3)

    run(job)

    shows = {
        cell.fold: call.measures["panel"] is PANEL
        for cell, call in zip(job.cells, fake.calls, strict=True)
    }
    assert shows == {0: True, 1: False, 2: False}


def test_logs_for_tensorboard_are_written_once_where_asked_for(
    fake, run, prepare, source, monkeypatch
):
    written = []

    def write(run_dir):
        (run_dir / "tensorboard").mkdir(exist_ok=True)
        (run_dir / "tensorboard" / EVENTS_NAME).write_bytes(b"")
        written.append(run_dir)

    monkeypatch.setattr(module, "write_tensorboard", write)
    fake.raises[1] = MemoryError()
    first, _ = run(prepare(source))
    assert written == []
    (first[0].run.out_dir / "tensorboard").mkdir()  # as a full disk leaves it

    for _ in range(2):
        results, _ = run(prepare(source), tensorboard=True)
        assert written == [result.run.out_dir for result in results]


def test_a_run_without_logs_is_a_run_all_the_same(
    fake, run, prepare, source, monkeypatch, caplog
):
    def write(_run_dir):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_tensorboard", write)

    results, _ = run(prepare(source), tensorboard=True)

    assert all(result.run for result in results)
    assert len(fake.calls) == 3
    assert "No logs for TensorBoard of full-2tiles-draw1" in caplog.text
