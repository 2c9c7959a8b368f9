"""A confusion matrix as a picture and as a table.

Figures are made without pyplot, so that nothing global changes and any thread
may draw. Files are written whole (`cropseg.files`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cropseg.evaluation.confusion import name_columns, sum_blocks
from cropseg.files import write_text, write_whole

_CELL_INCHES = 0.52
_DARK_SHARE = 0.55
"""Above this share a cell of the `Blues` map is too dark for black numbers."""


def write_confusion_csv(
    counts: NDArray[np.integer], class_names: Sequence[str], path: Path
) -> None:
    """Write confusion counts as a table: a row a label, a column a prediction.

    Args:
        counts: Pixels, of shape (C, C + 1), or (B, C, C + 1) to be summed.
        class_names: C names, in the order of the rows.
        path: The CSV file. Its first line is `label`, the names and `other`.

    Raises:
        DataError: If the shape does not fit the names.
        ResourceError: If the file cannot be written.
    """
    matrix = sum_blocks(counts, num_classes=len(class_names))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", *name_columns(tuple(class_names))])
    for name, row in zip(class_names, matrix.tolist(), strict=True):
        table.writerow([name, *row])
    write_text(path, text.getvalue())


def plot_confusion(
    counts: NDArray[np.integer], class_names: Sequence[str], path: Path
) -> None:
    """Draw where the pixels of each label went, as a PNG.

    A cell holds the share of its label's pixels, in percent; each row adds up to
    100. The diagonal is the recall. The column `other` is there only if something
    was predicted that the site does not have. Labels without a pixel stay empty.

    Args:
        counts: Pixels, of shape (C, C + 1), or (B, C, C + 1) to be summed.
        class_names: C names, in the order of the rows.
        path: The PNG file.

    Raises:
        DataError: If the shape does not fit the names.
        ResourceError: If the file cannot be written.
    """
    matrix = sum_blocks(counts, num_classes=len(class_names))
    columns = name_columns(tuple(class_names))
    if not matrix[:, -1].any():
        matrix, columns = matrix[:, :-1], columns[:-1]
    num_pixels = matrix.sum(axis=1)
    shares = matrix / np.maximum(num_pixels, 1)[:, np.newaxis]
    rows = [
        f"{name}  ({count:,} px)"
        for name, count in zip(class_names, num_pixels.tolist(), strict=True)
    ]
    num_rows, num_columns = matrix.shape
    figure = Figure(
        figsize=(_CELL_INCHES * num_columns + 1.4, _CELL_INCHES * num_rows + 0.8)
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_cells(axes, shares, num_pixels)
    _name_axes(axes, rows, columns)
    with write_whole(path) as part:
        # `tight` makes room for names of any length; without `Software` equal
        # counts give equal bytes.
        figure.savefig(part, dpi=120, bbox_inches="tight", metadata={"Software": None})


def _draw_cells(
    axes: Axes, shares: NDArray[np.float64], num_pixels: NDArray[np.int64]
) -> None:
    axes.imshow(
        np.where(num_pixels[:, np.newaxis] > 0, shares, np.nan),
        cmap="Blues",
        vmin=0.0,
        vmax=1.0,
        aspect="equal",
    )
    axes.set_facecolor("#eeeeee")  # what shows where a label has no pixel
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            _format_share(float(share)),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if row == column else "normal",
            color="white" if share > _DARK_SHARE else "black",
        )


def _format_share(share: float) -> str:
    """Return a share in percent, with nothing for an exact 0.

    Example:
        >>> [_format_share(share) for share in (0.0, 0.001, 0.125, 0.999, 1.0)]
        ['', '<1', '12', '>99', '100']
    """
    if share == 0:
        return ""
    percent = f"{100 * share:.0f}"
    if percent == "0":
        return "<1"
    return ">99" if percent == "100" and share < 1 else percent


def _name_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    # A class name is no formula: without `parse_math` a `$` in it would raise.
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_xticks(
        range(len(columns)),
        columns,
        rotation=45,
        ha="left",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted class (cells: % of the label's pixels)")
    axes.set_ylabel("label")
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
