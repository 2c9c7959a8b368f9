"""Compare the maps of `cropseg predict` with the labels of a site's test part.

Usage: python scripts/compare_map.py MAPS MANIFEST OUT [NAMES]

MAPS is the folder of the maps. OUT gets `areas.csv`, hectares of each crop; `map.png`,
labels, map and errors of the first scene; and `fields.csv` where MAPS has a
`parcels.gpkg` whose column NAMES (`crop` unless given) holds the crop of each field.
Only pixels of the test part count, and fields that lie in it as a whole.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import rasterio
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from rasterio.features import rasterize

import cropseg
from cropseg.evaluation.area import estimate_areas, estimate_block_errors
from cropseg.evaluation.confusion import count_confusion_by_block
from cropseg.evaluation.scores import compute_scores
from cropseg.inference.outputs.legend import read_classes
from cropseg.sites.classes import IGNORE
from cropseg.sites.scene import Scene
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, index_blocks

TEST = PARTS.index("test")
Ids = npt.NDArray[np.uint8]


def main(maps: str, manifest: str, out: str, names: str = "crop") -> None:
    """Print and write how a map compares with labels that no training saw."""
    site, folder = cropseg.open_site(manifest), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    blocks: dict[int, Any] = {}
    mapped = np.zeros(len(site.classes) + 1, np.int64)
    for number, scene in enumerate(site.scenes):
        compared = read_scene(Path(maps), site, scene)
        count_blocks(site, scene, compared, blocks)
        mapped += np.bincount(compared.list_mapped(), minlength=len(mapped))
        if number == 0:
            draw(site, compared, folder / "map.png")
    counts = np.stack(list(blocks.values()))
    report_areas(site, counts, mapped, folder / "areas.csv")
    parcels = Path(maps) / "parcels.gpkg"
    if parcels.exists():
        report_fields(site, parcels, names, folder / "fields.csv")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A scene's map and its labels, in class ids of the site; (height, width)."""

    found: Ids
    """The map; classes that the site does not have come last, 255 has no data."""
    labels: Ids
    """The labels of the test part; 255 elsewhere."""
    inside: npt.NDArray[np.bool_]
    """Where the test part is."""

    def list_mapped(self) -> Ids:
        """Return the class ids of the map in the test part."""
        ids: Ids = self.found[self.inside & (self.found != IGNORE)]
        return ids


def read_scene(maps: Path, site: Site, scene: Scene) -> Compared:
    """Read the map of a scene and its labels."""
    path = maps / f"{scene.name}_classes.tif"
    with rasterio.open(path) as dataset:
        ids = dataset.read(1)
        table = np.full(256, len(site.classes), np.uint8)
        table[IGNORE] = IGNORE
        for index, item in enumerate(read_classes(path, dataset)):
            if item.name in site.classes.names:
                table[index] = site.classes.names.index(item.name)
    window = scene.grid.window
    with site.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(window)
    inside = site.require_split().read_parts(scene.grid, window) == TEST
    inside &= pixels.valid
    labels = np.where(inside, labels, IGNORE).astype(np.uint8)
    return Compared(found=table[ids], labels=labels, inside=inside)


def count_blocks(
    site: Site, scene: Scene, compared: Compared, blocks: dict[int, Any]
) -> None:
    """Add what a scene shows to the counts of each block."""
    split = site.require_split()
    ids, index = index_blocks(split, scene.grid, scene.grid.window)
    counts = count_confusion_by_block(
        compared.labels,
        compared.found,
        index,
        num_blocks=len(ids),
        num_classes=len(site.classes),
    )
    for block_id, block_counts in zip(ids.tolist(), counts, strict=True):
        if block_counts.any():
            blocks[block_id] = blocks.get(block_id, 0) + block_counts


def report_areas(site: Site, counts: Any, mapped: Any, path: Path) -> None:
    """Print scores, and write the hectares of each crop."""
    names, total = site.classes.names, counts.sum(axis=0)
    scores = compute_scores(counts, names)
    print(f"{total.sum():,} labelled pixels in {len(counts)} blocks of the test part: ")
    print(f"{total.trace() / total.sum():.1%} mapped right, mIoU {scores.miou:.3f}")
    pixel_ha = site.gsd_m**2 / 10_000
    areas = estimate_areas(total, mapped, pixel_ha)
    errors = estimate_block_errors(counts, mapped, pixel_ha)
    # The first two columns are of the labelled pixels, so of the same ground.
    head = ("class", "labelled_ha", "mapped_ha", "iou", "mapped_all_ha")
    rows: list[Sequence[Any]] = [(*head, "adjusted_all_ha", "standard_error_ha")]
    columns = zip(names, scores.classes, areas, errors.tolist(), strict=True)
    for index, (name, score, area, error) in enumerate(columns):
        labelled, found = total[index].sum(), total[:, index].sum()
        iou = "" if score.iou is None else f"{score.iou:.3f}"
        both = [f"{count * pixel_ha:.0f}" for count in (labelled, found)]
        rest = [f"{x:.0f}" for x in (area.mapped_ha, area.adjusted_ha, error)]
        rows.append((name, *both, iou, *rest))
    write_rows(rows, path)


def report_fields(site: Site, path: Path, column: str, out_path: Path) -> None:
    """Print how many fields of the test part have their crop, and write who has not."""
    fields = geopandas.read_file(path)
    scene = site.scenes[0]
    grid = scene.grid
    in_test = site.require_split().read_parts(grid, grid.window) == TEST
    shapes = fields.to_crs(grid.crs).geometry
    numbers = rasterize(
        ((shape, index + 1) for index, shape in enumerate(shapes)),
        out_shape=in_test.shape,
        transform=grid.transform,
        dtype="int32",
    )
    touched = set(np.unique(numbers[~in_test]).tolist())
    whole = set(np.unique(numbers[in_test]).tolist()) - touched - {0}
    chosen = fields.iloc[sorted(index - 1 for index in whole)]
    labels = chosen[column].str.lower()
    known = labels.isin([name.lower() for name in site.classes.names])
    pairs = Counter(
        zip(labels[known], chosen.loc[known, "predicted_crop"].str.lower(), strict=True)
    )
    num_right = sum(count for (ours, theirs), count in pairs.items() if ours == theirs)
    print(
        f"{len(chosen)} fields lie in the test part, {known.sum()} with a crop of the "
        f"site: {num_right} ({num_right / max(1, known.sum()):.1%}) have it on the map"
    )
    rows = [(*pair, count) for pair, count in sorted(pairs.items())]
    write_rows([("label", "map", "fields"), *rows], out_path)


def write_rows(rows: Sequence[Sequence[Any]], path: Path) -> None:
    """Write a table as CSV, and print it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    for row in rows:
        print("  ".join(f"{cell!s:>17}" for cell in row))


def draw(site: Site, compared: Compared, path: Path) -> None:
    """Draw labels, map and errors of the test part."""
    labels, found, inside = compared.labels, compared.found, compared.inside
    rows, cols = np.nonzero(inside)
    cut = np.s_[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    other = len(site.classes)
    colors = [item.color for item in site.classes.classes]
    cmap = ListedColormap([*colors, "#000000", "#ffffff"])  # then other, and unknown
    wrong = np.where(found == labels, 0, 1)
    wrong[labels == IGNORE] = 2
    pictures = (
        ("labels", np.minimum(labels, other + 1), cmap),
        ("map", np.where(inside, np.minimum(found, other), other + 1), cmap),
        ("errors", wrong, ListedColormap(["#dddddd", "#c1121f", "#ffffff"])),
    )
    figure, axes = plt.subplots(3, 1, figsize=(9, 15), layout="constrained")
    for ax, (title, ids, colors_of) in zip(axes, pictures, strict=True):
        limits = {"vmin": 0, "vmax": colors_of.N - 1}
        ax.imshow(ids[cut], cmap=colors_of, interpolation="nearest", **limits)
        ax.set_title(title)
        ax.set_axis_off()
    items = [Patch(color=item.color, label=item.name) for item in site.classes.classes]
    items += [
        Patch(color="#000000", label="other crop"),
        Patch(color="#c1121f", label="wrong"),
    ]
    figure.legend(handles=items, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
