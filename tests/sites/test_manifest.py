"""Manifests: what is written is checked, and every mistake is named at once."""

from __future__ import annotations

import pytest
import yaml

from cropseg.errors import DataError, DataFileNotFoundError
from cropseg.sites.manifest import read_manifest


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
        ("ignore", "some", "`ignore.*got 'some'"),
        ("ignore", [0, 5, 22], r"\[5, 22\] are in a class and in `ignore`"),
        ("scenes", [], "`scenes`: .*at least 1 item"),
        ("split", {"block_m": 320}, "`split`: needs `block_m`, `train`"),
        ("split", {"regions": "a.geojson", "val": 0.5}, "do not go with `regions`"),
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
        ({"values": [5, 23]}, "label value 23 stands there more than once"),
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
