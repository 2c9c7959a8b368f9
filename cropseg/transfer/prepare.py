"""A transfer whose parts were checked to fit together, before Keras starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cropseg.errors import ModelError, UsageError
from cropseg.models.card import Card, match_card_classes
from cropseg.sites.budget import LabelPool, parse_budget
from cropseg.sites.site import Site
from cropseg.training.settings import TrainSettings
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.modes import get_plan
from cropseg.transfer.phases import check_selectors, trains_head
from cropseg.transfer.plan import TransferPlan
from cropseg.transfer.plan_file import is_plan_file
from cropseg.transfer.rows import refuse_new_classes, refuse_shared_rows
from cropseg.transfer.source import Source
from cropseg.transfer.target import (
    ReuseOptions,
    choose_pool,
    choose_settings,
    describe_transfer,
    prepare_target,
)


@dataclass(frozen=True, kw_only=True)
class TransferJob:
    """A transfer whose parts were checked to fit together."""

    source: Source
    """The model to start from, not loaded yet."""
    plan: TransferPlan
    """What is reused, and what is trained."""
    pool: LabelPool
    """The labels that the run may see, of the target as the new model reads it."""
    settings: TrainSettings
    """How it is trained."""
    reuse: ReuseOptions
    """How the model is fitted to the site."""
    source_site: Site | None
    """The site of the source, for modes that train on its tiles too."""
    record: dict[str, Any]
    """What decides the result."""


def prepare_transfer(  # noqa: PLR0913 - keyword-only, and each is an option
    site: Site,
    source: Source,
    *,
    mode: str,
    labels: str | None = None,
    draw: int = 0,
    reuse: ReuseOptions | None = None,
    source_site: Site | None = None,
    **settings: Any,
) -> TransferJob:
    """Check that a transfer can be run, before anything is loaded.

    Args:
        site: The target site.
        source: The model to start from; see `find_source`.
        mode: A mode of the table, or the path of a YAML file with a plan.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        reuse: How the model is fitted to the site.
        source_site: The site of the source, for `joint`.
        **settings: Fields of `TrainSettings`.

    Raises:
        UsageError: If the mode or a setting cannot be used.
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the model does not fit the site.
    """
    plan, card = get_plan(mode), source.card
    reuse = reuse or ReuseOptions()
    if plan.needs_source_site and source_site is None:
        raise UsageError(
            f"Mode {plan.mode} trains on tiles of area 1 too. Give its manifest as "
            "--source."
        )
    chosen = choose_settings(card, settings)
    check_selectors(plan, card.stages, num_steps=chosen.num_steps)
    if plan.optimizer == "source":
        _check_state(source)
    target = prepare_target(site, card, reuse)
    _check_classes(plan, card, target)
    budget = parse_budget(labels) if labels else None
    what: dict[str, Any] = {
        "mode": plan.mode,
        "labels": str(budget) if budget else None,
        "draw": draw,
    }
    if is_plan_file(mode):  # the file may change under its name
        what["plan"] = plan_to_json(plan)
    if plan.needs_source_site and source_site is not None:
        what["source_fingerprint"] = source_site.fingerprint
    record = describe_transfer(target, source, chosen, what, reuse=reuse)
    pool = choose_pool(target, chosen.tile_size, budget, draw=draw)
    return TransferJob(
        source=source,
        plan=plan,
        pool=pool,
        settings=chosen,
        reuse=reuse,
        source_site=source_site if plan.needs_source_site else None,
        record=record,
    )


def _check_state(source: Source) -> None:
    """Check that the state of the source's optimizer is there.

    Raises:
        ModelError: If it is not.
    """
    folder = source.run_dir
    if folder is None or not (folder / "checkpoints" / "state.npz").exists():
        raise ModelError(
            f"Mode resume goes on with the optimizer of a training, and {source.title} "
            "does not lie in the folder of one: there is no checkpoints/state.npz "
            "beside it. Give the model.keras that `cropseg train` wrote there."
        )


def _check_classes(plan: TransferPlan, card: Card, target: Site) -> None:
    """Check that every class gets a row of the head that means something.

    Raises:
        ModelError: If one does not.
    """
    if plan.start["head"] != "source" or trains_head(plan, card.stages):
        return
    matches = match_card_classes(card, target.classes)
    refuse_shared_rows(matches)
    if plan.trains:  # else what the source does not know is never predicted
        refuse_new_classes(matches, target.classes.names, plan.mode)
