"""Scoring: the counts are those that anybody gets from the map and the labels."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import rasterio
import yaml
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from cropseg.errors import ConflictError, DataError, ModelError
from cropseg.inference.evaluate import (
    evaluate_bundle,
    evaluate_model,
    evaluate_predictor,
    write_evaluation,
)
from cropseg.inference.mosaic import choose_tile_shape
from cropseg.inference.predict import predict_scenes
from cropseg.sites.site import open_site

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
            yield window, reader.read_labels(window)

    shape = choose_tile_shape(4, size=32)
    found = evaluate_predictor(predict, site, part="test", shape=shape)
    assert found.scores.miou == found.scores.overall_accuracy == 1.0
    assert {name for name, _ in seen} == {"scene_1"}
    assert min(core.col for _, core in seen) == 32  # 0.7 x 206 - 103 = 41.2
    assert len(seen) == 4 * 5  # the lowest 5 of 67 rows are unknown, not the tiles


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
    assert json.loads(text) == evaluation.scores.to_json()
    with (out_dir / "confusion.csv").open(encoding="utf-8") as stream:
        cells = {value for row in csv.reader(stream) for value in row}
    assert {*evaluation.class_names, "other"} <= cells
    assert {str(n) for n in evaluation.counts.sum(axis=0).ravel()} <= cells
    with pytest.raises(ConflictError, match="split was 'test', is 'val'"):
        write_evaluation(evaluation, out_dir, model_path, part="val")
