"""A picture of a map with its legend, for a first look."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from cropseg.errors import DataError
from cropseg.files import write_whole
from cropseg.inference.outputs.components import measure_sides_m
from cropseg.inference.outputs.finished import FinishedMap, open_map
from cropseg.inference.outputs.legend import MapClass
from cropseg.sites.classes import IGNORE, parse_color
from cropseg.sites.grid import Grid
from cropseg.sites.raster import GDAL_OPTIONS

_LONGEST_PX: Final = 1600
_DPI: Final = 200
_LEAST_INCHES: Final = 0.5
_TEXT_INCHES: Final = 0.2  # of a line of the legend
_NO_DATA_COLOR: Final = (255, 255, 255)
_METRES_PER_KM: Final = 1000
_LENGTHS: Final = (1, 2, 5)
"""What the length of a scale bar begins with."""


def write_quicklook(finished: FinishedMap, out_path: Path) -> None:
    """Write a PNG of a map: colours, names and shares of its classes, a scale bar.

    It is made from the overviews, so that a map of any size takes seconds and little
    memory. Shares are those of the picture, without pixels that have no data.

    Args:
        finished: The map.
        out_path: The picture, ending in `.png`.

    Raises:
        DataError: If the map cannot be read.
        ResourceError: If the picture cannot be written.
    """
    with open_map(finished) as reader:
        classes, grid = reader.classes, reader.grid
    ids = _read_small(finished.classes_path, grid)
    figure = _draw(finished.scene, ids, classes, grid)
    with write_whole(out_path) as part:
        # Without `Software`, equal maps give equal bytes.
        figure.savefig(part, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})


def _read_small(path: Path, grid: Grid) -> npt.NDArray[np.uint8]:
    """Read a map with square pixels of which at most `_LONGEST_PX` are in a row."""
    width_m, height_m = measure_sides_m(grid)
    extent_m = np.array([grid.height * height_m, grid.width * width_m])
    pixel_m = max(extent_m.max() / _LONGEST_PX, min(width_m, height_m))
    shape = np.maximum(1, np.rint(extent_m / pixel_m)).astype(int)
    try:
        with (
            rasterio.Env(**GDAL_OPTIONS),
            rasterio.open(path, driver="GTiff", sharing=False) as dataset,
        ):
            return np.asarray(
                dataset.read(
                    1, out_shape=tuple(shape.tolist()), resampling=Resampling.nearest
                )
            )
    except RasterioError as error:
        raise DataError(
            f"Cannot read {path}: {error}. The file is damaged; map the scene again."
        ) from error


def _draw(
    scene: str,
    ids: npt.NDArray[np.uint8],
    classes: tuple[MapClass, ...],
    grid: Grid,
) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = np.full((256, 3), _NO_DATA_COLOR, np.uint8)
    for index, item in enumerate(classes):
        colors[index] = parse_color(item.color)
    # A small map is shown as large as a large one, so that the legend fits.
    inches = _LONGEST_PX / _DPI / max(ids.shape)
    height, width = (max(_LEAST_INCHES, side * inches) for side in ids.shape)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    # "auto" stretches a strip that is narrower than the least inches.
    axes.imshow(colors[ids], interpolation="nearest", aspect="auto")
    axes.set_title(scene, fontsize=10, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    _add_legend(axes, ids, classes)
    _add_scale(axes, grid, num_cols=ids.shape[1])
    return figure


def _add_legend(
    axes: Any, ids: npt.NDArray[np.uint8], classes: tuple[MapClass, ...]
) -> None:
    """List the classes of the picture, the most frequent first."""
    from matplotlib.patches import Patch

    counts = np.bincount(ids.ravel(), minlength=256)
    total = max(1, int(counts.sum() - counts[IGNORE]))
    order = [i for i in np.argsort(-counts, kind="stable").tolist() if i < len(classes)]
    handles = [
        Patch(
            facecolor=classes[i].color,
            edgecolor="0.4",
            linewidth=0.4,
            label=f"{classes[i].name}  {100 * counts[i] / total:.1f} %",
        )
        for i in order
        if counts[i]
    ]
    if counts[IGNORE]:
        handles.append(
            Patch(facecolor="white", edgecolor="0.4", linewidth=0.4, label="no data")
        )
    lines = max(4, int(axes.figure.get_figheight() / _TEXT_INCHES))
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        ncols=-(-len(handles) // lines),
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _add_scale(axes: Any, grid: Grid, *, num_cols: int) -> None:
    """Draw a bar of a round length, about a fifth of the picture, below it."""
    width_m = measure_sides_m(grid)[0] * grid.width
    length_m = choose_length(width_m / 5)
    share = length_m / width_m
    in_km = length_m >= _METRES_PER_KM
    text = f"{length_m / _METRES_PER_KM:g} km" if in_km else f"{length_m:g} m"
    gap = 0.08 / axes.figure.get_figheight()
    where = {"transform": axes.transAxes, "clip_on": False}
    axes.plot([0, share], [-gap, -gap], color="black", linewidth=2, **where)
    axes.text(share + 0.01, -gap, text, fontsize=8, va="center", **where)
    axes.set_xlim(-0.5, num_cols - 0.5)


def choose_length(most: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is not above a length."""
    power = 10.0 ** np.floor(np.log10(most))
    lengths = [first * power for first in _LENGTHS if first * power <= most]
    # The logarithm of a number just below a power of ten may be rounded up to it.
    return float(max(lengths, default=max(_LENGTHS) * power / 10))
