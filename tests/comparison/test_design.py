"""The design of an experiment: what is refused, and what may go on in a folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cropseg.comparison.cells import find_contenders
from cropseg.comparison.design import (
    Design,
    check_comparison,
    claim_comparison,
    describe_design,
    read_comparison,
    read_folds,
)
from cropseg.errors import ConflictError, DataFileNotFoundError, UsageError
from cropseg.transfer.describe import plan_to_json
from cropseg.transfer.modes import get_plan

SITE = SimpleNamespace(manifest_path=Path("area_2.yaml"))
RECORD = {
    "command": "compare",
    "fingerprint": "0123",
    "from": "a/model.keras",
    "manifest": "area_2.yaml",
    "modes": ["full", "scratch"],
    "labels": ["2tiles", "4tiles"],
    "draws": 3,
    "seeds": 1,
    "folds": None,
    "settings": {"seed": 0, "epochs": 6},
    "source": {"site": "area_1", "manifest": "area_1.yaml", "fingerprint": "45"},
}


@pytest.fixture
def plan_path(tmp_path):
    path = tmp_path / "my plan.yaml"
    text = "mode: mine\nbased_on: full\nsummary: Mine.\nl2sp: 0.5\n"
    path.write_text(text, encoding="utf-8")
    return str(path)


def make_design(**changes):
    given = {"modes": ("full",), "labels": ("4tiles",)}
    return Design(**(given | changes))


def claim(folder, record=RECORD, **options):
    with claim_comparison(folder, record, **options):
        (folder / "results.csv").touch()


def test_the_record_has_the_whole_design_plans_of_files_and_the_source(plan_path):
    source = SimpleNamespace(
        name="area_1", fingerprint="0123", manifest_path=Path("area_1.yaml")
    )
    design = make_design(
        modes=("joint", plan_path), labels=("4tiles", "2tiles"), folds=3, seeds=2
    )

    found = describe_design(
        design,
        find_contenders(design.modes),
        folds=3,
        site=SITE,
        source_site=source,
    )

    assert found == {
        "manifest": "area_2.yaml",
        "modes": ["joint", "mine"],
        "labels": ["2tiles", "4tiles"],
        "draws": 3,
        "seeds": 2,
        "folds": 3,
        "validation": "none",
        "equal": "steps",
        "until_flat": False,
        "plans": {
            "mine": {"file": plan_path, "plan": plan_to_json(get_plan(plan_path))}
        },
        "source": {
            "site": "area_1",
            "manifest": "area_1.yaml",
            "fingerprint": "0123",
        },
    }
    plain = describe_design(
        make_design(), find_contenders(["full"]), folds=1, site=SITE
    )
    assert not {"plans", "source"} & set(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": "3"}, "`draws` is '3'"),
        ({"seeds": 1.5}, "`seeds` is 1.5"),
        ({"draws": True}, "`draws` is True"),
        ({"validation": "val"}, "none, budget, oracle"),
        ({"equal": "seconds"}, "steps, time"),
        ({"until_flat": "yes"}, "true or false"),
        ({"folds": 1}, "`folds` is 1; it must be auto, none"),
        ({"folds": 26}, "`folds` is 26"),
        ({"folds": "five"}, "`folds` is 'five'"),
        ({"folds": 5, "validation": "oracle"}, "no block is left for validation"),
        ({"draws": "3", "equal": "?"}, "\n  - .*\n  - "),
        ({"folds": read_folds("\N{SUPERSCRIPT TWO}")}, "`folds` is"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        make_design(**changes)


@pytest.mark.parametrize(
    ("text", "folds"), [("5", 5), ("auto", "auto"), ("none", None), (" 3 ", 3)]
)
def test_folds_are_read_from_the_command_line(text, folds):
    assert make_design(folds=read_folds(text)).folds == folds


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"modes": ["zero_shot", "scratch", "full"]},
        {"labels": ["1tiles", "2tiles", "4tiles"]},
        {"draws": 4},
        {"seeds": 2},
        {"from": "moved/model.keras"},
        {"manifest": "moved.yaml"},
        {"source": RECORD["source"] | {"manifest": "moved.yaml"}},
    ],
)
def test_a_grid_that_grows_goes_on_in_its_folder(tmp_path, change):
    folder = tmp_path / "compare"
    claim(folder)

    claim(folder, RECORD | change)

    assert read_comparison(folder) == RECORD | change
    assert (folder / "results.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modes": ["full"]}, "modes had scratch"),
        ({"labels": ["4tiles", "8tiles"]}, "labels had 2tiles"),
        ({"draws": 2}, "draws was 3, is 2"),
        ({"folds": 5}, "folds was None, is 5"),
        ({"settings": {"seed": 1, "epochs": 6}}, "settings.seed was 0, is 1"),
        ({"fingerprint": "4567"}, "fingerprint was '0123', is '4567'"),
        ({"source": None}, "source was"),
        ({"draws": 2, "seeds": 0}, "draws was 3, is 2; seeds was 1, is 0"),
    ],
)
def test_another_comparison_is_refused_by_name_and_nothing_is_touched(
    tmp_path, change, message
):
    folder = tmp_path / "compare"
    claim(folder)
    before = sorted(path.name for path in folder.iterdir())

    for try_it in (check_comparison, claim):
        with pytest.raises(ConflictError, match=message) as caught:
            try_it(folder, RECORD | change)
        assert caught.value.exit_code == 7

    assert sorted(path.name for path in folder.iterdir()) == before
    assert read_comparison(folder) == RECORD


def test_a_plan_that_changed_is_refused_and_a_new_one_is_more(tmp_path):
    first = {"mine": {"file": "mine.yaml", "plan": {"l2sp": 0.5}}}
    record = RECORD | {"modes": ["mine"], "plans": first}
    claim(tmp_path / "compare", record)
    changed = {"mine": {"file": "mine.yaml", "plan": {"l2sp": 0.1}}}
    moved = {"mine": first["mine"] | {"file": "moved.yaml"}, "new": {"plan": {}}}

    with pytest.raises(ConflictError, match=r"plans\.mine\.plan\.l2sp was 0\.5"):
        check_comparison(tmp_path / "compare", record | {"plans": changed})
    check_comparison(tmp_path / "compare", record | {"plans": moved})


def test_overwrite_starts_again(tmp_path):
    claim(tmp_path / "compare")
    (tmp_path / "compare" / "old.csv").touch()

    claim(tmp_path / "compare", RECORD | {"draws": 1}, overwrite=True)

    assert read_comparison(tmp_path / "compare")["draws"] == 1
    assert not (tmp_path / "compare" / "old.csv").exists()


def test_a_record_that_cannot_be_read_is_refused(tmp_path):
    claim(tmp_path / "compare")
    (tmp_path / "compare" / "compare.yaml").write_text("- a list", encoding="utf-8")

    with pytest.raises(ConflictError, match="cannot be read"):
        claim(tmp_path / "compare")


def test_a_folder_without_a_comparison_is_told(tmp_path):
    with pytest.raises(DataFileNotFoundError, match=r"no compare\.yaml"):
        read_comparison(tmp_path)


def test_what_is_recorded_can_be_read_by_anything(tmp_path):
    claim(tmp_path / "compare")

    text = (tmp_path / "compare" / "compare.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == RECORD
