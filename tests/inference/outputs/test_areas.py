"""Hectares are those of the projection, or of the ellipsoid where that is far off."""

from __future__ import annotations

import csv

import numpy as np
import pyproj
import pytest
from affine import Affine

from cropseg.errors import DataError
from cropseg.inference.outputs import finished
from cropseg.inference.outputs.areas import (
    MappedArea,
    measure_areas,
    measure_pixels_m2,
    write_summary,
)


def measure_geodesic_m2(grid, row, col):
    """The oracle: the area of a pixel's corners on the ellipsoid."""
    corners = [
        grid.transform @ (col + dx, row + dy)
        for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))
    ]
    to_degrees = pyproj.Transformer.from_crs(
        grid.crs.to_wkt(), "EPSG:4326", always_xy=True
    )
    places = [to_degrees.transform(*corner) for corner in corners]
    geod = pyproj.Geod(ellps="WGS84")
    return abs(geod.polygon_area_perimeter(*zip(*places, strict=True))[0])


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.01, 0, 11, 0, -0.02, 57),
        Affine(0.01, 0, 11, 0, 0.02, -57),
        Affine(0.01, 0.004, 179.9, 0.003, -0.02, 3),
        Affine(2e-6, 0, -99, 0, -2e-6, 46),
    ],
)
def test_pixels_in_degrees_have_their_area_on_the_ellipsoid(make_grid, transform):
    grid = make_grid(300, 200, crs="EPSG:4326", transform=transform)
    areas = measure_pixels_m2(grid)
    for row in (0, 150, 299):
        expected = measure_geodesic_m2(grid, row, 100)
        assert areas[row] == pytest.approx(expected, rel=1e-5)


def test_pixels_of_utm_have_the_area_of_the_projection(make_grid):
    areas = measure_pixels_m2(make_grid())
    assert areas.shape == (70,)
    assert (areas == 80).all()


@pytest.mark.parametrize(
    ("crs", "transform", "tolerance"),
    [
        ("EPSG:4807", Affine(1e-4, 0, 2, 0, -2e-4, 54), 1e-4),  # grads, from Paris
        ("EPSG:27572", Affine(10, 0, 6e5, 0, -8, 2.4e6), 1e-3),  # a projection of it
        ("+proj=merc +datum=WGS84 +units=km", Affine(1, 0, 1200, 0, -1, 6600), 1e-5),
    ],
)
def test_units_other_than_degrees_and_metres_are_what_they_are(
    make_grid, crs, transform, tolerance
):
    grid = make_grid(crs=crs, transform=transform)
    expected = measure_geodesic_m2(grid, 35, 26)
    assert measure_pixels_m2(grid)[35] == pytest.approx(expected, rel=tolerance)


def test_pixels_in_feet_are_measured_in_metres(make_grid):
    grid = make_grid(crs="EPSG:2263", transform=Affine(10, 0, 1e6, 0, -10, 2e5))
    np.testing.assert_allclose(measure_pixels_m2(grid), 100 * 0.3048006096**2)


@pytest.mark.parametrize(
    ("crs", "x", "y"),
    [
        ("EPSG:3857", 1.2e6, 6.6e6),
        ("EPSG:3857", -2.00375e7, 2e6),
        ("EPSG:3031", 3e6, 2e6),
    ],
)
def test_a_projection_that_distorts_areas_is_corrected_for(make_grid, crs, x, y):
    grid = make_grid(301, 203, crs=crs, transform=Affine(1000, 0, x, 0, -1000, y))
    areas = measure_pixels_m2(grid)
    assert abs(areas[150] / 1e6 - 1) > 0.01
    expected = np.mean([measure_geodesic_m2(grid, 150, c) for c in range(0, 203, 2)])
    assert areas[150] == pytest.approx(expected, rel=1e-3)


def test_a_raster_without_a_place_has_no_areas(make_grid):
    from rasterio.crs import CRS

    grid = make_grid()
    local = 'LOCAL_CS["drone",UNIT["metre",1]]'
    for crs in (CRS(), CRS.from_wkt(local)):
        lost = type(grid)(height=7, width=5, transform=grid.transform, crs=crs)
        with pytest.raises(DataError, match="No area can be measured"):
            measure_pixels_m2(lost)


def test_the_areas_of_a_map_are_its_pixels_of_each_class(
    write_map, draw_patches, monkeypatch
):
    monkeypatch.setattr(finished, "CHUNK_PX", 32)
    ids = draw_patches(num_classes=3)
    areas = measure_areas(write_map(ids))
    assert [area.class_name for area in areas] == [
        "soybeans",
        "wheat & rye",
        "grassland",
        "água",
    ]
    expected = [int((ids == class_id).sum()) for class_id in range(4)]
    assert expected[3] == 0 < expected[2]
    assert [area.num_pixels for area in areas] == expected
    assert [area.hectares for area in areas] == [n * 80 / 10_000 for n in expected]


def test_a_row_in_degrees_counts_with_its_own_area(write_map, make_grid, monkeypatch):
    monkeypatch.setattr(finished, "CHUNK_PX", 32)
    transform = Affine(0.05, 0, 10, 0, -0.1, 60)
    grid = make_grid(crs="EPSG:4326", transform=transform)
    ids = np.full((70, 53), 255, "uint8")
    ids[0, :9] = 1
    ids[69, :9] = 2
    areas = measure_areas(write_map(ids, grid=grid))
    rows = measure_pixels_m2(grid)
    assert areas[1].hectares == pytest.approx(9 * rows[0] / 1e4)
    assert areas[2].hectares == pytest.approx(9 * rows[69] / 1e4)
    assert areas[2].hectares > 1.1 * areas[1].hectares


def test_the_summary_ends_with_the_totals_of_each_class(tmp_path):
    areas = [
        MappedArea(scene="a, b", class_name="wheat", num_pixels=3, hectares=0.25),
        MappedArea(scene="a, b", class_name="água", num_pixels=1, hectares=1.0),
        MappedArea(scene="c", class_name="wheat", num_pixels=10, hectares=2.5),
        MappedArea(scene="c", class_name="água", num_pixels=0, hectares=0.0),
    ]
    path = tmp_path / "summary.csv"
    write_summary(path, areas)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["scene", "class", "pixels", "hectares"]
    assert rows[1] == ["a, b", "wheat", "3", "0.2500"]
    assert rows[-2:] == [
        ["total", "wheat", "13", "2.7500"],
        ["total", "água", "1", "1.0000"],
    ]
    assert len(rows) == 7
