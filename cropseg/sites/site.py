"""A site: its scenes, classes and split, opened from a manifest."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rasterio.crs import CRS
from rasterio.errors import CRSError

from cropseg.errors import CropsegError, DataError, UnsafeFileError, join_problems
from cropseg.files import hash_settings
from cropseg.sites.classes import ClassMap, CropClass
from cropseg.sites.fields import assign_fields
from cropseg.sites.imagery import Image, name_image, open_image
from cropseg.sites.labels import FieldLabels, LabelSource, RasterLabels
from cropseg.sites.location import Location, fingerprint_content, locate_file
from cropseg.sites.manifest import (
    Manifest,
    SceneEntry,
    SplitEntry,
    is_vector_file,
    read_manifest,
)
from cropseg.sites.raster import read_header
from cropseg.sites.regions import RegionSplit
from cropseg.sites.scene import FieldRule, Scene, SceneReader, open_scene
from cropseg.sites.split import BlockSplit, FoldSplit, Split
from cropseg.sites.vector import VectorSource, open_fields
from cropseg.sites.vector_file import list_files
from cropseg.sites.warp import GSD_TOLERANCE

_REGION_BLOCK_PX = 128
_CRS_CODE = re.compile(r"[A-Za-z]+:\w+")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named rural area: scenes, classes, split."""

    name: str
    """Its name."""
    manifest_path: Path
    """The manifest that it was opened from."""
    manifest: Manifest = field(compare=False)
    """What the manifest holds."""
    bands: tuple[str, ...]
    """Names of the bands that are read, in the order in which they are read."""
    derived: Mapping[str, str] = field(compare=False)
    """Formulas of the bands that are computed."""
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
    def image_paths(self) -> tuple[Location, ...]:
        """The images of all scenes."""
        return tuple(file.location for s in self.scenes for file in s.image.files)

    @property
    def vector_sources(self) -> tuple[VectorSource, ...]:
        """The vector files that hold labels, each once, in the order of scenes."""
        found = [
            s.labels.source for s in self.scenes if isinstance(s.labels, FieldLabels)
        ]
        return tuple(dict.fromkeys(found))

    @property
    def fingerprint(self) -> str:
        """Twelve digits that change with the manifest or the content of a file."""
        paths: list[Location] = []
        for scene in self.scenes:
            paths += [path for f in scene.image.files for path in f.list_files()]
            if isinstance(scene.labels, FieldLabels):
                paths += list_files(scene.labels.source.path)
            elif scene.labels is not None:
                paths.append(scene.labels.path)
        if isinstance(self.split, RegionSplit):
            paths += list_files(self.split.regions_path)
        files = [[path.name, *fingerprint_content(path)] for path in paths]
        return hash_settings([self.manifest.model_dump_json(), files])

    def select_bands(self, bands: tuple[str, ...]) -> Site:
        """Return this site with other bands, or the same in another order.

        Raises:
            DataError: If a band is not there.
        """
        known = (*self.manifest.bands, *self.derived)
        missing = [band for band in bands if band not in known]
        if missing:
            raise DataError(
                f"Site {self.name} has no band {', '.join(missing)}; its bands are "
                f"{', '.join(known)}."
            )
        return replace(self, bands=bands)

    @contextlib.contextmanager
    def open_scene(self, scene: Scene) -> Iterator[SceneReader]:
        """Open a scene for reading in this thread."""
        rule = None
        if isinstance(scene.labels, FieldLabels) and self.split is not None:
            rules = _assign_fields(self, self.fingerprint)
            rule = rules[scene.labels.source]
        with open_scene(
            scene,
            bands=self.bands,
            derived=self.derived,
            classes=self.classes,
            rule=rule,
        ) as reader:
            yield reader

    def require_split(self) -> Split:
        """Return the split.

        Raises:
            DataError: If the manifest has none.
        """
        if self.split is None:
            raise DataError(
                f"{self.manifest_path} has no `split`, so there is nothing to train "
                "on or to test. Add one; docs/manifest.md shows how."
            )
        return self.split


@functools.lru_cache(maxsize=64)
def _assign_fields(site: Site, _fingerprint: str) -> dict[VectorSource, FieldRule]:
    return assign_fields(site.scenes, site.require_split())


def open_site(manifest_path: str | Path, *, allow_remote: Collection[str] = ()) -> Site:
    """Open a site from its manifest and check that its files fit together.

    Only headers are read; `cropseg check` reads every pixel.

    Args:
        manifest_path: A YAML file; paths in it are relative to it.
        allow_remote: Hosts that images and label rasters may be read from.

    Returns:
        The site.

    Raises:
        DataFileNotFoundError: If the manifest or a file that it names is not there.
        DataError: If the manifest has mistakes, an image has another number of bands
            than `bands`, labels and image differ in shape, CRS or transform, or
            scenes differ in GSD or CRS and the manifest does not say which to take.
            All problems are listed.
        UnsafeFileError: If a path is refused as unsafe.
    """
    path = Path(manifest_path)
    manifest = read_manifest(path)
    entries = manifest.classes
    if entries[0].id is not None:
        entries = tuple(sorted(entries, key=lambda item: item.id or 0))
    classes = ClassMap(
        classes=tuple(
            CropClass(
                name=item.name,
                color=item.color.lower(),
                values=item.values,
                source_names=item.source_names,
            )
            for item in entries
        ),
        ignore=() if manifest.ignore == "rest" else manifest.ignore,
        ignore_rest=manifest.ignore == "rest",
    )
    scenes = _open_scenes(path, manifest, allow_remote)
    return Site(
        name=manifest.site,
        manifest_path=path,
        manifest=manifest,
        bands=(*manifest.bands, *manifest.derived),
        derived=manifest.derived,
        classes=classes,
        scenes=scenes,
        split=_open_split(path, manifest.split, scenes[0].grid.gsd_m),
    )


def _open_scenes(
    path: Path, manifest: Manifest, allow_remote: Collection[str]
) -> tuple[Scene, ...]:
    scenes: list[Scene] = []
    problems: list[str] = []
    kind: type[CropsegError] = DataError
    _read_crs(manifest.crs)  # said once, not for every scene
    for entry in manifest.scenes:
        try:
            scene, found = _open_one_scene(path.parent, entry, manifest, allow_remote)
        except (DataError, UnsafeFileError) as error:
            if not issubclass(kind, UnsafeFileError) and type(error) is not DataError:
                kind = type(error)
            problems.append(str(error))
            continue
        scenes.append(scene)
        problems += found
    if not problems:
        problems = _compare_grids(scenes)
    if problems:
        title = f"The files of {path} have {len(problems)} problem(s)"
        raise kind(join_problems(title, problems))
    return _make_names_unique(scenes)


def _open_one_scene(
    folder: Path, entry: SceneEntry, manifest: Manifest, allow_remote: Collection[str]
) -> tuple[Scene, list[str]]:
    image = open_image(
        entry,
        folder,
        crs=_read_crs(manifest.crs),
        gsd_m=manifest.gsd_m,
        allow_remote=allow_remote,
    )
    names = entry.bands or manifest.bands
    problems = []
    if image.num_bands != len(names):
        problems.append(
            f"{image.path} has {image.num_bands} bands{_describe_alpha(image)}, but "
            f"the manifest names {len(names)} in `bands`. Name every band of the file, "
            "in file order."
        )
    missing = [name for name in manifest.bands if name not in names]
    if missing:
        problems.append(
            f"{image.path} has bands {', '.join(names)}, but the site's `bands` ask "
            f"for {', '.join(missing)} too. Bands are matched by name."
        )
    labels, found = _open_labels(folder, entry, image, allow_remote)
    scene = Scene(name=name_image(entry), image=image, band_names=names, labels=labels)
    return scene, problems + found


def _describe_alpha(image: Image) -> str:
    if not any(file.header.num_alpha_bands for file in image.files):
        return ""
    return " besides alpha (if that holds data, set `alpha_is_band: true`)"


def _read_crs(text: str | None) -> CRS | None:
    if text is None:
        return None
    try:
        # A file name or an address would be read (HAZARDS 6): a code or WKT is not.
        crs = CRS.from_wkt(text) if "[" in text else CRS.from_string(_get_code(text))
    except (CRSError, ValueError) as error:
        raise DataError(
            f"`crs` is {text!r}, which is no CRS: {error}. Give one such as EPSG:32633."
        ) from error
    if not crs.is_projected:
        raise DataError(
            f"`crs` is {text}, which is not projected. Give the UTM zone of the area, "
            "such as EPSG:32633."
        )
    return crs


def _get_code(text: str) -> str:
    if not _CRS_CODE.fullmatch(text):
        message = "it is neither an authority and a code nor WKT"
        raise ValueError(message)
    return text


def _open_labels(
    folder: Path, entry: SceneEntry, image: Image, allow_remote: Collection[str]
) -> tuple[LabelSource | None, list[str]]:
    if entry.labels is None:
        return None, []
    path = locate_file(entry.labels, folder, allow_remote=allow_remote)
    if is_vector_file(entry.labels):
        source = _describe_vector(entry, path)
        open_fields(source, image.grid.crs)
        return FieldLabels(source=source), []
    header = read_header(path)
    problems = []
    if header.num_bands != 1:
        problems.append(
            f"{path} has {header.num_bands} bands; a label raster has one. Write the "
            "class codes to a file of their own."
        )
    grids = (image.native_grid, image.grid)
    fits = any(not grid.list_differences(header.grid) for grid in grids)
    if not fits and not entry.resample_labels:
        problems += [
            f"{path} does not lie on the grid of {image.path.name}: {difference}. Set "
            "`resample_labels: true` to bring it there, or correct its position."
            for difference in image.native_grid.list_differences(header.grid)
        ]
    elif not fits and (misplaced := header.grid.describe_misplacement()):
        problems.append(
            f"{path} has {misplaced}, so it cannot be resampled. Set its CRS."
        )
    return RasterLabels(path=path, header=header), problems


def _describe_vector(entry: SceneEntry, path: Location) -> VectorSource:
    if not isinstance(path, Path):
        raise UnsafeFileError(
            f"{path} is remote; polygons and points are read from local files. "
            "Download it."
        )
    kept = {
        key: values if isinstance(values, tuple) else (values,)
        for key, values in entry.filter.items()
    }
    return VectorSource(
        path=path,
        field=entry.field or "",
        layer=entry.layer,
        filter=tuple(kept.items()),
        all_touched=entry.all_touched,
        edge_buffer_m=entry.edge_buffer_m,
        buffer_m=entry.buffer_m,
    )


def _compare_grids(scenes: Sequence[Scene]) -> list[str]:
    first, *others = scenes
    problems = []
    for scene in others:
        path, grid = scene.image_path, scene.grid
        if abs(grid.gsd_m / first.grid.gsd_m - 1) > GSD_TOLERANCE:
            problems.append(
                f"{path} has a GSD of {grid.gsd_m:.4g} m, {first.image_path.name} one "
                f"of {first.grid.gsd_m:.4g} m. Give the manifest `gsd_m`, and all "
                "scenes are resampled to it."
            )
        if grid.crs != first.grid.crs:
            problems.append(
                f"{path} is in {grid.crs.to_string()}, {first.image_path.name} in "
                f"{first.grid.crs.to_string()}. Give the manifest a projected `crs`, "
                "and all scenes are brought to it."
            )
    return problems


def _make_names_unique(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """Give the second scene of a name a number; case is ignored, as disks may do."""
    names = {scene.name.casefold() for scene in scenes}
    taken: set[str] = set()
    unique = []
    for scene in scenes:
        name = scene.name
        if name.casefold() in taken:
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            name = next(n for n in numbered if n.casefold() not in taken | names)
        taken.add(name.casefold())
        unique.append(replace(scene, name=name))
    return tuple(unique)


def _open_split(path: Path, entry: SplitEntry | None, gsd_m: float) -> Split | None:
    if entry is None:
        return None
    if entry.block_m is not None and entry.block_m < gsd_m:
        # Blocks are looked up in a table, which would outgrow the memory.
        raise DataError(
            f"`block_m` of {path} is {entry.block_m:g} m; expected at least a pixel, "
            f"{gsd_m:.4g} m, and better some hundred."
        )
    if entry.regions is not None:
        block_m = entry.block_m or _REGION_BLOCK_PX * gsd_m
        return RegionSplit(regions_path=path.parent / entry.regions, block_m=block_m)
    if entry.folds is not None:
        return FoldSplit(
            block_m=entry.block_m or 0.0,
            gap_m=entry.gap_m,
            folds=entry.folds,
            fold=entry.fold,
            seed=entry.seed,
        )
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
