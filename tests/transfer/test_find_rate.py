"""Finding a learning rate for a site: on what a training would start with."""

from __future__ import annotations

import pytest

from cropseg.errors import DataError, UsageError
from cropseg.training.settings import TrainSettings
from cropseg.training.train import train_site
from cropseg.transfer import find_rate
from cropseg.transfer.find_rate import find_learning_rate
from cropseg.transfer.transfer import transfer_to_site

STEPS = 12
NEW = {"encoder": "classic_tiny", "tile_size": 32, "batch_size": 2}


@pytest.fixture
def seen(monkeypatch):
    """Return what was given to the range test, in place of running it."""
    calls = []

    def search(job, phase, num_steps, show_progress):
        del show_progress
        calls.append((job, phase, num_steps))

    monkeypatch.setattr(find_rate, "_search", search)
    return calls


def read_first_loss(run):
    """Return the loss of the one step of a run."""
    rows = (run.out_dir / "history.csv").read_text(encoding="utf-8").splitlines()
    return float(rows[1].split(",")[rows[0].split(",").index("loss")])


@pytest.mark.slow
def test_a_new_network_is_tested_at_the_start_of_its_training(area_1, tmp_path):
    one = {**NEW, "epochs": 1, "steps_per_epoch": 1}
    run = train_site(area_1, out_dir=tmp_path / "run", seed=3, **one)

    search = find_learning_rate(area_1, num_steps=STEPS, seed=3, **NEW)

    assert len(search.rates) == STEPS
    # Same weights, same first batch.
    assert search.losses[0] == pytest.approx(read_first_loss(run), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "head_only"])
def test_a_transfer_is_tested_at_the_start_of_its_training(
    area_2, source_path, tmp_path, mode
):
    given = {"mode": mode, "labels": "4tiles", "draw": 1, "batch_size": 2}
    run = transfer_to_site(
        *(area_2, source_path),
        **(given | {"epochs": 1, "steps_per_epoch": 1}),
        out_dir=tmp_path / "run",
    )

    search = find_learning_rate(area_2, source_path, num_steps=STEPS, **given)

    assert search.losses[0] == pytest.approx(read_first_loss(run), rel=1e-5)


@pytest.mark.slow
def test_equal_calls_give_equal_answers_in_the_steps_that_are_asked_for(area_1):
    steps = []

    first, second = (
        find_learning_rate(
            area_1,
            num_steps=STEPS,
            show_progress=lambda done, total, _: steps.append((done, total)),
            **NEW,
        )
        for _ in range(2)
    )

    assert second == first
    assert steps == [(done, STEPS) for done in range(1, STEPS + 1)] * 2
    assert TrainSettings(**NEW).num_steps != STEPS


DIFFERENT = [
    "gradual",
    *(
        pytest.param(mode, marks=pytest.mark.slow)
        for mode in ("joint", "l2sp", "lp_ft", "self_supervised")
    ),
]


@pytest.mark.parametrize("mode", DIFFERENT)
def test_the_first_phase_that_trains_is_tested(area_1, area_2, source_path, seen, mode):
    find_learning_rate(area_2, source_path, mode=mode, source_site=area_1, num_steps=33)

    ((job, phase, num_steps),) = seen
    assert num_steps == 33
    assert phase.trains
    assert phase is next(item for item in job.phases if item.trains)
    assert (job.penalty is not None) == (mode == "l2sp")
    assert (job.source_tiles is not None) == (mode == "joint")


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        ("zero_shot", "trains nothing"),
        ("adabn", "trains nothing"),
        ("resume", "goes on at the learning rate of its source"),
    ],
)
def test_a_mode_without_a_rate_of_its_own_is_refused(
    area_2, source_path, seen, mode, word
):
    with pytest.raises(UsageError, match=word):
        find_learning_rate(area_2, source_path, mode=mode)
    assert not seen


@pytest.mark.slow
def test_the_budget_and_its_draw_decide_the_labels(area_1, seen):
    for draw in (0, 1):
        find_learning_rate(area_1, labels="4tiles", draw=draw, **NEW)

    first, second = (job.pool for job, *_ in seen)
    assert len(first.tiles) == len(second.tiles) == 4
    assert first.tiles != second.tiles


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"labels": "4"}, UsageError, "4tiles; got '4'"),
        ({"labels": "900tiles"}, DataError, "900tiles was asked for"),
        ({"tile_size": 30}, UsageError, "Tile size 30 does not fit"),
        ({"batch_size": 0}, UsageError, "batch_size"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(area_1, seen, changes, error, word):
    with pytest.raises(error, match=word):
        find_learning_rate(area_1, **(NEW | changes))
    assert not seen
