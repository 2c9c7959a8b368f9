"""`cropseg find-lr`: a rate on stdout, a plot and a table where they are asked for."""

from __future__ import annotations

import csv
import json

import pytest

NEW = ("--encoder", "classic_tiny", "--tile-size", "32", "--batch-size", "2")
TEST = ("--num-steps", "12", "--batch-size", "2")


@pytest.mark.slow
def test_a_new_network_gets_a_rate_a_plot_and_a_table(run, area_1, tmp_path):
    out = tmp_path / "rates"

    code, text, err = run(
        *("find-lr", area_1.manifest_path, "--out", out, "--json"),
        *(*NEW, "--num-steps", "12"),
    )

    assert code == 0, err
    document = json.loads(text)
    assert set(document) == {"suggestion", "is_clear", "rates", "losses"}
    assert len(document["rates"]) == len(document["losses"]) <= 12
    files = {path.name for path in out.iterdir()}
    assert files == {"find_lr.png", "find_lr.csv", "run.yaml"}
    rows = list(csv.DictReader((out / "find_lr.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == document["losses"]


@pytest.mark.slow
def test_a_transfer_gets_a_rate_and_leaves_nothing(
    run, area_1, source_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    code, text, err = run(
        *("find-lr", area_1.manifest_path, "--from", source_path, *TEST),
        *("--mode", "head_only", "--labels", "4tiles", "--draw", "1"),
    )

    assert code == 0, err
    assert "--learning-rate " in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected", "word"),
    [
        (("--mode", "full", "--accept-gsd"), 2, "--mode, --accept-gsd: without a"),
        (("--bands", "red,nir"), 2, "Give it as --from MODEL"),
        (("--learning-rate", "0.1"), 2, "Leave --learning-rate out"),
        (("--labels", "900tiles"), 3, "900tiles was asked for"),
        (("--labels", "4"), 2, "4tiles; got '4'"),
        (("--num-steps", "3"), 2, "give 12 or more"),
    ],
)
def test_what_cannot_be_tested_is_told_in_one_block(
    run, area_1, tmp_path, options, expected, word
):
    out = tmp_path / "rates"

    code, text, err = run("find-lr", area_1.manifest_path, "--out", out, *NEW, *options)

    assert (code, text) == (expected, "")
    assert err.startswith("error: ")
    assert word in " ".join(err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("mode", "word"), [("ful", "nearest is 'full'"), ("adabn", "trains nothing")]
)
def test_a_mode_without_a_rate_is_told(run, area_1, source_path, mode, word):
    code, text, err = run(
        *("find-lr", area_1.manifest_path, "--from", source_path, "--mode", mode)
    )

    assert (code, text) == (2, "")
    assert word in " ".join(err.split())


@pytest.mark.slow
def test_a_folder_of_another_test_is_refused(run, area_1, tmp_path):
    out = tmp_path / "rates"
    arguments = ("find-lr", area_1.manifest_path, "--out", out, *NEW)
    assert run(*arguments, "--num-steps", "12", "--quiet")[0] == 0

    code, _, err = run(*arguments, "--num-steps", "13")

    assert code == 7
    assert "num_steps was 12, is 13" in " ".join(err.split())
