"""Checkpoints: what is saved comes back bit by bit, and damage is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.training.checkpoint import TrainingState, load_state, save_state
from cropseg.training.history import Epoch


def make_state(num_best=2):
    rng = np.random.default_rng(0)
    variables = [rng.normal(size=(2, 3)).astype(np.float32) for _ in range(12)]
    variables += [np.array(7, np.int64), np.array([1, 2], np.uint32)]
    epoch = Epoch(
        epoch=1, step=3, loss=0.1, learning_rate=0.01, val_miou=None, seconds=1.5
    )
    return TrainingState(
        epochs=(epoch, dataclasses.replace(epoch, epoch=2, val_miou=1 / 3)),
        losses=(0.3, 0.2, 0.1),
        variables=variables,
        best_weights=[value + 1 for value in variables[:num_best]],
    )


@pytest.mark.parametrize("num_best", [0, 2])
def test_a_state_comes_back_bit_by_bit_and_in_order(tmp_path, num_best):
    path = tmp_path / "checkpoints" / "state.npz"
    state = make_state(num_best)

    save_state(state, path)
    loaded = load_state(path)

    assert loaded.epochs == state.epochs
    assert loaded.losses == state.losses
    for name in ("variables", "best_weights"):
        ours, theirs = getattr(loaded, name), getattr(state, name)
        assert len(ours) == len(theirs)
        for value, expected in zip(ours, theirs, strict=True):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)


def test_where_there_is_no_checkpoint_there_is_no_state(tmp_path):
    assert load_state(tmp_path / "state.npz") is None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint_is_told_and_never_a_fresh_start(tmp_path, share):
    path = tmp_path / "state.npz"
    save_state(make_state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(ModelError, match=r"state\.npz cannot be read.*--overwrite"):
        load_state(path)


def test_a_flipped_bit_in_a_checkpoint_is_told(tmp_path):
    path = tmp_path / "state.npz"
    save_state(make_state(), path)
    content = bytearray(path.read_bytes())
    position = content.index(make_state().variables[0].tobytes())
    content[position + 3] ^= 1
    path.write_bytes(content)

    with pytest.raises(ModelError, match="cannot be read"):
        load_state(path)


def test_a_checkpoint_replaces_the_one_before_it(tmp_path):
    path = tmp_path / "state.npz"
    save_state(make_state(), path)

    save_state(dataclasses.replace(make_state(), losses=(9.0,)), path)

    assert load_state(path).losses == (9.0,)
    assert [item.name for item in tmp_path.iterdir()] == ["state.npz"]
