"""Sites: files that do not fit together are refused, bands go by name."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize

from cropseg.demo.areas import write_areas
from cropseg.errors import DataError, DataFileNotFoundError, UnsafeFileError
from cropseg.sites.classes import IGNORE, ClassMap, CropClass
from cropseg.sites.grid import Window
from cropseg.sites.site import match_classes, open_site

ROOT = Path(__file__).parents[2]
PRAIRIE_DIR = ROOT.parent / "shared" / "data" / "prairie"


def rewrite(path, change=lambda values: values, **profile):
    """Write a raster again with other values (bands, rows, columns) or profile."""
    with rasterio.open(path) as dataset:
        values, old = change(dataset.read()), dataset.profile
    count, height, width = values.shape
    size = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **(old | size | profile)) as dataset:
        dataset.write(values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"degrees": 30},
        {"south_up": True},
        {"dtype": "float32"},
        {"dtype": "uint8"},
        {"num_scenes": 2},
    ],
)
def test_a_site_is_read_as_rasterio_reads_its_files(tmp_path, make_site, options):
    site = open_site(make_site(tmp_path, **options))
    table = np.full(256, IGNORE)
    table[[5, 22, 23, 176, 111]] = [0, 1, 1, 2, 3]

    assert len(site.scenes) == options.get("num_scenes", 1)
    for scene in site.scenes:
        with rasterio.open(scene.image_path) as dataset:
            image = np.moveaxis(dataset.read(), 0, -1)
        with rasterio.open(scene.labels_path) as dataset:
            expected = table[dataset.read(1)]
        with site.open_scene(scene) as reader:
            pixels, labels = reader.read_valid_labels(scene.grid.window)
        np.testing.assert_array_equal(pixels.values, image)
        assert not pixels.valid[:, 40:47].any()
        assert pixels.valid.sum() == 192 * (256 - 7)
        expected[:, 40:47] = IGNORE
        np.testing.assert_array_equal(labels, expected)


def test_labels_outside_the_scene_are_unknown(tmp_path, make_site):
    site = open_site(make_site(tmp_path))
    window = Window(row=-10, col=250, height=20, width=15)

    with site.open_scene(site.scenes[0]) as reader:
        labels = reader.read_labels(window)

    assert (labels[:10] == IGNORE).all()
    assert (labels[:, 6:] == IGNORE).all()
    assert (labels[10:, :6] != IGNORE).all()


def test_nodata_of_the_label_raster_is_unknown(tmp_path, make_site):
    path = make_site(tmp_path)
    rewrite(tmp_path / "scene_0_labels.tif", nodata=5)

    site = open_site(path)
    with site.open_scene(site.scenes[0]) as reader:
        labels = reader.read_labels(site.scenes[0].grid.window)

    assert 0 not in labels
    assert {1, 2, 3, IGNORE} == set(np.unique(labels))


def test_an_unnamed_label_value_is_an_error_that_names_the_file(tmp_path, make_site):
    site = open_site(make_site(tmp_path, ignore=[]))

    with (
        site.open_scene(site.scenes[0]) as reader,
        pytest.raises(DataError, match=r"scene_0_labels\.tif: .* 0 \(\d+ pixels\)"),
    ):
        reader.read_labels(site.scenes[0].grid.window)


def test_label_values_are_counted_over_the_whole_scene(tmp_path, make_site):
    site = open_site(make_site(tmp_path, height=100, width=1100))
    with rasterio.open(tmp_path / "scene_0_labels.tif") as dataset:
        values, counts = np.unique(dataset.read(1), return_counts=True)

    with site.open_scene(site.scenes[0]) as reader:
        found = reader.count_label_values()

    names = map(str, values.tolist())
    assert found == dict(zip(names, counts.tolist(), strict=True))


def test_a_scene_without_labels_is_unknown_everywhere(tmp_path, make_site):
    site = open_site(make_site(tmp_path, scenes=[{"image": "scene_0.tif"}]))

    with site.open_scene(site.scenes[0]) as reader:
        labels = reader.read_labels(site.scenes[0].grid.window)
        assert not reader.count_label_values()

    assert labels.shape == (192, 256)
    assert (labels == IGNORE).all()


def test_bands_by_name_are_read_in_the_order_asked_for(tmp_path, make_site):
    site = open_site(make_site(tmp_path))
    window = Window(row=30, col=100, height=9, width=7)

    other = site.select_bands(("nir", "blue", "red"))

    with site.open_scene(site.scenes[0]) as reader:
        values = reader.read_pixels(window).values
    with other.open_scene(other.scenes[0]) as reader:
        chosen = reader.read_pixels(window).values
    assert other.bands == ("nir", "blue", "red")
    np.testing.assert_array_equal(chosen, values[..., [3, 0, 2]])


def test_a_band_that_is_not_there_is_refused(tmp_path, make_site):
    site = open_site(make_site(tmp_path, bands=3))

    with pytest.raises(DataError, match=r"no band nir, swir9; .* blue, green, red"):
        site.select_bands(("blue", "nir", "swir9"))


def test_a_band_that_was_left_out_can_be_selected_again(tmp_path, make_site):
    site = open_site(make_site(tmp_path))

    assert site.select_bands(("red",)).select_bands(("nir",)).bands == ("nir",)


@pytest.mark.parametrize(
    ("change", "profile", "word"),
    [
        (lambda v: v[:, :-1], {}, "shape 192 x 256 against 191 x 256"),
        (lambda v: v.swapaxes(1, 2), {}, "shape 192 x 256 against 256 x 192"),
        (lambda v: v, {"crs": "EPSG:32615"}, "CRS EPSG:32614 against EPSG:32615"),
        (
            lambda v: v,
            {"transform": Affine(10, 0, 600_010, 0, -8, 5_200_003)},
            r"transform \(10, 0, 600005, .*against \(10, 0, 600010, ",
        ),
        (lambda v: np.concatenate([v, v]), {}, "has 2 bands; a label raster has one"),
    ],
)
def test_labels_that_do_not_fit_their_image_are_refused(
    tmp_path, make_site, change, profile, word
):
    path = make_site(tmp_path)
    rewrite(tmp_path / "scene_0_labels.tif", change, **profile)

    with pytest.raises(DataError, match=rf"scene_0_labels\.tif .*{word}") as error:
        open_site(path)

    assert error.value.exit_code == 3


def test_another_number_of_bands_is_refused(tmp_path, make_site):
    path = make_site(tmp_path)
    rewrite(tmp_path / "scene_0.tif", lambda values: values[:4])

    message = r"scene_0\.tif has 4 bands, but the manifest names 5"
    with pytest.raises(DataError, match=message):
        open_site(path)


@pytest.mark.parametrize(
    ("crs", "word"),
    [
        (None, "has no CRS"),
        ('LOCAL_CS["drone",UNIT["metre",1]]', "has a local CRS"),
        ("EPSG:4326", "has a CRS of degrees, but a latitude of 5.1"),
    ],
)
def test_an_image_without_a_place_on_the_earth_is_refused(
    tmp_path, make_site, crs, word
):
    path = make_site(tmp_path)
    rewrite(tmp_path / "scene_0.tif", crs=crs)

    with pytest.raises(DataError, match=rf"scene_0\.tif {word}"):
        open_site(path)


def test_scenes_of_another_gsd_are_refused(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=2)
    for name in ("scene_1.tif", "scene_1_labels.tif"):
        rewrite(tmp_path / name, transform=Affine(20, 0, 602_565, 0, -16, 5_200_003))

    message = r"scene_1\.tif has a GSD of 17.89 m, scene_0.tif one of 8.944 m. Give"
    with pytest.raises(DataError, match=message):
        open_site(path)


def test_a_missing_image_is_not_found(tmp_path, make_site):
    path = make_site(tmp_path)
    (tmp_path / "scene_0.tif").unlink()

    with pytest.raises(DataFileNotFoundError, match=r"No file at .*scene_0\.tif"):
        open_site(path)


def test_an_unreadable_image_is_refused(tmp_path, make_site):
    path = make_site(tmp_path)
    (tmp_path / "scene_0.tif").write_bytes(b"PK\3\4")

    with pytest.raises(DataError, match=r"scene_0\.tif cannot be opened") as error:
        open_site(path)

    assert not isinstance(error.value, FileNotFoundError)


def test_an_image_on_the_network_is_refused(tmp_path, make_site):
    scenes = [{"image": "https://example.org/scene_0.tif"}]

    with pytest.raises(UnsafeFileError, match=r"allow .*--allow-remote example\.org"):
        open_site(make_site(tmp_path, scenes=scenes))


def test_problems_of_all_files_are_listed(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=3)
    (tmp_path / "scene_0.tif").unlink()
    rewrite(tmp_path / "scene_1.tif", lambda values: values[:2])
    rewrite(tmp_path / "scene_2_labels.tif", lambda v: v[:, 1:], crs="EPSG:32615")

    with pytest.raises(DataFileNotFoundError) as error:
        open_site(path)

    message = str(error.value)
    assert "have 4 problem(s)" in message
    for word in ("scene_0.tif", "2 bands", "shape 192", "CRS EPSG:32614"):
        assert word in message


def test_paths_are_relative_to_the_manifest(tmp_path, make_site, monkeypatch):
    make_site(tmp_path / "site")
    monkeypatch.chdir(tmp_path)

    site = open_site("site/site.yaml")

    assert site.image_paths == (Path("site/scene_0.tif"),)
    assert site.scenes[0].name == "scene_0"


def test_a_site_without_a_split_says_so_when_one_is_needed(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split=None))

    with pytest.raises(DataError, match=r"site\.yaml has no `split`"):
        site.require_split()


def test_a_fingerprint_changes_with_the_manifest_and_with_the_files(
    tmp_path, make_site
):
    path = make_site(tmp_path, split="regions")
    fingerprints = [open_site(path).fingerprint]
    assert open_site(path).fingerprint == fingerprints[0]

    for name in ("scene_0.tif", "scene_0_labels.tif", "split.geojson"):
        file_path = tmp_path / name
        file_path.write_bytes(file_path.read_bytes() + b" ")
        fingerprints.append(open_site(path).fingerprint)
    document = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(document | {"sensor": "another"}))
    fingerprints.append(open_site(path).fingerprint)

    assert len(set(fingerprints)) == 5


def test_classes_are_matched_by_name_and_by_the_names_that_they_go_by():
    def make(name, *source_names):
        return CropClass(name=name, color="#000000", source_names=source_names)

    target = ClassMap(
        classes=(
            make("corn"),
            make("wheat", "spring wheat", "winter wheat", "durum"),
            make("hops"),
            make("hay", "alfalfa"),
        )
    )
    source = ["winter wheat", "soy", "corn", "hay", "spring wheat"]

    assert match_classes(source, target) == {
        "corn": ["corn"],
        "wheat": ["spring wheat", "winter wheat"],
    }


@pytest.mark.skipif(
    not PRAIRIE_DIR.is_dir(), reason="../shared/data/prairie is not there"
)
@pytest.mark.parametrize("area", [1, 2])
def test_the_prairie_manifests_open(area):
    site = open_site(ROOT / "data_manifests" / f"prairie_area_{area}.yaml")
    window = Window(row=500, col=300, height=200, width=100)

    with site.open_scene(site.scenes[0]) as reader:
        pixels, labels = reader.read_valid_labels(window)

    (scene,) = site.scenes
    assert (scene.grid.height, scene.grid.width) == (1280, 1280)
    assert site.gsd_m == pytest.approx(30)
    assert len(site.classes) == {1: 11, 2: 8}[area]
    with rasterio.open(scene.image_path) as dataset:
        image = dataset.read()[:, 500:700, 300:400]
    with rasterio.open(scene.labels_path) as dataset:
        codes = dataset.read(1)[500:700, 300:400]
    valid = (image != -9999).all(axis=0)
    np.testing.assert_array_equal(pixels.valid, valid)
    soybeans = site.classes.names.index("soybeans")
    np.testing.assert_array_equal(labels == soybeans, (codes == 5) & valid)
    assert (labels == soybeans).any()


def edit(path, **changes):
    """Change top-level entries of a manifest; None leaves one out."""
    document = yaml.safe_load(path.read_text()) | changes
    kept = {key: entry for key, entry in document.items() if entry is not None}
    path.write_text(yaml.safe_dump(kept))
    return path


def edit_scene(path, index=0, **changes):
    document = yaml.safe_load(path.read_text())
    document["scenes"][index] |= changes
    path.write_text(yaml.safe_dump(document))
    return path


def write_polygons(path, **columns):
    """Write one polygon over the middle of the scene of `make_site`."""
    polygon = shapely.box(600_305, 5_199_003, 602_005, 5_199_803)
    frame = geopandas.GeoDataFrame(columns, geometry=[polygon], crs="EPSG:32614")
    frame.to_file(path)


def test_scenes_of_another_gsd_are_resampled_where_the_manifest_says_so(
    tmp_path, make_site
):
    path = make_site(tmp_path, num_scenes=2)
    for name in ("scene_1.tif", "scene_1_labels.tif"):
        rewrite(tmp_path / name, transform=Affine(20, 0, 602_565, 0, -16, 5_200_003))

    site = open_site(edit(path, gsd_m=12))

    assert site.gsd_m == pytest.approx(12)
    assert [scene.grid.gsd_m for scene in site.scenes] == pytest.approx([12, 12])
    for scene, ratio in zip(site.scenes, (80 / 144, 320 / 144), strict=True):
        with site.open_scene(scene) as reader:
            pixels, labels = reader.read_valid_labels(scene.grid.window)
        assert set(np.unique(labels)) == {0, 1, 2, 3, IGNORE}
        # Nodata and unknown aside, an area is the same at any GSD.
        known = (labels != IGNORE).sum() / ratio
        assert known == pytest.approx(0.9 * 192 * 256, rel=0.08)
        assert pixels.values.dtype == np.float32


def test_scenes_in_another_crs_are_brought_to_that_of_the_manifest(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=2)
    place = Affine(10, 0, 150_005, 0, -8, 5_200_003)
    for name in ("scene_1.tif", "scene_1_labels.tif"):
        rewrite(tmp_path / name, crs="EPSG:32615", transform=place)

    with pytest.raises(DataError, match=r"scene_1\.tif is in EPSG:32615.*`crs`"):
        open_site(path)
    site = open_site(edit(path, crs="EPSG:32614", gsd_m=9))

    assert {scene.grid.crs.to_epsg() for scene in site.scenes} == {32614}
    with site.open_scene(site.scenes[1]) as reader:
        pixels, labels = reader.read_valid_labels(site.scenes[1].grid.window)
    assert set(np.unique(labels)) == {0, 1, 2, 3, IGNORE}
    # What a class looks like tells whether labels and image lie on each other.
    for class_id in range(4):
        values = pixels.values[labels == class_id]
        assert values.std(axis=0).max() < 800


@pytest.mark.parametrize(
    ("crs", "message"),
    [
        ("EPSG:4326", "which is not projected"),
        ("EPSG:99999999", "which is no CRS"),
        ("my.prj", "which is no CRS: it is neither an authority"),
        ("https://example.org/32614", "which is no CRS: it is neither an authority"),
        ("PROJCS[", "which is no CRS"),
    ],
)
def test_a_crs_that_is_none_is_said_once_and_nothing_is_read_for_it(
    tmp_path, make_site, monkeypatch, crs, message
):
    path = edit(make_site(tmp_path, num_scenes=3), crs=crs)
    (tmp_path / "my.prj").write_text(CRS.from_epsg(32614).to_wkt())
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=message) as error:
        open_site(path)

    assert str(error.value).count("`crs`") == 1


def test_a_crs_may_be_given_as_wkt(tmp_path, make_site):
    path = edit(make_site(tmp_path), crs=CRS.from_epsg(32615).to_wkt(), gsd_m=9)

    assert open_site(path).scenes[0].grid.crs.to_epsg() == 32615


def test_classes_may_have_ids_of_their_own(tmp_path, make_site):
    path = make_site(tmp_path)
    document = yaml.safe_load(path.read_text())
    for entry, class_id in zip(document["classes"], (2, 0, 3, 1), strict=True):
        entry["id"] = class_id
    with_ids, plain = edit(path, **document), make_site(tmp_path / "plain")

    site, other = open_site(with_ids), open_site(plain)

    assert site.classes.names == ("wheat", "water", "soybeans", "grassland")
    found = []
    for each in (site, other):
        with each.open_scene(each.scenes[0]) as reader:
            found.append(reader.read_labels(each.scenes[0].grid.window))
    expected = np.array([2, 0, 3, 1, *[IGNORE] * 252], "uint8")[found[1]]
    np.testing.assert_array_equal(found[0], expected)


def test_a_band_that_a_scene_has_not_is_named(tmp_path, make_site):
    path = edit_scene(make_site(tmp_path, bands=3), bands=["blue", "green", "swir9"])

    with pytest.raises(DataError, match=r"scene_0\.tif has .*ask for red too"):
        open_site(path)


def test_a_fourth_band_that_looks_like_alpha_is_explained(tmp_path, make_site):
    path = make_site(tmp_path, bands=4, dtype="uint8")
    image = tmp_path / "scene_0.tif"
    with rasterio.open(image) as dataset:
        values, where = dataset.read(), dataset.profile
    where |= {"photometric": "RGB", "alpha": "YES", "nodata": None}
    with rasterio.open(image, "w", **where) as dataset:
        dataset.write(values)

    with pytest.raises(DataError, match=r"3 bands besides alpha .*`alpha_is_band"):
        open_site(path)
    site = open_site(edit_scene(path, alpha_is_band=True))

    with site.open_scene(site.scenes[0]) as reader:
        found = reader.read_pixels(site.scenes[0].grid.window)
    np.testing.assert_array_equal(found.values, np.moveaxis(values, 0, -1))
    assert found.valid.all()


def test_scenes_of_one_name_are_numbered_and_no_name_is_taken_twice(
    tmp_path, make_site
):
    path = make_site(tmp_path, num_scenes=4)
    for index, name in enumerate(["east", "east", "east_2", "east"]):
        edit_scene(path, index, name=name)

    names = [scene.name for scene in open_site(path).scenes]

    assert names == ["east", "east_3", "east_2", "east_4"]


def test_scenes_whose_names_differ_in_case_are_numbered_too(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=2)
    for index, name in enumerate(["east", "East"]):
        edit_scene(path, index, name=name)

    names = [scene.name for scene in open_site(path).scenes]

    assert names == ["east", "East_2"]


def test_a_scene_in_degrees_is_read_where_it_is(tmp_path, make_site):
    options = {"crs": "EPSG:4326", "xres": 1e-4, "yres": 8e-5, "split": None}
    path = make_site(tmp_path, height=40, width=60, **options)
    place = Affine(1e-4, 0, -97.7, 0, -8e-5, 46.94)
    for name in ("scene_0.tif", "scene_0_labels.tif"):
        rewrite(tmp_path / name, transform=place)

    site = open_site(path)

    assert site.gsd_m == pytest.approx(8.2, abs=0.3)
    with site.open_scene(site.scenes[0]) as reader:
        _, labels = reader.read_valid_labels(site.scenes[0].grid.window)
    assert (labels != IGNORE).mean() > 0.5


@pytest.mark.parametrize("ending", [".shp", ".dbf", ".shx", ".prj", ".cpg"])
def test_a_fingerprint_changes_with_each_file_of_a_shapefile(
    tmp_path, make_site, ending
):
    write_polygons(tmp_path / "fields.shp", crop=["5"])
    labels = {"labels": "fields.shp", "field": "crop"}
    path = edit_scene(make_site(tmp_path), **labels)
    before = open_site(path).fingerprint

    file = tmp_path / f"fields{ending}"
    file.write_bytes(file.read_bytes() + b" ")

    assert open_site(path).fingerprint != before


def test_a_fingerprint_stays_with_a_copy_of_the_same_files(tmp_path, make_site):
    path = make_site(tmp_path / "here", split="regions")
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copy)
    image = tmp_path / "there" / "scene_0.tif"
    os.utime(image, ns=(0, 1_000_000_000))

    copy = open_site(tmp_path / "there" / path.name)

    assert copy.fingerprint == open_site(path).fingerprint


def test_a_fingerprint_changes_with_content_of_the_same_size(tmp_path, make_site):
    path = make_site(tmp_path)
    image = tmp_path / "scene_0.tif"
    before = open_site(path).fingerprint

    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)

    assert open_site(path).fingerprint != before


def test_a_fingerprint_changes_with_each_tile_and_with_its_name(tmp_path, make_site):
    path = edit_scene(make_site(tmp_path), image="tiles")
    (tmp_path / "tiles").mkdir()
    tile = (tmp_path / "scene_0.tif").rename(tmp_path / "tiles" / "a.tif")
    found = [open_site(path).fingerprint]

    shutil.copy2(tile, tile.with_name("b.tif"))
    found.append(open_site(path).fingerprint)
    tile.with_name("b.tif").rename(tile.with_name("c.tif"))
    found.append(open_site(path).fingerprint)

    assert len(set(found)) == 3


def test_a_fingerprint_changes_with_side_cars_that_are_trusted(tmp_path, make_site):
    path = make_site(tmp_path)
    sidecar = tmp_path / "scene_0.tif.aux.xml"
    prints = {}
    for trust in (False, True):
        edit_scene(path, trust_sidecars=trust)
        prints[trust] = [open_site(path).fingerprint]
        sidecar.write_text("<PAMDataset></PAMDataset>")
        prints[trust].append(open_site(path).fingerprint)
        sidecar.unlink()

    assert prints[False][0] == prints[False][1]
    assert prints[True][0] != prints[True][1]


def test_a_nodata_of_nan_counts_in_a_fingerprint(tmp_path, make_site):
    path = make_site(tmp_path)
    without = open_site(path).fingerprint

    assert open_site(edit_scene(path, nodata=math.nan)).fingerprint != without


def test_the_polygons_of_demo_area_2_label_its_pixels(tmp_path):
    _, path = write_areas(tmp_path, seed=0, size_px=256)
    site = open_site(path)
    scene = site.scenes[0]
    entry = site.manifest.scenes[0]
    frame = geopandas.read_file(tmp_path / "area_2" / entry.labels)

    with rasterio.open(scene.image_path) as dataset:
        assert dataset.transform.a == pytest.approx(0.4)
    assert frame.crs.to_epsg() == 4326
    assert site.gsd_m == pytest.approx(0.5)
    fields = frame.to_crs(scene.grid.crs)
    expected = rasterize(
        [
            (shape, site.classes.names.index(name))
            for shape, name in zip(fields.geometry, fields["crop"], strict=True)
        ],
        out_shape=(scene.grid.height, scene.grid.width),
        fill=IGNORE,
        transform=scene.grid.transform,
    )
    whole = replace(site, split=None)  # no field is cut
    with whole.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(scene.grid.window)
    expected[~pixels.valid] = IGNORE
    assert (labels == expected).mean() > 0.999
    with site.open_scene(scene) as reader:
        cut = reader.read_labels(scene.grid.window)
    np.testing.assert_array_equal(cut[cut != IGNORE], expected[cut != IGNORE])
    assert set(np.unique(labels)) == {*range(len(site.classes)), IGNORE}


def test_a_block_smaller_than_a_pixel_is_refused(tmp_path, make_site):
    path = make_site(tmp_path)
    split = yaml.safe_load(path.read_text())["split"]

    with pytest.raises(DataError, match=r"`block_m` .* is 0\.32 m; expected at"):
        open_site(edit(path, split=split | {"block_m": 0.32, "gap_m": 0}))
