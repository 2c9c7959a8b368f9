"""The check: it collects what stands in the way, and raises nothing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.enums import ColorInterp
from shapely.geometry import Point, Polygon, box

from cropseg.checks.check import check_manifest, check_site
from cropseg.checks.findings import LEVELS
from cropseg.checks.inspection import list_labelled_scenes
from cropseg.checks.reference import describe_site
from cropseg.demo.areas import write_areas
from cropseg.errors import DataError, UnsafeFileError
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site

TILE = 64
MANIFESTS = Path(__file__).parents[2] / "data_manifests"
PRAIRIE = Path(__file__).parents[2].parent / "shared" / "data" / "prairie"
HARMLESS = {
    *("train-test-distance", "train-test-distance-between-sites", "resampled"),
    *("val-empty", "val-classes-absent", "test-classes-absent", "few-test-blocks"),
    "test-classes-rare",
    *("fields-overlap", "classes-shared", "classes-new", "classes-gone"),
}
"""Codes of notes that good data may have: what they say is so."""


def check(path, **options):
    return check_manifest(path, tile_size=TILE, **options)


def get_codes(report):
    """Return level and code of all findings but the distance, which is always there."""
    return [
        (finding.level, finding.code)
        for finding in report.findings
        if not finding.code.startswith("train-test-distance")
    ]


def find(report, code):
    """Return the one finding with a code."""
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, report.findings
    return found[0]


def change(path, function):
    """Change the pixels of a file, (height, width, bands)."""
    with rasterio.open(path, "r+") as dataset:
        values = np.moveaxis(dataset.read(), 0, -1)
        dataset.write(np.moveaxis(function(values), -1, 0))


def edit(path, **entries):
    """Change top-level entries of a manifest; None takes one out."""
    manifest = yaml.safe_load(path.read_text(encoding="utf-8")) | entries
    kept = {key: entry for key, entry in manifest.items() if entry is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


def set_crs(path, crs):
    with rasterio.open(path, "r+") as dataset:
        dataset.crs = crs


def cut_in_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def move(path, rows, cols):
    """Move the pixels of a file; the grid stays."""
    change(path, lambda values: np.roll(values, (rows, cols), (0, 1)))


def move_place(path, x, y):
    """Move the grid of a file, in pixels; the pixels stay."""
    with rasterio.open(path, "r+") as dataset:
        dataset.transform = dataset.transform @ Affine.translation(x, y)


def swap_bands(path, first, second):
    def swap(values):
        values[..., [first, second]] = values[..., [second, first]]
        return values

    change(path, swap)


def copy_scene(folder, name, new_name):
    """Copy the image and the labels of a scene, and return its manifest entry."""
    for ending in (".tif", "_labels.tif"):
        shutil.copy(folder / f"{name}{ending}", folder / f"{new_name}{ending}")
    return {"image": f"{new_name}.tif", "labels": f"{new_name}_labels.tif"}


@pytest.fixture(scope="module", params=[0, 1])
def demo(request, tmp_path_factory):
    """Return the manifests of both demo areas."""
    folder = tmp_path_factory.mktemp("demo")
    return write_areas(folder, seed=request.param, size_px=512)


@pytest.fixture
def demo_copy(tmp_path):
    """Return the manifests of both demo areas, whose files a test may change."""
    return write_areas(tmp_path, seed=0, size_px=512)


@pytest.fixture(scope="module")
def prairie_folder():
    """Return the folder of the prairie pair."""
    if not PRAIRIE.is_dir():
        pytest.skip("../shared/data/prairie is not there")
    return PRAIRIE


@pytest.fixture
def prairie(prairie_folder, tmp_path):
    """Return the manifests of both prairie areas, whose files a test may change."""
    paths = []
    for area in (1, 2):
        folder = tmp_path / f"area_{area}"
        folder.mkdir()
        for ending in (".tif", "_labels.tif"):
            shutil.copy(prairie_folder / f"rural_area_{area}{ending}", folder)
        shutil.copy(MANIFESTS / "prairie_area_2_split.geojson", folder)
        path = folder / "site.yaml"
        shutil.copy(MANIFESTS / f"prairie_area_{area}.yaml", path)
        name = f"rural_area_{area}"
        scene = {"image": f"{name}.tif", "labels": f"{name}_labels.tif"}
        paths.append(edit(path, scenes=[scene]))
    return tuple(paths)


@pytest.fixture(scope="module")
def prairie_reference(prairie_folder):
    """Return what prairie area 2 is compared to."""
    assert prairie_folder.is_dir()
    return describe_site(open_site(MANIFESTS / "prairie_area_1.yaml"), 256)


# Good data.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"split": "regions"},
        {"degrees": 20},
        {"south_up": True},
        {"dtype": "float32"},
        {"num_scenes": 2},
    ],
    ids=str,
)
def test_a_good_site_has_no_finding_but_the_distance(tmp_path, make_site, changes):
    report = check(make_site(tmp_path, **changes))

    assert report.is_ok
    assert get_codes(report) == []
    distance = find(report, "train-test-distance")
    assert distance.level == "note"
    assert f"{report.separation.distance_m:g} m" in distance.message


def test_good_made_up_areas_have_only_harmless_notes(demo):
    first, second = demo
    reports = [
        check_manifest(first),
        check_manifest(second),
        check_manifest(second, reference=describe_site(open_site(first), 256)),
    ]

    for report in reports:
        assert {finding.level for finding in report.findings} == {"note"}
        assert {finding.code for finding in report.findings} <= HARMLESS


@pytest.mark.parametrize(
    "name",
    ["denmark", "prairie_area_1", "prairie_area_2", "prairie_area_2_parcels"],
)
@pytest.mark.usefixtures("prairie_folder")
def test_good_real_areas_have_only_harmless_notes(name, prairie_reference):
    is_target = name.startswith("prairie_area_2")
    reference = prairie_reference if is_target else None

    report = check_manifest(MANIFESTS / f"{name}.yaml", reference=reference)

    assert {finding.level for finding in report.findings} == {"note"}
    assert {finding.code for finding in report.findings} <= HARMLESS


# Labels that do not fit their image.

SHIFTS = {
    (2, 0): "2 row(s) too low:",
    (-2, 0): "2 row(s) too high:",
    (0, 2): "2 column(s) too far right:",
    (2, -2): "2 row(s) too low and 2 column(s) too far left:",
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_labels_shifted_by_2_pixels_are_found_with_their_direction(
    tmp_path, make_site, shift
):
    path = make_site(tmp_path)
    move(tmp_path / "scene_0_labels.tif", *shift)

    finding = find(check(path), "labels-shifted")

    assert finding.level == "warning"
    assert SHIFTS[shift] in finding.message
    assert finding.path.endswith("scene_0_labels.tif")


def test_the_shift_of_real_labels_is_found(prairie):
    path, _ = prairie
    move(path.parent / "rural_area_1_labels.tif", -2, 2)

    finding = find(check_manifest(path), "labels-shifted")

    assert "2 row(s) too high and 2 column(s) too far right" in finding.message


def test_labels_that_say_another_zone_cannot_be_opened(tmp_path, make_site):
    path = make_site(tmp_path)
    set_crs(tmp_path / "scene_0_labels.tif", "EPSG:32615")

    report = check(path)

    assert report.site is None
    assert get_codes(report) == [("error", "cannot-open")]
    assert "CRS EPSG:32614 against EPSG:32615" in report.findings[0].message
    assert "resample_labels: true" in report.findings[0].message


def test_real_labels_that_say_another_zone_cannot_be_opened(prairie):
    path, _ = prairie
    set_crs(path.parent / "rural_area_1_labels.tif", "EPSG:32613")

    (finding,) = check_manifest(path).findings

    assert (finding.level, finding.code) == ("error", "cannot-open")
    assert "EPSG:32613" in finding.message


def resample_labels(path):
    scenes = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    return edit(path, scenes=[scene | {"resample_labels": True} for scene in scenes])


def test_resampled_labels_of_another_zone_lie_elsewhere(tmp_path, make_site):
    path = resample_labels(make_site(tmp_path))
    set_crs(tmp_path / "scene_0_labels.tif", "EPSG:32615")

    report = check(path)

    finding = find(report, "labels-elsewhere")
    assert finding.level == "error"
    assert "in EPSG:32615, the image in EPSG:32614" in finding.message
    # A zone is 6 degrees wide, and one degree at 47 degrees north 76 km.
    distance_m = float(
        finding.message.split(" m apart")[0].split()[-1].replace(",", "")
    )
    assert distance_m == pytest.approx(
        6 * 111_320 * math.cos(math.radians(47)), rel=0.1
    )


def test_real_resampled_labels_of_another_zone_lie_elsewhere(prairie):
    path = resample_labels(prairie[0])
    set_crs(path.parent / "rural_area_1_labels.tif", "EPSG:32613")

    assert find(check_manifest(path), "labels-elsewhere").level == "error"


def test_resampled_labels_of_the_same_ground_are_no_finding(tmp_path, make_site):
    path = resample_labels(make_site(tmp_path))
    move_place(tmp_path / "scene_0_labels.tif", 0.25, 0.25)

    assert get_codes(check(path)) == []


def write_fields(path, shapes, values, crs="EPSG:32614"):
    frame = geopandas.GeoDataFrame({"code": values}, geometry=shapes, crs=crs)
    frame.to_file(path, driver="GPKG")


def make_field_site(make_site, folder, shapes, values, *, crs="EPSG:32614", **changes):
    """Write a site of which polygons are the labels."""
    path = make_site(folder, **changes)
    write_fields(folder / "fields.gpkg", shapes, values, crs)
    scenes = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    entry = {"labels": "fields.gpkg", "field": "code"}
    return edit(path, ignore=[], scenes=[scene | entry for scene in scenes])


def list_boxes(rows=9, cols=9, size=200):
    """Return square fields beside one another within the site of `make_site`."""
    return [
        box(x, y - size, x + size, y)
        for x in range(600_010, 600_010 + cols * (size + 20), size + 20)
        for y in range(5_200_000, 5_200_000 - rows // 2 * (size + 20), -size - 20)
    ]


def name_fields(shapes):
    return [(5, 22, 176, 111)[index % 4] for index in range(len(shapes))]


def test_polygons_of_another_zone_lie_elsewhere(tmp_path, make_site):
    shapes = list_boxes()
    codes = name_fields(shapes)
    path = make_field_site(make_site, tmp_path, shapes, codes, crs="EPSG:32615")

    finding = find(check(path), "labels-elsewhere")

    assert finding.level == "error"
    assert finding.path.endswith("fields.gpkg")


def test_a_point_without_a_class_lies_in_its_scene_all_the_same(tmp_path, make_site):
    path = make_field_site(make_site, tmp_path, [Point(600_500, 5_199_500)], [9])
    edit(path, ignore="rest")

    report = check(path)

    assert find(report, "labels-none").level == "warning"
    assert ("error", "labels-elsewhere") not in get_codes(report)


def test_a_scene_beside_all_fields_of_a_shared_file_is_a_note(tmp_path, make_site):
    shapes = list_boxes()
    codes = name_fields(shapes)
    path = make_field_site(make_site, tmp_path, shapes, codes, num_scenes=3)

    report = check(path)

    found = [f for f in report.findings if f.code == "labels-elsewhere"]
    assert [f.level for f in found] == ["note", "note"]
    assert "scene_1" in found[0].message
    # The fields' middle is 2,855 m west and 335 m north of the scene's.
    assert "their middles are 2,87" in found[0].message


def test_codes_that_no_class_names_are_a_warning_with_ignore_rest(tmp_path, make_site):
    path = make_site(tmp_path, ignore="rest", split=None)
    change(tmp_path / "scene_0_labels.tif", lambda values: values * 0 + 200)

    assert get_codes(check(path)) == [
        ("warning", "no-split"),
        ("warning", "labels-none"),
    ]


# Train and test that share pixels.


def test_a_scene_copied_to_another_place_is_in_train_and_in_test(tmp_path, make_site):
    path = make_site(tmp_path)
    first = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    copy = copy_scene(tmp_path, "scene_0", "copy")
    for name in copy.values():
        move_place(tmp_path / name, 1003, 517)

    report = check(edit(path, scenes=[*first, copy]))

    assert not report.is_ok
    finding = find(report, "content-in-train-and-test")
    assert finding.level == "error"
    assert "scene_0 and copy (100% of the smaller)" in finding.message
    assert "train-test-overlap" not in [f.code for f in report.findings]


@pytest.mark.slow
def test_a_real_scene_copied_to_another_place_is_in_train_and_in_test(prairie):
    path, _ = prairie
    (scene,) = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    copy = copy_scene(path.parent, "rural_area_1", "copy")
    for name in copy.values():
        move_place(path.parent / name, 2000, -371)

    report = check_manifest(edit(path, scenes=[scene, copy]))

    assert find(report, "content-in-train-and-test").level == "error"


def test_a_copy_that_stays_in_its_part_is_a_warning(tmp_path, make_site):
    path = make_site(tmp_path)
    first = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]

    report = check(edit(path, scenes=[*first, copy_scene(tmp_path, "scene_0", "copy")]))

    assert get_codes(report) == [
        ("warning", "content-twice"),
        ("note", "scenes-overlap"),
    ]
    assert report.separation.num_shared_pixels == 0


def cut_scenes(folder, columns):
    """Cut overlapping scenes out of the first one; return their manifest entries."""
    entries = []
    for index, (start, end) in enumerate(columns):
        for ending in (".tif", "_labels.tif"):
            with rasterio.open(folder / f"scene_0{ending}") as dataset:
                values, profile = dataset.read(), dataset.profile
            profile["transform"] @= Affine.translation(start, 0)
            profile["width"] = end - start
            with rasterio.open(folder / f"cut_{index}{ending}", "w", **profile) as cut:
                cut.write(values[:, :, start:end])
        name = f"cut_{index}"
        entries.append({"image": f"{name}.tif", "labels": f"{name}_labels.tif"})
    return entries


def test_cuts_of_one_image_that_overlap_are_a_note_and_no_copy(tmp_path, make_site):
    path = make_site(tmp_path)

    report = check(edit(path, scenes=cut_scenes(tmp_path, [(0, 150), (106, 256)])))

    assert get_codes(report) == [("note", "scenes-overlap")]
    assert "29% of the smaller" in find(report, "scenes-overlap").message


def test_a_place_that_a_scene_has_twice_is_told_as_that(tmp_path, make_site):
    path = make_site(tmp_path, split=None)

    def repeat(values):
        values[120:180, 180:250] = values[10:70, 100:170]
        return values

    change(tmp_path / "scene_0.tif", repeat)

    finding = find(check(path), "content-twice")

    assert "in two places of scene_0 (" in finding.message
    assert "% of it)" in finding.message
    assert "repeats itself" in finding.remedy


def photograph_again(path, names):
    """Give copies other pixels, on a grid that is two thirds of a pixel further."""
    for name in names:
        move_place(path.parent / name, 2 / 3, 2 / 3)
    noise = np.random.default_rng(0)
    change(
        path.parent / names[0],
        lambda v: np.where(v > 0, v + noise.integers(0, 9, v.shape), v).astype(v.dtype),
    )


@pytest.mark.parametrize(("gap_m", "overlaps"), [(0, True), (10, False)])
def test_the_same_ground_on_another_grid_overlaps_unless_there_is_a_gap(
    tmp_path, make_site, gap_m, overlaps
):
    split = {"block_m": 320, "gap_m": gap_m, "train": 0.6, "val": 0.2, "test": 0.2}
    path = make_site(tmp_path, split=split)
    first = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    copy = copy_scene(tmp_path, "scene_0", "copy")
    photograph_again(path, list(copy.values()))

    report = check(edit(path, scenes=[*first, copy]))

    codes = [("error", "train-test-overlap")] if overlaps else []
    assert get_codes(report) == [*codes, ("note", "scenes-overlap")]
    if overlaps:
        assert "`gap_m`" in find(report, "train-test-overlap").remedy


@pytest.mark.slow
def test_the_same_real_ground_on_another_grid_overlaps(prairie):
    path, _ = prairie
    (scene,) = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    copy = copy_scene(path.parent, "rural_area_1", "copy")
    photograph_again(path, list(copy.values()))

    report = check_manifest(edit(path, scenes=[scene, copy]))

    assert find(report, "train-test-overlap").level == "error"


@pytest.mark.parametrize("seed", [0, 1])
def test_two_sites_on_the_same_ground_overlap_by_another_split(
    tmp_path, make_site, seed
):
    split = {"block_m": 320, "train": 0.6, "val": 0.2, "test": 0.2, "seed": seed}
    source = open_site(make_site(tmp_path / "1"))
    path = make_site(tmp_path / "2", split=split)

    report = check(path, reference=describe_site(source, TILE))

    overlaps = ("error", "train-test-overlap-between-sites") in get_codes(report)
    assert overlaps == (seed == 1)


# Another site, or a model.


@pytest.mark.slow
def test_a_band_order_swapped_between_made_up_areas_is_found(demo_copy):
    first, second = demo_copy
    reference = describe_site(open_site(first), 256)
    swap_bands(second.parent / "scene.tif", 0, 2)

    finding = find(check_manifest(second, reference=reference), "bands-swapped")

    assert finding.level == "warning"
    names = open_site(second).bands
    assert {names[0], names[2]} <= set(finding.message.replace(",", "").split())


def test_a_band_order_swapped_between_real_areas_is_found(prairie, prairie_reference):
    _, path = prairie
    swap_bands(path.parent / "rural_area_2.tif", 3, 4)

    report = check_manifest(path, reference=prairie_reference)

    finding = find(report, "bands-swapped")
    assert "Bands nir, red look like red, nir of prairie-area-1" in finding.message


def test_classes_bands_and_gsd_are_compared_with_another_site(tmp_path, make_site):
    source = make_site(
        tmp_path / "1", class_names=("wheat", "corn", "water"), bands=("red", "nir")
    )
    path = make_site(tmp_path / "2", xres=12.0, yres=12.0, gain=3, sensor="other")

    report = check(path, reference=describe_site(open_site(source), TILE))

    found = {finding.code: finding for finding in report.findings}
    assert found["classes-shared"].message == "Shared, against 1: wheat, water."
    assert found["classes-new"].message == "New here, against 1: soybeans, grassland."
    assert found["classes-gone"].message == "Not here, against 1: corn."
    assert "blue, green, swir1" in found["bands-new"].message
    assert found["bands-far"].level == "warning"
    assert found["gsd-differs"].level == "error"
    assert "`gsd_m: 8.944`" in found["gsd-differs"].remedy
    message = "`sensor` is 'other', that of 1 'made up'"
    assert message in found["sensor-other"].message
    assert report.distance.gsd_ratio == pytest.approx(12 / 80**0.5)
    shares = {item.name: item for item in report.distance.class_shares.changes}
    assert shares["corn"].target_share == 0
    assert shares["corn"].source_share == pytest.approx(1 / 3, abs=0.05)
    assert shares["soybeans"].target_share == pytest.approx(1 / 4, abs=0.05)


def test_missing_bands_and_no_shared_class_are_errors_and_stand_first(
    tmp_path, make_site
):
    source = make_site(tmp_path / "1", class_names=("corn", "fallow"))
    path = make_site(tmp_path / "2", bands=("blue", "green", "red"), split=None)

    report = check(path, reference=describe_site(open_site(source), TILE))

    errors = [code for level, code in get_codes(report) if level == "error"]
    assert errors == ["no-class-shared", "bands-missing"]
    assert "nir, swir1" in find(report, "bands-missing").message
    levels = [LEVELS.index(finding.level) for finding in report.findings]
    assert levels == sorted(levels)


def test_a_band_that_only_the_source_computes_is_not_missing(tmp_path, make_site):
    ndvi = {"ndvi": "(nir - red) / (nir + red)"}
    source = make_site(tmp_path / "1", derived=ndvi)
    path = make_site(tmp_path / "2")

    report = check(path, reference=describe_site(open_site(source), TILE))

    assert "bands-missing" not in [finding.code for finding in report.findings]


def test_a_class_of_several_source_names_has_the_first_ones_share(tmp_path, make_site):
    source = make_site(tmp_path / "1", class_names=("wheat", "corn", "water"))
    classes = [
        {"name": "cereals", "color": "#d8b56b", "values": [22, 23], "from": ["wheat"]},
        {"name": "water", "color": "#4a6fa3", "values": [111]},
    ]
    path = make_site(tmp_path / "2", classes=classes, ignore="rest")

    report = check(path, reference=describe_site(open_site(source), TILE))

    assert report.distance.shared == ("cereals", "water")
    assert report.distance.gone == ("corn",)
    names = {item.name for item in report.distance.class_shares.changes}
    assert names == {"wheat", "corn", "water"}


def test_source_classes_that_are_one_here_are_compared_together(tmp_path, make_site):
    source = make_site(tmp_path / "1")
    classes = [
        {"name": "crops", "color": "#d8b56b", "values": [5, 22, 23]},
        {"name": "grassland", "color": "#e8ffbf", "values": [176]},
        {"name": "water", "color": "#4a6fa3", "values": [111]},
    ]
    classes[0]["from"] = ["soybeans", "wheat"]
    path = make_site(tmp_path / "2", classes=classes)

    report = check(path, reference=describe_site(open_site(source), TILE))

    shares = report.distance.class_shares
    names = {item.name for item in shares.changes}
    assert names == {"soybeans + wheat", "grassland", "water"}
    assert shares.total_variation < 0.1


def test_a_source_without_a_split_cannot_be_compared_to(tmp_path, make_site):
    with pytest.raises(DataError, match="no `split`"):
        describe_site(open_site(make_site(tmp_path, split=None)), TILE)


def test_a_site_without_a_valid_pixel_is_not_compared(tmp_path, make_site):
    source = make_site(tmp_path / "1")
    path = make_site(tmp_path / "2", split=None)
    change(path.parent / "scene_0.tif", lambda values: values * 0 - 9999)

    report = check(path, reference=describe_site(open_site(source), TILE))

    assert report.distance is None
    assert ("warning", "much-nodata") in get_codes(report)


# Files.


@pytest.mark.parametrize("split", ["blocks", None])
@pytest.mark.parametrize("name", ["scene_0.tif", "scene_0_labels.tif"])
def test_a_truncated_file_is_found_with_and_without_a_split(
    tmp_path, make_site, name, split
):
    path = make_site(tmp_path, split=split)
    site = open_site(path)
    cut_in_half(tmp_path / name)

    report = check_site(site, tile_size=TILE)

    assert not report.is_ok
    finding = find(report, "not-readable")
    assert finding == report.findings[0]
    assert "Cannot read rows" in finding.message
    assert name in finding.message


def write_partly(path, write_raster, values, num_rows, **profile):
    """Write the first rows of a file in blocks, and stop as a killed writer does."""
    write_raster(path, values[:num_rows], **profile)
    with rasterio.open(path) as dataset:
        profile = dataset.profile | {"height": len(values), "tiled": True}
    profile |= {"blockxsize": 64, "blockysize": 64, "sparse_ok": True}
    with rasterio.open(path, "w", **profile) as dataset:
        area = ((0, num_rows), (0, values.shape[1]))
        dataset.write(np.moveaxis(values[:num_rows], -1, 0), window=area)


@pytest.mark.parametrize("name", ["scene_0.tif", "scene_0_labels.tif"])
def test_the_blocks_that_a_stopped_writer_left_out_are_found(
    tmp_path, make_site, write_raster, name
):
    path = make_site(tmp_path, bands=2)
    with rasterio.open(tmp_path / name) as dataset:
        values, nodata = np.moveaxis(dataset.read(), 0, -1), dataset.nodata
    write_partly(tmp_path / name, write_raster, values, 128, nodata=nodata)
    with (tmp_path / name).open("ab") as file:
        file.write(bytes(70_000))  # a block whose place was never written down

    report = check(path)

    finding = find(report, "blocks-unwritten")
    assert finding.level == "error"
    assert f"{name} lacks" in finding.message
    assert "(33%)" in finding.message


def test_a_file_of_two_scenes_has_one_finding(tmp_path, make_site, write_raster):
    path = make_site(tmp_path, bands=2)
    with rasterio.open(tmp_path / "scene_0.tif") as dataset:
        values = np.moveaxis(dataset.read(), 0, -1)
    write_partly(tmp_path / "scene_0.tif", write_raster, values, 128, nodata=-9999)
    (scene,) = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]

    report = check(edit(path, scenes=[scene, scene]))

    assert find(report, "blocks-left-out").level == "note"


def test_blocks_that_were_left_out_on_purpose_are_a_note(
    tmp_path, make_site, write_raster
):
    path = make_site(tmp_path, bands=2)
    with rasterio.open(tmp_path / "scene_0.tif") as dataset:
        values = np.moveaxis(dataset.read(), 0, -1)
    name = tmp_path / "scene_0.tif"
    write_partly(name, write_raster, values, 128, nodata=-9999)

    assert get_codes(check(path)) == [
        ("note", "blocks-left-out"),
        ("note", "few-test-blocks"),
    ]


def test_a_band_order_that_the_file_contradicts_is_an_error(tmp_path, make_site):
    path = make_site(tmp_path)

    report = check(edit(path, bands=["red", "green", "blue", "nir", "swir1"]))

    finding = find(report, "bands-order")
    assert finding.level == "error"
    assert "blue, green, red, nir, swir1" in finding.message


def test_colours_that_the_file_contradicts_are_a_warning(tmp_path, make_site):
    path = make_site(tmp_path, bands=("blue", "green", "red"))
    colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    with rasterio.open(tmp_path / "scene_0.tif", "r+") as dataset:
        dataset.descriptions = (None, None, None)
        dataset.colorinterp = colors

    finding = find(check(path), "bands-color")

    assert finding.level == "warning"
    assert "band 1 is red, the manifest says blue" in finding.message


def test_near_infrared_that_the_file_calls_red_is_no_finding(tmp_path, make_site):
    path = make_site(tmp_path, bands=("nir", "red", "green"))
    with rasterio.open(tmp_path / "scene_0.tif", "r+") as dataset:
        dataset.descriptions = (None, None, None)
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)

    assert get_codes(check(path)) == []


def test_an_image_with_a_palette_is_a_warning(tmp_path, make_site):
    path = make_site(tmp_path, bands=("red",), dtype="uint8")
    with rasterio.open(tmp_path / "scene_0.tif", "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0), 2: (0, 255, 0)})

    assert find(check(path), "image-palette").level == "warning"


def test_a_resampled_scene_is_a_note(tmp_path, make_site):
    path = make_site(tmp_path, xres=8.0, gsd_m=16)

    finding = find(check(path), "resampled")

    assert "from 8 m in EPSG:32614 to 16 m in EPSG:32614" in finding.message


def test_metres_that_the_crs_stretches_are_a_warning(tmp_path, make_site):
    path = make_site(tmp_path, crs="EPSG:3857", xres=8.0)

    finding = find(check(path), "metres-stretched")

    # 600 km east and 5 200 km north of the origin of Web Mercator: 42.2 N, 5.4 E.
    assert finding.level == "warning"
    assert "calls 8 m wide is 5.9" in finding.message
    assert "`crs: EPSG:32631` and `gsd_m: 5.9`" in finding.remedy

    edit(path, crs="EPSG:32631", gsd_m=5.9)
    assert ("warning", "metres-stretched") not in get_codes(check(path))


@pytest.mark.parametrize("crs", ["EPSG:2264", "EPSG:25832"])
def test_metres_and_feet_of_the_ground_are_no_finding(tmp_path, make_site, crs):
    path = make_site(tmp_path, crs=crs, split=None)

    assert get_codes(check(path)) == [("warning", "no-split")]


def test_a_class_that_the_label_file_calls_no_data_is_a_warning(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=2)
    for scene in (0, 1):
        with rasterio.open(tmp_path / f"scene_{scene}_labels.tif", "r+") as dataset:
            dataset.nodata = 0  # which the manifest ignores
    assert get_codes(check(path)) == []

    with rasterio.open(tmp_path / "scene_1_labels.tif", "r+") as dataset:
        dataset.nodata = 22

    finding = find(check(path), "labels-nodata")
    assert finding.level == "warning"
    assert "scene_1_labels.tif says that 22 means no data" in finding.message
    assert "the manifest that it is wheat" in finding.message


# Values.


def test_a_constant_band_and_much_nodata_are_warnings(tmp_path, make_site):
    def spoil(values):
        values[..., 3] = 7
        values[:110] = -9999
        return values

    path = make_site(tmp_path, split="regions")
    change(tmp_path / "scene_0.tif", spoil)

    report = check(path)

    assert find(report, "band-constant").message == "Band nir is 7 everywhere."
    share = 1 - (192 - 110) / 192 * (256 - 7) / 256
    assert find(report, "much-nodata").message == f"{share:.0%} of scene_0 has no data."
    assert {level for level, _ in get_codes(report)} == {"warning"}


def fill_corner(path, number):
    """Write a number over 20 x 50 pixels of every band."""

    def fill(values):
        values[100:120, 100:150] = number
        return values

    change(path.parent / "scene_0.tif", fill)
    return path


@pytest.mark.parametrize(
    ("dtype", "number", "level"),
    [
        ("int16", -32768, "warning"),
        ("float32", -9999, "warning"),
        ("float32", -3.4028235e38, "error"),
        ("float64", -1.7e308, "error"),
        ("float64", 1.7e308, "error"),
    ],
)
def test_a_number_for_no_data_that_nobody_declared_is_found(
    tmp_path, make_site, dtype, number, level
):
    path = fill_corner(make_site(tmp_path, dtype=dtype), number)
    other = make_site(tmp_path / "1", dtype=dtype)
    reference = describe_site(open_site(other), TILE)

    report = check(path, reference=reference)

    finding = find(report, "nodata-undeclared")
    assert finding.level == level
    assert f"{np.dtype(dtype).type(number):g} in blue, green, red" in finding.message
    json.dumps(report.to_json(), allow_nan=False)
    scenes = yaml.safe_load(path.read_text(encoding="utf-8"))["scenes"]
    declared = float(np.dtype(dtype).type(number))
    mended = check(
        edit(path, scenes=[scene | {"nodata": declared} for scene in scenes])
    )
    assert not any(f"{declared:g} in" in finding.message for finding in mended.findings)


def test_values_that_are_no_numbers_are_no_bug(tmp_path, make_site):
    def spoil(values):
        values[3, 5] = np.inf
        values[100, 200] = np.nan
        return values

    path = make_site(tmp_path, dtype="float32")
    change(tmp_path / "scene_0.tif", spoil)

    report = check(path)

    json.dumps(report.to_json(), allow_nan=False)
    assert all(math.isfinite(band.highest) for band in report.bands)


# Classes and split.


def test_a_site_without_a_split_is_a_warning(tmp_path, make_site):
    report = check(make_site(tmp_path, split=None))

    assert report.is_ok
    assert get_codes(report) == [("warning", "no-split")]
    assert report.findings[0].path.endswith("site.yaml")
    assert report.survey.class_pixels.sum() == 0


def test_labels_of_a_site_without_a_split_are_counted_and_compared(tmp_path, make_site):
    with_split = check(make_site(tmp_path / "1"))
    reference = describe_site(with_split.site, TILE)

    report = check(make_site(tmp_path / "2", split=None), reference=reference)

    counted = [row["all"] for row in report.list_classes()]
    pixels = with_split.survey.class_pixels.sum(axis=0).tolist()
    assert [item["pixels"] for item in counted] == pixels
    assert counted[0]["ha"] == pytest.approx(pixels[0] * 80 / 1e4, abs=0.01)
    assert report.distance.class_shares.total_variation < 0.1


def test_a_class_that_no_label_has_is_a_note_without_a_split(tmp_path, make_site):
    path = make_site(tmp_path, split=None)
    change(tmp_path / "scene_0_labels.tif", lambda v: np.where(v == 111, 0, v))

    report = check(path)

    assert get_codes(report) == [("warning", "no-split"), ("note", "classes-absent")]
    assert "label water." in find(report, "classes-absent").message


@pytest.mark.parametrize("split", ["blocks", None])
def test_unnamed_labels_are_found_with_and_without_a_split(tmp_path, make_site, split):
    report = check(make_site(tmp_path, ignore=[], split=split))

    assert not report.is_ok
    assert "does not name: 0 (" in find(report, "not-readable").message


def test_a_test_part_without_labels_is_an_error_and_has_no_distance(
    tmp_path, make_site
):
    split = {"block_m": 320, "train": 1, "val": 0, "test": 0}

    report = check(make_site(tmp_path, split=split))

    assert get_codes(report) == [("error", "not-trainable")]
    assert math.isinf(report.separation.distance_m)
    assert report.to_json()["train_test_distance_m"] is None


def forget_part(path, part, *, keep=0):
    """Make the labels of a part unknown, but for the first few pixels of water."""
    site = open_site(path)
    grid = site.scenes[0].grid
    parts = site.split.read_parts(grid, grid.window)

    def forget(values):
        rows, cols = np.nonzero((values[..., 0] == 111) & (parts == part))
        wanted = (
            parts == part if not keep else (parts == part) & (values[..., 0] == 111)
        )
        values[wanted] = 0
        values[rows[:keep], cols[:keep]] = 111
        return values

    change(path.parent / "scene_0_labels.tif", forget)


def test_a_val_part_without_labels_is_a_note_where_one_is_asked_for(
    tmp_path, make_site
):
    path = make_site(tmp_path)
    forget_part(path, PARTS.index("val"))
    folds = {"block_m": 320, "folds": 3, "fold": 0}
    shares = {"block_m": 320, "train": 0.8, "val": 0, "test": 0.2}

    assert get_codes(check(path)) == [("note", "val-empty")]
    for split in (folds, shares):
        codes = get_codes(check(make_site(tmp_path / "2", split=split)))
        assert ("note", "val-empty") not in codes


def test_a_class_with_few_test_pixels_is_a_note(tmp_path, make_site):
    path = make_site(tmp_path)
    forget_part(path, PARTS.index("test"), keep=99)

    report = check(path)

    assert get_codes(report) == [("note", "test-classes-rare")]
    assert "test pixels of water (" in find(report, "test-classes-rare").message


def keep_water(path, num_blocks):
    """Leave water in some training blocks that have much of it, and nowhere else."""
    site = open_site(path)
    grid = site.scenes[0].grid
    parts = site.split.read_parts(grid, grid.window)
    x, y = grid.locate_pixels(grid.window)
    blocks = x // 320 + y // 320 * 1e6

    def forget(values):
        water = values[..., 0] == 111
        found, counts = np.unique(blocks[water & (parts == 0)], return_counts=True)
        kept = found[counts >= 200][:num_blocks]
        assert len(kept) == num_blocks
        values[water & ~np.isin(blocks, kept)] = 0
        return values

    change(path.parent / "scene_0_labels.tif", forget)


def test_the_seed_of_the_remedy_brings_an_absent_class_into_every_part(
    tmp_path, make_site
):
    path = make_site(tmp_path)
    keep_water(path, num_blocks=4)

    report = check(path)

    assert ("note", "val-classes-absent") in get_codes(report)
    finding = find(report, "test-classes-absent")
    assert "no pixel of water" in finding.message
    assert "brings every class into every part" in finding.remedy
    seed = int(finding.remedy.split("`")[1].removeprefix("seed: "))
    split = {"block_m": 320, "train": 0.6, "val": 0.2, "test": 0.2, "seed": seed}
    helped = edit(path, split=split)
    assert not any("absent" in code for _, code in get_codes(check(helped)))
    assert survey_site(open_site(helped), TILE).class_pixels.min() >= 100


def test_a_class_in_too_few_blocks_is_named_and_is_rare(tmp_path, make_site):
    path = make_site(tmp_path)
    grid = open_site(path).scenes[0].grid
    parts = open_site(path).split.read_parts(grid, grid.window)

    def forget(values):
        rows, cols = np.nonzero((values[..., 0] == 111) & (parts == 0))
        values[values == 111] = 0
        values[rows[:50], cols[:50]] = 111
        return values

    change(tmp_path / "scene_0_labels.tif", forget)

    report = check(path)

    assert get_codes(report) == [
        ("note", "val-classes-absent"),
        ("note", "test-classes-absent"),
        ("note", "classes-rare"),
    ]
    assert find(report, "test-classes-absent").remedy == (
        "Too few blocks have water; use smaller ones."
    )
    assert "water (50)" in find(report, "classes-rare").message


def test_few_test_blocks_are_a_note(tmp_path, make_site):
    split = {"block_m": 640, "train": 0.6, "val": 0.2, "test": 0.2}

    finding = find(check(make_site(tmp_path, split=split)), "few-test-blocks")

    assert finding.level == "note"
    assert "`folds`" in finding.remedy


def test_a_geographic_crs_is_an_error_of_a_site_with_blocks(tmp_path, make_site):
    path = make_site(tmp_path, crs="EPSG:4326", xres=1e-4, yres=8e-5)
    for name in ("scene_0.tif", "scene_0_labels.tif"):
        with rasterio.open(tmp_path / name, "r+") as dataset:
            dataset.transform = rasterio.Affine(1e-4, 0, -99, 0, -8e-5, 50)

    report = check(path)

    assert not report.is_ok
    assert "EPSG:4326) is not projected" in report.findings[0].message


# Fields.


def test_repaired_empty_unlabelled_and_overlapping_fields_are_notes(
    tmp_path, make_site
):
    shapes = list_boxes()
    codes = name_fields(shapes)
    x, y = 600_600, 5_199_500
    bow_tie = Polygon([(x, y), (x + 90, y + 90), (x + 90, y), (x, y + 90)])
    shapes += [bow_tie, None, shapes[0].buffer(-20)]
    codes += [5, 5, None]
    path = make_field_site(make_site, tmp_path, shapes, codes)

    report = check(path)

    total = len(shapes) - 1
    messages = {finding.code: finding.message for finding in report.findings}
    assert f"1 of {total} fields of fields.gpkg were inv" in messages["fields-repaired"]
    assert "1 of" in messages["fields-empty"]
    assert "1 of" in messages["fields-unlabelled"]
    assert "overlap" in messages["fields-overlap"]
    assert {level for level, code in get_codes(report) if "fields" in code} == {"note"}


# What the report holds.


def test_what_is_unsafe_is_raised(tmp_path, make_site):
    path = edit(make_site(tmp_path), scenes=[{"image": "/vsicurl/http://a.b/c.tif"}])

    with pytest.raises(UnsafeFileError):
        check(path)


def test_a_report_is_json(tmp_path, make_site):
    path = make_site(tmp_path)
    reference = describe_site(open_site(make_site(tmp_path / "1", seed=1)), TILE)

    text = json.dumps(check(path, reference=reference).to_json(), allow_nan=False)
    document = json.loads(text)

    assert document["ok"] is True
    assert {tuple(finding) for finding in document["findings"]} == {
        ("level", "code", "message", "remedy", "path")
    }
    bands = ["blue", "green", "red", "nir", "swir1"]
    assert [band["name"] for band in document["bands"]] == bands
    assert document["gsd_m"] == pytest.approx(80**0.5)
    assert document["scenes"] == [
        {
            "name": "scene_0",
            "image": str(tmp_path / "scene_0.tif"),
            "labels": str(tmp_path / "scene_0_labels.tif"),
            "rows": 192,
            "columns": 256,
            "crs": "EPSG:32614",
            "gsd_m": pytest.approx(80**0.5),
            "resampled": False,
        }
    ]
    assert [file["role"] for file in document["files"]] == ["image", "labels"]
    assert document["files"][0]["nodata"] == [-9999] * 5
    assert document["nodata_share"] == pytest.approx(7 / 256)
    pixels = survey_site(open_site(path), TILE).class_pixels
    counted = [[item[part]["pixels"] for item in document["classes"]] for part in PARTS]
    assert counted == pixels.tolist()
    water = document["classes"][-1]
    assert water["name"] == "water"
    assert water["test"]["ha"] == pytest.approx(pixels[2, 3] * 80 / 1e4, abs=0.01)
    assert document["train_test_distance_m"] == 8
    assert document["distance"]["classes"]["total_variation"] < 0.2


def test_the_report_of_a_site_that_cannot_be_opened_has_the_reason(tmp_path, make_site):
    path = make_site(tmp_path)
    (tmp_path / "scene_0.tif").unlink()

    document = check(path).to_json()

    assert document["ok"] is False
    assert [finding["code"] for finding in document["findings"]] == ["cannot-open"]


def test_hectares_and_fields_are_counted_in_each_part(tmp_path, make_site):
    shapes = list_boxes()
    path = make_field_site(make_site, tmp_path, shapes, name_fields(shapes))

    report = check(path)

    rows = report.list_classes()
    fields = sum(row[part]["fields"] for row in rows for part in PARTS)
    assert fields >= len(shapes) - 2  # some lie across two parts, the stripe over none
    ha = sum(row[part]["ha"] for row in rows for part in PARTS)
    assert 0.6 < ha / (len(shapes) * 4) <= 1.01


def test_labelled_scenes_know_the_parts_of_labelled_pixels_alone(tmp_path, make_site):
    site = open_site(make_site(tmp_path))

    (scene,) = list_labelled_scenes(site)
    parts = scene.read_parts(scene.grid.window)

    pixels = survey_site(site, TILE).class_pixels.sum(axis=1)
    assert [int((parts == part).sum()) for part in range(3)] == pixels.tolist()
