"""`cropseg predict` as a user meets it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import geopandas
import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

FAST = ("--engine", "keras", "--tile-size", "64")


@pytest.fixture
def scenes(area_1, tmp_path):
    """Copies of one scene, in a folder."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("east", "west"):
        shutil.copy(area_1.image_paths[0], folder / f"{name}.tif")
    return folder


def run_json(run, *arguments):
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_folder_is_mapped_with_all_that_is_made_of_maps(
    run, source_path, scenes, tmp_path
):
    maps = tmp_path / "maps"
    command = ("predict", source_path, scenes, "--out", maps, *FAST, "--confidence")
    found = run_json(run, *command)
    assert found["maps"] == [str(maps / f"{n}_classes.tif") for n in ("east", "west")]
    assert (found["num_mapped"], found["products"]) == (2, [])
    assert found["agreement"] is None
    more = ("--polygons", "gpkg", "--min-area", "500", "--summary", "--quicklook")
    found = run_json(run, *command, *more)
    assert found["num_mapped"] == 0
    names = [path.rpartition("/")[2] for path in found["products"]]
    assert names == [
        *("east_polygons.gpkg", "west_polygons.gpkg", "summary.csv"),
        *("east_quicklook.png", "west_quicklook.png"),
    ]
    polygons = geopandas.read_file(maps / "east_polygons.gpkg")
    assert polygons.is_valid.all()
    assert cog_validate(maps / "east_classes.tif", strict=True)[0]
    code, out, _ = run(*command)
    assert code == 0
    assert out.split() == [str(maps / f"{n}_classes.tif") for n in ("east", "west")]


def test_a_bad_scene_ends_with_9_and_other_settings_with_7(
    run, source_path, scenes, tmp_path
):
    maps = tmp_path / "maps"
    (scenes / "bad.tif").write_text("no raster")
    command = ("predict", source_path, scenes, "--out", maps)
    code, out, err = run(*command, *FAST, "--json")
    assert (code, out) == (9, "")
    assert "1 of 3 scenes failed, the rest are mapped" in err
    assert "bad.tif" in err
    assert len(list(maps.glob("*_classes.tif"))) == 2
    code, _, err = run(*command, "--engine", "keras", "--tile-size", "128")
    assert code == 7
    assert "tile_size was 64, is 128" in err
    code, _, err = run(*command, *FAST, "--blend")
    assert code == 7
    assert "blend was False, is True" in err


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (("--engine", "abacus"), 2, "`engine` is 'abacus'"),
        (("--polygons", "map.shp"), 2, "`polygons` is 'map.shp'"),
        (("--region", "none.gpkg"), 3, "No region at none.gpkg"),
        (("--parcels", "none.gpkg"), 3, "No file at none.gpkg"),
    ],
)
def test_what_cannot_be_done_is_told_at_once(
    options, code, expected, run, source_path, scenes, tmp_path
):
    found, out, err = run(
        "predict", source_path, scenes, "--out", tmp_path / "maps", *options
    )
    assert (found, out) == (code, "")
    assert expected in " ".join(err.split())
    assert not (tmp_path / "maps").exists()


@pytest.mark.slow
def test_a_killed_batch_goes_on_and_ends_as_if_it_had_not_been(
    source_path, scenes, tmp_path
):
    for number in range(38):
        shutil.copy(scenes / "east.tif", scenes / f"copy_{number:02d}.tif")
    maps = tmp_path / "maps"
    command = [
        *(sys.executable, "-m", "cropseg", "predict", source_path, scenes),
        *("--out", maps, *FAST, "--probabilities"),
    ]
    journal = maps / "journal.jsonl"
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.02)
        if journal.exists() and journal.read_text().count("\n") >= 3:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in maps.glob("*_classes.tif")}
    assert 3 <= len(finished) < 40
    for path in maps.glob("*.tif"):
        assert cog_validate(path, strict=True)[0]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(list(maps.glob("*_classes.tif"))) == 40
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list(maps.glob(".*")), done.stderr
    arrays = []
    for path in sorted(maps.glob("*_probabilities.tif")):
        with rasterio.open(path) as dataset:
            arrays.append(dataset.read())
    for array in arrays:
        np.testing.assert_array_equal(array, arrays[0])
