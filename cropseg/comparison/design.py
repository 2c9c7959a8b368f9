"""What an experiment compares, and on which terms; and when two may share a folder.

No Keras: all of it is checked before a model is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cropseg.comparison.cells import Contender
from cropseg.errors import (
    ConflictError,
    DataFileNotFoundError,
    UsageError,
    join_problems,
)
from cropseg.files import claim_out_dir, write_yaml
from cropseg.sites.budget import parse_budget
from cropseg.sites.site import Site
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.plan_file import is_plan_file
from cropseg.transfer.prepare import VALIDATIONS

COMPARISON_RECORD = "compare.yaml"
"""Name of the file that holds the settings of a comparison."""

EQUAL = ("steps", "time")
"""What is equal for all modes: the steps of a run, or its seconds."""

_FEWEST_FOLDS, _MOST_FOLDS = 2, 25
_LISTS = ("modes", "labels")
_COUNTS = ("draws", "seeds")
_TOLD = ("from", "manifest", "source.manifest")
"""What a record tells but the result does not follow from: paths. The content of the
files stands beside them."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is compared, and on which terms."""

    modes: tuple[str, ...]
    """Modes of the table, or paths of files with plans."""
    labels: tuple[str, ...]
    """Budgets, such as `4tiles`."""
    draws: int = 3
    """Random choices of the labels of each budget."""
    seeds: int = 1
    """Runs of each draw. They differ in everything else that is random."""
    folds: int | str | None = "auto"
    """Each block is for the test in one of so many folds. None, or `none`: the test
    part of the site's split. `auto`: folds where that has few blocks."""
    validation: str = "none"
    """What chooses the best epoch; one of `VALIDATIONS`."""
    equal: str = "steps"
    """What is equal for all modes; one of `EQUAL`."""
    until_flat: bool = False
    """Whether the steps are doubled first until `scratch` gains nothing by it."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: If one cannot be used. All problems are listed.
        """
        if self.folds == "none":
            object.__setattr__(self, "folds", None)
        problems = [
            f"`{name}` is {getattr(self, name)!r}; it must be a whole number."
            for name in _COUNTS
            if not _is_count(getattr(self, name))
        ]
        problems += [
            f"`{name}` is {getattr(self, name)!r}; it must be one of "
            f"{', '.join(known)}."
            for name, known in (("validation", VALIDATIONS), ("equal", EQUAL))
            if getattr(self, name) not in known
        ]
        if self.until_flat not in (True, False):
            problems.append(f"`until_flat` is {self.until_flat!r}; give true or false.")
        if self.folds not in (None, "auto") and not (
            _is_count(self.folds)
            and _FEWEST_FOLDS <= int(self.folds or 0) <= _MOST_FOLDS
        ):
            problems.append(
                f"`folds` is {self.folds!r}; it must be auto, none, or a number from "
                f"{_FEWEST_FOLDS} to {_MOST_FOLDS}."
            )
        if self.folds not in (None, "auto") and self.validation == "oracle":
            problems.append(
                "with folds no block is left for validation, so `validation` cannot "
                "be oracle. Give folds none, or validation budget."
            )
        if len(problems) == 1:
            raise UsageError(f"This cannot be compared: {problems[0]}")
        if problems:
            raise UsageError(join_problems("This cannot be compared", problems))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_folds(text: str) -> int | str:
    """Read a number of folds as it is given on the command line."""
    return int(text) if text.strip().isdecimal() else text


def describe_design(
    design: Design,
    contenders: Sequence[Contender],
    *,
    folds: int | None,
    site: Site,
    source_site: Site | None = None,
) -> dict[str, Any]:
    """Return what a comparison runs, as its folder records it.

    Plans from files stand there whole, so that a file that changes is noticed.

    Args:
        design: What is compared.
        contenders: Its modes.
        folds: How many folds there are; None for none.
        site: The target site.
        source_site: The site of the source, where it is scored on too.
    """
    labels = sorted(map(parse_budget, design.labels), key=lambda item: item.amount)
    grid: dict[str, Any] = {
        "manifest": str(site.manifest_path),
        "modes": [contender.mode for contender in contenders],
        "labels": [str(budget) for budget in labels],
        "draws": design.draws,
        "seeds": design.seeds,
        "folds": folds,
        "validation": design.validation,
        "equal": design.equal,
        "until_flat": design.until_flat,
    }
    plans = {
        contender.mode: {"file": contender.given, "plan": plan_to_json(contender.plan)}
        for contender in contenders
        if contender.plan is not None and is_plan_file(contender.given)
    }
    if plans:
        grid["plans"] = plans
    if source_site is not None:
        grid["source"] = {
            "site": source_site.name,
            "manifest": str(source_site.manifest_path),
            "fingerprint": source_site.fingerprint,
        }
    return grid


def read_comparison(comparison_dir: str | Path) -> dict[str, Any]:
    """Read what decided the result of a comparison.

    Raises:
        DataFileNotFoundError: If there is no comparison in that folder.
    """
    path = Path(comparison_dir) / COMPARISON_RECORD
    if not path.exists():
        raise DataFileNotFoundError(
            f"No comparison in {comparison_dir}: it has no {COMPARISON_RECORD}. "
            "Give the --out of a `cropseg compare`."
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check_comparison(
    folder: Path, record: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Check that a comparison may go on in a folder. Nothing is made.

    Raises:
        ConflictError: If the folder holds another comparison: one with other settings,
            or with runs that are not asked for any more.
    """
    stored = _read_stored(folder)
    if stored is None or overwrite:
        return
    changes = _list_changes(stored, json.loads(json.dumps(record)))
    if changes:
        raise ConflictError(
            f"{folder} holds another comparison: {'; '.join(changes)}. A grid may "
            "grow; give what was compared and more, choose another --out, or start "
            "again with --overwrite."
        )


@contextlib.contextmanager
def claim_comparison(
    folder: Path, record: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[None]:
    """Hold the folder of a comparison while it is written to.

    A grid that has grown goes on with the runs that are there.

    Args:
        folder: Its folder.
        record: What decides its result, and what it runs.
        overwrite: Start again, whatever comparison the folder holds.

    Raises:
        ConflictError: As `check_comparison` and `claim_out_dir`.
    """
    check_comparison(folder, record, overwrite=overwrite)
    wanted = json.loads(json.dumps(record))
    stored = None if overwrite else _read_stored(folder)
    with claim_out_dir(
        folder, stored or wanted, overwrite=overwrite, record=COMPARISON_RECORD
    ):
        if stored is not None and stored != wanted:
            write_yaml(folder / COMPARISON_RECORD, wanted)
        yield


def _read_stored(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder; None where there is none that can be read."""
    path = folder / COMPARISON_RECORD
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # `claim_out_dir` says what is wrong
    return stored if isinstance(stored, dict) else None


def _list_changes(stored: Any, wanted: Any, name: str = "") -> list[str]:
    if name in _TOLD or (name.startswith("plans.") and name.endswith(".file")):
        return []
    if name in _LISTS and isinstance(stored, list) and isinstance(wanted, list):
        dropped = [item for item in stored if item not in wanted]
        return [f"{name} had {', '.join(dropped)}"] if dropped else []
    if name in _COUNTS and isinstance(stored, int) and isinstance(wanted, int):
        return [f"{name} was {stored}, is {wanted}"] if stored > wanted else []
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted({*stored, *wanted}, key=str)
        if name == "plans":  # those of new modes are new
            keys = [key for key in keys if key in stored and key in wanted]
        return [
            change
            for key in keys
            for change in _list_changes(
                stored.get(key), wanted.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if stored == wanted else [f"{name} was {stored!r}, is {wanted!r}"]
