"""Comparisons: equal terms for every mode, and no run done twice."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import yaml

from cropseg.comparison.compare import compare_modes
from cropseg.comparison.refit import refit_like
from cropseg.errors import (
    ConflictError,
    DataError,
    DataFileNotFoundError,
    DivergedError,
    ModelError,
    PartialFailureError,
    UsageError,
)
from cropseg.models.card import read_card
from cropseg.transfer.modes import name_mode

MODES = ["zero_shot", "full", "head_only", "pixel_forest"]
LABELS = ["3tiles", "1tiles"]
DRAWS = 2
NUM_CELLS = 1 + 3 * 2 * 2
INTERRUPTED_AT = 5


class Interrupted(BaseException):
    """What a user's Ctrl-C is to a comparison."""


@pytest.fixture(scope="module")
def finished(area_2, source_path, settings, make_fake_fit, tmp_path_factory):
    """Return a comparison that was interrupted once, and what was seen of it."""
    folder = tmp_path_factory.mktemp("comparison")
    fake = make_fake_fit()
    fake.raises[INTERRUPTED_AT] = Interrupted()
    given = {
        "modes": MODES,
        "labels": LABELS,
        "draws": DRAWS,
        "folds": None,
        "out_dir": folder / "compare",
        "seed": 7,
        **settings,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cropseg.training.run.fit_model", fake)
        with pytest.raises(Interrupted):
            compare_modes(area_2, source_path, **given)
        before = read_times(folder / "compare")
        comparison = compare_modes(area_2, source_path, **given)
    return {
        "comparison": comparison,
        "jobs": fake.jobs,
        "before": before,
        "given": given,
    }


def read_times(folder):
    paths = folder.glob("runs/*/metrics.json")
    return {path: path.stat().st_mtime_ns for path in paths}


def read_results(folder):
    text = (folder / "results.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_a_comparison_that_was_interrupted_repeats_no_finished_run(finished):
    after = read_times(finished["comparison"].out_dir)

    assert len(finished["before"]) > 3
    assert len(after) == NUM_CELLS
    assert finished["before"].items() <= after.items()
    # The interrupted one was begun twice, every other one once.
    assert len(finished["jobs"]) == 2 * 2 * DRAWS + 1


def test_a_finished_comparison_trains_nothing_again(
    finished, area_2, source_path, fake_fit
):
    before = read_times(finished["comparison"].out_dir)

    again = compare_modes(area_2, source_path, **finished["given"])

    assert fake_fit.jobs == []
    assert read_times(again.out_dir) == before
    assert again.summary == finished["comparison"].summary


def test_settings_are_equal_but_for_the_mode(finished):
    found = {}
    for path in finished["comparison"].out_dir.glob("runs/*/run.yaml"):
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        if record["command"] == "transfer":
            mode = record.pop("mode")
            assert record.pop("plan").pop("mode") == mode
            key = (record["labels"], record["draw"])
            found.setdefault(mode, {})[key] = record
    assert set(found) == {"zero_shot", "full", "head_only"}

    assert found["full"] == found["head_only"]
    assert len(found["full"]) == 4
    for (labels, draw), record in found["full"].items():
        assert record["labels"] == labels
        assert record["settings"]["seed"] == 7 + draw
        rest = {k: v for k, v in record["settings"].items() if k != "seed"}
        other = found["full"]["1tiles", 0]["settings"]
        assert rest == {k: v for k, v in other.items() if k != "seed"}


def test_every_mode_sees_the_same_labels_and_draws_are_nested(finished):
    seen = {}
    for job in finished["jobs"]:
        draw = job.settings.seed - 7
        key = (draw, len(job.pool.tiles))
        seen.setdefault(key, []).append(job.pool.tiles)
    assert set(seen) == {(draw, count) for draw in range(2) for count in (1, 3)}

    for tiles in seen.values():
        assert len(tiles) >= 2
        assert len(set(tiles)) == 1
    for draw in range(DRAWS):
        assert set(seen[draw, 1][0]) < set(seen[draw, 3][0])
    assert seen[0, 3][0] != seen[1, 3][0]


def test_the_forest_sees_the_labels_of_the_networks(finished):
    rows = read_results(finished["comparison"].out_dir)
    labels = {}
    for row in rows:
        if row["mode"] != "zero_shot":
            key = (row["label_amount"], row["draw"], row["seed"])
            labels.setdefault(key, {})[row["mode"]] = row["label_pixels"]

    assert len(labels) == 4
    for found in labels.values():
        assert set(found) == {"full", "head_only", "pixel_forest"}
        assert len(set(found.values())) == 1


def test_nothing_is_validated_on_the_target(finished):
    assert all(job.validate is None for job in finished["jobs"])
    assert finished["comparison"].summary["validation"] == "none"


def test_the_results_have_a_row_a_run_and_the_columns_of_the_design(finished):
    rows = read_results(finished["comparison"].out_dir)
    listed = (
        "mode,label_unit,label_amount,label_pixels,label_fields,draw,seed,fold,status,"
        "converged,classes_seen,learning_rate,steps,miou,overall_accuracy"
    )

    assert len(rows) == NUM_CELLS
    assert ",".join(rows[0]).startswith(listed)
    assert list(rows[0])[-3:] == ["iou_corn", "iou_water", "iou_soybeans"]
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        assert 0 <= float(row["miou"]) <= 1
        runs = finished["comparison"].out_dir / "runs"
        name = f"{row['mode']}-{row['label_amount']}tiles-draw{row['draw']}"
        (path,) = runs.glob(f"{name}-*/metrics.json")
        metrics = json.loads(path.read_text(encoding="utf-8"))
        assert float(row["miou"]) == metrics["test"]["miou"]


def test_the_summary_names_the_leader_of_each_budget(finished):
    comparison = finished["comparison"]
    path = comparison.out_dir / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    rows = read_results(comparison.out_dir)

    assert summary == comparison.summary
    assert [item["labels"] for item in summary["budgets"]] == ["1tiles", "3tiles"]
    for item, amount in zip(summary["budgets"], ("1", "3"), strict=True):
        means = {}
        for row in rows:
            if row["label_amount"] in ("0", amount):
                means.setdefault(row["mode"], []).append(float(row["miou"]))
        best = max(means, key=lambda mode: sum(means[mode]) / len(means[mode]))
        assert item["leader"] == best
        assert name_mode(best) in item["answer"]
    assert summary["answer"].startswith("With 1 labelled tile, ")
    assert summary["failed"] == []


def test_a_comparison_writes_its_files_and_no_others(finished):
    names = {path.name for path in finished["comparison"].out_dir.iterdir()}

    assert names == {
        *("compare.yaml", "results.csv", "summary.json", "counts.npz"),
        *("advice.json", "normalization.json", "panel.npz", "runs"),
        *("comparison.png", "comparison.svg", "report.html", "report.md"),
    }


def test_the_scores_of_every_run_follow_from_the_counts_that_are_kept(finished):
    comparison = finished["comparison"]
    with np.load(comparison.out_dir / "counts.npz") as counts:
        for result in comparison.results:
            matrix = counts[result.cell.name].sum(axis=0)
            hits = np.trace(matrix[:, :-1])
            accuracy = result.run.metrics["test"]["overall_accuracy"]
            assert hits / matrix.sum() == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "settings.seed was 7, is 8"),
        ({"draws": 1}, "draws was 2, is 1"),
        ({"modes": ["full"]}, "modes had zero_shot, head_only, pixel_forest"),
        ({"labels": ["2tiles"]}, "labels had 1tiles, 3tiles"),
        ({"folds": 2}, "folds was None, is 2"),
        ({"validation": "oracle"}, "validation was 'none', is 'oracle'"),
        ({"equal": "time"}, "equal was 'steps', is 'time'"),
    ],
)
def test_a_folder_with_another_comparison_is_refused(
    finished, area_2, source_path, fake_fit, change, message
):
    with pytest.raises(ConflictError, match=message) as caught:
        compare_modes(area_2, source_path, **finished["given"] | change)

    assert caught.value.exit_code == 7
    assert fake_fit.jobs == []


@pytest.mark.slow
def test_a_run_that_diverges_is_failed_and_the_others_complete(
    area_2, source_path, settings, fake_fit, tmp_path
):
    fake_fit.raises[0] = DivergedError("The loss is nan at step 1.")
    given = {
        "modes": ["full", "head_only", "pixel_forest"],
        "labels": ["1tiles"],
        "draws": 1,
        "folds": None,
        "out_dir": tmp_path / "compare",
        **settings,
    }

    with pytest.raises(PartialFailureError, match="1 of 3 runs failed") as caught:
        compare_modes(area_2, source_path, **given)

    assert caught.value.exit_code == 9
    assert "full-1tiles-draw0" in str(caught.value)
    rows = read_results(tmp_path / "compare")
    status = {row["mode"]: row["status"] for row in rows}
    assert status == {"full": "failed", "head_only": "ok", "pixel_forest": "ok"}
    summary = json.loads((tmp_path / "compare" / "summary.json").read_text("utf-8"))
    assert summary["failed"] == ["full-1tiles-draw0"]
    modes = {item["mode"] for item in summary["budgets"][0]["modes"]}
    assert modes == {"head_only", "pixel_forest"}

    before = len(fake_fit.jobs)
    again = compare_modes(area_2, source_path, **given)  # tries what failed, only

    assert len(fake_fit.jobs) == before + 1
    assert again.summary["failed"] == []


@pytest.mark.slow
def test_a_comparison_in_which_everything_diverges_is_still_written(
    area_2, source_path, settings, fake_fit, tmp_path
):
    fake_fit.raises[0] = DivergedError("The loss is nan at step 1.")

    with pytest.raises(PartialFailureError, match="1 of 1 runs failed"):
        compare_modes(
            area_2,
            source_path,
            modes=["full"],
            labels=["1tiles"],
            draws=1,
            folds=None,
            out_dir=tmp_path / "compare",
            **settings,
        )

    (row,) = read_results(tmp_path / "compare")
    assert row["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"modes": ["fulll"]}, UsageError, "nearest is 'full'"),
        ({"modes": ["full", "joint"]}, UsageError, "joint trains on tiles of area 1"),
        (
            {"modes": ["freeze_layers:head,fulll"]},
            UsageError,
            "'layers:fulll' names no",
        ),
        ({"modes": ["freeze_first:4"]}, UsageError, "'encoder_4' names no layer"),
        ({"modes": ["gradual"]}, UsageError, "5 phases on this network"),
        ({"labels": ["3trees"]}, UsageError, "3trees"),
        ({"labels": ["900tiles"]}, DataError, "900tiles"),
        ({"draws": 0}, UsageError, "0 draws"),
        ({"seeds": 0}, UsageError, "0 seeds"),
        ({"validation": "val"}, UsageError, "none, budget, oracle"),
        ({"validation": "budget"}, DataError, "budget has 1 tile; expected 2"),
        ({"folds": 26}, UsageError, "`folds` is 26"),
        ({"tile_size": 64}, UsageError, "tile_size"),
        ({"epochs": 0}, UsageError, "epochs"),
    ],
)
def test_what_cannot_be_compared_leaves_nothing_behind(
    finished, area_2, source_path, tmp_path, change, error, message
):
    given = finished["given"] | {"out_dir": tmp_path / "compare"} | change

    with pytest.raises(error, match=message):
        compare_modes(area_2, source_path, **given)

    assert not (tmp_path / "compare").exists()


def test_the_normalization_is_reported_once_with_its_zero_shot_score(finished):
    found = finished["comparison"].summary["normalization"]

    assert found["choice"] == "source"
    assert 0 <= found["zero_shot_miou"]["source"] <= 1


def write_plan(path, **changes):
    plan = {"mode": "mine", "based_on": "head_only", "summary": "Mine."} | changes
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def special(area_1, area_2, source_path, settings, make_fake_fit, tmp_path_factory):
    """Return a comparison of modes with values, of a file, and of both areas."""
    folder = tmp_path_factory.mktemp("special")
    fake = make_fake_fit()
    given = {
        "modes": [
            *("adabn", "joint"),
            "freeze_layers:encoder_1_*,decoder_1_*",
            "pixel_forest",
            write_plan(folder / "mine.yaml"),
        ],
        "labels": ["1tiles"],
        "draws": 2,
        "folds": None,
        "source_site": area_1,
        "out_dir": folder / "compare",
        **settings,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cropseg.training.run.fit_model", fake)
        comparison = compare_modes(area_2, source_path, **given)
    return {"comparison": comparison, "given": given, "plan": folder / "mine.yaml"}


@pytest.mark.slow
def test_every_kind_of_mode_is_compared_under_its_name(special):
    folder = special["comparison"].out_dir
    rows = [(row["mode"], row["label_amount"]) for row in read_results(folder)]

    pattern = "freeze_layers:encoder_1_*,decoder_1_*"
    modes = ("joint", pattern, "pixel_forest", "mine")
    assert rows == [("adabn", "0"), *((mode, "1") for mode in modes * 2)]
    summary = special["comparison"].summary
    assert {item["mode"] for item in summary["budgets"][0]["modes"]} == {
        "adabn",
        *modes,
    }
    names = {path.name.rpartition("-")[0] for path in (folder / "runs").iterdir()}
    assert names == {result.cell.name for result in special["comparison"].results}
    assert {"adabn-0tiles-draw0", "mine-1tiles-draw1"} < names


@pytest.mark.slow
def test_the_plan_of_a_file_decides_what_is_trained(special):
    (folder,) = special["comparison"].out_dir.glob("runs/mine-1tiles-draw0-*")
    report = json.loads((folder / "weights.json").read_text(encoding="utf-8"))

    trained = {
        row["variable"].partition("/")[0]
        for row in report
        if row["training"] == "trained"
    }
    assert trained == {"head"}
    assert read_card(folder / "model.keras").lineage.mode == "mine"


@pytest.mark.slow
def test_a_plan_that_changes_is_another_comparison(
    special, area_2, source_path, fake_fit
):
    before = special["plan"].read_bytes()
    try:
        write_plan(special["plan"], based_on="full")
        with pytest.raises(ConflictError, match=r"plans\.mine\.plan"):
            compare_modes(area_2, source_path, **special["given"])
        with pytest.raises(UsageError, match="not the plan that was compared"):
            refit_like(
                area_2,
                special["comparison"].out_dir,
                mode="mine",
                out_dir=special["plan"].parent / "refitted",
            )
    finally:
        special["plan"].write_bytes(before)

    assert fake_fit.jobs == []
    again = compare_modes(area_2, source_path, **special["given"])
    assert again.summary == special["comparison"].summary


@pytest.mark.slow
@pytest.mark.parametrize("by_path", [False, True])
def test_a_plan_of_a_file_is_refitted_by_its_name_or_path(
    special, area_2, fake_fit, tmp_path, by_path
):
    mode = str(special["plan"]) if by_path else "mine"

    run = refit_like(
        area_2, special["comparison"].out_dir, mode=mode, out_dir=tmp_path / "final"
    )

    assert read_card(run.model_path).lineage.mode == "mine"
    (job,) = fake_fit.jobs
    assert len(job.pool.tiles) > 1


@pytest.mark.slow
def test_joint_is_refitted_with_the_source_site_only(
    special, area_1, area_2, fake_fit, tmp_path
):
    given = {"mode": "joint", "out_dir": tmp_path / "final"}

    with pytest.raises(UsageError, match="--source"):
        refit_like(area_2, special["comparison"].out_dir, **given)
    assert not (tmp_path / "final").exists()
    refit_like(area_2, special["comparison"].out_dir, source_site=area_1, **given)

    assert len(fake_fit.jobs) == 1


@pytest.mark.slow
def test_a_refit_takes_settings_and_model_of_the_comparison_and_all_labels(
    finished, area_2, fake_fit, tmp_path
):
    folder = finished["comparison"].out_dir

    run = refit_like(area_2, folder, mode="head_only", out_dir=tmp_path / "final")

    (job,) = fake_fit.jobs
    settings = finished["comparison"].summary["settings"]
    assert job.settings.to_json() == settings
    assert job.settings.seed == 7
    assert len(job.pool.tiles) > 3
    assert {tile.train_pixels for tile in job.pool.tiles} >= {
        tile.train_pixels for other in finished["jobs"] for tile in other.pool.tiles
    }
    card = read_card(run.model_path)
    assert (card.lineage.mode, card.lineage.labels) == ("head_only", None)
    assert card.lineage.source_sha256 == finished["comparison"].summary["from_sha256"]


@pytest.mark.parametrize("mode", ["scratch", "pixel_forest", "fulll"])
def test_a_mode_that_was_not_compared_cannot_be_refitted(
    finished, area_2, tmp_path, mode
):
    with pytest.raises(UsageError, match=f"got {mode!r}"):
        refit_like(
            area_2,
            finished["comparison"].out_dir,
            mode=mode,
            out_dir=tmp_path / "final",
        )

    assert not (tmp_path / "final").exists()


def test_a_refit_needs_a_comparison(area_2, tmp_path):
    with pytest.raises(DataFileNotFoundError, match=r"no compare\.yaml"):
        refit_like(area_2, tmp_path, mode="full", out_dir=tmp_path / "final")

    assert not (tmp_path / "final").exists()


def test_a_refit_needs_the_model_that_was_compared(
    finished, area_2, source_path, tmp_path
):
    folder = tmp_path / "compare"
    model_path = tmp_path / "model.keras"
    shutil.copy(source_path, model_path)
    shutil.copytree(finished["comparison"].out_dir, folder)
    record_path = folder / "compare.yaml"
    record = yaml.safe_load(record_path.read_text(encoding="utf-8"))
    record["from"], record["from_sha256"] = str(model_path), "0" * 64
    record_path.write_text(yaml.safe_dump(record), encoding="utf-8")

    with pytest.raises(ModelError, match="not the model that was compared"):
        refit_like(area_2, folder, mode="full", out_dir=tmp_path / "final")


def test_the_best_network_is_the_first_of_the_largest_budget_with_a_model(finished):
    comparison = finished["comparison"]
    ranked = [item["mode"] for item in comparison.summary["budgets"][-1]["modes"]]
    expected = next(mode for mode in ranked if mode != "pixel_forest")

    assert comparison.find_best_network() == expected
