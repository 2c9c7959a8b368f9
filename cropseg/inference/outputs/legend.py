"""Names and colours of a map's classes, where GIS software looks for them.

QGIS takes its legend from a raster attribute table: class ids with a name and a colour.
GDAL 3.12 and newer find that table inside the TIFF. Older ones find it, and the names
for the colour table, in the side-car `.tif.aux.xml`. Where neither is read, the colours
are left. cropseg itself reads its own tags and no side-car (HAZARDS 6).

References:
    GDAL pull request 13201 (table in the tag GDAL_METADATA);
    QGIS, `QgsRasterRendererRegistry::defaultRendererForDrawingStyle` (table first,
    then colour table with category names).
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from cropseg.errors import DataError
from cropseg.files import write_text
from cropseg.models.card import Card
from cropseg.sites.classes import parse_color

NAMES_TAG: Final = "classes"
"""The tag of a map that holds the names of its classes as a JSON list."""

_TABLE_ITEM: Final = '<Item name="DEFAULT_RASTER_ATTRIBUTE_TABLE" sample="0"'
_FIELDS: Final = (  # name, type (0 integer, 2 text) and usage, as GDAL numbers them
    ("Value", 0, 5),
    ("Class", 2, 2),
    ("Red", 0, 6),
    ("Green", 0, 7),
    ("Blue", 0, 8),
    ("Alpha", 0, 9),
)


@dataclass(frozen=True, kw_only=True)
class MapClass:
    """A class of a map. Its id is its position."""

    name: str
    """Its name."""
    color: str
    """Its colour, `#rrggbb`."""


def list_classes(card: Card) -> tuple[MapClass, ...]:
    """Return the classes that a model's maps have."""
    return tuple(MapClass(name=item.name, color=item.color) for item in card.classes)


def tag_classes(classes: tuple[MapClass, ...]) -> dict[str, str]:
    """Return the tags that name the classes: one for all, and one for each."""
    names = [item.name for item in classes]
    single = {f"class_{i}": name for i, name in enumerate(names)}
    return {NAMES_TAG: json.dumps(names), **single}


def read_classes(path: Path, dataset: Any) -> tuple[MapClass, ...]:
    """Read the classes of an open map.

    Args:
        path: Its path, for messages.
        dataset: The map, opened with rasterio.

    Raises:
        DataError: If it is no class map that cropseg wrote.
    """
    try:
        names = json.loads(dataset.tags()[NAMES_TAG])
        colors = dataset.colormap(1)
        return tuple(
            MapClass(name=str(name), color="#{:02x}{:02x}{:02x}".format(*colors[i][:3]))
            for i, name in enumerate(names)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no class map of cropseg: it has no tag `{NAMES_TAG}` with the "
            "names of its classes, or no colours. Give a `<scene>_classes.tif` that "
            "`cropseg predict` wrote."
        ) from error


def reserve_table(dataset: Any, classes: tuple[MapClass, ...]) -> None:
    """Make room for the attribute table in a GeoTIFF that is being written.

    rasterio has no function for it, and GDAL before 3.12 would not write it there.
    So a tag of the same length is written, which `embed_table` replaces.
    """
    room = len(_build_item(classes).encode()) - len(_build_reserve(b"").decode())
    dataset.update_tags(1, DEFAULT_RASTER_ATTRIBUTE_TABLE="x" * room)


def embed_table(path: Path, classes: tuple[MapClass, ...]) -> None:
    """Put the attribute table where `reserve_table` made room, in a closed GeoTIFF.

    Raises:
        DataError: If there is no room.
    """
    item = _build_item(classes).encode()
    reserve = _build_reserve(b"x" * (len(item) - len(_build_reserve(b""))))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.find(reserve)
        if start < 0:
            raise DataError(f"{path} has no room for a table of {len(item)} bytes.")
        content[start : start + len(item)] = item


def write_sidecar(map_path: Path, classes: tuple[MapClass, ...]) -> None:
    """Write names and table beside a map, for GDAL before 3.12.

    Raises:
        ResourceError: If it cannot be written.
    """
    names = "".join(f"<Category>{escape(item.name)}</Category>" for item in classes)
    write_text(
        name_sidecar(map_path),
        '<PAMDataset>\n<PAMRasterBand band="1">\n'
        f"<CategoryNames>{names}</CategoryNames>\n{_build_table(classes)}\n"
        "</PAMRasterBand>\n</PAMDataset>\n",
    )


def name_sidecar(map_path: Path) -> Path:
    """Return the path of the side-car of a map."""
    return map_path.with_name(f"{map_path.name}.aux.xml")


def _build_item(classes: tuple[MapClass, ...]) -> str:
    return f'{_TABLE_ITEM} role="rat">{_build_table(classes)}</Item>'


def _build_reserve(room: bytes) -> bytes:
    return _TABLE_ITEM.encode() + b">" + room + b"</Item>"


def _build_table(classes: tuple[MapClass, ...]) -> str:
    fields = [
        f'<FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type>'
        f"<Usage>{usage}</Usage></FieldDefn>"
        for index, (name, kind, usage) in enumerate(_FIELDS)
    ]
    rows = []
    for index, item in enumerate(classes):
        cells = (index, escape(item.name), *parse_color(item.color), 255)
        text = "".join(f"<F>{cell}</F>" for cell in cells)
        rows.append(f'<Row index="{index}">{text}</Row>')
    return (
        '<GDALRasterAttributeTable tableType="thematic">'
        f"{''.join(fields)}{''.join(rows)}</GDALRasterAttributeTable>"
    )
