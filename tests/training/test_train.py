"""Training a site: the files of a run, and what a second call does."""

from __future__ import annotations

import json
import shutil
from itertools import starmap

import numpy as np
import pytest
import yaml

from cropseg.errors import ConflictError, DataError, DivergedError, UsageError
from cropseg.models.bundle import load_bundle
from cropseg.models.card import read_card
from cropseg.sites.site import open_site
from cropseg.training import fit, train
from cropseg.training.checkpoint import load_state
from cropseg.training.settings import TrainSettings
from cropseg.training.train import train_site

FILES = {
    *("model.keras", "run.yaml", "history.csv", "metrics.json", "weights.json"),
    *("curves.png", "checkpoints", "counts.npz"),
}
"""What DESIGN lists, and the confusion counts that scores come from."""


class Interrupted(BaseException):
    """What a user's Ctrl-C is to a training."""


@pytest.fixture
def no_fit(monkeypatch):
    """Let a test fail where anything is trained."""

    def refuse(_job):
        pytest.fail("a model was fitted")

    monkeypatch.setattr("cropseg.training.run.fit_model", refuse)


def are_equal(weights, others):
    return all(starmap(np.array_equal, zip(weights, others, strict=True)))


def read_tree(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_writes_the_files_of_the_design_and_no_others(trained_run):
    assert {path.name for path in trained_run.out_dir.iterdir()} == FILES
    checkpoints = trained_run.out_dir / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["state.npz"]


def test_the_files_of_a_run_tell_of_it(trained_run, settings):
    folder = trained_run.out_dir
    record = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    history = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))

    assert record["settings"] == TrainSettings(**settings).to_json()
    assert record["command"] == "train"
    assert len(history) == 1 + 2
    assert metrics == trained_run.metrics
    assert metrics["training"]["steps"] == 6
    assert metrics["training"]["seconds"] > 0
    assert metrics["training"]["converged"] in (True, False)
    assert metrics["training"]["phases"] == [
        {
            "name": "all",
            "steps": 6,
            "learning_rate": 1e-3,
            "trained_parameters": metrics["training"]["trained_parameters"],
        }
    ]
    names = ["soybeans", "wheat", "grassland", "water"]
    for part in ("val", "test"):
        assert [item["name"] for item in metrics[part]["classes"]] == names
        assert 0 <= metrics[part]["miou"] <= 1
    with np.load(folder / "counts.npz") as counts:
        assert counts["test_counts"].shape[1:] == (4, 5)
        assert counts["test_counts"].sum() == metrics["test"]["num_pixels"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_weight_report_has_every_variable_once(trained_run):
    path = trained_run.out_dir / "weights.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    model = load_bundle(trained_run.model_path).model
    paths = [v.path for v in model.weights if "band_normalization" not in v.path]

    assert sorted(row["variable"] for row in rows) == sorted(paths)
    assert {row["action"] for row in rows} == {"initialised"}
    assert all(row["hash_before"] != row["hash_after"] for row in rows)
    parameters = trained_run.metrics["training"]["trained_parameters"]
    assert parameters == sum(np.prod(v.shape) for v in model.trainable_variables)


def test_the_best_epoch_on_the_val_part_is_saved(trained_run):
    state = load_state(trained_run.out_dir / "checkpoints" / "state.npz")
    weights = load_bundle(trained_run.model_path).model.get_weights()
    best = max(item.val_miou for item in state.epochs)

    assert are_equal(weights, state.best_weights)
    assert trained_run.metrics["val"]["miou"] == pytest.approx(best, abs=1e-4)


def test_the_card_names_the_site_and_the_settings(trained_run, area_1, settings):
    card = read_card(trained_run.model_path)

    assert card.site == area_1.name
    assert card.bands == area_1.bands
    assert card.class_names == area_1.classes.names
    assert card.fingerprint == area_1.fingerprint
    assert (card.tile_size, card.tile_multiple) == (settings["tile_size"], 4)
    assert card.lineage.mode == "train"
    assert card.scores["test"] == trained_run.metrics["test"]


@pytest.mark.usefixtures("no_fit")
def test_a_finished_run_is_returned_unchanged(trained_run, area_1, settings):
    before = read_tree(trained_run.out_dir)

    again = train_site(area_1, out_dir=trained_run.out_dir, **settings)

    assert again == trained_run
    assert read_tree(trained_run.out_dir) == before


@pytest.mark.usefixtures("no_fit")
def test_the_number_of_workers_makes_no_other_run(trained_run, area_1, settings):
    again = train_site(area_1, out_dir=trained_run.out_dir, workers=1, **settings)

    assert again == trained_run


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "settings.seed was 0, is 1"),
        ({"epochs": 3}, "settings.epochs was 2, is 3"),
        ({"loss": "dice"}, "settings.loss was 'cross_entropy', is 'dice'"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    trained_run, area_1, settings, change, told
):
    before = read_tree(trained_run.out_dir)

    with pytest.raises(ConflictError, match=told) as caught:
        train_site(area_1, out_dir=trained_run.out_dir, **settings | change)

    assert caught.value.exit_code == 7
    assert "--overwrite" in str(caught.value)
    assert read_tree(trained_run.out_dir) == before


@pytest.mark.usefixtures("no_fit")
def test_a_run_on_labels_that_changed_is_refused(trained_run, area_1, settings):
    path = area_1.scenes[0].labels_path
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    try:
        with pytest.raises(ConflictError, match="fingerprint"):
            train_site(
                open_site(area_1.manifest_path), out_dir=trained_run.out_dir, **settings
            )
    finally:
        path.write_bytes(content)


def test_overwrite_starts_again_in_an_empty_folder(
    trained_run, area_1, settings, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(trained_run.out_dir, folder)
    found = []

    def execute_run(_start, settings, out_dir, _show_progress):
        found.append((settings.seed, sorted(path.name for path in out_dir.iterdir())))

    monkeypatch.setattr(train, "execute_run", execute_run)
    train_site(area_1, out_dir=folder, overwrite=True, **settings | {"seed": 1})

    assert found == [(1, [".lock", "run.yaml"])]


def test_overwrite_also_starts_a_finished_run_again(
    trained_run, area_1, settings, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(trained_run.out_dir, folder)
    found = []
    monkeypatch.setattr(train, "execute_run", lambda *args: found.append(args))

    train_site(area_1, out_dir=folder, overwrite=True, **settings)

    assert len(found) == 1


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_model_of_one_that_was_not(
    trained_run, area_1, settings, tmp_path
):
    def show_progress(done, *_):
        if done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_site(area_1, out_dir=tmp_path, show_progress=show_progress, **settings)
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "checkpoints"}
    run = train_site(area_1, out_dir=tmp_path, **settings)

    ours, theirs = read_card(run.model_path), read_card(trained_run.model_path)
    assert ours.weights_sha256 == theirs.weights_sha256
    assert run.metrics["test"] == trained_run.metrics["test"]
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_training_that_diverges_leaves_no_model(
    area_1, settings, tmp_path, monkeypatch
):
    def diverge(_job):
        raise DivergedError("The loss is nan at step 1.")

    monkeypatch.setattr("cropseg.training.run.fit_model", diverge)

    with pytest.raises(DivergedError) as caught:
        train_site(area_1, out_dir=tmp_path / "run", **settings)

    assert caught.value.exit_code == 8
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_that_diverges_later_leaves_no_model_either(
    area_1, settings, tmp_path, monkeypatch
):
    record = fit._Fit.end_step

    def diverge(self, loss):
        record(self, float("inf") if len(self.losses) == 4 else loss)

    monkeypatch.setattr(fit._Fit, "end_step", diverge)

    with pytest.raises(DivergedError, match=r"loss is inf at step 5 \(epoch 2"):
        train_site(area_1, out_dir=tmp_path, **settings)

    names = {path.name for path in tmp_path.iterdir()}
    assert not names & {"model.keras", "metrics.json"}


@pytest.mark.parametrize("size", [30, 33, 126])
def test_a_tile_size_that_does_not_fit_is_refused_before_anything_is_written(
    area_1, settings, tmp_path, size
):
    with pytest.raises(UsageError, match=f"{size} does not fit .* multiple of 4"):
        train_site(area_1, out_dir=tmp_path / "run", **settings | {"tile_size": size})

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"architecture": "unett"}, "unet"), ({"encoder": "clasic"}, "classic")],
)
def test_an_unknown_network_is_answered_with_those_known(
    area_1, settings, tmp_path, change, message
):
    with pytest.raises(UsageError, match=message):
        train_site(area_1, out_dir=tmp_path / "run", **settings | change)

    assert not (tmp_path / "run").exists()


def test_a_class_without_a_training_pixel_is_refused(make_site, settings, tmp_path):
    changes = {
        "classes": [
            {"name": "soybeans", "color": "#267300", "values": [5, 22, 23, 176]},
            {"name": "water", "color": "#4a6fa3", "values": [111]},
            {"name": "orchard", "color": "#ff0000", "values": [70]},
        ]
    }
    site = open_site(make_site(tmp_path / "area", **changes))

    with pytest.raises(DataError, match="No training pixel of orchard"):
        train_site(site, out_dir=tmp_path / "run", **settings)

    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_a_val_part_the_last_weights_are_kept(make_site, settings, tmp_path):
    split = {"block_m": 320, "train": 0.7, "val": 0.0, "test": 0.3, "seed": 0}
    site = open_site(make_site(tmp_path / "area", split=split))

    run = train_site(site, out_dir=tmp_path / "run", **settings)

    state = load_state(run.out_dir / "checkpoints" / "state.npz")
    weights = load_bundle(run.model_path).model.get_weights()
    assert state.best_weights == []
    assert are_equal(weights, [value for _, value in state.variables])
    assert run.metrics["val"] is None
    assert run.metrics["test"]["num_pixels"] > 0
    assert [item.val_miou for item in state.epochs] == [None, None]
