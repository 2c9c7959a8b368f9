"""`cropseg compare`: one experiment from a file and options, and its plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cropseg.cli.experiment import EXPERIMENT_KEYS, DesignOptions, Experiment
from cropseg.cli.options import FitOptions
from cropseg.comparison.design import Design
from cropseg.errors import DivergedError, UsageError

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "compare.yaml"
TINY = ("--batch-size", "2", "--epochs", "1", "--steps-per-epoch", "2")
WITHOUT_KERAS = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "segmentation_models"):
            raise SystemExit(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from cropseg import cli
cli.main()
"""


def write_config(folder, **changes):
    document = {
        "manifest": "area_2.yaml",
        "from": "model.keras",
        "modes": ["full", "zero_shot"],
        "labels": ["1tiles"],
        "folds": "none",
    } | changes
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def read(config, *, manifest=None, from_=None, source=None, settings=None, **design):
    fit = FitOptions(config=config, **(settings or {}))
    named = {"manifest": manifest, "from": from_, "source": source}
    given = DesignOptions(**design).list_given()
    return Experiment.from_options(
        fit.collect_settings(EXPERIMENT_KEYS, **named, **given)
    )


def test_the_example_is_an_experiment_that_names_every_key():
    experiment = read(EXAMPLE)

    assert set(EXPERIMENT_KEYS) < set(yaml.safe_load(EXAMPLE.read_text("utf-8")))
    assert experiment.manifest.resolve().is_file()
    assert experiment.source.resolve().is_file()
    assert experiment.design == Design(
        modes=(
            *("zero_shot", "scratch", "full", "frozen_encoder", "head_only"),
            *("joint", "pixel_forest"),
        ),
        labels=("2tiles", "8tiles"),
    )
    assert experiment.settings["steps_per_epoch"] == 50


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    folder = tmp_path / "plans"
    folder.mkdir()
    plan = folder / "mine.yaml"
    text = "mode: mine\nbased_on: full\nsummary: Mine.\n"
    plan.write_text(text, encoding="utf-8")
    config = write_config(tmp_path, modes=["full", "plans/mine.yaml"], source="s.yaml")

    experiment = read(config)

    assert experiment.manifest == tmp_path / "area_2.yaml"
    assert experiment.model == tmp_path / "model.keras"
    assert experiment.source == tmp_path / "s.yaml"
    assert experiment.design.modes == ("full", str(plan))


def test_the_command_line_wins_over_the_file(tmp_path):
    config = write_config(
        tmp_path, draws=5, seeds=2, epochs=9, validation="budget", until_flat=True
    )

    experiment = read(
        config,
        manifest=Path("other.yaml"),
        from_=Path("other.keras"),
        modes="freeze_layers:a*,b*,scratch",
        labels="2tiles,4tiles",
        draws=4,
        folds="3",
        validation="none",
        until_flat=False,
        settings={"epochs": 8},
    )

    assert experiment.manifest == Path("other.yaml")
    assert experiment.model == Path("other.keras")
    assert experiment.settings == {"epochs": 8}
    assert experiment.design == Design(
        modes=("freeze_layers:a*,b*", "scratch"),
        labels=("2tiles", "4tiles"),
        draws=4,
        seeds=2,
        folds=3,
        validation="none",
    )


def test_lists_may_be_texts_with_commas_as_on_the_command_line(tmp_path):
    config = write_config(tmp_path, modes="full,scratch", labels="1tiles,2tiles")

    design = read(config).design

    assert design.modes == ("full", "scratch")
    assert design.labels == ("1tiles", "2tiles")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mods": ["full"]}, "`mods` is no setting; the nearest is `modes`"),
        ({"draw": 3}, "Known are manifest, from, source, modes, .*, learning_rate"),
        ({"labels": [4]}, r"`labels`: expected a list of texts, got \[4\]"),
        ({"manifest": 4}, "`manifest`: expected a path, got 4"),
        ({"draws": "many"}, "`draws` is 'many'"),
        ({"folds": 1}, "`folds` is 1"),
        ({"modes": ["ful"]}, "nearest is 'full'"),
        ({"labels": ["4tiles", "20ha"]}, "in ha and tiles cannot be compared"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path, changes, message):
    config = write_config(tmp_path, **changes)

    with pytest.raises(UsageError, match=message) as caught:
        read(config)

    assert caught.value.exit_code == 2


def test_what_is_missing_is_told_with_the_option_and_the_keys():
    with pytest.raises(UsageError, match="needs the manifest of the site, --from") as e:
        read(None, modes="full")

    assert "--labels" in str(e.value)
    assert "--modes," not in str(e.value)
    assert "until_flat" in str(e.value)


def test_keys_of_an_experiment_are_none_of_a_training(tmp_path):
    config = write_config(tmp_path)

    with pytest.raises(UsageError, match="`modes` is no setting"):
        FitOptions(config=config).collect_settings()


def run_without_keras(*arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, "compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def config(area_1, source_path, make_site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    names = ("corn", "water", "soybeans")
    make_site(folder / "area_2", class_names=names, seed=1)
    return write_config(
        folder,
        manifest="area_2/site.yaml",
        source=str(area_1.manifest_path),
        draws=2,
        batch_size=2,
        epochs=1,
        steps_per_epoch=2,
        **{"from": str(source_path)},
    )


def test_a_dry_run_prints_the_plan_without_keras_and_writes_nothing(config, tmp_path):
    given = ("--config", config, "--out", tmp_path / "out", "--dry-run")

    shown, document = run_without_keras(*given), run_without_keras(*given, "--json")

    assert (shown.returncode, shown.stderr) == (0, "")
    assert "2 modes x 1 budgets (1tiles) x 2 draws = 3 runs" in shown.stdout
    assert "training time: about " in shown.stdout
    plan = json.loads(document.stdout)
    assert (plan["runs"], plan["finished"], plan["folds"]) == (3, 0, None)
    assert plan["settings"]["batch_size"] == 2
    assert plan["seconds"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_has_finished_is_shown_where_a_run_failed(
    run, config, tmp_path, monkeypatch
):
    def diverge(_job):
        message = "The loss is nan at step 1."
        raise DivergedError(message)

    monkeypatch.setattr("cropseg.training.run.fit_model", diverge)
    given = ("compare", "--config", config, "--out", tmp_path / "out")

    code, document, told = run(*given, "--json")
    again, shown, _ = run(*given)

    assert code == again == 9
    assert "2 of 3 runs failed" in told
    summary = json.loads(document)
    assert summary["failed"] == ["full-1tiles-draw0", "full-1tiles-draw1"]
    (mode,) = summary["budgets"][0]["modes"]
    assert f"zero_shot {mode['miou_mean']:.3f}" in " ".join(shown.split())


def test_few_test_blocks_ask_for_folds_and_the_plan_says_what_they_cost(
    config, tmp_path
):
    given = ("--config", config, "--out", tmp_path / "out", "--dry-run", "--folds")

    shown = run_without_keras(*given, "auto").stdout

    assert "x 2 draws x 5 folds = 15 runs" in shown
    assert "the cost is 5 times that of one test part" in shown


def test_regions_have_no_folds(config, make_site, tmp_path):
    names = ("corn", "water", "soybeans")
    manifest = make_site(tmp_path / "area", class_names=names, seed=1, split="regions")
    given = (manifest, "--config", config, "--out", tmp_path / "out", "--dry-run")

    auto = run_without_keras(*given, "--folds", "auto", "--json")
    asked = run_without_keras(*given, "--folds", "3")

    assert json.loads(auto.stdout)["folds"] is None
    assert asked.returncode == 3
    assert "split by `regions`" in asked.stderr
