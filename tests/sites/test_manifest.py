"""Manifests: what is written is checked, and every mistake is named at once."""

from __future__ import annotations

import pytest
import yaml

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.manifest import is_vector_file, read_manifest


@pytest.fixture
def edit(tmp_path, make_site):
    """Return a function that changes the entries of a good manifest."""

    def write(change):
        path = make_site(tmp_path)
        document = yaml.safe_load(path.read_text())
        change(document)
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_a_manifest_is_read_as_it_is_written(edit):
    def change(document):
        document["classes"][1]["from"] = ["spring wheat", "winter wheat"]
        document["ignore"] = [0, 81]
        document["gsd_m"] = 8.944

    manifest = read_manifest(edit(change))

    assert manifest.bands == ("blue", "green", "red", "nir", "swir1")
    assert manifest.classes[1].values == (22, 23)
    assert manifest.classes[1].source_names == ("spring wheat", "winter wheat")
    assert manifest.ignore == (0, 81)
    assert manifest.gsd_m == 8.944
    assert manifest.scenes[0].labels == "scene_0_labels.tif"
    assert manifest.split.block_m == 320


@pytest.mark.parametrize(
    ("place", "key", "nearest"),
    [
        ((), "bnads", "bands"),
        (("scenes", 0), "labls", "labels"),
        (("split",), "blockm", "block_m"),
        (("classes", 0), "colour", "color"),
        (("classes", 2), "form", "from"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(
    edit, place, key, nearest
):
    def change(document):
        for step in place:
            document = document[step]
        document[key] = "x"

    name = ".".join(map(str, (*place, key)))
    message = f"`{name}` is no known key; the nearest is `{nearest}`"
    with pytest.raises(DataError, match=message):
        read_manifest(edit(change))


@pytest.mark.parametrize("key", ["site", "bands", "classes", "scenes"])
def test_a_missing_key_is_named(edit, key):
    with pytest.raises(DataError, match=f"1 problem(.|\n)*`{key}` is missing"):
        read_manifest(edit(lambda document: document.pop(key)))


def test_all_problems_are_listed_at_once(edit):
    def change(document):
        del document["site"]
        document["clases"] = []
        document["classes"][0]["color"] = "green"
        document["scenes"][0]["labls"] = "x.tif"
        document["gsd_m"] = -1

    with pytest.raises(DataError) as error:
        read_manifest(edit(change))

    message = str(error.value)
    assert "has 5 problem(s)" in message
    for place in ("site", "clases", "classes.0.color", "scenes.0.labls", "gsd_m"):
        assert f"`{place}`" in message


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("bands", [], "`bands`: .*at least 1 item"),
        ("bands", ["red", "nir", "red"], "band 'red' stands there more than once"),
        ("site", "  ", "`site`"),
        ("gsd_m", 0, "`gsd_m`: .*greater than 0, got 0"),
        ("ignore", "some", "`ignore`: expected a list, got 'some'"),
        ("bands", "red", "`bands`: expected a list, got 'red'"),
        ("bands", [8], r"`bands\.0`: expected a text, in quotes .*, got 8"),
        ("scenes", ["a.tif"], r"`scenes\.0`: expected keys and values, got 'a\.tif'"),
        ("scenes", [{"image": 5}], r"`scenes\.0\.image`: expected a text"),
        ("ignore", [0, 5, 22], "5, 22 are in a class and in `ignore`"),
        ("scenes", [], "`scenes`: .*at least 1 item"),
        ("split", {"block_m": 320}, "`split`: needs `block_m` with `train`"),
        (
            "split",
            {"regions": "a.geojson", "val": 0.5},
            "`regions` and `train`, `val` and `test` do not go",
        ),
    ],
)
def test_an_entry_that_cannot_be_is_refused(edit, key, entry, message):
    with pytest.raises(DataError, match=message):
        read_manifest(edit(lambda document: document.update({key: entry})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": 0.3}, r"`train` \+ `val` \+ `test` is 1.1; it must be 1"),
        ({"train": 1.4, "val": -0.6}, "split.train"),
        ({"gap_m": 321}, "`gap_m` 321 is larger than `block_m` 320"),
        ({"gap_m": -1}, "split.gap_m"),
        ({"block_m": 0}, "split.block_m"),
    ],
)
def test_a_split_that_cannot_be_is_refused(edit, change, message):
    with pytest.raises(DataError, match=message):
        read_manifest(edit(lambda document: document["split"].update(change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "wheat"}, "class name 'wheat' stands there more than once"),
        ({"values": [5, 23]}, "label value '23' stands there more than once"),
    ],
)
def test_classes_share_no_name_and_no_value(edit, change, message):
    with pytest.raises(DataError, match=message):
        read_manifest(edit(lambda document: document["classes"][0].update(change)))


def test_one_class_is_too_few(edit):
    with pytest.raises(DataError, match=r"`classes`: .*at least 2 items"):
        read_manifest(edit(lambda document: document["classes"].__delitem__(slice(3))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bands: [red, nir\nsite: a", "is not YAML"),
        ("site: a\ndate: 2015-13-45", "is not YAML: month must be"),
        ("site: a\nbands: [red]\nsite: b", "`site` stands there more than once"),
        ("a: {b: 1, c: {d: 1, d: 2}}", "`d` stands there more than once"),
        ("[" * 5000, "nested too deeply"),
        ("- red\n- nir\n", "holds list, not keys and values"),
        ("", "holds NoneType"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text, message):
    path = tmp_path / "site.yaml"
    path.write_text(text)

    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_bytes(b"II*\0\xff\xfe\x80")

    with pytest.raises(DataError, match="Cannot read manifest"):
        read_manifest(path)


@pytest.mark.parametrize("name", ["site.yaml", "."])
def test_a_missing_manifest_is_an_error_that_says_where_it_looked(tmp_path, name):
    with pytest.raises(DataFileNotFoundError, match=r"No manifest at .*looked in"):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field": "crop"}, "`field` goes with polygons or points as `labels` only"),
        ({"edge_buffer_m": 3}, "`edge_buffer_m` goes with polygons"),
        ({"filter": {"year": 2016}}, "`filter` goes with polygons"),
        ({"labels": None, "all_touched": True}, "`all_touched` goes with polygons"),
        ({"labels": "f.gpkg"}, "`f.gpkg` needs `field`"),
        ({"labels": "points.CSV"}, "`points.CSV` needs `field`"),
        (
            {"labels": "f.shp", "field": "crop", "resample_labels": True},
            "`resample_labels` goes with a label raster only",
        ),
        ({"labels": None, "resample_labels": True}, "with a label raster only"),
        ({"bands": ["red", "red"]}, "band 'red' stands there more than once"),
        (
            {"labels": "f.shp", "field": "a", "edge_buffer_m": -1},
            "greater than or equal to 0, got -1",
        ),
        (
            {"labels": "f.csv", "field": "a", "buffer_m": float("inf")},
            "buffer_m`: .*finite",
        ),
        ({"scale": "2x"}, "scenes.0.scale"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(edit, change, message):
    with pytest.raises(DataError, match=message):
        read_manifest(edit(lambda document: document["scenes"][0].update(change)))


def test_all_keys_of_a_scene_are_read(edit):
    entry = {
        "name": "east",
        "image": ["B02.tif", "B03.tif"],
        "bands": ["green", "blue"],
        "nodata": float("nan"),
        "scale": [0.1, 0.2],
        "offset": -3,
        "labels": "f.gpkg",
        "layer": "parcels",
        "field": "crop",
        "filter": {"year": [2016, "2017"], "kind": "a"},
        "all_touched": True,
    }

    (scene,) = read_manifest(
        edit(lambda document: document.update(scenes=[entry]))
    ).scenes

    assert scene.image == ("B02.tif", "B03.tif")
    assert scene.scale == (0.1, 0.2)
    assert scene.offset == -3
    assert scene.nodata != scene.nodata
    assert scene.filter == {"year": (2016, "2017"), "kind": "a"}
    assert scene.model_dump(exclude={"nodata", "image", "scale", "filter"}) == {
        "name": "east",
        "bands": ("green", "blue"),
        "offset": -3,
        "labels": "f.gpkg",
        "layer": "parcels",
        "field": "crop",
        "all_touched": True,
        "alpha_is_band": False,
        "trust_sidecars": False,
        "edge_buffer_m": 0,
        "buffer_m": 0,
        "resample_labels": False,
        "date": None,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 1, "block_m": 320}, "split.folds`: .*greater than or equal to 2"),
        ({"folds": 5, "fold": 5, "block_m": 320}, "`fold` 5 is not one of 0 to 4"),
        ({"folds": 5}, "needs `block_m`"),
        ({"folds": 5, "block_m": 320, "test": 0.2}, "`folds` and `train`, .* do not"),
        ({"folds": 5, "regions": "a.gpkg"}, "`regions` and `folds` do not go together"),
        ({"folds": 5, "block_m": float("inf")}, "split.block_m`: .*finite"),
    ],
)
def test_folds_that_cannot_be_are_refused(edit, change, message):
    with pytest.raises(DataError, match=message):
        read_manifest(edit(lambda document: document.update(split=change)))


@pytest.mark.parametrize(
    "ids", [(0, 1, 2, None), (0, 1, 2, 4), (1, 2, 3, 4), (0, 0, 1, 2)]
)
def test_ids_count_all_classes_from_zero(edit, ids):
    def change(document):
        for entry, class_id in zip(document["classes"], ids, strict=True):
            entry["id"] = class_id

    with pytest.raises(DataError, match="give all classes an `id`, 0 to 3, or none"):
        read_manifest(edit(change))


@pytest.mark.parametrize(
    ("derived", "message"),
    [
        ({"red": "nir * 2"}, "`red` is in `bands` and in `derived`"),
        ({"ndvi": "(nir - rde) / nir"}, "rde"),
        ({"ndvi": "__import__('os')"}, "derived|manifest"),
        ({"a": "nir * 2", "b": "a + 1"}, "`?a`?"),
    ],
)
def test_a_derived_band_that_cannot_be_is_refused(edit, derived, message):
    with pytest.raises(DataError, match=message):
        read_manifest(edit(lambda document: document.update(derived=derived)))


def test_label_values_are_compared_by_their_text(edit):
    def change(document):
        document["classes"][0]["values"] = ["22"]

    with pytest.raises(DataError, match="label value '22' stands there more than once"):
        read_manifest(edit(change))


@pytest.mark.parametrize("name", ["a.gpkg", "A.SHP", "b.c.GeoJSON", "x/y.parquet"])
def test_labels_that_are_polygons_are_told_by_their_ending(name):
    assert is_vector_file(name)
    assert not is_vector_file(f"{name}.tif")


@pytest.mark.parametrize(
    "date", ["2015-09-02", "2015", "summer", "null", "2015-09-02 10:00:00"]
)
def test_a_date_is_any_date_or_text(edit, date):
    path = edit(lambda document: document["scenes"][0].update(date="DATE"))
    path.write_text(path.read_text().replace("DATE", date))

    assert read_manifest(path).model_dump_json()


@pytest.mark.parametrize(
    ("date", "kind"),
    [("&a [*a]", "list"), ("!!binary gICA", "bytes"), ("!!set {a, b}", "set")],
)
def test_a_date_that_cannot_be_written_down_is_refused(edit, date, kind):
    path = edit(lambda document: document["scenes"][0].update(date="DATE"))
    path.write_text(path.read_text().replace("DATE", date))

    with pytest.raises(DataError, match=rf"date`: expected a date .* not a {kind}"):
        read_manifest(path)
