"""Every mode, run on a tiny model: what moved, what did not, what came from where.

`make test-jax` runs this file on JAX.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest

from cropseg.models.bundle import load_bundle
from cropseg.models.weight_report import hash_variables
from cropseg.sites.site import open_site
from cropseg.transfer.modes import FAMILIES, PIXEL_FOREST, PLANS, list_mode_names
from cropseg.transfer.target import ReuseOptions
from cropseg.transfer.transfer import transfer_to_site

E = ("encoder_1", "encoder_2", "encoder_3")
D = ("decoder_1", "decoder_2")
ALL = (*E, *D, "head")
NORMS = (*E, *D)
"""Stages with batch normalisation: the head has none."""


@dataclass(frozen=True)
class Expected:
    """What a mode does, by stage."""

    start: tuple[str, ...]
    """Stages that start from the source."""
    weights: tuple[str, ...] = ()
    """Stages whose kernels and biases move."""
    affine: tuple[str, ...] = ()
    """Stages whose scales and shifts move."""
    statistics: tuple[str, ...] = ()
    """Stages whose batch statistics move."""


FULL = Expected(ALL, ALL, NORMS, NORMS)
LOCKED_2 = ("encoder_3", *D)

EXPECTED = {
    "zero_shot": Expected(ALL),
    "joint": FULL,
    "scratch": Expected((), ALL, NORMS, NORMS),
    "full": FULL,
    "full_low_lr": FULL,
    "discriminative": FULL,
    "frozen_encoder": Expected(ALL, (*D, "head"), D, D),
    "frozen_encoder_bn_train": Expected(ALL, (*D, "head"), NORMS, NORMS),
    "full_bn_source": Expected(ALL, ALL, NORMS, ()),
    "freeze_first:2": Expected(ALL, (*LOCKED_2, "head"), LOCKED_2, LOCKED_2),
    "freeze_layers:encoder_1_*,decoder_2_conv_*": Expected(
        ALL,
        ("encoder_2", "encoder_3", "decoder_1", "head"),
        ("encoder_2", "encoder_3", *D),
        ("encoder_2", "encoder_3", *D),
    ),
    "head_only": Expected(ALL, ("head",)),
    "new_decoder": Expected(E, (*D, "head"), D, D),
    "lp_ft": FULL,
    "gradual": FULL,
    "stem_only": Expected(ALL, E[:1], E[:1], E[:1]),
    "bn_only": Expected(ALL, (), NORMS, NORMS),
    "adabn": Expected(ALL, (), (), NORMS),
    "l2sp": FULL,
    "resume": FULL,
    "self_supervised": FULL,
}


@pytest.fixture(scope="module")
def area_3(make_site, tmp_path_factory):
    """Return a site without a new class, for modes that do not train the head."""
    folder = tmp_path_factory.mktemp("sites") / "area_3"
    return open_site(make_site(folder, class_names=("water", "soybeans"), seed=1))


@pytest.fixture(scope="module")
def run_mode(area_1, area_2, area_3, source_path, tmp_path_factory):
    """Return a function that runs a mode on area 2, or 3."""

    def run(mode):
        return transfer_to_site(
            area_3 if mode in {"stem_only", "bn_only"} else area_2,
            source_path,
            mode=mode,
            out_dir=tmp_path_factory.mktemp("runs") / "run",
            labels="6tiles",
            source_site=area_1,
            workers=1,
            batch_size=2,
            epochs=2,
            steps_per_epoch=3,
            seed=1,
        )

    return run


def read_rows(run):
    rows = json.loads((run.out_dir / "weights.json").read_text(encoding="utf-8"))
    return [row for row in rows if row["action"] != "skipped"]


def sort_kind(variable):
    """Return which of the three kinds a variable is."""
    name = variable.rpartition("/")[2]
    if name.startswith("moving"):
        return "statistics"
    return "affine" if name in {"gamma", "beta"} else "weights"


def hash_array(array):
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()[:8]


def test_every_mode_of_the_table_is_expected_here():
    families = {mode.partition(":")[0] for mode in EXPECTED if ":" in mode}
    assert families == set(FAMILIES)
    plain = {mode for mode in EXPECTED if ":" not in mode}
    assert plain | {"imagenet"} == set(PLANS)
    assert len(list_mode_names()) == len(PLANS) + len(FAMILIES) + 1
    assert PIXEL_FOREST in list_mode_names()


QUICK = "frozen_encoder"
"""The mode that runs in every test run; the others take minutes together."""


@pytest.mark.parametrize(
    "mode",
    [
        mode if mode == QUICK else pytest.param(mode, marks=pytest.mark.slow)
        for mode in EXPECTED
    ],
)
def test_exactly_what_the_mode_says_moves(mode, run_mode, source_path):
    expected = EXPECTED[mode]
    run = run_mode(mode)
    bundle = load_bundle(run.model_path)
    stages = {
        layer: stage.name for stage in bundle.card.stages for layer in stage.layers
    }
    after = hash_variables(bundle.model)
    source = hash_variables(load_bundle(source_path).model)

    rows = read_rows(run)

    assert {row["variable"] for row in rows} == {
        v.path
        for v in bundle.model.weights
        if not v.path.startswith("band_normalization")
    }
    for row in rows:
        variable = row["variable"]
        stage = stages[variable.partition("/")[0]]
        kind = sort_kind(variable)
        pretrained = mode == "self_supervised" and row["part"] == "encoder"
        moves = stage in getattr(expected, kind)
        if mode.startswith("freeze_layers") and stage == "decoder_2":
            moves = kind != "weights"
        assert (row["hash_before"] != row["hash_after"]) == moves, row
        assert row["hash_after"] == after[variable]
        copied = stage in expected.start
        assert (row["action"] in {"copied", "averaged"}) == copied, row
        if stage != "head" and not pretrained and mode != "resume":
            assert (row["hash_before"] == source[variable]) == copied, row
        told = {
            "statistics": {"statistics run", "statistics recomputed"},
            "affine": {"trained"},
            "weights": {"trained"},
        }[kind]
        assert (row["training"] in told) == moves, row
        assert moves or row["training"] == "locked", row


@pytest.mark.slow
def test_imagenet_fills_the_encoder_and_nothing_else(
    build_bundle, area_2, tmp_path, write_imagenet
):
    from cropseg.models.bundle import save_bundle

    path, arrays = write_imagenet("resnet18")
    bands = area_2.bands
    source = build_bundle(
        mean=(0.0,) * len(bands),
        std=(1.0,) * len(bands),
        encoder="resnet18",
        seed=0,
        site="area-1",
        classes=[
            {"name": name, "color": "#000000", "train_pixels": 1}
            for name in area_2.classes.names
        ],
        bands=bands,
        gsd_m=area_2.gsd_m,
        lineage={"mode": "train"},
        fingerprint="-",
    )
    save_bundle(source.model, source.card, tmp_path / "model.keras")

    run = transfer_to_site(
        area_2,
        tmp_path / "model.keras",
        mode="imagenet",
        out_dir=tmp_path / "run",
        labels="4tiles",
        reuse=ReuseOptions(imagenet_weights=path),
        batch_size=2,
        epochs=1,
        steps_per_epoch=1,
    )

    for row in read_rows(run):
        name, part = row["variable"], row["part"]
        if part != "encoder" or name.startswith("bn_data"):
            assert row["action"] == "initialised", row
        elif name == "conv0/kernel":
            assert row["action"] == "averaged", row
            assert "red, green, blue" in row["reason"]
        else:
            assert row["action"] == "copied", row
            assert row["hash_before"] == hash_array(arrays[name]), row
        moves = row["training"] in {"trained", "statistics run"}
        assert moves == (row["hash_before"] != row["hash_after"]), row
