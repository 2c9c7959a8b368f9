"""The panel: the same for all runs, inside the test, and worth looking at."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cropseg.comparison.panel import SIDES_PX, choose_panel, write_panel
from cropseg.inference.measure import Panel
from cropseg.sites.grid import Window
from cropseg.sites.site import open_site

PRAIRIE = Path(__file__).parents[2].parent / "shared" / "data" / "prairie"
MANIFESTS = Path(__file__).parents[2] / "data_manifests"
REGIONS = {"height": 320, "width": 640, "split": "regions"}
"""The last three tenths are for the test: columns 448 to 639."""


def read_window(site, panel):
    """Return labels, parts and validity of a panel."""
    scene = site.scenes[panel.scene]
    with site.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(panel.window)
    return labels, site.split.read_parts(scene.grid, panel.window), pixels.valid


def write_labels(site, codes):
    """Write other labels to the first scene."""
    with rasterio.open(site.scenes[0].labels_path, "r+") as dataset:
        dataset.write(codes.astype(dataset.dtypes[0]), 1)


@pytest.mark.parametrize(
    "options",
    [
        REGIONS,
        REGIONS | {"num_scenes": 2},
        {"split": {"block_m": 640, "folds": 4, "fold": 1, "seed": 3}},
        {"degrees": 30, "height": 300, "width": 400},
    ],
    ids=["regions", "scenes", "folds", "rotated"],
)
def test_all_of_a_panel_is_valid_and_for_the_test(tmp_path, make_site, options):
    site = open_site(make_site(tmp_path, **options))
    panel = choose_panel(site)
    labels, parts, valid = read_window(site, panel)
    assert (parts == 2).all()
    assert valid.all()
    assert (labels != 255).any()
    assert labels.shape[0] == labels.shape[1]
    assert labels.shape[0] in SIDES_PX
    assert choose_panel(open_site(site.manifest_path)) == panel


def test_the_window_with_most_classes_is_chosen(tmp_path, make_site):
    site = open_site(make_site(tmp_path, **REGIONS))
    codes = np.full((320, 640), 5)
    codes[:, :448] = 22  # classes in other parts do not count
    codes[250:270, 500:520] = 111
    write_labels(site, codes)

    panel = choose_panel(site)

    labels, _, _ = read_window(site, panel)
    assert np.unique(labels).tolist() == [0, 3]
    assert panel.window.height == 192  # the largest of those that show both
    codes[30:40, 470:480] = 176  # too far away to be in one window of 192 pixels
    write_labels(site, codes)
    again = choose_panel(open_site(site.manifest_path))
    assert len(np.unique(read_window(site, again)[0])) == 2


def test_a_smaller_window_may_show_more_classes(tmp_path, make_site):
    site = open_site(make_site(tmp_path, **REGIONS))
    codes = np.full((320, 640), 5)
    codes[300:, 448:] = codes[:20, 448:] = 0  # unknown
    # A grain that is half a percent of a small window, and less of a large one.
    codes[150:158, 540:548] = 111
    write_labels(site, codes)

    panel = choose_panel(site)

    labels, _, _ = read_window(site, panel)
    assert set(np.unique(labels)) == {0, 3}
    assert panel.window.height == 96  # 64 pixels are 0.7 % of 96 x 96


def test_a_window_without_data_somewhere_is_not_chosen(tmp_path, make_site):
    site = open_site(make_site(tmp_path, **REGIONS))
    assert choose_panel(site).window.height == 192
    with rasterio.open(site.scenes[0].image_path, "r+") as dataset:
        values = dataset.read()
        values[:, 160, 540] = dataset.nodata  # in every window of 192 pixels
        dataset.write(values)

    panel = choose_panel(open_site(site.manifest_path))

    assert read_window(site, panel)[2].all()
    assert 96 <= panel.window.height <= 128


def test_of_equal_windows_the_one_with_most_labels_is_chosen(tmp_path, make_site):
    site = open_site(make_site(tmp_path, **REGIONS, num_scenes=2))
    panel = choose_panel(site)
    labels, _, _ = read_window(site, panel)
    share = (labels != 255).mean()
    assert panel.scene == 1  # the test is the east of both scenes together
    with site.open_scene(site.scenes[1]) as reader:
        for row in (0, 16, 32, 48, 64):
            window = replace(panel.window, row=row)
            others = reader.read_valid_labels(window)[1]
            if len(np.unique(others)) == len(np.unique(labels)):
                assert (others != 255).mean() <= share


def test_where_no_window_fits_or_has_a_label_there_is_no_panel(tmp_path, make_site):
    tiny = open_site(make_site(tmp_path / "tiny", height=30, width=40, split="regions"))
    assert choose_panel(tiny) is None
    whole = {"block_m": 320, "train": 1.0, "val": 0.0, "test": 0.0, "seed": 0}
    assert choose_panel(open_site(make_site(tmp_path / "none", split=whole))) is None
    site = open_site(make_site(tmp_path / "bare", **REGIONS))
    codes = np.full((320, 640), 5)
    codes[:, 448:] = 0
    write_labels(site, codes)
    assert choose_panel(site) is None


def test_a_panel_is_written_as_a_picture_and_its_labels(tmp_path, make_site):
    site = open_site(make_site(tmp_path, **REGIONS))
    panel = Panel(scene=0, window=Window(row=20, col=470, height=48, width=64))
    write_panel(site, panel, tmp_path / "panel.npz")
    with np.load(tmp_path / "panel.npz") as file:
        image, labels = file["image"], file["labels"]
        assert set(file.files) == {"image", "labels"}
    assert image.shape == (48, 64, 3)
    assert image.dtype == labels.dtype == np.uint8
    expected, _, _ = read_window(site, panel)
    np.testing.assert_array_equal(labels, expected)
    with rasterio.open(site.scenes[0].image_path) as dataset:
        names = list(dataset.descriptions)
        values = dataset.read()[:, 20:68, 470:534]
    for place, name in enumerate(("red", "green", "blue")):
        band = values[names.index(name)]
        low, high = np.percentile(band, (2, 98))
        stretched = np.clip((band - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(image[..., place], stretched, atol=0.51)


def test_pixels_without_data_are_white_in_a_panel(tmp_path, make_site):
    site = open_site(make_site(tmp_path, **REGIONS))
    scene = site.scenes[0]
    with site.open_scene(scene) as reader:
        valid = reader.read_pixels(scene.grid.window).valid
    assert not valid.all()
    panel = Panel(scene=0, window=scene.grid.window)
    write_panel(site, panel, tmp_path / "panel.npz")
    with np.load(tmp_path / "panel.npz") as file:
        assert (file["image"][~valid] == 255).all()
        assert (file["labels"][~valid] == 255).all()


@pytest.mark.skipif(not PRAIRIE.is_dir(), reason="../shared/data/prairie is not there")
def test_the_panel_of_the_prairie_shows_all_classes():
    site = open_site(MANIFESTS / "prairie_area_2.yaml")
    panel = choose_panel(site)
    labels, parts, _ = read_window(site, panel)
    assert labels.shape == (256, 256)
    assert (parts == 2).all()
    assert set(range(8)) <= set(np.unique(labels).tolist())


def test_a_panel_is_chosen_without_keras(tmp_path, make_site):
    path = make_site(tmp_path, **REGIONS)
    code = (
        "import json, sys\n"
        "from cropseg.comparison.panel import choose_panel\n"
        "from cropseg.sites.site import open_site\n"
        "assert choose_panel(open_site(sys.argv[1]))\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not {"keras", "tensorflow"} & set(json.loads(done.stdout))
