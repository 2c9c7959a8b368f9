"""What is made of maps: all that was asked for, and once."""

from __future__ import annotations

import csv
import os
from functools import partial

import geopandas
import pytest
import shapely
from PIL import Image

from cropseg.errors import DataFileNotFoundError
from cropseg.inference.mapping.batch import map_scenes
from cropseg.inference.mapping.options import ProductOptions
from cropseg.inference.mapping.pipeline import run_jobs
from cropseg.inference.mapping.products import make_products
from cropseg.inference.outputs.finished import FinishedMap
from cropseg.progress import show_nothing


@pytest.fixture
def maps(make_job, make_engine):
    """Two maps of the values of their scenes."""
    scenes = [make_job(f"s{i}", 30 + i, 24, confidence=True) for i in range(2)]
    results = list(map_scenes(partial(run_jobs, make_engine()), scenes))
    assert [result.error for result in results] == [None, None]
    return [
        FinishedMap(
            scene=scene.name,
            classes_path=scene.get_path(scene.layers[0]),
            confidence_path=scene.get_path(scene.layers[1]),
        )
        for scene in scenes
    ]


@pytest.fixture
def make(maps, tmp_path):
    """Make something of the maps; return the files, by what was made now."""

    def make_them(maps=maps, **options):
        folder = tmp_path / "maps"
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
        paths, failures = make_products(
            folder, maps, ProductOptions(**options), show_progress=show_nothing
        )
        made = [p for p in paths if before.get(p.absolute()) != p.stat().st_mtime_ns]
        return [path.name for path in paths], [path.name for path in made], failures

    return make_them


@pytest.fixture
def fields_path(tmp_path):
    path = tmp_path / "fields.gpkg"
    square = shapely.box(600_010, 5_199_980, 600_020, 5_199_990)
    geopandas.GeoDataFrame({"owner": [7]}, geometry=[square], crs=32614).to_file(path)
    return path


def test_nothing_is_made_that_was_not_asked_for(make):
    assert make() == ([], [], {})


def test_all_products_are_made_of_all_maps(make, tmp_path, fields_path):
    paths, made, failures = make(
        polygons="gpkg", parcels=fields_path, summary=True, quicklook=True
    )
    assert failures == {}
    assert paths == made
    assert paths == [
        *("s0_polygons.gpkg", "s1_polygons.gpkg", "parcels.gpkg", "summary.csv"),
        *("s0_quicklook.png", "s1_quicklook.png"),
    ]
    folder = tmp_path / "maps"
    polygons = geopandas.read_file(folder / "s1_polygons.gpkg")
    assert polygons.is_valid.all()
    assert polygons.area_m2.sum() == pytest.approx(31 * 24)
    parcels = geopandas.read_file(folder / "parcels.gpkg")
    assert parcels.owner.tolist() == [7]
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    pixels = {s: sum(int(r["pixels"]) for r in rows if r["scene"] == s) for s in
              ("s0", "s1", "total")}  # fmt: skip
    assert pixels == {"s0": 30 * 24, "s1": 31 * 24, "total": 61 * 24}
    with Image.open(folder / "s0_quicklook.png") as picture:
        assert min(picture.size) > 50


def test_nothing_is_made_twice(make, fields_path):
    wanted = {"polygons": "parquet", "parcels": fields_path, "summary": True}
    paths, made, _ = make(**wanted)
    assert len(made) == 4
    assert make(**wanted) == (paths, [], {})


def test_other_settings_another_map_or_a_lost_file_make_it_again(make, maps, tmp_path):
    make(polygons="gpkg", summary=True)
    assert make(polygons="gpkg", min_area=9.0)[1] == [
        "s0_polygons.gpkg",
        "s1_polygons.gpkg",
    ]
    os.utime(maps[0].classes_path, ns=(1, 1))
    assert make(polygons="gpkg", min_area=9.0, summary=True)[1] == [
        "s0_polygons.gpkg",
        "summary.csv",
    ]
    (tmp_path / "maps" / "s1_polygons.gpkg").unlink()
    assert make(polygons="gpkg", min_area=9.0)[1] == ["s1_polygons.gpkg"]
    assert make(maps=maps[:1], summary=True)[1] == ["summary.csv"]


def test_polygons_of_all_scenes_go_into_one_file_by_its_path(
    make, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paths, _, failures = make(polygons="all.parquet")
    assert failures == {}
    assert paths == ["all.parquet"]
    found = geopandas.read_parquet(tmp_path / "all.parquet")
    assert set(found.scene) == {"s0", "s1"}
    assert make(polygons="all.parquet")[1] == []


def test_a_map_that_is_gone_fails_its_products_alone(make, maps):
    maps[0].classes_path.unlink()
    _, made, failures = make(quicklook=True, summary=True)
    assert made == ["s1_quicklook.png"]
    assert set(failures) == {"summary.csv", "s0_quicklook.png"}
    assert isinstance(failures["summary.csv"], DataFileNotFoundError)
