"""Scores per field: the class that most pixels of a polygon were given.

A field is one crop, so a map is often used field by field. Only fields whose pixels
all lie in the part that is scored take part: of a field that is cut, the map of the
rest may have been trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE

FIELD_COLUMNS: Final = ("source", "field", "class", "majority", "pixels")
"""What a row of the fields of a run holds: the position of the vector file among
those of the site, the field's position in it, its class id, the class id that most of
its pixels were given (the number of classes for other), and its scored pixels."""

_CLASS, _MAJORITY = FIELD_COLUMNS.index("class"), FIELD_COLUMNS.index("majority")


@dataclass(frozen=True, kw_only=True)
class FieldScore:
    """How many fields were given their class."""

    accuracy: float
    """Share of the fields whose majority is their class, 0 to 1. Every field counts
    the same, small or large."""
    num_fields: int
    """Fields that were scored."""

    def to_json(self) -> dict[str, Any]:
        """Return `accuracy` and `num_fields`."""
        return asdict(self)


class FieldVotes:
    """Counts the votes of the pixels of each field of a vector file."""

    def __init__(self, num_fields: int, num_classes: int) -> None:
        """Start without a vote.

        Args:
            num_fields: Fields of the file.
            num_classes: Classes of the site.
        """
        self._votes = np.zeros((num_fields, num_classes + 1), np.int64)
        self._classes = np.full(num_fields, IGNORE, np.uint8)

    def add(
        self,
        fields: NDArray[np.integer],
        labels: NDArray[np.uint8],
        prediction: NDArray[np.uint8],
    ) -> None:
        """Add pixels.

        Args:
            fields: The field of each pixel, negative for none. Any shape.
            labels: Its class id, 255 where it is unknown: such a pixel has no vote.
            prediction: The class id that it was given.
        """
        votes = (labels != IGNORE) & (fields >= 0)
        if not votes.any():
            return
        ids = fields[votes].astype(np.intp)
        num_columns = self._votes.shape[1]
        index = ids * num_columns + np.minimum(prediction[votes], num_columns - 1)
        first = int(ids.min())
        last = int(ids.max()) + 1
        counts = np.bincount(
            index - first * num_columns, minlength=(last - first) * num_columns
        )
        self._votes[first:last] += counts.reshape(-1, num_columns)
        self._classes[ids] = labels[votes]

    def list_fields(self, source: int) -> NDArray[np.int64]:
        """Return a row for every field with a vote; see `FIELD_COLUMNS`.

        Of classes with equally many votes the one with the lowest id is taken, and
        other comes last. So equal maps give equal votes.
        """
        pixels = self._votes.sum(axis=1)
        ids = np.flatnonzero(pixels)
        return np.column_stack(
            [
                np.full(len(ids), source),
                ids,
                self._classes[ids],
                self._votes[ids].argmax(axis=1),
                pixels[ids],
            ]
        ).astype(np.int64)


def score_fields(fields: NDArray[np.integer]) -> FieldScore | None:
    """Compute the share of fields whose majority is their class.

    Args:
        fields: A row for each field, (fields, 5); see `FIELD_COLUMNS`.

    Returns:
        The score, or None without a field.

    Raises:
        DataError: If the shape is another.

    Example:
        >>> score_fields(np.array([[0, 7, 1, 1, 40], [0, 9, 1, 0, 15]]))
        FieldScore(accuracy=0.5, num_fields=2)
    """
    if fields.ndim != 2 or fields.shape[1] != len(FIELD_COLUMNS):  # noqa: PLR2004
        raise DataError(
            f"Fields have the shape {fields.shape}; expected (fields, "
            f"{len(FIELD_COLUMNS)}): {', '.join(FIELD_COLUMNS)}."
        )
    if not len(fields):
        return None
    is_right = fields[:, _CLASS] == fields[:, _MAJORITY]
    return FieldScore(accuracy=float(is_right.mean()), num_fields=len(fields))
