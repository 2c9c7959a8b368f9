"""Runs of one process share a source, tiles and traces, and come out the same."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest

from cropseg.memory import read_memory
from cropseg.models.bundle import load_bundle
from cropseg.runtime import keras, share_between_runs
from cropseg.training.finished import load_counts
from cropseg.transfer.source import find_source
from cropseg.transfer.transfer import transfer_to_site

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="networks are shared there alone"
)

NUM_RUNS = 6
FIRST_RUN = 2
GROWTH_BYTES = 5 * 2**20
"""What a run may leave behind; its traces alone took 15 MB when they stayed."""


def run_modes(area_1, area_2, source_path, settings, folder):
    """Run modes whose trainers are alike, after runs with other weights and classes."""
    runs = {}
    for draw in (0, 1):
        for mode in ("scratch", "full", "lp_ft", "joint"):
            name = f"{mode}-{draw}"
            runs[name] = transfer_to_site(
                area_2,
                source_path,
                mode=mode,
                out_dir=folder / name,
                labels=f"{4 + draw}tiles",
                draw=draw,
                source_site=area_1,
                **settings | {"seed": draw, "steps_per_epoch": 4},
            )
    return runs


def read_run(run):
    """Return all numbers that a run left: weights, counts and the optimizer's state."""
    model = load_bundle(run.model_path).model
    arrays = {v.path: np.asarray(v) for v in model.weights}
    arrays |= load_counts(run.out_dir)
    with np.load(run.out_dir / "checkpoints" / "state.npz") as state:
        arrays |= {name: state[name] for name in state.files if name != "record"}
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.slow
def test_runs_that_share_end_with_the_bits_of_runs_that_do_not(
    area_1, area_2, source_path, settings, tmp_path
):
    sites = (area_1, area_2)
    alone = run_modes(*sites, source_path, settings, tmp_path / "alone")
    with share_between_runs():
        together = run_modes(*sites, source_path, settings, tmp_path / "together")
    for name, run in alone.items():
        assert read_run(together[name]) == read_run(run), name


def test_a_shared_source_is_loaded_once_and_leaves_the_same_random_numbers(source_path):
    source = find_source(source_path)
    random.seed(7)
    source.load()
    expected = random.getstate()
    with share_between_runs():
        found = []
        for _ in range(2):
            random.seed(7)
            found.append(source.load())
            assert random.getstate() == expected
    assert found[0] is found[1]
    assert source.load() is not found[0]


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize("shares", [False, True])
def test_memory_does_not_grow_with_the_number_of_runs(
    shares, area_2, source_path, settings, tmp_path
):
    def run(index):
        transfer_to_site(
            area_2,
            source_path,
            mode="full",
            out_dir=tmp_path / str(index),
            labels="4tiles",
            draw=index,
            **settings,
        )
        gc.collect()
        return read_memory()

    if shares:
        with share_between_runs():
            found = [run(index) for index in range(NUM_RUNS)]
    else:
        found = [run(index) for index in range(NUM_RUNS)]
    if None in found:
        pytest.skip("this system does not tell the memory in use")
    assert found[-1] - found[FIRST_RUN] < (NUM_RUNS - 1 - FIRST_RUN) * GROWTH_BYTES
