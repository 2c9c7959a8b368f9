"""A picture of a map: the image, its labels and the prediction, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cropseg.files import write_whole
from cropseg.models.card import Card
from cropseg.sites.classes import IGNORE, parse_color
from cropseg.sites.raster import Pixels, open_raster
from cropseg.sites.scene import Scene
from cropseg.sites.site import Site

_STRETCH_PERCENT = (1, 99)
_RGB = ("red", "green", "blue")


def draw_map(
    site: Site, scene: Scene, card: Card, *, map_path: Path, path: Path
) -> None:
    """Draw a scene, its labels and its map side by side, as PNG.

    The whole scene is read: this is for the scenes of the demo.

    Args:
        site: The site, with bands red, green and blue.
        scene: One of its scenes.
        card: Card of the model that made the map.
        map_path: The map.
        path: A PNG file.
    """
    # Without a split, a field is drawn whole that a part would not see all of.
    whole = replace(site.select_bands(_RGB), split=None)
    with whole.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(scene.grid.window)
    with open_raster(map_path) as map_reader:
        prediction = map_reader.read(map_reader.grid.window, [0]).values[..., 0]
    labels[~pixels.valid] = IGNORE
    panels = {
        "image (red, green, blue)": _stretch(pixels),
        "labels (white: unknown)": _color(labels, site.classes.colors),
        "map (white: no data)": _color(prediction, [c.color for c in card.classes]),
    }
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    handles = [
        Patch(facecolor=item.color, edgecolor="0.4", label=item.name)
        for item in site.classes.classes
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    with write_whole(path) as part:
        figure.savefig(part, dpi=110)


def _stretch(pixels: Pixels) -> npt.NDArray[np.float64]:
    values = pixels.values.astype(np.float64)
    low, high = np.percentile(values[pixels.valid], _STRETCH_PERCENT, axis=0)
    values = np.clip((values - low) / (high - low), 0, 1)
    values[~pixels.valid] = 1
    return values


def _color(
    classes: npt.NDArray[np.uint8], colors: tuple[str, ...] | list[str]
) -> npt.NDArray[np.uint8]:
    table = np.full((256, 3), 255, np.uint8)
    for index, color in enumerate(colors):
        table[index] = parse_color(color)
    return table[classes]
