"""Measure how far a map depends on the tiles that it is made of.

Usage: python scripts/measure_context.py MODEL MANIFEST

Maps the first scene of a site, of some 2,000 pixels a side at most, and prints tables
for docs/performance.md. Agreement is the share of pixels with data that have the class
of the reference: the whole scene in one tile, with its mirror image around it.
Accuracy is the share of labelled pixels, of classes that the model knows, that have
the right class.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import cropseg
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.engines.tta import AugmentedEngine
from cropseg.inference.tiles import tile_shape
from cropseg.inference.tiles.blend import blend_tiles
from cropseg.inference.tiles.mosaic import PredictedTile, predict_tiles
from cropseg.inference.tiles.tile_shape import DEFAULT_CONTEXT, TileShape
from cropseg.models.bundle import load_bundle
from cropseg.models.card import fit_site_to_card
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.raster import Pixels
from cropseg.sites.tiling import iterate_tiles

REFERENCE_CONTEXT = 256
SIZES = (256, 512, 1024)
CONTEXTS = (0, 16, 32, 64, 96, 128, 192)
SMALL_PX = 256
SMALL_CONTEXTS = (0, 16, 32, 64)

Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ReadScene:
    """A scene in memory, which reads like an open one."""

    pixels: Pixels
    """All of it."""
    labels: Classes
    """Class ids of the model; 255 where it does not know the label."""
    grid: Grid
    """Its grid."""

    def read_pixels(self, window: Window) -> Pixels:
        """Read a window inside the scene."""
        place = window.slices_in(self.grid.window)
        return Pixels(values=self.pixels.values[place], valid=self.pixels.valid[place])

    def cut(self, window: Window) -> ReadScene:
        """Return a scene that ends at a window, as if the file did."""
        place = window.slices_in(self.grid.window)
        grid = Grid(
            height=window.height,
            width=window.width,
            transform=self.grid.get_window_transform(window),
            crs=self.grid.crs,
        )
        return ReadScene(
            pixels=self.read_pixels(window), labels=self.labels[place], grid=grid
        )


def main(model_path: str, manifest: str) -> None:
    """Map one scene in many ways, and print tables."""
    engine = KerasEngine(load_bundle(model_path), batch_size=1, precision="float32")
    card = engine.card
    print(f"{card.architecture} {card.encoder}, trained on {card.site}; {manifest}\n")
    scene = read_scene(manifest, engine)
    side = -(-max(scene.grid.height, scene.grid.width) // 64) * 64
    shape = TileShape(size=side + 2 * REFERENCE_CONTEXT, context=REFERENCE_CONTEXT)
    reference = map_scene(engine, scene, shape)
    print("| tiles | context | computed per pixel | agreement | accuracy |")
    print("|---|---|---|---|---|")
    show(
        "whole scene",
        REFERENCE_CONTEXT,
        reference,
        reference=reference,
        scene=scene,
    )
    maps = {}
    for size in SIZES:
        for context in CONTEXTS:
            if size - 2 * context < 64:
                continue
            shape = TileShape(size=size, context=context)
            maps[size, context] = map_scene(engine, scene, shape)
            show(
                str(size),
                context,
                maps[size, context],
                reference=reference,
                scene=scene,
            )
    compare_sizes(maps)
    compare_blends(engine, scene, reference)
    compare_small(engine, scene, reference)
    compare_poses(engine, scene, maps[512, DEFAULT_CONTEXT])


def read_scene(manifest: str, engine: KerasEngine) -> ReadScene:
    """Read a scene, and its labels as classes of the model."""
    card = engine.card
    site = fit_site_to_card(cropseg.open_site(manifest), card)
    scene = site.scenes[0]
    table = np.full(256, IGNORE, np.uint8)
    for index, name in enumerate(site.classes.names):
        if name in card.class_names:
            table[index] = card.class_names.index(name)
    with site.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(scene.grid.window)
    return ReadScene(pixels=pixels, labels=table[labels], grid=scene.grid)


def map_scene(
    engine: KerasEngine | AugmentedEngine, scene: ReadScene, shape: TileShape
) -> Classes:
    """Map a scene at a tile shape."""
    tiles = iterate_tiles(
        scene.grid.window, core_size=shape.core_size, context=shape.context
    )
    return collect(predict_tiles(engine, scene, scene.grid, tiles), scene.grid)


def collect(tiles: Iterable[PredictedTile], grid: Grid) -> Classes:
    """Put tiles together."""
    classes = np.full((grid.height, grid.width), IGNORE, np.uint8)
    for tile in tiles:
        classes[tile.window.slices_in(grid.window)] = tile.classes
    return classes


def show(
    tiles: str,
    context: int,
    found: Classes,
    *,
    reference: Classes,
    scene: ReadScene,
) -> None:
    """Print a row of a table."""
    cost = (int(tiles) / (int(tiles) - 2 * context)) ** 2 if tiles.isdigit() else 0
    print(
        f"| {tiles} | {context} | {f'{cost:.2f}' if cost else ''} "
        f"| {agree(found, reference):.3%} | {score(found, scene):.2%} |",
        flush=True,
    )


def agree(found: Classes, reference: Classes) -> float:
    """Return the share of pixels with data that have the same class."""
    valid = reference != IGNORE
    return float((found == reference)[valid].mean())


def score(found: Classes, scene: ReadScene) -> float:
    """Return the share of labelled pixels that have the right class."""
    known = scene.labels != IGNORE
    return float((found == scene.labels)[known].mean())


def compare_sizes(maps: dict[tuple[int, int], Classes]) -> None:
    """Print the agreement between tile sizes at the default context."""
    print(f"\n| context {DEFAULT_CONTEXT} | agreement |\n|---|---|")
    pairs = ((256, 512), (512, 1024), (256, 1024))
    for one, other in pairs:
        value = agree(maps[one, DEFAULT_CONTEXT], maps[other, DEFAULT_CONTEXT])
        print(f"| {one} and {other} | {value:.3%} |")


def compare_blends(engine: KerasEngine, scene: ReadScene, reference: Classes) -> None:
    """Print what blending changes, by the width of the seam."""
    print("\n| blended tiles | context | seam | agreement | accuracy |")
    print("|---|---|---|---|---|")
    for size, context in ((256, 32), (256, 64), (512, 64)):
        for share in (0.5, 1.0, 2.0):
            tile_shape.SEAM_SHARE = share  # type: ignore[misc]
            shape = TileShape(size=size, context=context)
            grid = scene.grid
            tiles = blend_tiles(engine, scene, grid, grid.window, shape=shape)
            found = collect(tiles, grid)
            print(
                f"| {size} | {context} | {context * share:.0f} "
                f"| {agree(found, reference):.3%} | {score(found, scene):.2%} |",
                flush=True,
            )


def compare_small(engine: KerasEngine, scene: ReadScene, reference: Classes) -> None:
    """Print how scenes of 256 pixels fare, whose surroundings nobody knows."""
    print(f"\n| scenes of {SMALL_PX} px, context | agreement | accuracy |")
    print("|---|---|---|")
    for context in SMALL_CONTEXTS:
        shape = TileShape(size=SMALL_PX + 2 * context, context=context)
        found = np.full_like(reference, IGNORE)
        for tile in iterate_tiles(scene.grid.window, core_size=SMALL_PX):
            window = tile.core.clip(height=scene.grid.height, width=scene.grid.width)
            part = map_scene(engine, scene.cut(window), shape)
            found[window.slices_in(scene.grid.window)] = part
        print(
            f"| {context} | {agree(found, reference):.3%} "
            f"| {score(found, scene):.2%} |",
            flush=True,
        )


def compare_poses(engine: KerasEngine, scene: ReadScene, plain: Classes) -> None:
    """Print what test-time augmentation changes."""
    shape = TileShape(size=512, context=DEFAULT_CONTEXT)
    found = map_scene(AugmentedEngine(engine), scene, shape)
    print("\n| 512, test-time augmentation | agreement with one pose | accuracy |")
    print("|---|---|---|")
    print(f"| off | | {score(plain, scene):.2%} |")
    print(f"| on | {agree(found, plain):.3%} | {score(found, scene):.2%} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
