"""A comparison that is killed goes on, and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import sys
import time

import numpy as np
import pytest

NUM_KILLS = 10
TIMED = ("seconds", "peak_memory_bytes")
"""Columns of `results.csv` that tell of the machine."""
GRID = (
    *("--modes", "zero_shot,full,lp_ft,pixel_forest", "--labels", "2tiles"),
    *("--draws", "2", "--folds", "none", "--validation", "budget"),
    *("--batch-size", "2", "--epochs", "3", "--steps-per-epoch", "3"),
)


@pytest.fixture(scope="module")
def command(make_site, source_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    names = ("corn", "water", "soybeans")
    manifest = make_site(folder / "area_2", class_names=names, seed=1)

    def start(out):
        given = (manifest, "--from", source_path, "--out", out, *GRID, "--quiet")
        program = (sys.executable, "-m", "cropseg", "compare", *map(str, given))
        return subprocess.Popen(program)

    return start


def read_rows(folder):
    text = (folder / "results.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def find_newest(folder):
    """Return when something in a folder changed last, in ns."""
    newest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # hidden parts come and go
            newest = max(newest, path.stat().st_mtime_ns)
    return newest


def wait_until_it_writes(process, folder):
    """Wait until there is something to lose: the imports take longest."""
    before = find_newest(folder)
    while process.poll() is None and find_newest(folder) == before:
        time.sleep(0.05)


@pytest.mark.slow
def test_what_is_killed_at_any_moment_ends_with_the_results_of_what_was_not(
    command, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = command(whole)
    wait_until_it_writes(process, whole)
    begun_at = time.perf_counter()
    assert process.wait() == 0
    seconds = time.perf_counter() - begun_at

    rng = np.random.default_rng()
    # Short enough that the last kills still hit a comparison that is not finished.
    delays = rng.uniform(0, 0.2 * seconds, NUM_KILLS)
    num_finished = [0]
    for delay in delays:
        process = command(killed)
        wait_until_it_writes(process, killed)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL: nothing can be tidied up
            process.wait()
        num_finished.append(len(list(killed.glob("runs/*/metrics.json"))))
    assert command(killed).wait() == 0

    assert read_rows(killed) == read_rows(whole), f"killed after {delays} s"
    assert num_finished == sorted(num_finished)
    names = {path.name for path in (killed / "runs").iterdir()}
    assert names == {path.name for path in (whole / "runs").iterdir()}
    left = [path for path in killed.rglob(".*") if ".part" in path.name]
    assert left == []
