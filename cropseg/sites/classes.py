"""The classes of a site, and how label values become class ids.

A class id is the position of the class in the manifest. 255 means "unknown":
such a pixel is never trained on and never scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError

IGNORE: Final = 255
"""The class id of a pixel whose label is unknown."""

MAX_CLASSES: Final = 254
"""Class ids are uint8. 255 is `IGNORE`, and one id is left for "other"."""

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CropClass:
    """One class of a site."""

    name: str
    """Its name, by which classes of two sites are matched."""
    color: str
    """Its colour in maps and plots, as `#rrggbb`."""
    values: tuple[int, ...] = ()
    """The label values that mean it."""
    source_names: tuple[str, ...] = ()
    """Names that it goes by in the model of another site."""


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """The ordered classes of a site, and what its other label values mean."""

    classes: tuple[CropClass, ...]
    """The classes; a class id is a position in this tuple."""
    ignore: tuple[int, ...] = ()
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
    def ids_by_value(self) -> Mapping[int, int]:
        """The id of each label value that the manifest names."""
        ids = dict.fromkeys(self.ignore, IGNORE)
        for class_id, item in enumerate(self.classes):
            ids.update(dict.fromkeys(item.values, class_id))
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
        distinct, inverse, counts = np.unique(
            values, return_inverse=True, return_counts=True
        )
        problem = self.describe_unnamed(
            dict(zip(distinct.tolist(), counts.tolist(), strict=True))
        )
        if problem:
            raise DataError(problem)
        ids = self.ids_by_value
        table = np.array([ids.get(value, IGNORE) for value in distinct.tolist()])
        table = table.astype("uint8")
        return table[inverse].reshape(values.shape)

    def describe_unnamed(self, counts: Mapping[int, int]) -> str | None:
        """Say which label values the manifest does not name, or return None.

        Args:
            counts: Pixels of each label value.
        """
        unnamed = sorted(set(counts) - set(self.ids_by_value))
        if self.ignore_rest or not unnamed:
            return None
        found = ", ".join(f"{value} ({counts[value]} pixels)" for value in unnamed)
        return (
            f"Label values that the manifest does not name: {found}. Add each to "
            "the `values` of a class or to `ignore`, or set `ignore: rest`."
        )


def parse_color(color: str) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255) of a `#rrggbb` colour.

    Example:
        >>> parse_color("#267300")
        (38, 115, 0)
    """
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
