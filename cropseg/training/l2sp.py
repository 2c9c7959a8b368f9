"""L2-SP: a penalty on moving away from the weights that a training starts from.

Strength/2 times the sum of (w - w0)^2 over what came from the source, and of w^2 over
what is new (Li, Grandvalet and Davoine 2018, arXiv:1802.01483, equation 3). Only
variables that are trained count, and the loss of a step includes the penalty.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.models.bundle import HEAD_LAYER
from cropseg.models.rebuild import find_class_axis
from cropseg.models.weight_report import WeightReport
from cropseg.runtime import keras
from cropseg.training.checkpoint import copy_value

_NEW = "initialised"
"""What a weight report calls a variable that came from nowhere."""


@dataclass(frozen=True, kw_only=True)
class StartPenalty:
    """How strongly weights are held, and where."""

    strength: float
    """Factor of the penalty, above 0."""
    anchors: Mapping[str, npt.NDArray[np.float32]]
    """What each variable is held to, by its path: the source's weights, 0 where it
    is new. Variables that are not named are free."""


def build_penalty(
    model: Any,
    report: WeightReport,
    *,
    strength: float,
    new_classes: Collection[int] = (),
) -> StartPenalty:
    """Return the penalty on moving away from the weights that a model has now.

    Args:
        model: The model, with the weights that it starts from.
        report: Where its weights come from.
        strength: Factor of the penalty.
        new_classes: Ids of the classes whose rows of the head are new.
    """
    actions = {row.variable: row.action for row in report.rows}
    anchors = {}
    for variable in model.weights:
        if variable.path not in actions:
            continue
        anchor = copy_value(variable).astype(np.float32)
        if actions[variable.path] == _NEW:
            anchor[...] = 0.0
        elif variable.path.startswith(f"{HEAD_LAYER}/"):
            axis = find_class_axis(model.get_layer(HEAD_LAYER), variable)
            np.moveaxis(anchor, axis, -1)[..., list(new_classes)] = 0.0
        anchors[variable.path] = anchor
    return StartPenalty(strength=strength, anchors=anchors)


@contextlib.contextmanager
def hold_weights(network: Any, penalty: StartPenalty | None) -> Iterator[None]:
    """Add a penalty to the loss of a network while it is trained, and take it off.

    Args:
        network: What is trained; a layer's own regulariser stays beside the penalty.
        penalty: The penalty, or None.
    """
    anchors = penalty.anchors if penalty else {}
    strength = penalty.strength if penalty else 0.0
    held = [v for v in network.trainable_variables if v.path in anchors]
    before = [(variable, variable.regularizer) for variable in held]
    for variable, own in before:
        variable.regularizer = _Pull(strength, anchors[variable.path], own)
    try:
        yield
    finally:
        for variable, regularizer in before:
            variable.regularizer = regularizer


class _Pull(keras.regularizers.Regularizer):
    """The penalty of one variable."""

    def __init__(
        self, strength: float, anchor: npt.NDArray[np.float32], own: Any
    ) -> None:
        self.strength = strength
        # A tensor, and not an array: it is passed to the compiled step, not put in it.
        self.anchor = keras.ops.convert_to_tensor(anchor)
        self.own = own

    def __call__(self, x: Any) -> Any:
        """Return the penalty for a value of the variable."""
        distance = keras.ops.sum(keras.ops.square(x - self.anchor))
        penalty = 0.5 * self.strength * distance
        return penalty if self.own is None else penalty + self.own(x)
