"""Mapping scenes: each map lies on its scene, is whole, and is made once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.features import geometry_mask
from rio_cogeo.cogeo import cog_validate

from cropseg.errors import (
    ConflictError,
    DataError,
    DataFileNotFoundError,
    ModelError,
    ModelFileNotFoundError,
    PartialFailureError,
    ResourceError,
    UsageError,
)
from cropseg.inference.engines import choose_engine
from cropseg.inference.engines.keras_engine import KerasEngine
from cropseg.inference.mapping import assemble, jobs, predict
from cropseg.inference.mapping.jobs import EngineSettings
from cropseg.inference.mapping.journal import read_journal
from cropseg.inference.mapping.options import MapOptions, ProductOptions
from cropseg.inference.mapping.predict import map_batch, predict_scenes
from cropseg.models.bundle import load_bundle
from cropseg.sites.imagery import open_image
from cropseg.sites.manifest import SceneEntry

TILE = 64


@pytest.fixture
def scenes(site, tmp_path):
    """Copies of the site's scenes, which a test may change."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    return [
        shutil.copy(path, folder) and folder / path.name for path in site.image_paths
    ]


@pytest.fixture
def out_dir(tmp_path):
    return tmp_path / "maps"


@pytest.fixture
def map_scenes(model_path, bundle, out_dir, monkeypatch):
    """Map scenes with the model of the site, in tiles of 64 pixels.

    It is loaded and traced once for all tests, most of the time that they took.
    """

    def load(path):
        return bundle if Path(path) == model_path else load_bundle(path)

    monkeypatch.setattr("cropseg.models.bundle.load_bundle", load)

    def map_them(scenes, **options):
        given = {"out_dir": out_dir, "tile_size": TILE}
        given |= {"engine": "keras", "precision": "float32"}
        return predict_scenes(model_path, scenes, **(given | options))

    return map_them


@pytest.fixture
def rewrite(write_raster):
    """Write a scene again, changed."""

    def rewrite_scene(path, change=lambda values: values, **changes):
        with rasterio.open(path) as scene:
            values = np.moveaxis(scene.read(), 0, -1)
            profile = {
                "crs": scene.crs,
                "transform": scene.transform,
                "nodata": scene.nodata,
                "descriptions": scene.descriptions,
            }
        return write_raster(path, change(values), **(profile | changes))

    return rewrite_scene


def cut_in_half(source, target):
    """Write half of a scene that opens well, so that it fails when it is read."""
    whole = target.with_suffix(".whole.tif")
    rasterio.shutil.copy(source, whole, driver="COG", compress="deflate")
    content = whole.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    whole.unlink()
    with rasterio.open(target) as scene:
        assert scene.count == 5
    return target


def list_names(folder):
    """List what is in a folder, but for what GDAL reads beside a map."""
    names = {path.name for path in folder.iterdir()}
    return sorted(name for name in names if not name.endswith(".aux.xml"))


def read_map(path):
    with rasterio.open(path) as found:
        return found.read(1)


def test_a_map_lies_on_its_scene_and_is_a_valid_cog(scenes, map_scenes, out_dir):
    maps = map_scenes(scenes)
    assert maps == [out_dir / "scene_0_classes.tif", out_dir / "scene_1_classes.tif"]
    for scene_path, map_path in zip(scenes, maps, strict=True):
        assert cog_validate(map_path, strict=True) == (True, [], [])
        with rasterio.open(scene_path) as scene, rasterio.open(map_path) as found:
            assert (found.crs, found.transform) == (scene.crs, scene.transform)
            assert found.shape == scene.shape == (67, 103)
            assert (found.count, found.dtypes, found.nodata) == (1, ("uint8",), 255)
    assert list_names(out_dir) == [
        "journal.jsonl",
        "predict.yaml",
        "scene_0_classes.tif",
        "scene_1_classes.tif",
    ]


def test_a_map_is_255_exactly_where_its_scene_has_no_data(scenes, map_scenes, rewrite):
    def punch(values):
        values[50:60, 70:, 2] = -9999  # one band is enough
        values[3, 5] = -9999
        return values

    rewrite(scenes[0], punch)
    (found,) = map(read_map, map_scenes(scenes[:1]))
    with rasterio.open(scenes[0]) as scene:
        invalid = (scene.read() == -9999).any(axis=0)
    assert 0 < invalid.sum() < invalid.size / 2
    np.testing.assert_array_equal(found == 255, invalid)
    assert found[~invalid].max() <= 3
    assert len(np.unique(found[~invalid])) >= 2  # what is random still tells fields


def test_a_map_names_and_colours_its_classes(scenes, map_scenes, site):
    with rasterio.open(map_scenes(scenes[:1])[0]) as found:
        tags, colors = found.tags(), found.colormap(1)
    assert json.loads(tags["classes"]) == list(site.classes.names)
    assert tags["site"] == "area_1"
    found = ["#" + bytes(colors[index][:3]).hex() for index in range(4)]
    assert found == list(site.classes.colors)


@pytest.mark.parametrize(("height", "width"), [(67, 103), (20, 33), (9, 130)])
def test_a_scene_of_any_size_is_mapped_as_its_tiles_are(
    height, width, scenes, map_scenes, rewrite, bundle
):
    """One tile around everything, mirrored by NumPy, is the independent answer."""
    rewrite(scenes[0], lambda values: np.resize(values, (height, width, 5)))
    (found,) = map(read_map, map_scenes(scenes[:1], tile_size=256, batch_size=1))
    with rasterio.open(scenes[0]) as scene:
        values = np.moveaxis(scene.read(), 0, -1).astype("float32")
    invalid = (values == -9999).any(axis=-1)
    values[invalid] = bundle.card.nodata_fill
    rows, cols = (
        (64, 256 - 64 - size) if size <= 128 else (64, 64 + 128 - size % 128)
        for size in (height, width)
    )
    whole = np.pad(values, (rows, cols, (0, 0)), mode="reflect")
    assert [size % 4 for size in whole.shape[:2]] == [0, 0]
    probabilities = np.asarray(bundle.model(whole[None], training=False))[0]
    expected = probabilities.argmax(axis=-1)[64 : 64 + height, 64 : 64 + width]
    expected[invalid] = 255
    assert (found == expected).mean() > 0.999  # another shape may round otherwise


def test_the_batch_size_changes_no_pixel(scenes, map_scenes, tmp_path):
    found = [
        read_map(map_scenes(scenes[:1], batch_size=n, out_dir=tmp_path / str(n))[0])
        for n in (1, 2, 3)
    ]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_a_rotated_scene_keeps_its_grid(scenes, map_scenes, rewrite):
    turned = Affine.translation(5e5, 5e6) @ Affine.rotation(20) @ Affine.scale(10, -8)
    rewrite(scenes[0], transform=turned)
    with rasterio.open(map_scenes(scenes[:1])[0]) as found:
        assert found.transform.almost_equals(turned)


def test_bands_in_another_order_are_read_by_their_names(scenes, map_scenes, rewrite):
    expected = read_map(map_scenes(scenes[:1])[0])
    order = [3, 0, 4, 2, 1]
    with rasterio.open(scenes[0]) as scene:
        names = [scene.descriptions[band] for band in order]
    rewrite(scenes[0], lambda values: values[..., order], descriptions=names)
    np.testing.assert_array_equal(read_map(map_scenes(scenes[:1])[0]), expected)
    rewrite(scenes[0], descriptions=["B1", "B2", "B3", "B4", "B5"])
    assert (read_map(map_scenes(scenes[:1])[0]) != expected).mean() > 0.1


def test_nothing_is_mapped_twice(scenes, map_scenes, monkeypatch):
    maps = map_scenes(scenes)
    before = [path.stat() for path in maps]
    monkeypatch.setattr(EngineSettings, "open", None)  # not even the model is loaded
    assert map_scenes(scenes, batch_size=5) == maps
    after = [path.stat() for path in maps]
    assert [x.st_mtime_ns for x in after] == [x.st_mtime_ns for x in before]
    assert [x.st_ino for x in after] == [x.st_ino for x in before]


def test_a_scene_that_is_named_from_another_folder_is_not_mapped_again(
    scenes, map_scenes, monkeypatch
):
    maps = map_scenes(scenes[:1])
    monkeypatch.setattr(EngineSettings, "open", None)
    monkeypatch.chdir(scenes[0].parent)
    assert map_scenes([scenes[0].name]) == maps


def test_only_a_scene_that_changed_is_mapped_again(scenes, map_scenes, rewrite):
    maps = map_scenes(scenes)
    first, second = read_map(maps[0]), maps[1].stat()
    rewrite(scenes[0], lambda values: values[::-1])
    assert map_scenes(scenes) == maps
    assert (read_map(maps[0]) != first).any()
    assert maps[1].stat().st_mtime_ns == second.st_mtime_ns


def test_a_missing_map_alone_is_made_again(scenes, map_scenes):
    maps = map_scenes(scenes)
    expected, other = read_map(maps[1]), maps[0].stat()
    maps[1].unlink()
    map_scenes(scenes)
    np.testing.assert_array_equal(read_map(maps[1]), expected)
    assert maps[0].stat().st_mtime_ns == other.st_mtime_ns


def test_other_settings_are_refused_and_overwrite_starts_again(scenes, map_scenes):
    (path,) = map_scenes(scenes[:1])
    before = path.stat().st_ino
    with pytest.raises(ConflictError, match="tile_size was 64, is 128") as error:
        map_scenes(scenes[:1], tile_size=128)
    assert error.value.exit_code == 7
    assert path.stat().st_ino == before
    with pytest.raises(DataFileNotFoundError):  # found before the folder is emptied
        map_scenes([path.with_name("none.tif")], tile_size=128, overwrite=True)
    assert path.exists()
    map_scenes(scenes[1:], tile_size=128, overwrite=True)
    assert not path.exists()


def test_a_bad_scene_does_not_stop_the_good_ones(scenes, map_scenes, out_dir, tmp_path):
    text, missing = tmp_path / "text.tif", tmp_path / "missing.tif"
    text.write_text("no raster")
    cut = cut_in_half(scenes[0], tmp_path / "cut.tif")
    with pytest.raises(PartialFailureError, match="3 of 5 scenes failed") as error:
        map_scenes([text, scenes[0], cut, missing, scenes[1]])
    assert error.value.exit_code == 9
    for path in (text, cut, missing):
        assert f"- {path.stem}: " in str(error.value)
        assert f"{path}" in str(error.value)
    maps = sorted(path.name for path in out_dir.glob("*.tif"))
    assert maps == ["scene_0_classes.tif", "scene_1_classes.tif"]
    assert not [name for name in list_names(out_dir) if name.startswith(".")]
    for name in maps:
        assert cog_validate(out_dir / name, strict=True)[0]


def test_a_bad_scene_is_told_again_when_the_others_are_done(
    scenes, map_scenes, tmp_path
):
    cut = cut_in_half(scenes[0], tmp_path / "cut.tif")
    for _ in range(2):  # the second time, it is the only one to do
        with pytest.raises(PartialFailureError, match="1 of 2 scenes failed"):
            map_scenes([scenes[0], cut])


def test_scenes_that_all_fail_leave_no_folder(map_scenes, tmp_path, out_dir):
    with pytest.raises(PartialFailureError, match="2 of 2"):
        map_scenes([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert not out_dir.exists()


def test_the_only_scene_fails_with_its_own_error(scenes, map_scenes, tmp_path, out_dir):
    with pytest.raises(DataFileNotFoundError, match=r"missing\.tif"):
        map_scenes([tmp_path / "missing.tif"])
    cut = cut_in_half(scenes[0], tmp_path / "cut.tif")
    with pytest.raises(DataError, match="cut short") as error:
        map_scenes([cut])
    assert error.value.exit_code == 3
    assert not out_dir.exists()


def test_two_scenes_of_one_name_are_refused(scenes, map_scenes, tmp_path, out_dir):
    twin = tmp_path / "scene_0.tif"
    shutil.copy(scenes[1], twin)
    with pytest.raises(UsageError, match="named alike"):
        map_scenes([*scenes, twin])
    assert not out_dir.exists()


def test_a_scene_of_other_bands_is_refused(scenes, map_scenes, rewrite, out_dir):
    rewrite(scenes[0], lambda values: values[..., :4], descriptions=())
    expected = r"has 4 bands .*, but the model takes 5: blue"
    with pytest.raises(ModelError, match=expected):
        map_scenes(scenes[:1])
    assert not out_dir.exists()


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_scene_of_another_gsd_is_mapped_at_the_model_s_and_brought_back(
    factor, scenes, map_scenes, rewrite, tmp_path, out_dir, site
):
    where = Affine(10, 0, 600_005, 0, -8, 5_200_003) @ Affine.scale(factor)
    rewrite(scenes[0], transform=where)
    image = open_image(
        SceneEntry(image=str(scenes[0])), tmp_path, crs=None, gsd_m=site.gsd_m
    )
    with image.open() as source:
        pixels = source.read(image.grid.window, range(5))
    values = np.where(pixels.valid[..., None], pixels.values, np.nan)
    at_gsd = {"transform": image.grid.transform, "nodata": np.nan}
    resampled = rewrite(scenes[1], lambda _: values.astype("float32"), **at_gsd)

    found, expected = map(read_map, map_scenes([scenes[0], resampled]))

    with rasterio.open(scenes[0]) as scene:
        invalid = (scene.read() == -9999).any(axis=0)
    with rasterio.open(out_dir / "scene_0_classes.tif") as dataset:
        assert dataset.transform.almost_equals(where, 1e-9)
    x, y = image.native_grid.locate_pixels(image.native_grid.window)
    inverse = ~image.grid.transform
    cols, rows = (
        np.floor(inverse.a * x + inverse.c),
        np.floor(inverse.e * y + inverse.f),
    )
    nearest = expected[rows.astype(int), cols.astype(int)]
    assert found.shape == (67, 103)
    assert len(np.unique(found)) >= 3
    assert (found == nearest)[~invalid].mean() > 0.97  # others lie at an edge
    np.testing.assert_array_equal(
        found[~invalid & (nearest != 255)], nearest[~invalid & (nearest != 255)]
    )
    np.testing.assert_array_equal(found == 255, invalid)


def test_a_scene_in_degrees_is_mapped_on_its_own_pixels(scenes, map_scenes, rewrite):
    place = Affine(2e-4, 0, -97.7, 0, -2e-4, 46.9)
    rewrite(scenes[0], transform=place, crs="EPSG:4326")
    with rasterio.open(map_scenes(scenes[:1])[0]) as found:
        assert found.crs == "EPSG:4326"
        assert found.transform.almost_equals(place, 1e-12)
        classes = found.read(1)
    with rasterio.open(scenes[0]) as scene:
        invalid = (scene.read() == -9999).any(axis=0)
    np.testing.assert_array_equal(classes == 255, invalid)


def test_a_scene_without_a_crs_is_refused(scenes, map_scenes, rewrite):
    rewrite(scenes[0], crs=None)
    with pytest.raises(DataError, match="has no CRS"):
        map_scenes(scenes[:1])


def test_a_tile_size_that_does_not_fit_the_model_is_refused(
    scenes, map_scenes, out_dir
):
    with pytest.raises(UsageError, match="Tile size 65"):
        map_scenes(scenes, tile_size=65)
    assert not out_dir.exists()


def test_a_missing_model_is_told_before_anything_is_read(scenes, tmp_path):
    with pytest.raises(ModelFileNotFoundError):
        predict_scenes(tmp_path / "no.keras", scenes, out_dir=tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_a_map_that_cannot_be_written_leaves_the_others(
    scenes, map_scenes, out_dir, monkeypatch
):
    write = assemble.write_layer

    def write_some(path, *arguments, **options):
        if path.name.startswith("scene_0"):
            raise ResourceError("The disk is full.")
        return write(path, *arguments, **options)

    monkeypatch.setattr(assemble, "write_layer", write_some)
    with pytest.raises(PartialFailureError, match=r"scene_0: The disk is full"):
        map_scenes(scenes)
    assert list_names(out_dir) == [
        "journal.jsonl",
        "predict.yaml",
        "scene_1_classes.tif",
    ]


def test_an_interruption_keeps_the_maps_that_are_whole(scenes, map_scenes, out_dir):
    expected = [read_map(path) for path in map_scenes(scenes, out_dir=out_dir / "a")]
    done = []

    def interrupt(_done, _total, scene):
        done.append(scene)
        if done.count("scene_1.tif") == 2:
            raise KeyboardInterrupt

    again = out_dir / "b"
    with pytest.raises(KeyboardInterrupt):
        map_scenes(scenes, out_dir=again, show_progress=interrupt)
    assert not [name for name in list_names(again) if name.startswith(".")]
    assert "scene_1_classes.tif" not in list_names(again)
    first = (again / "scene_0_classes.tif").stat().st_mtime_ns
    maps = map_scenes(scenes, out_dir=again)
    assert maps[0].stat().st_mtime_ns == first
    for path, classes in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(read_map(path), classes)


def test_progress_counts_every_tile_of_what_is_to_do(scenes, map_scenes):
    calls = []
    map_scenes(scenes, show_progress=lambda *call: calls.append(call))
    num_tiles = 3 * 4  # cores of 32 pixels on 67 x 103
    assert [done for done, _, _ in calls] == list(range(1, 2 * num_tiles + 1))
    assert {total for _, total, _ in calls} == {2 * num_tiles}
    assert [name for _, _, name in calls] == (
        ["scene_0.tif"] * num_tiles + ["scene_1.tif"] * num_tiles
    )


def test_band_names_match_in_any_case(scenes, map_scenes, rewrite):
    expected = read_map(map_scenes(scenes[:1])[0])
    order = [3, 0, 4, 2, 1]
    with rasterio.open(scenes[0]) as scene:
        names = [scene.descriptions[band].upper() for band in order]
    rewrite(scenes[0], lambda values: values[..., order], descriptions=names)
    np.testing.assert_array_equal(read_map(map_scenes(scenes[:1])[0]), expected)


def test_names_that_fit_in_part_and_at_other_places_are_refused(
    scenes, map_scenes, rewrite, out_dir
):
    with rasterio.open(scenes[0]) as scene:
        names = list(scene.descriptions)
    rewrite(scenes[0], descriptions=[names[1], names[0], "other", *names[3:]])
    with pytest.raises(ModelError, match="names its bands"):
        map_scenes(scenes[:1])
    assert not out_dir.exists()


def test_the_journal_tells_what_became_of_every_scene(
    scenes, map_scenes, out_dir, tmp_path
):
    cut = cut_in_half(scenes[0], tmp_path / "cut.tif")
    with pytest.raises(PartialFailureError):
        map_scenes([cut, scenes[0]])
    failed, done = sorted(read_journal(out_dir), key=lambda entry: entry.name)
    assert (failed.name, failed.status) == ("cut", "failed")
    assert str(cut) in failed.error
    assert (done.name, done.status, done.error) == ("scene_0", "done", None)
    (name,) = done.files
    assert done.files[name] == (out_dir / name).stat().st_size
    counts = np.bincount(read_map(out_dir / name).ravel(), minlength=4)[:4]
    assert list(done.pixels.values()) == counts.tolist()
    assert done.engine == "keras float32"
    assert done.seconds > 0


def test_a_lost_journal_costs_no_map(scenes, map_scenes, out_dir):
    maps = map_scenes(scenes)
    before = [path.stat().st_mtime_ns for path in maps]
    (out_dir / "journal.jsonl").unlink()
    assert map_scenes(scenes) == maps
    assert [path.stat().st_mtime_ns for path in maps] == before
    assert [(entry.status, entry.engine) for entry in read_journal(out_dir)] == [
        ("done", "keras float32"),
        ("done", "keras float32"),
    ]


@pytest.mark.parametrize("has_journal", [True, False])
def test_a_map_that_was_damaged_is_made_again(has_journal, scenes, map_scenes, out_dir):
    maps = map_scenes(scenes)
    expected = [path.read_bytes() for path in maps]
    if not has_journal:
        (out_dir / "journal.jsonl").unlink()
    maps[0].write_bytes(b"garbage")
    if has_journal:  # its tags are whole, and only the journal knows
        os.truncate(maps[1], len(expected[1]) - 100)
    map_scenes(scenes)
    assert [path.read_bytes() for path in maps] == expected


def test_a_folder_of_someone_else_is_left_as_it_is(scenes, map_scenes, tmp_path):
    (path,) = map_scenes(scenes[:1])
    other = tmp_path / "final"
    other.mkdir()
    shutil.copy(path, other)
    with pytest.raises(ConflictError, match=r"no predict\.yaml"):
        map_scenes(scenes[:1], out_dir=other)
    assert list_names(other) == [path.name]


def test_another_engine_is_not_mixed_in(scenes, map_scenes, monkeypatch):
    map_scenes(scenes[:1])
    monkeypatch.setattr(KerasEngine, "name", "other")
    with pytest.raises(ConflictError, match="made by keras float32; now other float32"):
        map_scenes(scenes)


def interrupt_midway(map_scenes, scenes, **options):
    """Leave a scene with some of its bands done."""

    def interrupt(done, _total, _scene):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_scenes(scenes, show_progress=interrupt, **options)


@pytest.mark.slow
def test_another_engine_does_not_go_on_with_a_scene(
    scenes, map_scenes, out_dir, monkeypatch, tmp_path
):
    (whole,) = map_scenes(scenes[:1], out_dir=tmp_path / "whole")
    monkeypatch.setattr(jobs, "BAND_PIXELS", 1)
    interrupt_midway(map_scenes, scenes[:1])
    assert list(out_dir.rglob("classes-*.tif"))
    assert not (out_dir / "journal.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(KerasEngine, "name", "other")
        with pytest.raises(ConflictError, match="keras float32; now other") as error:
            map_scenes(scenes[:1])
    assert error.value.exit_code == 7
    (path,) = map_scenes(scenes[:1])
    assert path.read_bytes() == whole.read_bytes()


def test_the_engine_that_began_can_be_named_to_go_on(scenes, map_scenes, monkeypatch):
    monkeypatch.setattr(choose_engine, "_suits_openvino", lambda: False)
    map_scenes(scenes[:1], engine="auto", precision="auto")
    with monkeypatch.context() as patch:
        patch.setattr(KerasEngine, "name", "other")
        with pytest.raises(ConflictError, match="--engine keras --precision float32"):
            map_scenes(scenes, engine="auto", precision="auto")
    assert len(map_scenes(scenes, engine="keras", precision="float32")) == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": "openvino"}, "openvino float32 was asked for"),
        ({"engine": "auto", "precision": "bfloat16"}, "auto bfloat16 was asked for"),
    ],
)
def test_finished_maps_are_not_passed_off_as_those_of_another_engine(
    asked, said, scenes, map_scenes, monkeypatch
):
    map_scenes(scenes[:1])
    monkeypatch.setattr(EngineSettings, "open", None)
    with pytest.raises(ConflictError, match=f"made by keras float32; now {said}"):
        map_scenes(scenes[:1], **asked)


def test_an_error_that_nobody_foresaw_is_one_of_its_scene(
    scenes, map_scenes, monkeypatch
):
    def check(scene):
        if scene.name == "scene_0":
            raise ZeroDivisionError("oops")
        return ()

    monkeypatch.setattr(predict, "check_scene", check)
    with pytest.raises(PartialFailureError, match=r"scene_0: This is a bug .* oops"):
        map_scenes(scenes)
    monkeypatch.undo()
    assert len(map_scenes(scenes)) == 2


def test_one_scene_need_not_be_in_a_list(scenes, map_scenes):
    assert map_scenes(scenes[0]) == map_scenes(str(scenes[0])) == map_scenes(scenes[:1])


def test_a_file_of_someone_else_is_not_replaced_by_polygons(
    scenes, map_scenes, tmp_path, out_dir
):
    fields = tmp_path / "fields.gpkg"
    fields.write_bytes(b"of someone else")
    for overwrite in (False, True):
        with pytest.raises(ConflictError, match=r"fields\.gpkg is there, and no call"):
            map_scenes(scenes[:1], polygons=str(fields), overwrite=overwrite)
    assert fields.read_bytes() == b"of someone else"
    assert not out_dir.exists()
    ours = tmp_path / "ours.gpkg"
    map_scenes(scenes[:1], polygons=str(ours))
    before = ours.stat().st_mtime_ns
    map_scenes(scenes[:1], polygons=str(ours), min_area=500.0)
    map_scenes(scenes[:1], polygons=str(ours), overwrite=True)
    assert ours.stat().st_mtime_ns > before


def test_what_is_read_is_not_written_over_nor_removed(scenes, map_scenes, out_dir):
    maps = map_scenes(scenes[:1])
    fields = out_dir / "parcels.gpkg"
    with rasterio.open(scenes[0]) as scene:
        square, crs = shapely.box(*scene.bounds), scene.crs
    geopandas.GeoDataFrame(geometry=[square], crs=crs).to_file(fields)
    with pytest.raises(ConflictError, match="is to be read, and would be written over"):
        map_scenes(scenes[:1], parcels=fields)
    with pytest.raises(ConflictError, match="is to be read, and would be written over"):
        map_scenes(scenes[:1], region=fields, polygons=str(fields))
    with pytest.raises(ConflictError, match=r"--overwrite empties .*\n.*parcels"):
        map_scenes(scenes[:1], region=fields, overwrite=True)
    inside = shutil.copy(scenes[1], out_dir)
    with pytest.raises(ConflictError, match=r"--overwrite empties .*\n.*scene_1"):
        map_scenes([scenes[0], inside], overwrite=True)
    assert fields.exists()
    assert maps[0].exists()


@pytest.mark.parametrize(
    ("compared", "engine", "is_refused"),
    [
        (None, "keras float32", False),
        (None, "keras bfloat16", True),
        ("keras bfloat16", "keras bfloat16", False),
        ("keras bfloat16", "openvino bfloat16", True),
    ],
)
def test_workers_do_not_compute_in_what_was_not_compared(
    compared, engine, is_refused, tmp_path
):
    planner = SimpleNamespace(out_dir=tmp_path, layers=())
    batch = predict._Batch(planner, None, None)
    batch._compared = compared
    expected = pytest.raises(ModelError, match=f"Workers compute with {engine}")
    with expected if is_refused else contextlib.nullcontext():
        batch._require_worker_engine(engine)


def test_a_full_disk_ends_a_batch_and_not_every_scene_alone(
    scenes, map_scenes, tmp_path, monkeypatch
):
    tried = []

    write = assemble.write_layer

    @contextlib.contextmanager
    def fail(*arguments, **options):
        with write(*arguments, **options) as writer:
            yield writer
            tried.append(writer)
            raise ResourceError("The disk is full.")

    monkeypatch.setattr(assemble, "write_layer", fail)
    many = [shutil.copy(scenes[0], tmp_path / f"copy_{i}.tif") for i in range(40)]
    with pytest.raises(ResourceError, match="3 scenes in a row") as error:
        map_scenes(many)
    assert error.value.exit_code == 6
    assert len(tried) < 40


def test_what_is_odd_about_a_scene_is_told_and_kept(
    scenes, map_scenes, out_dir, monkeypatch, caplog
):
    monkeypatch.setattr(predict, "check_scene", lambda scene: (f"{scene.name} is odd",))
    map_scenes(scenes)
    assert caplog.messages == ["scene_0: scene_0 is odd", "scene_1: scene_1 is odd"]
    assert [entry.warnings for entry in read_journal(out_dir)] == [
        ["scene_0 is odd"],
        ["scene_1 is odd"],
    ]


def test_of_many_warnings_some_are_shown(
    scenes, map_scenes, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(predict, "check_scene", lambda _: ("odd", "strange"))
    map_scenes([shutil.copy(scenes[0], tmp_path / f"{i}.tif") for i in range(8)])
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "More warnings stand in journal.jsonl."


def test_small_scenes_of_a_large_batch_are_compared_together_and_once(
    scenes, map_scenes, out_dir, monkeypatch, caplog
):
    monkeypatch.setattr(predict, "MAX_SCENES", 1)
    monkeypatch.setattr(predict, "check_scene", lambda _: ("looked at alone",))
    monkeypatch.setattr(predict, "check_batch", lambda found: (f"odd: {len(found)}",))
    map_scenes(scenes)
    assert caplog.messages == [f"{len(scenes)} scenes: odd: 1"]
    assert all(entry.warnings == [] for entry in read_journal(out_dir))


def test_outside_of_the_region_there_is_no_class_and_inside_the_same(
    scenes, map_scenes, tmp_path
):
    whole = read_map(map_scenes(scenes[:1])[0])
    with rasterio.open(scenes[0]) as scene:
        where = scene.transform
        corners = [where @ corner for corner in ((60, 5), (90, 20), (70, 50))]
        crs = scene.crs
        wanted = ~geometry_mask([shapely.Polygon(corners)], scene.shape, where)
    path = tmp_path / "region.geojson"
    frame = geopandas.GeoDataFrame(geometry=[shapely.Polygon(corners)], crs=crs)
    frame.to_crs(4326).to_file(path)
    options = {"out_dir": tmp_path / "region", "region": path}
    found = read_map(map_scenes(scenes[:1], **options)[0])
    assert 0.02 < wanted.mean() < 0.2
    assert ((found != 255) != (wanted & (whole != 255))).mean() < 0.001
    np.testing.assert_array_equal(found[found != 255], whole[found != 255])
    before = path.stat()
    frame.buffer(10).to_crs(4326).to_file(path)
    assert path.stat() != before
    with pytest.raises(ConflictError, match="region was"):
        map_scenes(scenes[:1], **options)


def test_products_can_be_added_later_without_mapping_again(
    scenes, map_scenes, out_dir, monkeypatch
):
    map_scenes(scenes, confidence=True)
    monkeypatch.setattr(EngineSettings, "open", None)
    maps = map_scenes(scenes, confidence=True, polygons="gpkg", summary=True)
    assert len(maps) == 2
    assert geopandas.read_file(out_dir / "scene_1_polygons.gpkg").is_valid.all()
    assert (out_dir / "summary.csv").exists()


@pytest.mark.parametrize(
    "options", [{"blend": True}, {"tta": True}, {"probabilities": True}]
)
def test_ways_to_map_agree_on_most_pixels_and_are_not_mixed(
    options, scenes, map_scenes, tmp_path
):
    plain = read_map(map_scenes(scenes[:1])[0])
    with pytest.raises(ConflictError, match=f"{next(iter(options))} was False"):
        map_scenes(scenes[:1], **options)
    found = read_map(map_scenes(scenes[:1], out_dir=tmp_path / "other", **options)[0])
    np.testing.assert_array_equal(found == 255, plain == 255)
    assert (found == plain).mean() > 0.5  # random weights see what is turned otherwise


@pytest.mark.parametrize("blend", [False, True])
def test_bands_change_no_pixel(blend, scenes, map_scenes, tmp_path, monkeypatch):
    options = {"blend": blend, "probabilities": True}
    whole = map_scenes(scenes, out_dir=tmp_path / "whole", **options)
    monkeypatch.setattr(jobs, "BAND_PIXELS", 1)
    for one, other in zip(whole, map_scenes(scenes, **options), strict=True):
        for name in (one.name, one.name.replace("classes", "probabilities")):
            assert (other.parent / name).read_bytes() == (
                one.parent / name
            ).read_bytes()


def test_the_order_of_scenes_and_what_comes_with_them_change_no_pixel(
    scenes, map_scenes, tmp_path
):
    both = map_scenes(scenes[::-1])
    alone = map_scenes(scenes[:1], out_dir=tmp_path / "alone")
    assert both[1].read_bytes() == alone[0].read_bytes()


def test_a_small_scene_without_a_tile_size_is_one_tile(scenes, map_scenes):
    calls = []
    options = {"tile_size": None, "show_progress": lambda *call: calls.append(call)}
    map_scenes(scenes, **options)
    assert [(done, total) for done, total, _ in calls] == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_openvino_makes_nearly_the_same_map(scenes, map_scenes, tmp_path):
    pytest.importorskip("openvino")
    keras = read_map(map_scenes(scenes[:1])[0])
    found = read_map(
        map_scenes(scenes[:1], engine="openvino", out_dir=tmp_path / "openvino")[0]
    )
    assert (found == keras).mean() > 0.999


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"engine": "abacus"}, "`engine` is 'abacus'"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"context": -8}, "`context` is -8"),
        ({"scale": float("nan")}, "`scale` is nan"),
        ({"min_agreement": 2}, "`min_agreement` is 2"),
        ({"output_grid": "mine"}, "`output_grid` is 'mine'"),
        ({"polygons": "a.shp"}, "`polygons` is 'a.shp'"),
        ({"polygons": "gpkg", "simplify": -1}, "`simplify` is -1"),
        ({"min_area": 5}, "are for `polygons`"),
        ({"tile_sizes": 5}, "Unknown options: tile_sizes"),
        ({"parcels": "no.gpkg"}, "No file at no.gpkg"),
        ({"region": "no.gpkg"}, "No region at no.gpkg"),
    ],
)
def test_options_that_cannot_be_used_are_told_first(
    options, expected, scenes, map_scenes, out_dir
):
    with pytest.raises((UsageError, DataFileNotFoundError), match=expected):
        map_scenes(scenes, **options)
    assert not out_dir.exists()


@pytest.mark.slow
def test_bfloat16_is_compared_with_float32_before_anything_is_mapped(
    scenes, out_dir, model_path, rewrite, tmp_path
):
    rewrite(scenes[0], lambda values: np.full_like(values, -9999))  # shows nothing
    copy = shutil.copy(model_path, tmp_path / "model.keras")
    options = MapOptions(
        tile_size=TILE, engine="keras", precision="bfloat16", min_agreement=1.0
    )
    given = {"out_dir": out_dir, "products": ProductOptions()}
    with pytest.raises(ModelError, match=r"gives the class of float32 on \d") as error:
        map_batch(copy, list(map(str, scenes)), options=options, **given)
    assert error.value.exit_code == 4
    assert not out_dir.exists()
    options = replace(options, min_agreement=0.5)
    batch = map_batch(copy, list(map(str, scenes)), options=options, **given)
    assert 0.5 <= batch.agreement.share < 1
    assert batch.agreement.num_pixels > 1_000
    assert read_journal(out_dir)[0].engine == "keras bfloat16"
