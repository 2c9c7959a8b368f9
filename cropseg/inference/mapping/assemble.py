"""From predicted tiles to part files, and from those to the finished files of a scene.

A scene of one band needs no parts: its tiles go straight into the finished files. Only
whole files get their names, the class map last, so that where it lies the others do.
All of it can be done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from cropseg.errors import CropsegError
from cropseg.inference.mapping.channel import ClosedError
from cropseg.inference.mapping.jobs import BandJob, SceneJob, cut_scene
from cropseg.inference.mapping.parts import (
    blame_part,
    note_engine,
    read_engine,
    remove_parts,
)
from cropseg.inference.mapping.regrid import iterate_regridded
from cropseg.inference.outputs.layers import Layer
from cropseg.inference.outputs.writer import (
    RAW,
    Bytes,
    LayerWriter,
    read_part,
    write_layer,
    write_part,
)
from cropseg.inference.tiles.mosaic import PredictedTile
from cropseg.memory import release_memory
from cropseg.sites.grid import Window
from cropseg.sites.raster import open_raster

SCENE_TAG: Final = "cropseg_scene"
"""Tag of a finished file: the fingerprint of its scene."""

ENGINE_TAG: Final = "cropseg_engine"
"""Tag of a finished file: what predicted it, and at which precision."""

Writers = dict[Layer, LayerWriter]


def write_band(
    job: BandJob, tiles: Iterable[PredictedTile], *, engine: str
) -> tuple[int, ...]:
    """Write the files of a band.

    Args:
        job: The band.
        tiles: Pieces that partition it.
        engine: What predicts them, as `name_engine` gives it.

    Returns:
        Pixels of each class of the model.

    Raises:
        ResourceError: If a file cannot be written whole. None is left behind.
        ConflictError: If other bands of its scene were computed by another engine.
    """
    with contextlib.ExitStack() as stack:
        if job.is_whole:
            writers = _open_finished(job.scene, stack, engine)
        else:
            note_engine(job.scene, engine)
            writers = {
                layer: stack.enter_context(
                    write_part(
                        job.get_part_path(layer), job.scene.grid, job.window, layer
                    )
                )
                for layer in job.scene.layers
            }
        for tile in tiles:
            for layer, writer in writers.items():
                writer.write(tile.window, layer.encode(tile))
        if job.window != job.scene.grid.window:
            # Bands are done in threads, each of which keeps what it freed. A scene of
            # one band may be small, and be done sooner than memory is given back.
            release_memory()
    return _count_classes(job.scene, writers)


def assemble_scene(
    scene: SceneJob, *, is_stopped: Callable[[], bool] = lambda: False
) -> tuple[int, ...]:
    """Make the finished files of a scene from its parts, and remove these.

    Args:
        scene: A scene whose bands are all done.
        is_stopped: Asked again and again; where it says yes, nothing is finished.

    Returns:
        Pixels of each class of the model.

    Raises:
        ResourceError: If a file cannot be written whole. The parts stay.
        DataError: If a part cannot be read. It is removed, to be made again.
        ClosedError: If it was stopped.
    """
    with contextlib.ExitStack() as stack:
        writers = _open_finished(scene, stack, read_engine(scene) or "")
        for writer, piece in _iterate_pieces(scene, writers):
            if is_stopped():
                raise ClosedError
            writer.write(*piece)
    remove_parts(scene)
    return _count_classes(scene, writers)


def read_common_tags(paths: Sequence[Path]) -> Mapping[str, str]:
    """Return the tags that all finished files of a scene have alike.

    Empty where a file is missing or cannot be read.
    """
    common: dict[str, str] = {}
    for number, path in enumerate(paths):
        try:
            with open_raster(path, RAW) as reader:
                tags = reader.read_tags()
        except CropsegError:
            return {}
        known = tags if number == 0 else common
        common = {key: text for key, text in known.items() if tags.get(key) == text}
    return common


def _open_finished(
    scene: SceneJob, stack: contextlib.ExitStack, engine: str
) -> Writers:
    card = scene.scene.card
    tags = {SCENE_TAG: scene.fingerprint, ENGINE_TAG: engine, "site": card.site}
    return {
        layer: stack.enter_context(
            write_layer(scene.get_path(layer), scene.out_grid, layer, card, tags=tags)
        )
        for layer in scene.layers
    }


def _iterate_pieces(
    scene: SceneJob, writers: Writers
) -> Iterator[tuple[LayerWriter, tuple[Window, Bytes]]]:
    """Yield what each writer is to write, until every pixel was given."""
    if scene.returns_to_grid:
        for window, layers in iterate_regridded(scene):
            for layer, values in layers.items():
                yield writers[layer], (window, values)
        return
    for job in cut_scene(scene, in_parts=True):
        for layer, writer in writers.items():
            path = job.get_part_path(layer)
            with blame_part(path):
                for piece in read_part(path):
                    yield writer, piece


def _count_classes(scene: SceneJob, writers: Writers) -> tuple[int, ...]:
    classes = next(iter(writers.values()))
    num_classes = len(scene.scene.card.classes)
    return tuple(map(int, classes.counts[0, :num_classes]))
