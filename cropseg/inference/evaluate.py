"""Scoring a model on one part of a site, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError
from cropseg.evaluation.confusion import count_confusion_by_block
from cropseg.evaluation.plots import plot_confusion, write_confusion_csv
from cropseg.evaluation.scores import Scores, compute_scores
from cropseg.files import claim_out_dir, hash_file, write_json
from cropseg.inference.engine import KerasEngine
from cropseg.inference.mosaic import TileShape, choose_tile_shape, predict_tiles
from cropseg.models.bundle import Bundle, load_bundle
from cropseg.models.card import Card, fit_site_to_card, match_card_classes
from cropseg.sites.classes import IGNORE, ClassMap
from cropseg.sites.grid import Window
from cropseg.sites.scene import Scene, SceneReader
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS, index_blocks
from cropseg.sites.tiling import Tile, iterate_tiles

Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint8]

PredictScene = Callable[
    [SceneReader, Scene, list[Tile]], Iterator[tuple[Window, Labels]]
]
"""Yields a window and the site's class ids in it (`len(classes)` means other)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model got right and wrong on a part of a site."""

    block_ids: npt.NDArray[np.int64]
    """Number of each block that has a scored pixel, (blocks,)."""
    counts: Counts
    """Confusion counts, (blocks, classes, classes + 1); the last column is other."""
    class_names: tuple[str, ...]
    """The site's classes."""

    @property
    def scores(self) -> Scores:
        """Scores over all blocks."""
        return compute_scores(self.counts, self.class_names)


def evaluate_model(
    model_path: str | Path,
    site: Site,
    *,
    part: str = "test",
    tile_size: int | None = None,
    batch_size: int = 2,
    precision: str = "auto",
) -> Evaluation:
    """Score a saved model on a part of a site.

    Args:
        model_path: A bundle.
        site: The site, with labels and a split.
        part: train, val or test.
        tile_size: Side of the tiles with context; None for the model's default.
        batch_size: Tiles in a batch. It does not change the result.
        precision: auto, float32 or bfloat16.

    Returns:
        Confusion counts per block over the site's classes. Classes are matched by
        name; predictions of classes that the site does not have count as other.

    Raises:
        ModelError: If the model's bands or classes do not fit the site.
        DataError: If the part has no labelled pixel.
    """
    bundle = load_bundle(model_path)
    engine = KerasEngine(bundle, batch_size=batch_size, precision=precision)
    shape = choose_tile_shape(bundle.card.tile_multiple, size=tile_size)
    return evaluate_engine(engine, site, part=part, shape=shape)


def write_evaluation(
    evaluation: Evaluation,
    out_dir: str | Path,
    model_path: str | Path,
    *,
    part: str,
    overwrite: bool = False,
) -> None:
    """Write `metrics.json`, `confusion.csv` and `confusion.png` to a folder."""
    folder = Path(out_dir)
    record = {
        "command": "evaluate",
        "model_sha256": hash_file(Path(model_path)),
        "split": part,
    }
    with claim_out_dir(folder, record, overwrite=overwrite, record="evaluate.yaml"):
        names, counts = evaluation.class_names, evaluation.counts
        write_confusion_csv(counts, names, folder / "confusion.csv")
        plot_confusion(counts, names, folder / "confusion.png")
        write_json(folder / "metrics.json", evaluation.scores.to_json())


def evaluate_bundle(bundle: Bundle, site: Site, *, part: str) -> Evaluation:
    """Score a model that is in memory, at the default tile shape."""
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    shape = choose_tile_shape(bundle.card.tile_multiple)
    return evaluate_engine(engine, site, part=part, shape=shape)


def evaluate_engine(
    engine: KerasEngine, site: Site, *, part: str, shape: TileShape
) -> Evaluation:
    """Score a prepared model. See `evaluate_model`."""
    site = fit_site_to_card(site, engine.card)
    table = _map_classes(engine.card, site.classes)

    def predict(
        reader: SceneReader, scene: Scene, tiles: list[Tile]
    ) -> Iterator[tuple[Window, Labels]]:
        for tile in predict_tiles(engine, reader, scene.grid, tiles):
            yield tile.window, table[tile.classes]

    return evaluate_predictor(predict, site, part=part, shape=shape)


def evaluate_predictor(
    predict: PredictScene, site: Site, *, part: str, shape: TileShape
) -> Evaluation:
    """Score anything that predicts the site's classes.

    Raises:
        DataError: If the part has no labelled pixel.
    """
    split = site.require_split()
    num_classes = len(site.classes)
    totals: dict[int, Counts] = {}
    for scene in site.scenes:
        if scene.labels_path is None:
            continue
        with site.open_scene(scene) as reader:
            tiles = [
                tile
                for tile in iterate_tiles(
                    scene.grid.window,
                    core_size=shape.core_size,
                    context=shape.context,
                )
                if _has_labels(site, scene, reader, tile=tile, part=part)
            ]
            for window, prediction in predict(reader, scene, tiles):
                labels = _read_part_labels(
                    site, scene, reader, window=window, part=part
                )
                ids, blocks = index_blocks(split, scene.grid, window)
                counts = count_confusion_by_block(
                    labels,
                    prediction,
                    blocks,
                    num_blocks=len(ids),
                    num_classes=num_classes,
                )
                for block_id, block_counts in zip(ids.tolist(), counts, strict=True):
                    if block_counts.any():
                        totals[block_id] = totals.get(block_id, 0) + block_counts
    if not totals:
        raise DataError(
            f"The {part} part of site {site.name} has no labelled pixel, so there is "
            "nothing to score. Check the split with `cropseg check`."
        )
    block_ids = sorted(totals)
    return Evaluation(
        block_ids=np.array(block_ids, np.int64),
        counts=np.stack([totals[block_id] for block_id in block_ids]),
        class_names=site.classes.names,
    )


def _has_labels(
    site: Site, scene: Scene, reader: SceneReader, *, tile: Tile, part: str
) -> bool:
    window = tile.core.clip(height=scene.grid.height, width=scene.grid.width)
    labels = _read_part_labels(site, scene, reader, window=window, part=part)
    return bool((labels != IGNORE).any())


def _read_part_labels(
    site: Site, scene: Scene, reader: SceneReader, *, window: Window, part: str
) -> Labels:
    parts = site.require_split().read_parts(scene.grid, window)
    wanted = parts == PARTS.index(part)
    if not wanted.any():
        return np.full(wanted.shape, IGNORE, np.uint8)
    _, labels = reader.read_valid_labels(window)
    return np.where(wanted, labels, IGNORE).astype(np.uint8)


def _map_classes(card: Card, classes: ClassMap) -> Labels:
    """Return the site's class id for each class id of the model; 255 stays."""
    table = np.full(256, len(classes), np.uint8)
    table[IGNORE] = IGNORE
    for name, source_names in match_card_classes(card, classes).items():
        for source_name in source_names:
            table[card.class_names.index(source_name)] = classes.names.index(name)
    return table
