"""From a scene that is asked for to the job that maps it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cropseg.errors import CropsegError
from cropseg.files import hash_settings
from cropseg.inference.engines.agreement import SampleTile
from cropseg.inference.engines.engine import fill_nodata
from cropseg.inference.mapping.jobs import SceneJob
from cropseg.inference.mapping.options import MapOptions
from cropseg.inference.outputs.finished import FinishedMap
from cropseg.inference.outputs.layers import Layer, list_layers
from cropseg.inference.scenes.mapped_scene import fit_scene
from cropseg.inference.scenes.region import Region, open_region
from cropseg.inference.scenes.scene_list import SceneRequest
from cropseg.inference.tiles.mosaic import read_mirrored
from cropseg.inference.tiles.tile_shape import TileShape, choose_tile_shape
from cropseg.models.card import Card
from cropseg.sites.location import Location, fingerprint_file, locate_file
from cropseg.sites.tiling import iterate_tiles

_MAX_SAMPLES: Final = 64
_GOLDEN: Final = 0.618033988749895


@dataclass(frozen=True)
class Planner:
    """Makes the jobs of a batch."""

    card: Card
    """Card of the model."""
    options: MapOptions
    """How scenes are mapped."""
    out_dir: Path
    """Folder of the maps."""

    @cached_property
    def region(self) -> Region | None:
        """The polygons outside of which nothing is mapped."""
        path = self.options.region
        return None if path is None else open_region(path)

    @cached_property
    def shape(self) -> TileShape:
        """Shape of the tiles of a large scene."""
        options, multiple = self.options, self.card.tile_multiple
        return choose_tile_shape(
            multiple, size=options.tile_size, context=options.context
        )

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """What is written of every scene."""
        options = self.options
        return list_layers(
            self.card,
            confidence=options.confidence,
            probabilities=options.probabilities,
        )

    def fingerprint(self, request: SceneRequest) -> str:
        """Return what changes when a file of a scene does. No file is opened.

        Raises:
            CropsegError: If a file is not there, or is no file.
        """
        allow_remote = self.options.allow_remote
        locations = [
            locate_file(text, Path(), allow_remote=allow_remote)
            for text in request.files
        ]
        files = [_fingerprint(place) for place in locations]
        return hash_settings([files, request.bands])

    def plan(self, request: SceneRequest) -> SceneJob:
        """Fit a scene to the model. Its header is read and no pixel.

        Raises:
            CropsegError: If it cannot be mapped.
        """
        options = self.options
        scene = fit_scene(
            request, self.card, allow_remote=options.allow_remote, scale=options.scale
        )
        shape = choose_tile_shape(
            self.card.tile_multiple,
            size=options.tile_size,
            context=options.context,
            scene=scene.image.grid.window,
        )
        return SceneJob(
            name=request.name,
            scene=scene,
            shape=shape,
            out_dir=self.out_dir,
            fingerprint=self.fingerprint(request),
            blend=options.blend,
            region=self.region,
            confidence=options.confidence,
            probabilities=options.probabilities,
            on_model_grid=options.output_grid == "model",
        )

    def find_map(self, name: str) -> FinishedMap:
        """Return the finished files of a scene."""
        paths = {
            layer.name: self.out_dir / layer.name_file(name) for layer in self.layers
        }
        return FinishedMap(
            scene=name,
            classes_path=paths["classes"],
            confidence_path=paths.get("confidence"),
        )

    def iterate_samples(self, requests: Iterable[SceneRequest]) -> Iterator[SampleTile]:
        """Read tiles from all over the first scene that can be mapped and has data.

        Args:
            requests: The scenes.

        Yields:
            Of a scene with few tiles that have data, these, and of any other more than
            are needed.
        """
        for request in requests:
            has_data = False
            with contextlib.suppress(CropsegError):  # told when its turn comes
                for sample in _iterate_samples(self.plan(request)):
                    has_data = True
                    yield sample
            if has_data:
                return


def _fingerprint(place: Location) -> list[Any]:
    found = fingerprint_file(place)
    if isinstance(place, Path):
        return [place.name, found]  # so that it may be named from another folder
    # Signed addresses have another query each day; the tag tells what they hold.
    is_tagged = bool(found[-1])
    return [place.url.partition("?")[0] if is_tagged else place.url, found]


def _iterate_samples(job: SceneJob) -> Iterator[SampleTile]:
    grid, shape = job.grid, job.shape
    tiles = list(
        iterate_tiles(grid.window, core_size=shape.core_size, context=shape.context)
    )
    # Places that are spread out however many of them are taken: the golden ratio.
    order = sorted(range(len(tiles)), key=lambda place: place * _GOLDEN % 1)
    with job.scene.open() as reader:
        for tile in (tiles[place] for place in order[:_MAX_SAMPLES]):
            pixels = read_mirrored(reader, grid, tile.window)
            if pixels.valid[tile.core.slices_in(tile.window)].any():
                yield SampleTile(
                    values=fill_nodata(pixels, job.scene.card),
                    margin=shape.find_margin(blend=job.blend),
                )
