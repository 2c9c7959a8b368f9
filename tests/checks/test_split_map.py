"""The map of a split: squares where the pixels of a block lie, with their counts."""

from __future__ import annotations

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from cropseg.checks.split_map import write_split
from cropseg.errors import ResourceError
from cropseg.sites.grid import Grid
from cropseg.sites.regions import RegionSplit
from cropseg.sites.site import open_site
from cropseg.sites.split import (
    PARTS,
    BlockSplit,
    FoldSplit,
    index_blocks,
)

CLASS_NAMES = ("wheat", "Wheat", 'grøn "1"')
UTM = CRS.from_epsg(32614)
FEET = CRS.from_epsg(2264)
SPLITS = {
    "blocks": BlockSplit(block_m=96, gap_m=20, train=0.6, val=0.2, seed=0),
    "folds": FoldSplit(block_m=96, gap_m=20, folds=3, fold=1, seed=0),
}


def make_grid(crs=UTM):
    # The origin lies inside, so that some rows and columns of blocks are negative.
    transform = Affine.translation(-303.7, 141.3) @ Affine.scale(10, -8)
    return Grid(height=40, width=60, transform=transform, crs=crs)


def count_blocks(split, grid, labels):
    """Return pixels of each block, part and class, one pixel at a time."""
    numbers, places = index_blocks(split, grid, grid.window)
    ids = numbers[places]
    parts = split.read_parts(grid, grid.window)
    counts = {
        block: np.zeros((len(PARTS), len(CLASS_NAMES)), "int64")
        for block in np.unique(ids).tolist()
    }
    for block, part, label in zip(
        ids.ravel().tolist(),
        parts.ravel().tolist(),
        labels.ravel().tolist(),
        strict=True,
    ):
        if part < len(PARTS) and label < len(CLASS_NAMES):
            counts[block][part, label] += 1
    return counts


def draw_labels(grid):
    rng = np.random.default_rng(0)
    return rng.choice([0, 1, 2, 255], (grid.height, grid.width), p=[0.5, 0.2, 0.2, 0.1])


def write(path, split, grid, **changes):
    labels = draw_labels(grid)
    settings = {
        "counts": count_blocks(split, grid, labels),
        "class_names": CLASS_NAMES,
        "crs": grid.crs,
        "pixel_m2": 80.0,
    }
    write_split(path, split, **(settings | changes))
    return geopandas.read_file(path)


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("crs", [UTM, FEET])
def test_the_pixels_of_a_block_lie_in_its_square_and_are_counted(tmp_path, kind, crs):
    split, grid = SPLITS[kind], make_grid(crs)

    found = write(tmp_path / "split.gpkg", split, grid)

    assert found.crs.to_epsg() == crs.to_epsg()
    numbers, places = index_blocks(split, grid, grid.window)
    ids = numbers[places]
    parts = split.read_parts(grid, grid.window)
    x, y = grid.locate_pixels(grid.window)
    labels = draw_labels(grid)
    assert sorted(found["block_id"]) == np.unique(ids).tolist()
    columns = ["pixels_wheat_0", "pixels_Wheat_1", 'pixels_grøn "1"']
    for row in found.to_dict("records"):
        inside = shapely.contains_xy(row["geometry"], x, y)
        np.testing.assert_array_equal(inside, ids == row["block_id"])
        mine = inside & (parts == PARTS.index(row["part"]))
        assert (parts[inside & ~mine] == 255).all()
        expected = [(mine & (labels == class_id)).sum() for class_id in range(3)]
        assert [row[column] for column in columns] == expected
        assert row["labelled_ha"] == pytest.approx(sum(expected) * 80 / 10_000)
        west, south, east, north = row["geometry"].bounds
        side = 96 if crs == UTM else 96 * 3937 / 1200
        assert (east - west, north - south) == pytest.approx((side, side))


def test_a_file_has_one_layer_and_the_columns_in_order(tmp_path):
    found = write(tmp_path / "split.gpkg", SPLITS["blocks"], make_grid())

    assert pyogrio.list_layers(tmp_path / "split.gpkg").tolist() == [
        ["split", "Polygon"]
    ]
    assert list(found.columns[:3]) == ["block_id", "part", "labelled_ha"]
    assert set(found["part"]) == set(PARTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["split.gpkg"]


def test_one_split_is_always_one_file(tmp_path, monkeypatch):
    split, grid = SPLITS["blocks"], make_grid()
    counts = count_blocks(split, grid, draw_labels(grid))
    write(tmp_path / "a.gpkg", split, grid, counts=counts)
    turned = dict(reversed(counts.items()))
    monkeypatch.setenv("TZ", "Asia/Tokyo")

    write(tmp_path / "b.gpkg", split, grid, counts=turned)

    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()


def test_regions_are_a_polygon_a_part(tmp_path, make_site):
    site = open_site(make_site(tmp_path, split="regions"))
    grid = site.scenes[0].grid
    labels = np.zeros((grid.height, grid.width), "uint8")
    labels[:10] = 2
    counts = count_blocks(site.split, grid, labels)

    found = write(tmp_path / "split.gpkg", site.split, grid, counts=counts)

    assert found["part"].tolist() == ["train", "val", "test"]
    parts = site.split.read_parts(grid, grid.window)
    for part, row in enumerate(found.to_dict("records")):
        num_pixels = (parts == part).sum()
        assert row["pixels_wheat_0"] + row['pixels_grøn "1"'] == num_pixels
        assert row['pixels_grøn "1"'] == (parts[:10] == part).sum()
        assert row["geometry"].area == pytest.approx(num_pixels * 80, rel=0.01)


def test_a_part_that_no_region_has_is_left_out(tmp_path):
    square = {"part": ["test", "train"], "geometry": [shapely.box(0, 0, 90, 80)] * 2}
    regions = geopandas.GeoDataFrame(square, crs=UTM.to_wkt())
    regions.to_file(tmp_path / "regions.gpkg")
    split = RegionSplit(regions_path=tmp_path / "regions.gpkg", block_m=96)

    found = write(tmp_path / "split.gpkg", split, make_grid())

    assert found["part"].tolist() == ["train", "test"]
    assert found["pixels_wheat_0"].sum() > 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ResourceError, match="Cannot write"):
        write(tmp_path / "file" / "split.gpkg", SPLITS["blocks"], make_grid())
