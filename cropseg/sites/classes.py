"""The classes of a site, and how label values become class ids.

A class id is the position of the class in the manifest. 255 means "unknown":
such a pixel is never trained on and never scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError

IGNORE: Final = 255
"""The class id of a pixel whose label is unknown."""

MAX_CLASSES: Final = 254
"""Class ids are uint8. 255 is `IGNORE`, and one id is left for "other"."""

MAX_VALUES: Final = 2**20
"""Label values that a file may hold. An image in place of labels can hold billions."""

_MAX_LISTED: Final = 50

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CropClass:
    """One class of a site."""

    name: str
    """Its name, by which classes of two sites are matched."""
    color: str
    """Its colour in maps and plots, as `#rrggbb`."""
    values: tuple[int | str, ...] = ()
    """The label values that mean it."""
    source_names: tuple[str, ...] = ()
    """Names that it goes by in the model of another site."""


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """The ordered classes of a site, and what its other label values mean."""

    classes: tuple[CropClass, ...]
    """The classes; a class id is a position in this tuple."""
    ignore: tuple[int | str, ...] = ()
    """Label values that mean "unknown"."""
    ignore_rest: bool = False
    """Whether every value that is not named means "unknown"."""

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order of their ids."""
        return tuple(item.name for item in self.classes)

    @property
    def colors(self) -> tuple[str, ...]:
        """Class colours, in the order of their ids."""
        return tuple(item.color for item in self.classes)

    @property
    def ids_by_value(self) -> Mapping[str, int]:
        """The id of each label value that the manifest names, by its text form."""
        ids = dict.fromkeys(map(write_value, self.ignore), IGNORE)
        for class_id, item in enumerate(self.classes):
            ids.update(dict.fromkeys(map(write_value, item.values), class_id))
        return ids

    def encode(self, values: npt.NDArray[np.generic]) -> Labels:
        """Turn label values into class ids.

        Args:
            values: Label values of any shape and dtype.

        Returns:
            Class ids of the same shape, uint8. 255 where the label is unknown.

        Raises:
            DataError: If a value is named neither by a class nor by `ignore`. The
                message lists the values and their pixel counts.
        """
        if not values.size:
            return np.zeros(values.shape, np.uint8)
        if values.dtype.kind in "iu":
            first = int(values.min())
            last = int(values.max())
            if last - first < MAX_VALUES and last <= np.iinfo(np.int64).max:
                # Small integers are counted and looked up, and never sorted.
                index = values.astype(np.int64) - first if first else values
                counts = np.bincount(index.ravel())
                found = np.flatnonzero(counts)
                table = np.full(len(counts), IGNORE, np.uint8)
                table[found] = self._list_ids(found + first, counts[found])
                return table[index]
        distinct, inverse, counts = np.unique(
            values, return_inverse=True, return_counts=True
        )
        return self._list_ids(distinct, counts)[inverse].reshape(values.shape)

    def _list_ids(
        self, values: npt.NDArray[Any], counts: npt.NDArray[np.int64]
    ) -> Labels:
        """Return the id of each of some label values, with their pixel counts."""
        names = list(map(write_value, values.tolist()))
        problem = self.describe_unnamed(dict(zip(names, counts.tolist(), strict=True)))
        if problem:
            raise DataError(problem)
        ids = self.ids_by_value
        return np.array([ids.get(name, IGNORE) for name in names], np.uint8)

    def describe_unnamed(
        self, counts: Mapping[str, int], noun: str = "pixels"
    ) -> str | None:
        """Say which label values the manifest does not name, or return None.

        Args:
            counts: How often each label value occurs.
            noun: What is counted.
        """
        unnamed = sorted(set(counts) - set(self.ids_by_value), key=order_value)
        if self.ignore_rest or not unnamed:
            return None
        listed = unnamed[:_MAX_LISTED]
        found = ", ".join(f"{value} ({counts[value]} {noun})" for value in listed)
        if len(unnamed) > len(listed):
            found += f" and {len(unnamed) - len(listed)} more (are these labels?)"
        return (
            f"Label values that the manifest does not name: {found}. Add each to "
            "the `values` of a class or to `ignore`, or set `ignore: rest`."
        )


def write_value(value: object) -> str:
    """Return the text form of a label value, by which values are compared.

    So `5` in a manifest means 5 in a raster, and 5.0 or "5" in a field of polygons.

    Example:
        >>> write_value(5.0), write_value(" hvede "), write_value(2.5)
        ('5', 'hvede', '2.5')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def order_value(text: str) -> tuple[bool, float, str]:
    """Return what text forms of label values sort by: numbers by size, then texts."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def parse_color(color: str) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255) of a `#rrggbb` colour.

    Example:
        >>> parse_color("#267300")
        (38, 115, 0)
    """
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
