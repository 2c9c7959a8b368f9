"""The event file of a run holds the numbers of the run's files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from cropseg.errors import UsageError
from cropseg.training.checkpoint import load_state
from cropseg.training.tensorboard import EVENTS_NAME, write_tensorboard

SCORES = {
    "miou": 0.25,
    "overall_accuracy": 0.75,
    "macro_f1": None,
    "classes": [{"name": "corn", "iou": 0.5}, {"name": "never seen", "iou": None}],
}
HISTORY = """epoch,step,loss,learning_rate,val_miou,seconds
1,10,2.5,0.001,,4.0
2,20,1.5,0.0,,8.0
"""


def read_events(run_dir):
    """Read what TensorFlow finds in the event file, whose checksums it verifies."""
    import tensorflow as tf

    path = run_dir / "tensorboard" / EVENTS_NAME
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [tf.compat.v1.Event.FromString(record) for record in records]


def list_curves(events):
    """Return step and value of the points of every curve."""
    curves = defaultdict(list)
    for event in events:
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                curves[value.tag].append((event.step, value.simple_value))
    return dict(curves)


def list_texts(events):
    return {
        value.tag: value.tensor.string_val[0].decode()
        for event in events
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }


@pytest.fixture
def copy_of_run(trained_run, tmp_path):
    """Return a copy of a run of 6 steps in 2 epochs."""
    return Path(shutil.copytree(trained_run.out_dir, tmp_path / "run"))


@pytest.fixture
def small_run(tmp_path):
    """Write the files of a run without a checkpoint, and return its folder."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    metrics = {"val": None, "test": SCORES, "training": {"steps": 20, "phases": []}}
    settings = {"mode": "full", "settings": {"loss": "a | b", "seed": 3}}
    (run_dir / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (run_dir / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (run_dir / "history.csv").write_text(HISTORY, encoding="utf-8")
    return run_dir


def test_the_curves_of_a_run_are_those_of_its_files(copy_of_run):
    write_tensorboard(copy_of_run)

    curves = list_curves(read_events(copy_of_run))
    state = load_state(copy_of_run / "checkpoints" / "state.npz")
    with (copy_of_run / "history.csv").open(encoding="utf-8") as stream:
        epochs = list(csv.DictReader(stream))
    test = json.loads((copy_of_run / "metrics.json").read_text())["test"]
    expected = {"train/loss": list(enumerate(state.losses, 1))}
    assert len(state.losses) == 6
    for tag, column in (
        ("train/learning_rate", "learning_rate"),
        ("val/miou", "val_miou"),
    ):
        expected[tag] = [(int(row["step"]), float(row[column])) for row in epochs]
    for name in ("miou", "overall_accuracy", "macro_f1"):
        expected[f"test/{name}"] = [(6, test[name])]
    for item in test["classes"]:
        if item["iou"] is not None:
            expected[f"test/iou/{item['name']}"] = [(6, item["iou"])]
    assert set(curves) == set(expected)
    for tag, points in expected.items():
        steps, values = zip(*curves[tag], strict=True)
        assert steps == tuple(step for step, _ in points)
        assert values == pytest.approx([value for _, value in points], rel=1e-6)


def test_the_settings_of_a_run_are_a_text(copy_of_run):
    write_tensorboard(copy_of_run)

    texts = list_texts(read_events(copy_of_run))
    assert "| settings.encoder | classic_tiny |" in texts["settings"].splitlines()
    assert "| steps | 6 |" in texts["training"].splitlines()


def test_without_a_checkpoint_the_loss_is_that_of_epochs(small_run):
    write_tensorboard(small_run)

    events = read_events(small_run)
    assert list_curves(events) == {
        "train/loss": [(10, 2.5), (20, 1.5)],
        "train/learning_rate": [(10, pytest.approx(0.001)), (20, 0.0)],
        "test/miou": [(20, 0.25)],
        "test/overall_accuracy": [(20, 0.75)],
        "test/iou/corn": [(20, 0.5)],
    }
    tags = {value.tag for event in events for value in event.summary.value}
    assert "test/iou/never seen" not in tags
    assert r"| settings.loss | a \| b |" in list_texts(events)["settings"].splitlines()


def test_the_checkpoint_of_an_earlier_version_has_the_loss_of_steps(small_run):
    record = json.dumps({"losses": [3.0, 2.0, 1.0], "epochs": []})  # without names
    (small_run / "checkpoints").mkdir()
    np.savez(small_run / "checkpoints" / "state.npz", record=np.array(record))

    write_tensorboard(small_run)

    curves = list_curves(read_events(small_run))
    assert curves["train/loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_run_that_trained_nothing_has_its_scores_at_step_0(small_run):
    (small_run / "history.csv").unlink()

    write_tensorboard(small_run)

    curves = list_curves(read_events(small_run))
    assert set(curves) == {"test/miou", "test/overall_accuracy", "test/iou/corn"}
    assert curves["test/miou"] == [(0, 0.25)]


def test_a_second_call_gives_the_same_file_and_times_end_with_the_run(small_run):
    os.utime(small_run / "metrics.json", (1_000_000, 1_000_000))
    write_tensorboard(small_run)
    path = small_run / "tensorboard" / EVENTS_NAME
    first = path.read_bytes()

    write_tensorboard(small_run)

    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == [EVENTS_NAME]
    events = read_events(small_run)
    assert events[0].file_version == "brain.Event:2"
    losses = [
        e for e in events if e.summary.value and e.summary.value[0].tag == "train/loss"
    ]
    assert [event.wall_time for event in losses] == [1_000_000 - 8, 1_000_000]


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        write_tensorboard(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_file_is_the_same_where_keras_runs_on_jax(small_run):
    pytest.importorskip("jax")
    write_tensorboard(small_run)
    path = small_run / "tensorboard" / EVENTS_NAME
    expected = path.read_bytes()
    path.unlink()
    code = (
        "import sys; from pathlib import Path;"
        "from cropseg.training.tensorboard import write_tensorboard;"
        "write_tensorboard(Path(sys.argv[1]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, small_run],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        check=True,
    )

    assert not done.stderr
    assert path.read_bytes() == expected
