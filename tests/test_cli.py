"""The command line: exit codes, one error block, one JSON document, no trace left."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import rasterio
import typer

from cropseg import cli
from cropseg.comparison.cells import MODES

TINY = ("--batch-size", "2", "--epochs", "1", "--steps-per-epoch", "2")
TRAIN = ("--encoder", "classic_tiny", "--tile-size", "32", *TINY)

RUN_ALL = """
import contextlib, io, json, sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "segmentation_models"):
            raise SystemExit(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from cropseg import cli

answers = {}
for name, arguments in json.load(sys.stdin).items():
    sys.argv = ["cropseg", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
    answers[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(answers))
"""
"""Runs many commands in one process in which nobody may import Keras."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def area_1(make_site, folder):
    return make_site(folder / "area_1")


@pytest.fixture(scope="module")
def area_2(make_site, folder):
    names = ("corn", "water", "soybeans")
    return make_site(folder / "area_2", class_names=names, seed=1)


@pytest.fixture(scope="module")
def model(area_1, folder):
    """Return a model of area 1, made by the command line."""
    out = folder / "runs" / "area_1"
    arguments = ("train", area_1, "--out", out, "--quiet", *TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cropseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return out / "model.keras"


def list_tree(folder):
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def change_labels(manifest_path, change):
    with rasterio.open(manifest_path.parent / "scene_0_labels.tif", "r+") as dataset:
        labels = dataset.read(1)
        change(labels)
        dataset.write(labels, 1)
    return manifest_path


@pytest.fixture(scope="module")
def bad(make_site, area_1, area_2, model, folder):
    """Return every bad command with its exit code and a word of its error."""

    def make(name, **changes):
        return make_site(folder / name, **changes)

    def add_unknown_value(labels):
        labels[7:9, 11:14] = 99

    def remove_corn(labels):
        labels[labels == 1] = 111

    unreadable = make("unreadable")
    (unreadable.parent / "scene_0.tif").write_bytes(b"II*\0 no GeoTIFF")
    other_bands = make("other_bands", bands=("blue", "green", "coastal"))
    other_classes = make("other_classes", class_names=("corn", "fallow"))
    unknown_value = change_labels(make("unknown_value"), add_unknown_value)
    absent = make("absent", class_names=("corn", "water", "soybeans"))
    change_labels(absent, remove_corn)
    no_test = {"block_m": 320, "train": 0.8, "val": 0.2, "test": 0.0}
    empty = make("empty", split=no_test)
    missing = folder / "nothing.yaml"
    bands = make("band_count", bands=4)
    text = bands.read_text(encoding="utf-8").replace("- nir\n", "")
    bands.write_text(text, encoding="utf-8")
    config = folder / "config.yaml"
    config.write_text("lerning_rate: 0.1\n", encoding="utf-8")
    no_model = folder / "no_model.keras"
    no_model.write_bytes(b"no archive")
    out = ("--out", folder / "out")
    move = ("transfer", area_2, "--mode", "full", *out)
    compare = ("compare", area_2, "--from", model, *out)
    grid = ("--modes", "full", "--labels", "1tiles")
    train = ("train", area_1, *out)
    return {
        "missing manifest": (("train", missing, *out), 3, "No manifest"),
        "missing manifest to check": (("check", missing), 3, "No manifest"),
        "unreadable image": (("train", unreadable, *out), 3, "scene_0.tif"),
        "unknown label value": (("train", unknown_value, *out), 3, "99 (6 pixels)"),
        "band count": (("train", bands, *out), 3, "has 4 bands"),
        "empty split": (("train", empty, *out), 3, "test part has no labelled"),
        "absent class": (("train", absent, *out), 3, "No training pixel of corn"),
        "unknown option": ((*train, "--epoch", "3"), 2, "--epoch"),
        "missing option": (("train", area_1), 2, "--out"),
        "no number": ((*train, "--epochs", "many"), 2, "--epochs"),
        "unknown command": (("trian", area_1), 2, "trian"),
        "bad setting": ((*train, "--learning-rate", "7"), 2, "learning_rate"),
        "unknown loss": ((*train, "--loss", "hinge"), 2, "cross_entropy"),
        "unknown key": ((*train, "--config", config), 2, "`learning_rate`"),
        "missing config": ((*train, "--config", missing), 2, "nothing.yaml"),
        "unknown mode": (
            ("transfer", area_2, "--mode", "ful", "--from", model, *out),
            *(2, "nearest is 'full'"),
        ),
        "neither model nor comparison": (move, 2, "--from MODEL or --like"),
        "both": ((*move, "--from", model, "--like", folder), 2, "either --from"),
        "like with settings": ((*move, "--like", folder, *TINY), 2, "--like takes all"),
        "like with another choice": (
            (*move, "--like", folder, "--normalization", "target"),
            *(2, "--like takes all"),
        ),
        "missing model": ((*move, "--from", folder / "no.keras"), 4, "No model at"),
        "no model": ((*move, "--from", no_model), 4, "is no model file"),
        "bands that do not fit": (
            ("transfer", other_bands, "--mode", "full", "--from", model, *out),
            *(4, "has no red, nir, swir1"),
        ),
        "classes that do not fit": (
            ("transfer", other_classes, "--mode", "full", "--from", model, *out),
            *(4, "No class is shared"),
        ),
        "classes that do not fit to score": (
            ("evaluate", model, other_classes),
            *(4, "No class is shared"),
        ),
        "unknown part": (("evaluate", model, area_2, "--split", "all"), 2, "--split"),
        "large budget": (
            (*move, "--from", model, "--labels", "900tiles"),
            *(3, "900tiles was asked for"),
        ),
        "large budget to compare": (
            (*compare, "--modes", "full", "--labels", "1tiles,900tiles"),
            *(3, "900tiles was asked for"),
        ),
        "bad budget": ((*move, "--from", model, "--labels", "4"), 2, "4tiles; got '4'"),
        "unknown mode to compare": (
            (*compare, "--modes", "full,forest", "--labels", "1tiles"),
            *(2, "pixel_forest"),
        ),
        "no draws": ((*compare, *grid, "--draws", "0"), 2, "0 draws"),
        "folder below a file": (
            (*train[:2], "--out", config / "run"),
            *(6, "is a file, not a folder"),
        ),
        "folder below a file to predict": (
            ("predict", model, area_1, "--out", config / "maps"),
            *(6, "is a file, not a folder"),
        ),
        "other settings": (
            ("train", area_1, "--out", model.parent, *TRAIN, "--seed", "8"),
            *(7, "settings.seed was 0, is 8"),
        ),
        "another run": (
            (*move[:-2], "--out", model.parent, "--from", model),
            *(7, "command was 'train', is 'transfer'"),
        ),
        "missing model to predict with": (
            ("predict", folder / "no.keras", area_1, *out),
            *(4, "No model at"),
        ),
    }


@pytest.fixture(scope="module")
def answers(bad, folder):
    """Return the answers of all bad commands, from a process without Keras."""
    before = list_tree(folder)
    commands = {name: list(map(str, item[0])) for name, item in bad.items()}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    assert list_tree(folder) == before  # nothing was written, nothing left behind
    return json.loads(done.stdout)


def test_bad_input_ends_with_its_code_and_one_block_before_keras_is_imported(
    bad, answers
):
    assert set(answers) == set(bad)
    for name, (_, expected, word) in bad.items():
        code, out, err = answers[name]
        assert code == expected, (name, code, err)
        assert out == "", name
        assert err.startswith("error: "), (name, err)
        assert err.count("error: ") == 1, (name, err)
        assert word in err, (name, err)
        assert "Traceback" not in err, name


@pytest.mark.parametrize("verb", ["", "train", "transfer", "compare", "predict"])
def test_help_is_given_without_keras(verb):
    script = (
        "import sys; from cropseg import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'tensorflow', 'keras', 'geopandas'} & set(sys.modules)\n"
    )
    arguments = [verb, "--help"] if verb else ["--help"]

    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def test_commands_have_their_order_and_all_take_the_options_that_all_share():
    commands = typer.main.get_command(cli.app).commands

    assert list(commands) == [
        *("check", "preview", "train", "find-lr", "advise", "transfer", "compare"),
        *("evaluate", "predict", "export", "inspect", "modes", "schema", "demo"),
    ]
    for name, command in commands.items():
        options = [option for item in command.params for option in item.opts]
        assert {"--json", "--quiet", "--verbose", "--seed"} <= set(options), name


def test_the_options_of_a_group_stand_where_the_command_has_the_group():
    command = typer.main.get_command(cli.app).commands["train"]

    assert [option for item in command.params for option in item.opts] == [
        *("manifest", "--out", "--architecture", "--encoder", "--tile-size"),
        *("--batch-size", "--epochs", "--steps-per-epoch", "--learning-rate"),
        *("--loss", "--precision", "--config", "--seed"),
        *("--overwrite", "--allow-remote", "--json", "--quiet", "--verbose"),
    ]


def test_check_runs_without_keras_and_prints_one_document(area_1):
    script = (
        "import sys; from cropseg import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, "check", area_1, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"] is True


def test_the_module_is_the_command_and_an_error_has_no_traceback(folder):
    done = subprocess.run(
        [sys.executable, "-m", "cropseg", "check", folder / "nothing.yaml", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: No manifest")
    assert "Traceback" not in done.stderr


def test_a_check_that_finds_errors_ends_with_3_and_says_what(
    run, make_site, model, tmp_path
):
    manifest = make_site(tmp_path / "area", bands=("blue", "green"))

    code, out, _ = run("check", manifest, "--model", model, "--json")

    report = json.loads(out)
    assert (code, report["ok"]) == (3, False)
    assert report["findings"][0]["code"] == "bands-missing"
    assert "red, nir, swir1" in report["findings"][0]["message"]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(
    run, area_1, tmp_path, monkeypatch
):
    config = tmp_path / "config.yaml"
    config.write_text("epochs: 3\nloss: dice\nseed: 4\n", encoding="utf-8")
    given = {}

    def train_site(_site, **settings):
        given.update(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("cropseg.training.train.train_site", train_site)
    out = ("--out", tmp_path / "run", "--tile-size", "32")
    code, _, _ = run("train", area_1, *out, "--config", config, "--epochs", "5")

    assert code == 130
    assert given["epochs"] == 5
    assert (given["loss"], given["seed"], given["tile_size"]) == ("dice", 4, 32)
    assert "batch_size" not in given  # so that the default holds


def test_a_bug_is_told_as_one_without_a_traceback(run, area_1, monkeypatch):
    def fail(_path, **_options):
        message = "surprise"
        raise RuntimeError(message)

    monkeypatch.setattr("cropseg.checks.check.open_site", fail)

    code, out, err = run("check", area_1)

    assert (code, out) == (70, "")
    assert err.startswith("error: This is a bug of cropseg: RuntimeError: surprise")
    assert "Traceback" not in err
    assert "Traceback" in run("check", area_1, "--verbose")[2]


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        ("train", TRAIN),
        ("transfer", ("--mode", "full", *TINY)),
        ("compare", ("--modes", "full", "--labels", "1tiles", *TINY)),
    ],
)
def test_an_output_folder_that_cannot_be_made_is_told(
    run, area_2, model, tmp_path, verb, extra
):
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    source = () if verb == "train" else ("--from", model)

    code, out, err = run(
        verb, area_2, *source, "--out", tmp_path / "file" / "run", *extra
    )

    assert (code, out) == (6, "")
    assert err.startswith("error: Cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_with_a_run_of_other_settings_is_refused(run, area_1, model):
    before = list_tree(model.parent)

    code, out, err = run("train", area_1, "--out", model.parent, *TRAIN, "--seed", "3")

    assert (code, out) == (7, "")
    assert "settings.seed was 0, is 3" in err
    assert list_tree(model.parent) == before


def test_a_folder_with_other_files_is_refused_even_with_overwrite(
    run, area_1, tmp_path
):
    (tmp_path / "thesis.docx").write_text("years of work", encoding="utf-8")

    code, _, err = run("train", area_1, "--out", tmp_path, *TRAIN, "--overwrite")

    assert code == 7
    assert "thesis.docx" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_a_tile_size_that_does_not_fit_is_refused(run, area_1, tmp_path):
    given = ("--encoder", "classic", "--tile-size", "40")

    code, _, err = run("train", area_1, "--out", tmp_path / "run", *given)

    assert code == 2
    assert "must be a multiple of 16" in err
    assert not (tmp_path / "run").exists()


def test_quiet_prints_nothing_and_a_finished_run_is_told_again(run, area_1, model):
    given = ("train", area_1, "--out", model.parent, *TRAIN)

    assert run(*given, "--quiet") == (0, "", "")
    code, out, _ = run(*given, "--json")
    assert (code, json.loads(out)["model"]) == (0, str(model))


def test_the_modes_are_listed(run):
    code, out, err = run("modes", "--json")

    assert (code, err) == (0, "")
    assert {row["mode"] for row in json.loads(out)} == set(MODES)
    assert all(mode in run("modes")[1] for mode in ("frozen_encoder", "pixel_forest"))


@pytest.mark.slow
def test_the_whole_way_from_check_to_map(run, area_1, area_2, model, tmp_path):
    def run_json(*arguments):
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, ""), err
        return json.loads(out)

    assert run_json("check", area_2, "--model", model)["ok"] is True
    assert run_json("inspect", model)["site"] == "area_1"

    moved = tmp_path / "moved"
    transfer = ("transfer", area_2, "--from", model, "--mode", "frozen_encoder")
    document = run_json(*transfer, "--labels", "4tiles", "--out", moved, *TINY)
    assert document["model"] == str(moved / "model.keras")
    assert document["test"]["num_pixels"] > 0

    scores = run_json("evaluate", moved / "model.keras", area_2, "--split", "test")
    assert scores == document["test"]
    keys = {"name", "iou", "precision", "recall", "f1", "num_pixels"}
    assert all(set(item) == keys for item in scores["classes"])

    compared = tmp_path / "compared"
    grid = (
        *("--modes", "head_only,pixel_forest", "--labels", "1tiles"),
        *("--draws", "1", "--folds", "none"),
    )
    compare = ("compare", area_2, "--from", model, *grid, *TINY, "--out", compared)
    summary = run_json(*compare)
    assert summary["answer"].startswith("With 1 labelled tile, ")
    assert run(*compare)[1].count("With 1 labelled tile, ") == 1

    final = tmp_path / "final"
    like = ("transfer", area_2, "--like", compared, "--mode", "head_only")
    run_json(*like, "--out", final)
    inspected = run_json("inspect", final / "model.keras")
    assert inspected["lineage"]["mode"] == "head_only"
    assert inspected["lineage"]["labels"] is None

    scene = area_2.parent / "scene_0.tif"
    maps = tmp_path / "maps"
    predict = ("predict", final / "model.keras", scene, "--engine", "keras")
    found = run_json(*predict, "--out", maps)
    assert found["maps"] == [str(maps / "scene_0_classes.tif")]
    assert found["num_mapped"] == 1
    with rasterio.open(scene) as image, rasterio.open(found["maps"][0]) as dataset:
        assert dataset.shape == image.shape
        assert dataset.transform == image.transform

    tables = [
        run("check", area_1)[1],
        run("inspect", model)[1],
        run(*transfer, "--labels", "4tiles", "--out", moved, *TINY)[1],
        run("evaluate", moved / "model.keras", area_2)[1],
    ]
    for text, word in zip(tables, ("GSD", "stage", "model:", "mIoU"), strict=True):
        assert word in text


def test_a_scene_that_the_model_cannot_read_leaves_no_map(
    run, model, write_raster, tmp_path
):
    import numpy as np

    scene = write_raster(tmp_path / "scene.tif", np.ones((40, 56, 3), "int16"))

    code, out, err = run("predict", model, scene, "--out", tmp_path / "maps")

    assert (code, out) == (4, "")
    assert "has 3 bands (unnamed, unnamed, unnamed), but the model takes 5" in err
    assert not (tmp_path / "maps").exists()


def test_a_comparison_with_a_failed_run_ends_with_9(
    run, area_2, model, tmp_path, monkeypatch
):
    from cropseg.errors import DivergedError

    def diverge(_job):
        message = "The loss is nan at step 1."
        raise DivergedError(message)

    monkeypatch.setattr("cropseg.training.run.fit_model", diverge)
    given = (
        *("--modes", "full,pixel_forest", "--labels", "1tiles"),
        *("--draws", "1", "--folds", "none"),
    )

    code, out, err = run(
        *("compare", area_2, "--from", model, "--out", tmp_path / "compared"),
        *(*given, *TINY, "--json"),
    )

    assert code == 9
    statuses = [item["status"] for item in json.loads(out)["runs"]]
    assert sorted(statuses) == ["failed", "ok"]
    assert "1 of 2 runs failed, full-1tiles-draw0" in err
    assert (tmp_path / "compared" / "results.csv").exists()


def test_a_training_that_diverges_ends_with_8(run, area_1, tmp_path, monkeypatch):
    from cropseg.errors import DivergedError

    def diverge(_job):
        message = "The loss is nan at step 1."
        raise DivergedError(message)

    monkeypatch.setattr("cropseg.training.run.fit_model", diverge)

    code, out, err = run("train", area_1, "--out", tmp_path / "run", *TRAIN)

    assert (code, out, err) == (8, "", "error: The loss is nan at step 1.\n")
    assert not (tmp_path / "run").exists()
