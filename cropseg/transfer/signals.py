"""What the evidence says: whether labels are few, and whether two areas are alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cropseg.transfer.evidence import ClassLabels, Evidence
from cropseg.transfer.rule_of_thumb import LIMITS, Level


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One answer to whether two areas are alike."""

    name: str
    """What it comes from."""
    level: Level | None
    """The answer; None where there is none."""
    text: str
    """The answer and its numbers, in a sentence."""


def judge_amount(evidence: Evidence) -> tuple[Level, str]:
    """Say whether labels are few or many, and why."""
    enough = [item.name for item in evidence.labels if _has_enough(item)]
    share = len(enough) / len(evidence.labels)
    level: Level = "high" if share >= LIMITS["class_share"].value else "low"
    counts = f"{evidence.num_pixels:,} labelled pixels in {evidence.num_tiles} tiles"
    needed = [
        f"{LIMITS['class_pixels'].value:,.0f} pixels",
        f"{LIMITS['class_tiles'].value:.0f} tiles",
    ]
    fields = [item.fields for item in evidence.labels if item.fields is not None]
    if fields:
        counts += f" and {sum(fields)} fields"
        needed.append(f"{LIMITS['class_fields'].value:.0f} fields")
    word = "Many" if level == "high" else "Few"
    return level, (
        f"{word} labels: {counts}; {len(enough)} of {len(evidence.labels)} classes "
        f"have {', '.join(needed)} each (many from "
        f"{LIMITS['class_share'].value:.0%} of the classes on)."
    )


def _has_enough(item: ClassLabels) -> bool:
    return (
        item.pixels >= LIMITS["class_pixels"].value
        and item.tiles >= LIMITS["class_tiles"].value
        and (item.fields is None or item.fields >= LIMITS["class_fields"].value)
    )


def find_deciding(signals: Sequence[Signal]) -> Signal:
    """Return the signal that decides whether two areas are alike.

    They are alike if nothing says otherwise: the first signal that says low decides,
    and if there is none, the first that says high. For where areas are called alike
    the encoder is locked, and the two mistakes do not cost the same. With 6 tiles,
    locking an encoder whose features had moved cost 0.05 to 0.13 mIoU in four made-up
    pairs of the demo; with 4 tiles, training all of one whose features had not cost
    0.02 on the prairie pair. Bands are asked only where there is no other answer,
    since normalisation can undo what they show.
    """
    answers = [signal for signal in signals[:-1] if signal.level is not None]
    lows = [signal for signal in answers if signal.level == "low"]
    return (lows or answers or signals[-1:])[0]


def list_signals(evidence: Evidence) -> list[Signal]:
    """Return what tells whether two areas are alike; the last one gives an answer."""
    return [
        _weigh_classes(evidence),
        _weigh_zero_shot(evidence),
        _weigh_features(evidence),
        _weigh_bands(evidence),
    ]


def _weigh_classes(evidence: Evidence) -> Signal:
    """Say that areas are unlike where most labels are of new classes; else nothing."""
    share = evidence.shared_share
    text = (
        f"Classes: {share:.0%} of the labelled pixels are of classes that "
        f"{evidence.source_site} has (unlike below "
        f"{LIMITS['shared_share'].value:.0%})."
    )
    is_low = share < LIMITS["shared_share"].value
    return Signal(name="classes", level="low" if is_low else None, text=text)


def _weigh_zero_shot(evidence: Evidence) -> Signal:
    scored, limit = evidence.zero_shot, LIMITS["zero_shot_ratio"].value
    if scored is None:
        return Signal(
            name="zero_shot",
            level=None,
            text="The score without training is not known: some classes of the site "
            "are one class of the model, or no label is of a class that it knows.",
        )
    text = (
        f"Without training, the model scores mIoU {scored.miou:.3f} on these labels, "
        f"over {scored.num_classes} shared classes"
    )
    few = evidence.num_tiles < LIMITS["zero_shot_tiles"].value
    if few or not scored.own_miou:
        why = (
            f"{evidence.num_tiles} tiles are too few to trust it (from "
            f"{LIMITS['zero_shot_tiles'].value:.0f} on)"
            if few
            else "its card has no score of area 1 to set it against"
        )
        return Signal(name="zero_shot", level=None, text=f"{text}; {why}.")
    ratio = scored.miou / scored.own_miou
    is_high = ratio >= limit and scored.miou > scored.majority_miou
    return Signal(
        name="zero_shot",
        level="high" if is_high else "low",
        text=f"{text}; in {evidence.source_site} it scores {scored.own_miou:.3f} over "
        f"the same, a ratio of {ratio:.2f} (similar from {limit:.2f} on, and above "
        f"{scored.majority_miou:.3f}, which the commonest class alone scores).",
    )


def _weigh_features(evidence: Evidence) -> Signal:
    distance, halves = evidence.feature_distance, evidence.half_distance
    if distance is None or halves is None:
        return Signal(
            name="features",
            level=None,
            text="How far the features are apart is not known: the model's card has "
            "none or reads other bands, or there are too few tiles.",
        )
    limit = max(
        LIMITS["feature_ratio"].value * halves, LIMITS["feature_distance"].value
    )
    return Signal(
        name="features",
        level="high" if distance <= limit else "low",
        text=f"The encoder's features are {distance:.2f} standard deviations from "
        f"those of {evidence.source_site}, whose two sides are {halves:.2f} apart "
        f"(similar up to {limit:.2f}).",
    )


def _weigh_bands(evidence: Evidence) -> Signal:
    """Give an answer in any case, so that there is one."""
    distances, limit = evidence.band_distances, LIMITS["band_distance"].value
    if not distances:
        return Signal(name="bands", level="low", text="No band can be compared.")
    middle = statistics.median(distances.values())
    return Signal(
        name="bands",
        level="high" if middle < limit else "low",
        text=f"Band values are {middle:.2f} standard deviations from those of "
        f"{evidence.source_site}, in the median of {len(distances)} bands (similar "
        f"below {limit:g}).",
    )
