"""Which scenes a batch has: files, folders, patterns, lists."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cropseg.errors import (
    DataError,
    DataFileNotFoundError,
    UnsafeFileError,
    UsageError,
)
from cropseg.inference.outputs.layers import list_layers
from cropseg.inference.outputs.writer import write_layer
from cropseg.inference.scenes.scene_list import MAP_ENDINGS, SceneRequest, list_scenes
from cropseg.sites.raster import open_raster


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with three scenes in `scenes`."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.tif", "a.TIFF", "c.tif"):
        (tmp_path / "scenes").mkdir(exist_ok=True)
        (tmp_path / "scenes" / name).touch()
    return tmp_path


def list_names(*texts, **options):
    return [request.name for request in list_scenes(texts, **options)]


def list_files(*texts, **options):
    return [request.files for request in list_scenes(texts, **options)]


def test_a_file_is_a_scene_named_like_it_and_need_not_be_there():
    (request,) = list_scenes([Path("scenes/missing.2024.tif")])
    assert request == SceneRequest(
        name="missing.2024", files=("scenes/missing.2024.tif",)
    )
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - our own


def test_a_folder_is_its_geotiffs_in_the_order_of_their_names(here):
    for name in (".hidden.tif", "c.tif.aux.xml", "notes.txt"):
        (here / "scenes" / name).touch()
    (here / "scenes" / "folder.tif").mkdir()
    (here / "scenes" / "folder.tif" / "deep.tif").touch()
    expected = [("scenes/a.TIFF",), ("scenes/b.tif",), ("scenes/c.tif",)]
    assert list_files("scenes") == expected


def test_a_pattern_is_the_geotiffs_that_it_fits(here):
    (here / "scenes" / "deep").mkdir()
    (here / "scenes" / "deep" / "d.tif").touch()
    (here / "scenes" / "b.txt").touch()
    assert list_files("scenes/[bc].*") == [("scenes/b.tif",), ("scenes/c.tif",)]
    assert list_names("**/*.tif") == ["b", "c", "d"]


def test_a_name_with_a_bracket_is_a_file_if_there_is_one(here):
    (here / "b[1].tif").touch()
    assert list_files("b[1].tif") == [("b[1].tif",)]


def test_maps_that_cropseg_wrote_are_left_out_of_a_folder_and_a_pattern(
    here, seven_classes, make_job
):
    grid = make_job("grid", 32, 40).grid
    (here / "scenes" / "grid.tif").unlink()
    layers = list_layers(seven_classes, confidence=True, probabilities=True)
    for layer in layers:
        path = here / "scenes" / layer.name_file("b")
        with write_layer(path, grid, layer, seven_classes, tags={}) as writer:
            writer.write(grid.window, np.zeros((32, 40, layer.num_bands), np.uint8))
    (here / "scenes" / "crop_classes.tif").touch()  # only its name is like a map's
    assert list_names("scenes") == ["a", "b", "c", "crop_classes"]
    assert list_names("scenes/*.tif") == ["b", "c", "crop_classes"]
    assert list_names("scenes/b_classes.tif") == ["b_classes"]  # as was asked for


def test_the_endings_of_maps_are_those_of_all_layers(seven_classes):
    layers = list_layers(seven_classes, confidence=True, probabilities=True)
    assert {layer.name_file("") for layer in layers} == set(MAP_ENDINGS)


@pytest.mark.parametrize("text", ["empty", "scenes/*.jp2", "nowhere/*.tif"])
def test_a_folder_or_a_pattern_without_a_geotiff_is_an_error(here, text):
    (here / "empty").mkdir()
    with pytest.raises(DataFileNotFoundError, match="No scene in") as error:
        list_scenes([text])
    assert text in str(error.value)
    assert str(here) in str(error.value)  # where it looked


def test_a_scene_that_is_given_twice_is_one(here):
    texts = ["scenes", "scenes/b.tif", str(here / "scenes" / "c.tif")]
    assert list_names(*texts) == ["a", "b", "c"]


def test_nothing_to_map_is_an_error():
    with pytest.raises(UsageError, match="No scene"):
        list_scenes([])


def test_equal_names_are_all_told_with_their_files(here):
    for name in ("b.tif", "c.tif"):
        (here / "other").mkdir(exist_ok=True)
        (here / "other" / name).touch()
    with pytest.raises(UsageError) as error:
        list_scenes(["scenes", "other"])
    assert "b: scenes/b.tif; other/b.tif" in str(error.value)
    assert "c: scenes/c.tif; other/c.tif" in str(error.value)
    assert "a.TIFF" not in str(error.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_list_names_images_beside_it(here, separator):
    rows = [["name", "image", "date"], ["east", "a/x.tif", ""], ["", "/data/y.tif", ""]]
    text = "\n".join(separator.join(row) for row in rows) + "\n\n"
    (here / "lists").mkdir()
    (here / "lists" / "batch.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list_scenes(["lists/batch.csv"]) == (
        SceneRequest(name="east", files=("lists/a/x.tif",)),
        SceneRequest(name="y", files=("/data/y.tif",)),
    )


def test_a_parquet_list_says_the_same_as_csv(here):
    table = pa.table(
        {"image": ["a/x.tif", "y.tif"], "name": ["east", None], "other": [1.5, 2.5]}
    )
    parquet.write_table(table, here / "batch.parquet")
    assert list_scenes(["batch.parquet"]) == (
        SceneRequest(name="east", files=("a/x.tif",)),
        SceneRequest(name="y", files=("y.tif",)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,name\nx.tif,x\n", "has the columns path, name; expected `image`"),
        ("image,name\nx.tif,x\n,y\n", "Row 2 below the heading has no `image`"),
        ("image,name\nx.tif,a/b\n", "'a/b' cannot begin the name of a file"),
        ("image,name\nx.tif,..\n", "cannot begin the name"),
        ("image\n", "has no rows"),
        ("", "has the columns none"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_where_it_fails(here, text, message):
    (here / "batch.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"batch\.csv") as error:
        list_scenes(["batch.csv"])
    assert message in str(error.value)
    assert error.value.exit_code == 3


def test_names_that_a_table_lacks_are_those_of_the_files(here):
    columns = {"image": ["scenes/b.tif", "scenes/c.tif"], "name": [float("nan")] * 2}
    parquet.write_table(pa.table(columns), here / "batch.parquet")
    assert list_names("batch.parquet") == ["b", "c"]


@pytest.mark.parametrize("name", ["batch.csv", "batch.parquet", "batch.json"])
def test_a_damaged_list_is_an_error(here, name):
    (here / name).write_bytes(b"PAR1\xff\xfe image, " * 9)
    with pytest.raises(DataError, match="batch"):
        list_scenes([name])


def test_a_list_that_is_not_there_is_an_error_that_says_where_it_looked(here):
    with pytest.raises(DataFileNotFoundError, match=str(here)):
        list_scenes(["batch.csv"])


@pytest.mark.parametrize("end", ["..", "%2e%2e", ".hidden.tif", "a%0Ab.tif", ""])
def test_an_address_gives_no_name_that_is_no_name_of_a_file(end):
    url = f"https://a.example/x/{end}?key=1"
    (request,) = list_scenes([url], allow_remote=["a.example"])
    assert request.name in {"scene", "x"}
    assert request.files == (url,)


def test_addresses_need_their_host_allowed_and_each_host_is_told_once(here):
    rows = [f"https://a.example/{i}.tif" for i in range(50)]
    rows += ["http://b.example:8080/x.tif", "local.tif"]
    (here / "batch.csv").write_text("image\n" + "\n".join(rows))
    with pytest.raises(UnsafeFileError) as error:
        list_scenes(["batch.csv"])
    message = str(error.value)
    assert message.count("a.example") == 3  # in one problem: address, host, remedy
    assert "50 file(s)" in message
    assert "--allow-remote b.example:8080" in message
    hosts = ["a.example", "b.example:8080"]
    requests = list_scenes(["batch.csv"], allow_remote=hosts)
    assert [request.files[0] for request in requests] == rows
    assert [request.name for request in requests][-3:] == ["49", "x", "local"]


@pytest.mark.parametrize("text", ["s3://bucket/a.tif", "ftp://host/a.tif"])
def test_addresses_that_are_not_of_the_web_are_refused(text):
    with pytest.raises(UnsafeFileError, match="Download"):
        list_scenes([text], allow_remote=["bucket", "host"])


def test_a_list_on_a_web_host_is_refused():
    with pytest.raises(UnsafeFileError, match="a list that is not on this machine"):
        list_scenes(["https://a.example/items.json?key=1"], allow_remote=["a.example"])


def test_thousands_of_scenes_are_listed_without_opening_one(here, monkeypatch):
    folder = here / "many"
    folder.mkdir()
    for index in range(5000):
        (folder / f"{index:04d}.tif").touch()

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr("cropseg.inference.scenes.scene_list.open_raster", fail)
    assert open_raster is not fail
    started = time.process_time()
    assert len(list_scenes(["many", "many/*.tif"])) == 5000
    assert time.process_time() - started < 2
