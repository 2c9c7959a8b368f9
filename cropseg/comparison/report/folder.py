"""Reading the folder of a comparison. What is missing or damaged is None."""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import yaml

from cropseg.comparison.report.values import read_items, read_number, read_text

_UNREADABLE: Final = (
    OSError,
    ValueError,  # JSON, CSV numbers, UTF-8, arrays that hold objects
    KeyError,
    TypeError,  # an array alone is no archive of arrays
    EOFError,
    RecursionError,  # JSON that is nested without end
    csv.Error,
    yaml.YAMLError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a file that was cut off, or is none of ours, may raise."""

_NUM_SPATIAL: Final = 2


@dataclass(frozen=True, kw_only=True)
class PanelData:
    """A part of the test area, as `panel.npz` holds it."""

    image: npt.NDArray[np.uint8]
    """Shape (h, w, 3)."""
    labels: npt.NDArray[np.uint8]
    """Class ids, 255 where unknown; shape (h, w)."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What the folder of one run adds to the summary."""

    name: str
    """Name of the folder."""
    mode: str
    """The run's mode."""
    labels: str | None
    """Its budget; None where it sees no labels."""
    order: tuple[float, float, float]
    """Draw, seed and fold, by which runs are sorted."""
    history: tuple[tuple[float, float, float | None], ...]
    """Step, loss and mIoU on the val part, of each epoch; empty where none is kept."""
    panel: npt.NDArray[np.uint8] | None
    """Predicted class ids in the panel's window, shape (h, w)."""


@dataclass(frozen=True, kw_only=True)
class ComparisonFiles:
    """All that a report is made from."""

    path: Path
    """The folder."""
    summary: Mapping[str, Any]
    """`summary.json`; empty where it is missing."""
    record: Mapping[str, Any]
    """`compare.yaml`; empty where it is missing."""
    record_text: str
    """The same as it stands in the file."""
    rows: tuple[Mapping[str, str], ...]
    """`results.csv`."""
    panel: PanelData | None
    """`panel.npz`."""
    runs: tuple[RunFiles, ...]
    """The runs whose folders are there, by draw, seed and fold."""
    plots: tuple[str, ...]
    """Names of the plots of mIoU against labels that stand in the folder."""


def read_folder(path: Path) -> ComparisonFiles:
    """Read the folder of a comparison.

    Args:
        path: The folder. Of its files any may be missing or damaged.
    """
    record_text = _read_text(path / "compare.yaml")
    record = _parse(yaml.safe_load, record_text)
    summary = _parse(json.loads, _read_text(path / "summary.json"))
    rows = _parse(_parse_rows, _read_text(path / "results.csv"))
    summary = summary if isinstance(summary, dict) else {}
    return ComparisonFiles(
        path=path,
        summary=summary,
        record=record if isinstance(record, dict) else {},
        record_text=record_text,
        rows=tuple(rows or ()),
        panel=_read_panel(path / "panel.npz"),
        runs=tuple(sorted(_list_runs(path, summary), key=lambda run: run.order)),
        plots=tuple(
            name
            for name in ("comparison.svg", "comparison.png")
            if (path / name).is_file()
        ),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except _UNREADABLE:
        return ""


def _parse(parse: Any, text: str) -> Any:
    try:
        return parse(text) if text else None
    except _UNREADABLE:
        return None


def _parse_rows(text: str) -> list[dict[str, str]]:
    # A row that is too short or too long has None for a key or a value.
    rows = csv.DictReader(io.StringIO(text), restkey="", restval="")
    return [{str(key): str(value) for key, value in row.items()} for row in rows]


def _read_panel(path: Path) -> PanelData | None:
    image, labels = _read_array(path, "image"), _read_array(path, "labels")
    if image is None or labels is None or labels.ndim != _NUM_SPATIAL:
        return None
    if image.shape != (*labels.shape, 3) or not labels.size:
        return None
    return PanelData(image=image, labels=labels)


def _read_array(path: Path, name: str) -> npt.NDArray[np.uint8] | None:
    try:
        # NumPy leaves a file open that is no archive, so it is opened here.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found = arrays[name]
    except _UNREADABLE:
        return None
    return found if found.dtype == np.uint8 else None


def _list_runs(path: Path, summary: Mapping[str, Any]) -> list[RunFiles]:
    """Return the runs of the summary, or where it names none, those of the folder."""
    named = [run for run in read_items(summary.get("runs")) if run.get("folder")]
    pairs: list[tuple[Path, Any]]
    if named:
        # A name alone: what lies elsewhere is no run of this comparison.
        pairs = [
            (path / "runs" / Path(read_text(run["folder"])).name, run) for run in named
        ]
    else:
        folders = sorted(path.glob("runs/*/"))
        pairs = [
            (item, _parse(yaml.safe_load, _read_text(item / "run.yaml")))
            for item in folders
        ]
    return [
        _read_run(folder, run)
        for folder, run in pairs
        if folder.is_dir() and isinstance(run, Mapping)
    ]


def _read_run(folder: Path, run: Mapping[str, Any]) -> RunFiles:
    order = [read_number(run.get(key)) or 0.0 for key in ("draw", "seed", "fold")]
    # The forest's record has a command and no mode.
    mode = read_text(run.get("mode")) or read_text(run.get("command"))
    return RunFiles(
        name=folder.name,
        mode=mode,
        labels=read_text(run.get("labels")) or None,
        order=(order[0], order[1], order[2]),
        history=_read_history(folder / "history.csv"),
        panel=_read_array(folder / "counts.npz", "panel"),
    )


def _read_history(path: Path) -> tuple[tuple[float, float, float | None], ...]:
    found = []
    for row in _parse(_parse_rows, _read_text(path)) or ():
        step, loss = _read_cell(row, "step"), _read_cell(row, "loss")
        if step is not None and loss is not None:
            found.append((step, loss, _read_cell(row, "val_miou")))
    return tuple(found)


def _read_cell(row: Mapping[str, str], name: str) -> float | None:
    try:
        return read_number(float(row.get(name, "")))
    except ValueError:
        return None
