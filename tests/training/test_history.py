"""History: when a training is done, and the files that tell of it."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from cropseg.training.history import Epoch, has_converged, plot_curves, write_history

PNG = b"\x89PNG\r\n\x1a\n"


def make_epochs(scores=(0.25, 0.5)):
    return [
        Epoch(
            epoch=number,
            step=3 * number,
            loss=1 / number,
            learning_rate=0.001 / number,
            val_miou=score,
            seconds=0.5,
        )
        for number, score in enumerate(scores, start=1)
    ]


def fall(share, steps=100, noise=0.0):
    """Return losses that fall by this share of their mean in the last tenth."""
    tail = steps // 10
    slope = share / (tail - 1)
    line = 1 + slope * ((tail - 1) / 2 - np.arange(tail))
    start = np.linspace(10, line[0], steps - tail)
    rng = np.random.default_rng(0)
    return [*start, *(line + rng.normal(0, noise, tail) if noise else line)]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.049, True), (0.051, False), (0.0, True), (-0.5, True)]
)
@pytest.mark.parametrize("steps", [100, 1000])
def test_a_training_is_done_when_its_last_tenth_falls_by_less_than_5_percent(
    share, steps, expected
):
    assert has_converged(fall(share, steps)) is expected


def test_convergence_does_not_depend_on_the_scale_of_the_loss():
    for share in (0.04, 0.06):
        small = [0.001 * loss for loss in fall(share)]
        assert has_converged(small) is has_converged(fall(share))


@pytest.mark.parametrize("losses", [[1.0, 1.0], [1.0, 0.5], [3.0, 2.0, 1.0]])
def test_two_steps_are_enough_to_judge(losses):
    assert has_converged(losses) is (losses[-1] == losses[-2])


def test_one_step_is_not_enough_to_say_that_a_training_is_done():
    assert has_converged([1.0]) is False


def test_history_has_a_row_an_epoch(tmp_path):
    path = tmp_path / "history.csv"

    write_history(make_epochs(scores=(0.25, None)), path)

    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["3", "6"]
    assert [float(row["loss"]) for row in rows] == [1.0, 0.5]
    assert [float(row["learning_rate"]) for row in rows] == [0.001, 0.0005]
    assert [row["val_miou"] for row in rows] == ["0.25", ""]
    assert [row["seconds"] for row in rows] == ["0.5", "0.5"]


@pytest.mark.parametrize("scores", [(0.25, 0.5), (None, None), (None, 0.5)])
def test_curves_are_a_png_with_and_without_validation(tmp_path, scores):
    path = tmp_path / "curves.png"

    title = r"a $\frac$ b: full"  # a name, and no formula
    plot_curves([3.0, 2.5, 2.0, 1.5, 1.2, 1.0], make_epochs(scores), title, path)

    assert path.read_bytes().startswith(PNG)
    assert [item.name for item in tmp_path.iterdir()] == ["curves.png"]


def test_noise_of_the_batches_is_no_fall():
    rng = np.random.default_rng(0)
    flat = 0.5 * (1 + rng.normal(0, 0.1, (2_000, 300)))
    falling = flat * np.linspace(1, 0, 300)  # by a tenth and more over the last tenth

    assert np.mean([has_converged(losses) for losses in flat]) > 0.96
    assert np.mean([has_converged(losses + 0.05) for losses in falling]) < 0.1
