"""Map panels: a part of the test area as image, labels, predictions and errors."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.checks.page import encode_picture
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.values import read_text, write_labels
from cropseg.sites.classes import IGNORE

MAX_BYTES: Final = 1_600_000
"""What the pictures of a page may take, as text. Small budgets are left out first."""

_UNKNOWN: Final = (0xFF, 0xFF, 0xFF)
_OTHER: Final = (0x10, 0x10, 0x10)
_RIGHT: Final = (0xD5, 0xDB, 0xE3)
_WRONG: Final = (0x9C, 0x17, 0x17)
_RIGHT_ID, _WRONG_ID, _UNKNOWN_ID = 0, 1, 2

Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ModePanel:
    """What one mode predicts."""

    mode: str
    """The mode."""
    prediction: str
    """Address of the picture of its classes."""
    errors: str
    """Address of the picture of what is right and wrong."""
    right: str
    """Share of the labelled pixels that are right."""


@dataclass(frozen=True, kw_only=True)
class BudgetPanels:
    """The predictions of the modes at one budget."""

    labels: str
    """The budget in words."""
    modes: tuple[ModePanel, ...]
    """Best first."""


@dataclass(frozen=True, kw_only=True)
class PanelView:
    """The panels of a page."""

    image: str
    """Address of the image."""
    labels: str
    """Address of the labels."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    legend: tuple[tuple[str, str], ...]
    """Name and colour of what is to be seen."""
    budgets: tuple[BudgetPanels, ...]
    """The largest budget first."""
    num_left_out: int
    """Budgets that would have made the page too large."""
    is_of_fold: bool
    """Whether the runs are those of one fold."""


def encode_map(ids: Ids, colors: Sequence[tuple[int, int, int]]) -> str:
    """Return the address of a map as a PNG with a palette.

    Args:
        ids: Shape (h, w). Ids without a colour are drawn in the last one.
        colors: Red, green and blue of each id, at most 256.
    """
    height, width = ids.shape
    depth = next(bits for bits in (1, 2, 4, 8) if len(colors) <= 1 << bits)
    pixels = 8 // depth  # in a byte, the first one in the highest bits
    shape = (height, -(-width // pixels), pixels)
    small = np.zeros((height, shape[1] * pixels), np.uint8)
    small[:, :width] = np.minimum(ids, len(colors) - 1)
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    rows = np.zeros((height, shape[1] + 1), np.uint8)  # a row starts with its filter, 0
    rows[:, 1:] = np.bitwise_or.reduce(small.reshape(shape) << shifts, axis=2)
    header = struct.pack(">IIBBBBB", width, height, depth, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", bytes(value for color in colors for value in color)),
        (b"IDAT", zlib.compress(rows.tobytes())),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def show_panels(data: ReportData) -> PanelView | None:
    """Return the panels of a comparison, or None where nothing was predicted there."""
    panel = data.files.panel
    if panel is None or not data.classes:
        return None
    colors = [_parse_color(item["color"]) for item in data.classes]
    palette = [*colors, _OTHER, _UNKNOWN]  # 255 is cut down to the last
    image = encode_picture(panel.image, "jpeg")
    labels = encode_map(_to_palette(panel.labels, len(colors)), palette)
    size, num_left_out = len(image) + len(labels), 0
    budgets: list[BudgetPanels] = []
    folds: set[float] = set()
    for budget in reversed(data.budgets):
        modes = []
        for item in data.list_modes(budget):
            ids = _find_prediction(data, read_text(item["mode"]), budget, folds)
            if ids is not None:
                modes.append(_show_mode(read_text(item["mode"]), ids, data, palette))
        taken = sum(len(mode.prediction) + len(mode.errors) for mode in modes)
        if not modes:
            continue
        if budgets and size + taken > MAX_BYTES:
            num_left_out += 1
            continue
        size += taken
        labels_text = write_labels(budget.get("labels"))
        budgets.append(BudgetPanels(labels=labels_text, modes=tuple(modes)))
    if not budgets:
        return None
    height, width = panel.labels.shape
    return PanelView(
        image=image,
        labels=labels,
        width=width,
        height=height,
        legend=_list_legend(data, panel.labels),
        budgets=tuple(budgets),
        num_left_out=num_left_out,
        is_of_fold=bool(data.summary.get("folds")),
    )


def _find_prediction(
    data: ReportData, mode: str, budget: Any, folds: set[float]
) -> Ids | None:
    """Return the prediction of a mode's first run that has one of the right shape.

    Args:
        data: The comparison.
        mode: The mode.
        budget: The budget.
        folds: The fold that all pictures are of, once one is known. It is added here.
    """
    shape = data.files.panel.labels.shape if data.files.panel else None
    for run in data.find_runs(mode, read_text(budget.get("labels"))):
        fold = run.order[2]
        if run.panel is not None and run.panel.shape == shape and folds <= {fold}:
            folds.add(fold)
            return run.panel
    return None


def _show_mode(
    mode: str, ids: Ids, data: ReportData, palette: Sequence[tuple[int, int, int]]
) -> ModePanel:
    labels = data.files.panel.labels if data.files.panel else ids
    known = labels != IGNORE
    is_right = (ids == labels) & known
    errors = np.where(known, np.where(is_right, _RIGHT_ID, _WRONG_ID), _UNKNOWN_ID)
    share = is_right.sum() / known.sum() if known.any() else None
    return ModePanel(
        mode=mode,
        prediction=encode_map(_to_palette(ids, len(palette) - 2), palette),
        errors=encode_map(errors.astype(np.uint8), (_RIGHT, _WRONG, _UNKNOWN)),
        right="" if share is None else f"{share:.0%}",
    )


def _to_palette(ids: Ids, num_classes: int) -> Ids:
    """Return places in a palette: the classes, other, and unknown."""
    places = np.minimum(ids, num_classes)
    return np.where(ids == IGNORE, num_classes + 1, places).astype(np.uint8)


def _list_legend(data: ReportData, labels: Ids) -> tuple[tuple[str, str], ...]:
    """Return the classes, and what else is drawn."""
    items = [(item["name"], item["color"]) for item in data.classes]
    if (labels == IGNORE).any():
        items.append(("no label", _write_color(_UNKNOWN)))
    return tuple(items)


ERROR_LEGEND: Final = (
    ("right", "#d5dbe3"),
    ("wrong", "#9c1717"),
)
"""What the pictures of errors are drawn in."""


def _parse_color(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _write_color(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
