"""Weights: what a plan loads is there bit by bit, and a misfit is told as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network, find_stages
from cropseg.runtime import keras, start_run
from cropseg.sites.classes import ClassMap, CropClass
from cropseg.transfer.plan import PLANS, get_plan
from cropseg.transfer.weights import load_weights, lock_layers

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


def build(num_classes=3, *, num_bands=5, width=None):
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
    return model, find_stages(model, "unet", "classic_tiny")


def load(source, mode, classes=CLASSES):
    """Return the new model, its values before, and the report."""
    model, stages = build(len(classes))
    before = read_weights(model)
    report = load_weights(
        model,
        stages,
        source.model,
        card=source.card,
        classes=classes,
        plan=get_plan(mode),
    )
    return model, before, report


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


@pytest.mark.parametrize("mode", PLANS)
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


@pytest.mark.parametrize("mode", PLANS)
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


@pytest.mark.parametrize("mode", [m for m, plan in PLANS.items() if plan.loaded])
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


def test_zero_shot_refuses_to_average(source):
    classes = make_classes("cereals", "water", cereals=("wheat", "soybeans"))

    with pytest.raises(ModelError, match="cereals has several"):
        load(source, "zero_shot", classes)


def test_zero_shot_gives_a_class_that_the_source_does_not_know_no_chance(source):
    model, _, report = load(source, "zero_shot")
    pixels = np.random.default_rng(0).normal(0, 1e3, (2, 8, 8, 5)).astype("float32")

    probabilities = np.asarray(model(pixels))

    assert (probabilities[..., 0] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    (row,) = [row for row in report.rows if row.variable == "head/kernel"]
    assert "never predicted: corn" in row.reason


def test_a_site_that_shares_no_class_is_refused(source):
    with pytest.raises(ModelError, match="No class is shared"):
        load(source, "full", make_classes("corn", "fallow"))


@pytest.mark.parametrize("width", [4, 16])
def test_variables_of_another_shape_are_all_listed_and_nothing_is_changed(
    source, width
):
    model, stages = build(width=width)
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
        load_weights(
            model,
            stages,
            source.model,
            card=source.card,
            classes=CLASSES,
            plan=get_plan("full"),
        )

    for path in expected:
        told = f"{path} should have shape {wanted[path]}, but has {there[path].shape}"
        assert told in str(caught.value)
    after = read_weights(model)
    assert all((after[path] == before[path]).all() for path in before)


def test_variables_that_the_source_does_not_have_are_listed(source):
    model, stages = build()
    before = read_weights(model)
    inner = keras.Model(
        source.model.input, source.model.get_layer("encoder_3_relu_2").output
    )

    with pytest.raises(ModelError, match="not in the source model") as caught:
        load_weights(
            model,
            stages,
            inner,
            card=source.card,
            classes=make_classes("corn", "water", "soybeans"),
            plan=get_plan("full"),
        )

    assert "decoder_1_conv_1/kernel" in str(caught.value)
    assert "head/kernel" in str(caught.value)
    after = read_weights(model)
    assert all((after[path] == before[path]).all() for path in before)


def test_a_stem_for_other_bands_is_told(source):
    model, stages = build(num_bands=4)

    with pytest.raises(ModelError, match=r"1 variables .*\n.*encoder_1_conv_1/kernel"):
        load_weights(
            model,
            stages,
            source.model,
            card=source.card,
            classes=CLASSES,
            plan=get_plan("frozen_encoder"),
        )


@pytest.mark.parametrize("mode", PLANS)
def test_layers_are_locked_as_the_plan_says(mode):
    model, stages = build()
    plan = PLANS[mode]

    inference = lock_layers(model, stages, plan)

    trainable = {variable.path for variable in model.trainable_weights}
    norms = {
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    for path, part in list_parts(model).items():
        layer, name = path.split("/")
        policy = plan.batch_norm[part]
        if layer not in norms:
            expected = part in plan.trained
        elif name.startswith("moving"):
            expected = False
            kept = policy.statistics == "source" and policy.affine == "trained"
            assert (layer in inference) == kept
            locked = policy.statistics == "source" and policy.affine == "locked"
            # A batch normalisation that is locked is in inference mode (HAZARDS 10).
            assert model.get_layer(layer).trainable != locked
        else:
            expected = policy.affine == "trained"
        assert (path in trainable) == expected, path
