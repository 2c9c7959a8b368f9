"""What one mode did at one budget, for the summary.

Scores are means over its draws and seeds. The confusion matrix, precision, recall and
the reliability curve are of all its runs together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cropseg.comparison.results import BASELINES
from cropseg.comparison.summary.collect import (
    Arrays,
    Collection,
    ModeRuns,
    Unit,
    tell_spread,
)
from cropseg.comparison.summary.forgetting import (
    SourceClasses,
    describe_forgetting,
    score_source,
)
from cropseg.comparison.summary.known import find_known
from cropseg.evaluation.area import (
    estimate_areas,
    estimate_block_errors,
    explain_design,
    find_unchecked_share,
)
from cropseg.evaluation.calibration import compute_calibration
from cropseg.evaluation.fields import score_fields
from cropseg.evaluation.intervals import (
    MIN_BLOCKS,
    MIN_DRAWS,
    Estimate,
    ScoreFunction,
    estimate_score,
    find_thin_classes,
    make_class_iou,
    make_mean_iou,
)
from cropseg.evaluation.scores import Scores, compute_scores
from cropseg.sites.classes import ClassMap
from cropseg.sites.split import BlockSplit, FoldSplit

if TYPE_CHECKING:
    from cropseg.comparison.prepare import ComparisonJob
    from cropseg.training.finished import Run

_M2_PER_HA: Final = 10_000
_BIN_DIGITS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is the same for all modes of a comparison."""

    classes: ClassMap
    """The classes of the target."""
    present: tuple[int, ...]
    """Ids of the classes with a label pixel in the whole test set."""
    known: frozenset[int]
    """Ids of the classes that area 1's own model can tell apart."""
    thin: frozenset[int]
    """Ids of the classes whose labels lie in too few blocks for an interval."""
    num_blocks: int
    """Test blocks of all folds."""
    num_draws: int
    """Draws of the labels, or of one draw its seeds."""
    draw_words: str
    """What these are called, in the plural."""
    pixel_ha: float
    """Area of a pixel, in hectares."""
    has_random_blocks: bool
    """Whether the test blocks were drawn at random, and not by a person."""
    source: SourceClasses | None
    """What area 1's model scored there, where it was measured."""

    @property
    def has_intervals(self) -> bool:
        """Whether there are enough blocks and draws for intervals."""
        return self.why_no_interval is None

    @property
    def interval(self) -> str:
        """What intervals are over, or `range` where there are none."""
        if not self.has_intervals:
            return "range"
        if self.num_draws == 1:
            return "t over blocks"
        return f"t over {self.draw_words} and blocks"

    @property
    def why_no_interval(self) -> str | None:
        """Why there is the range alone, or None where there are intervals."""
        if self.num_blocks < MIN_BLOCKS:
            what = f"test block{'' if self.num_blocks == 1 else 's'}"
            return _ask_for_more(self.num_blocks, what, MIN_BLOCKS)
        if 1 < self.num_draws < MIN_DRAWS:
            return _ask_for_more(self.num_draws, self.draw_words, MIN_DRAWS)
        return None

    @property
    def score(self) -> ScoreFunction:
        """Mean IoU over the classes of the test set."""
        return make_mean_iou(self.present or range(len(self.classes)))

    @property
    def firm_names(self) -> dict[int, str]:
        """Names of the classes of the test set that lie in enough blocks, by id."""
        names = self.classes.names
        return {i: names[i] for i in self.present if i not in self.thin}

    def list_classes(self) -> list[dict[str, Any]]:
        """Return the classes, for `classes` of the summary."""
        return [
            {
                "name": item.name,
                "color": item.color,
                "known": index in self.known,
                "thin": index in self.thin,
            }
            for index, item in enumerate(self.classes.classes)
        ]


def collect_facts(
    job: ComparisonJob, collection: Collection, source: SourceClasses | None
) -> Facts:
    """Return what is the same for all modes.

    Args:
        job: The comparison.
        collection: Its finished runs.
        source: What area 1's model scored there.
    """
    target = job.target
    known = find_known(job.source.card, target.classes)
    labels = collection.take_labels(len(target.classes))
    num_draws, draw_words = _count_draws(job.record)
    return Facts(
        classes=target.classes,
        present=tuple(np.flatnonzero(labels.any(axis=(0, 2))).tolist()),
        known=frozenset(map(target.classes.names.index, known)),
        thin=frozenset(find_thin_classes(labels) if len(labels) else ()),
        num_blocks=collection.num_blocks,
        num_draws=num_draws,
        draw_words=draw_words,
        pixel_ha=target.gsd_m**2 / _M2_PER_HA,
        has_random_blocks=isinstance(target.split, BlockSplit | FoldSplit),
        source=source,
    )


def _count_draws(record: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many runs of a mode differ by chance, and what they are called.

    They are the draws, or of one draw its seeds.
    """
    draws, seeds = int(record["draws"]), int(record.get("seeds", 1))
    return (draws, "draws") if draws > 1 else (seeds, "seeds of one draw")


def _ask_for_more(found: int, what: str, needed: int) -> str:
    verb = "is" if found == 1 else "are"
    return f"there {verb} {found} {what}, and an interval needs {needed}"


def describe_mode(runs: ModeRuns, facts: Facts) -> dict[str, Any]:
    """Return an item of `modes` in the summary.

    `areas` and `probability_best` are None: they are for some modes only.
    """
    joined = [compute_scores(one, facts.classes.names) for one in _flatten(runs.counts)]
    mious = [scores.miou for scores in joined]
    known = [index for index in facts.present if index in facts.known]
    return {
        "mode": runs.mode,
        "is_baseline": runs.mode in BASELINES,
        "draws": len(runs.counts),
        "runs": len(runs.runs),
        "note": runs.note,
        "miou_mean": float(np.mean(mious)),
        "miou_low": min(mious),
        "miou_high": max(mious),
        "interval": _write_interval(
            estimate_score(runs.counts, facts.score), runs, facts
        ),
        "known_miou": _estimate_mean(runs, known, facts),
        "firm_miou": (
            _estimate_mean(runs, list(facts.firm_names), facts) if facts.thin else None
        ),
        "overall_accuracy_mean": _mean([item.overall_accuracy for item in joined]),
        "macro_f1_mean": _mean([item.macro_f1 for item in joined]),
        "probability_best": None,
        "classes": [
            _describe_class(runs, facts, index, joined)
            for index in range(len(facts.classes))
        ],
        "confusion": runs.counts.sum(axis=(0, 1, 2)).tolist(),
        "fields": _describe_fields(runs.units),
        "calibration": _describe_calibration(runs.units),
        "forgetting": describe_forgetting(runs.units, facts.source),
        "areas": None,
        **_describe_cost(runs),
    }


def _flatten(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts of each draw and seed over all blocks, (D * S, C, C + 1)."""
    return counts.sum(axis=2).reshape(-1, *counts.shape[-2:])


def _write_interval(
    estimate: Estimate, runs: ModeRuns, facts: Facts
) -> list[float] | None:
    """Return the interval within 0 and 1, or None where the mode has none."""
    has_one = facts.has_intervals and tell_spread([runs], runs.draws or ())
    if not has_one or estimate.low is None or estimate.high is None:
        return None
    return [max(0.0, estimate.low), min(1.0, estimate.high)]


def _estimate_mean(
    runs: ModeRuns, ids: Sequence[int], facts: Facts
) -> dict[str, Any] | None:
    """Return the mean IoU over some classes, or None over none."""
    if not ids:
        return None
    estimate = estimate_score(runs.counts, make_mean_iou(ids))
    return {"mean": estimate.value, "interval": _write_interval(estimate, runs, facts)}


def _describe_class(
    runs: ModeRuns, facts: Facts, index: int, joined: Sequence[Scores]
) -> dict[str, Any]:
    name = facts.classes.names[index]
    if index not in facts.present:
        scores = dict.fromkeys(("iou_mean", "interval", "precision", "recall"))
        return {"name": name, **scores, "num_pixels": 0}
    together = compute_scores(runs.counts.sum(axis=(0, 1, 2)), facts.classes.names)
    estimate = estimate_score(runs.counts, make_class_iou(index))
    return {
        "name": name,
        "iou_mean": _mean([item.classes[index].iou for item in joined]),
        "interval": (
            None if index in facts.thin else _write_interval(estimate, runs, facts)
        ),
        "precision": together.classes[index].precision,
        "recall": together.classes[index].recall,
        "num_pixels": joined[0].classes[index].num_pixels,
    }


def _describe_fields(units: Sequence[Unit]) -> dict[str, Any] | None:
    scores = []
    for unit in units:
        fields = unit.join("test_fields")
        found = None if fields is None else score_fields(fields)
        if found is None:
            return None
        scores.append(found)
    return {
        "accuracy": _mean([item.accuracy for item in scores]),
        "num_fields": scores[0].num_fields,
    }


def _describe_calibration(units: Sequence[Unit]) -> dict[str, Any] | None:
    found = [unit.join("test_reliability") for unit in units]
    counts = [one.sum(axis=0) for one in found if one is not None and one.any()]
    if len(counts) < len(units):
        return None
    return {
        "ece": _mean([compute_calibration(one).ece for one in counts]),
        "bins": [
            {name: round(value, _BIN_DIGITS) for name, value in asdict(item).items()}
            for item in compute_calibration(sum(counts)).bins
            if item.share  # of an empty one nothing is known
        ],
    }


def describe_areas(runs: ModeRuns, facts: Facts) -> dict[str, Any] | None:
    """Return the hectares of each class in the test blocks, or None.

    They are means over the maps of all draws and seeds. The standard error is that of
    one map, over blocks.

    Args:
        runs: What a mode has done.
        facts: What is the same for all modes.
    """
    mapped, areas, errors, unchecked = [], [], [], []
    for unit, counts in zip(runs.units, _join_units(runs.counts), strict=True):
        pixels = unit.join("test_mapped")
        if pixels is None or not pixels.any():
            return None
        total = pixels.sum(axis=0)
        mapped.append(total)
        areas.append(estimate_areas(counts.sum(axis=0), total, facts.pixel_ha))
        unchecked.append(find_unchecked_share(counts.sum(axis=0), total))
        errors.append(estimate_block_errors(counts, total, facts.pixel_ha))
    labelled = runs.counts[0, 0].sum(axis=(0, 2))
    is_based, note = explain_design(
        has_random_blocks=facts.has_random_blocks,
        share_labelled=float(labelled.sum() / mapped[0].sum()),
    )
    if any(unchecked):
        note += (
            f" {max(unchecked):.1%} of a map at most are classes that no label checks: "
            "they stay as mapped."
        )
    if len(runs.units[0].runs) > 1:
        is_based = False
        note += " Each fold has a model of its own, so this is no one map."
    return {
        "design_based": is_based,
        "note": note,
        "classes": [
            {
                "name": name,
                "mapped_ha": _mean([one[index].mapped_ha for one in areas]),
                "adjusted_ha": _mean([one[index].adjusted_ha for one in areas]),
                "standard_error_ha": float(
                    np.sqrt(np.mean([one[index] ** 2 for one in errors]))
                ),
                "labelled_ha": float(labelled[index]) * facts.pixel_ha,
            }
            for index, name in enumerate(facts.classes.names)
        ],
    }


def _join_units(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts of each draw and seed, (D * S, B, C, C + 1)."""
    return counts.reshape(-1, *counts.shape[2:])


def _describe_cost(runs: ModeRuns) -> dict[str, Any]:
    trainings: list[Mapping[str, Any]] = [run.metrics["training"] for run in runs.runs]
    converged = [item["converged"] for item in trainings]
    peaks = [item.get("peak_memory_bytes") for item in trainings]
    known_peaks = [peak for peak in peaks if peak is not None]
    return {
        "seconds_mean": _mean([item["seconds"] for item in trainings]),
        "peak_memory_bytes": max(known_peaks, default=None),
        "steps_mean": _mean([item["steps"] for item in trainings]),
        "trained_parameters": trainings[0].get("trained_parameters"),
        "converged": None if None in converged else sum(converged),
    }


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def measure_run(run: Run, arrays: Arrays, facts: Facts) -> dict[str, Any]:
    """Return what `results.csv` tells of one run beside its `metrics.json`.

    Args:
        run: The run.
        arrays: What its `counts.npz` holds.
        facts: What is the same for all modes.
    """
    known = {facts.classes.names[index] for index in facts.known}
    ious = [
        item["iou"]
        for item in run.metrics["test"]["classes"]
        if item["name"] in known and item["iou"] is not None
    ]
    reliability = arrays.get("test_reliability")
    fields = arrays.get("test_fields")
    scored = score_fields(fields) if fields is not None else None
    source = facts.source
    measured: dict[str, Any] = {
        "peak_memory_bytes": run.metrics["training"].get("peak_memory_bytes"),
        "known_miou": _mean(ious) if ious else None,
        "ece": None if reliability is None else compute_calibration(reliability).ece,
        "field_accuracy": scored.accuracy if scored else None,
        "forgetting_before": None,
        "forgetting_after": None,
    }
    if source and "source_counts" in arrays:
        measured["forgetting_before"] = score_source(source.counts, source.names)
        measured["forgetting_after"] = score_source(
            arrays["source_counts"], source.names
        )
    return measured
