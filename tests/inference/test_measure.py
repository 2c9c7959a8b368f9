"""What is counted of a prediction, with any predictor and without Keras."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely
import yaml

from cropseg.inference.measure import Prediction, Tally
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS
from cropseg.sites.tiling import iterate_tiles
from cropseg.sites.vector import NO_FIELD

TEST = PARTS.index("test")
SIDE = 9
"""Side of the made-up fields, in pixels."""
GAPPED = {"block_m": 320, "gap_m": 60, "train": 0.6, "val": 0.2, "test": 0.2, "seed": 0}
CODES = (5, 22, 176, 111)


@pytest.fixture(scope="module")
def fields_site(make_site, tmp_path_factory):
    """Two scenes, labelled by square fields, of which few touch each other."""
    path = make_site(tmp_path_factory.mktemp("fields"), num_scenes=2, split=GAPPED)
    scenes = open_site(path).scenes
    squares, codes = [], []
    rng = np.random.default_rng(0)
    for scene in scenes:
        transform = scene.grid.transform
        for row in range(0, scene.grid.height - SIDE, SIDE + 1):
            for col in range(0, scene.grid.width - SIDE, SIDE + 1):
                left, top = transform @ (col, row)
                right, bottom = transform @ (col + SIDE, row + SIDE)
                squares.append(shapely.box(left, bottom, right, top))
                codes.append(int(rng.choice(CODES)))
    frame = geopandas.GeoDataFrame({"code": codes}, geometry=squares, crs=32614)
    frame.to_file(path.parent / "fields.gpkg")
    document = yaml.safe_load(path.read_text())
    for scene in document["scenes"]:
        scene |= {"labels": "fields.gpkg", "field": "code"}
    path.write_text(yaml.safe_dump(document))
    return open_site(path)


def guess(scene, window):
    """Predict a class from the place of a pixel alone; 4 and more are other."""
    rows = np.arange(window.row, window.row_end)[:, None]
    cols = np.arange(window.col, window.col_end)
    return ((rows // 7 + cols // 11 + scene) % 6).astype(np.uint8)


def measure(site, *, core_size=64, part="test", whole_part=False, **options):
    """Count what `guess` predicts. Return it, and how many tiles were needed."""
    options = {"confidence": lambda shape: np.full(shape, 0.7), "panel": None} | options
    tally = Tally(site, part, panel=options["panel"], whole_part=whole_part)
    num_needed = 0
    for index, scene in enumerate(site.scenes):
        if scene.labels is None:
            continue
        area = scene.grid.window
        with site.open_scene(scene) as reader:
            for tile in iterate_tiles(area, core_size=core_size):
                window = tile.core.clip(height=area.height, width=area.width)
                if not tally.needs(index, reader, window):
                    continue
                num_needed += 1
                shape = (window.height, window.width)
                prediction = Prediction(
                    window=window,
                    classes=guess(index, window),
                    confidence=options["confidence"](shape),
                )
                tally.add(index, reader, prediction)
    return tally.finish(), num_needed


def read_whole(site, index):
    """Return what is known of a scene: labels, fields, parts, whether it is valid."""
    scene = site.scenes[index]
    window = scene.grid.window
    with site.open_scene(scene) as reader:
        pixels, labels = reader.read_valid_labels(window)
        fields = reader.read_fields(window)
    return labels, fields, site.split.read_parts(scene.grid, window), pixels.valid


def test_fields_vote_that_lie_whole_in_the_part(fields_site):
    votes, places, classes = {}, {}, {}
    for index, scene in enumerate(fields_site.scenes):
        labels, fields, parts, _ = read_whole(fields_site, index)
        predicted = np.minimum(guess(index, scene.grid.window), 4)
        for number in np.unique(fields[fields != NO_FIELD]).tolist():
            inside = fields == number
            places.setdefault(number, set()).update(parts[inside].tolist())
            known = inside & (labels != 255)
            if known.any():
                found = np.bincount(predicted[known], minlength=5)
                votes[number] = votes.get(number, 0) + found
                classes[number] = labels[known][0]
    expected = [
        [0, number, classes[number], votes[number].argmax(), votes[number].sum()]
        for number in sorted(votes)
        if places[number] == {TEST}
    ]

    found, _ = measure(fields_site)

    assert found.fields.tolist() == expected
    assert len(expected) > 20
    assert any({TEST} < part for part in places.values())  # and some that are cut
    majority = found.fields[:, 3]
    assert 4 in majority
    right = (majority == found.fields[:, 2]).mean()
    assert found.to_json()["fields"] == {"accuracy": right, "num_fields": len(expected)}
    assert 0 < right < 1


@pytest.mark.parametrize("core_size", [13, 50, 400])
def test_no_count_depends_on_the_tiles(fields_site, core_size):
    expected, _ = measure(fields_site, whole_part=True)
    found, _ = measure(fields_site, core_size=core_size, whole_part=True)
    arrays = expected.to_arrays()
    assert set(arrays) == {"block_ids", "counts", "reliability", "mapped", "fields"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.to_arrays()[name], array)


def test_each_file_of_fields_is_a_source_of_its_own(fields_site):
    folder = fields_site.manifest_path.parent
    document = yaml.safe_load(fields_site.manifest_path.read_text())
    frame = geopandas.read_file(folder / "fields.gpkg")
    frame.iloc[::-1].to_file(folder / "reversed.gpkg")
    document["scenes"][1]["labels"] = "reversed.gpkg"
    path = folder / "two_files.yaml"
    path.write_text(yaml.safe_dump(document))

    found, _ = measure(open_site(path))
    one, _ = measure(fields_site)

    first, second = (found.fields[found.fields[:, 0] == source] for source in (0, 1))
    turned = second.copy()
    turned[:, :2] = np.column_stack([0 * second[:, 1], len(frame) - 1 - second[:, 1]])
    together = np.concatenate([first, turned[::-1]])
    np.testing.assert_array_equal(together, one.fields)
    assert len(first) > 5
    assert len(second) > 5


def test_the_map_is_counted_in_scored_blocks_alone(fields_site):
    found, num_needed = measure(fields_site, core_size=16, whole_part=True)
    usual, num_usual = measure(fields_site, core_size=16)

    split = fields_site.split
    expected = {}
    for index, scene in enumerate(fields_site.scenes):
        _, _, parts, valid = read_whole(fields_site, index)
        x, y = scene.grid.locate_pixels(scene.grid.window)
        inside = (parts == TEST) & valid
        places = np.stack(
            [
                y // split.block_m,
                x // split.block_m,
                np.minimum(guess(index, scene.grid.window), 4),
            ],
            axis=-1,
        )
        for row, col, name in places[inside].astype(int).tolist():
            block = expected.setdefault((row, col), np.zeros(5, int))
            block[name] += 1
    blocks = [expected[row, col].tolist() for row, col in sorted(expected)]
    assert found.mapped.tolist() == blocks
    np.testing.assert_array_equal(found.counts, usual.counts)
    assert usual.mapped is None
    assert "mapped" not in usual.to_arrays()
    assert num_needed > num_usual  # between fields there are tiles without a label


def test_points_are_no_fields(fields_site):
    folder = fields_site.manifest_path.parent
    frame = geopandas.read_file(folder / "fields.gpkg")
    frame.geometry = frame.geometry.centroid
    frame.to_file(folder / "points.gpkg")
    document = yaml.safe_load(fields_site.manifest_path.read_text())
    for scene in document["scenes"]:
        scene |= {"labels": "points.gpkg", "buffer_m": 25.0}
    path = folder / "points.yaml"
    path.write_text(yaml.safe_dump(document))

    found, _ = measure(open_site(path))

    assert found.fields.shape == (0, 5)
    assert found.counts.sum() > 300
    assert found.to_json()["fields"] is None


def test_a_predictor_without_probabilities_has_no_calibration(fields_site):
    found, _ = measure(fields_site, confidence=lambda _: None)
    assert found.reliability is None
    assert found.calibration is None
    document = found.to_json()
    assert (document["ece"], document["reliability"]) == (None, None)
    assert "reliability" not in found.to_arrays()


def test_a_part_without_a_label_gives_nothing(make_site, tmp_path):
    split = {"block_m": 320, "train": 1.0, "val": 0.0, "test": 0.0, "seed": 0}
    site = open_site(make_site(tmp_path / "site", split=split))
    assert measure(site, whole_part=True) == (None, 0)


def test_labels_that_are_pixels_have_no_fields(make_site, tmp_path):
    site = open_site(make_site(tmp_path / "site"))
    found, _ = measure(site)
    assert found.fields.shape == (0, 5)
    known = found.counts.sum()
    assert found.reliability[:, 10].sum(axis=0).tolist() == [
        known,
        np.trace(found.counts.sum(axis=0)),
        7000 * known,
    ]
