"""Runs as arrays: draws by seeds by test blocks."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.comparison.summary.collect import Collection, share_draws
from cropseg.errors import DataError
from cropseg.sites.budget import parse_budget

FOUR = parse_budget("4tiles")


def collect(made_up, labels="4tiles"):
    return Collection(made_up.results).collect(parse_budget(labels))


def mark_counts(made_up, value, blocks=2):
    """Return counts that tell by their values where they ended up."""
    num = len(made_up.names)
    counts = np.ones((blocks, num, num + 1), np.int64)
    counts[:, 0, 0] = value + np.arange(blocks)
    return counts


def test_runs_are_put_in_order_by_draw_seed_and_block(made_up):
    for repeat in (1, 0):
        for draw in (1, 2, 0):
            counts = mark_counts(made_up, 1000 * draw + 100 * repeat)
            made_up.add("full", draw=draw, repeat=repeat, counts=counts)

    runs = collect(made_up)["full"]

    assert runs.counts.shape == (3, 2, 2, 3, 4)
    assert runs.counts[:, 0, 0, 0, 0].tolist() == [0, 1000, 2000]
    assert runs.counts[1, :, 0, 0, 0].tolist() == [1000, 1100]
    assert runs.counts[2, 1, :, 0, 0].tolist() == [2100, 2101]
    assert runs.draws == (0, 1, 2)
    assert [(unit.draw, unit.seed) for unit in runs.units[:2]] == [(0, 7), (0, 1007)]


def test_folds_are_joined_along_the_blocks(made_up):
    for fold, ids in ((1, [5, 8]), (0, [2, 9])):
        made_up.add("scratch", fold=fold, block_ids=ids)
        counts = mark_counts(made_up, 10 * fold + 10)
        made_up.add("full", fold=fold, counts=counts, block_ids=ids)

    collection = Collection(made_up.results)
    runs = collection.collect(FOUR)["full"]

    assert collection.num_blocks == 4
    assert runs.counts.shape == (1, 1, 4, 3, 4)
    assert runs.counts[0, 0, :, 0, 0].tolist() == [10, 11, 20, 21]
    assert len(runs.runs) == 2


def test_other_arrays_of_the_folds_are_joined_too(made_up):
    for fold in (0, 1):
        arrays = {"test_mapped": np.full((2, 4), fold)}
        made_up.add("full", fold=fold, block_ids=[fold, fold + 7], arrays=arrays)

    (unit,) = collect(made_up)["full"].units

    assert unit.join("test_mapped")[:, 0].tolist() == [0, 0, 1, 1]
    assert unit.join("test_fields") is None


def test_a_draw_with_a_failed_run_is_left_out_and_told(made_up):
    for repeat in (0, 1):
        made_up.add("full", draw=0, repeat=repeat)
    made_up.add("full", draw=1, repeat=0)
    made_up.fail("full", draw=1, repeat=1)

    runs = collect(made_up)["full"]

    assert runs.draws == (0,)
    assert runs.counts.shape[:2] == (1, 2)
    assert runs.note == "full is without draw 1, of which a run failed."


def test_a_draw_that_lacks_a_fold_altogether_is_left_out(made_up):
    made_up.add("full", draw=0, fold=0, block_ids=[1, 2])
    made_up.add("full", draw=0, fold=1, block_ids=[3])
    made_up.add("full", draw=1, fold=0, block_ids=[1, 2])

    assert collect(made_up)["full"].draws == (0,)


def test_a_mode_without_a_whole_draw_is_left_out(made_up):
    made_up.add("scratch")
    made_up.add("full", fold=None, repeat=0)
    made_up.fail("full", repeat=1)

    assert list(collect(made_up)) == ["scratch"]


def test_modes_without_labels_stand_in_every_budget_for_every_draw(made_up):
    made_up.add("zero_shot", None)
    for draw in (0, 1, 2):
        made_up.add("full", draw=draw)
        made_up.add("full", "8tiles", draw=draw)

    for labels in ("4tiles", "8tiles"):
        modes = collect(made_up, labels)
        assert modes["zero_shot"].draws is None
        assert modes["zero_shot"].counts.shape[0] == 1
        assert share_draws(modes.values()) == [0, 1, 2]
        assert len(modes["zero_shot"].take_draws([0, 2])) == 1
        assert len(modes["full"].take_draws([0, 2])) == 2


def test_draws_are_shared_where_all_have_them(made_up):
    for draw in (0, 1, 2):
        made_up.add("full", draw=draw)
    made_up.fail("scratch", draw=0)
    for draw in (1, 2):
        made_up.add("scratch", draw=draw)

    modes = collect(made_up)

    assert share_draws(modes.values()) == [1, 2]
    taken = modes["scratch"].take_draws([2])
    np.testing.assert_array_equal(taken[0], modes["scratch"].counts[1])


def test_blocks_are_matched_by_their_numbers(made_up):
    made_up.add("scratch", block_ids=[3, 5, 8])
    counts = mark_counts(made_up, 10, blocks=3)
    made_up.add("full", counts=counts, block_ids=[4, 5, 8])

    collection = Collection(made_up.results)

    assert collection.blocks[None].tolist() == [5, 8]
    runs = collection.collect(FOUR)["full"]
    assert runs.counts[0, 0, :, 0, 0].tolist() == [11, 12]


def test_runs_on_other_blocks_cannot_be_compared(made_up):
    made_up.add("scratch", block_ids=[1, 2])
    made_up.add("full", block_ids=[3, 4])

    with pytest.raises(DataError, match="share none"):
        Collection(made_up.results)


def test_labels_are_taken_once_whatever_the_number_of_runs(made_up):
    for fold, ids in ((0, [0, 1]), (1, [2])):
        for mode in ("full", "scratch"):
            made_up.add(mode, fold=fold, block_ids=ids)

    pixels = Collection(made_up.results).take_labels(3).sum(axis=2)

    expected = made_up.make_counts(0.5, blocks=[0, 1, 2]).sum(axis=2)
    assert pixels.tolist() == expected.tolist()


def test_without_a_finished_run_there_is_no_label(made_up):
    made_up.fail("full")

    assert Collection(made_up.results).take_labels(3).shape == (0, 3, 4)
