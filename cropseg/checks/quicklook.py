"""Small pictures of scenes: image, labels, both, and the split."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.checks.blocks import BlockCounts
from cropseg.checks.split_map import write_split
from cropseg.files import write_whole
from cropseg.sites.classes import IGNORE, Labels, parse_color
from cropseg.sites.regions import RegionSplit
from cropseg.sites.scan import ScannedBlock, scan_site
from cropseg.sites.scene import Scene
from cropseg.sites.site import Site
from cropseg.sites.split import (
    NO_PART,
    PARTS,
    BlockSplit,
    FoldSplit,
    NoSplit,
    PartIds,
)

PART_COLORS: Final = {"train": "#3b7dd8", "val": "#f2b134", "test": "#d1495b"}
"""Colour of each part of a split."""

_MAX_SIDE_PX: Final = 900
_STRETCH_PERCENT: Final = (2, 98)
_RGB: Final = ("red", "green", "blue")
_NOTHING: Final = (255, 255, 255)
_TILE_PX: Final = 256
_PANEL_INCHES: Final = 5.2
_LEGEND_INCHES: Final = 1.6

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a scene."""

    title: str
    """What it shows."""
    picture: Picture
    """Its pixels."""
    is_flat: bool = False
    """Whether it is areas of one colour each, and no photograph."""


@dataclass(frozen=True, kw_only=True)
class QuickLook:
    """A scene, of which only every n-th pixel was kept."""

    scene: Scene
    """The scene."""
    colors: tuple[str, ...]
    """Colours of the site's classes."""
    step_px: int
    """Every how many pixels one was kept, along rows and columns."""
    values: npt.NDArray[np.float32]
    """Three bands of the image, (height, width, 3), NaN where there is no data."""
    labels: Labels
    """Class ids, (height, width); 255 where unknown."""
    parts: PartIds
    """Parts, (height, width)."""

    @property
    def has_parts(self) -> bool:
        """Whether a pixel is in a part."""
        return bool((self.parts != NO_PART).any())

    def list_panels(self) -> tuple[Panel, ...]:
        """Return the pictures that there is something to show on."""
        panels = [
            Panel(
                title="image, stretched from its 2 % to its 98 % quantile",
                picture=self.image,
            )
        ]
        if self.scene.labels is not None:
            panels += [
                Panel(
                    title="labels; white: unknown",
                    picture=self.color_labels(),
                    is_flat=True,
                ),
                Panel(
                    title="label borders over the image", picture=self.overlay_labels()
                ),
            ]
        if self.has_parts:
            title = "split; strong where labelled"
            panels.append(Panel(title=title, picture=self.color_parts()))
        return tuple(panels)

    @functools.cached_property
    def image(self) -> Picture:
        """The image, stretched from its 2 % to its 98 % quantile; white: no data."""
        return _stretch(self.values)

    def color_labels(self) -> Picture:
        """Return the labels in the colours of their classes; white: unknown."""
        table = np.full((256, 3), _NOTHING, np.uint8)
        for class_id, color in enumerate(self.colors):
            table[class_id] = parse_color(color)
        return table[self.labels]

    def overlay_labels(self) -> Picture:
        """Return the image with the borders of its labels drawn over it, inside."""
        picture = self.image.copy()
        borders = np.zeros(self.labels.shape, np.bool_)
        down = self.labels[1:] != self.labels[:-1]
        right = self.labels[:, 1:] != self.labels[:, :-1]
        borders[1:] |= down
        borders[:-1] |= down
        borders[:, 1:] |= right
        borders[:, :-1] |= right
        borders &= self.labels != IGNORE
        picture[borders] = self.color_labels()[borders]
        return picture

    def color_parts(self) -> Picture:
        """Return the image in grey, tinted by part; strong where labels are."""
        gray = self.image.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
        table = np.full((256, 3), _NOTHING, np.float64)
        for part, name in enumerate(PARTS):
            table[part] = parse_color(PART_COLORS[name])
        weight = np.where(self.labels == IGNORE, 0.25, 0.65)[..., None]
        weight = np.where(self.parts[..., None] == NO_PART, 0.0, weight)
        return (gray * (1 - weight) + table[self.parts] * weight).astype(np.uint8)


class QuickLooks:
    """Takes the blocks of a scan, and keeps every n-th pixel of each scene.

    A scene takes up to 11 MB, and a site may have thousands.
    """

    def __init__(self, site: Site, max_scenes: int | None = None) -> None:
        """Start with nothing seen.

        Args:
            site: The site.
            max_scenes: How many scenes to keep, the first ones; None for all.
        """
        self._site = site
        self._bands = choose_bands(site)
        self._num_scenes = len(site.scenes) if max_scenes is None else max_scenes
        self._kept: dict[int, QuickLook] = {}

    def add(self, block: ScannedBlock) -> None:
        """Add a block."""
        if block.scene >= self._num_scenes:
            return
        if block.scene not in self._kept:
            self._kept[block.scene] = self._start(self._site.scenes[block.scene])
        look, core = self._kept[block.scene], block.core
        step = look.step_px
        first_row, first_col = -(-core.row // step), -(-core.col // step)
        rows = np.arange(first_row * step, core.row_end, step)
        cols = np.arange(first_col * step, core.col_end, step)
        if not len(rows) or not len(cols):
            return
        inside = np.ix_(rows - block.window.row, cols - block.window.col)
        place = (
            slice(first_row, first_row + len(rows)),
            slice(first_col, first_col + len(cols)),
        )
        values = block.pixels.values[inside][..., self._bands].astype(np.float32)
        values[~block.pixels.valid[inside]] = np.nan
        look.values[place] = values
        look.labels[place] = block.labels[inside]
        look.parts[place] = block.parts[inside]

    def _start(self, scene: Scene) -> QuickLook:
        longest = max(scene.grid.height, scene.grid.width)
        step = max(1, math.ceil(longest / _MAX_SIDE_PX))
        shape = (-(-scene.grid.height // step), -(-scene.grid.width // step))
        return QuickLook(
            scene=scene,
            colors=self._site.classes.colors,
            step_px=step,
            values=np.full((*shape, 3), np.nan, np.float32),
            labels=np.full(shape, IGNORE, np.uint8),
            parts=np.full(shape, NO_PART, np.uint8),
        )

    def finish(self) -> tuple[QuickLook, ...]:
        """Return a quick-look of every scene since the last call, and forget them."""
        kept, self._kept = self._kept, {}
        return tuple(kept.values())


def choose_bands(site: Site) -> list[int]:
    """Return the positions of red, green and blue, or of three bands to show."""
    found = [site.bands.index(name) for name in _RGB if name in site.bands]
    if len(found) == len(_RGB):
        return found
    return [min(band, len(site.bands) - 1) for band in (2, 1, 0)]


def _stretch(values: npt.NDArray[np.float32]) -> Picture:
    valid = np.isfinite(values).all(axis=-1)
    picture = np.full(values.shape, 255, np.uint8)
    if valid.any():
        low, high = np.percentile(values[valid], _STRETCH_PERCENT, axis=0)
        share = (values[valid] - low) / np.where(high > low, high - low, 1)
        picture[valid] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return picture


def write_previews(site: Site, out_dir: Path) -> list[Path]:
    """Write a PNG quick-look of every scene: image, labels, overlay and split.

    Args:
        site: The site.
        out_dir: Folder for `<scene>_preview.png` and, with labels and a split, for
            `split.gpkg`, which QGIS shows.

    Returns:
        The files.
    """
    has_split = site.split is not None
    site = site if has_split else replace(site, split=NoSplit())
    looks, blocks = QuickLooks(site), BlockCounts(site)
    paths: list[Path] = []
    scanned = itertools.groupby(scan_site(site, _TILE_PX), lambda block: block.scene)
    for _, of_scene in scanned:
        for block in of_scene:
            looks.add(block)
            if has_split:
                blocks.add(block)
        for look in looks.finish():  # at once, so that few are in memory
            paths.append(out_dir / f"{look.scene.name}_preview.png")
            _draw(site, look, paths[-1])
    if blocks.pixels:
        paths.append(_write_split(site, blocks, out_dir / "split.gpkg"))
    return paths


def _write_split(site: Site, blocks: BlockCounts, path: Path) -> Path:
    split = site.require_split()
    assert isinstance(split, BlockSplit | FoldSplit | RegionSplit)  # noqa: S101 - all
    counts = {block: pixels[: len(PARTS)] for block, pixels in blocks.pixels.items()}
    write_split(
        path,
        split,
        counts=counts,
        class_names=site.classes.names,
        crs=site.scenes[0].grid.crs,
        pixel_m2=site.gsd_m**2,
    )
    return path


def _draw(site: Site, look: QuickLook, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = look.list_panels()
    num_cols = min(len(panels), 2)
    num_rows = math.ceil(len(panels) / num_cols)
    height, width = look.labels.shape
    panel_height = _PANEL_INCHES * min(max(height / width, 0.4), 2.0)
    figure = Figure(
        figsize=(num_cols * _PANEL_INCHES, num_rows * panel_height + _LEGEND_INCHES),
        layout="constrained",
    )
    every_axes = list(figure.subplots(num_rows, num_cols, squeeze=False).flat)
    for axes in every_axes:
        axes.set_axis_off()
    for axes, panel in zip(every_axes, panels, strict=False):
        axes.imshow(panel.picture, interpolation="nearest")
        axes.set_title(panel.title, fontsize="medium")
    colors = {}
    if look.scene.labels is not None:
        colors = {item.name: item.color for item in site.classes.classes}
    if look.has_parts:
        colors |= {f"split: {name}": color for name, color in PART_COLORS.items()}
    handles = [
        # A name may hold a dollar, which starts a formula, or start with "_".
        Patch(facecolor=color, edgecolor="0.4", label=" " + name.replace("$", r"\$"))
        for name, color in colors.items()
    ]
    figure.suptitle(f"{site.name}: {look.scene.name}", parse_math=False)
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=2 * num_cols,
            frameon=False,
        )
    with write_whole(path) as part:
        figure.savefig(part, dpi=100)
