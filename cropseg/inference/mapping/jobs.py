"""What is to be mapped, in pieces that any process can take: scenes and their bands.

A scene is cut into bands of whole tile rows. How is a function of the size of the
scene and of its tiles alone, so that a run that was killed, or another machine, cuts
it alike. Jobs are plain values: they can be pickled, and doing one twice writes the
same files. A band's part files have names of their own and are whole or not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cropseg.errors import CropsegError
from cropseg.inference.engines.engine import Engine
from cropseg.inference.outputs.layers import Layer, list_layers
from cropseg.inference.scenes.mapped_scene import MappedScene
from cropseg.inference.scenes.region import Region
from cropseg.inference.tiles.tile_shape import TileShape
from cropseg.sites.grid import Grid, Window

BAND_PIXELS = 64_000_000
"""Pixels of a band, about: a minute or two of work on two cores."""

PARTS_DIR = ".parts"
"""Hidden folder, in the folder of the maps, of the bands that are done."""


def name_engine(engine: Engine) -> str:
    """Return what tells an engine's maps from those of another: name and precision."""
    return f"{engine.name} {engine.precision}"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a process comes by its engine. It can be pickled; an engine cannot."""

    model_path: Path
    """The model file."""
    engine: str = "auto"
    """auto, keras or openvino."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""
    batch_size: int = 2
    """Tiles in a batch. It does not change the maps."""
    tile_size: int
    """Side of the tiles of most scenes, in pixels, to be ready for."""
    margin: int
    """Pixels on every side of these tiles that nobody asks for."""
    tta: bool = False
    """Whether the probabilities of eight turned and flipped copies are averaged."""

    def open(self) -> Engine:
        """Load the model in this process.

        Raises:
            UsageError: If the engine is not installed.
            ModelError: If the model cannot be loaded.
        """
        from cropseg.inference.engines.choose_engine import open_engine

        return self.finish(
            open_engine(
                self.model_path,
                engine=self.engine,
                precision=self.precision,
                batch_size=self.batch_size,
                tile_size=self.tile_size,
                margin=self.margin,
            )
        )

    def finish(self, engine: Engine) -> Engine:
        """Return the engine that maps, made of the plain one."""
        if not self.tta:
            return engine
        from cropseg.inference.engines.tta import AugmentedEngine

        return AugmentedEngine(engine)


@dataclass(frozen=True, kw_only=True)
class SceneJob:
    """A scene to map, and all that decides its map beside the engine."""

    name: str
    """Its name, which those of its files begin with."""
    scene: MappedScene
    """The scene, brought to the model."""
    shape: TileShape
    """The one shape of its tiles."""
    out_dir: Path
    """Folder of the maps."""
    fingerprint: str
    """Stands for the content of its files and what decides its map."""
    blend: bool = False
    """Whether overlapping tiles are blended."""
    region: Region | None = None
    """Polygons outside of which nothing is mapped."""
    confidence: bool = False
    """Whether a map of the confidence is wanted."""
    probabilities: bool = False
    """Whether a map of all probabilities is wanted."""
    on_model_grid: bool = False
    """Whether a scene that is resampled keeps the grid that it is predicted on."""

    @property
    def grid(self) -> Grid:
        """The grid on which it is predicted, at the model's GSD."""
        return self.scene.image.grid

    @property
    def out_grid(self) -> Grid:
        """The grid of its map: its own, or on request the one it is predicted on."""
        return self.grid if self.on_model_grid else self.scene.image.native_grid

    @property
    def returns_to_grid(self) -> bool:
        """Whether its map has to be brought to another grid once it is predicted."""
        return self.scene.image.is_resampled and not self.on_model_grid

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What is written of it, a file each. The first is the class map."""
        return list_layers(
            self.scene.card,
            confidence=self.confidence,
            probabilities=self.probabilities,
        )

    @property
    def parts_dir(self) -> Path:
        """Hidden folder of its bands that are done. Other content has another one."""
        return self.out_dir / PARTS_DIR / self.name / self.fingerprint

    def get_path(self, layer: Layer) -> Path:
        """Return the path of a finished file."""
        return self.out_dir / layer.name_file(self.name)


@dataclass(frozen=True, kw_only=True)
class BandJob:
    """Some tile rows of a scene, over its full width. Doing it twice does no harm."""

    scene: SceneJob
    """The scene."""
    index: int
    """Which band it is, from 0 at the top."""
    window: Window
    """Its pixels, in the grid on which the scene is predicted."""
    is_whole: bool
    """Whether it is all of the scene and needs no part files: its tiles then go
    straight into the finished files."""

    def get_part_path(self, layer: Layer) -> Path:
        """Return the path of its part of a layer."""
        return self.scene.parts_dir / f"{layer.name}-{self.index:05d}.tif"

    @property
    def is_done(self) -> bool:
        """Whether all its part files are there."""
        return not self.is_whole and all(
            self.get_part_path(layer).exists() for layer in self.scene.layers
        )


@dataclass(frozen=True, kw_only=True)
class BandResult:
    """What became of a band."""

    job: BandJob
    """The band."""
    class_pixels: tuple[int, ...] = ()
    """Pixels of each class of the model, in the grid on which it is predicted."""
    seconds: float = 0.0
    """From the first tile that was read to the last one written."""
    engine: str = ""
    """What predicted it, as `name_engine` gives it."""
    error: CropsegError | None = None
    """Why it could not be done; None where its files are whole and in their place."""


def cut_scene(scene: SceneJob, *, in_parts: bool = False) -> tuple[BandJob, ...]:
    """Cut a scene into bands of whole tile rows.

    Args:
        scene: The scene.
        in_parts: Whether a scene of one band gets part files too, as it must where
            another process than the one that predicts writes the finished files.

    Returns:
        Its bands, from the top, of nearly the same height.
    """
    grid, core_size = scene.grid, scene.shape.core_size
    tile_rows = math.ceil(grid.height / core_size)
    most = max(1, BAND_PIXELS // (grid.width * core_size))
    num_bands = math.ceil(tile_rows / most)
    height = math.ceil(tile_rows / num_bands) * core_size
    windows = [
        Window(row=row, col=0, height=height, width=grid.width).clip(
            height=grid.height, width=grid.width
        )
        for row in range(0, grid.height, height)
    ]
    is_whole = len(windows) == 1 and not in_parts and not scene.returns_to_grid
    return tuple(
        BandJob(scene=scene, index=index, window=window, is_whole=is_whole)
        for index, window in enumerate(windows)
    )
