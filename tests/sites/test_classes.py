"""Label values become class ids, and none is dropped in silence."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE, ClassMap, CropClass, parse_color
from cropseg.sites.manifest import read_manifest

SOY = CropClass(name="soy", color="#267300", values=(5,))
WHEAT = CropClass(name="wheat", color="#d8b56b", values=(22, 23))


def test_label_values_become_positions_in_the_manifest():
    classes = ClassMap(classes=(SOY, WHEAT), ignore=(0, 255))
    values = np.array([[5, 22, 0], [23, 255, 5]], "uint8")

    ids = classes.encode(values)

    assert ids.dtype == np.uint8
    assert ids.tolist() == [[0, 1, IGNORE], [1, IGNORE, 0]]


def test_255_is_an_ordinary_label_value_that_a_class_may_have():
    high = CropClass(name="water", color="#4a6fa3", values=(255,))

    ids = ClassMap(classes=(SOY, high)).encode(np.array([255, 5], "uint8"))

    assert ids.tolist() == [1, 0]


def test_unnamed_values_are_listed_with_their_pixel_counts():
    classes = ClassMap(classes=(SOY, WHEAT), ignore=(0,))
    values = np.array([[5, 81, 81], [255, 0, 81]], "uint8")

    with pytest.raises(DataError, match=r"81 \(3 pixels\), 255 \(1 pixels\)") as error:
        classes.encode(values)

    assert "`ignore`" in str(error.value)


def test_ignore_rest_makes_every_unnamed_value_unknown():
    classes = ClassMap(classes=(SOY, WHEAT), ignore_rest=True)

    ids = classes.encode(np.array([81, 23, 255, 0, 5], "int32"))

    assert ids.tolist() == [IGNORE, 1, IGNORE, IGNORE, 0]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64"])
def test_values_of_every_integer_type_are_encoded(dtype):
    code = 127 if dtype == "uint8" else 999
    item = CropClass(name="maize", color="#ffd300", values=(code,))

    ids = ClassMap(classes=(SOY, item)).encode(np.array([code, 5], dtype))

    assert ids.tolist() == [1, 0]


def test_an_empty_window_has_no_labels():
    ids = ClassMap(classes=(SOY, WHEAT)).encode(np.zeros((0, 3), "uint8"))

    assert ids.shape == (0, 3)
    assert ids.dtype == np.uint8


def test_names_and_colors_follow_the_ids():
    classes = ClassMap(classes=(WHEAT, SOY))

    assert classes.names == ("wheat", "soy")
    assert classes.colors == ("#d8b56b", "#267300")
    assert len(classes) == 2


def test_a_color_is_red_green_blue():
    assert parse_color("#0a14ff") == (10, 20, 255)


@pytest.mark.parametrize(("number", "is_refused"), [(254, False), (255, True)])
def test_more_than_254_classes_are_refused(tmp_path, make_site, number, is_refused):
    entries = [
        {"name": f"c{index}", "color": "#000000", "values": [index]}
        for index in range(number)
    ]
    path = make_site(tmp_path, classes=entries, ignore="rest")

    if is_refused:
        with pytest.raises(DataError, match="255 classes; at most 254"):
            read_manifest(path)
    else:
        assert len(read_manifest(path).classes) == 254


def test_an_image_in_place_of_labels_does_not_list_all_its_values():
    with pytest.raises(DataError, match=r"and 949 more \(are these labels") as error:
        ClassMap(classes=(SOY,)).encode(np.arange(1000, dtype="uint16"))

    assert len(str(error.value)) < 1200


def test_values_above_all_signed_integers_are_encoded():
    high = 2**63 + 5
    item = CropClass(name="maize", color="#ffd300", values=(high,))

    ids = ClassMap(classes=(SOY, item)).encode(np.array([high, high], "uint64"))

    assert ids.tolist() == [1, 1]
