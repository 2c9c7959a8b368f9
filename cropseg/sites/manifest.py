"""The manifest: one YAML file that says what a site is made of."""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from cropseg.errors import DataError, DataFileNotFoundError, join_problems
from cropseg.sites.classes import MAX_CLASSES, order_value, write_value
from cropseg.sites.formula import parse_formula

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Metres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LabelValue = StrictInt | StrictStr
PerBand = float | tuple[float, ...]

VECTOR_ENDINGS: Final = (
    ".gpkg",
    ".geojson",
    ".json",
    ".shp",
    ".parquet",
    ".geoparquet",
    ".csv",
)
"""How the name of a label file ends that holds polygons or points."""

_VECTOR_KEYS: Final = (
    "layer",
    "field",
    "filter",
    "all_touched",
    "edge_buffer_m",
    "buffer_m",
)
_SHARE_TOLERANCE: Final = 1e-6
_TRIED_TYPE: Final = re.compile(r"constrained-str|(tuple|dict|literal)\[.*")
_EXPECTED: Final = {
    "tuple_type": "expected a list",
    "string_type": "expected a text, in quotes if it looks like a number",
    "model_type": "expected keys and values",
    "dict_type": "expected keys and values",
}
"""What a type of problem is called, where pydantic speaks of Python."""
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice: YAML would drop the first, silently."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002 - as its base has it
    ) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != _MERGE_TAG]
        repeated = [key for key, count in Counter(map(str, keys)).items() if count > 1]
        if repeated:
            problem = f"`{repeated[0]}` stands there more than once"
            raise yaml.constructor.ConstructorError(
                None, None, problem, node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


class _Entry(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="strings",  # or a nodata of NaN would look like none
    )


class ClassEntry(_Entry):
    """A class: its name, its colour, the label values that mean it."""

    name: Name
    """By this name classes of two sites are matched."""
    color: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
    """Its colour in maps and plots, `#rrggbb`."""
    values: tuple[LabelValue, ...] = ()
    """Label values that mean it: numbers, or texts of a field of polygons."""
    source_names: tuple[Name, ...] = Field(default=(), alias="from")
    """Names that it goes by in the model of another site."""
    id: Annotated[int, Field(ge=0)] | None = None
    """Its class id. Without it, its position in the list. For all classes or none."""


class SceneEntry(_Entry):
    """A scene: its image and, if there are any, its labels."""

    name: Annotated[Name, StringConstraints(pattern=r"^[^/]+$")] | None = None
    """What to call it. Without it, the name of the file or the folder."""
    image: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """A GeoTIFF; a folder or a pattern such as `tiles/*.tif`, whose files lie side by
    side; or a list of files whose bands are stacked in that order."""
    bands: tuple[Name, ...] | None = None
    """Names of the bands of this image, in file order, where not those of the site."""
    nodata: float | None = None
    """The value that means "no data", where the file does not say it rightly."""
    scale: PerBand | None = None
    """Factor from stored to physical values, one number or one a band."""
    offset: PerBand | None = None
    """What is added after `scale`, one number or one a band."""
    alpha_is_band: bool = False
    """Whether a band that the file calls alpha holds data. Of four 8-bit bands, GDAL
    calls the last one alpha unless told otherwise, near infrared too."""
    trust_sidecars: bool = False
    """Whether `.msk` and `.aux.xml` files beside the image are read."""
    labels: Name | None = None
    """A label raster, or polygons or points (`.gpkg`, `.geojson`, `.json`, `.shp`,
    `.parquet`, `.csv`)."""
    layer: Name | None = None
    """Layer of the vector file, where it has several."""
    field: Name | None = None
    """Field of the vector file that holds the label value."""
    filter: dict[Name, LabelValue | tuple[LabelValue, ...]] = {}
    """Only features whose fields have these values are labels."""
    all_touched: bool = False
    """Whether a polygon labels all pixels that it touches, not only those whose
    centre it holds."""
    edge_buffer_m: Distance = 0.0
    """Pixels nearer than this to the border of their field are unknown."""
    buffer_m: Distance = 0.0
    """A point labels the pixels within this distance; 0 for the pixel that holds it."""
    resample_labels: bool = False
    """Whether a label raster may lie on another grid than its image."""
    date: Any = None
    """When the image was taken. Kept, not used."""

    @field_validator("date")
    @classmethod
    def _check_date(cls, date: object) -> object:
        # YAML makes a tree of anything, even one that holds itself.
        if isinstance(date, dt.date | float | int | str | None):
            return date
        message = f"expected a date or a text, not a {type(date).__name__}"
        raise ValueError(message)

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_vector = self.labels is not None and is_vector_file(self.labels)
        given = [key for key in _VECTOR_KEYS if getattr(self, key)]
        if given and not is_vector:
            message = f"`{given[0]}` goes with polygons or points as `labels` only"
            raise ValueError(message)
        if is_vector and self.field is None:
            message = f"`{self.labels}` needs `field`, the field with the label values"
            raise ValueError(message)
        if self.resample_labels and (is_vector or self.labels is None):
            message = "`resample_labels` goes with a label raster only"
            raise ValueError(message)
        if self.bands is not None:
            _refuse_repeats("band", list(self.bands))
        return self


class SplitEntry(_Entry):
    """How the site is cut into train, val and test: by blocks, folds or regions."""

    regions: Name | None = None
    """A vector file with a field `part`: train, val or test."""
    block_m: Metres | None = None
    """Side of a block, in metres."""
    gap_m: Distance = 0.0
    """How far train keeps from val and test, and val from test, in metres."""
    train: Fraction | None = None
    """Share of the blocks for training."""
    val: Fraction | None = None
    """Share of the blocks for validation."""
    test: Fraction | None = None
    """Share of the blocks for the test."""
    folds: Annotated[int, Field(ge=2, le=25)] | None = None
    """Number of folds, instead of shares: each block is test in one fold."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which fold is the test, from 0."""
    seed: int = 0
    """Which of the possible splits."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        shares = (self.train, self.val, self.test)
        kinds = {
            "regions": self.regions is not None,
            "folds": self.folds is not None,
            "train`, `val` and `test": any(share is not None for share in shares),
        }
        given = [f"`{kind}`" for kind, is_given in kinds.items() if is_given]
        if len(given) > 1:
            message = f"{' and '.join(given)} do not go together"
            raise ValueError(message)
        if self.regions is not None:
            self._refuse_beside_regions()
            return self
        if self.folds is not None and self.fold >= self.folds:
            message = f"`fold` {self.fold} is not one of 0 to {self.folds - 1}"
            raise ValueError(message)
        if self.block_m is None or (self.folds is None and None in shares):
            message = (
                "needs `block_m` with `train`, `val` and `test` or with `folds`, "
                "or `regions`"
            )
            raise ValueError(message)
        total = sum(share or 0.0 for share in shares)
        if self.folds is None and abs(total - 1) > _SHARE_TOLERANCE:
            message = f"`train` + `val` + `test` is {total:g}; it must be 1"
            raise ValueError(message)
        if self.gap_m > self.block_m:
            message = (
                f"`gap_m` {self.gap_m:g} is larger than `block_m` {self.block_m:g}"
            )
            raise ValueError(message)
        return self

    def _refuse_beside_regions(self) -> None:
        beside = {"gap_m": self.gap_m, "fold": self.fold, "seed": self.seed}
        given = [key for key, value in beside.items() if value]
        if given:
            message = f"`{given[0]}` does not go with `regions`"
            raise ValueError(message)


class Manifest(_Entry):
    """What a manifest holds. docs/manifest.md explains it."""

    site: Name
    """Name of the site."""
    sensor: str | None = None
    """What took the images. Shown, and compared between sites."""
    units: str | None = None
    """Units of the pixel values. Shown, and compared between sites."""
    bands: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of the bands that are used, in file order."""
    derived: dict[Name, Name] = {}
    """Bands that are computed from others: name and formula."""
    gsd_m: Metres | None = None
    """Ground sampling distance in metres. Images that differ are resampled to it."""
    crs: Name | None = None
    """Projected CRS, such as `EPSG:32633`. Images in another are brought to it."""
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=2)]
    """The classes."""
    ignore: tuple[LabelValue, ...] | Literal["rest"] = ()
    """Label values that mean "unknown"; `rest` for all that no class names."""
    scenes: Annotated[tuple[SceneEntry, ...], Field(min_length=1)]
    """The images and their labels."""
    split: SplitEntry | None = None
    """How the site is cut into train, val and test."""

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[ClassEntry, ...]) -> tuple[ClassEntry, ...]:
        if len(classes) > MAX_CLASSES:
            message = f"{len(classes)} classes; at most {MAX_CLASSES} are possible"
            raise ValueError(message)
        _refuse_repeats("class name", [item.name for item in classes])
        values = [write_value(v) for item in classes for v in item.values]
        _refuse_repeats("label value", values)
        ids = {item.id for item in classes}
        if ids != {None} and ids != set(range(len(classes))):
            message = f"give all classes an `id`, 0 to {len(classes) - 1}, or none"
            raise ValueError(message)
        return classes

    @field_validator("bands")
    @classmethod
    def _check_bands(cls, bands: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeats("band", list(bands))
        return bands

    @model_validator(mode="after")
    def _check_ignore(self) -> Self:
        named = {write_value(value) for item in self.classes for value in item.values}
        ignored = set(map(write_value, () if self.ignore == "rest" else self.ignore))
        both = sorted(named & ignored, key=order_value)
        if both:
            message = f"label values {', '.join(both)} are in a class and in `ignore`"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _check_derived(self) -> Self:
        for name, text in self.derived.items():
            if name in self.bands:
                message = f"`{name}` is in `bands` and in `derived`"
                raise ValueError(message)
            parse_formula(text, self.bands)
        return self


def is_vector_file(name: str) -> bool:
    """Whether labels of that name are polygons or points."""
    return name.lower().endswith(VECTOR_ENDINGS)


def _refuse_repeats(noun: str, items: list[Any]) -> None:
    repeated = sorted(item for item, count in Counter(items).items() if count > 1)
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
            "docs/manifest.md tells how to write one."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read manifest {path}: {error}.") from error
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a safe one
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a manifest.") from error
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
    # Where several types are allowed, pydantic names the one that it tried last.
    steps = [str(step) for step in problem["loc"]]
    place = ".".join(s for s in steps if not _TRIED_TYPE.fullmatch(s)) or "the manifest"
    if problem["type"] == "extra_forbidden":
        known = _list_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(
            str(problem["loc"][-1]), known, n=1, cutoff=0.0
        )
        return f"`{place}` is no known key; the nearest is `{near[0]}`."
    if problem["type"] == "missing":
        return f"`{place}` is missing."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    message = _EXPECTED.get(problem["type"], message)
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
