"""The rule of thumb of `cropseg advise`, as data: its limits and its table.

To change the rule, change a row. Nothing else knows the numbers or the modes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from cropseg.transfer.modes import PIXEL_FOREST

Level = Literal["low", "high"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Where low ends and high begins."""

    value: float
    """The number."""
    reason: str
    """Why this one."""


LIMITS: Final[Mapping[str, Limit]] = MappingProxyType(
    {
        "class_pixels": Limit(
            value=20_000,
            reason="With 16 tiles of 128 pixels on the prairie pair, three of eight "
            "classes had as many, and locking the encoder still scored more than full "
            "training (0.505 to 0.499, means of two draws).",
        ),
        "class_tiles": Limit(
            value=16,
            reason="Fewer tiles show a class in a handful of surroundings, however "
            "many pixels they hold.",
        ),
        "class_fields": Limit(
            value=30,
            reason="A field is one sowing date, variety and soil; about 30 samples is "
            "where a spread is usually taken as known.",
        ),
        "class_share": Limit(
            value=0.75,
            reason="Rare classes never have many labels, and should not decide alone.",
        ),
        "zero_shot_tiles": Limit(
            value=4,
            reason="On the prairie pair, eight draws of 2 tiles gave ratios from 0.73 "
            "to 1.01, eight draws of 4 tiles 0.85 to 1.00.",
        ),
        "zero_shot_ratio": Limit(
            value=2 / 3,
            reason="A model that keeps two thirds of its score knows the area; on the "
            "prairie pair it kept 0.95, and reusing it won.",
        ),
        "feature_ratio": Limit(
            value=1.5,
            reason="An area is no stranger than area 1 is to itself if it is about as "
            "far away as its two sides; on the prairie pair the ratio was 0.89.",
        ),
        "feature_distance": Limit(
            value=0.3,
            reason="Below this, two normal distributions share 88 % of their mass, so "
            "it is near however uniform area 1 is.",
        ),
        "band_distance": Limit(
            value=1.0,
            reason="Where `cropseg check` begins to call a band far.",
        ),
        "shared_share": Limit(
            value=0.5,
            reason="Where most labels are of classes that area 1 does not have, its "
            "head is of little use.",
        ),
    }
)
"""Every limit of the rule. None has a source: they are rules of thumb, chosen with the
comparisons of one real pair of areas and of five made-up ones in view, which therefore
cannot test them."""


@dataclass(frozen=True, kw_only=True)
class AdviceCell:
    """One of the four cells of the table."""

    title: str
    """What is the case, and what to do."""
    modes: tuple[str, ...]
    """Modes that it suggests."""
    checks: tuple[str, ...] = ()
    """Modes that say whether the suggestion holds."""


CELLS: Final[Mapping[tuple[Level, Level], AdviceCell]] = MappingProxyType(
    {
        ("low", "low"): AdviceCell(
            title="few labels, an unlike area: unfreeze more layers, carefully",
            modes=("gradual", "full_low_lr", "freeze_first:2"),
            checks=("scratch",),
        ),
        ("low", "high"): AdviceCell(
            title="few labels, a similar area: train few layers",
            modes=("head_only", "frozen_encoder", "lp_ft"),
        ),
        ("high", "low"): AdviceCell(
            title="many labels, an unlike area: start from area 1 and train all",
            modes=("full",),
            checks=("scratch",),
        ),
        ("high", "high"): AdviceCell(
            title="many labels, a similar area: fine-tune all",
            modes=("full", "discriminative", "l2sp"),
        ),
    }
)
"""The table, by amount of labels and similarity."""

ALWAYS_COMPARED: Final = ("full", "zero_shot", PIXEL_FOREST)
"""What any suggestion has to beat: the usual way, no training, and no network."""
