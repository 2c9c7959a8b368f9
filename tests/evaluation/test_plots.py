"""The confusion matrix as a picture and as a table."""

from __future__ import annotations

import csv

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from cropseg.errors import DataError, ResourceError
from cropseg.evaluation.plots import plot_confusion, write_confusion_csv

NAMES = ("maize", "wheat", "oats")
COUNTS = np.array([[9990, 10, 0, 0], [1, 1, 0, 2], [0, 0, 0, 0]])


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that are saved, so that a test can read their text."""
    figures = []
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return figures


def read_cells(figure):
    cells = {}
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        cells[int(row), int(column)] = text.get_text()
    return cells


def read_names(figure):
    axes = figure.axes[0]
    return (
        [label.get_text() for label in axes.get_yticklabels()],
        [label.get_text() for label in axes.get_xticklabels()],
    )


def test_the_picture_gives_each_row_in_percent_of_its_label(tmp_path, drawn):
    plot_confusion(COUNTS, NAMES, tmp_path / "confusion.png")

    cells = read_cells(drawn[0])
    assert [cells[0, column] for column in range(4)] == [">99", "<1", "", ""]
    assert [cells[1, column] for column in range(4)] == ["25", "25", "", "50"]


def test_labels_are_rows_and_predictions_are_columns(tmp_path, drawn):
    plot_confusion(COUNTS, NAMES, tmp_path / "confusion.png")

    rows, columns = read_names(drawn[0])
    assert rows == ["maize  (10,000 px)", "wheat  (4 px)", "oats  (0 px)"]
    assert columns == ["maize", "wheat", "oats", "other"]


def test_the_column_other_is_drawn_only_where_it_is_used(tmp_path, drawn):
    counts = COUNTS.copy()
    counts[:, -1] = 0

    plot_confusion(counts, NAMES, tmp_path / "confusion.png")

    assert read_names(drawn[0])[1] == ["maize", "wheat", "oats"]


def test_a_label_without_pixels_is_left_empty(tmp_path, drawn):
    plot_confusion(COUNTS, NAMES, tmp_path / "confusion.png")

    cells = read_cells(drawn[0])
    assert [cells[2, column] for column in range(4)] == [""] * 4
    shown = drawn[0].axes[0].images[0].get_array()
    assert np.isnan(np.ma.filled(shown, np.nan)[2]).all()


def test_blocks_are_summed_before_they_are_drawn(tmp_path):
    plot_confusion(COUNTS, NAMES, tmp_path / "whole.png")
    plot_confusion(np.stack([COUNTS, COUNTS * 0]), NAMES, tmp_path / "blocks.png")

    whole, blocks = tmp_path / "whole.png", tmp_path / "blocks.png"
    assert whole.read_bytes() == blocks.read_bytes()


def test_numbers_of_sixteen_classes_with_long_names_do_not_overlap(tmp_path, drawn):
    names = [f"durum wheat, spring, field {index}" for index in range(16)]
    counts = np.ones((16, 17), dtype=np.int64) + 5000 * np.eye(16, 17, dtype=int)

    plot_confusion(counts, names, tmp_path / "confusion.png")

    axes = drawn[0].axes[0]
    width = axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0]
    widest = max(text.get_window_extent().width for text in axes.texts)
    assert widest < width
    picture = matplotlib.image.imread(tmp_path / "confusion.png")
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge[..., :3] == 1).all(), "something is cut off at the edge"


def test_a_class_name_is_never_read_as_a_formula(tmp_path, drawn):
    plot_confusion(COUNTS, ("$maize_{$", "$wheat$", "oats"), tmp_path / "a.png")

    assert read_names(drawn[0])[1][:2] == ["$maize_{$", "$wheat$"]


def test_equal_counts_give_equal_files(tmp_path):
    plot_confusion(COUNTS, NAMES, tmp_path / "a.png")
    plot_confusion(COUNTS, NAMES, tmp_path / "b.png")

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_table_holds_the_counts_under_their_names(tmp_path):
    path = tmp_path / "confusion.csv"

    write_confusion_csv(COUNTS, ("maize", "wheat, durum", "oats"), path)

    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["label", "maize", "wheat, durum", "oats", "other"]
    assert [row[0] for row in rows[1:]] == ["maize", "wheat, durum", "oats"]
    assert np.array([row[1:] for row in rows[1:]], dtype=int).tolist() == (
        COUNTS.tolist()
    )


@pytest.mark.parametrize("write", [plot_confusion, write_confusion_csv])
def test_names_that_do_not_fit_write_nothing(tmp_path, write):
    with pytest.raises(DataError, match="2 classes"):
        write(COUNTS, NAMES[:2], tmp_path / "confusion.out")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [plot_confusion, write_confusion_csv])
def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path, write):
    (tmp_path / "confusion.out.png").mkdir()

    with pytest.raises(ResourceError, match="Cannot write"):
        write(COUNTS, NAMES, tmp_path / "confusion.out.png")

    assert [path.name for path in tmp_path.iterdir()] == ["confusion.out.png"]
