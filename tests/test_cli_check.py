"""`cropseg check` and `cropseg preview`: exit codes, one document, pages and maps.

No test here needs Keras: a model is an archive with a card in it.
"""

from __future__ import annotations

import json
import re
import zipfile

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from rich.console import Console

from cropseg import tables
from cropseg.checks.check import check_manifest
from cropseg.checks.reference import describe_site
from cropseg.models.card import CARD_NAME, Card, CardClass, Lineage
from cropseg.sites.site import open_site

TILE = ("--tile-size", "64")


def edit(path, **entries):
    manifest = yaml.safe_load(path.read_text(encoding="utf-8")) | entries
    path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return path


def write_model(path, site, **changes):
    """Write an archive with the card that a model of a site would have."""
    reference = describe_site(site, 64)
    card = {
        "site": site.name,
        "classes": tuple(
            CardClass(name=name, color="#000000", train_pixels=count)
            for name, count in reference.class_pixels.items()
        ),
        "bands": site.bands,
        "derived": dict(site.derived),
        "gsd_m": site.gsd_m,
        "sensor": "made up",
        "architecture": "unet",
        "encoder": "classic_tiny",
        "tile_size": 64,
        "tile_multiple": 16,
        "band_mean": [band.mean for band in reference.bands],
        "band_std": [band.std for band in reference.bands],
        "nodata_fill": [band.mean for band in reference.bands],
        "stages": (),
        "seed": 0,
        "lineage": Lineage(mode="train"),
        "fingerprint": site.fingerprint,
        "weights_sha256": "",
        "versions": {},
    } | changes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CARD_NAME, Card(**card).model_dump_json())
    return path


@pytest.fixture(scope="module")
def model(area_1, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.keras", area_1)


def list_codes(text):
    return [finding["code"] for finding in json.loads(text)["findings"]]


def test_a_good_site_ends_with_0_and_prints_one_document(run, make_site, tmp_path):
    code, out, err = run("check", make_site(tmp_path), *TILE, "--json")

    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["ok"] is True
    assert list_codes(out) == ["train-test-distance"]


def test_a_bad_site_ends_with_3_and_prints_one_document(run, make_site, tmp_path):
    path = make_site(tmp_path, ignore=[])

    code, out, err = run("check", path, *TILE, "--json")

    assert (code, err) == (3, "")
    assert list_codes(out) == ["not-readable"]


def test_a_site_that_cannot_be_opened_ends_with_3(run, make_site, tmp_path):
    path = make_site(tmp_path)
    with rasterio.open(tmp_path / "scene_0_labels.tif", "r+") as dataset:
        dataset.crs = "EPSG:32615"

    code, out, _ = run("check", path, *TILE)

    assert code == 3
    assert "cannot-open" in out
    assert out.splitlines()[-1] == "not ok"


@pytest.mark.parametrize("command", ["check", "preview"])
def test_unsafe_paths_end_with_5(run, make_site, tmp_path, command):
    scenes = [{"image": "https://a.example/b.tif"}]
    path = edit(make_site(tmp_path), scenes=scenes)
    out = ("--out", tmp_path / "out") if command == "preview" else ()

    code, _, err = run(command, path, *out)

    assert code == 5
    assert "a.example" in err


def test_options_that_cannot_be_together_end_with_2(run, make_site, tmp_path, model):
    path = make_site(tmp_path)

    assert run("check", path, "--model", model, "--source", path)[0] == 2
    code, _, err = run("check", path, "--html", tmp_path / "page.txt")

    assert code == 2
    assert "page.txt" in err
    code, _, err = run("check", path, "--tile-size", "0")
    assert code == 2
    assert "--tile-size is 0" in err


def test_a_source_that_cannot_be_compared_to_ends_with_3(run, make_site, tmp_path):
    path = make_site(tmp_path / "2")
    source = make_site(tmp_path / "1", split=None)

    code, _, err = run("check", path, "--source", source, *TILE)

    assert code == 3
    assert "no `split`" in err


def swap_bands(path, first, second):
    """Swap two bands of a file, and not their names."""
    with rasterio.open(path, "r+") as dataset:
        values = dataset.read()
        values[[first, second]] = values[[second, first]]
        dataset.write(values)


@pytest.mark.parametrize("by_model", [True, False])
def test_a_swapped_band_order_is_found_against_a_model_and_a_source(
    run, make_site, tmp_path, model, area_1, by_model
):
    path = make_site(tmp_path, seed=3)
    other = ("--model", model) if by_model else ("--source", area_1.manifest_path)
    arguments = ("check", path, *TILE, "--json", *other)
    clean = list_codes(run(*arguments)[1])
    swap_bands(tmp_path / "scene_0.tif", 0, 4)

    code, out, _ = run(*arguments)

    assert code == 0
    assert "bands-swapped" not in clean
    assert "bands-swapped" in list_codes(out)
    (swap,) = json.loads(out)["distance"]["bands"]["swaps"]
    assert sorted(swap["names"]) == ["blue", "swir1"]


def test_a_model_of_the_same_site_is_near_and_of_its_tile_size(
    run, area_1, model, tmp_path
):
    page = tmp_path / "page.html"

    arguments = ("check", area_1.manifest_path, "--model", model, "--html", page)
    code, out, _ = run(*arguments, "--json")

    distance = json.loads(out)["distance"]
    assert code == 0
    assert distance["reference"] == f"the model of {area_1.name}"
    assert distance["gsd_ratio"] == 1
    assert {band["level"] for band in distance["bands"]["distances"]} == {"near"}
    assert distance["classes"]["total_variation"] < 0.1
    assert "tiles of 64 pixels" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"gsd_m": 30.0}, "gsd-differs"),
        ({"bands": ("blue", "green", "red", "nir", "thermal")}, "bands-missing"),
    ],
    ids=str,
)
def test_what_a_model_cannot_use_is_an_error(run, area_1, tmp_path, changes, code):
    model = write_model(tmp_path / "model.keras", area_1, **changes)

    exit_code, out, _ = run("check", area_1.manifest_path, "--model", model, "--json")

    assert exit_code == 3
    assert code in list_codes(out)


def test_a_band_that_the_model_computes_is_not_missing(run, make_site, tmp_path):
    source = make_site(tmp_path / "1", derived={"ndvi": "(nir - red) / (nir + red)"})
    model = write_model(tmp_path / "model.keras", open_site(source))

    code, out, _ = run("check", make_site(tmp_path / "2"), "--model", model, "--json")

    assert code == 0
    assert "bands-missing" not in list_codes(out)


def test_another_formula_of_the_same_band_is_an_error(run, make_site, tmp_path):
    source = open_site(make_site(tmp_path / "1", derived={"ndvi": "nir - red"}))
    model = write_model(tmp_path / "model.keras", source)
    path = make_site(tmp_path / "2", derived={"ndvi": "red - nir"})

    code, out, _ = run("check", path, "--model", model, "--json")

    assert code == 3
    assert list_codes(out)[0] == "model-misfit"


def test_a_model_that_is_none_ends_with_4(run, area_1, tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no archive")

    code, _, _ = run("check", area_1.manifest_path, "--model", tmp_path / "model.keras")

    assert code == 4


def test_the_page_is_written_for_a_bad_site_too(run, make_site, tmp_path):
    page, manifest = tmp_path / "page.html", make_site(tmp_path)
    (tmp_path / "scene_0.tif").unlink()

    code, out, err = run("check", manifest, "--html", page, "--quiet")

    assert (code, out) == (3, "")
    assert "scene_0.tif" in err
    assert "cannot-open" in page.read_text(encoding="utf-8")


# The page in a terminal.

LONG_NAME = "sugar beet, irrigated, second crop"


@pytest.fixture(scope="module")
def wide_site(make_site, tmp_path_factory):
    """Return a site with large numbers, fields and a long name, and its report."""
    folder = tmp_path_factory.mktemp("wide")
    path = make_site(folder, height=24 * 12, width=34 * 16)
    grid = open_site(path).scenes[0].grid
    corners = [(row, col) for row in range(0, 280, 40) for col in range(0, 540, 40)]
    outlines = [
        [grid.transform @ (col + x, row + y) for x, y in ((0, 0), (30, 0), (30, 30))]
        for row, col in corners
    ]
    fields = [{"type": "Polygon", "coordinates": [[*o, o[0]]]} for o in outlines]
    codes = (5, 22, 176, 111)
    document = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32614"}},
        "features": [
            {
                "type": "Feature",
                "properties": {"code": codes[index % 4]},
                "geometry": field,
            }
            for index, field in enumerate(fields)
        ],
    }
    (folder / "fields.geojson").write_text(json.dumps(document), encoding="utf-8")
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    manifest["classes"][0]["name"] = LONG_NAME
    scene = {"image": "scene_0.tif", "labels": "fields.geojson", "field": "code"}
    edit(path, classes=manifest["classes"], scenes=[scene])
    report = check_manifest(path, tile_size=64)
    assert report.is_ok
    return report


def show(report, width):
    console = Console(width=width, highlight=False, record=True, force_terminal=False)
    with console.capture() as capture:
        tables.show_check(console, report)
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_and_names_are_whole_in_a_terminal(wide_site, width):
    text = show(wide_site, width)

    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "\nwheat  " in text
    for row in wide_site.list_classes():
        for part in ("train", "val", "test"):
            assert f"{row[part]['pixels']:,}" in text
            assert f"{row[part]['ha']:,.1f}" in text
    assert "fields in each part" in text
    assert (LONG_NAME if width == 120 else "\nsugar beet") in text


def test_markup_in_a_name_is_text(make_site, tmp_path):
    path = make_site(tmp_path)
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    manifest["classes"][0]["name"] = "[bold]rye[/]"
    edit(path, classes=manifest["classes"], site="[red]site[/red]")

    text = show(check_manifest(path, tile_size=64), 100)

    assert "[bold]rye[/]" in text
    assert "[red]site[/red]: 1 scene(s)" in text


def test_the_shares_of_classes_are_compared_in_a_terminal(make_site, area_1, tmp_path):
    reference = describe_site(area_1, 64)
    path = make_site(tmp_path, class_names=("wheat", "corn"))

    text = show(check_manifest(path, tile_size=64, reference=reference), 80)

    assert f"\nagainst {area_1.name}: GSD ratio 1\nclass shares " in text
    assert re.search(r"^corn +0\.0% +(\d+\.\d%) +\+\1$", text, re.MULTILINE)


def test_a_histogram_keeps_its_empty_bars_on_the_right(make_site, tmp_path):
    path = make_site(tmp_path)
    with rasterio.open(tmp_path / "scene_0.tif", "r+") as dataset:
        values = dataset.read()
        values[:, :150] = 100
        values[:, 150:152] = 4000
        dataset.write(values)

    lines = show(check_manifest(path, tile_size=64), 80).splitlines()

    start = next(line for line in lines if "0.1% to 99.9%" in line).index("0.1%")
    blue = next(line for line in lines if line.startswith("blue "))
    assert blue[start] == "█"


def test_a_site_without_a_split_has_one_count_of_each_class(make_site, tmp_path):
    report = check_manifest(make_site(tmp_path, split=None), tile_size=64)

    text = show(report, 80)

    assert "labels in each part" not in text
    for row in report.list_classes():
        assert re.search(
            rf"^{row['name']} +{row['all']['pixels']:,} ", text, re.MULTILINE
        )


# Preview.


def test_a_preview_writes_pictures_and_a_map(run, make_site, tmp_path):
    path = make_site(tmp_path / "site", num_scenes=2)
    out_dir = tmp_path / "out"

    code, out, err = run("preview", path, "--out", out_dir, "--json")

    assert (code, err) == (0, "")
    names = ["scene_0_preview.png", "scene_1_preview.png", "split.gpkg"]
    assert json.loads(out) == {"files": [str(out_dir / name) for name in names]}
    for name in names[:2]:
        assert (out_dir / name).read_bytes().startswith(b"\x89PNG")
    blocks = geopandas.read_file(out_dir / "split.gpkg")
    assert set(blocks["part"]) == {"train", "val", "test"}
    assert np.isfinite(blocks.total_bounds).all()


def test_a_preview_of_a_truncated_image_ends_with_3(run, make_site, tmp_path):
    path = make_site(tmp_path / "site")
    image = path.parent / "scene_0.tif"
    image.write_bytes(image.read_bytes()[:60_000])

    code, _, err = run("preview", path, "--out", tmp_path / "out")

    assert code == 3
    assert "scene_0.tif" in err
