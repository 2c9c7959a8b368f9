"""The table of transfer modes: every plan that has a name.

To add a mode, add a row. Nothing else knows the modes one by one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from cropseg.errors import UsageError
from cropseg.training.phases import FROZEN, INFERENCE, RECOMPUTED, RUNNING
from cropseg.transfer.plan import ALL, Part, Phase, Start, TransferPlan
from cropseg.transfer.plan_file import is_plan_file, read_plan

PIXEL_FOREST: Final = "pixel_forest"
"""The baseline that is no network."""

PIXEL_FOREST_SUMMARY: Final = (
    "No network: a random forest on single pixels' bands and declared indices."
)

PIXEL_FOREST_WORDS: Final = "a pixel forest"

PIXEL_FOREST_SERVES: Final = "Few labels; what people use who have no network."

PIXEL_FOREST_ORIGIN: Final = "a baseline; Breiman 2001, doi:10.1023/A:1010933404324"

_LOW_RATE: Final = 0.1
"""Rate of transferred layers beside that of the head in `full_low_lr`."""

_STAGE_DECAY: Final = 0.75
"""Rate of a stage by that of the next one. Howard and Ruder 2018 take 1/2.6 between
four layers, so 0.057 for the first one. Over the ten steps from the head of a U-Net to
its first stage that would leave 0.00007, which trains nothing; 0.75 leaves 0.056."""

_L2SP: Final = 0.01
"""Strength of the penalty in `l2sp`. On the prairie pair (U-Net classic, 8 tiles, 40
steps of Adam at 0.001, one seed) the weights moved by 7.8 without a penalty and by
6.2, 2.9 and 1.3 at 0.001, 0.01 and 0.1, with a cross-entropy of 0.87 to 0.89."""

_SOURCE: Mapping[Part, Start] = dict.fromkeys(ALL, "source")
_RANDOM: Mapping[Part, Start] = dict.fromkeys(ALL, "random")

_FULL = Phase(name="all", trained=ALL, batch_norm=dict.fromkeys(ALL, RUNNING))
_HEAD = Phase(
    name="head",
    trained=("head",),
    batch_norm={"encoder": FROZEN, "decoder": FROZEN, "head": RUNNING},
)
_DECODER = Phase(
    name="decoder",
    trained=("decoder", "head"),
    batch_norm={"encoder": FROZEN, "decoder": RUNNING, "head": RUNNING},
)

_FULL_PLAN = TransferPlan(
    mode="full",
    words="full retraining from area 1",
    summary="Every layer starts from the source and is retrained.",
    serves="Enough labels, or an area unlike the first one; the default to beat.",
    origin="Yosinski 2014, arXiv:1411.1792",
    start=_SOURCE,
    phases=(_FULL,),
)

_PLANS = (
    TransferPlan(
        mode="zero_shot",
        words="area 1's model as it is",
        summary="No training: the source as it is, limited to the site's classes.",
        serves="No labels at all; says what a transfer has to beat.",
        origin="a baseline",
        start=_SOURCE,
        phases=(),
    ),
    TransferPlan(
        mode="joint",
        words="training on both areas at once",
        summary="Tiles of both sites in every batch, from the source's weights.",
        serves="The source's tiles are at hand and should not be forgotten.",
        origin="Caruana 1997, doi:10.1023/A:1007379606734",
        start=_SOURCE,
        phases=(_FULL,),
        source_share=0.5,
    ),
    TransferPlan(
        mode="scratch",
        words="training from scratch",
        summary="Random weights; everything is trained.",
        serves="Many labels, a very different area; says whether to transfer at all.",
        origin="a baseline; He 2019, arXiv:1811.08883",
        start=_RANDOM,
        phases=(_FULL,),
    ),
    TransferPlan(
        mode="imagenet",
        words="training from ImageNet's encoder",
        summary="The encoder starts from ImageNet, the rest at random; all is trained.",
        serves="No model of another area; three of the bands are red, green and blue.",
        origin="Iglovikov 2018, arXiv:1801.05746",
        start={"encoder": "imagenet", "decoder": "random", "head": "random"},
        phases=(_FULL,),
    ),
    _FULL_PLAN,
    replace(
        _FULL_PLAN,
        mode="full_low_lr",
        words="retraining with a slow encoder and decoder",
        summary="As full, the encoder and decoder at a tenth of the head's rate.",
        serves="Few labels in an area like the first one.",
        origin="Chen 2015 (DeepLab), arXiv:1412.7062",
        phases=(replace(_FULL, rates={"encoder": _LOW_RATE, "decoder": _LOW_RATE}),),
    ),
    replace(
        _FULL_PLAN,
        mode="discriminative",
        words="retraining with slower rates towards the input",
        summary="As full, the rate a quarter lower at each stage from the head down.",
        serves="Few labels; the first stages are worth keeping.",
        origin="Howard and Ruder 2018, arXiv:1801.06146, section 3.2; the step of "
        "He 2022, arXiv:2111.06377",
        phases=(replace(_FULL, rate_decay=_STAGE_DECAY),),
    ),
    TransferPlan(
        mode="frozen_encoder",
        words="retraining with the encoder locked",
        summary="Encoder locked, batch statistics too; decoder and head are trained.",
        serves="Few labels in an area like the first one; cheaper than full.",
        origin="Yosinski 2014, arXiv:1411.1792",
        start=_SOURCE,
        phases=(_DECODER,),
    ),
    TransferPlan(
        mode="frozen_encoder_bn_train",
        words="retraining with the encoder's filters locked",
        summary="As frozen_encoder, but the encoder's batch normalisation is trained.",
        serves="Few labels; another sensor or season shifts the values.",
        origin="what encoder_freeze of segmentation-models does",
        start=_SOURCE,
        phases=(replace(_DECODER, batch_norm=dict.fromkeys(ALL, RUNNING)),),
    ),
    replace(
        _FULL_PLAN,
        mode="full_bn_source",
        words="full retraining with area 1's batch statistics",
        summary="As full, with batch normalisation in inference mode throughout.",
        serves="Batches too small for batch statistics of their own.",
        origin="the transfer learning guide of Keras",
        phases=(replace(_FULL, batch_norm=dict.fromkeys(ALL, INFERENCE)),),
    ),
    TransferPlan(
        mode="head_only",
        words="retraining of the last layer",
        summary="Only the last layer is trained, on the source's features.",
        serves="Very few labels in an area much like the first one; cheapest of all.",
        origin="Razavian 2014, arXiv:1403.6382",
        start=_SOURCE,
        phases=(_HEAD,),
        caches_features=True,
    ),
    TransferPlan(
        mode="new_decoder",
        words="a new decoder on area 1's encoder",
        summary="Encoder reused and locked; decoder and head start at random.",
        serves="The same landscape with other classes or other labels.",
        origin="the usual way of using a pretrained backbone",
        start={"encoder": "source", "decoder": "random", "head": "random"},
        phases=(_DECODER,),
    ),
    TransferPlan(
        mode="lp_ft",
        words="retraining in two steps",
        summary="The head first, then everything at a tenth of the rate.",
        serves="Few labels, and maps beyond them: full would bend the features.",
        origin="Kumar 2022, arXiv:2202.10054",
        start=_SOURCE,
        phases=(
            replace(_HEAD, share=0.5),
            replace(_FULL, share=0.5, rates=dict.fromkeys(ALL, _LOW_RATE)),
        ),
    ),
    TransferPlan(
        mode="gradual",
        words="retraining that unfreezes step by step",
        summary="Head, then decoder, then encoder stages from the top, a rate search "
        "before each.",
        serves="Few labels, and time to unfreeze step by step.",
        origin="Howard and Ruder 2018, arXiv:1801.06146, section 3.3; Smith 2017, "
        "arXiv:1506.01186",
        start=_SOURCE,
        phases=(
            replace(_HEAD, share=0.25, searches_rate=True),
            replace(_DECODER, share=0.25, searches_rate=True),
            replace(
                _FULL,
                name="encoder",
                share=0.5,
                searches_rate=True,
                each_encoder_stage=True,
            ),
        ),
    ),
    TransferPlan(
        mode="stem_only",
        words="retraining of the first stage",
        summary="Only the first stage of the encoder is trained.",
        serves="The same crops through another sensor: the shift is in the input.",
        origin="Lee 2023 (surgical fine-tuning), arXiv:2210.11466",
        start=_SOURCE,
        phases=(
            Phase(
                name="stem",
                trained=("encoder_1",),
                batch_norm={"encoder": RUNNING, "decoder": FROZEN, "head": FROZEN},
            ),
        ),
    ),
    TransferPlan(
        mode="bn_only",
        words="retraining of batch normalisation",
        summary="Only batch normalisation: scale and shift trained, statistics run.",
        serves="Another sensor or season; few numbers to train.",
        origin="Frankle 2021, arXiv:2003.00152",
        start=_SOURCE,
        phases=(
            Phase(name="norms", trained=(), batch_norm=dict.fromkeys(ALL, RUNNING)),
        ),
    ),
    TransferPlan(
        mode="adabn",
        words="area 1's model with new batch statistics",
        summary="No labels: batch statistics are measured anew on the target.",
        serves="No labels, and another sensor or season shifts the values.",
        origin="Li 2017, arXiv:1603.04779",
        start=_SOURCE,
        phases=(
            Phase(
                name="statistics",
                trained=(),
                batch_norm=dict.fromkeys(ALL, RECOMPUTED),
            ),
        ),
    ),
    replace(
        _FULL_PLAN,
        mode="l2sp",
        words="full retraining held near area 1's weights",
        summary="As full, with a penalty on moving away from the source's weights.",
        serves="Few labels, and area 1 should not be forgotten.",
        origin="Li 2018, arXiv:1802.01483, equation 3",
        l2sp=_L2SP,
    ),
    replace(
        _FULL_PLAN,
        mode="resume",
        words="area 1's training continued",
        summary="The source's training goes on with the target's tiles.",
        serves="The two areas are one task, and the second came later.",
        origin="users who ask that all state of the first training be retained",
        optimizer="source",
    ),
    replace(
        _FULL_PLAN,
        mode="self_supervised",
        words="retraining after training without labels",
        summary="The encoder is first trained on tiles without labels, then as full.",
        serves="Few labels, many images of the target, and time.",
        origin="Xie 2022 (SimMIM), arXiv:2111.09886",
        pretrains=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Modes that take a value after a colon."""

    placeholder: str
    """What `cropseg modes` shows for the value, such as `N`."""
    summary: str
    """What they do, in one sentence about any value."""
    example: str
    """A value that can be used."""
    build: Callable[[str], TransferPlan]
    """Returns the plan of a value, or raises `UsageError`."""


def _freeze_first(value: str) -> TransferPlan:
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", value):
        raise UsageError(
            f"freeze_first takes a number of encoder stages, 1 or more, such as "
            f"freeze_first:2; got {value!r}."
        )
    number = int(value)
    locked = tuple(f"encoder_{index}" for index in range(1, number + 1))
    which = f"{number} encoder stages" if number > 1 else "encoder stage"
    return replace(
        _FULL_PLAN,
        mode=f"freeze_first:{number}",
        words=f"retraining with the first {which} locked",
        summary=f"The first {which} {'are' if number > 1 else 'is'} locked, the rest "
        "is trained.",
        serves="Few labels; the first stages see edges and textures alike everywhere.",
        phases=(replace(_FULL, locked=locked),),
    )


def _freeze_layers(value: str) -> TransferPlan:
    patterns = ",".join(item.strip() for item in value.split(",") if item.strip())
    if not patterns:
        raise UsageError(
            "freeze_layers takes patterns of layer names, such as "
            "freeze_layers:encoder_1_*,bn_*; got none."
        )
    return replace(
        _FULL_PLAN,
        mode=f"freeze_layers:{patterns}",
        words=f"retraining with layers {patterns} locked",
        summary=f"Layers named {patterns} are locked, the rest is trained.",
        serves="A network of your own, whose layers you know by name.",
        origin="users who ask how to lock these layers",
        phases=(replace(_FULL, locked=(f"layers:{patterns}",)),),
    )


PLANS: Mapping[str, TransferPlan] = {plan.mode: plan for plan in _PLANS}
"""Every mode of a network with a fixed name."""

FAMILIES: Mapping[str, Family] = {
    "freeze_first": Family(
        placeholder="N",
        summary="The first N encoder stages are locked, the rest is trained.",
        example="2",
        build=_freeze_first,
    ),
    "freeze_layers": Family(
        placeholder="PATTERN",
        summary="Layers named by PATTERN are locked, the rest is trained.",
        example="encoder_1_*",
        build=_freeze_layers,
    ),
}
"""Modes that take a value after a colon, such as `freeze_first:2`."""


def list_mode_names() -> list[str]:
    """Return every mode of the table, as `cropseg modes` shows them."""
    families = [f"{name}:{family.placeholder}" for name, family in FAMILIES.items()]
    return [*PLANS, *families, PIXEL_FOREST]


def name_mode(mode: str) -> str:
    """Return what a sentence calls a mode: its words, or its name.

    Args:
        mode: The name of a mode, of the table or of a file's plan.

    Example:
        >>> name_mode("full"), name_mode("mine")
        ('full retraining from area 1', 'mine')
        >>> name_mode("freeze_first:2")
        'retraining with the first 2 encoder stages locked'
    """
    if mode == PIXEL_FOREST:
        return PIXEL_FOREST_WORDS
    is_named = mode in PLANS or mode.partition(":")[0] in FAMILIES
    return get_plan(mode).words if is_named else mode


def get_plan(mode: str) -> TransferPlan:
    """Return the plan of a mode.

    Args:
        mode: A name of the table, `freeze_first:2` and the like, or the path of a
            YAML file with a plan.

    Raises:
        UsageError: If there is no such mode, or the file has no plan that works.
    """
    if mode in PLANS:
        return PLANS[mode]
    if mode == PIXEL_FOREST:
        raise UsageError(f"{PIXEL_FOREST} is no network, and has no plan.")
    if is_plan_file(mode):
        return read_plan(mode, presets=PLANS, reserved=(*FAMILIES, PIXEL_FOREST))
    name, colon, value = mode.partition(":")
    if name in FAMILIES and colon:
        return FAMILIES[name].build(value)
    near = difflib.get_close_matches(mode, list_mode_names(), n=1, cutoff=0.0)[0]
    raise UsageError(
        f"No mode {mode!r}; the nearest is {near!r}. Modes: "
        f"{', '.join(list_mode_names())}; or a YAML file with a plan."
    )
