"""Quick-looks: every n-th pixel at its place, and pictures and a map that open."""

from __future__ import annotations

import geopandas
import matplotlib.image
import numpy as np
import pytest
import rasterio
import yaml

from cropseg.checks import quicklook
from cropseg.checks.check import check_manifest
from cropseg.checks.quicklook import PART_COLORS, QuickLooks, write_previews
from cropseg.sites.classes import IGNORE, parse_color
from cropseg.sites.scan import scan_site
from cropseg.sites.site import open_site
from cropseg.sites.split import NO_PART, PARTS
from cropseg.sites.statistics import survey_site

TILE = 64


def take_looks(path, context=0):
    site = open_site(path)
    looks = QuickLooks(site)
    for block in scan_site(site, TILE, context=context):
        looks.add(block)
    return looks.finish()


def stretch(values):
    """Return values from 0 at their 2 % quantile to 255 at the 98 % quantile."""
    return np.interp(values, np.percentile(values, (2, 98)), (0, 255))


def read_colors(path):
    """Return the colours of a PNG and how many pixels have each."""
    picture = np.rint(matplotlib.image.imread(path) * 255).astype(int)[..., :3]
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    names = map(tuple, colors.tolist())
    return dict(zip(names, counts.tolist(), strict=True))


@pytest.mark.parametrize("context", [0, 5])
@pytest.mark.parametrize(("max_side", "step"), [(900, 1), (100, 3), (37, 7)])
def test_a_quick_look_holds_every_nth_pixel(
    tmp_path, make_site, monkeypatch, max_side, step, context
):
    monkeypatch.setattr(quicklook, "_MAX_SIDE_PX", max_side)
    monkeypatch.setattr("cropseg.sites.scan._READ_PX", 64)
    path = make_site(tmp_path, height=181)

    (look,) = take_looks(path, context)

    assert look.step_px == step
    with rasterio.open(tmp_path / "scene_0_labels.tif") as dataset:
        codes = dataset.read(1)[::step, ::step]
    with rasterio.open(tmp_path / "scene_0.tif") as dataset:
        valid = dataset.dataset_mask()[::step, ::step] > 0
        bands = dataset.read([3, 2, 1])[:, ::step, ::step]
    table = np.full(256, IGNORE, "uint8")
    table[[5, 22, 23, 176, 111]] = [0, 1, 1, 2, 3]
    np.testing.assert_array_equal(look.labels, np.where(valid, table[codes], IGNORE))
    site = open_site(path)
    grid = site.scenes[0].grid
    parts = site.split.read_parts(grid, grid.window)[::step, ::step]
    np.testing.assert_array_equal(look.parts, parts)
    assert (look.image[~valid] == 255).all()
    for color, band in zip(np.moveaxis(look.image, -1, 0), bands, strict=True):
        np.testing.assert_allclose(color[valid], stretch(band[valid]), atol=0.6)


def test_a_site_without_red_green_and_blue_shows_its_first_bands(tmp_path, make_site):
    names = ("nir", "swir1", "swir2", "coastal")
    for num_bands, chosen in ((4, [3, 2, 1]), (2, [2, 2, 1]), (1, [1, 1, 1])):
        folder = tmp_path / str(num_bands)
        (look,) = take_looks(make_site(folder, bands=names[:num_bands]))

        with rasterio.open(folder / "scene_0.tif") as dataset:
            valid = dataset.dataset_mask() > 0
            bands = dataset.read(chosen)
        for color, band in zip(np.moveaxis(look.image, -1, 0), bands, strict=True):
            np.testing.assert_allclose(color[valid], stretch(band[valid]), atol=0.6)


def test_labels_have_the_colours_of_their_classes_and_white_is_unknown(area_1):
    looks = QuickLooks(area_1)
    for block in scan_site(area_1, TILE):
        looks.add(block)
    (look,) = looks.finish()

    colors = look.color_labels()

    for class_id, color in enumerate(area_1.classes.colors):
        assert (colors[look.labels == class_id] == parse_color(color)).all()
    assert (colors[look.labels == IGNORE] == 255).all()


def test_borders_are_drawn_inside_the_labels_and_nothing_else_changes(
    tmp_path, make_site
):
    (look,) = take_looks(make_site(tmp_path))

    changed = (look.overlay_labels() != look.image).any(axis=-1)

    padded = np.pad(look.labels.astype(int), 1, mode="edge")
    neighbours = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2]]
    neighbours.append(padded[1:-1, 2:])
    borders = np.any([look.labels != other for other in neighbours], axis=0)
    borders &= look.labels != IGNORE
    assert not changed[~borders].any()
    assert changed[borders].mean() > 0.95
    drawn = look.overlay_labels()[borders]
    np.testing.assert_array_equal(drawn, look.color_labels()[borders])


def test_parts_are_tinted_and_what_is_in_none_stays_grey(tmp_path, make_site):
    split = {"block_m": 320, "gap_m": 30, "train": 0.6, "val": 0.2, "test": 0.2}
    (look,) = take_looks(make_site(tmp_path, split=split))

    picture = look.color_parts().astype(int)

    outside = look.parts == NO_PART
    assert outside.any()
    assert (np.ptp(picture[outside], axis=-1) == 0).all()
    for part, name in enumerate(PARTS):
        inside = (look.parts == part) & (look.labels != IGNORE)
        distance = np.abs(picture[inside] - parse_color(PART_COLORS[name]))
        assert distance.max() <= 0.35 * 255 + 1


def test_previews_are_a_png_of_every_scene_and_a_map_for_qgis(tmp_path, make_site):
    path = make_site(tmp_path / "site", num_scenes=2)

    paths = write_previews(open_site(path), tmp_path / "out")

    names = ["scene_0_preview.png", "scene_1_preview.png", "split.gpkg"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for png in paths[:2]:
        colors = read_colors(png)
        for color in open_site(path).classes.colors:
            assert colors[parse_color(color)] > 5000
    blocks = geopandas.read_file(paths[2])
    assert blocks.crs == "EPSG:32614"
    pixels = survey_site(open_site(path), TILE).class_pixels
    for class_id, name in enumerate(open_site(path).classes.names):
        assert blocks[f"pixels_{name}"].sum() == pixels[:, class_id].sum()


@pytest.mark.parametrize(
    "split", ["blocks", pytest.param(None, marks=pytest.mark.slow)]
)
def test_a_site_without_labels_has_a_picture_and_no_map(tmp_path, make_site, split):
    path = make_site(tmp_path / "s", split=split, scenes=[{"image": "scene_0.tif"}])

    (png,) = write_previews(open_site(path), tmp_path / "out")

    assert read_colors(png).get(parse_color("#267300"), 0) == 0


def test_names_that_matplotlib_would_read_as_formulas_are_drawn(tmp_path, make_site):
    path = make_site(tmp_path / "a $^$ b")
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    manifest["classes"][0]["name"] = "$\\frac$"
    manifest["classes"][1]["name"] = "_hidden"
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")

    assert write_previews(open_site(path), tmp_path / "out")


def test_a_scene_is_drawn_before_the_next_one_is_read(tmp_path, make_site, monkeypatch):
    """Thousands of scenes at once would not fit into the memory."""
    site = open_site(make_site(tmp_path, num_scenes=3, height=64, width=96))
    events = []

    def note_scan(*args):
        for block in scan_site(*args):
            events.append(f"read {block.scene}")
            yield block

    monkeypatch.setattr(quicklook, "scan_site", note_scan)
    monkeypatch.setattr(
        quicklook, "_draw", lambda *given: events.append(given[1].scene.name)
    )

    write_previews(site, tmp_path)

    drawn = [events.index(f"scene_{index}") for index in range(3)]
    assert drawn[0] <= events.index("read 1") + 1 < drawn[1]
    assert drawn[1] <= events.index("read 2") + 1 < drawn[2]


def test_a_check_keeps_looks_of_a_few_scenes(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=14, height=24, width=64, split=None)

    report = check_manifest(path, tile_size=64)

    names = [look.scene.name for look in report.looks]
    assert names == [f"scene_{index}" for index in range(12)]
