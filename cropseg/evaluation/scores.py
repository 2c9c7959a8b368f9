"""Scores that come from confusion counts.

One confusion matrix gives every score; nothing is averaged over tiles. A class
without a label pixel has no scores and is left out of the means: counting it as
0 or as 1 would change the mean by what the site does not grow (HAZARDS, ranked
10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError
from cropseg.evaluation.confusion import sum_blocks


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Scores of one class. All are None where the class has no label pixel."""

    name: str
    """Name of the class."""
    iou: float | None
    """Intersection over union, 0 to 1."""
    precision: float | None
    """User's accuracy, 0 to 1. None where nothing was predicted as the class."""
    recall: float | None
    """Producer's accuracy, 0 to 1."""
    f1: float | None
    """Harmonic mean of precision and recall, 0 to 1. Also called Dice."""
    num_pixels: int
    """Pixels that are labelled as this class."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one prediction against labels."""

    miou: float
    """Mean of `iou` over the classes that have label pixels, 0 to 1."""
    overall_accuracy: float
    """Share of the scored pixels that are right, 0 to 1."""
    macro_f1: float
    """Mean of `f1` over the classes that have label pixels, 0 to 1."""
    num_pixels: int
    """Pixels that were scored: those with a known label."""
    classes: tuple[ClassScore, ...]
    """Scores of each class, in the order of the class map."""

    def to_json(self) -> dict[str, Any]:
        """Return the document that `evaluate --json` prints."""
        return {**asdict(self), "classes": [asdict(score) for score in self.classes]}


def compute_scores(counts: NDArray[np.integer], class_names: Sequence[str]) -> Scores:
    """Compute every score from confusion counts.

    With `tp` the pixels of a class that are right, `labelled` its label pixels
    (its row, `other` included) and `predicted` its predicted pixels (its column):

    - recall = tp / labelled, precision = tp / predicted
    - iou = tp / (labelled + predicted - tp)
    - f1 = 2 tp / (labelled + predicted)
    - overall accuracy = sum of tp / sum of labelled

    Args:
        counts: Pixels, of shape (C, C + 1), or (B, C, C + 1) to be summed over
            blocks; see `count_confusion`.
        class_names: C names, in the order of the rows.

    Returns:
        The scores. `f1` and `iou` are 0 where nothing was predicted as a class
        that has labels, and `precision` is None there.

    Raises:
        DataError: If the shape does not fit the names, or if no pixel has a label.

    Example:
        Four pixels of maize, one of them taken for wheat. Four of wheat, one
        taken for maize and one for a class that the site does not have. No oats.

        >>> counts = np.array([[3, 1, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0]])
        >>> scores = compute_scores(counts, ["maize", "wheat", "oats"])
        >>> maize, wheat, oats = scores.classes
        >>> (maize.iou, maize.precision, maize.recall, maize.f1)
        (0.6, 0.75, 0.75, 0.75)
        >>> round(wheat.iou, 3), round(wheat.precision, 3), wheat.recall
        (0.4, 0.667, 0.5)
        >>> (oats.iou, oats.num_pixels)
        (None, 0)
        >>> (scores.miou, scores.overall_accuracy, scores.num_pixels)
        (0.5, 0.625, 8)
    """
    matrix = sum_blocks(counts, num_classes=len(class_names))
    num_pixels = int(matrix.sum())
    if num_pixels == 0:
        raise DataError(
            f"No pixel to score: none of the {len(class_names)} classes has a label "
            "pixel here. Choose a split or an area that holds labels."
        )
    classes = tuple(
        _score_class(name, matrix, index) for index, name in enumerate(class_names)
    )
    return Scores(
        miou=_mean([score.iou for score in classes]),
        overall_accuracy=int(np.trace(matrix)) / num_pixels,
        macro_f1=_mean([score.f1 for score in classes]),
        num_pixels=num_pixels,
        classes=classes,
    )


def _score_class(name: str, matrix: NDArray[np.int64], index: int) -> ClassScore:
    right = int(matrix[index, index])
    labelled = int(matrix[index].sum())
    predicted = int(matrix[:, index].sum())
    if labelled == 0:
        return ClassScore(
            name=name, iou=None, precision=None, recall=None, f1=None, num_pixels=0
        )
    return ClassScore(
        name=name,
        iou=right / (labelled + predicted - right),
        precision=right / predicted if predicted else None,
        recall=right / labelled,
        f1=2 * right / (labelled + predicted),
        num_pixels=labelled,
    )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
