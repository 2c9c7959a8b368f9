"""Mapping scenes: each map lies on its scene, is whole, and is made once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
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
from cropseg.inference import predict, writer
from cropseg.inference.predict import predict_scenes
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
def map_scenes(model_path, out_dir):
    """Map scenes with the model of the site, in tiles of 64 pixels."""

    def map_them(scenes, **options):
        options = {"out_dir": out_dir, "tile_size": TILE} | options
        return predict_scenes(model_path, scenes, precision="float32", **options)

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
    return sorted(path.name for path in folder.iterdir())


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
    monkeypatch.setattr(predict, "load_bundle", None)  # not even the model is loaded
    assert map_scenes(scenes, batch_size=5) == maps
    after = [path.stat() for path in maps]
    assert [x.st_mtime_ns for x in after] == [x.st_mtime_ns for x in before]
    assert [x.st_ino for x in after] == [x.st_ino for x in before]


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
        assert f"{path}: " in str(error.value)
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
    with pytest.raises(UsageError, match="named scene_0,"):
        map_scenes([*scenes, twin])
    assert not out_dir.exists()


def test_a_scene_of_other_bands_is_refused(scenes, map_scenes, rewrite, out_dir):
    rewrite(scenes[0], lambda values: values[..., :4], descriptions=())
    with pytest.raises(ModelError, match="has 4 bands, but the model takes 5: blue"):
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


def test_a_scene_in_degrees_cannot_be_brought_to_the_model_s_gsd(
    scenes, map_scenes, rewrite
):
    place = Affine(2e-4, 0, -97.7, 0, -2e-4, 46.9)
    rewrite(scenes[0], transform=place, crs="EPSG:4326")
    with pytest.raises(ModelError, match=r"trained at 8\.944 m.*Reproject") as error:
        map_scenes(scenes[:1])
    assert error.value.exit_code == 4


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
    verify = writer._verify

    def fail(path, pixels):
        if path.name.startswith(".scene_0"):
            raise ResourceError("The disk is full.")
        verify(path, pixels)

    monkeypatch.setattr(writer, "_verify", fail)
    with pytest.raises(PartialFailureError, match=r"scene_0\.tif: The disk is full"):
        map_scenes(scenes)
    assert list_names(out_dir) == ["predict.yaml", "scene_1_classes.tif"]


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
    assert list_names(again) == ["predict.yaml", "scene_0_classes.tif"]
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
