"""The check: it collects what stands in the way, and raises nothing."""

from __future__ import annotations

import json

import pytest
import rasterio

from cropseg.sites.check import check_site
from cropseg.sites.site import open_site
from cropseg.sites.statistics import survey_site

TILE = 64


def check(path, **options):
    return check_site(open_site(path), tile_size=TILE, **options)


def get_codes(report):
    return [(finding.level, finding.code) for finding in report.findings]


def cut_in_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_good_site_has_no_finding(tmp_path, make_site):
    report = check(make_site(tmp_path))

    assert report.is_ok
    assert report.findings == ()


def test_a_site_without_a_split_is_a_warning(tmp_path, make_site):
    report = check(make_site(tmp_path, split=None))

    assert report.is_ok
    assert get_codes(report) == [("warning", "no-split")]
    assert report.findings[0].path.endswith("site.yaml")
    assert report.survey is None


@pytest.mark.parametrize(
    ("split", "code"), [("blocks", "not-trainable"), (None, "not-readable")]
)
@pytest.mark.parametrize("name", ["scene_0.tif", "scene_0_labels.tif"])
def test_a_truncated_file_is_found_with_and_without_a_split(
    tmp_path, make_site, name, split, code
):
    path = make_site(tmp_path, split=split)
    site = open_site(path)
    cut_in_half(tmp_path / name)

    report = check_site(site, tile_size=TILE)

    assert not report.is_ok
    assert get_codes(report)[0] == ("error", code)
    assert "Cannot read rows" in report.findings[0].message
    assert name in report.findings[0].message


@pytest.mark.parametrize("split", ["blocks", None])
def test_unnamed_labels_are_found_with_and_without_a_split(tmp_path, make_site, split):
    report = check(make_site(tmp_path, ignore=[], split=split))

    assert not report.is_ok
    assert "does not name: 0 (" in report.findings[0].message


def test_a_part_without_labels_is_an_error_for_test_and_a_note_for_val(
    tmp_path, make_site
):
    report = check(make_site(tmp_path, split={"block_m": 320, **SHARES_OF_TRAIN}))

    assert get_codes(report) == [
        ("error", "not-trainable"),
        ("note", "val-empty"),
        ("note", "test-empty"),
    ]


SHARES_OF_TRAIN = {"train": 1, "val": 0, "test": 0}


def test_a_class_that_the_test_has_not_is_a_note(tmp_path, make_site):
    path = make_site(tmp_path)
    site = open_site(path)
    parts = site.split.read_parts(site.scenes[0].grid, site.scenes[0].grid.window)
    with rasterio.open(tmp_path / "scene_0_labels.tif", "r+") as dataset:
        values = dataset.read(1)
        values[(values == 111) & (parts == 2)] = 0
        dataset.write(values, 1)

    report = check(path)

    assert report.is_ok
    (finding,) = report.findings
    assert (finding.level, finding.code) == ("note", "test-classes-absent")
    assert "no pixel of water" in finding.message
    assert "seed" in finding.remedy


def test_a_geographic_crs_is_an_error_of_a_site_with_blocks(tmp_path, make_site):
    path = make_site(tmp_path, crs="EPSG:4326", xres=1e-4, yres=8e-5)
    for name in ("scene_0.tif", "scene_0_labels.tif"):
        with rasterio.open(tmp_path / name, "r+") as dataset:
            dataset.transform = rasterio.Affine(1e-4, 0, -99, 0, -8e-5, 50)

    report = check(path)

    assert not report.is_ok
    assert "EPSG:4326) is not projected" in report.findings[0].message


def test_classes_are_compared_with_those_of_a_model(tmp_path, make_site):
    report = check(
        make_site(tmp_path),
        model_classes=("wheat", "rye", "water"),
        model_name="area_1.keras",
    )

    assert report.is_ok
    messages = {finding.code: finding.message for finding in report.findings}
    assert messages == {
        "classes-shared": "Shared, against area_1.keras: wheat, water.",
        "classes-new": "New here, against area_1.keras: soybeans, grassland.",
        "classes-gone": "Not here, against area_1.keras: rye.",
    }


def test_no_shared_class_is_an_error_and_stands_first(tmp_path, make_site):
    report = check(make_site(tmp_path, split=None), model_classes=("rye", "oats"))

    assert not report.is_ok
    assert get_codes(report) == [
        ("error", "no-class-shared"),
        ("warning", "no-split"),
        ("note", "classes-new"),
        ("note", "classes-gone"),
    ]


def test_a_report_is_json(tmp_path, make_site):
    path = make_site(tmp_path)

    document = json.loads(json.dumps(check(path, model_classes=["rye"]).to_json()))

    assert document["ok"] is False
    assert {tuple(finding) for finding in document["findings"]} == {
        ("level", "code", "message", "remedy", "path")
    }
    assert document["bands"] == ["blue", "green", "red", "nir", "swir1"]
    assert document["gsd_m"] == pytest.approx(80**0.5)
    assert document["scenes"] == [
        {
            "image": str(tmp_path / "scene_0.tif"),
            "rows": 192,
            "columns": 256,
            "crs": "EPSG:32614",
        }
    ]
    assert document["nodata_share"] == pytest.approx(7 / 256)
    pixels = survey_site(open_site(path), TILE).class_pixels
    assert list(document["class_pixels"]) == ["train", "val", "test"]
    assert document["class_pixels"]["test"] == dict(
        zip(
            ("soybeans", "wheat", "grassland", "water"), pixels[2].tolist(), strict=True
        )
    )


def test_the_report_of_a_site_without_a_split_has_no_counts(tmp_path, make_site):
    document = check(make_site(tmp_path, split=None)).to_json()

    assert document["ok"] is True
    assert "class_pixels" not in document
