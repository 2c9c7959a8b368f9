"""`cropseg modes`: the table, one mode in words, and both as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cropseg.transfer.describe import describe_plan, list_plans, plan_to_json
from cropseg.transfer.modes import PLANS, get_plan, list_mode_names
from cropseg.transfer.plan_file import read_plan

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "plan.yaml"


def test_the_table_names_every_mode_and_what_it_does(run):
    code, out, err = run("modes")

    assert (code, err) == (0, "")
    words = " ".join(out.split())
    for row in list_plans():
        assert f"{row['mode']}: {' '.join(row['summary'].split())}" in words
    assert all(title in out for title in ("start", "trained", "batch norm", "training"))


def test_the_document_has_every_mode_of_the_table(run):
    code, out, err = run("modes", "--json")

    assert (code, err) == (0, "")
    assert [row["mode"] for row in json.loads(out)] == list_mode_names()
    assert json.loads(out) == list_plans()


@pytest.mark.parametrize("mode", ["full", "freeze_first:2", str(EXAMPLE)])
def test_one_mode_is_told_in_words_and_as_a_document(run, mode):
    plan = get_plan(mode)

    code, out, err = run("modes", mode)
    assert (code, err) == (0, "")
    told = " ".join([plan.mode, *describe_plan(plan)])
    assert " ".join(out.split()) == " ".join(told.split())

    code, out, err = run("modes", mode, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == plan_to_json(plan)


def test_the_document_of_a_mode_is_a_file_with_a_plan_but_for_its_name(run, tmp_path):
    document = json.loads(run("modes", "lp_ft", "--json")[1]) | {"mode": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")

    assert read_plan(path, presets=PLANS).phases == PLANS["lp_ft"].phases


def test_the_forest_is_told_too(run):
    assert "random forest" in run("modes", "pixel_forest")[1]
    assert json.loads(run("modes", "pixel_forest", "--json")[1])["start"] is None


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("ful", "the nearest is 'full'"),
        ("freeze_first:none", "such as freeze_first:2"),
        ("nothing.yaml", "No plan at nothing.yaml"),
    ],
)
def test_an_unknown_mode_ends_with_2(run, mode, message):
    code, out, err = run("modes", mode)

    assert (code, out) == (2, "")
    assert message in err


def test_modes_are_listed_without_keras():
    script = (
        "import sys; from cropseg import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, "modes", "gradual"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
