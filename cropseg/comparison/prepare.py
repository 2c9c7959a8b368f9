"""A comparison whose parts were checked to fit together, before Keras starts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cropseg.comparison.cells import Cell, Contender, find_contenders, plan_cells
from cropseg.comparison.design import Design, describe_design
from cropseg.comparison.folds import choose_folds
from cropseg.comparison.steps import Steps, read_steps
from cropseg.errors import UsageError
from cropseg.files import hash_settings
from cropseg.models.card import Card
from cropseg.sites.budget import (
    Budget,
    LabelPool,
    check_budgets,
    parse_budget,
    parse_budgets,
)
from cropseg.sites.folds import take_fold
from cropseg.sites.site import Site
from cropseg.training.settings import TrainSettings
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.modes import PIXEL_FOREST
from cropseg.transfer.phases import check_selectors
from cropseg.transfer.prepare import TransferJob, part_pool, prepare_transfer
from cropseg.transfer.source import Source
from cropseg.transfer.target import (
    ReuseOptions,
    choose_pool,
    choose_settings,
    describe_transfer,
    prepare_target,
)

_WORDS = ("summary", "serves", "origin")
"""What a plan says about itself. It may be put better without another result."""


@dataclass(frozen=True, kw_only=True)
class ForestJob:
    """A forest that can be fitted."""

    pool: LabelPool
    """The labels that it is fitted on."""
    num_held_out: int
    """Label pixels of its budget that it may not see: a network validates on them."""
    settings: TrainSettings
    """Seed and class weighting; the rest concerns networks."""
    record: Mapping[str, Any]
    """What decides its result."""


@dataclass(frozen=True, kw_only=True)
class ComparisonJob:
    """A comparison whose parts were checked to fit together."""

    design: Design
    """What is compared, and on which terms."""
    site: Site
    """The target site, as it was opened."""
    target: Site
    """The same as the new models read it; with folds, the first one."""
    source: Source
    """The model to start from, not loaded yet."""
    contenders: tuple[Contender, ...]
    """The modes."""
    budgets: tuple[Budget, ...]
    """The budgets, from small to large."""
    folds: int | None
    """How many folds there are; None for the test part of the site's split."""
    cells: tuple[Cell, ...]
    """The runs."""
    settings: TrainSettings
    """How each run is trained, but for its seed, and for its steps where these are
    measured."""
    reuse: ReuseOptions
    """How the model is fitted to the site, in all runs."""
    source_site: Site | None
    """The site of the source, for modes that train on its tiles too, and to score what
    is forgotten."""
    record: dict[str, Any]
    """What is run, and what decides its result."""
    steps: Steps = field(default_factory=Steps)
    """What was measured about the steps."""

    def take_steps(self, folder: Path) -> ComparisonJob:
        """Return the comparison with the steps that were measured in its folder.

        The folders of runs follow from them.
        """
        steps = read_steps(folder)
        return self if steps == self.steps else replace(self, steps=steps)

    def get_site(self, fold: int | None) -> Site:
        """Return the target site, or a fold of it."""
        if self.folds is None or fold is None:
            return self.site
        return take_fold(self.site, folds=self.folds, fold=fold)

    def prepare_run(self, cell: Cell) -> TransferJob | ForestJob:
        """Return what a cell runs. Its record is what decides the result."""
        contender = next(c for c in self.contenders if c.mode == cell.mode)
        return self.prepare_mode(contender.given, cell)

    def prepare_mode(self, given: str, cell: Cell) -> TransferJob | ForestJob:
        """Return a run of any mode, compared or not, on the terms of a cell.

        Args:
            given: A mode of the table, or the path of a file with a plan.
            cell: Its labels, draw, seed and fold.
        """
        settings = self.steps.change(self.settings.change(seed=cell.seed), cell.mode)
        site = self.get_site(cell.fold)
        labels = str(cell.budget) if cell.budget else None
        more: dict[str, Any] = {"validation": self.design.validation}
        if cell.fold is not None:
            more["fold"] = {"folds": self.folds, "fold": cell.fold}
        if given == PIXEL_FOREST:
            return prepare_forest(
                site,
                self.source.card,
                settings,
                labels=labels,
                draw=cell.draw,
                reuse=self.reuse,
                more=more,
            )
        job = prepare_transfer(
            site,
            self.source,
            mode=given,
            labels=labels,
            draw=cell.draw,
            reuse=self.reuse,
            source_site=self.source_site,
            validation=self.design.validation,
            **settings.to_json(),
            workers=settings.workers,
        )
        plan = plan_to_json(job.plan)
        more["plan"] = {key: plan[key] for key in plan if key not in _WORDS}
        if self.source_site is not None:  # each run is scored there, too
            more["source_fingerprint"] = self.source_site.fingerprint
        record = {key: value for key, value in job.record.items() if key != "from"}
        return replace(job, record=record | more)

    @functools.cached_property
    def run_names(self) -> Mapping[Cell, str]:
        """The folder of each run in `runs/`. It tells what decides the result apart."""
        return {
            cell: f"{cell.name}-{hash_settings(self.prepare_run(cell).record)}"
            for cell in self.cells
        }


def prepare_forest(  # noqa: PLR0913 - keyword-only, and all decide the result
    site: Site,
    card: Card,
    settings: TrainSettings,
    *,
    labels: str | None,
    draw: int,
    reuse: ReuseOptions | None = None,
    more: Mapping[str, Any] | None = None,
) -> ForestJob:
    """Check that a forest can be fitted.

    Args:
        site: The target site.
        card: Card of the model that a network would start from.
        settings: Seed and class weighting; the rest concerns networks.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        reuse: How a model would be fitted to the site.
        more: What else decides the result. With `validation: budget` the forest does
            without the labels that a network holds out.

    Raises:
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the site does not fit the card.
    """
    target = prepare_target(site, card, reuse)
    budget = parse_budget(labels) if labels else None
    pool = choose_pool(target, settings.tile_size, budget, draw=draw)
    held_out = None
    if more and more.get("validation") == "budget":
        pool, held_out = part_pool(pool, "budget")
    record = {
        "command": PIXEL_FOREST,
        "fingerprint": target.fingerprint,
        "bands": list(target.bands),
        "tile_size": settings.tile_size,
        "labels": str(budget) if budget else None,
        "draw": draw,
        "seed": settings.seed,
        "class_weight_power": settings.class_weight_power,
        "reuse": (reuse or ReuseOptions()).to_json(),
    }
    return ForestJob(
        pool=pool,
        num_held_out=sum(held_out.class_pixels) if held_out else 0,
        settings=settings,
        record=record | dict(more or {}),
    )


def prepare_comparison(
    site: Site,
    source: Source,
    design: Design,
    *,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    **settings: Any,
) -> ComparisonJob:
    """Check that a comparison can be run, before anything is loaded.

    Args:
        site: The target site.
        source: The model to start from; see `find_source`.
        design: What is compared, and on which terms.
        reuse: How the model is fitted to the site.
        source_site: The site of the source.
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
    budgets = parse_budgets(design.labels)
    contenders = find_contenders(design.modes)
    plan_cells(design.modes, budgets, design.draws, seed=0, seeds=design.seeds)
    _check_source_site(contenders, source_site)
    for contender in contenders:
        if contender.plan is not None:
            check_selectors(contender.plan, card.stages, num_steps=chosen.num_steps)
    folds = choose_folds(site, card, reuse, design)
    targets = [
        prepare_target(
            site if folds is None else take_fold(site, folds=folds, fold=fold),
            card,
            reuse,
        )
        for fold in range(folds or 1)
    ]
    for target in targets:
        check_budgets(budgets, target, card.tile_size)
    what = describe_design(
        design, contenders, folds=folds, site=site, source_site=source_site
    )
    record = describe_transfer(
        site, source, chosen, what, reuse=reuse, command="compare"
    )
    job = ComparisonJob(
        design=design,
        site=site,
        target=targets[0],
        source=source,
        contenders=tuple(contenders),
        budgets=tuple(budgets),
        folds=folds,
        cells=tuple(
            plan_cells(
                design.modes,
                budgets,
                design.draws,
                seed=chosen.seed,
                seeds=design.seeds,
                folds=folds,
            )
        ),
        settings=chosen,
        reuse=reuse,
        source_site=source_site,
        record=record,
    )
    for contender in contenders:  # one run of each, so that none is refused later
        job.prepare_run(next(c for c in job.cells if c.mode == contender.mode))
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
