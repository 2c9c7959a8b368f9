"""Budgets: nested within a draw, different between draws, never too large."""

from __future__ import annotations

import math
from itertools import pairwise

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from rasterio.features import shapes

from cropseg.errors import DataError, UsageError
from cropseg.sites.budget import (
    Budget,
    check_budgets,
    draw_pool,
    list_drawable_fields,
    list_drawable_tiles,
    open_pool,
    parse_budget,
    parse_budgets,
)
from cropseg.sites.classes import IGNORE
from cropseg.sites.holdout import hold_out
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site

TILE = 32


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_site):
    return open_site(make_site(tmp_path_factory.mktemp("area_2")))


def get_places(pool):
    return [(tile.scene, tile.window.row, tile.window.col) for tile in pool.tiles]


@pytest.mark.parametrize("text", ["4tiles", " 4tiles\n", "004tiles"])
def test_a_budget_is_a_number_and_a_unit(text):
    budget = parse_budget(text)

    assert budget == Budget(amount=4, unit="tiles")
    assert str(budget) == "4tiles"


@pytest.mark.parametrize(
    "text", ["", "4", "tiles", "0tiles", "-4tiles", "4.5tiles", "4acres", "4 Tiles"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="such as 4tiles; got") as error:
        parse_budget(text)

    assert repr(text) in str(error.value)


def test_budgets_are_sorted_by_amount():
    budgets = parse_budgets(["16tiles", "4tiles", "100tiles"])

    assert [budget.amount for budget in budgets] == [4, 16, 100]


def test_a_small_budget_is_among_the_tiles_of_a_larger_one(site):
    pools = [
        get_places(draw_pool(site, TILE, Budget(amount=amount), draw=3))
        for amount in (2, 4, 9)
    ]

    assert [len(set(places)) for places in pools] == [2, 4, 9]
    assert set(pools[0]) < set(pools[1]) < set(pools[2])


def test_draws_differ_and_each_can_be_repeated(site):
    draws = [
        frozenset(get_places(draw_pool(site, TILE, Budget(amount=6), draw=draw)))
        for draw in (0, 1, 2, 0)
    ]

    assert draws[0] == draws[3]
    assert len(set(draws)) == 3


def test_only_tiles_labelled_on_a_quarter_are_drawn(site):
    survey = survey_site(site, TILE)

    drawable = list_drawable_tiles(survey)

    assert 0 < len(drawable) < len(survey.tiles)
    for tile in survey.tiles:
        is_enough = sum(tile.train_pixels) >= 0.25 * TILE**2
        assert (tile in drawable) == is_enough


def test_a_pool_counts_the_labels_that_it_shows(site):
    pool = draw_pool(site, TILE, Budget(amount=5), draw=1)

    counted = np.sum([tile.train_pixels for tile in pool.tiles], axis=0)
    assert pool.class_pixels == tuple(counted)
    assert pool.classes_seen == tuple(
        name for name, count in zip(site.classes.names, counted, strict=True) if count
    )


def test_the_whole_pool_holds_all_training_labels(site):
    pool = open_pool(site, TILE)

    assert pool.class_pixels == tuple(survey_site(site, TILE).class_pixels[0])
    assert pool.classes_seen == site.classes.names


def test_a_class_that_was_not_drawn_is_not_seen(site):
    pools = [draw_pool(site, 16, Budget(amount=1), draw=draw) for draw in range(9)]

    assert min(len(pool.classes_seen) for pool in pools) < len(site.classes)


def test_a_budget_as_large_as_the_pool_is_the_pool(site):
    size = len(list_drawable_tiles(survey_site(site, TILE)))

    assert len(draw_pool(site, TILE, Budget(amount=size), draw=0).tiles) == size


def test_a_budget_larger_than_the_pool_names_the_size_of_the_pool(site):
    size = len(list_drawable_tiles(survey_site(site, TILE)))
    message = rf"{size + 1}tiles .*has {size} tiles"

    with pytest.raises(DataError, match=message) as error:
        draw_pool(site, TILE, Budget(amount=size + 1), draw=0)

    assert error.value.exit_code == 3


def test_all_budgets_that_are_too_large_are_named(site):
    budgets = [Budget(amount=amount) for amount in (2, 500, 900)]

    with pytest.raises(DataError, match="budget of 500tiles, 900tiles was"):
        check_budgets(budgets, site, TILE)


@pytest.fixture(scope="module")
def field_site(tmp_path_factory, make_site):
    """Return a site of two scenes whose fields are polygons in one file."""
    folder = tmp_path_factory.mktemp("fields")
    path = make_site(folder, num_scenes=2)
    document = yaml.safe_load(path.read_text())
    rows = []
    for scene in document["scenes"]:
        with rasterio.open(folder / scene["labels"]) as dataset:
            values = dataset.read(1)
            values[values == 23] = 22
            found = shapes(values, values != 0, transform=dataset.transform)
        rows += [(shapely.geometry.shape(shape), int(code)) for shape, code in found]
        scene |= {"labels": "fields.gpkg", "field": "code"}
    polygons, codes = zip(*rows, strict=True)
    frame = geopandas.GeoDataFrame({"code": codes}, geometry=list(polygons))
    frame.set_crs("EPSG:32614").to_file(folder / "fields.gpkg")
    path.write_text(yaml.safe_dump(document))
    return open_site(path)


def read_shown(site, pool):
    """Return the labels that a pool shows, and the fields, of every scene, whole."""
    shown = []
    for index, scene in enumerate(site.scenes):
        window = scene.grid.window
        with site.open_scene(scene) as reader:
            _, labels = reader.read_valid_labels(window)
            labels[~pool.read_visible(reader, index, window)] = IGNORE
            parts = site.split.read_parts(scene.grid, window)
            assert (parts[labels != IGNORE] == PARTS.index("train")).all()
            shown.append((labels, reader.read_fields(window)))
    return shown


def count_shown(site, pool):
    known = [labels[labels != IGNORE] for labels, _ in read_shown(site, pool)]
    return np.bincount(np.concatenate(known), minlength=len(site.classes))


@pytest.mark.parametrize("amount", [1, 7, 30])
def test_a_budget_of_fields_shows_so_many_fields_and_all_of_them(field_site, amount):
    budget = Budget(amount=amount, unit="fields")
    pool = draw_pool(field_site, TILE, budget, draw=2)

    shown = read_shown(field_site, pool)
    numbers = {n for labels, f in shown for n in np.unique(f[labels != IGNORE])}

    assert len(numbers) == pool.num_fields == amount
    assert tuple(count_shown(field_site, pool)) == pool.class_pixels
    for (labels, _), (_, fields), (all_labels, _) in zip(
        shown, shown, read_shown(field_site, open_pool(field_site, TILE)), strict=True
    ):
        mine = np.isin(fields, list(numbers))
        np.testing.assert_array_equal(labels[mine], all_labels[mine])


@pytest.mark.parametrize("unit", ["fields", "ha"])
def test_budgets_of_fields_are_nested(field_site, unit):
    pools = [
        draw_pool(field_site, TILE, Budget(amount=amount, unit=unit), draw=4)
        for amount in (3, 20, 60)
    ]

    assert pools[0].fields < pools[1].fields < pools[2].fields
    shown = [read_shown(field_site, pool) for pool in pools]
    for small, large in pairwise(shown):
        for (few, _), (many, _) in zip(small, large, strict=True):
            np.testing.assert_array_equal(few[few != IGNORE], many[few != IGNORE])


@pytest.mark.parametrize("amount", [1, 13, 80])
def test_a_budget_in_ha_takes_whole_fields_until_it_is_reached(field_site, amount):
    pool = draw_pool(field_site, TILE, Budget(amount=amount, unit="ha"), draw=0)
    sizes = {f.key: f.pixels[0] for f in survey_site(field_site, TILE).fields}
    pixel_ha = 80 / 10_000

    area_ha = sum(pool.class_pixels) * pixel_ha

    assert area_ha >= amount
    largest = max(sizes[key] for key in pool.fields)
    assert area_ha - largest * pixel_ha < amount
    assert sum(pool.class_pixels) == sum(sizes[key] for key in pool.fields)


def test_a_budget_in_ha_of_pixels_is_met_to_the_row(site):
    pixel_ha = 80 / 10_000
    before = None
    for amount in (1, 4, 5, 40):
        pool = draw_pool(site, TILE, Budget(amount=amount, unit="ha"), draw=1)

        counts = count_shown(site, pool)
        assert tuple(counts) == pool.class_pixels
        excess_ha = counts.sum() * pixel_ha - amount
        assert 0 <= excess_ha < TILE * pixel_ha
        ((labels, _),) = read_shown(site, pool)
        if before is not None:
            assert (labels[before != IGNORE] == before[before != IGNORE]).all()
        before = labels


def test_fields_are_refused_where_labels_are_pixels(site):
    with pytest.raises(DataError, match=r"5fields .*are pixels and have no fields"):
        draw_pool(site, TILE, Budget(amount=5, unit="fields"), draw=0)

    assert open_pool(site, TILE).num_fields is None


@pytest.mark.parametrize("unit", ["fields", "ha"])
def test_more_fields_or_ha_than_there_are_is_refused(field_site, unit):
    with pytest.raises(DataError, match=rf"9999{unit} .*has [\d,.]+ {unit}\. Ask"):
        draw_pool(field_site, TILE, Budget(amount=9999, unit=unit), draw=0)


def test_an_area_is_not_rounded_up_to_what_is_refused(field_site):
    fields = list_drawable_fields(survey_site(field_site, TILE))
    area_ha = sum(field.pixels[0] for field in fields) * 80 / 10_000

    with pytest.raises(DataError) as error:
        draw_pool(
            field_site, TILE, Budget(amount=math.ceil(area_ha), unit="ha"), draw=0
        )

    assert f"has {math.floor(area_ha * 10) / 10} ha." in str(error.value)


def test_units_are_not_mixed():
    with pytest.raises(UsageError, match="in fields and tiles cannot be compared"):
        parse_budgets(["4tiles", "20fields"])


def test_a_pool_of_two_files_knows_whose_field_it_shows(tmp_path, make_site):
    """Fields have numbers of their file: the same number is another field in each."""
    path = make_site(tmp_path, num_scenes=2)
    document = yaml.safe_load(path.read_text())
    for index, scene in enumerate(document["scenes"]):
        with rasterio.open(tmp_path / scene["labels"]) as dataset:
            values = dataset.read(1)
            values[values == 23] = 22
            found = list(shapes(values, values != 0, transform=dataset.transform))
        frame = geopandas.GeoDataFrame(
            {"code": [int(code) for _, code in found]},
            geometry=[shapely.geometry.shape(shape) for shape, _ in found],
            crs="EPSG:32614",
        )
        frame.to_file(tmp_path / f"fields_{index}.gpkg")
        scene |= {"labels": f"fields_{index}.gpkg", "field": "code"}
    path.write_text(yaml.safe_dump(document))
    site = open_site(path)

    pool = draw_pool(site, TILE, Budget(amount=12, unit="fields"), draw=0)
    shown = read_shown(site, pool)

    assert len(site.vector_sources) == 2
    found = {
        (index, number)
        for index, (labels, fields) in enumerate(shown)
        for number in np.unique(fields[labels != IGNORE]).tolist()
    }
    assert found == pool.fields
    assert {index for index, _ in found} == {0, 1}
    assert tuple(count_shown(site, pool)) == pool.class_pixels


@pytest.mark.parametrize(("amount", "expected"), [(2, 1), (9, 2)])
def test_a_quarter_of_the_fields_can_be_held_out(field_site, amount, expected):
    budget = Budget(amount=amount, unit="fields")
    pool = draw_pool(field_site, TILE, budget, draw=0)

    fitted, held = hold_out(pool)

    assert held.num_fields == len(held.fields) == expected
    assert fitted.fields | held.fields == pool.fields
    assert not fitted.fields & held.fields
    total = np.add(fitted.class_pixels, held.class_pixels)
    np.testing.assert_array_equal(total, pool.class_pixels)


def test_a_single_field_cannot_be_parted(field_site):
    pool = draw_pool(field_site, TILE, Budget(amount=1, unit="fields"), draw=0)

    with pytest.raises(DataError, match="1 field; expected 2"):
        hold_out(pool)
