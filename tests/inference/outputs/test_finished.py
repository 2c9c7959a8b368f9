"""Opening finished maps, and what is refused of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio

from cropseg.errors import DataError
from cropseg.inference.outputs.finished import open_map, read_common_classes
from cropseg.inference.outputs.layers import list_layers
from cropseg.inference.outputs.writer import write_layer


def test_a_map_is_read_with_its_confidence_as_a_share(write_map, draw_patches):
    ids = draw_patches()
    confidence = np.linspace(0, 1, ids.size).reshape(ids.shape).round(2)
    with open_map(write_map(ids, confidence=confidence)) as reader:
        assert reader.has_confidence
        np.testing.assert_array_equal(reader.read_classes(reader.grid.window), ids)
        found = reader.read_confidence(reader.grid.window)
    expected = np.where(ids == 255, np.nan, confidence)
    np.testing.assert_allclose(found, expected, atol=0.0021)


def test_a_map_without_confidence_says_so(write_map, draw_patches):
    with open_map(write_map(draw_patches())) as reader:
        assert not reader.has_confidence
        assert reader.read_confidence(reader.grid.window) is None


def test_squares_cover_a_map_once(write_map, draw_patches, monkeypatch):
    monkeypatch.setattr("cropseg.inference.outputs.finished.CHUNK_PX", 32)
    seen = np.zeros((70, 53), int)
    with open_map(write_map(draw_patches())) as reader:
        for window in reader.iterate_chunks():
            seen[window.slices_in(reader.grid.window)] += 1
    assert (seen == 1).all()


def test_an_id_that_no_class_has_is_refused(write_map, draw_patches):
    ids = draw_patches()
    ids[3, 4] = 9
    with (
        open_map(write_map(ids)) as reader,
        pytest.raises(DataError, match="class id 9, but it has 4 classes"),
    ):
        reader.read_classes(reader.grid.window)


def test_the_confidence_of_another_map_is_refused(write_map, draw_patches):
    ids = draw_patches()
    here = write_map(ids)
    there = write_map(ids[:40], scene="other", confidence=np.ones((40, 53)))
    mixed = replace(here, confidence_path=there.confidence_path)
    with (
        pytest.raises(DataError, match="shape 70 x 53 against 40 x 53"),
        open_map(mixed),
    ):
        pass


def test_maps_of_other_models_are_refused_together(
    write_map, draw_patches, card, make_grid
):
    one = write_map(draw_patches(), scene="one")
    other = replace(one, scene="other", classes_path=one.classes_path.with_stem("two"))
    fewer = card.model_copy(update={"classes": card.classes[:2]})
    grid = make_grid()
    with write_layer(
        other.classes_path, grid, list_layers(fewer)[0], fewer, tags={}
    ) as writer:
        writer.write(grid.window, np.zeros((70, 53, 1), "uint8"))
    with pytest.raises(
        DataError, match=r"two\.tif has the classes soybeans, wheat & rye"
    ):
        read_common_classes([one, other])


def test_no_map_at_all_is_refused():
    with pytest.raises(DataError, match="There is no map"):
        read_common_classes([])


def test_a_side_car_beside_a_map_changes_nothing(write_map, draw_patches):
    ids = draw_patches()
    finished = write_map(ids)
    with rasterio.open(finished.classes_path) as dataset:
        assert dataset.nodata == 255
    sidecar = finished.classes_path.with_name(finished.classes_path.name + ".aux.xml")
    sidecar.write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>1</NoDataValue>'
        "</PAMRasterBand></PAMDataset>"
    )
    with open_map(finished) as reader:
        np.testing.assert_array_equal(reader.read_classes(reader.grid.window), ids)
