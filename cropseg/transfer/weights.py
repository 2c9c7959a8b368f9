"""Bringing the weights of a source model into a new one, variable by variable.

Layers are matched by name and shape, head rows by class name. What a plan did not
ask for is an error that lists every mismatch; nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError, join_problems
from cropseg.models.bundle import HEAD_LAYER
from cropseg.models.card import Card, match_card_classes
from cropseg.models.stages import Stage
from cropseg.models.weight_report import WeightReport, WeightRow
from cropseg.runtime import keras
from cropseg.sites.classes import ClassMap
from cropseg.transfer.plan import TransferPlan

_NEVER = -1e4
"""Logit of a class that `zero_shot` cannot predict: its probability is exactly 0."""


def load_weights(  # noqa: C901 - one pass decides on every variable
    model: Any,
    stages: Sequence[Stage],
    source: Any,
    *,
    card: Card,
    classes: ClassMap,
    plan: TransferPlan,
) -> WeightReport:
    """Copy what a plan reuses from a source model.

    Args:
        model: The new model; it is changed.
        stages: Its stages.
        source: The source model, of the same architecture and encoder.
        card: The source's card.
        classes: The new site's classes.
        plan: Which parts are loaded.

    Returns:
        A row for every variable of the model, and for source rows without a place.

    Raises:
        ModelError: If a variable that the plan loads is not in the source, or has
            another shape. All are listed, and the model is unchanged.
    """
    values: dict[str, npt.NDArray[Any]] = {}
    rows: list[WeightRow] = []
    skipped: list[WeightRow] = []
    problems: list[str] = []
    found = {variable.path: np.asarray(variable) for variable in source.weights}
    for stage in stages:
        for name in stage.layers:
            for variable in model.get_layer(name).weights:
                action, reason = "initialised", "the plan asks for random weights"
                if stage.part in plan.loaded:
                    action, reason = "copied", "same name and shape"
                    shape = tuple(variable.shape)
                    if name == HEAD_LAYER:
                        shape = (*shape[:-1], len(card.classes))
                    problem = _compare(variable.path, shape, found)
                    if problem:
                        problems.append(problem)
                    elif name == HEAD_LAYER:
                        values[variable.path], reason, dropped = _match_head(
                            variable, found, card=card, classes=classes, plan=plan
                        )
                        skipped += dropped
                    else:
                        values[variable.path] = found[variable.path]
                rows.append(
                    WeightRow(
                        variable=variable.path,
                        part=stage.part,
                        shape=tuple(variable.shape),
                        action=action,
                        reason=reason,
                    )
                )
    if problems:
        title = f"{len(problems)} variables of mode {plan.mode} find no match"
        raise ModelError(join_problems(title, problems))
    for variable in model.weights:
        if variable.path in values:
            variable.assign(values[variable.path])
    return WeightReport(rows=(*rows, *skipped))


def _compare(
    path: str, shape: tuple[int, ...], found: dict[str, npt.NDArray[Any]]
) -> str | None:
    if path not in found:
        return f"{path} is not in the source model."
    if found[path].shape != shape:
        return f"{path} should have shape {shape}, but has {found[path].shape} there."
    return None


def _match_head(
    variable: Any,
    found: dict[str, npt.NDArray[Any]],
    *,
    card: Card,
    classes: ClassMap,
    plan: TransferPlan,
) -> tuple[npt.NDArray[Any], str, list[WeightRow]]:
    """Return a head variable's values, why, and the source's rows without a place."""
    matches = match_card_classes(card, classes)
    theirs = found[variable.path]
    values = keras.ops.convert_to_numpy(variable)
    if not plan.trains:
        _refuse_sums(matches)
        values[...] = _NEVER if variable.path.endswith("bias") else 0.0
    for name, source_names in matches.items():
        columns = [card.class_names.index(item) for item in source_names]
        values[..., classes.names.index(name)] = theirs[..., columns].mean(axis=-1)
    new = [name for name in classes.names if name not in matches]
    fate = "initialised" if plan.trains else "never predicted"
    reason = f"by class name: {', '.join(matches)}"
    if new:
        reason += f"; {fate}: {', '.join(new)}"
    used = {item for source_names in matches.values() for item in source_names}
    dropped = [
        WeightRow(
            variable=f"{variable.path}[{name}]",
            part="head",
            shape=theirs.shape[:-1],
            action="skipped",
            reason="the site does not have this class",
            training="-",
        )
        for name in card.class_names
        if name not in used
    ]
    return values, reason, dropped


def _refuse_sums(matches: dict[str, list[str]]) -> None:
    several = [name for name, source_names in matches.items() if len(source_names) > 1]
    if several:
        raise ModelError(
            f"zero_shot takes one source class for each class of the site, and "
            f"{', '.join(several)} has several in `from`. Name one, or choose a mode "
            "that trains, which starts from their average."
        )


def lock_layers(
    model: Any, stages: Sequence[Stage], plan: TransferPlan
) -> frozenset[str]:
    """Set what a plan trains, and return the batch normalisations in inference mode.

    Args:
        model: The model; `trainable` of its layers is changed.
        stages: Its stages.
        plan: What is trained.

    Returns:
        Names of the layers that keep their statistics while scale and shift are
        trained. The trainer calls them with `training=False`.
    """
    inference_norms = set()
    for stage in stages:
        policy = plan.batch_norm[stage.part]  # type: ignore[index]  # a part's name
        for name in stage.layers:
            layer = model.get_layer(name)
            if not isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = stage.part in plan.trained
                continue
            trains = policy.affine == "trained"
            runs = policy.statistics == "running"
            layer.trainable = trains or runs
            if trains and not runs:
                inference_norms.add(name)
            if runs and not trains:
                for variable in layer.trainable_variables:
                    variable.trainable = False
    return frozenset(inference_norms)
