"""A look at a scene that costs next to nothing: a few windows, spread over it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.inference.scenes.mapped_scene import MappedScene
from cropseg.sites.grid import Window
from cropseg.sites.location import RemoteFile

_WINDOW_PX: Final = 64
_R2: Final = (0.7548776662466927, 0.5698402909980532)
_STEP_PX: Final = 2  # neighbours say the same
_FEW_PX: Final = 2000
_SIDES: Final = (6, 12)  # windows along a side; the second where the first saw little
_REMOTE_SIDE: Final = 3
_BUDGET_BYTES: Final = 64 * 2**20  # a quarter of a second to decode

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some pixels of a scene."""

    values: Floats
    """(pixels, bands), the valid ones, in raw units."""
    num_valid: int
    """Valid pixels of the whole scene, estimated from those that were looked at."""


def read_sample(scene: MappedScene) -> Sample:
    """Read windows that are spread over a scene.

    Args:
        scene: The scene. One that is mostly empty is looked at more closely.

    Returns:
        A quarter of the valid pixels of a few dozen windows, the same ones each time.

    Raises:
        DataError: If the scene cannot be read.
    """
    file = scene.image.files[0]
    is_remote = isinstance(file.location, RemoteFile)
    found: list[Floats] = []
    num_windows = num_seen = num_valid = 0
    with scene.open() as reader:
        for side in (_REMOTE_SIDE,) if is_remote else _SIDES:
            windows = list(spread_windows(scene, side))
            if len(windows) == num_windows:
                break  # the same ones: it is too small for more
            num_windows = len(windows)
            for window in windows:
                pixels = reader.read_pixels(window)
                values = pixels.values[::_STEP_PX, ::_STEP_PX]
                valid = pixels.valid[::_STEP_PX, ::_STEP_PX]
                num_seen += valid.size
                num_valid += int(valid.sum())
                found.append(values[valid].astype(np.float64))
            if num_valid >= _FEW_PX:
                break
    num_pixels = scene.image.grid.height * scene.image.grid.width
    return Sample(
        values=np.concatenate(found), num_valid=num_valid * num_pixels // num_seen
    )


def spread_windows(scene: MappedScene, side: int) -> Iterator[Window]:
    """Yield a window in each cell of a grid, none over the border of a block.

    Where in its cell is a fixed sequence that looks random (Roberts 2018, R2), so that
    rows of fields, or of tiles of a mosaic, do not fall in step with it.
    """
    grid = scene.image.grid
    block_bytes, is_strip = _measure_block(scene)
    # Where a first look saw little, most of what is decoded is empty, and soon done.
    num_blocks = _BUDGET_BYTES // block_bytes * max(1, side // _SIDES[0]) ** 2
    # Windows side by side in strips share what is decoded.
    most = max(2, num_blocks if is_strip else math.isqrt(num_blocks))
    num_rows = _count_cells(grid.height, min(side, most))
    num_cols = _count_cells(grid.width, side if is_strip else min(side, most))
    for index in range(num_rows * num_cols):
        row, col = divmod(index, num_cols)
        down = (0.5 + (row if is_strip else index) * _R2[0]) % 1
        right = (0.5 + index * _R2[1]) % 1
        yield Window(
            row=_place_window(row + down, grid.height / num_rows),
            col=_place_window(col + right, grid.width / num_cols),
            height=_WINDOW_PX,
            width=_WINDOW_PX,
        ).clip(height=grid.height, width=grid.width)


def _count_cells(size: int, most: int) -> int:
    return max(1, min(most, size // (2 * _WINDOW_PX)))


def _place_window(cell: float, cell_px: float) -> int:
    # Blocks begin at multiples of this.
    return int(cell * cell_px) // _WINDOW_PX * _WINDOW_PX


def _measure_block(scene: MappedScene) -> tuple[int, bool]:
    """Return the bytes decoded for a window, about, and whether blocks are strips."""
    header = scene.image.files[0].header
    ratio = max(1.0, scene.image.grid.gsd_m / scene.image.native_grid.gsd_m)
    height, width = (
        -(-int(_WINDOW_PX * ratio) // block) * block
        for block in (header.block_height, header.block_width)
    )
    pixel_bytes = np.dtype(header.file_dtype).itemsize * scene.image.num_bands
    is_strip = header.block_width >= header.grid.width
    return max(1, height * width * pixel_bytes), is_strip
