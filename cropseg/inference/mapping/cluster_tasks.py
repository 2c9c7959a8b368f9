"""What goes to the workers of a cluster, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cropseg.errors import ResourceError
from cropseg.inference.mapping.jobs import BandJob, BandResult, EngineSettings
from cropseg.sites.imagery import Image, ImageFile

_TASK_PIXELS: Final = 16_000_000
_TASK_BANDS: Final = 64
"""Bands of small scenes go together, up to so many pixels or bands: a task costs
some milliseconds, and what a dead worker had in hand is done again."""

Jobs = tuple[BandJob, ...]


class DeadlyBandError(ResourceError):
    """A band ended every process that had it. No disk is to blame."""


@dataclass(frozen=True, kw_only=True)
class WorkerStart:
    """How a worker process comes by its engine."""

    settings: EngineSettings
    """How the engine is opened."""
    seen: str
    """What `look_around` said where the batch was started: of which model it is."""
    num_local: int | None
    """Workers that share this machine, each of which takes its part of the cores;
    None for all cores."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What comes back from a worker."""

    results: tuple[BandResult, ...]
    """A result for each band, in order. Its job names the folder of the attempt."""
    engine: str
    """Engine and precision that the worker computed with."""
    worker: str
    """Which worker it was."""


def name_bands(jobs: Jobs) -> str:
    """Say in words which bands these are."""
    first = f"band {jobs[0].index + 1} of {jobs[0].scene.name}"
    return f"{first} and {len(jobs) - 1} more" if len(jobs) > 1 else first


def group_jobs(jobs: Iterable[BandJob]) -> Iterator[Jobs]:
    """Put bands that follow each other together until they are worth a task."""
    group: list[BandJob] = []
    pixels = 0
    for job in jobs:
        size = job.window.height * job.window.width
        if group and (pixels + size > _TASK_PIXELS or len(group) == _TASK_BANDS):
            yield tuple(group)
            group, pixels = [], 0
        group.append(job)
        pixels += size
    if group:
        yield tuple(group)


def make_absolute(job: BandJob) -> BandJob:
    """Return a job that means the same in a process with another working folder."""
    scene = job.scene
    region = scene.region
    absolute = replace(
        scene,
        scene=replace(scene.scene, image=_make_image_absolute(scene.scene.image)),
        out_dir=scene.out_dir.absolute(),
        region=region and replace(region, path=region.path.absolute()),
    )
    return replace(job, scene=absolute)


def _make_image_absolute(image: Image) -> Image:
    def move(file: ImageFile) -> ImageFile:
        where = file.location
        if isinstance(where, Path):
            return replace(file, location=where.absolute())
        return file

    return replace(image, files=tuple(map(move, image.files)))
