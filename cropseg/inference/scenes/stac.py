"""Scenes of a STAC item or item collection that lies in a JSON file.

Only the file is read: no link is followed. Assets are chosen by the names of their
bands, `name` or common name, as `bands` (STAC 1.1) or `eo:bands` give them. An asset
without bands goes by its key.

References: SpatioTemporal Asset Catalog, item specification 1.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cropseg.errors import DataError
from cropseg.inference.scenes.scene_list import (
    IMAGE_ENDINGS,
    SceneRequest,
    is_file_name,
    join_path,
)

_TIFF_TYPES: Final = ("image/tiff", "image/geo+tiff", "image/vnd.stac.geotiff")
_SHOWN_ROLES: Final = frozenset({"thumbnail", "overview", "visual", "graphic"})
"""Pictures for people: stretched, and no measurements."""

_BAND_KEYS: Final = ("bands", "eo:bands")
_NAME_KEYS: Final = ("name", "common_name", "eo:common_name")


@dataclass(frozen=True, kw_only=True)
class _Asset:
    """A GeoTIFF of an item."""

    key: str
    href: str
    is_picture: bool
    bands: tuple[tuple[str, ...], ...]
    """The names of each band, the most telling one first, in lower case."""
    is_described: bool
    """Whether the item says which bands it has."""

    def find(self, band: str) -> tuple[int, int] | None:
        """Return how far down the names a band's stands, and at which place it is.

        None where no band has that name, or several have it alike.
        """
        wanted = band.casefold()
        ranks = sorted(
            (names.index(wanted), place)
            for place, names in enumerate(self.bands)
            if wanted in names
        )
        is_clear = len(ranks) == 1 or (ranks and ranks[0][0] < ranks[1][0])
        return ranks[0] if is_clear else None


def read_items(
    path: Path, content: bytes, bands: Sequence[str]
) -> Iterator[SceneRequest]:
    """Take the scenes of a STAC file, one an item.

    Assets of one band each are taken where there is one for every band, as what has
    several bands may be a picture made of them. Else the asset is taken that has all
    bands; a picture (by its roles) only where nothing else has.

    Args:
        path: The file, to which relative addresses are relative.
        content: What it holds.
        bands: The bands that the model needs.

    Yields:
        A request for each item. One whose assets do not have the bands has a
        `problem`.

    Raises:
        DataError: If it holds no STAC item.
    """
    for number, item in enumerate(_parse(path, content)):
        text = str(item.get("id") or f"item_{number}").strip()
        plain = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text)
        name = plain if is_file_name(plain) else f"item_{plain}"
        assets = _list_assets(item)
        chosen = _choose_assets(assets, bands)
        if chosen is None:
            problem = f"Item {text} of {path} {_describe(assets, bands)}"
            yield SceneRequest(name=name, files=(), problem=problem)
            continue
        yield SceneRequest(
            name=name,
            files=tuple(join_path(path, asset.href) for asset in chosen),
            bands=_name_bands(chosen, bands),
        )


def _parse(path: Path, content: bytes) -> list[Mapping[str, Any]]:
    expected = "expected a STAC item, or an item collection with one at least"
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise DataError(
            f"{path} is no JSON ({error}); {expected}. Save it again."
        ) from error
    kind = document.get("type") if isinstance(document, dict) else None
    items: Any = [document]
    if kind == "FeatureCollection":
        items = document.get("features")
    if (
        not isinstance(items, list)
        or not items
        or not all(
            isinstance(item, dict)
            and item.get("type") == "Feature"
            and isinstance(item.get("assets"), dict)
            for item in items
        )
    ):
        found = f"JSON of type {kind}" if kind else f"JSON ({type(document).__name__})"
        raise DataError(
            f"{path} holds {found} without `assets`; {expected}. Save the result of a "
            "search as an item collection. Polygons belong into --region."
        )
    return items


def _list_assets(item: Mapping[str, Any]) -> list[_Asset]:
    assets = []
    for key, entry in item["assets"].items():
        href = entry.get("href") if isinstance(entry, dict) else None
        if not isinstance(href, str) or not _is_tiff(entry, href):
            continue
        if href.startswith("file:/"):
            href = url2pathname(urlsplit(href).path)
        roles = entry.get("roles")
        names = _read_names(entry)
        # A key is the last word: it has no meaning that one may rely on.
        if len(names) <= 1:
            names = ((*(names[0] if names else ()), key.casefold()),)
        assets.append(
            _Asset(
                key=key,
                href=href,
                is_picture=isinstance(roles, list)
                and any(role in _SHOWN_ROLES for role in roles),
                bands=names,
                is_described=any(entry.get(band_key) for band_key in _BAND_KEYS),
            )
        )
    return assets


def _is_tiff(entry: Mapping[str, Any], href: str) -> bool:
    media_type = entry.get("type")
    if isinstance(media_type, str):
        return media_type.strip().lower().startswith(_TIFF_TYPES)
    return urlsplit(href).path.lower().endswith(IMAGE_ENDINGS)


def _read_names(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    listed: list[Any] = []
    for band_key in _BAND_KEYS:
        found = entry.get(band_key)
        listed = listed or (found if isinstance(found, list) else [])
    return tuple(
        tuple(
            value.casefold()
            for name_key in _NAME_KEYS
            if isinstance(value := band.get(name_key), str)
        )
        if isinstance(band, dict)
        else ()
        for band in listed
    )


def _choose_assets(
    assets: Sequence[_Asset], bands: Sequence[str]
) -> list[_Asset] | None:
    """Return the assets that have the bands, or None where that is not clear."""
    for pool in ([asset for asset in assets if not asset.is_picture], assets):
        chosen = _choose_singles(pool, bands) or _choose_whole(pool, bands)
        if chosen:
            return chosen
        if len(pool) == 1 and not pool[0].is_described:
            return list(pool)  # its file may know
    return None


def _choose_singles(
    assets: Sequence[_Asset], bands: Sequence[str]
) -> list[_Asset] | None:
    chosen = []
    for band in bands:
        ranked = [
            (found[0], asset)
            for asset in assets
            if len(asset.bands) == 1 and (found := asset.find(band))
        ]
        best = min((rank for rank, _ in ranked), default=None)
        nearest = [asset for rank, asset in ranked if rank == best]
        if len(nearest) != 1:
            return None
        chosen += nearest
    # One asset for two bands would be the same pixels twice.
    return chosen if len({asset.href for asset in chosen}) == len(bands) else None


def _choose_whole(
    assets: Sequence[_Asset], bands: Sequence[str]
) -> list[_Asset] | None:
    fitting = []
    for asset in assets:
        places = [found and found[1] for found in map(asset.find, bands)]
        if None not in places and len(set(places)) == len(bands):
            fitting.append(asset)
    return fitting if len(fitting) == 1 else None


def _name_bands(
    chosen: Sequence[_Asset], bands: Sequence[str]
) -> tuple[str, ...] | None:
    """Return the model's names of all bands, in file order; None where unknown."""
    if len(chosen) == len(bands) and all(len(asset.bands) == 1 for asset in chosen):
        return tuple(bands)
    (asset,) = chosen
    if not asset.is_described:
        return None
    names = [
        next(iter(own), f"band {place + 1}") for place, own in enumerate(asset.bands)
    ]
    for band in bands:
        found = asset.find(band)
        if found:
            names[found[1]] = band
    return tuple(names)


def _describe(assets: Sequence[_Asset], bands: Sequence[str]) -> str:
    known = [
        f"{asset.key} ({', '.join(names[0] for names in asset.bands if names)})"
        for asset in assets
    ]
    return (
        f"has no GeoTIFF for every band of the model ({', '.join(bands)}), or several "
        f"for one. It has {', '.join(known) or 'none at all'}. Bands are matched by "
        "name; name the files in a CSV list if they are there under other names."
    )
