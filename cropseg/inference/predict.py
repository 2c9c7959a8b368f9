"""Mapping scenes with a saved model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropseg.errors import (
    CropsegError,
    ModelError,
    PartialFailureError,
    UsageError,
    join_problems,
)
from cropseg.files import claim_out_dir, hash_file, hash_settings
from cropseg.inference.engine import KerasEngine
from cropseg.inference.mosaic import TileShape, choose_tile_shape, predict_tiles
from cropseg.inference.writer import write_class_map
from cropseg.models.bundle import load_bundle
from cropseg.models.card import Card, read_card
from cropseg.progress import ShowProgress, show_nothing
from cropseg.sites.grid import Window
from cropseg.sites.raster import (
    Pixels,
    RasterHeader,
    RasterReader,
    open_raster,
    read_header,
)
from cropseg.sites.tiling import iterate_tiles

_log = logging.getLogger(__name__)

_GSD_TOLERANCE = 0.1
_SCENE_TAG = "cropseg_scene"


def predict_scenes(  # noqa: PLR0913 - keyword-only, and each is an option
    model_path: str | Path,
    image_paths: Sequence[str | Path],
    *,
    out_dir: str | Path,
    tile_size: int | None = None,
    batch_size: int = 2,
    precision: str = "auto",
    overwrite: bool = False,
    show_progress: ShowProgress = show_nothing,
) -> list[Path]:
    """Map whole scenes of any size.

    Calling it again with the same settings maps only the scenes that are missing or
    changed.

    Args:
        model_path: A bundle.
        image_paths: GeoTIFFs with the model's bands, in its order or named like them.
        out_dir: Folder of the maps, `<scene>_classes.tif`.
        tile_size: Side of the tiles with context; None for the default of 512.
        batch_size: Tiles in a batch. It does not change the maps.
        precision: auto, float32 or bfloat16.
        overwrite: Start again in a folder that holds other maps.
        show_progress: Called with tiles done, tiles in all and the scene.

    Returns:
        The maps: class ids of the model, uint8, 255 where a scene has no data, on
        the grid of their scene.

    Raises:
        ModelError: If the only scene does not have the model's bands or GSD.
        DataError: If the only scene cannot be read.
        PartialFailureError: If some of several scenes failed; the others are mapped.
        ConflictError: If the folder holds maps made with other settings.
    """
    card = read_card(model_path)
    shape = choose_tile_shape(card.tile_multiple, size=tile_size)
    scenes = [Path(path) for path in image_paths]
    _refuse_equal_names(scenes)
    headers, failures = _read_headers(scenes, card)
    if failures and not headers:  # before `overwrite` empties the folder
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
        for scene, header in headers.items():
            map_path = folder / f"{scene.stem}_classes.tif"
            maps.append(map_path)
            if _read_scene_tag(map_path) != _fingerprint(scene):
                todo[scene] = (header, map_path)
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
        scenes: dict[Path, tuple[RasterHeader, Path]],
        show_progress: ShowProgress,
    ) -> None:
        self._engine = engine
        self._shape = shape
        self._show_progress = show_progress
        self._scenes = scenes
        self._done = 0
        self._total = sum(
            sum(1 for _ in self._iterate(header)) for header, _ in scenes.values()
        )

    def map_all(self) -> dict[Path, CropsegError]:
        failures: dict[Path, CropsegError] = {}
        for scene, (header, map_path) in self._scenes.items():
            try:
                self._map(scene, header, map_path)
            except CropsegError as error:
                _log.info("%s: %s", scene, error)  # raised when all are done
                failures[scene] = error
        return failures

    def _map(self, scene: Path, header: RasterHeader, map_path: Path) -> None:
        card, grid = self._engine.card, header.grid
        tags = {_SCENE_TAG: _fingerprint(scene), "site": card.site}
        with (
            open_raster(scene) as reader,
            write_class_map(map_path, grid, card, tags) as writer,
        ):
            bands = _BandReader(reader, _order_bands(header, card))
            tiles = self._iterate(header)
            for tile in predict_tiles(self._engine, bands, grid, tiles):
                writer.write(tile.window, tile.classes)
                self._done += 1
                self._show_progress(self._done, self._total, scene.name)

    def _iterate(self, header: RasterHeader) -> Any:
        return iterate_tiles(
            header.grid.window,
            core_size=self._shape.core_size,
            context=self._shape.context,
        )


class _BandReader:
    """Reads the model's bands of a scene."""

    def __init__(self, reader: RasterReader, bands: list[int]) -> None:
        self._reader = reader
        self._bands = bands

    def read_pixels(self, window: Window) -> Pixels:
        return self._reader.read(window, self._bands)


def _read_headers(
    scenes: list[Path], card: Card
) -> tuple[dict[Path, RasterHeader], dict[Path, CropsegError]]:
    headers: dict[Path, RasterHeader] = {}
    failures: dict[Path, CropsegError] = {}
    for scene in scenes:
        try:
            header = read_header(scene)
            _check_scene(scene, header, card)
            headers[scene] = header
        except CropsegError as error:
            failures[scene] = error
    return headers, failures


def _raise_failures(failures: dict[Path, CropsegError], *, num_scenes: int) -> None:
    if num_scenes == 1:
        raise next(iter(failures.values()))
    problems = [f"{scene}: {error}" for scene, error in failures.items()]
    title = f"{len(failures)} of {num_scenes} scenes failed, the rest are mapped"
    raise PartialFailureError(join_problems(title, problems))


def _check_scene(scene: Path, header: RasterHeader, card: Card) -> None:
    if header.num_bands != len(card.bands):
        raise ModelError(
            f"{scene} has {header.num_bands} bands, but the model takes "
            f"{len(card.bands)}: {', '.join(card.bands)}. Give scenes with these bands."
        )
    if not header.grid.crs:
        raise ModelError(f"{scene} has no CRS, so its GSD is unknown. Set its CRS.")
    if abs(header.grid.gsd_m / card.gsd_m - 1) > _GSD_TOLERANCE:
        raise ModelError(
            f"{scene} has a GSD of {header.grid.gsd_m:.4g} m, but the model was "
            f"trained at {card.gsd_m:.4g} m. Resample the scene to the model's GSD."
        )


def _order_bands(header: RasterHeader, card: Card) -> list[int]:
    """Return the positions of the model's bands: by name if the file has the names."""
    if set(header.band_names) == set(card.bands):
        return [header.band_names.index(band) for band in card.bands]
    return list(range(len(card.bands)))


def _refuse_equal_names(scenes: list[Path]) -> None:
    stems = [scene.stem for scene in scenes]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise UsageError(
            f"Several scenes are named {', '.join(repeated)}, so their maps would "
            "overwrite each other. Map them into different folders."
        )


def _fingerprint(scene: Path) -> str:
    stat = scene.stat()
    return hash_settings([str(scene.absolute()), stat.st_size, stat.st_mtime_ns])


def _read_scene_tag(map_path: Path) -> str | None:
    if not map_path.exists():
        return None
    with open_raster(map_path) as reader:
        return reader.read_tags().get(_SCENE_TAG)
