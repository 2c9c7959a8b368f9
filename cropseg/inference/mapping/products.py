"""What is made of finished maps: polygons, fields with crops, hectares, pictures.

Each is made again only where a map, what it is made with or the file itself changed.
The journal knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cropseg.errors import CropsegError
from cropseg.files import hash_settings
from cropseg.inference.mapping.journal import Journal, JournalEntry
from cropseg.inference.mapping.options import POLYGON_FORMATS, ProductOptions
from cropseg.inference.outputs.finished import FinishedMap
from cropseg.progress import ShowProgress
from cropseg.sites.location import fingerprint_file

_PARQUET_ENDINGS: Final = (".parquet", ".geoparquet")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A file that is made of finished maps."""

    path: Path
    """The file."""
    maps: tuple[FinishedMap, ...]
    """What it is made of."""
    settings: tuple[Any, ...]
    """What else decides its content, as JSON values."""
    make: Callable[[], Any]
    """Makes it."""

    def fingerprint(self) -> str:
        """Return what changes when it has to be made again.

        Raises:
            DataFileNotFoundError: If a map is gone.
        """
        paths = [
            path
            for item in self.maps
            for path in (item.classes_path, item.confidence_path)
            if path is not None
        ]
        maps = [[path.name, fingerprint_file(path)] for path in paths]
        return hash_settings([maps, self.settings])


def make_products(
    folder: Path,
    maps: Sequence[FinishedMap],
    options: ProductOptions,
    *,
    show_progress: ShowProgress,
) -> tuple[tuple[Path, ...], dict[str, CropsegError]]:
    """Make what is wanted of finished maps and is not there.

    Args:
        folder: Folder of the maps and of what is made of them.
        maps: The maps.
        options: What is wanted.
        show_progress: Called with files done, files in all and the file's name.

    Returns:
        The files, and why others could not be made, by name.
    """
    wanted = list(list_products(folder, maps, options)) if maps else []
    journal = Journal(folder)
    paths: list[Path] = []
    failures: dict[str, CropsegError] = {}
    for done, product in enumerate(wanted):
        name = product.path.name
        show_progress(done, len(wanted), name)
        try:
            _make(product, journal, folder)
            paths.append(product.path)
        except CropsegError as error:
            failures[name] = error
    return tuple(paths), failures


def list_products(
    folder: Path, maps: Sequence[FinishedMap], options: ProductOptions
) -> Iterator[Product]:
    """List what is wanted of finished maps."""
    every = tuple(maps)
    if options.polygons is not None:
        yield from _list_polygons(folder, every, options)
    if options.parcels is not None:
        yield _plan_parcels(folder, every, options.parcels)
    if options.summary:
        path = folder / "summary.csv"
        make = partial(_write_summary, every, path)
        yield Product(path=path, maps=every, settings=("summary",), make=make)
    if options.quicklook:
        from cropseg.inference.outputs.quicklook import write_quicklook

        for item in every:
            path = folder / f"{item.scene}_quicklook.png"
            make = partial(write_quicklook, item, path)
            yield Product(path=path, maps=(item,), settings=("quicklook",), make=make)


def _list_polygons(
    folder: Path, maps: tuple[FinishedMap, ...], options: ProductOptions
) -> Iterator[Product]:
    from cropseg.inference.outputs.polygons import write_polygons

    wanted = str(options.polygons)
    if wanted in POLYGON_FORMATS:
        files = [
            (folder / f"{m.scene}_polygons.{wanted}", maps[i : i + 1])
            for i, m in enumerate(maps)
        ]
    else:
        files = [(Path(wanted), maps)]
    limits = {"min_area_m2": options.min_area, "simplify_m": options.simplify}
    for path, sources in files:
        yield Product(
            path=path,
            maps=sources,
            settings=("polygons", *limits.values()),
            make=partial(write_polygons, sources, path, **limits),
        )


def _plan_parcels(
    folder: Path, maps: tuple[FinishedMap, ...], fields_path: Path
) -> Product:
    from cropseg.inference.outputs.parcels import write_parcels

    path = folder / name_parcels(fields_path)
    return Product(
        path=path,
        maps=maps,
        settings=("parcels", str(fields_path), fingerprint_file(fields_path)),
        make=partial(write_parcels, fields_path, maps, path),
    )


def name_parcels(fields_path: Path) -> str:
    """Return the name of the file with the crops of these fields."""
    is_parquet = fields_path.suffix.lower() in _PARQUET_ENDINGS
    return f"parcels.{'parquet' if is_parquet else 'gpkg'}"


def name_product(path: Path, folder: Path) -> str:
    """Return how the journal of a folder of maps names a product."""
    return path.name if path.parent == folder else str(path.absolute())


def _write_summary(maps: Sequence[FinishedMap], path: Path) -> None:
    from cropseg.inference.outputs.areas import measure_areas, write_summary

    write_summary(path, [area for item in maps for area in measure_areas(item)])


def _make(product: Product, journal: Journal, folder: Path) -> None:
    """Make a file, if it is not there as it was left."""
    fingerprint = product.fingerprint()
    name = name_product(product.path, folder)
    known = journal.find(name, kind="product")
    is_same = known is not None and known.fingerprint == fingerprint
    if known is not None and is_same and known.has_files(folder):
        return
    started = time.monotonic()
    product.make()
    journal.append(
        JournalEntry(
            kind="product",
            name=name,
            fingerprint=fingerprint,
            status="done",
            files={name: product.path.stat().st_size},
            seconds=round(time.monotonic() - started, 3),
        )
    )
