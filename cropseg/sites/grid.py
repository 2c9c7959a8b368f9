"""Where the pixels of a raster lie: grids and windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS

_METRES_PER_DEGREE = 111_320.0
_TOLERANCE_PX = 0.01
_MAX_LAT = 90


@dataclass(frozen=True, kw_only=True)
class Window:
    """A pixel rectangle, half-open. It may reach over the edge of its raster."""

    row: int
    """First row, in pixels. Negative above the raster."""
    col: int
    """First column, in pixels. Negative left of the raster."""
    height: int
    """Number of rows."""
    width: int
    """Number of columns."""

    @property
    def row_end(self) -> int:
        """The row after the last one."""
        return self.row + self.height

    @property
    def col_end(self) -> int:
        """The column after the last one."""
        return self.col + self.width

    def grow(self, margin: int) -> Window:
        """Return this window with `margin` pixels more on every side."""
        return Window(
            row=self.row - margin,
            col=self.col - margin,
            height=self.height + 2 * margin,
            width=self.width + 2 * margin,
        )

    def clip(self, *, height: int, width: int) -> Window:
        """Return the part of this window inside a raster of that size."""
        row, row_end = (min(max(v, 0), height) for v in (self.row, self.row_end))
        col, col_end = (min(max(v, 0), width) for v in (self.col, self.col_end))
        return Window(row=row, col=col, height=row_end - row, width=col_end - col)

    def intersect(self, other: Window) -> Window:
        """Return the pixels that are in both windows, which may be none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row_end, other.row_end) - row
        width = min(self.col_end, other.col_end) - col
        return Window(row=row, col=col, height=max(0, height), width=max(0, width))

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Return where this window lies in an array that holds `outer`."""
        row, col = self.row - outer.row, self.col - outer.col
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows, columns, position and CRS of a raster."""

    height: int
    """Number of rows."""
    width: int
    """Number of columns."""
    transform: Affine
    """From (column, row) to coordinates of the CRS; (0, 0) is the outer corner."""
    crs: CRS
    """Coordinate reference system."""

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance: the side of a square as large as a pixel, in m.

        In a geographic CRS it is taken at the middle of the raster.
        """
        side = math.sqrt(abs(self.transform.determinant))
        if self.crs.is_geographic:
            _, lat = self.transform @ (self.width / 2, self.height / 2)
            return side * _METRES_PER_DEGREE * math.sqrt(math.cos(math.radians(lat)))
        _, metres_per_unit = self.crs.linear_units_factor
        return side * float(metres_per_unit)

    @property
    def window(self) -> Window:
        """The window of the whole raster."""
        return Window(row=0, col=0, height=self.height, width=self.width)

    def locate_pixels(
        self, window: Window
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return x and y of the pixel centres of a window, each (height, width)."""
        cols = np.arange(window.col, window.col_end)[None, :] + 0.5
        rows = np.arange(window.row, window.row_end)[:, None] + 0.5
        t = self.transform
        x = t.a * cols + t.c + (t.b * rows if t.b else 0)
        y = t.e * rows + t.f + (t.d * cols if t.d else 0)
        shape = (window.height, window.width)
        return np.broadcast_to(x, shape), np.broadcast_to(y, shape)

    def get_window_transform(self, window: Window) -> Affine:
        """Return the transform of an array that holds `window`."""
        return self.transform @ Affine.translation(window.col, window.row)

    def describe_misplacement(self) -> str | None:
        """Say in words why this grid has no place on the Earth, or return None."""
        if not self.crs:
            return "no CRS"
        if self.crs.is_geographic:
            _, lat = self.transform @ (self.width / 2, self.height / 2)
            if abs(lat) >= _MAX_LAT:
                return f"a CRS of degrees, but a latitude of {lat:.6g} in its middle"
            return None
        return None if self.crs.is_projected else "a local CRS"

    def list_differences(self, other: Grid) -> list[str]:
        """Say in words how `other` differs from this grid; empty if it does not."""
        differences = []
        if (self.height, self.width) != (other.height, other.width):
            differences.append(
                f"shape {self.height} x {self.width} against "
                f"{other.height} x {other.width} (rows x columns)"
            )
        if self.crs != other.crs:
            differences.append(f"CRS {_name(self.crs)} against {_name(other.crs)}")
        elif not self._shares_corners(other):
            differences.append(
                f"transform {_list(self.transform)} against {_list(other.transform)}"
            )
        return differences

    def _shares_corners(self, other: Grid) -> bool:
        """Whether no pixel lies elsewhere: a small error of scale adds up."""
        tolerance = _TOLERANCE_PX * math.sqrt(abs(self.transform.determinant))
        return all(
            math.dist(self.transform @ corner, other.transform @ corner) <= tolerance
            for corner in ((0, 0), (self.width, 0), (0, self.height))
        )


def _name(crs: CRS) -> str:
    return str(crs.to_string()) if crs else "none"


def _list(transform: Affine) -> str:
    return "(" + ", ".join(f"{value:.10g}" for value in transform[:6]) + ")"
