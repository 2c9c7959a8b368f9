"""Evidence: labels are counted, scores set side by side, features measured once."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from rasterio.features import shapes

from cropseg.errors import DataError, ModelError
from cropseg.evaluation.scores import compute_scores
from cropseg.inference.features import measure_features
from cropseg.models.card import CardClass, Lineage
from cropseg.sites.budget import draw_pool, open_pool, parse_budget
from cropseg.sites.site import open_site
from cropseg.sites.statistics import survey_site
from cropseg.transfer.evidence import count_labels, measure_evidence
from cropseg.transfer.source import Source

TILE = 32


def row(name, iou):
    return {"name": name, "iou": iou}


@pytest.fixture(scope="module")
def bundle(area_1, build_bundle):
    """A network with random weights and what it makes of area 1."""
    bands = survey_site(area_1, TILE).bands
    built = build_bundle(
        mean=bands.mean,
        std=bands.std,
        seed=2,
        site="area-1",
        classes=tuple(
            CardClass(name=name, color="#000000", train_pixels=1)
            for name in area_1.classes.names
        ),
        bands=area_1.bands,
        gsd_m=area_1.gsd_m,
        lineage=Lineage(mode="train"),
        fingerprint=area_1.fingerprint,
        scores={
            "val": {"classes": [row("water", 0.1), row("soybeans", 0.1)]},
            "test": {"classes": [row("water", 0.9), row("soybeans", 0.5)]},
        },
    )
    sized = replace(built, card=built.card.model_copy(update={"tile_size": TILE}))
    tiles = open_pool(area_1, TILE).tiles
    features = measure_features(sized, area_1, tiles)
    card = sized.card.model_copy(update={"features": features})
    return replace(sized, card=card)


@pytest.fixture
def make_source(bundle):
    """Return a function that makes a source, which counts how often it is loaded."""

    def make(**changes):
        card = bundle.card.model_copy(update=changes)
        loads = []

        def load():
            loads.append(1)
            return replace(bundle, card=card)

        source = Source(title="m", sha256="0", card=card, run_dir=None, load=load)
        return source, loads

    return make


@pytest.fixture
def target(area_2, area_1):
    return area_2.select_bands(area_1.bands)


@pytest.fixture(autouse=True)
def scores(monkeypatch):
    """Replace the score without training: 3 of 4 pixels of each class are right."""
    asked = []

    def score_zero_shot(source, pool, *, reuse=None):
        asked.append((source, pool, reuse))
        names = pool.site.classes.names
        counts = np.array(pool.class_pixels)
        table = np.zeros((len(names), len(names) + 1), np.int64)
        table[range(len(names)), range(len(names))] = 4 * counts * 3 // 4
        table[:, -1] = 4 * counts - table.sum(axis=1)
        return compute_scores(table, names)

    module = types.ModuleType("cropseg.transfer.zero_shot")
    module.score_zero_shot = score_zero_shot
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_labels_are_counted_by_class(target):
    pool = draw_pool(target, TILE, parse_budget("5tiles"), draw=1)
    labels = count_labels(pool)
    assert tuple(item.name for item in labels) == ("corn", "water", "soybeans")
    assert tuple(item.pixels for item in labels) == pool.class_pixels
    for index, item in enumerate(labels):
        assert item.tiles == sum(tile.train_pixels[index] > 0 for tile in pool.tiles)
        assert item.fields is None


def test_fields_are_counted_by_class(make_site, tmp_path):
    path = make_site(tmp_path)
    document = yaml.safe_load(path.read_text())
    (scene,) = document["scenes"]
    with rasterio.open(tmp_path / scene["labels"]) as dataset:
        values = dataset.read(1)
        values[values == 23] = 22
        found = shapes(values, values != 0, transform=dataset.transform)
    polygons, codes = zip(
        *((shapely.geometry.shape(shape), int(code)) for shape, code in found),
        strict=True,
    )
    frame = geopandas.GeoDataFrame({"code": codes}, geometry=list(polygons))
    frame.set_crs("EPSG:32614").to_file(tmp_path / "fields.gpkg")
    scene |= {"labels": "fields.gpkg", "field": "code"}
    path.write_text(yaml.safe_dump(document))
    site = open_site(path)
    pool = draw_pool(site, TILE, parse_budget("9fields"), draw=0)
    labels = count_labels(pool)
    assert sum(item.fields for item in labels) == pool.num_fields == 9
    classes = {field.key: field.class_id for field in survey_site(site, TILE).fields}
    for index, item in enumerate(labels):
        assert item.fields == sum(classes[key] == index for key in pool.fields)


def test_the_score_is_set_against_that_of_the_same_classes_in_area_1(
    scores, make_source, target
):
    source, loads = make_source()
    pool = draw_pool(target, TILE, parse_budget("6tiles"), draw=0)
    evidence = measure_evidence(source, pool)
    assert evidence.shared == ("water", "soybeans")
    assert evidence.new == ("corn",)
    scored = evidence.zero_shot
    assert (scored.miou, scored.own_miou, scored.num_classes) == (0.75, 0.7, 2)
    known = pool.class_pixels[1:]
    assert scored.majority_miou == max(known) / sum(pool.class_pixels) / 2
    assert evidence.shared_share == pytest.approx(sum(known) / sum(pool.class_pixels))
    assert evidence.num_tiles == 6
    assert len(loads) == 1
    assert scores[0][1] is pool


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"val": {"classes": [row("water", 0.4), row("soybeans", 0.2)]}}, 0.3),
        ({"test": {"classes": [row("water", None), row("soybeans", 0.2)]}}, 0.2),
        ({"test": None, "val": {"classes": [row("water", 0.4)]}}, 0.4),
        ({"test": {"classes": [row("wheat", 0.4)]}}, None),
        ({}, None),
    ],
)
def test_the_score_of_area_1_is_that_of_test_or_val_or_unknown(
    make_source, target, given, own
):
    source, _ = make_source(scores=given)
    pool = draw_pool(target, TILE, parse_budget("6tiles"), draw=0)
    assert measure_evidence(source, pool).zero_shot.own_miou == (
        own if own is None else pytest.approx(own)
    )


def test_several_classes_of_the_source_count_as_their_mean(
    make_source, make_site, area_1, tmp_path
):
    names = ("corn", "water", "soybeans")
    path = make_site(tmp_path, class_names=names, seed=1)
    document = yaml.safe_load(path.read_text())
    document["classes"][1]["from"] = ["water", "soybeans"]
    document["classes"][2]["from"] = ["wheat"]
    path.write_text(yaml.safe_dump(document))
    site = open_site(path).select_bands(area_1.bands)
    source, _ = make_source(
        scores={
            "test": {
                "classes": [row("water", 0.9), row("soybeans", 0.5), row("wheat", 0.1)]
            }
        }
    )
    pool = draw_pool(site, TILE, parse_budget("6tiles"), draw=0)
    own = measure_evidence(source, pool).zero_shot.own_miou
    assert own == pytest.approx((0.7 + 0.1) / 2)


def test_a_model_that_cannot_be_scored_untrained_is_told_by_other_signals(
    make_source, target, monkeypatch
):
    def refuse(*_, **__):
        raise ModelError("one class of the source is several of the site")

    module = sys.modules["cropseg.transfer.zero_shot"]
    monkeypatch.setattr(module, "score_zero_shot", refuse)
    evidence = measure_evidence(make_source()[0], open_pool(target, TILE))
    assert evidence.zero_shot is None
    assert evidence.feature_distance is not None


def test_features_and_bands_do_not_depend_on_the_budget(make_source, target):
    found = [
        measure_evidence(
            make_source()[0], draw_pool(target, TILE, parse_budget(budget), draw=0)
        )
        for budget in ("2tiles", "6tiles")
    ]
    assert found[0].feature_distance == found[1].feature_distance
    assert found[0].band_distances == found[1].band_distances
    assert set(found[0].band_distances) == set(target.bands)
    assert found[0].num_pixels < found[1].num_pixels


def test_the_area_itself_is_near_and_another_sensor_is_far(
    make_source, make_site, area_1, tmp_path
):
    source, _ = make_source()
    same = measure_evidence(source, open_pool(area_1, TILE))
    assert same.feature_distance == 0
    assert same.half_distance == source.card.features.half_distance
    assert max(same.band_distances.values()) == pytest.approx(0)
    other = open_site(make_site(tmp_path, gain=2.5)).select_bands(area_1.bands)
    away = measure_evidence(source, open_pool(other, TILE))
    assert away.feature_distance > 1
    assert min(away.band_distances.values()) > 1


@pytest.mark.parametrize("why", ["no features in the card", "other bands"])
def test_features_that_cannot_be_compared_are_not(make_source, area_2, why):
    if why == "other bands":
        source, _ = make_source()
        pool = open_pool(area_2, TILE)
    else:
        source, _ = make_source(features=None)
        pool = open_pool(area_2.select_bands(source.card.bands), TILE)
    evidence = measure_evidence(source, pool)
    assert evidence.feature_distance is None
    assert (evidence.half_distance is None) == (why == "no features in the card")


def test_a_pool_without_a_label_is_refused(make_source, target):
    pool = replace(open_pool(target, TILE), tiles=())
    with pytest.raises(DataError, match="nothing can be advised"):
        measure_evidence(make_source()[0], pool)


def test_labels_of_new_classes_alone_give_no_score(scores, make_source, target):
    pool = open_pool(target, TILE)
    only_corn = tuple(
        replace(tile, train_pixels=(tile.train_pixels[0], 0, 0))
        for tile in pool.tiles
        if tile.train_pixels[0]
    )
    evidence = measure_evidence(make_source()[0], replace(pool, tiles=only_corn))
    assert evidence.zero_shot is None
    assert evidence.shared_share == 0
    assert not scores
