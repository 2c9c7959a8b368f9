"""One pass over a site: class pixels, tiles and band statistics per part."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, join_problems
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.tiling import iterate_tiles

_TRAIN = PARTS.index("train")


@dataclass(frozen=True, kw_only=True)
class SurveyedTile:
    """A cell of the tile grid of a scene."""

    scene: int
    """Position of its scene in the site."""
    window: Window
    """Its pixels, without context."""
    train_pixels: tuple[int, ...]
    """Labelled training pixels of each class."""


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Mean and spread of each band, over the valid pixels of the training part."""

    mean: tuple[float, ...]
    """Mean of each band, in raw units."""
    std: tuple[float, ...]
    """Standard deviation of each band, in raw units; 1 where a band is constant."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one pass over a site found."""

    tile_size: int
    """Side of a tile, in pixels."""
    tiles: tuple[SurveyedTile, ...]
    """All tiles with a labelled training pixel, scene by scene."""
    class_pixels: npt.NDArray[np.int64]
    """Labelled and valid pixels, (parts, classes), parts in the order of `PARTS`."""
    valid_pixels: int
    """Pixels with data."""
    num_pixels: int
    """All pixels."""
    bands: BandStatistics | None
    """Band statistics, or None where the training part has no valid pixel."""

    @property
    def nodata_share(self) -> float:
        """Share of the pixels without data, 0 to 1."""
        return 1 - self.valid_pixels / self.num_pixels


def survey_site(site: Site, tile_size: int) -> Survey:
    """Read every pixel of a site once and count what is there.

    Args:
        site: The site.
        tile_size: Side of a tile, in pixels.

    Returns:
        Counts per part, and band statistics of the training part alone, so that
        nothing of val and test reaches a model.

    Raises:
        DataError: If a file cannot be read or holds labels that nobody named. The
            problems of all scenes are listed.
    """
    return _survey_files(site, tile_size, site.fingerprint)


@functools.lru_cache(maxsize=8)
def _survey_files(site: Site, tile_size: int, _fingerprint: str) -> Survey:
    split = site.require_split()
    num_classes = len(site.classes)
    tiles: list[SurveyedTile] = []
    class_pixels = np.zeros((len(PARTS), num_classes), np.int64)
    moments = _Moments(len(site.bands))
    valid_pixels = num_pixels = 0
    unnamed = find_unnamed_labels(site)
    if unnamed:
        raise DataError(join_problems(f"Labels of site {site.name}", unnamed))
    for index, scene in enumerate(site.scenes):
        area = scene.grid.window
        with site.open_scene(scene) as reader:
            for tile in iterate_tiles(area, core_size=tile_size):
                window = tile.core.clip(height=area.height, width=area.width)
                pixels, labels = reader.read_valid_labels(window)
                parts = split.read_parts(scene.grid, window)
                counts = _count_classes(labels, parts, num_classes)
                class_pixels += counts
                if counts[_TRAIN].any():
                    train_pixels = tuple(counts[_TRAIN].tolist())
                    tiles.append(
                        SurveyedTile(
                            scene=index, window=tile.core, train_pixels=train_pixels
                        )
                    )
                moments.add(pixels.values[pixels.valid & (parts == _TRAIN)])
                valid_pixels += int(pixels.valid.sum())
                num_pixels += pixels.valid.size
    return Survey(
        tile_size=tile_size,
        tiles=tuple(tiles),
        class_pixels=class_pixels,
        valid_pixels=valid_pixels,
        num_pixels=num_pixels,
        bands=moments.finish(),
    )


def find_unnamed_labels(site: Site) -> list[str]:
    """List the label values that no class and no `ignore` names, scene by scene."""
    problems = []
    for scene in site.scenes:
        with site.open_scene(scene) as reader:
            problem = site.classes.describe_unnamed(reader.count_label_values())
        if problem:
            problems.append(f"{scene.labels_path}: {problem}")
    return problems


def _count_classes(
    labels: npt.NDArray[np.uint8], parts: npt.NDArray[np.uint8], num_classes: int
) -> npt.NDArray[np.int64]:
    known = (labels != IGNORE) & (parts < len(PARTS))
    index = parts[known].astype(np.int64) * num_classes + labels[known]
    counts = np.bincount(index, minlength=len(PARTS) * num_classes)
    return counts.reshape(len(PARTS), num_classes)


class _Moments:
    """Running mean and spread that stay exact for large sums (Chan 1983)."""

    def __init__(self, num_bands: int) -> None:
        self._count = 0
        self._mean = np.zeros(num_bands)
        self._squares = np.zeros(num_bands)

    def add(self, values: npt.NDArray[np.generic]) -> None:
        """Add pixels, (pixels, bands)."""
        if not len(values):
            return
        values = values.astype(np.float64)
        count = self._count + len(values)
        mean = values.mean(axis=0)
        shift = mean - self._mean
        self._squares += ((values - mean) ** 2).sum(axis=0)
        self._squares += shift**2 * self._count * len(values) / count
        self._mean += shift * len(values) / count
        self._count = count

    def finish(self) -> BandStatistics | None:
        if not self._count:
            return None
        std = np.sqrt(self._squares / self._count)
        std[std == 0] = 1.0
        return BandStatistics(mean=tuple(self._mean.tolist()), std=tuple(std.tolist()))


def require_trainable(site: Site, survey: Survey) -> None:
    """Check that a site can be trained on and tested.

    Raises:
        DataError: If train or test has no labelled pixel, or if a class has none in
            the training part.
    """
    problems = [
        f"The {part} part has no labelled pixel. Use smaller blocks (`block_m`), "
        "another `seed`, or other `regions`."
        for part in ("train", "test")
        if not survey.class_pixels[PARTS.index(part)].any()
    ]
    if survey.class_pixels[_TRAIN].any():
        absent = [
            name
            for name, count in zip(
                site.classes.names, survey.class_pixels[_TRAIN], strict=True
            )
            if not count
        ]
        if absent:
            problems.append(
                f"No training pixel of {', '.join(absent)}. Remove the class from "
                "`classes` (its values to `ignore`), or change the split's `seed`."
            )
    if problems:
        raise DataError(join_problems(f"Split of site {site.name}", problems))
