"""The manifest: one YAML file that says what a site is made of."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from cropseg.errors import DataError, DataFileNotFoundError, join_problems
from cropseg.sites.classes import MAX_CLASSES

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Metres = Annotated[float, Field(gt=0)]


_SHARE_TOLERANCE = 1e-6


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(_Entry):
    """A class: its name, its colour, the label values that mean it."""

    name: Name
    color: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
    values: tuple[int, ...] = ()
    source_names: tuple[Name, ...] = Field(default=(), alias="from")


class SceneEntry(_Entry):
    """A scene: its image and, if there are any, its labels."""

    image: Name
    labels: Name | None = None
    date: Any = None


class SplitEntry(_Entry):
    """How the site is cut into train, val and test: by blocks or by regions."""

    regions: Name | None = None
    block_m: Metres | None = None
    gap_m: Annotated[float, Field(ge=0)] = 0.0
    train: Fraction | None = None
    val: Fraction | None = None
    test: Fraction | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        shares = (self.train, self.val, self.test)
        if self.regions is not None:
            if any(share is not None for share in shares):
                message = "`train`, `val` and `test` do not go with `regions`"
                raise ValueError(message)
            return self
        if self.block_m is None or None in shares:
            message = "needs `block_m`, `train`, `val` and `test`, or `regions`"
            raise ValueError(message)
        total = sum(share or 0.0 for share in shares)
        if abs(total - 1) > _SHARE_TOLERANCE:
            message = f"`train` + `val` + `test` is {total:g}; it must be 1"
            raise ValueError(message)
        if self.gap_m > self.block_m:
            message = (
                f"`gap_m` {self.gap_m:g} is larger than `block_m` {self.block_m:g}"
            )
            raise ValueError(message)
        return self


class Manifest(_Entry):
    """What a manifest holds. `docs/` and `data_manifests/README.md` explain it."""

    site: Name
    sensor: str | None = None
    units: str | None = None
    bands: Annotated[tuple[Name, ...], Field(min_length=1)]
    gsd_m: Metres | None = None
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=2)]
    ignore: tuple[int, ...] | Literal["rest"] = ()
    scenes: Annotated[tuple[SceneEntry, ...], Field(min_length=1)]
    split: SplitEntry | None = None

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[ClassEntry, ...]) -> tuple[ClassEntry, ...]:
        if len(classes) > MAX_CLASSES:
            message = f"{len(classes)} classes; at most {MAX_CLASSES} are possible"
            raise ValueError(message)
        _refuse_repeats("class name", [item.name for item in classes])
        _refuse_repeats("label value", [v for item in classes for v in item.values])
        return classes

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeats("band", list(bands))
        return bands

    @model_validator(mode="after")
    def _check_ignore(self) -> Self:
        named = {value for item in self.classes for value in item.values}
        both = named.intersection(self.ignore if self.ignore != "rest" else ())
        if both:
            message = f"label values {sorted(both)} are in a class and in `ignore`"
            raise ValueError(message)
        return self


def _refuse_repeats(noun: str, items: list[Any]) -> None:
    repeated = sorted({item for item in items if items.count(item) > 1})
    if repeated:
        message = f"{noun} {', '.join(map(repr, repeated))} stands there more than once"
        raise ValueError(message)


def read_manifest(path: Path) -> Manifest:
    """Read and validate a manifest.

    Args:
        path: A YAML file.

    Returns:
        The manifest, with paths as written.

    Raises:
        DataFileNotFoundError: If there is no such file.
        DataError: If it is not YAML or not a manifest. All problems are listed; an
            unknown key is answered with the nearest known one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataFileNotFoundError(
            f"No manifest at {path} (looked in {path.parent.absolute()}). "
            "data_manifests/README.md tells how to write one."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read manifest {path}: {error}.") from error
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no day of a calendar
        raise DataError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds {type(document).__name__}, not keys and values.")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        problems = [_describe(item) for item in found if not _is_echo(item, found)]
        title = f"Manifest {path} has {len(problems)} problem(s)"
        raise DataError(join_problems(title, problems)) from error


def _is_echo(problem: Any, problems: Any) -> bool:
    """Whether a list seems too short only because of a mistake in an item of it."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place
        for other in problems
    )


def _describe(problem: Any) -> str:
    place = ".".join(str(step) for step in problem["loc"]) or "the manifest"
    if problem["type"] == "extra_forbidden":
        known = _list_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(
            str(problem["loc"][-1]), known, n=1, cutoff=0.0
        )
        return f"`{place}` is no known key; the nearest is `{near[0]}`."
    if problem["type"] == "missing":
        return f"`{place}` is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], str | int | float):
        message += f", got {problem['input']!r}"
    return f"`{place}`: {message}."


def _list_keys(place: tuple[str | int, ...]) -> list[str]:
    entry: type[BaseModel] = Manifest
    for step in place:
        if isinstance(step, str) and step in entry.model_fields:
            entry = _find_entry(entry.model_fields[step].annotation) or entry
    return [field.alias or name for name, field in entry.model_fields.items()]


def _find_entry(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_find_entry(argument) for argument in get_args(annotation))
    return next((entry for entry in found if entry), None)
