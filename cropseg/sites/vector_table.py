"""The rows of a vector file, and what is said when a file cannot give them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from cropseg.errors import DataError, UnsafeFileError

MAX_LISTED: Final = 10
"""How many names or problems a message lists."""

SHOWN_BYTES: Final = 20
"""How much of a file's start a message shows."""


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """The rows of a vector file."""

    columns: Mapping[str, Sequence[Any]]
    """What the fields asked for hold, None or NaN where nothing."""
    shapes: npt.NDArray[np.object_]
    """The geometry of each row, or None."""
    crs: Any
    """CRS of the geometries, as geopandas understands it."""


@dataclass(frozen=True, kw_only=True)
class VectorRequest:
    """What to read."""

    path: Path
    """The file."""
    fields: Sequence[str] | None
    """The fields wanted, or None for all."""
    layer: str | None
    """The layer wanted, or None for the only one."""
    crs: CRS | None
    """CRS of the columns `x` and `y` of a CSV file."""

    def choose_fields(self, noun: str, known: Sequence[str]) -> Sequence[str]:
        """Return the fields to read, of those that the file has.

        Raises:
            DataError: If one is not there, or there twice.
        """
        names = known if self.fields is None else self.fields
        require_names(noun, names, known, self.path)
        return names


def require_names(
    noun: str, names: Iterable[str], known: Sequence[str], path: Path
) -> None:
    """Refuse names that a file does not have, or has twice."""
    for name in names:
        if known.count(name) > 1:
            raise DataError(
                f"{path} has {known.count(name)} {noun}s `{name}`. Rename all but one."
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise DataError(
                f"{path} has no {noun} `{name}`; it has {join_names(known)}."
                + (f" The nearest is `{near[0]}`." if near else "")
            )


def refuse_start(path: Path, found: object, expected: object) -> UnsafeFileError:
    """Return the error for a file whose content is not what its ending says."""
    rule = f"; one that ends in `{path.suffix}` begins with {expected!r}"
    return UnsafeFileError(
        f"{path} begins with {found!r}{rule if expected else ''}. It is not opened: "
        "its content is not what its ending says, and a file in disguise can read "
        "others. Give it the ending of its format, or copy it again."
    )


def describe_damage(path: Path, error: Exception) -> DataError:
    """Return the error for a file that cannot be read."""
    return DataError(
        f"{path} cannot be read: {error}. The file is damaged or cut short, or one "
        "beside it is missing; copy it again."
    )


def join_names(names: Iterable[str]) -> str:
    """Return names for a message, the first few of many."""
    distinct = list(dict.fromkeys(names))
    more = len(distinct) - MAX_LISTED
    text = ", ".join(distinct[:MAX_LISTED]) or "none"
    return f"{text} and {more} more" if more > 0 else text
