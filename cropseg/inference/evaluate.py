"""Scoring a model on one part of a site, block by block.

`measure` says what is counted; here a model and its tiles are brought to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, ModelError
from cropseg.evaluation.plots import plot_confusion, write_confusion_csv
from cropseg.files import claim_out_dir, hash_file, write_json
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.measure import Evaluation, Panel, Prediction, Tally
from cropseg.inference.scoring_shape import choose_scoring_shape
from cropseg.inference.tiles.mosaic import predict_tiles
from cropseg.inference.tiles.tile_shape import TileShape, choose_tile_shape
from cropseg.models.bundle import Bundle, load_bundle
from cropseg.models.card import Card, fit_site_to_card, match_card_classes
from cropseg.sites.classes import IGNORE, ClassMap
from cropseg.sites.scene import Scene, SceneReader
from cropseg.sites.site import Site
from cropseg.sites.tiling import Tile, iterate_tiles

PredictScene = Callable[[SceneReader, Scene, Iterable[Tile]], Iterator[Prediction]]
"""Predicts the cores of tiles, each once and in any order."""

_log = logging.getLogger(__name__)


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
        tile_size: Side of the tiles with context; None for the one that suits the
            part (`choose_scoring_shape`).
        batch_size: Tiles in a batch. It does not change the result.
        precision: auto, float32 or bfloat16.

    Returns:
        Counts per block over the site's classes. Classes are matched by name;
        predictions of classes that the site does not have count as other.

    Raises:
        ModelError: If the model's bands or classes do not fit the site.
        DataError: If the part has no labelled pixel.
    """
    bundle = load_bundle(model_path)
    engine = KerasEngine(bundle, batch_size=batch_size, precision=precision)
    multiple = bundle.card.tile_multiple
    shape = choose_tile_shape(multiple, size=tile_size) if tile_size else None
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
        write_json(folder / "metrics.json", evaluation.to_json())


def evaluate_bundle(
    bundle: Bundle,
    site: Site,
    *,
    part: str,
    panel: Panel | None = None,
    whole_part: bool = False,
) -> Evaluation:
    """Score a model that is in memory.

    Args:
        bundle: The model.
        site: The site, with labels and a split.
        part: train, val or test.
        panel: A window whose predicted classes are kept.
        whole_part: Whether pixels without a label are predicted too, which `mapped`
            needs. It changes nothing else.

    Returns:
        What was counted in one pass.

    Raises:
        ModelError: If the model's bands or classes do not fit the site.
        DataError: If the part has no labelled pixel.
    """
    return evaluate_engine(
        _prepare_engine(bundle), site, part=part, panel=panel, whole_part=whole_part
    )


def evaluate_forgetting(
    bundle: Bundle, source_site: Site, target_names: Sequence[str]
) -> Evaluation | None:
    """Score a model on the site that it, or what it was made of, was trained on.

    Pixels of the test part whose class the target has too, by name, are scored; other
    labels count as unknown, and other predictions as other. So the source model and
    the models that were made of it are scored on the same pixels and classes.

    Args:
        bundle: The source model, for the score before, or one made of it.
        source_site: The source site.
        target_names: Class names of the target site.

    Returns:
        Counts over the shared classes, in the order of the source site. None where
        nothing can be compared: no class is shared or labelled in the test part, or
        the model does not take images of the source site any more.
    """
    shared = tuple(
        item for item in source_site.classes.classes if item.name in target_names
    )
    classes = replace(source_site.classes, classes=shared, ignore_rest=True)
    try:
        site = replace(fit_site_to_card(source_site, bundle.card), classes=classes)
        match_card_classes(bundle.card, classes)
    except ModelError as error:
        _log.info("Forgetting is not measured: %s", error)
        return None
    if site.split is None:
        return None
    predict = _build_predictor(_prepare_engine(bundle), site)
    shape = choose_scoring_shape(site, "test", bundle.card.tile_multiple)
    return _measure(predict, site, part="test", shape=shape)


def _prepare_engine(bundle: Bundle) -> KerasEngine:
    return KerasEngine(bundle, batch_size=2, precision="float32")


def evaluate_engine(
    engine: KerasEngine,
    site: Site,
    *,
    part: str,
    shape: TileShape | None = None,
    panel: Panel | None = None,
    whole_part: bool = False,
) -> Evaluation:
    """Score a prepared model. See `evaluate_bundle`."""
    site = fit_site_to_card(site, engine.card)
    if shape is None:
        shape = choose_scoring_shape(site, part, engine.card.tile_multiple)
    return evaluate_predictor(
        _build_predictor(engine, site),
        site,
        part=part,
        shape=shape,
        panel=panel,
        whole_part=whole_part,
    )


def _build_predictor(engine: KerasEngine, site: Site) -> PredictScene:
    """Return what predicts the site's classes with a model on the site's bands."""
    table = _map_classes(engine.card, site.classes)

    def predict(
        reader: SceneReader, scene: Scene, tiles: Iterable[Tile]
    ) -> Iterator[Prediction]:
        for tile in predict_tiles(engine, reader, scene.grid, tiles):
            yield Prediction(
                window=tile.window,
                classes=table[tile.classes],
                confidence=tile.confidence,
            )

    return predict


def evaluate_predictor(
    predict: PredictScene,
    site: Site,
    *,
    part: str,
    shape: TileShape,
    panel: Panel | None = None,
    whole_part: bool = False,
) -> Evaluation:
    """Score anything that predicts the site's classes.

    Args:
        predict: The predictor.
        site: The site, with labels and a split.
        part: train, val or test.
        shape: The tiles in which it is predicted.
        panel: A window whose predicted classes are kept.
        whole_part: Whether pixels without a label are predicted too.

    Returns:
        What was counted in one pass.

    Raises:
        DataError: If the part has no labelled pixel.
    """
    found = _measure(
        predict, site, part=part, shape=shape, panel=panel, whole_part=whole_part
    )
    if found is None:
        raise DataError(
            f"The {part} part of site {site.name} has no labelled pixel, so there is "
            "nothing to score. Check the split with `cropseg check`."
        )
    return found


def _measure(
    predict: PredictScene,
    site: Site,
    *,
    part: str,
    shape: TileShape,
    panel: Panel | None = None,
    whole_part: bool = False,
) -> Evaluation | None:
    tally = Tally(site, part, panel=panel, whole_part=whole_part)
    for index, scene in enumerate(site.scenes):
        if scene.labels_path is None:
            continue
        area = scene.grid.window
        cut = iterate_tiles(area, core_size=shape.core_size, context=shape.context)
        with site.open_scene(scene) as reader:
            # Chosen while they are predicted, so that no label is read twice.
            tiles = (
                tile
                for tile in cut
                if tally.needs(
                    index, reader, tile.core.clip(height=area.height, width=area.width)
                )
            )
            for prediction in predict(reader, scene, tiles):
                tally.add(index, reader, prediction)
    return tally.finish()


def _map_classes(card: Card, classes: ClassMap) -> npt.NDArray[np.uint8]:
    """Return the site's class id for each class id of the model; 255 stays."""
    table = np.full(256, len(classes), np.uint8)
    table[IGNORE] = IGNORE
    for name, source_names in match_card_classes(card, classes).items():
        for source_name in source_names:
            table[card.class_names.index(source_name)] = classes.names.index(name)
    return table
