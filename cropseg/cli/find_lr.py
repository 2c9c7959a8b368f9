"""`cropseg find-lr`: how fast a network can be trained on a site."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cropseg.cli.options import (
    AllowRemote,
    FitOptions,
    ForeignOptions,
    Manifest,
    Overwrite,
    ReuseChoices,
    SourceManifest,
    TileSize,
    open_areas,
)
from cropseg.cli.show import Output, console
from cropseg.errors import UsageError
from cropseg.files import check_out_dir, claim_out_dir
from cropseg.sites.budget import check_budgets, parse_budgets
from cropseg.sites.site import Site
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.settings import TrainSettings, describe_training
from cropseg.transfer.modes import get_plan
from cropseg.transfer.prepare import TransferJob, prepare_transfer
from cropseg.transfer.source import find_source

if TYPE_CHECKING:
    from cropseg.training.rate_search import RateSearch

_PLOT, _TABLE = "find_lr.png", "find_lr.csv"


def find_lr(
    manifest: Manifest,
    *,
    from_: Annotated[
        Path | None, typer.Option("--from", help="The model to start from, if any.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="How it is reused; full if nothing is said.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="A budget, as 4tiles.")] = None,
    draw: Annotated[int, typer.Option(help="Which draw of the budget.")] = 0,
    num_steps: Annotated[int, typer.Option(help="Batches of the test.")] = 60,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the plot and the table.")
    ] = None,
    tile_size: TileSize = None,
    source: SourceManifest = None,
    reuse: ReuseChoices,
    foreign: ForeignOptions,
    fit: FitOptions,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Find a learning rate for a site, by a range test."""
    if fit.learning_rate is not None:
        raise UsageError("Leave --learning-rate out: it is what find-lr finds.")
    new = {"architecture": foreign.architecture, "encoder": foreign.encoder}
    settings = fit.collect_settings(tile_size=tile_size, **({} if from_ else new))
    what: dict[str, Any] = {"labels": labels, "draw": draw}
    if out is not None:
        check_out_dir(out)
    if from_ is None:
        _refuse_without_model(mode=mode, source=source, reuse=reuse, foreign=foreign)
    chosen = mode or "full"
    get_plan(chosen)
    site, source_site = open_areas(manifest, source, allow_remote)
    start: TransferJob | _NewNetwork
    if from_ is None:
        start = _prepare_new(site, TrainSettings(**settings), what)
    else:
        start = prepare_transfer(
            site,
            find_source(from_, description=foreign.read_description(reuse), site=site),
            mode=chosen,
            reuse=reuse.read_options(),
            source_site=source_site,
            **what,
            **settings,
        )
    record = start.record | {"command": "find-lr", "num_steps": num_steps}
    if out is not None:
        check_out_dir(out, record, overwrite=overwrite)
    with output.open_progress() as show_progress:
        search = _search(start, num_steps=num_steps, show_progress=show_progress)
    if out is not None:
        with claim_out_dir(out, record, overwrite=overwrite):
            _write(search, f"{site.name}: {chosen if from_ else 'a new network'}", out)
    output.show(search.to_json(), lambda: _show(search, out))


def _refuse_without_model(
    *, mode: str | None, source: Path | None, reuse: ReuseChoices, foreign: Any
) -> None:
    """Refuse options that say how a model is reused, where none is given."""
    named = ("bands", "classes", "card", "stages")
    given = [f"--{name}" for name in named if getattr(foreign, name) is not None]
    given += ["--mode"] * (mode is not None) + ["--source"] * (source is not None)
    given += [
        f"--{field.name.replace('_', '-')}"
        for field in fields(reuse)
        if getattr(reuse, field.name) != field.default
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)}: without a model to start from, this means nothing. "
            "Give it as --from MODEL, or leave the option out."
        )


@dataclass(frozen=True, kw_only=True)
class _NewNetwork:
    """A network with random weights that is to be tested."""

    site: Site
    """The site."""
    settings: TrainSettings
    """How it is trained."""
    what: dict[str, Any]
    """The labels, and their draw."""

    @property
    def record(self) -> dict[str, Any]:
        """What decides the result."""
        return describe_training(self.site, self.settings) | self.what


def _prepare_new(
    site: Site, settings: TrainSettings, what: dict[str, Any]
) -> _NewNetwork:
    """Check that a new network can be trained on a site, before Keras starts."""
    budgets = parse_budgets([what["labels"]]) if what["labels"] else []
    require_trainable(site, survey_site(site, settings.tile_size))
    check_budgets(budgets, site, settings.tile_size)
    return _NewNetwork(site=site, settings=settings, what=what)


def _search(start: TransferJob | _NewNetwork, **how: Any) -> RateSearch:
    from cropseg.transfer.find_rate import (
        prepare_pool,
        search_new_network,
        search_transfer,
    )

    if isinstance(start, TransferJob):
        return search_transfer(start, **how)
    pool = prepare_pool(start.site, start.settings, **start.what)
    return search_new_network(pool, start.settings, **how)


def _write(search: RateSearch, title: str, out_dir: Path) -> None:
    from cropseg.training.rate_search import plot_rate_search, write_rate_search

    write_rate_search(search, out_dir / _TABLE)
    plot_rate_search(search, title, out_dir / _PLOT)


def _show(search: RateSearch, out_dir: Path | None) -> None:
    if not search.is_clear:
        console.print("The loss did not fall; this is the smallest sensible rate.")
    console.print(f"--learning-rate {search.suggestion:g}", style="bold")
    console.print(
        f"{len(search.losses)} steps, from {search.rates[0]:g} to "
        f"{search.rates[-1]:.2g}"
    )
    if out_dir is not None:
        console.print(f"plot: {out_dir / _PLOT}", markup=False, soft_wrap=True)
