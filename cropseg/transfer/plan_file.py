"""Transfer plans from a user's YAML file. No Keras here.

A plan of one's own is composed of the same axes as those of the table. It says all of
them, or names a mode that it is based on and says what differs.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cropseg.errors import UsageError, join_problems
from cropseg.training.phases import (
    FROZEN,
    INFERENCE,
    RECOMPUTED,
    RUNNING,
    Affine,
    BatchNormPolicy,
    Statistics,
)
from cropseg.transfer.plan import ALL, OptimizerStart, Part, Phase, Start, TransferPlan

POLICIES: Final[Mapping[str, BatchNormPolicy]] = {
    "frozen": FROZEN,
    "inference": INFERENCE,
    "running": RUNNING,
    "recomputed": RECOMPUTED,
}
"""Names of what batch normalisation can do; other mixtures are given by their flags."""

ENDINGS: Final = (".yaml", ".yml")
"""How the name of a file ends that holds a plan."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
"""Such as `my_plan`: runs and plots carry it in the names of their files."""

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Selectors = tuple[Text, ...]


class _Entry(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class PolicyEntry(_Entry):
    """What a batch normalisation does: one of `POLICIES`, or both flags."""

    statistics: Statistics
    """Whether they are the source's, run with the batches, or are measured anew."""
    affine: Affine
    """Whether scale and shift are trained."""

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        if given not in POLICIES:
            message = f"expected {', '.join(POLICIES)} or `statistics` and `affine`"
            raise ValueError(message)
        policy = POLICIES[given]
        return {"statistics": policy.statistics, "affine": policy.affine}


class BatchNormEntry(_Entry):
    """What the batch normalisations of each part do."""

    encoder: PolicyEntry
    """Those of the encoder."""
    decoder: PolicyEntry
    """Those of the decoder."""
    head: PolicyEntry
    """Those of the head, which few networks have."""


class StartEntry(_Entry):
    """Where the weights of each part start."""

    encoder: Start
    """The encoder's."""
    decoder: Literal["source", "random"]
    """The decoder's."""
    head: Literal["source", "random"]
    """The head's."""


class RatesEntry(_Entry):
    """What the learning rate is multiplied by, part by part."""

    encoder: Positive | None = None
    """In the encoder."""
    decoder: Positive | None = None
    """In the decoder."""
    head: Positive | None = None
    """In the head."""


class PhaseEntry(_Entry):
    """A share of the steps, with its own set of trained layers."""

    name: Name
    """Such as `head`."""
    trained: Selectors = ()
    """Parts, stages or `layers:PATTERN` that are trained."""
    locked: Selectors = ()
    """Parts, stages or `layers:PATTERN` that are locked all the same."""
    batch_norm: BatchNormEntry
    """What batch normalisation does in each part."""
    share: Positive = 1.0
    """Its share of the steps, beside those of the other phases."""
    rates: RatesEntry = RatesEntry()
    """What the learning rate is multiplied by in a part."""
    rate_decay: Positive = 1.0
    """What the learning rate is multiplied by at each stage, from the head down."""
    searches_rate: bool = False
    """Whether a range test finds its learning rate."""
    each_encoder_stage: bool = False
    """Whether it stands for one phase an encoder stage, from the last to the first."""

    def build(self) -> Phase:
        """Return the phase."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        norms: dict[Part, BatchNormPolicy] = {
            part: BatchNormPolicy(**getattr(self.batch_norm, part).model_dump())
            for part in ALL
        }
        rates = self.rates.model_dump(exclude_none=True)
        return Phase(**values | {"batch_norm": norms, "rates": rates})


class PlanEntry(_Entry):
    """What a file with a plan holds. docs/examples/plan.yaml is one."""

    mode: Name
    """Its name, which no mode of the table has."""
    based_on: Text | None = None
    """A mode of the table that the axes come from which are not given."""
    summary: Text
    """What it does, in one sentence."""
    serves: str = ""
    """When it is meant to serve, in one sentence."""
    origin: str = ""
    """Where the idea is from."""
    start: StartEntry | None = None
    """Where the weights of each part start."""
    phases: tuple[PhaseEntry, ...] | None = None
    """Its phases, in order; an empty list where nothing is changed."""
    l2sp: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Strength of the penalty on moving away from the source's weights."""
    source_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the tiles of a batch that come from the source site."""
    pretrains: bool = False
    """Whether the encoder is first trained without labels on tiles of the target."""
    optimizer: OptimizerStart = "fresh"
    """Whether slots, step count and schedule of the source's training go on."""
    caches_features: bool = False
    """Whether the features that a trained head reads are computed once and kept."""

    @model_validator(mode="after")
    def _check_base(self) -> PlanEntry:
        missing = [name for name in ("start", "phases") if getattr(self, name) is None]
        if missing and self.based_on is None:
            message = (
                f"needs {' and '.join(missing)}, or `based_on` a mode of the table"
            )
            raise ValueError(message)
        return self

    def build(self, base: TransferPlan | None) -> TransferPlan:
        """Return the plan.

        Args:
            base: What `based_on` names.

        Raises:
            UsageError: If its axes contradict each other.
        """
        given = {
            name for name in self.model_fields_set if getattr(self, name) is not None
        }
        values = {
            name: getattr(base if base and name not in given else self, name)
            for name in _AXES
        }
        if self.start is not None:
            values["start"] = self.start.model_dump()
        if self.phases is not None:
            values["phases"] = tuple(phase.build() for phase in self.phases)
        texts = {name: getattr(self, name) for name in ("mode", "summary", "serves")}
        return TransferPlan(**texts, origin=self.origin, **values)


_AXES: Final = set(PlanEntry.model_fields) - {
    *("mode", "based_on", "summary", "serves", "origin")
}


def is_plan_file(mode: str) -> bool:
    """Tell whether a mode is the path of a file with a plan."""
    return mode.lower().endswith(ENDINGS)


def read_plan(
    path: str | Path,
    *,
    presets: Mapping[str, TransferPlan],
    reserved: Collection[str] = (),
) -> TransferPlan:
    """Read a plan.

    Args:
        path: A YAML file.
        presets: The modes of the table, which a plan can be based on.
        reserved: Other names that no plan may have.

    Returns:
        The plan.

    Raises:
        UsageError: If it cannot be read, is no plan or contradicts itself. All
            problems are listed; an unknown key is answered with the nearest one.
    """
    document = _read_document(Path(path))
    problems, entry = [], None
    try:
        entry = PlanEntry.model_validate(document)
    except ValidationError as error:
        problems += [_describe(item) for item in error.errors()]
    taken = {*presets, *reserved}
    mode, based_on = document.get("mode"), document.get("based_on")
    if isinstance(mode, str) and mode in taken:
        problems.append(f"`mode`: {mode!r} is in the table; take another.")
    if isinstance(based_on, str) and based_on not in presets:
        near = _find_nearest(based_on, presets)
        problems.append(f"`based_on`: no mode {based_on!r}; the nearest is {near!r}.")
    if problems or entry is None:
        title = f"Plan {path} has {len(problems)} problem(s)"
        raise UsageError(join_problems(title, problems))
    try:
        return entry.build(presets[based_on] if based_on else None)
    except UsageError as error:
        raise UsageError(f"Plan {path}: {error}") from error


def _read_document(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(
            f"No plan at {path} (looked in {path.parent.absolute()}). "
            "`cropseg modes` lists the modes that need no file."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read plan {path}: {error}.") from error
    try:
        repeated = sorted(set(_find_repeats(yaml.compose(text, yaml.SafeLoader))))
        document = yaml.safe_load(text)
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply to be a plan.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no day of a calendar
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise UsageError(f"{path} holds {kind}, not the keys and values of a plan.")
    if repeated:
        raise UsageError(f"{path} has {', '.join(repeated)} more than once in a place.")
    return document


def _find_repeats(node: yaml.Node | None) -> Iterator[str]:
    """Yield the keys that stand twice in one place: YAML would drop the first."""
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        counts = Counter(str(key.value) for key, _ in children)
        yield from (f"`{key}`" for key, count in counts.items() if count > 1)
        children = [value for _, value in children]
    for child in children:
        yield from _find_repeats(child)


def _describe(problem: Any) -> str:
    place = ".".join(str(step) for step in problem["loc"]) or "the plan"
    if problem["type"] == "extra_forbidden":
        near = _find_nearest(str(problem["loc"][-1]), _list_keys(problem["loc"][:-1]))
        return f"`{place}` is no known key; the nearest is `{near}`."
    if problem["type"] == "missing":
        return f"`{place}` is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], str | int | float):
        message += f", got {problem['input']!r}"
    return f"`{place}`: {message}."


def _list_keys(place: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the entry at a place of the file."""
    entry: type[BaseModel] = PlanEntry
    for step in place:
        if isinstance(step, str):
            entry = _find_entry(entry.model_fields[step].annotation) or entry
    return list(entry.model_fields)


def _find_entry(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_find_entry(argument) for argument in get_args(annotation))
    return next((entry for entry in found if entry), None)


def _find_nearest(name: str, known: Collection[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
