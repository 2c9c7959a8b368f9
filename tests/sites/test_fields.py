"""Fields that cross parts belong to one: train and test never share a field."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from rasterio.features import shapes

from cropseg.sites.classes import IGNORE
from cropseg.sites.fields import assign_fields
from cropseg.sites.grid import Window
from cropseg.sites.scan import scan_site
from cropseg.sites.site import open_site
from cropseg.sites.split import NO_PART, PARTS
from cropseg.sites.vector import NO_FIELD

GAPPED = {"block_m": 320, "gap_m": 60, "train": 0.6, "val": 0.2, "test": 0.2, "seed": 0}
FOLDS = {"block_m": 320, "folds": 4, "fold": 1, "seed": 3}


def label_by_polygons(path, scenes=None, **entry):
    """Give a site of label rasters polygons instead, one for every field."""
    folder = path.parent
    document = yaml.safe_load(path.read_text())
    polygons, codes = [], []
    for scene in document["scenes"]:
        with rasterio.open(folder / scene["labels"]) as dataset:
            # Wheat has two values at random: a field of it is one.
            values = dataset.read(1)
            values[values == 23] = 22
            found = shapes(values, values != 0, transform=dataset.transform)
            crs = dataset.crs
        for polygon, value in found:
            polygons.append(shapely.geometry.shape(polygon))
            codes.append(int(value))
    frame = geopandas.GeoDataFrame({"code": codes}, geometry=polygons, crs=crs)
    frame.to_file(folder / "fields.gpkg")
    for scene in document["scenes"]:
        scene |= {"labels": "fields.gpkg", "field": "code", **entry}
    document["scenes"] = scenes or document["scenes"]
    path.write_text(yaml.safe_dump(document))
    return path


def read_whole(site, scene):
    window = scene.grid.window
    with site.open_scene(scene) as reader:
        labels = reader.read_labels(window)
        fields = reader.read_fields(window)
    return labels, fields, site.split.read_parts(scene.grid, window)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": GAPPED},
        {"split": FOLDS},
        {"split": "regions"},
        {"num_scenes": 2},
        {"gsd_m": 5.0},
        {"degrees": 30, "split": GAPPED},
    ],
    ids=["blocks", "gap", "folds", "regions", "scenes", "resampled", "rotated"],
)
def test_no_field_is_labelled_in_two_parts(tmp_path, make_site, options):
    site = open_site(label_by_polygons(make_site(tmp_path, **options)))
    parts_of_field = {}
    num_crossing = 0

    for scene in site.scenes:
        labels, fields, parts = read_whole(site, scene)
        for number in np.unique(fields[fields != NO_FIELD]):
            inside = (fields == number) & (parts != NO_PART)
            num_crossing += len(np.unique(parts[inside])) > 1
            known = inside & (labels != IGNORE)
            parts_of_field.setdefault(number, set()).update(parts[known].tolist())

    assert num_crossing > 5
    assert max(len(parts) for parts in parts_of_field.values()) == 1
    used = set().union(*parts_of_field.values())
    assert {PARTS.index("train"), PARTS.index("test")} <= used


def test_a_field_belongs_to_the_part_that_holds_most_of_it(tmp_path, make_site):
    site = open_site(label_by_polygons(make_site(tmp_path, num_scenes=2)))
    totals = {}
    for scene in site.scenes:
        _, fields, parts = read_whole(site, scene)
        for number in np.unique(fields[fields != NO_FIELD]):
            counts = np.bincount(parts[fields == number], minlength=3)
            totals[number] = totals.get(number, 0) + counts

    (rule,) = assign_fields(site.scenes, site.split).values()

    for number, counts in totals.items():
        assert rule.parts[number] == counts.argmax()  # a tie: the first part
        assert rule.is_cut[number] == ((counts > 0).sum() > 1)
    assert rule.is_cut.any()
    assert not rule.is_cut.all()


@pytest.mark.parametrize("split", [GAPPED, FOLDS, "regions"])
def test_a_whole_field_has_no_pixel_in_another_part_or_in_none(
    tmp_path, make_site, split
):
    site = open_site(label_by_polygons(make_site(tmp_path, num_scenes=2, split=split)))
    found = {}
    for scene in site.scenes:
        _, fields, parts = read_whole(site, scene)
        for number in np.unique(fields[fields != NO_FIELD]):
            places = np.unique(parts[fields == number]).tolist()
            found.setdefault(number, set()).update(places)

    (rule,) = assign_fields(site.scenes, site.split).values()

    for number, places in found.items():
        is_whole = len(places) == 1 and NO_PART not in places
        assert rule.is_whole[number] == is_whole
    assert rule.is_whole.any()
    assert not rule.is_whole.all()
    if split == GAPPED:  # in one part and in the gap beside it
        assert (~rule.is_whole & ~rule.is_cut).any()


def test_the_smaller_side_is_unknown_and_nothing_else(tmp_path, make_site):
    path = label_by_polygons(make_site(tmp_path, split=GAPPED))
    site = open_site(path)
    (rule,) = assign_fields(site.scenes, site.split).values()
    labels, fields, parts = read_whole(site, site.scenes[0])
    document = yaml.safe_load(path.read_text()) | {"split": None}
    path.write_text(yaml.safe_dump(document))
    whole = open_site(path)
    with whole.open_scene(whole.scenes[0]) as reader:
        expected = reader.read_labels(whole.scenes[0].grid.window)

    taken = (fields != NO_FIELD) & rule.is_cut[fields] & (rule.parts[fields] != parts)
    assert (expected[taken] != IGNORE).sum() > 100
    expected[taken & (expected != IGNORE)] = IGNORE
    lost = (labels == IGNORE) & (expected != IGNORE)
    assert not lost.any()
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("size", [9, 90])
def test_a_window_has_the_labels_of_the_whole(tmp_path, make_site, size):
    site = open_site(label_by_polygons(make_site(tmp_path, split=GAPPED)))
    scene = site.scenes[0]
    labels, _, _ = read_whole(site, scene)

    with site.open_scene(scene) as reader:
        for row in range(-5, scene.grid.height, size):
            for col in range(-5, scene.grid.width, size):
                window = Window(row=row, col=col, height=size, width=size)
                found = reader.read_labels(window)
                inside = window.clip(height=scene.grid.height, width=scene.grid.width)
                expected = labels[inside.slices_in(scene.grid.window)]
                np.testing.assert_array_equal(found[inside.slices_in(window)], expected)


def test_each_file_of_fields_has_a_rule_of_its_own(tmp_path, make_site):
    path = label_by_polygons(make_site(tmp_path, num_scenes=2))
    frame = geopandas.read_file(tmp_path / "fields.gpkg")
    frame.iloc[::-1].to_file(tmp_path / "reversed.gpkg")
    document = yaml.safe_load(path.read_text())
    document["scenes"][1]["labels"] = "reversed.gpkg"
    path.write_text(yaml.safe_dump(document))
    site = open_site(path)

    rules = assign_fields(site.scenes, site.split)

    assert list(rules) == list(site.vector_sources)
    assert len(rules) == 2
    for scene in site.scenes:
        labels, fields, parts = read_whole(site, scene)
        known = labels != IGNORE
        assert known.mean() > 0.4
        rule = rules[scene.labels.source]
        assert (rule.parts[fields[known]] == parts[known]).all()


def test_polygons_beside_a_label_raster_cut_only_themselves(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=2)
    plain = open_site(path)
    with plain.open_scene(plain.scenes[1]) as reader:
        expected = reader.read_labels(plain.scenes[1].grid.window)
    label_by_polygons(path)
    document = yaml.safe_load(path.read_text())
    document["scenes"][1] = {"image": "scene_1.tif", "labels": "scene_1_labels.tif"}
    path.write_text(yaml.safe_dump(document))
    site = open_site(path)

    labels, fields, _ = read_whole(site, site.scenes[1])

    assert (fields == NO_FIELD).all()
    np.testing.assert_array_equal(labels, expected)
    assert len(assign_fields(site.scenes, site.split)) == 1


# rasterio silences this warning in `reproject`, but not safely in several threads.
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_site_is_read_by_several_threads_at_once(tmp_path, make_site):
    site = open_site(label_by_polygons(make_site(tmp_path, num_scenes=2, gsd_m=5.0)))

    def read(_):
        return [
            (tile.pixels.values.sum(), tile.labels.tobytes(), tile.fields.tobytes())
            for tile in scan_site(site, 100)
        ]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(read, range(3)))

    assert found[0] == found[1] == found[2] == read(0)
