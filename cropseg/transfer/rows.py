"""Rows of the head, matched by class name. No Keras here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from cropseg.errors import ModelError

Array = npt.NDArray[Any]
Matches = Mapping[str, Sequence[str]]
"""For every class of the site that the source knows: the names that it has there."""


def match_rows(
    theirs: Array,
    initial: Array,
    matches: Matches,
    *,
    source: Sequence[str],
    target: Sequence[str],
) -> Array:
    """Return a head variable for other classes.

    Args:
        theirs: Its values in the source, (..., source classes).
        initial: What classes that the source does not know start from,
            (..., target classes).
        matches: Which classes of the source each class of the target is. Several are
            averaged, as a start.
        source: Classes of the source.
        target: Classes of the target.
    """
    values = initial.copy()
    for name, source_names in matches.items():
        columns = [source.index(item) for item in source_names]
        values[..., target.index(name)] = theirs[..., columns].mean(axis=-1)
    return values


def describe_rows(matches: Matches, target: Sequence[str], fate: str) -> str:
    """Say which classes were matched, and what became of the others."""
    pairs = [
        name if list(names) == [name] else f"{name} from {' + '.join(names)}"
        for name, names in matches.items()
    ]
    new = [name for name in target if name not in matches]
    reason = f"by class name: {', '.join(pairs)}"
    return f"{reason}; {fate}: {', '.join(new)}" if new else reason


def needs_sums(matches: Matches) -> bool:
    """Tell whether a class of the site is several classes of the source."""
    return any(len(names) > 1 for names in matches.values())


def refuse_shared_rows(matches: Matches) -> None:
    """Check that no source class is several classes of the site.

    Without training nothing could tell these classes apart.

    Raises:
        ModelError: If one is.
    """
    counts = Counter(name for names in matches.values() for name in names)
    shared = {
        name: [target for target, names in matches.items() if name in names]
        for name, count in counts.items()
        if count > 1
    }
    if shared:
        found = "; ".join(f"{k} is {' and '.join(v)}" for k, v in shared.items())
        raise ModelError(
            f"Without training nothing tells classes apart that are one class of the "
            f"source: {found}. Leave all but one out of `from`, or choose a mode that "
            "trains, which starts both from the same row."
        )


def refuse_new_classes(matches: Matches, target: Sequence[str], mode: str) -> None:
    """Check that the source knows every class of the site.

    Raises:
        ModelError: If it does not: a row that starts at random and is not trained
            would say nothing.
    """
    new = [name for name in target if name not in matches]
    if new:
        raise ModelError(
            f"Mode {mode} does not train the head, and the source does not know "
            f"{', '.join(new)}. Give their names in the source (`from` in the "
            "manifest, or --synonyms), put their values into `ignore`, or choose a "
            "mode that trains the head."
        )
