"""Mapping scenes with a saved model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling

from cropseg.errors import (
    CropsegError,
    PartialFailureError,
    UsageError,
    join_problems,
)
from cropseg.files import claim_out_dir, hash_file, hash_settings
from cropseg.inference.keras_engine import KerasEngine
from cropseg.inference.mosaic import predict_tiles
from cropseg.inference.scenes import MappedScene, fit_scene
from cropseg.inference.tile_shape import TileShape, choose_tile_shape
from cropseg.inference.writer import write_class_map
from cropseg.models.bundle import load_bundle
from cropseg.models.card import Card, read_card
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Grid, Window
from cropseg.sites.imagery import Image
from cropseg.sites.location import Location, fingerprint_file
from cropseg.sites.raster import open_raster
from cropseg.sites.tiling import Tile, iterate_tiles
from cropseg.sites.warp import warp_labels

_log = logging.getLogger(__name__)

_RETURN_PX = 1024
_SCENE_TAG = "cropseg_scene"


def predict_scenes(  # noqa: PLR0913 - keyword-only, and each is an option
    model_path: str | Path,
    image_paths: Sequence[str | Location],
    *,
    out_dir: str | Path,
    tile_size: int | None = None,
    batch_size: int = 2,
    precision: str = "auto",
    overwrite: bool = False,
    allow_remote: Collection[str] = (),
    show_progress: ShowProgress = show_nothing,
) -> list[Path]:
    """Map whole scenes of any size.

    Calling it again with the same settings maps only the scenes that are missing or
    changed.

    Args:
        model_path: A bundle.
        image_paths: GeoTIFFs with the model's bands, in its order or named like them.
            Those of another GSD are resampled to the model's, and their map back.
        out_dir: Folder of the maps, `<scene>_classes.tif`.
        tile_size: Side of the tiles with context; None for the default of 512.
        batch_size: Tiles in a batch. It does not change the maps.
        precision: auto, float32 or bfloat16.
        overwrite: Start again in a folder that holds other maps.
        allow_remote: Hosts that images may be read from.
        show_progress: Called with tiles done, tiles in all and the scene.

    Returns:
        The maps: class ids of the model, uint8, 255 where a scene has no data, on
        the grid of their scene.

    Raises:
        ModelError: If the only scene does not have the model's bands, or cannot be
            brought to its GSD.
        DataError: If the only scene cannot be read.
        PartialFailureError: If some of several scenes failed; the others are mapped.
        ConflictError: If the folder holds maps made with other settings.
    """
    card = read_card(model_path)
    shape = choose_tile_shape(card.tile_multiple, size=tile_size)
    scenes = [str(path) for path in image_paths]
    _refuse_equal_names(scenes)
    fitting, failures = _fit_scenes(scenes, card, allow_remote)
    if failures and not fitting:  # before `overwrite` empties the folder
        _raise_failures(failures, num_scenes=len(scenes))
    record = {
        "command": "predict",
        "model_sha256": hash_file(Path(model_path)),
        "tile_size": shape.size,
        "context": shape.context,
        "precision": precision,
    }
    folder = Path(out_dir)
    maps = []
    with claim_out_dir(folder, record, overwrite=overwrite, record="predict.yaml"):
        todo = {}
        for text, scene in fitting.items():
            map_path = folder / f"{Path(text).stem}_classes.tif"
            maps.append(map_path)
            if _read_scene_tag(map_path) != _fingerprint(scene.image):
                todo[map_path] = scene
        if todo:
            engine = KerasEngine(
                load_bundle(model_path), batch_size=batch_size, precision=precision
            )
            failures |= _Mapper(engine, shape, todo, show_progress).map_all()
        if failures:
            _raise_failures(failures, num_scenes=len(scenes))
    return maps


class _Mapper:
    """Maps scenes one after the other with one engine."""

    def __init__(
        self,
        engine: KerasEngine,
        shape: TileShape,
        scenes: dict[Path, MappedScene],
        show_progress: ShowProgress,
    ) -> None:
        self._engine = engine
        self._shape = shape
        self._show_progress = show_progress
        self._scenes = scenes
        self._done = 0
        self._total = sum(
            sum(1 for _ in self._iterate(scene.image.grid)) for scene in scenes.values()
        )

    def map_all(self) -> dict[str, CropsegError]:
        failures: dict[str, CropsegError] = {}
        for map_path, scene in self._scenes.items():
            try:
                self._map(scene, map_path)
            except CropsegError as error:
                name = str(scene.image.path)
                _log.info("%s: %s", name, error)  # raised when all are done
                failures[name] = error
        return failures

    def _map(self, scene: MappedScene, map_path: Path) -> None:
        card, image = self._engine.card, scene.image
        tags = {_SCENE_TAG: _fingerprint(image), "site": card.site}
        with write_class_map(map_path, image.native_grid, card, tags) as writer:
            if not image.is_resampled:
                for window, classes in self._predict(scene):
                    writer.write(window, classes)
                return
            with tempfile.TemporaryFile(dir=map_path.parent) as file:
                shape = (image.grid.height, image.grid.width)
                at_gsd = np.memmap(file, np.uint8, "w+", shape=shape)
                for window, classes in self._predict(scene):
                    at_gsd[window.slices_in(image.grid.window)] = classes
                for window, classes in _return_to_grid(at_gsd, image):
                    writer.write(window, classes)

    def _predict(
        self, scene: MappedScene
    ) -> Iterator[tuple[Window, npt.NDArray[np.uint8]]]:
        grid = scene.image.grid
        with scene.open() as reader:
            tiles = self._iterate(grid)
            for tile in predict_tiles(self._engine, reader, grid, tiles):
                yield tile.window, tile.classes
                self._done += 1
                self._show_progress(self._done, self._total, scene.image.path.name)

    def _iterate(self, grid: Grid) -> Iterator[Tile]:
        return iterate_tiles(
            grid.window,
            core_size=self._shape.core_size,
            context=self._shape.context,
        )


def _return_to_grid(
    classes: npt.NDArray[np.uint8], image: Image
) -> Iterator[tuple[Window, npt.NDArray[np.uint8]]]:
    """Bring a map from the model's GSD back to the pixels of its scene."""

    def read(window: Window) -> npt.NDArray[np.uint8]:
        outer = window.grow(1)
        inside = outer.clip(height=classes.shape[0], width=classes.shape[1])
        found = np.full((outer.height, outer.width), IGNORE, np.uint8)
        found[inside.slices_in(outer)] = classes[inside.slices_in(image.grid.window)]
        return _widen(found)

    native = image.native_grid
    with image.open_native() as source:
        for tile in iterate_tiles(native.window, core_size=_RETURN_PX):
            window = tile.core.clip(height=native.height, width=native.width)
            valid = source.read(window, range(image.num_bands)).valid
            near = warp_labels(
                read, image.grid, native, window, resampling=Resampling.nearest
            )
            yield window, np.where(valid, near, IGNORE).astype(np.uint8)


def _widen(classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Give pixels without a class that of a neighbour, and cut the outermost ring off.

    Where a scene is finer than the model's GSD, a pixel at the edge of its data may
    lie in a larger one whose centre has no data.
    """
    height, width = classes.shape
    widened = classes[1:-1, 1:-1].copy()
    for row, col in ((1, 0), (1, 2), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)):
        beside = classes[row : row + height - 2, col : col + width - 2]
        np.copyto(widened, beside, where=widened == IGNORE)
    return widened


def _fit_scenes(
    texts: Sequence[str], card: Card, allow_remote: Collection[str]
) -> tuple[dict[str, MappedScene], dict[str, CropsegError]]:
    fitting: dict[str, MappedScene] = {}
    failures: dict[str, CropsegError] = {}
    for text in texts:
        try:
            fitting[text] = fit_scene(text, card, allow_remote=allow_remote)
        except CropsegError as error:
            failures[text] = error
    return fitting, failures


def _raise_failures(failures: dict[str, CropsegError], *, num_scenes: int) -> None:
    if num_scenes == 1:
        raise next(iter(failures.values()))
    problems = [f"{scene}: {error}" for scene, error in failures.items()]
    title = f"{len(failures)} of {num_scenes} scenes failed, the rest are mapped"
    raise PartialFailureError(join_problems(title, problems))


def _refuse_equal_names(scenes: Sequence[str]) -> None:
    stems = [Path(scene).stem for scene in scenes]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise UsageError(
            f"Several scenes are named {', '.join(repeated)}, so their maps would "
            "overwrite each other. Map them into different folders."
        )


def _fingerprint(image: Image) -> str:
    files = [[str(f.location), fingerprint_file(f.location)] for f in image.files]
    return hash_settings(files)


def _read_scene_tag(map_path: Path) -> str | None:
    if not map_path.exists():
        return None
    with open_raster(map_path) as reader:
        return reader.read_tags().get(_SCENE_TAG)
