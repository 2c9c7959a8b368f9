"""A site: its scenes, classes and split, opened from a manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cropseg.errors import DataError, DataFileNotFoundError, join_problems
from cropseg.files import hash_settings
from cropseg.sites.classes import IGNORE, ClassMap, CropClass, Labels
from cropseg.sites.grid import Grid, Window
from cropseg.sites.manifest import Manifest, SceneEntry, SplitEntry, read_manifest
from cropseg.sites.raster import Pixels, RasterReader, open_raster, read_header
from cropseg.sites.split import BlockSplit, RegionSplit, Split
from cropseg.sites.tiling import iterate_tiles

_REGION_BLOCK_PX = 128
_GSD_TOLERANCE = 0.01
_COUNT_PX = 1024


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One georeferenced image of a site, with or without labels."""

    name: str
    """The image's file name without its ending."""
    image_path: Path
    """The image."""
    labels_path: Path | None
    """The label raster on the same grid, or None where nothing is labelled."""
    grid: Grid
    """The image's grid."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named rural area: scenes, classes, split."""

    name: str
    """Its name."""
    manifest_path: Path
    """The manifest that it was opened from."""
    manifest: Manifest
    """What the manifest holds."""
    bands: tuple[str, ...]
    """Names of the bands that are read, in the order in which they are read."""
    classes: ClassMap
    """Its classes, in the order of their ids."""
    scenes: tuple[Scene, ...]
    """Its scenes, in the order of the manifest."""
    split: Split | None
    """How it is cut into train, val and test, or None where the manifest has none."""

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance of its scenes, in metres per pixel."""
        return self.scenes[0].grid.gsd_m

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """The images of all scenes."""
        return tuple(scene.image_path for scene in self.scenes)

    @property
    def fingerprint(self) -> str:
        """Twelve digits that change with the manifest or a file's size or time."""
        paths = [path for s in self.scenes for path in (s.image_path, s.labels_path)]
        if isinstance(self.split, RegionSplit):
            paths.append(self.split.regions_path)
        try:
            stats = [path.stat() for path in paths if path is not None]
        except OSError as error:
            raise DataFileNotFoundError(
                f"{error.filename} was there when site {self.name} was opened, and is "
                f"no more: {error.strerror}. Restore it, or open the site again."
            ) from error
        files = [(item.st_size, item.st_mtime_ns) for item in stats]
        return hash_settings([self.manifest.model_dump(mode="json"), files])

    def select_bands(self, bands: tuple[str, ...]) -> Site:
        """Return this site with other bands, or the same in another order.

        Raises:
            DataError: If a band is not there.
        """
        missing = [band for band in bands if band not in self.manifest.bands]
        if missing:
            raise DataError(
                f"Site {self.name} has no band {', '.join(missing)}; its bands are "
                f"{', '.join(self.manifest.bands)}."
            )
        return replace(self, bands=bands)

    @contextlib.contextmanager
    def open_scene(self, scene: Scene) -> Iterator[SceneReader]:
        """Open a scene for reading in this thread."""
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(open_raster(scene.image_path))
            labels = None
            if scene.labels_path is not None:
                labels = stack.enter_context(open_raster(scene.labels_path))
            yield SceneReader(self, scene, image, labels)

    def require_split(self) -> Split:
        """Return the split.

        Raises:
            DataError: If the manifest has none.
        """
        if self.split is None:
            raise DataError(
                f"{self.manifest_path} has no `split`, so there is nothing to train "
                "on or to test. Add one; data_manifests/README.md shows how."
            )
        return self.split


class SceneReader:
    """An open scene. Get one from `Site.open_scene`."""

    def __init__(
        self, site: Site, scene: Scene, image: RasterReader, labels: RasterReader | None
    ) -> None:
        """Wrap the open files of a scene."""
        self._site = site
        self._scene = scene
        self._image = image
        self._labels = labels
        self._band_indexes = [site.manifest.bands.index(band) for band in site.bands]

    def read_pixels(self, window: Window) -> Pixels:
        """Read the site's bands in a window, which may reach over the edge."""
        return self._image.read(window, self._band_indexes)

    def read_labels(self, window: Window) -> Labels:
        """Read class ids in a window, (height, width), uint8.

        255 where the label is unknown, is nodata, or lies outside the scene. Image
        validity is not looked at: see `read_valid_labels`.

        Raises:
            DataError: If the labels hold a value that the manifest does not name.
        """
        labels = np.full((window.height, window.width), IGNORE, "uint8")
        if self._labels is None:
            return labels
        pixels = self._labels.read(window, [0])
        try:
            labels[pixels.valid] = self._site.classes.encode(
                pixels.values[..., 0][pixels.valid]
            )
        except DataError as error:
            path = self._scene.labels_path
            raise DataError(f"{path}: {error}") from error
        return labels

    def count_label_values(self) -> Counter[int]:
        """Count the pixels of every label value, named or not."""
        counts: Counter[int] = Counter()
        if self._labels is None:
            return counts
        area = self._scene.grid.window
        for tile in iterate_tiles(area, core_size=_COUNT_PX):
            pixels = self._labels.read(tile.core, [0])
            values, amounts = np.unique(
                pixels.values[..., 0][pixels.valid], return_counts=True
            )
            counts.update(dict(zip(values.tolist(), amounts.tolist(), strict=True)))
        return counts

    def read_valid_labels(self, window: Window) -> tuple[Pixels, Labels]:
        """Read pixels and class ids of a window, with 255 where a pixel is invalid."""
        pixels = self.read_pixels(window)
        labels = self.read_labels(window)
        labels[~pixels.valid] = IGNORE
        return pixels, labels


def open_site(manifest_path: str | Path) -> Site:
    """Open a site from its manifest and check that its files fit together.

    Only headers are read; `cropseg check` reads every pixel.

    Args:
        manifest_path: A YAML file; paths in it are relative to it.

    Returns:
        The site.

    Raises:
        DataFileNotFoundError: If the manifest or a file that it names is not there.
        DataError: If the manifest has mistakes, an image has another number of bands
            than `bands`, labels and image differ in shape, CRS or transform, or
            scenes differ in GSD. All problems are listed.
    """
    path = Path(manifest_path)
    manifest = read_manifest(path)
    classes = ClassMap(
        classes=tuple(
            CropClass(
                name=item.name,
                color=item.color.lower(),
                values=item.values,
                source_names=item.source_names,
            )
            for item in manifest.classes
        ),
        ignore=() if manifest.ignore == "rest" else manifest.ignore,
        ignore_rest=manifest.ignore == "rest",
    )
    scenes = _open_scenes(path, manifest)
    return Site(
        name=manifest.site,
        manifest_path=path,
        manifest=manifest,
        bands=manifest.bands,
        classes=classes,
        scenes=scenes,
        split=_open_split(path, manifest.split, scenes[0].grid.gsd_m),
    )


def _open_scenes(path: Path, manifest: Manifest) -> tuple[Scene, ...]:
    scenes, problems = [], []
    kind = DataError
    for entry in manifest.scenes:
        try:
            scene, found = _open_one_scene(path.parent, entry, len(manifest.bands))
        except DataFileNotFoundError as error:
            kind = DataFileNotFoundError
            problems.append(str(error))
            continue
        except DataError as error:
            problems.append(str(error))
            continue
        scenes.append(scene)
        problems += found
    if not problems:
        problems = _compare_gsds(scenes, manifest.gsd_m)
    if problems:
        title = f"The files of {path} have {len(problems)} problem(s)"
        raise kind(join_problems(title, problems))
    return tuple(scenes)


def _open_one_scene(
    folder: Path, entry: SceneEntry, num_bands: int
) -> tuple[Scene, list[str]]:
    image_path = folder / entry.image
    labels_path = folder / entry.labels if entry.labels else None
    header = read_header(image_path)
    problems = []
    if header.num_bands != num_bands:
        problems.append(
            f"{image_path} has {header.num_bands} bands, but the manifest names "
            f"{num_bands} in `bands`. Name every band of the file, in file order."
        )
    crs = header.grid.crs
    if not crs or not (crs.is_projected or crs.is_geographic):
        problems.append(
            f"{image_path} has {'a local' if crs else 'no'} CRS, and so no place on "
            "the Earth. Set it with gdal_edit.py -a_srs EPSG:...."
        )
        labels_path = None
    if labels_path is not None:
        labels = read_header(labels_path)
        if not np.issubdtype(np.dtype(labels.dtype), np.integer):
            problems.append(
                f"{labels_path} has dtype {labels.dtype}; labels are integers."
            )
        problems += [
            f"{labels_path} does not lie on the grid of {image_path.name}: "
            f"{difference}. Warp the labels onto the image's grid (nearest)."
            for difference in header.grid.list_differences(labels.grid)
        ]
    scene = Scene(
        name=image_path.stem,
        image_path=image_path,
        labels_path=labels_path,
        grid=header.grid,
    )
    return scene, problems


def _compare_gsds(scenes: list[Scene], gsd_m: float | None) -> list[str]:
    expected = gsd_m or scenes[0].grid.gsd_m
    return [
        f"{scene.image_path} has a GSD of {scene.grid.gsd_m:.4g} m, expected "
        f"{expected:.4g} m. Resample it to that GSD, or correct `gsd_m`."
        for scene in scenes
        if abs(scene.grid.gsd_m / expected - 1) > _GSD_TOLERANCE
    ]


def _open_split(path: Path, entry: SplitEntry | None, gsd_m: float) -> Split | None:
    if entry is None:
        return None
    if entry.regions is not None:
        block_m = entry.block_m or _REGION_BLOCK_PX * gsd_m
        return RegionSplit(regions_path=path.parent / entry.regions, block_m=block_m)
    return BlockSplit(
        block_m=entry.block_m or 0.0,
        gap_m=entry.gap_m,
        train=entry.train or 0.0,
        val=entry.val or 0.0,
        seed=entry.seed,
    )


def match_classes(source: Collection[str], target: ClassMap) -> dict[str, list[str]]:
    """Match the classes of a site to those of a model, by name.

    Args:
        source: Class names of the model.
        target: Classes of the site.

    Returns:
        For every class of the site that the model knows: the names that it has there.
    """
    matches = {}
    for item in target.classes:
        names = [name for name in (item.source_names or (item.name,)) if name in source]
        if names:
            matches[item.name] = names
    return matches
