"""Transfer: after a run, locked is locked and trained is trained, for every mode."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cropseg.errors import ConflictError, DataError, ModelError, UsageError
from cropseg.files import hash_file
from cropseg.models.bundle import load_bundle
from cropseg.models.card import read_card
from cropseg.models.zoo import find_stages
from cropseg.runtime import keras
from cropseg.sites.site import open_site
from cropseg.transfer.plan import PLANS
from cropseg.transfer.target import DEFAULT_EPOCHS, choose_settings
from cropseg.transfer.transfer import transfer_to_site

FILES = {
    *("model.keras", "run.yaml", "history.csv", "metrics.json", "weights.json"),
    *("curves.png", "checkpoints", "counts.npz"),
}


@pytest.fixture(scope="module")
def run_mode(area_2, source_path, settings, tmp_path_factory):
    """Return a function that gives the run of a mode, each fitted once."""
    runs = {}

    def run(mode):
        if mode not in runs:
            folder = tmp_path_factory.mktemp("runs") / mode
            runs[mode] = transfer_to_site(
                area_2,
                source_path,
                mode=mode,
                out_dir=folder,
                labels="6tiles",
                draw=2,
                **settings,
            )
        return runs[mode]

    return run


@pytest.fixture
def no_fit(monkeypatch):
    """Let a test fail where anything is trained."""

    def refuse(_job):
        pytest.fail("a model was fitted")

    monkeypatch.setattr("cropseg.training.run.fit_model", refuse)


def read_weights(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def read_report(run):
    return json.loads((run.out_dir / "weights.json").read_text(encoding="utf-8"))


def sort_variables(model, plan):
    """Return what the plan makes of every variable, the head apart, by path."""
    fates = {}
    for stage in find_stages(model, "unet", "classic_tiny"):
        policy = plan.batch_norm[stage.part]
        for layer in map(model.get_layer, stage.layers):
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            for variable in layer.weights:
                if not is_norm:
                    trains = stage.part in plan.trained
                elif variable.name.startswith("moving"):
                    trains = policy.statistics == "running"
                else:
                    trains = policy.affine == "trained"
                fates[variable.path] = (stage.part, trains)
    return fates


@pytest.mark.parametrize("mode", PLANS)
def test_locked_variables_are_those_of_the_source_and_trained_ones_moved(
    run_mode, source, mode
):
    model = load_bundle(run_mode(mode).model_path).model
    ours, theirs = read_weights(model), read_weights(source.model)

    for path, (part, trains) in sort_variables(model, PLANS[mode]).items():
        if part == "head":
            continue
        if trains:
            assert (ours[path] != theirs[path]).any(), path
        else:
            np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    head = (ours["head/kernel"][..., 1], theirs["head/kernel"][..., 3])  # water
    assert np.array_equal(*head) == (not PLANS[mode].trains)


@pytest.mark.parametrize("mode", PLANS)
def test_the_report_of_a_run_says_what_was_trained(run_mode, mode):
    run = run_mode(mode)
    model = load_bundle(run.model_path).model
    fates = sort_variables(model, PLANS[mode])
    rows = [row for row in read_report(run) if row["action"] != "skipped"]

    assert sorted(row["variable"] for row in rows) == sorted(fates)
    trained = 0
    for row in rows:
        _, trains = fates[row["variable"]]
        assert (row["training"] != "locked") == trains, row
        assert (row["hash_before"] != row["hash_after"]) == trains, row
        runs = row["variable"].split("/")[1].startswith("moving")
        assert (row["training"] == "statistics run") == (trains and runs)
        trained += int(np.prod(row["shape"])) if trains and not runs else 0
    assert run.metrics["training"]["trained_parameters"] == trained


@pytest.mark.parametrize("mode", PLANS)
def test_a_run_tells_where_it_comes_from(run_mode, source_path, area_2, mode):
    run = run_mode(mode)
    card = read_card(run.model_path)

    assert card.lineage.mode == mode
    assert card.lineage.source_sha256 == hash_file(source_path)
    assert card.lineage.source_site == "area_1"
    assert (card.lineage.labels, card.lineage.draw) == ("6tiles", 2)
    assert card.site == area_2.name
    assert card.class_names == area_2.classes.names
    assert card.bands == read_card(source_path).bands  # not those of area 2
    assert card.band_mean == read_card(source_path).band_mean
    trains = PLANS[mode].trains
    untrained = {"history.csv", "curves.png", "checkpoints"}
    expected = FILES if trains else FILES - untrained
    assert {path.name for path in run.out_dir.iterdir()} == expected
    training = run.metrics["training"]
    assert training["steps"] == (3 if trains else 0)
    assert training["label_tiles"] == 6
    assert (training["converged"] is None) == (not trains)
    assert run.metrics["test"]["num_pixels"] > 0


def test_full_bn_source_keeps_the_statistics_and_trains_scale_and_shift(
    run_mode, source
):
    model = load_bundle(run_mode("full_bn_source").model_path).model
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]

    assert len(norms) == 10
    for layer in norms:
        theirs = source.model.get_layer(layer.name)
        for name, equal in (
            *(("moving_mean", True), ("moving_variance", True)),
            *(("gamma", False), ("beta", False)),
        ):
            values = (
                keras.ops.convert_to_numpy(getattr(x, name)) for x in (layer, theirs)
            )
            assert np.array_equal(*values) == equal, (layer.name, name)


def test_zero_shot_changes_nothing_and_never_predicts_an_unknown_class(
    run_mode,
):
    run = run_mode("zero_shot")

    with np.load(run.out_dir / "counts.npz") as counts:
        predicted = counts["test_counts"].sum(axis=(0, 1))
    assert predicted[0] == 0  # corn, which area 1 does not have
    assert predicted.sum() > 0
    rows = {row["variable"]: row for row in read_report(run)}
    assert {row["training"] for row in rows.values()} == {"locked", "-"}
    assert not {
        row["variable"] for row in rows.values() if row["action"] == "initialised"
    }


def test_a_mode_that_trains_predicts_new_classes_too(run_mode):
    corn = run_mode("full").metrics["test"]["classes"][0]

    assert (corn["name"], corn["num_pixels"] > 0) == ("corn", True)


def test_the_saved_model_is_a_plain_keras_model_in_every_mode(run_mode):
    for mode in PLANS:
        model = keras.models.load_model(run_mode(mode).model_path, compile=False)
        names = {type(layer).__name__ for layer in model.layers}
        assert not any("Inference" in name for name in names)


@pytest.mark.usefixtures("no_fit")
def test_a_finished_transfer_is_returned_unchanged(
    run_mode, area_2, source_path, settings
):
    run = run_mode("head_only")
    before = {p.name: p.stat().st_mtime_ns for p in run.out_dir.iterdir()}
    given = {"labels": "6tiles", "draw": 2, "out_dir": run.out_dir, **settings}

    again = transfer_to_site(area_2, source_path, mode="head_only", **given)

    assert again == run
    assert {p.name: p.stat().st_mtime_ns for p in run.out_dir.iterdir()} == before
    for change in ({"mode": "full"}, {"draw": 1}, {"labels": "5tiles"}, {"seed": 1}):
        with pytest.raises(ConflictError) as caught:
            transfer_to_site(
                area_2, source_path, **{"mode": "head_only", **given, **change}
            )
        assert caught.value.exit_code == 7


def test_a_site_without_a_band_of_the_model_is_refused(
    make_site, source_path, tmp_path
):
    site = open_site(make_site(tmp_path / "area", bands=("blue", "green", "nir")))

    with pytest.raises(ModelError, match="has no red, swir1") as caught:
        transfer_to_site(site, source_path, mode="full", out_dir=tmp_path / "run")

    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_a_site_that_shares_no_class_is_refused(make_site, source_path, tmp_path):
    site = open_site(make_site(tmp_path / "area", class_names=("corn", "fallow")))

    with pytest.raises(ModelError, match="No class is shared") as caught:
        transfer_to_site(site, source_path, mode="full", out_dir=tmp_path / "run")

    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_a_budget_larger_than_the_pool_is_refused(area_2, source_path, tmp_path):
    with pytest.raises(DataError, match="500tiles"):
        transfer_to_site(
            area_2,
            source_path,
            mode="full",
            labels="500tiles",
            out_dir=tmp_path / "run",
        )

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("architecture", "fpn"), ("encoder", "classic"), ("tile_size", 64)],
)
def test_what_the_model_decides_cannot_be_given_differently(
    area_2, source_path, tmp_path, name, value
):
    with pytest.raises(UsageError, match=f"`{name}` is {value!r}, but the model has"):
        transfer_to_site(
            area_2, source_path, mode="full", out_dir=tmp_path / "run", **{name: value}
        )

    assert not (tmp_path / "run").exists()


def test_settings_are_completed_by_those_of_the_model(source_path):
    card = read_card(source_path)

    chosen = choose_settings(card, {"tile_size": 32, "batch_size": 3})

    assert (chosen.architecture, chosen.encoder) == ("unet", "classic_tiny")
    assert (chosen.tile_size, chosen.batch_size) == (32, 3)
    assert chosen.epochs == DEFAULT_EPOCHS
    assert choose_settings(card, {"epochs": 2}).epochs == 2
