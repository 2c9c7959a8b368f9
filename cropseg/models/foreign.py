"""What a foreign model does not say about itself, and its user must. No Keras.

A model that cropseg saved carries a card. Any other brings only its weights, and at
best its graph. Which bands it takes, which classes it gives and what its bands were
normalised to, is asked for by the name of the option.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cropseg.errors import ModelError, UsageError, join_problems
from cropseg.models.header import ModelHeader
from cropseg.models.stage_file import StageEntry, read_stage_file
from cropseg.sites.classes import MAX_CLASSES

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PerBand = Finite | Annotated[tuple[Finite, ...], Field(min_length=1)]
PositivePerBand = Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputScaling(_Entry):
    """What was done to raw values before the network saw them: `(x - mean) / std`."""

    mean: PerBand = 0.0
    """What was subtracted: one number, or one a band."""
    std: PositivePerBand = 1.0
    """What was divided by: one number, or one a band."""

    def spread(self, num_bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return means and deviations, one a band.

        Raises:
            ModelError: If there is another number of them.
        """
        found = []
        for key, value in (("mean", self.mean), ("std", self.std)):
            values = value if isinstance(value, tuple) else (value,) * num_bands
            if len(values) != num_bands:
                raise ModelError(
                    f"`{key}` of the normalisation has {len(values)} numbers, but the "
                    f"model takes {num_bands} bands. Give one number, or one a band."
                )
            found.append(values)
        return found[0], found[1]


class ForeignDescription(_Entry):
    """What a user says about a foreign model."""

    bands: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Names of its bands, in the order of its input, as the manifest names them."""
    classes: (
        Annotated[tuple[Name, ...], Field(min_length=2, max_length=MAX_CLASSES)] | None
    ) = None
    """Names of its classes, in the order of its output."""
    normalization: InputScaling | None = None
    """What was done to raw values. In YAML `none`, `divide: 255`, or `mean`, `std`."""
    gsd_m: Positive | None = None
    """Ground sampling distance of its training images, in metres, where known."""
    tile_size: Annotated[int, Field(ge=8)] | None = None
    """Side of the tiles to train it on, in pixels."""
    architecture: Name | None = None
    """For weights only: one of the zoo's architectures."""
    encoder: Name | None = None
    """For weights only: one of the zoo's encoders."""
    stages: tuple[StageEntry, ...] | None = None
    """Its stages, where the proposed ones do not suit."""

    @model_validator(mode="before")
    @classmethod
    def _read_normalization(cls, values: Any) -> Any:
        if isinstance(values, dict) and "normalization" in values:
            given = _read_scaling(values["normalization"])
            return {**values, "normalization": given}
        return values

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key in ("bands", "classes"):
            names = getattr(self, key) or ()
            if len(set(names)) < len(names):
                raise ValueError(f"`{key}` has a name twice: {', '.join(names)}")
        return self

    @classmethod
    def from_options(
        cls,
        *,
        bands: str | None = None,
        classes: str | None = None,
        normalization: str | None = None,
        card: Path | None = None,
        stages: Path | None = None,
        **more: Any,
    ) -> ForeignDescription:
        """Return the description that options give, over those of a `--card` file.

        Args:
            bands: Names with commas: `red,green,blue,nir`.
            classes: Names with commas.
            normalization: `none`, `divide:255`, or `mean:M1,M2,... std:S1,S2,...`.
            card: YAML file with the fields of this class.
            stages: YAML file with the stages.
            **more: Other fields, such as `architecture`; None where not given.

        Raises:
            UsageError: If an option or a key of the file cannot be used.
            ModelError: If a file cannot be read.
        """
        values = _read_card_file(card) if card else {}
        given = {
            "bands": _split(bands),
            "classes": _split(classes),
            "normalization": normalization,
            "stages": read_stage_file(stages) if stages else None,
            **more,
        }
        values |= {key: value for key, value in given.items() if value is not None}
        return _validate(values, f"{card} and the options" if card else "The options")

    def list_options(self) -> list[str]:
        """Return the words of a command line that say the same.

        Example:
            >>> ForeignDescription(bands=("red", "nir")).list_options()
            ['--bands', 'red,nir']
        """
        words = []
        for key in ("bands", "classes"):
            names = getattr(self, key)
            words += [f"--{key}", ",".join(names)] if names else []
        if self.normalization is not None:
            words += ["--normalization", _write_scaling(self.normalization)]
        for key in ("architecture", "encoder"):
            value = getattr(self, key)
            words += [f"--{key}", value] if value else []
        if self.gsd_m or self.tile_size or self.stages:  # no options say these
            words += ["--card", "FILE"]
        return words


@dataclass(frozen=True, kw_only=True)
class Unknowns:
    """What a model leaves open for a description to say."""

    name: str
    """What to call the model in errors."""
    num_bands: int | None
    """Bands that it takes; None where it does not say."""
    num_classes: int | None
    """Classes that it gives; None where it does not say."""
    needs_network: bool = False
    """Whether it holds weights only, and a network of the zoo is to be named."""

    @classmethod
    def of_header(cls, header: ModelHeader) -> Self:
        """Return what a foreign model file leaves open."""
        return cls(
            name=str(header.path),
            num_bands=header.num_bands,
            num_classes=header.num_classes,
            needs_network=header.kind == "weights",
        )

    def list_missing(self, description: ForeignDescription) -> list[str]:
        """Return the options that are still needed, each with what the model tells."""
        bands, classes = self.num_bands, self.num_classes
        missing = []
        if description.bands is None:
            example = ",".join(_EXAMPLE_BANDS[: bands or 4])
            count = (
                f"the model takes {bands} bands" if bands else "in the model's order"
            )
            missing.append(f"--bands {example}, or whatever they are: {count}.")
        if description.classes is None:
            count = (
                f"gives {classes} classes" if classes else "gives them in some order"
            )
            missing.append(f"--classes NAME,NAME,...: the model {count}.")
        if description.normalization is None:
            missing.append(
                "--normalization: what was done to raw values before the model saw "
                "them, none, divide:255, or 'mean:M1,M2,... std:S1,S2,...'."
            )
        if self.needs_network:
            missing += [
                f"--{key}: the file holds weights only, so name the network for them."
                for key in ("architecture", "encoder")
                if getattr(description, key) is None
            ]
        return missing

    def require(self, description: ForeignDescription | None) -> ForeignDescription:
        """Check that a description says all of it, and fits the model.

        Args:
            description: What the user said; None for nothing.

        Raises:
            ModelError: If something is missing or does not fit. All of it is listed,
                with the options that say it.
        """
        known = description or ForeignDescription()
        problems = self.list_missing(known)
        for key, count in (("bands", self.num_bands), ("classes", self.num_classes)):
            names = getattr(known, key)
            if names is not None and count is not None and len(names) != count:
                verb = "takes" if key == "bands" else "gives"
                problems.append(
                    f"--{key} names {len(names)} ({', '.join(names)}): "
                    f"the model {verb} {count} {key}."
                )
        if problems:
            raise ModelError(
                join_problems(
                    f"{self.name} brings no card, so say what it is", problems
                )
                + "\nOr write all of it in one YAML file: --card FILE."
            )
        if known.normalization is not None and known.bands is not None:
            known.normalization.spread(len(known.bands))
        return known


_EXAMPLE_BANDS = ("red", "green", "blue", "nir", "swir1", "swir2", "coastal")


def _validate(values: dict[str, Any], title: str) -> ForeignDescription:
    try:
        return ForeignDescription.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            place = ".".join(str(step) for step in item["loc"])
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                message = f"no known key; use {', '.join(_KEYS)}"
            problems.append(f"`{place}`: {message}." if place else f"{message}.")
        raise UsageError(
            join_problems(f"{title} do not describe a model", problems)
        ) from error


def _read_card_file(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"Cannot read the card {path}: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} must hold keys and values: {', '.join(_KEYS)}.")
    return document


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _read_scaling(value: Any) -> Any:
    """Turn what a user may write into the fields of `InputScaling`."""
    if isinstance(value, str):
        value = _parse_scaling(value)
    if isinstance(value, dict) and set(value) == {"divide"}:
        return {"std": value["divide"]}
    return value


def _write_scaling(scaling: InputScaling) -> str:
    """Return what `_parse_scaling` reads."""
    if scaling == InputScaling():
        return "none"
    mean, std = (
        ",".join(map(str, value if isinstance(value, tuple) else (value,)))
        for value in (scaling.mean, scaling.std)
    )
    return f"divide:{std}" if scaling.mean == 0 else f"mean:{mean} std:{std}"


def _parse_scaling(text: str) -> dict[str, Any]:
    if text.strip().lower() == "none":
        return {}
    values: dict[str, Any] = {}
    for word in text.split():
        key, _, numbers = word.partition(":")
        try:
            found = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            found = ()
        if key not in ("divide", "mean", "std") or key in values or not found:
            raise ValueError(
                f"`normalization` is {text!r}, but must be none, divide:255, or "
                "'mean:M1,M2,... std:S1,S2,...'"
            )
        values[key] = found if len(found) > 1 else found[0]
    if set(values) not in ({"divide"}, {"mean", "std"}, {"std"}):
        raise ValueError(
            f"`normalization` is {text!r}; it must give `divide`, or `mean` and `std`"
        )
    return values


_KEYS = tuple(ForeignDescription.model_fields)
