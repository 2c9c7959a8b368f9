"""The classes of a model that is not trained: masked, and summed where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cropseg.errors import ModelError
from cropseg.models.bundle import HEAD_LAYER
from cropseg.models.rebuild import find_class_axis
from cropseg.models.zoo import OUTPUT
from cropseg.runtime import keras
from cropseg.transfer.rows import Matches

NEVER = -1e4
"""Logit of a class that is never predicted: its probability is exactly 0."""

SUMS_LAYER = "class_sums"
"""Name of the layer that sums the probabilities of several source classes."""


def mask_classes(model: Any, kept: Sequence[int]) -> None:
    """Make a model never predict other classes than some.

    Args:
        model: A bundle's model; kernel and bias of its head are changed.
        kept: Positions of the classes that it may predict.

    Raises:
        ModelError: If the head has no bias.
    """
    head = model.get_layer(HEAD_LAYER)
    if head.bias is None:
        raise ModelError(
            "The head of this network has no bias, so no class can be masked. Choose a "
            "mode that trains the head, or add a bias to its last convolution."
        )
    kernel, bias = (np.array(value) for value in head.get_weights())
    others = np.setdiff1d(np.arange(len(bias)), kept)
    np.moveaxis(kernel, find_class_axis(head, head.kernel), -1)[..., others] = 0.0
    bias[others] = NEVER
    head.set_weights([kernel, bias])


def sum_classes(
    model: Any, matches: Matches, *, source: Sequence[str], target: Sequence[str]
) -> Any:
    """Return a model that gives the site's classes, summed from the source's.

    Args:
        model: A bundle's model with the source's classes; those that no class of the
            site is must be masked.
        matches: Which classes of the source each class of the target is.
        source: Classes of the source.
        target: Classes of the target.
    """
    sums = keras.layers.Conv2D(
        len(target), 1, use_bias=False, name=SUMS_LAYER, dtype="float32"
    )
    probabilities = model.outputs[0]
    summed = keras.Model(model.inputs[0], sums(probabilities), name=model.name)
    matrix = np.zeros((1, 1, len(source), len(target)), np.float32)
    for name, source_names in matches.items():
        for item in source_names:
            matrix[0, 0, source.index(item), target.index(name)] = 1.0
    sums.set_weights([matrix])
    assert model.layers[-1].name == OUTPUT  # noqa: S101 - the form of every bundle
    return summed
