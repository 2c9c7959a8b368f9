"""The weight report: every variable once, with what a training did to it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cropseg.models import zoo
from cropseg.models.weight_report import (
    WeightReport,
    WeightRow,
    hash_variables,
    report_initialized,
)


@pytest.fixture
def model(make_bundle):
    return make_bundle().model


@pytest.fixture
def report(model):
    return report_initialized(model, zoo.find_stages(model, "unet", "classic_tiny"))


def move(variable):
    variable.assign(np.asarray(variable) + 1)


def test_every_weight_is_reported_once_with_its_part_and_shape(model, report):
    rows = {row.variable: row for row in report.rows}
    assert len(rows) == len(report.rows) == len(model.weights)
    for weight in model.weights:
        row = rows[weight.path]
        assert row.shape == tuple(weight.shape)
        assert row.part == weight.path.split("/")[0].split("_")[0]
        assert (row.action, row.reason) == ("initialised", "no source")
    assert report.rows[0].variable == "encoder_1_conv_1/kernel"
    assert [row.variable for row in report.rows[-2:]] == ["head/kernel", "head/bias"]


def test_a_hash_changes_with_its_own_variable_only(model):
    before = hash_variables(model)
    assert set(before) == {weight.path for weight in model.weights}
    assert {len(digits) for digits in before.values()} == {8}
    move(model.get_layer("encoder_2_conv_1").kernel)
    after = hash_variables(model)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"encoder_2_conv_1/kernel"}


def test_a_completed_report_tells_trained_from_locked_from_statistics(model, report):
    encoder = [w for w in model.weights if w.path.startswith("encoder")]
    before = hash_variables(model)
    norm, head = model.get_layer("decoder_1_bn_1"), model.get_layer("head")
    for variable in (norm.moving_mean, head.bias):
        move(variable)
    done = report.complete(before, hash_variables(model), encoder)
    rows = {row.variable: row for row in done.rows}
    assert [row.variable for row in done.rows] == [row.variable for row in report.rows]
    assert rows["encoder_1_bn_1/moving_mean"].training == "locked"
    assert rows["encoder_1_conv_1/kernel"].training == "locked"
    assert rows["decoder_1_bn_1/moving_mean"].training == "statistics run"
    assert rows["decoder_1_bn_1/moving_variance"].training == "statistics run"
    assert rows["decoder_1_bn_1/gamma"].training == "trained"
    assert rows["head/bias"].training == "trained"
    changed = {r.variable for r in done.rows if r.hash_before != r.hash_after}
    assert changed == {"decoder_1_bn_1/moving_mean", "head/bias"}
    assert rows["head/bias"].hash_before == before["head/bias"]


def test_only_trained_numbers_are_counted(model, report):
    hashes = hash_variables(model)
    assert report.num_trained == 0
    statistics = sum(
        int(np.prod(w.shape)) for w in model.weights if "/moving_" in w.path
    )
    done = report.complete(hashes, hashes, [])
    assert done.num_trained == model.count_params() - statistics
    body = [w for w in model.weights if not w.path.startswith("head")]
    assert report.complete(hashes, hashes, body).num_trained == 8 * 3 + 3


def test_a_skipped_variable_of_the_source_stays_as_it_is(model, report):
    skipped = WeightRow(
        variable="old_head/kernel",
        part="head",
        shape=(1, 1, 8, 7),
        action="skipped",
        reason="no such layer",
    )
    hashes = hash_variables(model)
    longer = WeightReport(rows=(*report.rows, skipped))
    assert longer.complete(hashes, hashes, []).rows[-1] == skipped


def test_a_report_comes_back_from_json(model, report):
    hashes = hash_variables(model)
    done = report.complete(hashes, hashes, model.weights[:3])
    rows = json.loads(json.dumps(done.to_json()))
    back = WeightReport(rows=tuple(WeightRow(**row) for row in rows))
    assert back.to_json() == done.to_json()
    assert back.summarize() == done.summarize()


def test_a_summary_adds_up_what_had_the_same_fate(model, report):
    before = hash_variables(model)
    encoder = [w for w in model.weights if w.path.startswith("encoder")]
    move(model.get_layer("head").bias)
    done = report.complete(before, hash_variables(model), encoder)
    groups = done.summarize()
    assert sum(group["variables"] for group in groups) == len(model.weights)
    assert sum(group["parameters"] for group in groups) == model.count_params()
    head = {
        (g["training"], g["changed"]): (g["variables"], g["parameters"])
        for g in groups
        if g["part"] == "head"
    }
    assert head == {("trained", "no"): (1, 24), ("trained", "yes"): (1, 3)}
    found = [(g["part"], g["training"]) for g in groups]
    assert found[:3] == [
        ("encoder", "locked"),
        ("decoder", "trained"),
        ("decoder", "statistics run"),
    ]
