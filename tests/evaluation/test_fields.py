"""Votes of fields: each field counts once, and ties never depend on chance."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import DataError
from cropseg.evaluation.fields import FieldVotes, score_fields


def add(votes, fields, labels, classes):
    as_ids = (np.array(fields), np.array(labels, np.uint8), np.array(classes, np.uint8))
    votes.add(*as_ids)


def test_the_majority_of_the_pixels_is_the_class_of_a_field():
    votes = FieldVotes(9, 3)
    add(votes, [[7, 7, 7], [2, 2, -1]], [[1, 1, 1], [0, 0, 0]], [[1, 0, 1], [2, 2, 0]])
    rows = votes.list_fields(5)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[5, 2, 0, 2, 2], [5, 7, 1, 1, 3]]


def test_votes_add_up_over_windows():
    votes = FieldVotes(4, 2)
    add(votes, [1, 1], [0, 0], [1, 1])
    add(votes, [1, 1, 1, 3], [0, 0, 0, 1], [0, 0, 0, 1])
    assert votes.list_fields(0).tolist() == [[0, 1, 0, 0, 5], [0, 3, 1, 1, 1]]


def test_of_equal_votes_the_first_class_wins_and_other_loses():
    votes = FieldVotes(3, 3)
    add(votes, [0] * 4, [2] * 4, [2, 1, 2, 1])
    add(votes, [1] * 2, [2] * 2, [2, 3])
    add(votes, [2] * 2, [2] * 2, [9, 7])  # both are other
    assert votes.list_fields(0)[:, 3].tolist() == [1, 2, 3]


def test_pixels_without_a_label_have_no_vote():
    votes = FieldVotes(2, 2)
    add(votes, [0, 0, 0, 1], [0, 255, 255, 255], [0, 1, 1, 1])
    assert votes.list_fields(0).tolist() == [[0, 0, 0, 0, 1]]


def test_a_file_without_a_vote_has_no_rows():
    votes = FieldVotes(2, 2)
    add(votes, [-1, -1], [0, 1], [0, 1])
    assert votes.list_fields(0).shape == (0, 5)


def test_every_field_counts_the_same():
    fields = np.array([[0, 0, 1, 1, 9000], [0, 1, 1, 0, 1], [1, 0, 2, 3, 5]])
    score = score_fields(fields)
    assert score.to_json() == {"accuracy": pytest.approx(1 / 3), "num_fields": 3}


def test_without_fields_there_is_no_score():
    assert score_fields(np.zeros((0, 5), int)) is None
    with pytest.raises(DataError, match="source, field, class, majority, pixels"):
        score_fields(np.zeros((3, 4), int))
