"""Transfer: after a run, locked is locked and trained is trained, for every mode."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cropseg.errors import ConflictError, DataError, ModelError, UsageError
from cropseg.files import hash_file
from cropseg.models.bundle import load_bundle
from cropseg.models.card import read_card
from cropseg.runtime import keras
from cropseg.sites.site import open_site
from cropseg.training.checkpoint import load_state, save_state
from cropseg.transfer.modes import PLANS
from cropseg.transfer.target import DEFAULT_EPOCHS, ReuseOptions, choose_settings
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


def refuse_to_fit(monkeypatch):
    """Let a test fail where anything is trained."""

    def refuse(_job):
        pytest.fail("a model was fitted")

    monkeypatch.setattr("cropseg.training.run.fit_model", refuse)


def read_report(run):
    return json.loads((run.out_dir / "weights.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "mode", [pytest.param("zero_shot", marks=pytest.mark.slow), "full"]
)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_saved_model_is_a_plain_keras_model(run_mode):
    model = keras.models.load_model(run_mode("full_bn_source").model_path)

    names = {type(layer).__name__ for layer in model.layers}
    assert not any("Inference" in name for name in names)


def test_a_run_tells_what_normalisation_would_have_decided(run_mode):
    told = run_mode("full").metrics["training"]["normalization"]

    assert told["choice"] == "source"
    scores = told["zero_shot_miou"]
    assert set(scores) == {"source", "target", "match"}
    assert all(0 <= score <= 1 for score in scores.values())
    assert len(set(scores.values())) > 1


@pytest.mark.slow
def test_several_classes_of_the_source_are_summed_without_training(
    make_site, source_path, tmp_path
):
    path = make_site(tmp_path / "area", class_names=("corn", "water", "soybeans"))
    reuse = ReuseOptions(synonyms={"corn": ("wheat", "grassland")})

    run = transfer_to_site(
        open_site(path),
        source_path,
        mode="zero_shot",
        out_dir=tmp_path / "run",
        reuse=reuse,
    )

    model = load_bundle(run.model_path).model
    pixels = np.random.default_rng(0).normal(0, 1e3, (1, 32, 32, 5)).astype("float32")
    theirs = np.asarray(load_bundle(source_path).model(pixels))
    np.testing.assert_allclose(
        np.asarray(model(pixels)),
        np.stack([theirs[..., [1, 2]].sum(-1), theirs[..., 3], theirs[..., 0]], -1),
        atol=1e-5,
    )


@pytest.mark.slow
def test_a_model_on_the_bands_of_the_site_starts_from_the_shared_filters(
    make_site, source_path, tmp_path, settings
):
    bands = ("nir", "coastal", "red")
    path = make_site(tmp_path / "area", bands=bands, class_names=("water", "corn"))

    run = transfer_to_site(
        open_site(path),
        source_path,
        mode="head_only",
        out_dir=tmp_path / "run",
        reuse=ReuseOptions(bands_from="site"),
        **settings,
    )

    assert read_card(run.model_path).bands == bands
    (stem,) = [
        r for r in read_report(run) if r["variable"] == "encoder_1_conv_1/kernel"
    ]
    assert (stem["action"], stem["training"]) == ("averaged", "locked")


def test_a_finished_transfer_is_returned_unchanged(
    run_mode, area_2, source_path, settings, monkeypatch
):
    run = run_mode("full")
    refuse_to_fit(monkeypatch)
    before = {p.name: p.stat().st_mtime_ns for p in run.out_dir.iterdir()}
    given = {"labels": "6tiles", "draw": 2, "out_dir": run.out_dir, **settings}

    again = transfer_to_site(area_2, source_path, mode="full", **given)

    assert again == run
    assert {p.name: p.stat().st_mtime_ns for p in run.out_dir.iterdir()} == before
    other = {"mode": "head_only"}
    for change in (other, {"draw": 1}, {"labels": "5tiles"}, {"seed": 1}):
        with pytest.raises(ConflictError) as caught:
            transfer_to_site(area_2, source_path, **{"mode": "full", **given, **change})
        assert caught.value.exit_code == 7


@pytest.mark.slow
def test_a_training_goes_on_only_with_the_model_that_it_made(
    area_2, source_path, settings, tmp_path
):
    """Its checkpoint has other weights, which would be taken in place of these."""
    folder = tmp_path / "area_1"
    shutil.copytree(source_path.parent, folder)
    state = load_state(folder / "checkpoints" / "state.npz")
    moved = replace(state, best_weights=[value + 1 for value in state.best_weights])
    save_state(moved, folder / "checkpoints" / "state.npz")

    with pytest.raises(ModelError, match=r"did not make this model.*mode full"):
        transfer_to_site(
            area_2,
            folder / "model.keras",
            mode="resume",
            out_dir=tmp_path / "run",
            **settings,
        )

    assert not (tmp_path / "run").exists()


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
