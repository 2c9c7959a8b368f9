"""The scripts of `scripts/` do what a colleague keeps them for."""

import csv
import importlib.util
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import yaml
from shapely.geometry import box

from cropseg.inference.outputs.legend import MapClass, tag_classes
from cropseg.sites.classes import IGNORE
from cropseg.sites.site import open_site

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load_script(monkeypatch):
    """Return a function that loads a script as a module, without running it."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look there
        spec.loader.exec_module(module)
        return module

    return load


def write_settings(path, **settings):
    """Write a settings file for a tiny training, and return its path."""
    settings = {"epochs": 1, "steps_per_epoch": 3, "batch_size": 2, **settings}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_the_scripts_train_area_1_and_map_area_2(
    tmp_path, make_site, load_script, capsys
):
    area_1 = make_site(tmp_path / "1")
    area_2 = make_site(tmp_path / "2", seed=1)
    tiny = {"encoder": "classic_tiny", "tile_size": 32}
    settings = write_settings(tmp_path / "train.yaml", **tiny)
    load_script("train_rural_area_1.py").main(
        str(area_1), str(tmp_path / "run"), settings
    )
    model_path = tmp_path / "run" / "model.keras"
    assert f"{model_path}: mIoU 0." in capsys.readouterr().out

    transfer = load_script("transfer_rural_area_2.py")
    transfer.MODES = ["zero_shot", "head_only", "pixel_forest"]
    transfer.LABELS, transfer.DRAWS = ["2tiles"], 1
    settings = write_settings(tmp_path / "transfer.yaml")
    transfer.main(str(area_2), str(model_path), str(tmp_path / "out"), settings)
    told = capsys.readouterr().out
    assert "With 2 labelled tiles, " in told
    (map_path,) = (tmp_path / "out" / "maps").glob("*_classes.tif")
    assert str(map_path) in told


@pytest.mark.slow
def test_a_network_of_ones_own_is_transferred_with_layers_locked(
    tmp_path, make_site, load_script, capsys
):
    area_1 = make_site(tmp_path / "1")
    area_2 = make_site(tmp_path / "2", seed=1)
    settings = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2}

    load_script("transfer_own_network.py").main(
        str(area_1), str(area_2), str(tmp_path / "out"), **settings
    )

    told = capsys.readouterr().out.splitlines()[1:]
    rows = {words[0]: words[-1] for words in map(str.split, told)}
    assert rows["down_1/kernel"] == rows["down_2/bias"] == "locked"
    assert rows["up_2/kernel"] == rows["head/kernel"] == "trained"


def write_map(path, site, classes):
    """Write a class map as `predict` does: other class ids than the site's."""
    names = ("alfalfa", *reversed(site.classes.names))
    legend = tuple(MapClass(name=name, color="#204060") for name in names)
    lookup = np.zeros(256, np.uint8)
    for index, name in enumerate(names[1:], 1):
        lookup[site.classes.names.index(name)] = index
    lookup[IGNORE] = 0
    grid = site.scenes[0].grid
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=grid.width,
        height=grid.height,
        count=1,
        dtype="uint8",
        crs=grid.crs,
        transform=grid.transform,
        nodata=IGNORE,
    ) as dataset:
        dataset.write(lookup[classes], 1)
        dataset.write_colormap(1, dict.fromkeys(range(len(names)), (32, 64, 96)))
        dataset.update_tags(**tag_classes(legend))


def read_rows(path):
    """Return the rows of a CSV by the first column."""
    with path.open(encoding="utf-8") as file:
        return {row[0]: row[1:] for row in csv.reader(file)}


def test_a_map_is_compared_with_the_labels_of_the_test_part_alone(
    tmp_path, make_site, load_script, capsys
):
    manifest = make_site(tmp_path / "1")
    site = open_site(manifest)
    scene = site.scenes[0]
    with site.open_scene(scene) as reader:
        _, labels = reader.read_valid_labels(scene.grid.window)
    parts = site.require_split().read_parts(scene.grid, scene.grid.window)
    in_test = (parts == 2) & (labels != IGNORE)
    classes = labels.copy()
    classes[parts != 2] = 0  # whatever the map shows elsewhere
    wrong = np.argwhere(in_test)[::10]
    classes[tuple(wrong.T)] = (labels[tuple(wrong.T)] + 1) % len(site.classes)
    maps = tmp_path / "maps"
    maps.mkdir()
    write_map(maps / f"{scene.name}_classes.tif", site, classes)

    load_script("compare_map.py").main(str(maps), str(manifest), str(tmp_path / "out"))

    told = capsys.readouterr().out
    share = 1 - len(wrong) / in_test.sum()
    assert f"{in_test.sum():,} labelled pixels" in told
    assert f"{share:.1%} mapped right" in told
    rows = read_rows(tmp_path / "out" / "areas.csv")
    pixel_ha = scene.grid.gsd_m**2 / 10_000
    for index, name in enumerate(site.classes.names):
        pixels = (labels[in_test] == index).sum()
        assert rows[name][0] == f"{pixels * pixel_ha:.0f}"
    assert (tmp_path / "out" / "map.png").stat().st_size > 1000


def test_fields_of_the_test_part_are_compared_by_name(
    tmp_path, make_site, load_script, capsys
):
    manifest = make_site(tmp_path / "1")
    site = open_site(manifest)
    grid = site.scenes[0].grid
    parts = site.require_split().read_parts(grid, grid.window)
    places = [*np.argwhere(parts == 2)[5:8], np.argwhere(parts != 2)[0]]
    fields = geopandas.GeoDataFrame(
        {
            "kind": ["Wheat", "Water", "Quinoa", "Wheat"],
            "predicted_crop": ["wheat"] * len(places),
        },
        geometry=[
            box(*grid.transform @ (col, row), *grid.transform @ (col + 1, row + 1))
            for row, col in places
        ],
        crs=grid.crs,
    )
    path = tmp_path / "parcels.gpkg"
    fields.to_file(path)

    load_script("compare_map.py").report_fields(
        site, path, "kind", tmp_path / "fields.csv"
    )

    told = capsys.readouterr().out
    assert "3 fields lie in the test part, 2 with a crop of the site: 1 (50.0%)" in told
    assert read_rows(tmp_path / "fields.csv")["water"] == ["wheat", "1"]
