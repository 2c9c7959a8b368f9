"""Bringing weights into a new model, variable by variable.

Layers are matched by name and shape, head rows by class name, the first filters by
band name. What a plan did not ask for is an error that lists every mismatch; nothing
is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError, join_problems
from cropseg.models.bundle import HEAD_LAYER
from cropseg.models.rebuild import find_class_axis
from cropseg.models.stages import Stage
from cropseg.models.weight_report import WeightReport, WeightRow
from cropseg.runtime import keras
from cropseg.transfer.plan import Start, TransferPlan
from cropseg.transfer.rows import Matches, describe_rows, match_rows
from cropseg.transfer.stem import find_band_variables, match_bands

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Donor:
    """A model that weights are taken from."""

    title: str
    """What reports call it."""
    arrays: Mapping[str, Array]
    """Its weights, by path."""
    bands: tuple[str, ...]
    """Its bands, in the order of its input."""
    classes: tuple[str, ...] = ()
    """Its classes, in the order of its output; none where its head is not used."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Layers that are not taken from it, and why."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The model that weights are brought into."""

    model: Any
    """The model, with random weights."""
    stages: tuple[Stage, ...]
    """Its stages."""
    bands: tuple[str, ...]
    """Its bands."""
    classes: tuple[str, ...]
    """Its classes."""
    matches: Matches
    """Which of its classes the source knows, and under which names."""
    fate: str = "initialised"
    """What becomes of the classes that the source does not know."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where the values of one variable come from."""

    path: str
    """Its path in both models."""
    part: str
    """Encoder, decoder or head."""
    shape: tuple[int, ...]
    """Its shape in the new model."""
    action: str
    """`copied`, `averaged` or `initialised`."""
    reason: str
    """Why."""
    convert: Callable[[Array, Array], Array] | None = None
    """Takes the donor's array and the new model's own, and returns the new values;
    None where the new model's own stay."""
    donor: Donor | None = None
    """Whom they come from."""

    def to_row(self) -> WeightRow:
        """Return the row of the weight report."""
        return WeightRow(
            variable=self.path,
            part=self.part,
            shape=self.shape,
            action=self.action,
            reason=self.reason,
        )


def match_weights(
    target: Target, donors: Mapping[Start, Donor], plan: TransferPlan
) -> tuple[Match, ...]:
    """Find where every variable of a model starts.

    Args:
        target: The new model.
        donors: Whom a part can start from.
        plan: Where each part starts.

    Returns:
        A match for every variable, from input to output.

    Raises:
        ModelError: If a variable that the plan takes from a donor is not there, or
            has another shape. All are listed.
    """
    band_variables = find_band_variables(target.model)
    matches: list[Match] = []
    problems: list[str] = []
    for stage in target.stages:
        donor = donors.get(plan.start[stage.part])  # type: ignore[index]
        for name in stage.layers:
            for variable in target.model.get_layer(name).weights:
                try:
                    matches.append(
                        _match(
                            variable,
                            name,
                            stage.part,
                            target=target,
                            donor=donor,
                            has_bands=variable.path in band_variables,
                        )
                    )
                except ModelError as error:
                    problems.append(str(error))
    if problems:
        title = f"{len(problems)} variables of mode {plan.mode} find no match"
        raise ModelError(join_problems(title, problems))
    return tuple(matches)


def copy_weights(model: Any, matches: Sequence[Match]) -> None:
    """Bring the weights of the donors into a model."""
    variables = {variable.path: variable for variable in model.weights}
    for match in matches:
        if match.convert is not None and match.donor is not None:
            variable = variables[match.path]
            own = np.asarray(keras.ops.convert_to_numpy(variable))
            variable.assign(match.convert(match.donor.arrays[match.path], own))


def convert_slots(
    matches: Sequence[Match], slots: Mapping[str, Array]
) -> dict[str, Array]:
    """Bring an optimizer's slots of the source into the shapes of a new model.

    Args:
        matches: Where the variables of the new model come from.
        slots: An array for each trained variable of the source, by path.

    Returns:
        An array for each variable of the new model that has a slot in the source. A
        class that the source did not have is 0, a band the mean of the others.
    """
    return {
        match.path: match.convert(
            slots[match.path], np.zeros(match.shape, slots[match.path].dtype)
        )
        for match in matches
        if match.convert is not None and match.path in slots
    }


def report_matches(
    matches: Sequence[Match], target: Target, donor: Donor | None
) -> WeightReport:
    """Return the weight report: every variable, then what found no place.

    Args:
        matches: Where the variables come from.
        target: The new model.
        donor: Whom the head was taken from, or None.
    """
    rows = [match.to_row() for match in matches]
    if donor is not None:
        used = {name for names in target.matches.values() for name in names}
        rows += [
            _skip(f"{match.path}[{name}]", "head", match.shape[:-1], "class")
            for match in matches
            if match.path.startswith(f"{HEAD_LAYER}/")
            for name in donor.classes
            if name not in used
        ]
    stem = find_band_variables(target.model)
    rows += [
        _skip(f"{match.path}[{band}]", match.part, (), "band")
        for match in matches
        if match.donor is not None and match.path in stem
        for band in match.donor.bands
        if band not in target.bands
    ]
    return WeightReport(rows=tuple(rows))


def _skip(name: str, part: str, shape: tuple[int, ...], what: str) -> WeightRow:
    return WeightRow(
        variable=name,
        part=part,
        shape=shape,
        action="skipped",
        reason=f"the site does not have this {what}",
        training="-",
    )


def _match(
    variable: Any,
    layer: str,
    part: str,
    *,
    target: Target,
    donor: Donor | None,
    has_bands: bool,
) -> Match:
    path, shape = variable.path, tuple(variable.shape)
    found = Match(
        path=path,
        part=part,
        shape=shape,
        action="initialised",
        reason="the plan asks for random weights",
    )
    if donor is None:
        return found
    if layer in donor.replaced:
        return replace(found, action="initialised", reason=donor.replaced[layer])
    if path not in donor.arrays:
        message = f"{path} is not in {donor.title}."
        raise ModelError(message)
    theirs = donor.arrays[path]
    if layer == HEAD_LAYER:
        return _match_head(found, variable, theirs, target=target, donor=donor)
    if has_bands and donor.bands != target.bands:
        return _match_bands(found, variable, theirs, target=target, donor=donor)
    _compare(path, shape, theirs.shape)
    return replace(
        found,
        action="copied",
        reason="same name and shape",
        convert=lambda theirs, own: theirs.astype(own.dtype),
        donor=donor,
    )


def _match_head(
    found: Match, variable: Any, theirs: Array, *, target: Target, donor: Donor
) -> Match:
    axis = find_class_axis(target.model.get_layer(HEAD_LAYER), variable)
    expected = list(found.shape)
    expected[axis] = len(donor.classes)
    _compare(found.path, tuple(expected), theirs.shape)

    def convert(theirs: Array, own: Array) -> Array:
        rows = match_rows(
            np.moveaxis(theirs, axis, -1),
            np.moveaxis(own, axis, -1),
            target.matches,
            source=donor.classes,
            target=target.classes,
        )
        return np.moveaxis(rows, -1, axis)

    several = any(len(names) > 1 for names in target.matches.values())
    return replace(
        found,
        action="averaged" if several else "copied",
        reason=describe_rows(target.matches, target.classes, target.fate),
        convert=convert,
        donor=donor,
    )


def _match_bands(
    found: Match, variable: Any, theirs: Array, *, target: Target, donor: Donor
) -> Match:
    own = np.asarray(keras.ops.convert_to_numpy(variable))
    _, reason = match_bands(theirs, own, donor.bands, target.bands)
    new = any(band not in donor.bands for band in target.bands)
    return replace(
        found,
        action="averaged" if new else "copied",
        reason=reason,
        convert=lambda theirs, own: match_bands(theirs, own, donor.bands, target.bands)[
            0
        ],
        donor=donor,
    )


def _compare(path: str, expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    if expected != found:
        message = f"{path} should have shape {expected}, but has {found} there."
        raise ModelError(message)
