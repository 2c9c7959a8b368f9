"""A transfer whose parts were checked to fit together, before Keras starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cropseg.errors import DataError, ModelError, UsageError
from cropseg.models.card import Card, match_card_classes
from cropseg.models.imagenet_file import (
    hash_imagenet_file,
    read_imagenet_file,
    require_imagenet_encoder,
)
from cropseg.sites.budget import LabelPool, parse_budget
from cropseg.sites.holdout import hold_out
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site
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

VALIDATIONS = ("none", "budget", "oracle")
"""What may choose the best epoch: nothing, so that the last one is kept; a quarter of
the budget's labels, which are not fitted to then; or the val part, whose labels nobody
has who asks for a budget."""


@dataclass(frozen=True, kw_only=True)
class TransferJob:
    """A transfer whose parts were checked to fit together."""

    source: Source
    """The model to start from, not loaded yet."""
    plan: TransferPlan
    """What is reused, and what is trained."""
    pool: LabelPool
    """The labels that it is fitted on, of the target as the new model reads it."""
    held_out: LabelPool | None
    """The labels of its budget that choose the best epoch, if any do."""
    uses_oracle: bool
    """Whether the val part chooses the best epoch."""
    settings: TrainSettings
    """How it is trained."""
    reuse: ReuseOptions
    """How the model is fitted to the site."""
    source_site: Site | None
    """The site of the source."""
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
    validation: str = "none",
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
        validation: What chooses the best epoch; one of `VALIDATIONS`.
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
    imagenet = _describe_imagenet(plan, card, reuse.imagenet_weights)
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
    what |= imagenet
    if validation != "none":
        what["validation"] = validation
    record = describe_transfer(target, source, chosen, what, reuse=reuse)
    pool = choose_pool(target, chosen.tile_size, budget, draw=draw)
    held_out = None
    if plan.trains:
        pool, held_out = part_pool(pool, validation)
    return TransferJob(
        source=source,
        plan=plan,
        pool=pool,
        held_out=held_out,
        uses_oracle=plan.trains and validation == "oracle",
        settings=chosen,
        reuse=reuse,
        source_site=source_site,
        record=record,
    )


def part_pool(pool: LabelPool, validation: str) -> tuple[LabelPool, LabelPool | None]:
    """Return the labels to fit on, and those that are held out of them, if any are.

    Raises:
        UsageError: If nobody knows this way to validate.
        DataError: If there is too little to hold out, or no label to validate on.
    """
    if validation not in VALIDATIONS:
        raise UsageError(
            f"`validation` is {validation!r}; it must be one of "
            f"{', '.join(VALIDATIONS)}."
        )
    if validation == "budget":
        return hold_out(pool)
    if validation == "oracle":
        site = pool.site
        pixels = survey_site(site, pool.tile_size).class_pixels[PARTS.index("val")]
        if not pixels.any():
            raise DataError(
                f"The val part of {site.name} has no labelled pixel, and with "
                "--validation oracle it chooses the best epoch. Give `val` a share of "
                "the split, or --validation none."
            )
    return pool, None


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


def _describe_imagenet(
    plan: TransferPlan, card: Card, weights_path: Path | None
) -> dict[str, str]:
    """Check that ImageNet weights can be had; return what tells a file of them apart.

    Raises:
        UsageError: If the encoder has none.
        ModelError: If the file cannot be used.
        UnsafeFileError: If reading the file could do harm.
    """
    if "imagenet" not in plan.start.values():
        return {}
    require_imagenet_encoder(card.encoder)
    if weights_path is None:
        return {}
    read_imagenet_file(weights_path, card.encoder)
    return {"imagenet_sha256": hash_imagenet_file(weights_path)}


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
