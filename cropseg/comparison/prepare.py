"""A comparison whose parts were checked to fit together, before Keras starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cropseg.comparison.cells import (
    Cell,
    Contender,
    describe_grid,
    find_contenders,
    plan_cells,
)
from cropseg.errors import UsageError
from cropseg.sites.budget import Budget, check_budgets, parse_budgets
from cropseg.sites.site import Site
from cropseg.training.settings import TrainSettings
from cropseg.transfer.phases import check_selectors
from cropseg.transfer.prepare import TransferJob, prepare_transfer
from cropseg.transfer.source import Source
from cropseg.transfer.target import (
    ReuseOptions,
    choose_settings,
    describe_transfer,
    prepare_target,
)


@dataclass(frozen=True, kw_only=True)
class ComparisonJob:
    """A comparison whose parts were checked to fit together."""

    site: Site
    """The target site, as it was opened."""
    target: Site
    """The same as the new models read it."""
    source: Source
    """The model to start from, not loaded yet."""
    contenders: tuple[Contender, ...]
    """The modes."""
    budgets: tuple[Budget, ...]
    """The budgets, from small to large."""
    cells: tuple[Cell, ...]
    """The runs."""
    settings: TrainSettings
    """How each run is trained, but for its seed."""
    reuse: ReuseOptions
    """How the model is fitted to the site, in all runs."""
    source_site: Site | None
    """The site of the source, for modes that train on its tiles too."""
    record: dict[str, Any]
    """What decides the result."""

    def prepare_run(self, cell: Cell) -> TransferJob:
        """Return the transfer of a cell that is not the forest's."""
        given = {contender.mode: contender.given for contender in self.contenders}
        settings = self.settings.change(seed=cell.seed)
        return prepare_transfer(
            self.site,
            self.source,
            mode=given[cell.mode],
            labels=str(cell.budget) if cell.budget else None,
            draw=cell.draw,
            reuse=self.reuse,
            source_site=self.source_site,
            **settings.to_json(),
            workers=settings.workers,
        )


def prepare_comparison(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    source: Source,
    *,
    modes: Sequence[str],
    labels: Sequence[str],
    draws: int,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    **settings: Any,
) -> ComparisonJob:
    """Check that a comparison can be run, before anything is loaded.

    Args:
        site: The target site.
        source: The model to start from; see `find_source`.
        modes: Modes of the table, or paths of files with plans.
        labels: Budgets, such as `["4tiles", "16tiles"]`.
        draws: Random choices of the labels of each budget.
        reuse: How the model is fitted to the site.
        source_site: The site of the source, for `joint`.
        **settings: Fields of `TrainSettings`.

    Raises:
        UsageError: If a mode, a budget or a setting cannot be used, or a mode does not
            suit the network.
        DataError: If the site cannot be trained on, or a budget exceeds its labels.
        ModelError: If the model does not fit the site.
    """
    reuse = reuse or ReuseOptions()
    card = source.card
    chosen = choose_settings(card, settings)
    budgets = parse_budgets(labels)
    contenders = find_contenders(modes)
    cells = plan_cells(modes, budgets, draws, seed=chosen.seed)
    _check_source_site(contenders, source_site)
    for contender in contenders:
        if contender.plan is not None:
            check_selectors(contender.plan, card.stages, num_steps=chosen.num_steps)
    target = prepare_target(site, card, reuse)
    check_budgets(budgets, target, card.tile_size)
    what = describe_grid(contenders, budgets, draws, source_site=source_site)
    record = describe_transfer(
        target, source, chosen, what, reuse=reuse, command="compare"
    )
    job = ComparisonJob(
        site=site,
        target=target,
        source=source,
        contenders=tuple(contenders),
        budgets=tuple(budgets),
        cells=tuple(cells),
        settings=chosen,
        reuse=reuse,
        source_site=source_site,
        record=record,
    )
    for contender in contenders:  # one run of each, so that none is refused later
        if contender.plan is not None:
            job.prepare_run(next(c for c in cells if c.mode == contender.mode))
    return job


def _check_source_site(
    contenders: Sequence[Contender], source_site: Site | None
) -> None:
    needing = [
        contender.mode
        for contender in contenders
        if contender.plan is not None and contender.plan.needs_source_site
    ]
    if needing and source_site is None:
        raise UsageError(
            f"{', '.join(needing)} trains on tiles of area 1 too. Give its manifest as "
            "--source."
        )
    if source_site is not None and not needing:
        raise UsageError(
            f"Site {source_site.name} was given as --source, but none of these modes "
            "trains on its tiles. Leave it out, or compare `joint` too."
        )
