"""The file that names a network's stages: proposed by cropseg, edited by the user."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cropseg.errors import ModelError, join_problems
from cropseg.files import write_yaml

Text = Annotated[str, Field(min_length=1)]


class StageEntry(BaseModel):
    """One stage, as a user names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    """Its name, such as `encoder_1`."""
    part: Literal["encoder", "decoder", "head"]
    """The part of the network that it belongs to."""
    layers: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Names of its layers, or patterns such as `block1_*`."""


_ENTRIES = TypeAdapter(tuple[StageEntry, ...])


def read_stage_file(path: Path) -> tuple[StageEntry, ...]:
    """Read the stages that a user named.

    Raises:
        ModelError: If the file cannot be read or is not a list of stages.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"Cannot read stages from {path}: {error}") from error
    try:
        return _ENTRIES.validate_python(document)
    except ValidationError as error:
        problems = [
            f"`{'.'.join(map(str, item['loc'])) or 'the file'}`: {item['msg']}."
            for item in error.errors()
        ]
        raise ModelError(
            join_problems(
                f"{path} must be a list of stages with `name`, `part` and `layers`",
                problems,
            )
        ) from error


def write_stage_file(stages: Sequence[Any], path: Path) -> None:
    """Write stages to a file, for a user to confirm or edit.

    Args:
        stages: From input to output; `name`, `part` and `layers` of each are written.
        path: Where to.
    """
    write_yaml(
        path,
        [
            {"name": stage.name, "part": stage.part, "layers": list(stage.layers)}
            for stage in stages
        ],
    )


def choose_layers(
    entries: Sequence[StageEntry], layers: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the layers of each stage, in the order of the network.

    Args:
        entries: The stages, from input to output.
        layers: The names of all layers that belong to a stage, in order.

    Raises:
        ModelError: If a layer is in no stage or in two, a pattern names no layer, or
            the stages are not in order. All problems are listed.
    """
    chosen: list[tuple[str, ...]] = []
    problems = _check_order(entries)
    for entry in entries:
        for pattern in entry.layers:
            if not fnmatch.filter(layers, pattern):
                problems.append(f"{entry.name}: {pattern!r} names no layer.")
        chosen.append(
            tuple(
                layer
                for layer in layers
                if any(fnmatch.fnmatchcase(layer, pattern) for pattern in entry.layers)
            )
        )
    for layer in layers:
        places = [
            entry.name
            for entry, names in zip(entries, chosen, strict=True)
            if layer in names
        ]
        if len(places) != 1:
            problems.append(f"{layer} is in {' and '.join(places) or 'no stage'}.")
    if problems:
        raise ModelError(
            join_problems("The stages do not divide the network", problems)
            + "\n`cropseg inspect MODEL --stages-out FILE` writes a proposal."
        )
    return chosen


def _check_order(entries: Sequence[StageEntry]) -> list[str]:
    problems = []
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"{', '.join(twice)} stands there more than once.")
    order = ("encoder", "decoder", "head")
    places = [order.index(entry.part) for entry in entries]
    if places != sorted(places):
        problems.append("Stages must come from encoder over decoder to head.")
    missing = [part for part in order if part not in {entry.part for entry in entries}]
    if missing:
        problems.append(f"No stage of part {', '.join(missing)}.")
    if [entry.name for entry in entries if entry.part == "head"] not in ([], ["head"]):
        problems.append("The one stage of part head is called `head`.")
    return problems
