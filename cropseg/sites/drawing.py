"""Drawing of polygons on a grid, in one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from rasterio.features import rasterize

from cropseg.sites.grid import Grid, Window

# rasterio swaps the warning filters of the whole process while it draws: two threads
# at once get stray warnings and leave the filters changed.
_LOCK: Final = threading.Lock()

BLOCK_PX: Final = 256
"""Side of the blocks, fixed on a grid, in which polygons are drawn: what is rounded
does not depend on the window then."""

Number = TypeVar("Number", bound=np.integer[Any])


def outline_block(grid: Grid, block: Window, reach: float = 0.0) -> Any:
    """Return the box, in the CRS of the grid, of all that may be drawn in a block.

    It is a pixel larger: what only touches a block may label a pixel of it.

    Args:
        grid: Where pixels lie.
        block: What is drawn.
        reach: How much further to look, in units of the CRS.
    """
    import shapely

    around = block.grow(1)
    corners = [
        grid.transform @ (col, row)
        for col in (around.col, around.col_end)
        for row in (around.row, around.row_end)
    ]
    (left, bottom), (right, top) = np.min(corners, axis=0), np.max(corners, axis=0)
    return shapely.box(left - reach, bottom - reach, right + reach, top + reach)


def draw_shapes(
    shapes: Iterable[tuple[Any, int]],
    grid: Grid,
    window: Window,
    *,
    fill: int,
    dtype: type[Number],
    all_touched: bool = False,
) -> npt.NDArray[Number]:
    """Draw polygons with a number each; later ones cover earlier ones.

    Args:
        shapes: Polygons in the CRS of the grid, at least one, and their numbers.
        grid: Where pixels lie.
        window: What to draw. It may reach over the edge of the grid.
        fill: The number of pixels without a polygon.
        dtype: NumPy type of the numbers.
        all_touched: Whether a polygon gets all pixels that it touches, or those whose
            centre it holds.

    Returns:
        Numbers, (window.height, window.width).
    """
    with _LOCK:
        drawn = rasterize(
            shapes,
            out_shape=(window.height, window.width),
            fill=fill,
            transform=grid.get_window_transform(window),
            all_touched=all_touched,
            dtype=np.dtype(dtype).name,
        )
    return np.asarray(drawn, dtype)
