"""Scoring: the counts are those that anybody gets from the map and the labels."""

from __future__ import annotations

import csv
import functools
import json

import numpy as np
import pytest
import rasterio
import yaml
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from cropseg.errors import ConflictError, DataError, ModelError
from cropseg.evaluation.calibration import CONFIDENCE_UNIT
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.evaluate import (
    evaluate_bundle,
    evaluate_engine,
    evaluate_forgetting,
    evaluate_model,
    evaluate_predictor,
    write_evaluation,
)
from cropseg.inference.mapping.predict import predict_scenes
from cropseg.inference.measure import Panel, Prediction
from cropseg.inference.tiles.mosaic import predict_tiles
from cropseg.inference.tiles.tile_shape import choose_tile_shape
from cropseg.models.bundle import Bundle
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site
from cropseg.sites.tiling import iterate_tiles

VALUES = {5: 0, 22: 1, 23: 1, 176: 2, 111: 3}
"""The class id of each label value of the site."""
BLOCK_M = 320


@pytest.fixture(scope="module")
def evaluation(model_path, site):
    return evaluate_model(model_path, site, tile_size=64, precision="float32")


@pytest.fixture(scope="module")
def class_maps(model_path, site, tmp_path_factory):
    """The maps of the site's scenes, side by side as they lie, (67, 206)."""
    maps = predict_scenes(
        model_path,
        site.image_paths,
        out_dir=tmp_path_factory.mktemp("maps") / "maps",
        tile_size=64,
        precision="float32",
    )
    return np.hstack([read_band(path) for path in maps])


@pytest.fixture(scope="module")
def confidence(bundle, site):
    """The largest probability of each pixel, side by side as the maps, (67, 206)."""
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    shape = choose_tile_shape(bundle.card.tile_multiple)
    found = []
    for scene in site.scenes:
        area = scene.grid.window
        tiles = iterate_tiles(area, core_size=shape.core_size, context=shape.context)
        plane = np.full((area.height, area.width), np.nan, np.float32)
        with site.open_scene(scene) as reader:
            for tile in predict_tiles(engine, reader, scene.grid, tiles):
                plane[tile.window.slices_in(area)] = tile.confidence
        found.append(plane)
    return np.hstack(found)


@pytest.fixture(scope="module")
def valid(site):
    """Where both scenes have data, (67, 206)."""
    images = [read_band(scene.image_path) for scene in site.scenes]
    return np.hstack(images) != -9999


@pytest.fixture(scope="module")
def evaluate(bundle, site):
    """Score the test part in the tiles of `class_maps`."""
    engine = KerasEngine(bundle, batch_size=2, precision="float32")
    shape = choose_tile_shape(bundle.card.tile_multiple, size=64)
    return functools.partial(evaluate_engine, engine, site, part="test", shape=shape)


@pytest.fixture(scope="module")
def labels(site):
    """Class ids of both scenes, 255 where unknown or where the image has no data."""
    found = []
    for scene in site.scenes:
        values = read_band(scene.labels_path)
        ids = np.full(values.shape, 255)
        for value, class_id in VALUES.items():
            ids[values == value] = class_id
        ids[read_band(scene.image_path) == -9999] = 255
        found.append(ids)
    return np.hstack(found)


@pytest.fixture
def change_manifest(site):
    """Open the site again with changed entries of its manifest."""

    def change(name="changed", **changes):
        document = yaml.safe_load(site.manifest_path.read_text(encoding="utf-8"))
        path = site.manifest_path.with_name(f"{name}.yaml")
        path.write_text(yaml.safe_dump({**document, **changes}), encoding="utf-8")
        return open_site(path)

    return change


def read_band(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def select_part(labels, part):
    """Return the labels of a part: regions are shares of the width, 206 pixels."""
    share = (np.arange(labels.shape[1]) + 0.5) / labels.shape[1]
    first, last = {"train": (0, 0.5), "val": (0.5, 0.7), "test": (0.7, 1)}[part]
    return np.where((share > first) & (share < last), labels, 255)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_counts_are_those_of_the_whole_map_and_the_labels(
    part, model_path, site, class_maps, labels
):
    found = evaluate_model(
        model_path, site, part=part, tile_size=64, precision="float32"
    )
    wanted = select_part(labels, part)
    known = wanted != 255
    expected = confusion_matrix(wanted[known], class_maps[known], labels=range(4))
    counts = found.counts.sum(axis=0)
    np.testing.assert_array_equal(counts[:, :4], expected)
    assert not counts[:, 4].any()
    assert counts.sum() == known.sum() > 2000
    assert (counts.sum(axis=0) > 0).sum() >= 2  # more than one class is predicted


def test_scores_are_those_of_scikit_learn(evaluation, class_maps, labels):
    wanted = select_part(labels, "test")
    known = wanted != 255
    pairs = (wanted[known], class_maps[known])
    options = {"labels": range(4), "average": None, "zero_division": 0}
    scores = evaluation.scores
    ious = [item.iou for item in scores.classes]
    np.testing.assert_allclose(ious, jaccard_score(*pairs, **options))
    f1 = [item.f1 for item in scores.classes]
    np.testing.assert_allclose(f1, f1_score(*pairs, **options))
    assert scores.overall_accuracy == pytest.approx((pairs[0] == pairs[1]).mean())
    assert scores.miou == pytest.approx(np.mean(ious))
    assert scores.num_pixels == known.sum()


def test_every_block_has_its_own_counts(evaluation, site, class_maps, labels):
    wanted = select_part(labels, "test")
    t = site.scenes[0].grid.transform
    x = t.c + t.a * (np.arange(labels.shape[1]) + 0.5)
    y = t.f + t.e * (np.arange(labels.shape[0]) + 0.5)
    blocks = np.stack(
        np.meshgrid(x // BLOCK_M, y // BLOCK_M), axis=-1
    )  # column and row of the block of every pixel
    expected = []
    for block in np.unique(blocks.reshape(-1, 2), axis=0):
        inside = (blocks == block).all(axis=-1) & (wanted != 255)
        if inside.any():
            pairs = (wanted[inside], class_maps[inside])
            expected.append(confusion_matrix(*pairs, labels=range(4)).tolist())
    found = evaluation.counts[:, :, :4].tolist()
    assert len(found) == len(evaluation.block_ids) == len(expected) > 3
    assert sorted(found) == sorted(expected)
    assert list(evaluation.block_ids) == sorted(set(evaluation.block_ids.tolist()))


def test_neither_batches_nor_memory_nor_files_change_the_counts(
    evaluation, model_path, site, bundle
):
    for batch_size in (1, 3):
        other = evaluate_model(
            model_path, site, tile_size=64, batch_size=batch_size, precision="float32"
        )
        np.testing.assert_array_equal(other.counts, evaluation.counts)
    saved = evaluate_model(model_path, site, precision="float32")
    in_memory = evaluate_bundle(bundle, site, part="test")
    np.testing.assert_array_equal(in_memory.counts, saved.counts)
    np.testing.assert_array_equal(in_memory.block_ids, saved.block_ids)


def test_classes_are_matched_by_name_where_their_order_differs(
    evaluation, model_path, site, change_manifest
):
    order = [2, 0, 3, 1]
    classes = [site.manifest.classes[index].model_dump() for index in order]
    for item in classes:
        item["values"] = list(item["values"])
        del item["source_names"]
    turned = evaluate_model(
        model_path, change_manifest(classes=classes), tile_size=64, precision="float32"
    )
    assert turned.class_names == ("grassland", "soybeans", "water", "wheat")
    np.testing.assert_array_equal(
        turned.counts, evaluation.counts[:, order][:, :, [*order, 4]]
    )


def test_classes_that_the_site_does_not_have_are_predicted_into_other(
    evaluation, model_path, site, change_manifest
):
    counts = evaluation.counts.sum(axis=0)
    often = int(counts.sum(axis=0).argmax())  # the class that is predicted most
    kept = [index for index in range(4) if index != often]
    fewer = change_manifest(
        classes=[
            {
                "name": site.classes.names[index],
                "color": "#112233",
                "values": list(site.classes.classes[index].values),
            }
            for index in kept
        ],
        ignore="rest",
    )
    found = evaluate_model(model_path, fewer, tile_size=64, precision="float32")
    total = found.counts.sum(axis=0)
    np.testing.assert_array_equal(total[:, :3], counts[np.ix_(kept, kept)])
    np.testing.assert_array_equal(total[:, 3], counts[kept, often])
    assert total[:, 3].sum() > 0
    assert found.scores.overall_accuracy == np.trace(total) / total.sum()


def test_source_classes_of_one_class_are_counted_together(
    evaluation, model_path, change_manifest
):
    merged = change_manifest(
        classes=[
            {"name": "lakes", "color": "#334455", "values": [111]},
            {
                "name": "crops",
                "color": "#112233",
                "values": [5, 22, 23],
                "from": ["soybeans", "wheat"],
            },
            {"name": "grassland", "color": "#223344", "values": [176]},
        ]
    )
    found = evaluate_model(model_path, merged, tile_size=64, precision="float32")
    old, new = evaluation.counts.sum(axis=0), found.counts.sum(axis=0)
    assert new[1, 1] == old[:2, :2].sum()
    assert new[1, 2] == old[:2, 2].sum()
    assert new[2, 1] == old[2, :2].sum()
    assert new[0, 3] == old[3, 3]  # the model knows no lakes, the site no water
    assert not new[:, 0].any()


def test_bands_in_another_order_give_equal_counts(
    evaluation, model_path, site, write_raster, change_manifest
):
    order = [4, 1, 0, 3, 2]
    entries = []
    for scene in site.scenes:
        with rasterio.open(scene.image_path) as dataset:
            values = np.moveaxis(dataset.read(), 0, -1)[..., order]
            where = {"crs": dataset.crs, "transform": dataset.transform}
        image = scene.image_path.with_name(f"turned_{scene.name}.tif")
        write_raster(image, values, nodata=-9999, **where)
        entries.append({"image": image.name, "labels": scene.labels_path.name})
    turned = change_manifest(
        "turned", bands=[site.bands[index] for index in order], scenes=entries
    )
    found = evaluate_model(model_path, turned, tile_size=64, precision="float32")
    np.testing.assert_array_equal(found.counts, evaluation.counts)


def test_a_scene_without_labels_is_not_scored(
    evaluation, model_path, site, change_manifest
):
    first, second = (
        {"image": scene.image_path.name, "labels": scene.labels_path.name}
        for scene in site.scenes
    )
    del first["labels"]  # the test part lies in the second scene
    half = change_manifest("half", scenes=[first, second])
    found = evaluate_model(model_path, half, tile_size=64, precision="float32")
    np.testing.assert_array_equal(found.counts, evaluation.counts)


def test_a_part_without_labels_is_refused(model_path, change_manifest):
    split = {"block_m": 320, "train": 1.0, "val": 0.0, "test": 0.0, "seed": 0}
    with pytest.raises(DataError, match="test part of site area_1 has no labelled"):
        evaluate_model(model_path, change_manifest(split=split), tile_size=64)


def test_a_site_without_a_split_is_refused(model_path, change_manifest):
    with pytest.raises(DataError, match="has no `split`"):
        evaluate_model(model_path, change_manifest(split=None), tile_size=64)


def test_a_site_that_shares_no_class_is_refused(model_path, change_manifest):
    classes = [
        {"name": "oats", "color": "#112233", "values": [5]},
        {"name": "rye", "color": "#112244", "values": [22]},
    ]
    stranger = change_manifest(classes=classes, ignore="rest")
    with pytest.raises(ModelError, match="No class is shared"):
        evaluate_model(model_path, stranger, tile_size=64)


def test_only_tiles_with_labels_of_the_part_are_predicted(site):
    """What predicts the labels themselves is always right, and sees few tiles."""
    seen = []

    def predict(reader, scene, tiles):
        for tile in tiles:
            seen.append((scene.name, tile.core))
            window = tile.core.clip(height=scene.grid.height, width=scene.grid.width)
            yield Prediction(window=window, classes=reader.read_labels(window))

    shape = choose_tile_shape(4, size=32)
    found = evaluate_predictor(predict, site, part="test", shape=shape)
    assert found.scores.miou == found.scores.overall_accuracy == 1.0
    assert {name for name, _ in seen} == {"scene_1"}
    assert min(core.col for _, core in seen) == 32  # 0.7 x 206 - 103 = 41.2
    assert len(seen) == 4 * 5  # the lowest 5 of 67 rows are unknown, not the tiles


def test_reliability_counts_the_probability_of_the_predicted_class(
    bundle, site, confidence, labels
):
    found = evaluate_bundle(bundle, site, part="test")
    known = select_part(labels, "test") != 255
    units = np.rint(confidence[known] * CONFIDENCE_UNIT)
    edges = np.arange(16) * CONFIDENCE_UNIT / 15
    places = np.searchsorted(edges, units, side="left") - 1  # ends belong below
    pixels = np.bincount(places, minlength=15)

    total = found.reliability.sum(axis=0)

    np.testing.assert_array_equal(total[:, 0], pixels)
    np.testing.assert_array_equal(total[:, 2], np.bincount(places, units, 15))
    assert (pixels > 0).sum() > 3
    right = np.trace(found.counts, axis1=1, axis2=2)
    np.testing.assert_array_equal(found.reliability[..., 1].sum(axis=1), right)
    np.testing.assert_array_equal(
        found.reliability[..., 0].sum(axis=1), found.counts.sum(axis=(1, 2))
    )


def test_the_confidence_is_the_largest_probability(bundle, site, valid, confidence):
    engine = KerasEngine(bundle, batch_size=1, precision="float32")
    scene, side = site.scenes[0], 512
    with site.open_scene(scene) as reader:
        pixels = reader.read_pixels(scene.grid.window)
    # As tiles are read: mirrored beyond the edges of the scene.
    margins = ((64, side - 64 - 67), (64, side - 64 - 103))
    values = np.pad(engine.fill_nodata(pixels), (*margins, (0, 0)), mode="reflect")
    expected = engine.predict([values])[0, 64:131, 64:167].max(axis=-1)
    np.testing.assert_allclose(
        confidence[:, :103], np.where(valid[:, :103], expected, 0), rtol=1e-6
    )


def test_a_source_class_keeps_its_own_probability_where_several_are_one(
    bundle, change_manifest
):
    def evaluate(**classes):
        site = change_manifest(
            classes=[
                {"name": name, "color": "#112233", "values": values, "from": source}
                for name, (values, *source) in classes.items()
            ]
        )
        return evaluate_bundle(bundle, site, part="test")

    one = evaluate(
        crops=([5, 22, 23, 176], "soybeans", "wheat", "grassland"),
        water=([111], "water"),
    )
    apart = evaluate(
        soybeans=([5], "soybeans"),
        wheat=([22, 23], "wheat"),
        grassland=([176], "grassland"),
        water=([111], "water"),
    )

    assert one.scores.overall_accuracy > 1.3 * apart.scores.overall_accuracy
    # No sum of probabilities: right more often, and no surer of it than before.
    np.testing.assert_array_equal(
        one.reliability[..., ::2], apart.reliability[..., ::2]
    )


def test_the_map_of_a_part_is_counted_with_pixels_that_have_no_label(
    evaluate, class_maps, labels, valid
):
    found = evaluate(whole_part=True)
    usual = evaluate()

    inside = (select_part(np.zeros_like(labels), "test") == 0) & valid
    expected = np.bincount(class_maps[inside], minlength=5)
    np.testing.assert_array_equal(found.mapped.sum(axis=0), expected)
    assert found.mapped.shape == (len(found.block_ids), 5)
    assert found.mapped.sum() > 1.05 * found.counts.sum()
    assert (found.mapped.sum(axis=1) >= found.counts.sum(axis=(1, 2))).all()
    np.testing.assert_array_equal(found.counts, usual.counts)
    np.testing.assert_array_equal(found.reliability, usual.reliability)
    assert usual.mapped is None


@pytest.mark.parametrize("scene", [0, 1])
def test_the_panel_holds_what_was_predicted_there(evaluate, class_maps, scene):
    window = Window(row=11, col=23, height=40, width=57)  # not all of it in the test
    panel = Panel(scene=scene, window=window)
    found = evaluate(panel=panel)
    left = 103 * scene + window.col
    expected = class_maps[11:51, left : left + 57]
    np.testing.assert_array_equal(found.panel, expected)
    assert 255 in expected
    assert len(np.unique(expected)) > 2
    assert evaluate().panel is None


def test_forgetting_is_scored_over_shared_classes(bundle, site, evaluation):
    before = evaluate_forgetting(bundle, site, ("water", "oats", "wheat"))

    assert before.class_names == ("wheat", "water")  # in the order of the source
    full = evaluate_bundle(bundle, site, part="test").counts.sum(axis=0)
    counts = before.counts.sum(axis=0)
    np.testing.assert_array_equal(counts[:, :2], full[np.ix_([1, 3], [1, 3])])
    np.testing.assert_array_equal(counts[:, 2], full[[1, 3]][:, [0, 2, 4]].sum(axis=1))
    assert counts[:, 2].sum() > 0
    assert counts.sum() == full[[1, 3]].sum() < full.sum()
    assert before.fields.shape == (0, 5)
    assert len(before.block_ids) <= len(evaluation.block_ids)


def test_a_model_of_the_target_is_scored_by_the_names_of_its_own_classes(bundle, site):
    """Its classes stand in another order, and one of the source is gone."""
    order = [3, 0, 2, 1]
    renamed = [bundle.card.classes[index] for index in order]
    renamed[2] = renamed[2].model_copy(update={"name": "oats"})
    card = bundle.card.model_copy(update={"classes": tuple(renamed)})
    names = [item.name for item in renamed]

    found = evaluate_forgetting(Bundle(model=bundle.model, card=card), site, names)

    assert found.class_names == ("soybeans", "wheat", "water")
    full = evaluate_bundle(bundle, site, part="test").counts.sum(axis=0)
    counts = found.counts.sum(axis=0)
    columns = [names.index(name) for name in found.class_names]
    np.testing.assert_array_equal(counts[:, :3], full[np.ix_([0, 1, 3], columns)])
    np.testing.assert_array_equal(counts[:, 3], full[[0, 1, 3], 2])


def test_where_nothing_can_be_compared_there_is_no_forgetting(
    bundle, site, change_manifest
):
    assert evaluate_forgetting(bundle, site, ("oats", "rye")) is None
    whole = {"block_m": 320, "train": 1.0, "val": 0.0, "test": 0.0, "seed": 0}
    for changes in ({"split": None}, {"split": whole}):
        source = change_manifest(**changes)
        assert evaluate_forgetting(bundle, source, site.classes.names) is None
    update = {"bands": (*bundle.card.bands[:-1], "thermal")}
    other = Bundle(model=bundle.model, card=bundle.card.model_copy(update=update))
    assert evaluate_forgetting(other, site, site.classes.names) is None


def test_an_evaluation_is_written_as_metrics_table_and_plot(
    evaluation, model_path, tmp_path
):
    out_dir = tmp_path / "out"
    write_evaluation(evaluation, out_dir, model_path, part="test")
    assert sorted(path.name for path in out_dir.iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "evaluate.yaml",
        "metrics.json",
    ]
    text = (out_dir / "metrics.json").read_text(encoding="utf-8")
    written = json.loads(text)
    assert written == evaluation.to_json()
    scores = evaluation.scores.to_json()
    assert {name: written[name] for name in scores} == scores  # as before calibration
    assert set(written) - set(scores) == {"ece", "reliability", "fields"}
    assert written["ece"] == evaluation.calibration.ece
    assert sum(item["share"] for item in written["reliability"]) == pytest.approx(1)
    with (out_dir / "confusion.csv").open(encoding="utf-8") as stream:
        cells = {value for row in csv.reader(stream) for value in row}
    assert {*evaluation.class_names, "other"} <= cells
    assert {str(n) for n in evaluation.counts.sum(axis=0).ravel()} <= cells
    with pytest.raises(ConflictError, match="split was 'test', is 'val'"):
        write_evaluation(evaluation, out_dir, model_path, part="val")
