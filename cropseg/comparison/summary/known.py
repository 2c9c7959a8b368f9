"""Which classes of the target area 1's own model can tell apart."""

from __future__ import annotations

from typing import Final

from cropseg.models.card import Card
from cropseg.sites.classes import ClassMap
from cropseg.sites.site import match_classes
from cropseg.transfer.evidence import SCORED_PARTS

KNOWN_IOU: Final = 0.2
"""A class with at least this IoU in area 1 can be told apart there."""


def find_known(card: Card, classes: ClassMap) -> list[str]:
    """Return the classes that area 1's own model can tell apart.

    They are those shared by name whose IoU in area 1 is `KNOWN_IOU` or more: on its
    test part, or on its val part where the card has no other score. Of a class that is
    several in area 1 the best one counts. Where the card has no score at all, as that
    of a foreign model, all shared classes are taken.

    Args:
        card: Card of area 1's model.
        classes: Classes of the target.
    """
    matches = match_classes(card.class_names, classes)
    ious = read_own_ious(card)
    if not ious:
        return list(matches)
    return [
        name
        for name, own_names in matches.items()
        if max((ious.get(own, 0.0) for own in own_names), default=0.0) >= KNOWN_IOU
    ]


def read_own_ious(card: Card) -> dict[str, float]:
    """Return the IoU of area 1's classes there; empty where the card has none."""
    ious: dict[str, float] = {}
    for part in reversed(SCORED_PARTS):  # the first one overwrites the others
        rows = (card.scores.get(part) or {}).get("classes", ())
        ious |= {row["name"]: row["iou"] for row in rows if row["iou"] is not None}
    return ious


def describe_known(card: Card) -> str:
    """Say which classes are called known, in a sentence."""
    if not read_own_ious(card):
        return (
            "Known classes are those that area 1 has by name: its model's card has no "
            "scores."
        )
    return (
        "Known classes are those that area 1 has by name and whose IoU is at least "
        f"{KNOWN_IOU} there, on its test part (on its val part where that has none)."
    )
