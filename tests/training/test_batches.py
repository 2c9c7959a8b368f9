"""Batches: a function of seed and step, and blind to labels that are not given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import rasterio

from cropseg.errors import DataError, UsageError
from cropseg.runtime import keras
from cropseg.sites.budget import Budget, LabelPool, draw_pool, open_pool
from cropseg.sites.classes import IGNORE
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site
from cropseg.training.batches import (
    LaterBatches,
    SourceTiles,
    TileBatches,
    count_class_pixels,
)
from cropseg.training.tile_store import TileStore

SIZE = 32


@pytest.fixture(scope="module")
def pool(area_1):
    return draw_pool(area_1, SIZE, Budget(amount=6), draw=0)


def make_batches(pool, **changes):
    bands = survey_site(pool.site, SIZE).bands
    given = {"batch_size": 2, "seed": 3, "statistics": (bands.mean, bands.std)}
    return TileBatches(pool, **{**given, **changes})


class Recorder(keras.Model):
    """Keeps every batch that `fit` hands to it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def train_step(self, data):
        self.seen.append(tuple(np.array(item) for item in data))
        return {"loss": keras.ops.zeros(())}


def record_fit(batches, *, epochs, steps):
    model = Recorder()
    model.compile(run_eagerly=True)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    return model.seen


def assert_equal(batch, expected):
    for values, others in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(values, others)


def mark_visible(pool, *, size=SIZE):
    """Return the class ids of the scene as the pool shows them, read anew."""
    (scene,) = pool.site.scenes
    with rasterio.open(scene.labels_path) as dataset:
        values = dataset.read(1)
    with rasterio.open(scene.image_path) as dataset:
        valid = (dataset.read() != dataset.nodata).all(axis=0)
    labels = np.full(values.shape, IGNORE, np.uint8)
    for class_id, item in enumerate(pool.site.classes.classes):
        labels[np.isin(values, item.values) & valid] = class_id
    labels[pool.site.split.read_parts(scene.grid, scene.grid.window) != 0] = IGNORE
    inside = np.zeros(values.shape, bool)
    for tile in pool.tiles:
        inside[
            tile.window.row : tile.window.row + size,
            tile.window.col : tile.window.col + size,
        ] = True
    return np.where(inside, labels, IGNORE)


@pytest.mark.parametrize("workers", [1, 2])
def test_batch_k_of_a_fit_is_a_function_of_seed_and_k_for_any_workers(pool, workers):
    expected = make_batches(pool)

    seen = record_fit(make_batches(pool, workers=workers), epochs=2, steps=4)

    assert len(seen) == 8
    for step, batch in enumerate(seen):
        assert_equal(batch, expected[step])


def test_a_batch_does_not_depend_on_what_was_asked_for_before(pool):
    batches = make_batches(pool)
    forwards = [batches[step] for step in range(4)]

    for step in (3, 1, 0, 2):
        assert_equal(make_batches(pool)[step], forwards[step])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_that_goes_on_sees_the_batches_that_were_to_come(pool, workers):
    expected = make_batches(pool)

    stream = make_batches(pool, workers=workers)

    seen = record_fit(LaterBatches(stream, 5), epochs=1, steps=3)

    for step, batch in enumerate(seen, start=5):
        assert_equal(batch, expected[step])


def test_other_steps_and_other_seeds_give_other_batches(pool):
    batches, others = make_batches(pool), make_batches(pool, seed=4)

    images = [batches[0][0], batches[1][0], others[0][0], others[1][0]]

    for index, image in enumerate(images):
        for other in images[:index]:
            assert (image != other).any()


def test_a_batch_has_raw_values_and_class_ids(pool):
    images, labels = make_batches(pool, batch_size=3)[0]

    assert (images.shape, images.dtype) == ((3, SIZE, SIZE, 5), np.float32)
    assert (labels.shape, labels.dtype) == ((3, SIZE, SIZE), np.uint8)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, IGNORE}
    mean = survey_site(pool.site, SIZE).bands.mean
    for band in range(5):
        assert abs(np.median(images[..., band]) / mean[band] - 1) < 0.8


@pytest.mark.parametrize("split", ["blocks", "regions"])
def test_labels_outside_the_pool_and_outside_train_are_unknown(
    make_site, tmp_path, split
):
    site = open_site(make_site(tmp_path / "area", split=split))
    pool = draw_pool(site, SIZE, Budget(amount=5), draw=1)
    visible = mark_visible(pool)
    store = TileStore(pool)

    found = 0
    for index, tile in enumerate(pool.tiles):
        labels = store.get(index).labels
        window = tile.window.grow(store.margin)
        expected = np.full(labels.shape, IGNORE, np.uint8)
        inside = window.clip(height=visible.shape[0], width=visible.shape[1])
        expected[inside.slices_in(window)] = visible[
            inside.row : inside.row_end, inside.col : inside.col_end
        ]
        np.testing.assert_array_equal(labels, expected)
        found += int((labels[store.margin : -store.margin] != IGNORE).sum())
    assert found > 0


def test_the_labels_of_a_neighbour_in_the_pool_are_visible_in_the_margin(area_1):
    everything = open_pool(area_1, SIZE)
    first = next(
        tile
        for tile in everything.tiles
        if any(is_right_of(tile, other) for other in everything.tiles)
    )
    second = next(tile for tile in everything.tiles if is_right_of(first, tile))
    pair = dataclasses.replace(everything, tiles=(first, second))
    alone = dataclasses.replace(everything, tiles=(first,))
    stores = TileStore(alone), TileStore(pair)
    margin = stores[0].margin

    lonely, paired = (store.get(0).labels for store in stores)

    assert (lonely[:, -margin:] == IGNORE).all()
    np.testing.assert_array_equal(lonely[:, :-margin], paired[:, :-margin])
    np.testing.assert_array_equal(
        paired[margin:-margin, -margin:],
        stores[1].get(1).labels[margin:-margin, margin : 2 * margin],
    )


def is_right_of(tile, other):
    return (other.window.row, other.window.col) == (
        tile.window.row,
        tile.window.col + SIZE,
    )


def test_pixels_without_data_hold_the_mean_of_their_band(area_1):
    everything = open_pool(area_1, SIZE)
    striped = tuple(tile for tile in everything.tiles if tile.window.col == 32)
    batches = make_batches(dataclasses.replace(everything, tiles=striped))
    mean = np.array(survey_site(area_1, SIZE).bands.mean, np.float32)

    found = 0
    for step in range(20):
        images, labels = batches[step]
        unknown = (images == mean).all(axis=-1)
        assert (labels[unknown] == IGNORE).all()
        assert (images > -5000).all()  # the file holds -9999 there
        found += unknown.sum()
    assert found > 0


def test_no_batch_shows_a_class_that_the_pool_does_not_have(area_1):
    everything = open_pool(area_1, SIZE)
    tile = everything.tiles[0]
    labels = mark_visible(dataclasses.replace(everything, tiles=(tile,)))
    alone = LabelPool(site=area_1, tile_size=SIZE, tiles=(tile,))

    seen = np.concatenate([make_batches(alone)[step][1].ravel() for step in range(20)])

    assert set(np.unique(seen)) <= set(np.unique(labels))


def test_sampling_by_class_raises_the_share_of_a_rare_class(make_site, tmp_path):
    manifest_path = make_site(tmp_path / "area")
    make_water_rare(tmp_path / "area" / "scene_0_labels.tif")
    pool = open_pool(open_site(manifest_path), SIZE)
    natural = np.array(pool.class_pixels) / sum(pool.class_pixels)
    rare = pool.site.classes.names.index("water")
    assert 0 < natural[rare] < 0.03

    batches = make_batches(pool, batch_size=8)
    seen = np.concatenate([batches[step][1].ravel() for step in range(40)])
    counts = np.bincount(seen[seen != IGNORE], minlength=4)

    assert counts[rare] / counts.sum() > 2.5 * natural[rare]
    assert (counts[np.arange(4) != rare] / counts.sum() > 0.1).all()


def make_water_rare(labels_path):
    """Leave water in two tiles only, and call it soybeans elsewhere."""
    with rasterio.open(labels_path, "r+") as dataset:
        labels = dataset.read(1)
        elsewhere = np.ones(labels.shape, bool)
        elsewhere[64:96, 64:128] = False
        labels[(labels == 111) & elsewhere] = 5
        dataset.write(labels, 1)


def test_two_stores_read_the_same_whether_tiles_are_kept_or_not(pool, monkeypatch):
    kept = TileStore(pool)
    monkeypatch.setattr("cropseg.training.tile_store._CACHE_BYTES", 0)
    read_again = TileStore(pool)

    for index in (0, 1, 0):
        tile, other = kept.get(index), read_again.get(index)
        np.testing.assert_array_equal(tile.values, other.values)
        np.testing.assert_array_equal(tile.labels, other.labels)
    assert kept.get(0) is kept.get(0)
    assert read_again.get(0) is not read_again.get(0)


def test_the_parts_of_a_tile_that_are_not_train_are_never_seen(area_1):
    pool = open_pool(area_1, SIZE)
    (scene,) = area_1.scenes
    store = TileStore(pool)
    mixed = 0

    for index, tile in enumerate(pool.tiles):
        window = Window(
            row=tile.window.row, col=tile.window.col, height=SIZE, width=SIZE
        )
        parts = area_1.split.read_parts(scene.grid, window)
        inner = slice(store.margin, store.margin + SIZE)
        labels = store.get(index).labels[inner, inner]
        assert (labels[parts != PARTS.index("train")] == IGNORE).all()
        mixed += len(np.unique(parts)) > 1
    assert mixed > 0


@pytest.fixture(scope="module")
def other_pool(make_site, tmp_path_factory):
    """Return the labels of a site with other classes and much brighter images."""
    folder = tmp_path_factory.mktemp("sites") / "other"
    names = ("water", "corn", "wheat")
    site = open_site(make_site(folder, class_names=names, gain=5.0, seed=3))
    return open_pool(site, SIZE)


def map_classes(**ids):
    """Return the class ids of the other site's classes in those of area 1."""
    table = np.full(256, IGNORE, np.uint8)
    for name, class_id in ids.items():
        table[("water", "corn", "wheat").index(name)] = class_id
    return table


WHEAT, WATER = 1, 3


@pytest.fixture
def make_source_tiles(other_pool):
    def make(**changes):
        ids = map_classes(wheat=WHEAT, water=WATER)
        return SourceTiles(
            **{"pool": other_pool, "class_ids": ids, "share": 0.5, **changes}
        )

    return make


def count_bright(images, pool):
    """Count the tiles of a batch that come from the brighter site."""
    mean = np.mean(survey_site(pool.site, SIZE).bands.mean)
    return int((images.mean(axis=(1, 2, 3)) > 2 * mean).sum())


@pytest.mark.parametrize(
    ("share", "batch_size", "expected"), [(0.5, 4, 2), (0.01, 4, 1), (0.99, 4, 3)]
)
def test_every_batch_has_its_share_of_source_tiles_after_those_of_the_site(
    pool, make_source_tiles, share, batch_size, expected
):
    source_tiles = make_source_tiles(share=share)
    own = make_batches(pool, batch_size=batch_size)
    joint = make_batches(pool, batch_size=batch_size, source_tiles=source_tiles)

    for step in range(3):
        images, labels = joint[step]
        count = batch_size - expected
        assert_equal(
            (images[:count], labels[:count]), (item[:count] for item in own[step])
        )
        assert count_bright(images[count:], pool) == expected
        assert count_bright(images[:count], pool) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_joint_batch_k_is_a_function_of_seed_and_k_for_any_workers(
    pool, make_source_tiles, workers
):
    given = {"batch_size": 3, "source_tiles": make_source_tiles()}
    expected = make_batches(pool, **given)

    seen = record_fit(make_batches(pool, workers=workers, **given), epochs=1, steps=4)

    for step in (3, 1, 0, 2):
        assert_equal(seen[step], expected[step])


def test_source_tiles_have_the_classes_of_the_site_and_no_others(
    pool, make_source_tiles
):
    batches = make_batches(pool, batch_size=4, source_tiles=make_source_tiles())

    labels = np.concatenate([batches[step][1][2:] for step in range(20)])

    assert set(np.unique(labels)) == {WHEAT, WATER, IGNORE}
    assert (labels == IGNORE).mean() > 0.2  # corn, a third of the other site


def test_source_tiles_without_a_class_of_the_site_are_never_drawn(
    other_pool, make_source_tiles
):
    assert not all(tile.train_pixels[2] for tile in other_pool.tiles)
    ids = map_classes(wheat=WHEAT)
    batches = make_batches(other_pool, source_tiles=make_source_tiles(class_ids=ids))

    labels = np.stack([batches[step][1][1] for step in range(40)])

    inside = labels[:, 8:-8, 8:-8]  # views move by less than a quarter
    assert (labels == WHEAT).any(axis=(1, 2)).mean() > 0.9
    assert set(np.unique(inside)) <= {WHEAT, IGNORE}


def test_class_frequencies_are_those_of_both_sites_by_their_shares(
    pool, make_source_tiles
):
    source_tiles = make_source_tiles(share=0.25)
    own = np.array(pool.class_pixels) / sum(pool.class_pixels)
    water, _, wheat = source_tiles.pool.class_pixels
    theirs = np.array([0, wheat, 0, water]) / (wheat + water)

    counts = count_class_pixels(pool, source_tiles)

    np.testing.assert_allclose(
        counts / counts.sum(), 0.75 * own + 0.25 * theirs, atol=1e-5
    )
    np.testing.assert_array_equal(count_class_pixels(pool), pool.class_pixels)


def test_a_site_that_shares_no_class_cannot_be_mixed_in(pool, make_source_tiles):
    with pytest.raises(DataError, match="No label of other is of a class of this site"):
        make_batches(pool, source_tiles=make_source_tiles(class_ids=map_classes()))


def test_a_batch_of_one_tile_cannot_mix_two_sites(pool, make_source_tiles):
    with pytest.raises(UsageError, match="--batch-size of 2"):
        make_batches(pool, batch_size=1, source_tiles=make_source_tiles())


@pytest.mark.parametrize(
    "change",
    [{"share": 0.0}, {"share": 1.0}, {"class_ids": np.zeros(256, np.uint8)}],
)
def test_source_tiles_that_make_no_sense_are_refused(make_source_tiles, change):
    with pytest.raises(UsageError, match=r"share of source tiles|with 255 at 255"):
        make_source_tiles(**change)
