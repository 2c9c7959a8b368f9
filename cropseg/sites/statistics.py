"""One pass over a site: class pixels, tiles and band statistics per part."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, join_problems
from cropseg.sites.classes import IGNORE, Labels
from cropseg.sites.grid import Window
from cropseg.sites.labels import FieldIds, FieldLabels
from cropseg.sites.scan import ScannedBlock, scan_site
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, PartIds, index_blocks
from cropseg.sites.tiling import iterate_tiles
from cropseg.sites.vector import NO_FIELD

_TRAIN = PARTS.index("train")
_TEST = PARTS.index("test")

_TilePlace = tuple[int, int, int]
_Sums = npt.NDArray[np.float64]

FieldKey = tuple[int, int]
"""Position of a vector file among those of a site, and of a field in it."""


@dataclass(frozen=True, kw_only=True)
class SurveyedField:
    """A field of polygon labels, or a point."""

    key: FieldKey
    """Which one."""
    class_id: int
    """Its class."""
    pixels: tuple[int, ...]
    """Its labelled and valid pixels in each part, in the order of `PARTS`."""


@dataclass(frozen=True, kw_only=True)
class SurveyedTile:
    """A cell of the tile grid of a scene."""

    scene: int
    """Position of its scene in the site."""
    window: Window
    """Its pixels, without context."""
    train_pixels: tuple[int, ...]
    """Labelled training pixels of each class."""
    train_fields: tuple[tuple[FieldKey, int], ...] = ()
    """Fields with training pixels in it, and how many."""


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
    num_test_blocks: int
    """Blocks with a labelled and valid pixel of the test part."""
    valid_pixels: int
    """Pixels with data."""
    num_pixels: int
    """All pixels."""
    fields: tuple[SurveyedField, ...]
    """All fields with a labelled pixel. Labels that are pixels have none."""
    pixel_m2: float
    """Area of a pixel, in square metres."""
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


@functools.lru_cache(maxsize=64)  # a comparison surveys a site once for each fold
def _survey_files(site: Site, tile_size: int, _fingerprint: str) -> Survey:
    counts = SurveyCounts(site, tile_size)
    for block in scan_site(site, tile_size):
        counts.add(block)
    return counts.finish()


class SurveyCounts:
    """What a survey counts, tile by tile."""

    def __init__(self, site: Site, tile_size: int) -> None:
        """Start at nothing."""
        self._site = site
        self._tile_size = tile_size
        self._tiles: dict[_TilePlace, SurveyedTile] = {}
        self._class_pixels = np.zeros((len(PARTS), len(site.classes)), np.int64)
        self._moments = _Moments(len(site.bands))
        self._fields = _FieldCounts()
        self._test_blocks: set[int] = set()
        self._valid_pixels = self._num_pixels = 0

    def add(self, block: ScannedBlock) -> None:
        """Count the tiles of a block."""
        self._add_blocks(block)
        for tile in iterate_tiles(block.core, core_size=self._tile_size):
            self._add_tile(block, tile.core)

    def _add_blocks(self, block: ScannedBlock) -> None:
        """Note the blocks of the split that have a label to be tested on."""
        inside = block.core.slices_in(block.window)
        tested = (block.parts[inside] == _TEST) & (block.labels[inside] != IGNORE)
        if tested.any():
            grid = self._site.scenes[block.scene].grid
            split = self._site.require_split()
            ids, places = index_blocks(split, grid, block.core)
            self._test_blocks |= set(ids[np.unique(places[tested])].tolist())

    def _add_tile(self, block: ScannedBlock, tile: Window) -> None:
        inside = tile.intersect(block.core).slices_in(block.window)
        labels, parts = block.labels[inside], block.parts[inside]
        counts = _count_classes(labels, parts, len(self._site.classes))
        self._class_pixels += counts
        train_fields: tuple[tuple[FieldKey, int], ...] = ()
        source = self._site.scenes[block.scene].labels
        if isinstance(source, FieldLabels):
            number = self._site.vector_sources.index(source.source)
            train_fields = self._fields.add(number, block.fields[inside], labels, parts)
        place = (block.scene, tile.row, tile.col)
        if counts[_TRAIN].any():
            self._tiles[place] = SurveyedTile(
                scene=block.scene,
                window=tile,
                train_pixels=tuple(counts[_TRAIN].tolist()),
                train_fields=train_fields,
            )
        valid = block.pixels.valid[inside]
        is_train = valid & (parts == _TRAIN)
        self._moments.add(place, block.pixels.values[inside], is_train)
        self._valid_pixels += int(valid.sum())
        self._num_pixels += valid.size

    def finish(self) -> Survey:
        """Return the survey."""
        return Survey(
            tile_size=self._tile_size,
            tiles=tuple(self._tiles[place] for place in sorted(self._tiles)),
            class_pixels=self._class_pixels,
            num_test_blocks=len(self._test_blocks),
            valid_pixels=self._valid_pixels,
            num_pixels=self._num_pixels,
            fields=self._fields.finish(),
            pixel_m2=self._site.gsd_m**2,
            bands=self._moments.finish(),
        )


def _count_classes(
    labels: npt.NDArray[np.uint8], parts: npt.NDArray[np.uint8], num_classes: int
) -> npt.NDArray[np.int64]:
    known = (labels != IGNORE) & (parts < len(PARTS))
    index = parts[known].astype(np.int64) * num_classes + labels[known]
    counts = np.bincount(index, minlength=len(PARTS) * num_classes)
    return counts.reshape(len(PARTS), num_classes)


class _FieldCounts:
    """Pixels of each field, class and part."""

    def __init__(self) -> None:
        self._pixels: dict[FieldKey, npt.NDArray[np.int64]] = {}
        self._classes: dict[FieldKey, int] = {}

    def add(
        self, source: int, fields: FieldIds, labels: Labels, parts: PartIds
    ) -> tuple[tuple[FieldKey, int], ...]:
        """Count the fields of a tile; return those of the training part."""
        known = (labels != IGNORE) & (parts < len(PARTS)) & (fields != NO_FIELD)
        found, places = np.unique(fields[known], return_inverse=True)
        counts = np.bincount(
            places * len(PARTS) + parts[known], minlength=len(found) * len(PARTS)
        ).reshape(-1, len(PARTS))
        classes = np.zeros(len(found), np.int64)
        classes[places] = labels[known]
        train = []
        for field_id, class_id, pixels in zip(
            found.tolist(), classes.tolist(), counts, strict=True
        ):
            key = (source, field_id)
            self._classes[key] = class_id
            self._pixels[key] = self._pixels.get(key, 0) + pixels
            if pixels[_TRAIN]:
                train.append((key, int(pixels[_TRAIN])))
        return tuple(train)

    def finish(self) -> tuple[SurveyedField, ...]:
        return tuple(
            SurveyedField(
                key=key,
                class_id=self._classes[key],
                pixels=tuple(self._pixels[key].tolist()),
            )
            for key in sorted(self._pixels)
        )


class _Moments:
    """Mean and spread that stay exact for large sums (Chan 1983).

    Tiles are added up row by row, in whatever order they come.
    """

    def __init__(self, num_bands: int) -> None:
        self._num_bands = num_bands
        self._tiles: dict[_TilePlace, tuple[int, _Sums, _Sums]] = {}

    def add(
        self,
        place: _TilePlace,
        values: npt.NDArray[np.generic],
        wanted: npt.NDArray[np.bool_],
    ) -> None:
        """Add the wanted pixels of a tile, (height, width, bands)."""
        count = int(wanted.sum())
        if not count:
            return
        means, squares = np.zeros((2, self._num_bands))
        for band in range(self._num_bands):
            plane = values[..., band]
            used = (plane if count == plane.size else plane[wanted]).astype(np.float64)
            means[band] = used.mean()
            used -= means[band]
            squares[band] = np.square(used, out=used).sum()
        self._tiles[place] = count, means, squares

    def finish(self) -> BandStatistics | None:
        if not self._tiles:
            return None
        total, total_mean = 0, np.zeros(self._num_bands)
        total_squares = np.zeros(self._num_bands)
        for place in sorted(self._tiles):
            added, mean, squares = self._tiles[place]
            count = total + added
            shift = mean - total_mean
            total_squares += squares
            total_squares += shift**2 * total * added / count
            total_mean += shift * added / count
            total = count
        std = np.sqrt(total_squares / total)
        std[std == 0] = 1.0
        return BandStatistics(mean=tuple(total_mean.tolist()), std=tuple(std.tolist()))


def require_trainable(site: Site, survey: Survey) -> None:
    """Check that a site can be trained on and tested.

    Raises:
        DataError: If train or test has no labelled pixel, or if a class has none in
            the training part.
    """
    if not survey.class_pixels.any():
        raise DataError(
            f"No part of site {site.name} has a labelled pixel. See whether its scenes "
            "have `labels`, whether `values` of the classes are those of the file, and "
            "whether the parts of the split lie on them."
        )
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
