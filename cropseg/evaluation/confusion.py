"""Integer confusion counts, from which every score comes.

Rows are labels and columns are predictions. The last column counts predictions
of classes that the site does not have: they are errors of the label's class.
Unknown labels (255) are never counted. Counts add up over tiles, blocks and
scenes, and scores do not, so only counts are stored (HAZARDS, ranked 10).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError
from cropseg.sites.classes import IGNORE, MAX_CLASSES


def count_confusion(
    labels: NDArray[np.integer], prediction: NDArray[np.integer], *, num_classes: int
) -> NDArray[np.int64]:
    """Count how often each class was predicted for each label.

    Args:
        labels: Class ids from 0 to `num_classes - 1`, or 255 for unknown. Any shape.
        prediction: Class ids of the same shape. Every value from `num_classes` on
            is a class that the site does not have.
        num_classes: Number of classes of the site, 1 to 254.

    Returns:
        Pixels, of shape (num_classes, num_classes + 1): a row a label, a column a
        predicted class, and the last column for all other predictions.

    Raises:
        DataError: If the shapes differ, if an array does not hold integers, if a
            label is neither a class nor 255, or if a prediction is negative.

    Example:
        >>> labels = np.array([0, 0, 0, 1, 1, 255])
        >>> prediction = np.array([0, 0, 1, 1, 7, 0])
        >>> count_confusion(labels, prediction, num_classes=2).tolist()
        [[2, 1, 0], [0, 1, 1]]
    """
    counts = _count(labels, prediction, None, num_blocks=1, num_classes=num_classes)
    return sum_blocks(counts, num_classes=num_classes)


def count_confusion_by_block(
    labels: NDArray[np.integer],
    prediction: NDArray[np.integer],
    blocks: NDArray[np.integer],
    *,
    num_blocks: int,
    num_classes: int,
) -> NDArray[np.int64]:
    """Count the confusion of each block apart.

    Intervals over blocks need the counts of each block (DESIGN, "Comparing on
    equal terms"). The sum over blocks is `count_confusion` of the pixels that lie
    in a block.

    Args:
        labels: Class ids, or 255 for unknown. Any shape.
        prediction: Class ids of the same shape.
        blocks: Block ids of the same shape, from 0 to `num_blocks - 1`. Pixels
            with -1 lie in no block and are left out.
        num_blocks: Number of blocks, 0 or greater.
        num_classes: Number of classes of the site, 1 to 254.

    Returns:
        Pixels, of shape (num_blocks, num_classes, num_classes + 1).

    Raises:
        DataError: As `count_confusion`, and if a block id is out of range.
    """
    return _count(
        labels, prediction, blocks, num_blocks=num_blocks, num_classes=num_classes
    )


def sum_blocks(counts: NDArray[np.integer], *, num_classes: int) -> NDArray[np.int64]:
    """Return one confusion matrix for counts with or without a block axis.

    Args:
        counts: Pixels, of shape (C, C + 1) or (B, C, C + 1).
        num_classes: C, the number of classes.

    Returns:
        Pixels, of shape (C, C + 1).

    Raises:
        DataError: If the shape is another, or if the counts are no counts.
    """
    expected = (num_classes, num_classes + 1)
    if counts.ndim not in (2, 3) or counts.shape[-2:] != expected:
        raise DataError(
            f"Confusion counts have the shape {counts.shape}, and {num_classes} "
            f"classes need {expected} or (blocks, {expected[0]}, {expected[1]}). "
            "Give the classes that the counts were made with."
        )
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise DataError(
            f"Confusion counts of type {counts.dtype} are not integers of 0 or more. "
            "Give counts of pixels, not shares."
        )
    total = counts if counts.ndim == 2 else counts.sum(axis=0)  # noqa: PLR2004
    return total.astype(np.int64)


def name_columns(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Name the columns of a confusion matrix.

    Args:
        class_names: Names of the site's classes, in order.

    Returns:
        The names and `other`. Crop maps often have a class of that name. Then the
        last column is `other (no class of the site)`.

    Example:
        >>> name_columns(("maize", "wheat"))
        ('maize', 'wheat', 'other')
    """
    other = "other (no class of the site)" if "other" in class_names else "other"
    return (*class_names, other)


def _count(
    labels: NDArray[np.integer],
    prediction: NDArray[np.integer],
    blocks: NDArray[np.integer] | None,
    *,
    num_blocks: int,
    num_classes: int,
) -> NDArray[np.int64]:
    _check_arrays(labels, prediction, blocks)
    if not 1 <= num_classes <= MAX_CLASSES:
        raise DataError(f"num_classes is {num_classes}; give 1 to {MAX_CLASSES}.")
    # Two rows more than classes: one for unknown labels, one for wrong ones, so
    # that one pass over the pixels both counts and checks.
    unknown, wrong = num_classes, num_classes + 1
    num_rows, num_columns = num_classes + 2, num_classes + 1
    bins = _number_rows(labels, num_classes)
    if blocks is not None:
        bins += _number_blocks(blocks, num_blocks) * num_rows
    bins *= num_columns
    bins += np.minimum(prediction.ravel(), num_classes).astype(np.intp, copy=False)
    num_groups = num_blocks if blocks is None else num_blocks + 1
    shape = (num_groups, num_rows, num_columns)
    counts = np.bincount(bins, minlength=num_groups * num_rows * num_columns)
    counts = counts.reshape(shape)
    if counts[:, wrong].any():
        raise _wrong_labels(labels, num_classes)
    return counts[:num_blocks, :unknown].astype(np.int64)


def _check_arrays(
    labels: NDArray[np.integer],
    prediction: NDArray[np.integer],
    blocks: NDArray[np.integer] | None,
) -> None:
    arrays = {"labels": labels, "prediction": prediction}
    if blocks is not None:
        arrays["blocks"] = blocks
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"{name} have the type {array.dtype}; give integers.")
        if array.shape != labels.shape:
            raise DataError(
                f"{name} have the shape {array.shape} and labels {labels.shape}. "
                "Give arrays of the same pixels."
            )
    if np.issubdtype(prediction.dtype, np.signedinteger) and (prediction < 0).any():
        raise DataError(
            f"prediction holds {int(prediction.min())}; class ids are 0 or greater."
        )


def _number_rows(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.intp]:
    """Return the row of each pixel: its class, or that of unknown or wrong labels."""
    flat = labels.ravel()
    rows = np.full(IGNORE + 1, num_classes + 1, dtype=np.intp)
    rows[:num_classes] = np.arange(num_classes)
    rows[IGNORE] = num_classes
    if flat.dtype != np.uint8 and ((flat < 0) | (flat > IGNORE)).any():
        raise _wrong_labels(labels, num_classes)
    numbered: NDArray[np.intp] = rows[flat]
    return numbered


def _number_blocks(blocks: NDArray[np.integer], num_blocks: int) -> NDArray[np.intp]:
    """Return the block of each pixel, with `num_blocks` for pixels in none."""
    flat = blocks.ravel().astype(np.intp)
    if flat.size and not (flat.min() >= -1 and flat.max() < num_blocks):
        raise DataError(
            f"Block ids run from {flat.min()} to {flat.max()}; with {num_blocks} "
            f"blocks they are -1 (no block) to {num_blocks - 1}."
        )
    flat[flat < 0] = num_blocks
    return flat


def _wrong_labels(labels: NDArray[np.integer], num_classes: int) -> DataError:
    values, pixels = np.unique(labels, return_counts=True)
    wrong = (values < 0) | (values >= num_classes) & (values != IGNORE)
    found = ", ".join(
        f"{value} ({count} pixels)"
        for value, count in zip(values[wrong], pixels[wrong], strict=True)
    )
    return DataError(
        f"Labels hold values that are no class: {found}. Expected 0 to "
        f"{num_classes - 1}, or {IGNORE} for unknown. Name these values in the "
        "manifest, as a class or under `ignore`."
    )
