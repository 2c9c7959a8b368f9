"""The forest: the same as scikit-learn by hand, on the labels of the pool alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from sklearn.ensemble import RandomForestClassifier

from cropseg.comparison import forest
from cropseg.comparison.forest import (
    add_indices,
    execute_forest,
    fit_forest,
    predict_classes,
    train_forest,
)
from cropseg.errors import ConflictError, UsageError
from cropseg.inference.measure import Panel
from cropseg.models.card import read_card
from cropseg.sites.budget import Budget, draw_pool
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site
from cropseg.training.settings import TrainSettings
from cropseg.transfer.target import ReuseOptions

SIZE = 32
SETTINGS = TrainSettings(tile_size=SIZE, seed=4)


@pytest.fixture(scope="module")
def pool(area_2):
    return draw_pool(area_2, SIZE, Budget(amount=4), draw=1)


@pytest.fixture(scope="module")
def scene(area_2):
    """Return image, class ids (255 unknown) and parts of the scene, read by hand."""
    (found,) = area_2.scenes
    with rasterio.open(found.image_path) as dataset:
        image = np.moveaxis(dataset.read(), 0, -1)
        valid = (image != dataset.nodata).all(axis=-1)
    with rasterio.open(found.labels_path) as dataset:
        values = dataset.read(1)
    labels = np.full(values.shape, 255, np.uint8)
    for class_id, item in enumerate(area_2.classes.classes):
        labels[np.isin(values, item.values) & valid] = class_id
    return image, labels, area_2.split.read_parts(found.grid, found.grid.window)


def list_pool_pixels(pool, scene):
    image, labels, parts = scene
    values, classes = [], []
    for tile in pool.tiles:
        rows = slice(tile.window.row, tile.window.row + SIZE)
        cols = slice(tile.window.col, tile.window.col + SIZE)
        known = (labels[rows, cols] != 255) & (parts[rows, cols] == 0)
        values.append(image[rows, cols][known])
        classes.append(labels[rows, cols][known])
    return np.concatenate(values), np.concatenate(classes)


@pytest.fixture(scope="module")
def by_hand(pool, scene):
    values, classes = list_pool_pixels(pool, scene)
    share = np.bincount(classes, minlength=3) / len(classes)
    weights = {i: share[i] ** -0.5 for i in range(3)}
    scale = sum(share[i] * weights[i] for i in range(3))
    return RandomForestClassifier(
        n_estimators=100,
        min_samples_leaf=3,
        class_weight={i: weight / scale for i, weight in weights.items()},
        random_state=4,
    ).fit(values, classes)


def test_the_forest_is_that_of_scikit_learn_on_the_pixels_of_the_pool(
    pool, scene, by_hand
):
    image, _, _ = scene
    pixels = image.reshape(-1, 5)

    ours = fit_forest(pool, SETTINGS).predict(pixels)

    np.testing.assert_array_equal(ours, by_hand.predict(pixels))
    assert len(np.unique(ours)) == 3


def test_labels_outside_the_pool_change_nothing(make_site, pool, tmp_path):
    site = open_site(
        make_site(
            tmp_path / "area_2", class_names=("corn", "water", "soybeans"), seed=1
        )
    )
    same = draw_pool(site, SIZE, Budget(amount=4), draw=1)
    assert same.tiles == pool.tiles
    path = site.scenes[0].labels_path
    with rasterio.open(path, "r+") as dataset:
        labels = dataset.read(1)
        inside = np.zeros(labels.shape, bool)
        for tile in same.tiles:
            row, col = tile.window.row, tile.window.col
            inside[row : row + SIZE, col : col + SIZE] = True
        labels[~inside] = 5
        dataset.write(labels, 1)
    pixels = np.random.default_rng(0).integers(1, 4000, (500, 5))

    np.testing.assert_allclose(  # threads add the trees up in any order
        fit_forest(same, SETTINGS).predict_proba(pixels),
        fit_forest(pool, SETTINGS).predict_proba(pixels),
        rtol=1e-12,
    )


def test_a_run_of_the_forest_is_scored_on_the_test_pixels(
    pool, scene, by_hand, tmp_path
):
    image, labels, parts = scene
    scored = (labels != 255) & (parts == 2)
    predicted = by_hand.predict(image[scored])
    expected = np.zeros((3, 4), int)
    np.add.at(expected, (labels[scored], predicted), 1)

    run = execute_forest(pool, SETTINGS, tmp_path)

    with np.load(tmp_path / "counts.npz") as counts:
        np.testing.assert_array_equal(counts["test_counts"].sum(axis=0), expected)
    accuracy = (predicted == labels[scored]).mean()
    assert run.metrics["test"]["overall_accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert run.metrics["test"]["num_pixels"] == scored.sum()
    shares = by_hand.predict_proba(image[scored]).round(9)
    units = np.rint(shares.max(axis=1) * 10_000)
    with np.load(tmp_path / "counts.npz") as counts:
        pixels, right, confidence = counts["test_reliability"].sum(axis=(0, 1))
        mapped = counts["test_mapped"].sum(axis=0)
    assert (pixels, confidence) == (scored.sum(), units.sum())
    assert right == (predicted == labels[scored]).sum()
    valid = (image != -9999).all(axis=-1) & (parts == 2)
    found = np.bincount(by_hand.predict(image[valid]), minlength=4)
    np.testing.assert_array_equal(mapped, found)
    assert 0 < run.metrics["test"]["ece"] < 1
    assert run.metrics["val"] is None
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert written == run.metrics
    training = run.metrics["training"]
    assert (training["steps"], training["converged"]) == (0, None)
    assert training["seconds"] > 0
    assert training["label_pixels"] == len(list_pool_pixels(pool, scene)[1])
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "counts.npz"}


def test_a_run_of_the_forest_keeps_the_panel(pool, scene, by_hand, tmp_path):
    image, _, _ = scene
    window = Window(row=100, col=3, height=20, width=64)
    execute_forest(pool, SETTINGS, tmp_path, panel=Panel(scene=0, window=window))

    pixels = image[100:120, 3:67]
    expected = by_hand.predict(pixels.reshape(-1, 5)).reshape(20, 64)
    expected[(pixels == -9999).any(axis=-1)] = 255
    with np.load(tmp_path / "counts.npz") as counts:
        np.testing.assert_array_equal(counts["panel"], expected)
    assert 255 in expected


def test_of_classes_with_equal_votes_the_first_is_predicted():
    class Forest:
        classes_ = np.array([1, 4, 6])

        def predict_proba(self, values):
            # The same sum in another order: a last digit more or less.
            rng = np.random.default_rng(len(values))
            noise = rng.choice([-1e-16, 0, 1e-16], (len(values), 3))
            return np.array([0.4, 0.2, 0.4]) + noise

    classes, confidence = predict_classes(Forest(), np.zeros((50, 2), np.float32))

    assert classes.dtype == np.uint8
    assert (classes == 1).all()
    assert (confidence == 0.4).all()


def test_a_large_pool_is_sampled_by_the_seed(pool, monkeypatch):
    seen = []
    fit = RandomForestClassifier.fit

    def record(self, pixels, classes):
        seen.append((pixels, classes))
        return fit(self, pixels, classes)

    monkeypatch.setattr(forest, "MAX_PIXELS", 300)
    monkeypatch.setattr(forest, "NUM_TREES", 2)
    monkeypatch.setattr(RandomForestClassifier, "fit", record)
    for seed in (4, 4, 5):
        fit_forest(pool, SETTINGS.change(seed=seed))

    first, again, other = seen
    assert first[0].shape == (300, 5)
    assert len(np.unique(first[1])) == 3
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


def test_a_class_that_the_pool_does_not_have_is_not_predicted(area_2):
    pool = draw_pool(area_2, SIZE, Budget(amount=1), draw=0)
    weights = {i for i, pixels in enumerate(pool.class_pixels) if pixels}

    found = fit_forest(pool, SETTINGS)

    assert set(found.classes_) == weights


def test_indices_of_the_bands_that_are_read_are_added(area_2):
    site = replace(
        area_2.select_bands(("red", "nir")),
        derived={
            "ndvi": "(nir - red) / (nir + red)",
            "ratio": "nir / blue",  # blue is not read
            "nir": "nir * 2",  # read already
        },
    )
    values = np.array([[1, 3], [2, -2], [0, 0]], np.float32)

    found = add_indices(values, site)

    np.testing.assert_array_equal(found, [[1, 3, 0.5], [2, -2, 0], [0, 0, 0]])
    assert found.dtype == np.float32


def test_a_forest_with_indices_sees_and_scores_the_same_pixels(area_2, pool, tmp_path):
    derived = {"never": "log(red - 9999999)", "ndvi": "(nir - red) / (nir + red)"}
    site = replace(area_2, derived=derived)
    with_indices = replace(pool, site=site)

    plain = execute_forest(pool, SETTINGS, tmp_path / "plain").metrics
    richer = execute_forest(with_indices, SETTINGS, tmp_path / "richer").metrics

    assert fit_forest(with_indices, SETTINGS).n_features_in_ == len(area_2.bands) + 2
    assert richer["training"]["label_pixels"] == plain["training"]["label_pixels"]
    assert richer["test"]["num_pixels"] == plain["test"]["num_pixels"]


@pytest.fixture(scope="module")
def card(source_path):
    return read_card(source_path)


def test_a_forest_has_a_folder_like_any_run(area_2, card, pool, tmp_path):
    given = {"labels": "4tiles", "draw": 1, "seed": 4, "out_dir": tmp_path / "run"}

    run = train_forest(area_2, card, **given)

    expected = execute_forest(pool, SETTINGS, tmp_path / "by_hand")
    assert run.metrics["test"] == expected.metrics["test"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"run.yaml", "metrics.json", "counts.npz"}
    assert train_forest(area_2, card, **given).metrics == run.metrics  # not again
    reuse = ReuseOptions(bands_from="site")
    for name, other in (
        *(("draw", 0), ("labels", None), ("labels", "5tiles"), ("seed", 5)),
        *(("class_weight_power", 0.0), ("reuse", reuse)),
    ):
        with pytest.raises(ConflictError, match=name):
            train_forest(area_2, card, **given | {name: other})
    again = train_forest(area_2, card, overwrite=True, **given | {"seed": 5})
    assert again.metrics["training"]["label_tiles"] == 4


def test_a_forest_without_a_budget_sees_all_labels(area_2, card, pool, tmp_path):
    run = train_forest(area_2, card, out_dir=tmp_path / "run")

    assert run.metrics["training"]["label_tiles"] > len(pool.tiles)


def test_a_forest_leaves_settings_of_networks_alone(area_2, card, tmp_path):
    given = {"labels": "2tiles", "out_dir": tmp_path / "run"}

    run = train_forest(area_2, card, epochs=3, **given)

    assert train_forest(area_2, card, epochs=5, **given).metrics == run.metrics
    with pytest.raises(UsageError, match="tile_size"):
        train_forest(area_2, card, tile_size=64, **given)
