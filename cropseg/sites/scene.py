"""One georeferenced image of a site, with or without labels."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cropseg.sites.bands import BandReader
from cropseg.sites.classes import IGNORE, ClassMap, Labels
from cropseg.sites.grid import Grid, Window
from cropseg.sites.imagery import Image
from cropseg.sites.labels import FieldIds, LabelReader, LabelSource
from cropseg.sites.location import Location
from cropseg.sites.raster import Pixels
from cropseg.sites.split import Split
from cropseg.sites.vector import NO_FIELD


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image of a site."""

    name: str
    """Its name, unique in the site."""
    image: Image
    """Its image."""
    band_names: tuple[str, ...]
    """Names of the bands of the image, in file order."""
    labels: LabelSource | None
    """Its labels, or None where nothing is labelled."""

    @property
    def grid(self) -> Grid:
        """The grid on which it is read."""
        return self.image.grid

    @property
    def image_path(self) -> Location:
        """The first file of its image."""
        return self.image.path

    @property
    def labels_path(self) -> Location | None:
        """The file of its labels, or None where nothing is labelled."""
        return self.labels.path if self.labels else None


@dataclass(frozen=True, kw_only=True)
class FieldRule:
    """Which part each field of a vector file belongs to."""

    split: Split
    """The split of the site."""
    parts: npt.NDArray[np.uint8]
    """Part of each field: the one that holds most of it, (fields,)."""
    is_cut: npt.NDArray[np.bool_]
    """Whether a field has pixels in several parts, (fields,)."""
    is_whole: npt.NDArray[np.bool_]
    """Whether all pixels of a field are in its part, none in a gap or outside all
    regions, (fields,)."""


@dataclass(frozen=True)
class SceneReader:
    """An open scene. Get one from `Site.open_scene`."""

    scene: Scene
    """The scene."""
    bands: BandReader
    """The open image."""
    labels: LabelReader | None
    """The open labels."""
    rule: FieldRule | None
    """What is done with fields that cross parts."""

    def read_pixels(self, window: Window) -> Pixels:
        """Read the site's bands in a window, which may reach over the edge."""
        return self.bands.read_pixels(window)

    def read_labels(self, window: Window) -> Labels:
        """Read class ids in a window, (height, width), uint8.

        255 where the label is unknown, is nodata, lies outside the scene, or belongs
        to a field of which more lies in another part. Image validity is not looked
        at: see `read_valid_labels`.

        Raises:
            DataError: If the labels hold a value that the manifest does not name.
        """
        if self.labels is None:
            return np.full((window.height, window.width), IGNORE, np.uint8)
        labels = self.labels.read_labels(window)
        if self.rule is not None and self.rule.is_cut.any():
            fields = self.labels.read_fields(window)
            is_cut = (fields != NO_FIELD) & self.rule.is_cut[fields]
            if is_cut.any():
                parts = self.rule.split.read_parts(self.scene.grid, window)
                labels[is_cut & (parts != self.rule.parts[fields])] = IGNORE
        return labels

    def read_fields(self, window: Window) -> FieldIds:
        """Read which field each pixel belongs to, (height, width), -1 for none.

        Numbers are positions in the vector file; labels that are pixels have none.
        """
        if self.labels is None:
            return np.full((window.height, window.width), NO_FIELD, np.int32)
        return self.labels.read_fields(window)

    def read_valid_labels(self, window: Window) -> tuple[Pixels, Labels]:
        """Read pixels and class ids of a window, with 255 where a pixel is invalid."""
        pixels = self.read_pixels(window)
        labels = self.read_labels(window)
        labels[~pixels.valid] = IGNORE
        return pixels, labels

    def count_label_values(self) -> Counter[str]:
        """Count the pixels, or the fields, of every label value, named or not."""
        return self.labels.count_values() if self.labels else Counter()


@contextlib.contextmanager
def open_scene(
    scene: Scene,
    *,
    bands: tuple[str, ...],
    derived: Mapping[str, str],
    classes: ClassMap,
    rule: FieldRule | None,
) -> Iterator[SceneReader]:
    """Open a scene for reading in this thread."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(scene.image.open())
        reader = BandReader(source, scene.band_names, bands, derived)
        labels = None
        if scene.labels is not None:
            labels = stack.enter_context(scene.labels.open(classes, scene.grid))
        yield SceneReader(scene, reader, labels, rule)
