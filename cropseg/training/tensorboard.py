"""A finished run as TensorBoard shows it, written from the files of the run.

TensorFlow writes the event file, so this works where Keras runs on JAX too, and
without the package `tensorboard`. That is needed only to look at it:
`pip install tensorboard`, then `tensorboard --logdir` with the folder of the runs.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from cropseg.errors import UsageError
from cropseg.files import write_whole
from cropseg.runtime import import_tensorflow
from cropseg.training.checkpoint import load_losses

EVENTS_NAME: Final = "events.out.tfevents.0.cropseg"
"""Name of the event file. TensorBoard reads a file if `tfevents` is in its name."""

_FILE_VERSION: Final = "brain.Event:2"  # what the first event of a file must say
_CURVES: Final = {
    "train/loss": "loss",
    "train/learning_rate": "learning_rate",
    "val/miou": "val_miou",
}
"""Curves of a value an epoch, with their columns in `history.csv`."""
_SCORES: Final = ("miou", "overall_accuracy", "macro_f1")


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One number of a curve."""

    tag: str
    """Name of the curve."""
    step: int
    """Steps of the training that were done."""
    value: float
    """The number."""
    seconds: float
    """Seconds of training that were over."""


def write_tensorboard(run_dir: Path) -> None:
    """Write the event file of a finished run, in the folder `tensorboard` of the run.

    Curves: `train/loss` of every step (of every epoch, where the run kept no
    checkpoint), `train/learning_rate` and `val/miou` of every epoch, `pretrain/loss`,
    and the scores on the test part at the last step. Texts: the settings, and what
    the run tells of its training. An event file of an earlier call is replaced.

    Args:
        run_dir: The folder of a run of `train`, `transfer` or `compare`.

    Raises:
        UsageError: If the folder holds no finished run.
        ResourceError: If the file cannot be written.
    """
    metrics_path = run_dir / "metrics.json"
    if not metrics_path.is_file():
        raise UsageError(
            f"{run_dir} holds no finished run: there is no metrics.json. TensorBoard's "
            "files are written when a run is done; call the same command again."
        )
    metrics = json.loads(metrics_path.read_text(encoding="utf-8"))
    settings = yaml.safe_load((run_dir / "run.yaml").read_text(encoding="utf-8"))
    points = _collect_points(run_dir, metrics)
    texts = {"settings": settings, "training": metrics["training"]}
    # When the run ended, so that the same run gives the same file again.
    ended_at = metrics_path.stat().st_mtime
    started_at = ended_at - max((point.seconds for point in points), default=0.0)
    tf = import_tensorflow()
    event = tf.compat.v1.Event
    events = [event(wall_time=started_at, file_version=_FILE_VERSION)]
    for name, record in texts.items():
        summary = _make_text(tf, name, _format_table(record))
        events.append(event(wall_time=started_at, summary=summary))
    for point in points:
        summary = tf.compat.v1.Summary()
        summary.value.add(tag=point.tag, simple_value=point.value)
        wall_time = started_at + point.seconds
        events.append(event(wall_time=wall_time, step=point.step, summary=summary))
    with (
        write_whole(run_dir / "tensorboard" / EVENTS_NAME) as part,
        tf.io.TFRecordWriter(str(part)) as writer,
    ):
        for item in events:
            writer.write(item.SerializeToString())


def _collect_points(run_dir: Path, metrics: Mapping[str, Any]) -> list[_Point]:
    """Return the points of all curves, each in the order of its steps."""
    epochs = _read_history(run_dir / "history.csv")
    steps = [int(epoch["step"]) for epoch in epochs]
    ends = list(itertools.accumulate(epoch["seconds"] for epoch in epochs))
    curves = {
        "pretrain/loss": list(
            enumerate(load_losses(run_dir / "checkpoints" / "pretrained.npz"), 1)
        ),
        "train/loss": list(
            enumerate(load_losses(run_dir / "checkpoints" / "state.npz"), 1)
        ),
    }
    for tag, column in _CURVES.items():
        if not curves.get(tag):
            curves[tag] = [
                (step, epoch[column])
                for step, epoch in zip(steps, epochs, strict=True)
                if column in epoch
            ]
    last = steps[-1] if steps else 0
    for name, value in _list_scores(metrics.get("test")):
        curves[f"test/{name}"] = [(last, value)]
    return [
        _Point(
            tag=tag,
            step=step,
            value=value,
            seconds=float(np.interp(step, [0, *steps], [0.0, *ends])),
        )
        for tag, curve in curves.items()
        for step, value in curve
    ]


def _read_history(path: Path) -> list[dict[str, float]]:
    """Return the epochs of a run, without what is empty; none if it trained nothing."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {name: float(text) for name, text in row.items() if text}
            for row in csv.DictReader(stream)
        ]


def _list_scores(scores: Mapping[str, Any] | None) -> Iterator[tuple[str, float]]:
    """Yield the scores of a part that are numbers, those of classes by their names."""
    if scores is None:
        return
    for name in _SCORES:
        if scores[name] is not None:
            yield name, scores[name]
    for item in scores["classes"]:
        if item["iou"] is not None:
            yield f"iou/{item['name']}", item["iou"]


def _format_table(record: Mapping[str, Any]) -> str:
    """Return a record as a Markdown table, with a row for every value in it."""
    rows = ["| name | value |", "|---|---|"]
    rows += [
        f"| {_escape(name)} | {_escape(value)} |" for name, value in _flatten(record)
    ]
    return "\n".join(rows)


def _flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _escape(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")


def _make_text(tf: Any, tag: str, text: str) -> Any:
    """Return a summary that TensorBoard shows as Markdown."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "text"
    summary = tf.compat.v1.Summary()
    tensor = tf.make_tensor_proto(text.encode())
    summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
    return summary
