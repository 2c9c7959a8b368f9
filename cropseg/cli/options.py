"""Every option that more than one command takes, written once.

Options that go together are a dataclass, which a command takes as one parameter.
`spread_groups` makes typer see the single options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cropseg.errors import UsageError
from cropseg.inference.engines.engine import PRECISIONS
from cropseg.models.foreign import ForeignDescription
from cropseg.sites.site import Site, open_site
from cropseg.training.settings import LOSSES, ReadKey, read_settings_file
from cropseg.transfer.normalization import NORMALIZATIONS
from cropseg.transfer.target import ReuseOptions, read_synonyms

_NORMALIZATIONS = ", ".join(NORMALIZATIONS)

Manifest = Annotated[Path, typer.Argument(help="Manifest of a site, a YAML file.")]
Model = Annotated[Path, typer.Argument(help="A model.keras that cropseg saved.")]
From = Annotated[Path, typer.Option("--from", help="The model of the other area.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
TileSize = Annotated[int | None, typer.Option(help="Side of a tile, in pixels.")]
BatchSize = Annotated[int | None, typer.Option(help="Tiles in a batch.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs.")]
Steps = Annotated[int | None, typer.Option(help="Batches in an epoch.")]
Rate = Annotated[float | None, typer.Option(help="Highest learning rate.")]
Loss = Annotated[str | None, typer.Option(help=f"One of {', '.join(LOSSES)}.")]
Precision = Annotated[str | None, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with settings.")]
AllowRemote = Annotated[
    list[str] | None, typer.Option(help="Host that files may be read from.")
]
SourceManifest = Annotated[
    Path | None,
    typer.Option(
        "--source",
        help="Manifest of the other area: for joint, and in a comparison to score what "
        "is forgotten.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Tell more; show tracebacks.")]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a network is fitted: the options of `train`, `transfer` and `compare`.

    None is an option that was not given, so that the default of `TrainSettings` or
    of the source's model holds.
    """

    batch_size: BatchSize = None
    """Tiles in a batch."""
    epochs: Epochs = None
    """Epochs."""
    steps_per_epoch: Steps = None
    """Batches in an epoch."""
    learning_rate: Rate = None
    """Highest learning rate."""
    loss: Loss = None
    """One of `LOSSES`."""
    precision: Precision = None
    """One of `PRECISIONS`."""
    config: Config = None
    """YAML file with settings, over which the options win."""
    seed: Seed = None
    """Seed of everything random."""

    def collect_settings(
        self, keys: Mapping[str, ReadKey] | None = None, /, **more: Any
    ) -> dict[str, Any]:
        """Return the settings of `--config`, with the options given over them.

        Args:
            keys: What else than settings may stand in the file, and how it is read.
            more: Options of the one command, None where they were not given.

        Raises:
            UsageError: If the file cannot be read or has an unknown key.
        """
        given = dataclasses.asdict(self) | more
        config = given.pop("config")
        settings = read_settings_file(config, keys) if config else {}
        return settings | {name: v for name, v in given.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class ReuseChoices:
    """How a model is fitted to a site: options of `transfer`, `compare`, `advise`."""

    normalization: Annotated[
        str,
        typer.Option(
            help=f"What bands are normalised by: {_NORMALIZATIONS}. Of a model "
            "without a card: what was done to raw values, as divide:255 or none."
        ),
    ] = "source"
    """One of `NORMALIZATIONS`, or what a model without a card was trained on."""
    bands_from: Annotated[
        str, typer.Option(help="Whose bands the new model takes: model, site.")
    ] = "model"
    """`model` or `site`."""
    accept_gsd: Annotated[
        bool, typer.Option("--accept-gsd", help="Another GSD is no error.")
    ] = False
    """Whether a site of another GSD is read as it is."""
    resample_to_model: Annotated[
        bool, typer.Option("--resample-to-model", help="Read at the model's GSD.")
    ] = False
    """Whether the site is read at the GSD of the model."""
    synonyms: Annotated[
        Path | None,
        typer.Option(help="YAML file: classes and their names in the model."),
    ] = None
    """A table of class names."""
    imagenet_weights: Annotated[
        Path | None, typer.Option(help="File with ImageNet weights, for imagenet.")
    ] = None
    """A local file in place of the download."""

    def read_options(self) -> ReuseOptions:
        """Return the options, with the table of names read.

        Raises:
            UsageError: If one cannot be used, or two contradict each other.
        """
        if self.accept_gsd and self.resample_to_model:
            raise UsageError("Give --accept-gsd or --resample-to-model, not both.")
        gsd = "accept" if self.accept_gsd else "same"
        own = self.normalization in NORMALIZATIONS
        return ReuseOptions(
            normalization=self.normalization if own else "source",  # type: ignore[arg-type]
            bands_from=self.bands_from,  # type: ignore[arg-type]
            gsd="resample" if self.resample_to_model else gsd,  # type: ignore[arg-type]
            synonyms=read_synonyms(self.synonyms) if self.synonyms else None,
            imagenet_weights=self.imagenet_weights,
        )


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """What a model says that brings no card: options wherever `--from` stands."""

    bands: Annotated[
        str | None, typer.Option(help="Bands of a model without a card, in order.")
    ] = None
    """Names with commas."""
    classes: Annotated[
        str | None, typer.Option(help="Classes of a model without a card, in order.")
    ] = None
    """Names with commas."""
    card: Annotated[
        Path | None, typer.Option(help="YAML file that says all of it.")
    ] = None
    """The fields of `ForeignDescription`."""
    stages: Annotated[
        Path | None,
        typer.Option(help="YAML file with its stages, as inspect --stages-out writes."),
    ] = None
    """Its stages, where the proposed ones do not suit."""

    architecture: Annotated[
        str | None, typer.Option(help="unet, linknet, fpn; for weights alone.")
    ] = None
    """The network that weights alone belong to."""
    encoder: Annotated[
        str | None, typer.Option(help="classic, resnet34, ...; for weights alone.")
    ] = None
    """Its encoder."""

    def read_description(self, reuse: ReuseChoices) -> ForeignDescription | None:
        """Return what the options say about a model without a card.

        Args:
            reuse: Where `--normalization` stands.

        Returns:
            The description; None where nothing was given.

        Raises:
            UsageError: If an option cannot be used.
            ModelError: If a file cannot be read.
        """
        given = dataclasses.asdict(self)
        if reuse.normalization not in NORMALIZATIONS:
            given["normalization"] = reuse.normalization
        if all(value is None for value in given.values()):
            return None
        return ForeignDescription.from_options(**given)


def open_areas(
    manifest: Path, source: Path | None, allow_remote: Collection[str] | None
) -> tuple[Site, Site | None]:
    """Open the target site, and that of the source where its manifest is given."""
    hosts = allow_remote or ()
    site = open_site(manifest, allow_remote=hosts)
    return site, open_site(source, allow_remote=hosts) if source else None


def spread_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose groups of options stand in its signature one by one.

    typer makes options from a signature. The fields of a dataclass take the place
    of the parameter; the command is still called with the dataclass.
    """
    groups: dict[str, type[Any]] = {}
    spread: list[inspect.Parameter] = []
    for name, parameter in _get_parameters(command).items():
        group = parameter.annotation
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            groups[name] = group
            spread += _get_parameters(group).values()
        else:
            spread.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run_command(**given: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            given[name] = group(**{field: given.pop(field) for field in fields})
        command(**given)

    run_command.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    return run_command


def _get_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function, eval_str=True).parameters)
