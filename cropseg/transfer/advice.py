"""Advice: the rule of thumb on how to reuse a model, put to work.

How many labels there are, and how much the new area is like the first one, name one
of four cells of a table, and the cell names modes. That is a place to start: what it
cannot know is said, and so is the comparison that settles it. Keras starts only where
the network is run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cropseg.sites.budget import (
    LabelPool,
    list_drawable_fields,
    list_drawable_tiles,
    parse_budget,
)
from cropseg.sites.site import Site
from cropseg.sites.statistics import survey_site
from cropseg.transfer.evidence import Evidence, measure_evidence
from cropseg.transfer.rule_of_thumb import ALWAYS_COMPARED, CELLS, LIMITS, Level
from cropseg.transfer.signals import Signal, find_deciding, judge_amount, list_signals
from cropseg.transfer.source import find_source
from cropseg.transfer.target import ReuseOptions, choose_pool, prepare_target


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the rule of thumb says of a target and a model."""

    amount: Level
    """Amount of labels."""
    similarity: Level
    """How much the target is like area 1."""
    decided_by: str
    """The signal that decided the similarity."""
    cell: str
    """The cell of the table, in words."""
    modes: tuple[str, ...]
    """Modes that it suggests, as `cropseg modes` names them."""
    reasons: tuple[str, ...]
    """Why, in sentences with numbers."""
    unknown: tuple[str, ...]
    """What the rule cannot know."""
    command: str
    """The comparison that settles it."""
    measures: Mapping[str, Any] = field(compare=False)
    """All numbers, as JSON values."""

    def to_json(self) -> dict[str, Any]:
        """Return the document that `advise --json` prints."""
        return {
            **asdict(self),
            "modes": list(self.modes),
            "reasons": list(self.reasons),
            "unknown": list(self.unknown),
        }


def advise_transfer(
    site: Site,
    model_path: str | Path,
    *,
    labels: str | None = None,
    draw: int = 0,
    reuse: ReuseOptions | None = None,
    description: Any = None,
) -> Advice:
    """Say what the rule of thumb suggests for a target site and a model.

    Nothing is trained, and no label outside the training part is read.

    Args:
        site: The target site.
        model_path: The model of area 1: a bundle, or any Keras file with
            `description`.
        labels: A budget such as `4tiles`; None for all labels of the training part.
        draw: Which draw of the budget.
        reuse: How the model is fitted to the site.
        description: A `ForeignDescription` of a model that is no bundle.

    Returns:
        The modes that it suggests, why, and the comparison that would settle it.

    Raises:
        UsageError: If the budget cannot be read.
        DataError: If the site cannot be trained on, or has fewer labels.
        ModelError: If the model does not fit the site.
    """
    source = find_source(model_path, description=description, site=site)
    budget = parse_budget(labels) if labels else None
    target = prepare_target(site, source.card, reuse)
    pool = choose_pool(target, source.card.tile_size, budget, draw=draw)
    return advise(
        measure_evidence(source, pool, reuse),
        manifest=str(site.manifest_path),
        model=source.title,
        labels=str(budget) if budget else suggest_budgets(pool),
        options=_write_options(reuse or ReuseOptions(), description),
    )


def suggest_budgets(pool: LabelPool) -> str:
    """Return the budgets to compare where all labels may be used: a quarter, and all.

    So that the comparison also says whether more labels change the answer.
    """
    survey = survey_site(pool.site, pool.tile_size)
    amounts = {
        "tiles": len(list_drawable_tiles(survey)),
        "fields": len(list_drawable_fields(survey)),
    }
    unit, amount = next(
        ((unit, amount) for unit, amount in amounts.items() if amount), ("tiles", 1)
    )
    sizes = dict.fromkeys((max(1, amount // 4), amount))
    return ",".join(f"{size}{unit}" for size in sizes)


def _write_options(reuse: ReuseOptions, description: Any) -> list[str]:
    """Return the options of the command line that stand for a choice."""
    gsd = {"accept": ["--accept-gsd"], "resample": ["--resample-to-model"]}
    words = list(gsd.get(reuse.gsd, []))
    if description is not None:
        # One option says both how the model normalises and how the site does.
        is_one = reuse.normalization == "source"
        words += description.list_options() if is_one else ["--card", "FILE"]
    for name in ("normalization", "bands_from"):
        if name in reuse.to_json():
            words += [f"--{name.replace('_', '-')}", getattr(reuse, name)]
    return words + (["--synonyms", "FILE"] if reuse.synonyms else [])


def advise(
    evidence: Evidence,
    *,
    manifest: str,
    model: str,
    labels: str,
    options: Sequence[str] = (),
) -> Advice:
    """Look up what the evidence says in the table.

    The amount is high where enough classes have enough pixels, tiles and fields. The
    similarity is high unless most labels are of classes that area 1 does not have, the
    score without training has fallen, or the features have moved. Where neither score
    nor features are known, the bands decide.

    Args:
        evidence: What was measured.
        manifest: Path of the target's manifest, for the command.
        model: Path of the model.
        labels: Budgets to compare.
        options: More options of the comparison.
    """
    amount, amount_text = judge_amount(evidence)
    signals = list_signals(evidence)
    first = find_deciding(signals)
    similarity = first.level or "low"
    cell = CELLS[amount, similarity]
    others = [
        item.text
        for item in signals
        if item is not first and (item.level or item.name == "classes")
    ]
    compared = dict.fromkeys((*cell.modes, *cell.checks, *ALWAYS_COMPARED))
    command = ["cropseg", "compare", manifest, "--from", model]
    command += ["--modes", ",".join(compared), "--labels", labels]
    command += ["--draws", "3", *options, "--out", "runs/compare"]
    return Advice(
        amount=amount,
        similarity=similarity,
        decided_by=first.name,
        cell=cell.title,
        modes=cell.modes,
        reasons=(amount_text, f"{first.text} This decides.", *others),
        unknown=tuple(_list_unknown(evidence, signals, first)),
        command=shlex.join(command),
        measures=_list_measures(evidence, signals),
    )


def judge_advice(
    advice: Mapping[str, Any], budget: Mapping[str, Any]
) -> dict[str, Any]:
    """Say whether advice held in a comparison.

    Args:
        advice: What `Advice.to_json` returned.
        budget: An item of `budgets` in `summary.json`, at the labels advised on.

    Returns:
        `suggested`, and: the best mode of all; the best suggested one that was
        compared; how far that is `behind` in mean mIoU; `held`, whether it is the
        best; `told_apart`, whether a test found the two to differ, None without one;
        and a sentence. None where no suggested mode was compared.
    """
    suggested = list(advice["modes"])
    ranked = sorted(budget["modes"], key=lambda item: -item["miou_mean"])
    tried = [item for item in ranked if item["mode"] in suggested]
    verdict: dict[str, Any] = {"cell": advice["cell"], "suggested": suggested}
    verdict |= dict.fromkeys(("best", "best_suggested", "behind", "held", "told_apart"))
    if ranked:
        verdict["best"] = ranked[0]["mode"]
    if not tried:
        verdict["text"] = (
            f"None of the suggested modes ({', '.join(suggested)}) was compared."
        )
        return verdict
    best, own = ranked[0], tried[0]
    behind = round(best["miou_mean"] - own["miou_mean"], 4)
    held = own is best or behind == 0
    tests = {
        frozenset((item["mode"], item["against"])): item["significant"]
        for item in budget["differences"]
    }
    verdict |= {
        "best_suggested": own["mode"],
        "behind": behind,
        "held": held,
        "told_apart": tests.get(frozenset((best["mode"], own["mode"]))),
    }
    verdict["text"] = _describe_verdict(verdict)
    return verdict


def _describe_verdict(verdict: Mapping[str, Any]) -> str:
    best, own = verdict["best"], verdict["best_suggested"]
    if verdict["held"]:
        return f"The advice held: {own} was suggested and is the best."
    lead = (
        f"{best} is the best, and {own}, the best suggested, is "
        f"{verdict['behind']:.3f} mIoU behind"
    )
    if verdict["told_apart"] is None:
        return f"Whether the advice held stays open: {lead}, which was not tested."
    if verdict["told_apart"]:
        return f"The advice did not hold: {lead}, more than chance."
    return f"The advice was not refuted: {lead}, which may be chance."


def _list_unknown(
    evidence: Evidence, signals: list[Signal], first: Signal
) -> Iterator[str]:
    yield (
        "Which of the modes is best: this is a rule of thumb, and no trained model "
        "went into it."
    )
    yield (
        f"Whether training on both areas at once does better: where the tiles of "
        f"{evidence.source_site} are at hand, compare `joint` too, with --source."
    )
    if first.name == "zero_shot":
        yield (
            f"What other labels would say: the score is from {evidence.num_tiles} "
            "tiles, and another draw gives another."
        )
    answers = {
        signal.name: signal.level for signal in signals if signal.level is not None
    }
    if len(set(answers.values())) > 1:
        told = ", ".join(f"{name} {level}" for name, level in answers.items())
        yield f"Which signal is right: they disagree on the similarity ({told})."
    yield from (
        item.text for item in signals if item.level is None and item.name != "classes"
    )
    unseen = [item.name for item in evidence.labels if not item.pixels]
    if unseen:
        yield f"Anything on {', '.join(unseen)}: no label of theirs can be seen."
    if evidence.new:
        yield (
            f"How well {', '.join(evidence.new)} can be told apart: "
            f"{evidence.source_site} has none."
        )
    yield (
        "Whether the labels are right, and whether `--normalization target` or `match` "
        "would bring the areas closer."
    )


def _list_measures(evidence: Evidence, signals: list[Signal]) -> dict[str, Any]:
    scored = evidence.zero_shot
    return {
        "labels": {
            "pixels": evidence.num_pixels,
            "tiles": evidence.num_tiles,
            "classes": [asdict(item) for item in evidence.labels],
        },
        "shared_classes": list(evidence.shared),
        "new_classes": list(evidence.new),
        "shared_share": round(evidence.shared_share, 4),
        "zero_shot": asdict(scored) if scored else None,
        "feature_distance": evidence.feature_distance,
        "half_distance": evidence.half_distance,
        "band_distances": dict(evidence.band_distances),
        "signals": {signal.name: signal.level for signal in signals},
        "limits": {name: limit.value for name, limit in LIMITS.items()},
    }
