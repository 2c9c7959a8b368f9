"""The design of a comparison on the command line, and in a file for `--config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cropseg.comparison.cells import MODES, plan_cells, split_modes
from cropseg.comparison.design import EQUAL, Design, read_folds
from cropseg.errors import UsageError
from cropseg.sites.budget import parse_budgets
from cropseg.training.settings import ReadKey
from cropseg.transfer.plan_file import is_plan_file
from cropseg.transfer.prepare import VALIDATIONS


@dataclass(frozen=True, kw_only=True)
class DesignOptions:
    """What is compared, and on which terms: options of `compare`.

    None is an option that was not given, so that the file or the default holds.
    """

    modes: Annotated[
        str | None,
        typer.Option(help=f"Some of {', '.join(MODES)}, and YAML files with plans."),
    ] = None
    """Modes, parted by commas."""
    labels: Annotated[str | None, typer.Option(help="Budgets, as 4tiles,16tiles.")] = (
        None
    )
    """Budgets, parted by commas."""
    draws: Annotated[
        int | None, typer.Option(help="Random choices of the labels; 3.")
    ] = None
    """Draws of each budget."""
    seeds: Annotated[
        int | None, typer.Option(help="Runs of each draw, each with its own seed; 1.")
    ] = None
    """Seeds of each draw."""
    folds: Annotated[
        str | None,
        typer.Option(
            help="Every block is for the test in one of N folds: N, none, or auto, "
            "which is 5 below 20 test blocks."
        ),
    ] = None
    """A number, `none` or `auto`."""
    validation: Annotated[
        str | None,
        typer.Option(help=f"What chooses the best epoch: {', '.join(VALIDATIONS)}."),
    ] = None
    """One of `VALIDATIONS`."""
    equal: Annotated[
        str | None,
        typer.Option(help=f"What is equal for all modes: {', '.join(EQUAL)}."),
    ] = None
    """One of `EQUAL`."""
    until_flat: Annotated[
        bool | None,
        typer.Option(
            "--until-flat/--as-many-steps",
            help="Double the steps until scratch gains little by it.",
        ),
    ] = None
    """Whether the steps are doubled first."""

    def list_given(self) -> dict[str, Any]:
        """Return what was given, as `Design` takes it, None for the rest."""
        given = dataclasses.asdict(self)
        if self.modes is not None:
            given["modes"] = split_modes(self.modes)
        if self.labels is not None:
            given["labels"] = self.labels.split(",")
        if self.folds is not None:
            given["folds"] = read_folds(self.folds)
        return given


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a comparison: the command line over the file."""

    manifest: Path
    """Manifest of the target site."""
    model: Path
    """The model to start from."""
    source: Path | None
    """Manifest of the source site."""
    design: Design
    """What is compared, and on which terms."""
    settings: Mapping[str, Any]
    """How runs are trained."""

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Experiment:
        """Make an experiment of options and a file.

        Args:
            given: What `FitOptions.collect_settings` returned.

        Raises:
            UsageError: If something is missing or cannot be used.
        """
        names = {
            "manifest": "the manifest of the site",
            "from": "--from",
            "modes": "--modes",
            "labels": "--labels",
        }
        missing = [option for key, option in names.items() if not given.get(key)]
        if missing:
            raise UsageError(
                f"A comparison needs {', '.join(missing)}. Give it as an option, or in "
                f"a file for --config, whose keys are {', '.join(EXPERIMENT_KEYS)} and "
                "the settings of a training."
            )
        fields = [field.name for field in dataclasses.fields(Design)]
        options = {name: given[name] for name in fields if name in given}
        lists = {key: tuple(options[key]) for key in ("modes", "labels")}
        design = Design(**(options | lists))
        # Before a file of the site is read: names, numbers and budgets.
        plan_cells(
            design.modes,
            parse_budgets(design.labels),
            design.draws,
            seed=0,
            seeds=design.seeds,
        )
        return cls(
            manifest=given["manifest"],
            model=given["from"],
            source=given.get("source"),
            design=design,
            settings={k: v for k, v in given.items() if k not in EXPERIMENT_KEYS},
        )


def _read_path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str):
        raise UsageError(f"expected a path, got {value!r}.")
    return folder / value


def _read_texts(value: Any, _folder: Path) -> list[str]:
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"expected a list of texts, got {value!r}.")
    return texts


def _read_modes(value: Any, folder: Path) -> list[str]:
    modes = split_modes(value) if isinstance(value, str) else value
    return [
        str(folder / mode) if is_plan_file(mode) else mode
        for mode in _read_texts(modes, folder)
    ]


def _keep(value: Any, _folder: Path) -> Any:
    return value


EXPERIMENT_KEYS: Mapping[str, ReadKey] = {
    "manifest": _read_path,
    "from": _read_path,
    "source": _read_path,
    "modes": _read_modes,
    "labels": _read_texts,
    "draws": _keep,
    "seeds": _keep,
    "folds": _keep,
    "validation": _keep,
    "equal": _keep,
    "until_flat": _keep,
}
"""What a file for `compare --config` may hold beside settings, and how it is read.
Paths are relative to the file."""
