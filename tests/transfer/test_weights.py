"""Weights: what a plan loads is there bit by bit, and a misfit is told as a whole."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network, find_stages
from cropseg.runtime import keras, start_run
from cropseg.sites.classes import ClassMap, CropClass
from cropseg.sites.site import match_classes
from cropseg.transfer.modes import PLANS, get_plan
from cropseg.transfer.weights import (
    Donor,
    Target,
    convert_slots,
    copy_weights,
    match_weights,
    report_matches,
)

MODES = tuple(
    mode for mode, plan in PLANS.items() if "imagenet" not in plan.start.values()
)
SOURCE_CLASSES = ("soybeans", "wheat", "grassland", "water")


def make_classes(*names, **source_names):
    return ClassMap(
        classes=tuple(
            CropClass(
                name=name,
                color="#267300",
                values=(index + 1,),
                source_names=source_names.get(name, ()),
            )
            for index, name in enumerate(names)
        )
    )


CLASSES = make_classes("corn", "water", "soybeans")


@functools.cache
def build(num_classes, num_bands, width):
    """Build a network once, and return it with its first weights and its stages."""
    start_run(11)
    network = build_network(
        "unet",
        "classic_tiny",
        num_bands=num_bands,
        num_classes=num_classes,
        width=width,
    )
    ones = [1.0] * num_bands
    model = add_normalization(network, mean=ones, std=ones)
    return model, model.get_weights(), find_stages(model, "unet", "classic_tiny")


def make_target(source, classes=CLASSES, *, width=None, bands=None):
    """Return a target as it is before anything is loaded."""
    bands = bands or source.card.bands
    model, first_weights, stages = build(len(classes), len(bands), width)
    model.set_weights(first_weights)
    return Target(
        model=model,
        stages=stages,
        bands=bands,
        classes=classes.names,
        matches=match_classes(source.card.class_names, classes),
    )


def make_donor(source, model=None):
    return Donor(
        title="the source model",
        arrays=read_weights(model or source.model),
        bands=source.card.bands,
        classes=source.card.class_names,
    )


def load(source, mode, classes=CLASSES, **target):
    """Return the new model, its values before, and the report."""
    made, plan = make_target(source, classes, **target), get_plan(mode)
    before = read_weights(made.model)
    donor = make_donor(source)
    matches = match_weights(made, {"source": donor}, plan)
    copy_weights(made.model, matches)
    head = donor if plan.start["head"] == "source" else None
    return made.model, before, report_matches(matches, made, head)


def read_weights(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def list_parts(model):
    """Return the part of every variable, by path."""
    return {
        variable.path: stage.part
        for stage in find_stages(model, "unet", "classic_tiny")
        for name in stage.layers
        for variable in model.get_layer(name).weights
    }


@pytest.mark.parametrize("mode", MODES)
def test_loaded_parts_are_the_source_and_the_others_stay_random(source, mode):
    model, before, _ = load(source, mode)

    theirs, ours = read_weights(source.model), read_weights(model)
    for path, part in list_parts(model).items():
        if part == "head":
            continue
        expected = theirs if part in PLANS[mode].loaded else before
        np.testing.assert_array_equal(ours[path], expected[path], err_msg=path)
    assert (
        before["encoder_1_conv_1/kernel"] != theirs["encoder_1_conv_1/kernel"]
    ).any()


@pytest.mark.parametrize("mode", MODES)
def test_the_report_has_every_variable_once(source, mode):
    model, _, report = load(source, mode)

    rows = [row for row in report.rows if row.action != "skipped"]
    parts = list_parts(model)
    assert sorted(row.variable for row in rows) == sorted(parts)
    for row in rows:
        assert row.part == parts[row.variable]
        loaded = row.part in PLANS[mode].loaded
        assert row.action == ("copied" if loaded else "initialised")
        assert row.reason
        assert row.shape == model_shape(model, row.variable)


def model_shape(model, path):
    return next(tuple(v.shape) for v in model.weights if v.path == path)


@pytest.mark.parametrize("mode", [m for m in MODES if "head" in PLANS[m].loaded])
def test_rows_of_the_head_are_matched_by_class_name(source, mode):
    model, _, _ = load(source, mode)

    theirs, ours = read_weights(source.model), read_weights(model)
    for path in ("head/kernel", "head/bias"):
        for name in ("water", "soybeans"):
            here, there = CLASSES.names.index(name), SOURCE_CLASSES.index(name)
            assert here != there
            np.testing.assert_array_equal(
                ours[path][..., here], theirs[path][..., there]
            )


def test_new_classes_keep_their_random_row(source):
    model, before, report = load(source, "full")

    ours = read_weights(model)
    np.testing.assert_array_equal(
        ours["head/kernel"][..., 0], before["head/kernel"][..., 0]
    )
    assert (ours["head/kernel"][..., 0] != 0).any()
    (row,) = [row for row in report.rows if row.variable == "head/kernel"]
    assert "by class name: water, soybeans" in row.reason
    assert "initialised: corn" in row.reason


def test_classes_that_the_site_does_not_have_are_reported_as_skipped(source):
    _, _, report = load(source, "full")

    skipped = {row.variable for row in report.rows if row.action == "skipped"}
    assert skipped == {
        f"head/{name}[{dropped}]"
        for name in ("kernel", "bias")
        for dropped in ("wheat", "grassland")
    }


def test_nothing_is_skipped_where_the_head_is_random(source):
    _, _, report = load(source, "scratch")

    assert {row.action for row in report.rows} == {"initialised"}


def test_classes_that_are_one_here_start_from_their_average(source):
    classes = make_classes("cereals", "water", cereals=("wheat", "soybeans"))

    model, _, report = load(source, "full", classes)

    theirs, ours = read_weights(source.model), read_weights(model)
    for path in ("head/kernel", "head/bias"):
        expected = (theirs[path][..., 0] + theirs[path][..., 1]) / 2
        np.testing.assert_allclose(ours[path][..., 0], expected, rtol=1e-6)
    skipped = {row.variable for row in report.rows if row.action == "skipped"}
    assert skipped == {"head/kernel[grassland]", "head/bias[grassland]"}


@pytest.mark.parametrize("width", [4, 16])
def test_variables_of_another_shape_are_all_listed_and_nothing_is_changed(
    source, width
):
    target = make_target(source, width=width)
    model = target.model
    before = read_weights(model)
    there = read_weights(source.model)
    wanted = {path: before[path].shape for path in list_parts(model)}
    wanted |= {"head/bias": (4,), "head/kernel": (1, 1, width, 4)}
    expected = {path for path in wanted if wanted[path] != there[path].shape}
    assert "head/kernel" in expected
    assert len(expected) > 20

    with pytest.raises(
        ModelError, match=f"{len(expected)} variables of mode full"
    ) as caught:
        match_weights(target, {"source": make_donor(source)}, get_plan("full"))

    for path in expected:
        told = f"{path} should have shape {wanted[path]}, but has {there[path].shape}"
        assert told in str(caught.value)
    after = read_weights(model)
    assert all((after[path] == before[path]).all() for path in before)


def test_variables_that_the_source_does_not_have_are_listed(source):
    target = make_target(source)
    before = read_weights(target.model)
    inner = keras.Model(
        source.model.input, source.model.get_layer("encoder_3_relu_2").output
    )

    donor = make_donor(source, inner)
    with pytest.raises(ModelError, match="not in the source model") as caught:
        match_weights(target, {"source": donor}, get_plan("full"))

    assert "decoder_1_conv_1/kernel" in str(caught.value)
    assert "head/kernel" in str(caught.value)
    after = read_weights(target.model)
    assert all((after[path] == before[path]).all() for path in before)


def test_filters_of_shared_bands_are_copied_and_new_bands_start_from_their_mean(
    source,
):
    bands = ("nir", "thermal", *source.card.bands[:2])

    model, _, report = load(source, "full", bands=bands)

    path = "encoder_1_conv_1/kernel"
    theirs, ours = read_weights(source.model)[path], read_weights(model)[path]
    place = source.card.bands.index
    shared = [theirs[:, :, place(band)] for band in ("nir", *bands[2:])]
    expected = np.stack([shared[0], np.mean(shared, axis=0), *shared[1:]], axis=2)
    scale = np.linalg.norm(theirs) / np.linalg.norm(expected)
    np.testing.assert_allclose(ours, expected * scale, rtol=1e-5)
    (row,) = [row for row in report.rows if row.variable == path]
    assert row.action == "averaged"
    assert "by band name: nir" in row.reason
    assert "from their mean: thermal" in row.reason
    dropped = {row.variable for row in report.rows if row.reason.endswith("band")}
    gone = set(source.card.bands) - set(bands)
    assert dropped == {f"{path}[{band}]" for band in gone}
    same = "encoder_1_conv_1/bias"
    if same in read_weights(model):
        np.testing.assert_array_equal(
            read_weights(model)[same], read_weights(source.model)[same]
        )


def test_bands_that_are_dropped_are_reported_also_where_the_head_is_random(source):
    bands = source.card.bands[1:]

    _, _, report = load(source, "new_decoder", bands=bands)

    skipped = [row.variable for row in report.rows if row.action == "skipped"]
    assert skipped == [f"encoder_1_conv_1/kernel[{source.card.bands[0]}]"]


def test_slots_of_an_optimizer_follow_their_variables(source):
    target = make_target(source)
    plan = get_plan("full")
    matches = match_weights(target, {"source": make_donor(source)}, plan)
    rng = np.random.default_rng(0)
    slots = {
        v.path: rng.random(v.shape, np.float32) for v in source.model.trainable_weights
    }

    found = convert_slots(matches, slots)

    assert set(found) == {v.path for v in target.model.trainable_weights}
    name = "encoder_2_conv_1/kernel"
    np.testing.assert_array_equal(found[name], slots[name])
    water = [c.index("water") for c in (CLASSES.names, SOURCE_CLASSES)]
    np.testing.assert_array_equal(
        found["head/bias"][water[0]], slots["head/bias"][water[1]]
    )
    assert found["head/bias"][CLASSES.names.index("corn")] == 0
