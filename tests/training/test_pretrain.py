"""Pretraining without labels: what is hidden, what is learnt, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import DivergedError, UsageError
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network, find_stages
from cropseg.runtime import keras, start_run
from cropseg.sites.bands import BandReader
from cropseg.sites.split import PARTS
from cropseg.sites.statistics import survey_site
from cropseg.sites.unlabelled import list_unlabelled_tiles
from cropseg.training import pretrain
from cropseg.training.pretrain import (
    HiddenBatches,
    plan_squares,
    pretrain_encoder,
)
from cropseg.training.settings import TrainSettings

SIZE = 32
SHORT = {"tile_size": SIZE, "batch_size": 2, "epochs": 2, "steps_per_epoch": 2}


@pytest.fixture(scope="module")
def statistics(area_1):
    bands = survey_site(area_1, SIZE).bands
    return bands.mean, bands.std


@pytest.fixture(scope="module")
def pretrain_new(area_1, statistics):
    """Return a function that pretrains a new model: it, weights before, losses."""

    def run(*, prepare=lambda _model: None, show_progress=None, **changes):
        start_run(0)
        network = build_network("unet", "classic_tiny", num_bands=5, num_classes=4)
        model = add_normalization(network, mean=statistics[0], std=statistics[1])
        prepare(model)
        before = read_weights(model)
        losses = pretrain_encoder(
            model,
            find_stages(model, "unet", "classic_tiny"),
            area_1,
            TrainSettings(**SHORT | changes),
            statistics=statistics,
            show_progress=show_progress or (lambda *_: None),
        )
        return model, before, losses

    return run


@pytest.fixture(scope="module")
def pretrained(pretrain_new):
    """Return what `pretrain_new` returns, and the windows that were read for it."""
    windows = []
    read = BandReader.read_pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            BandReader,
            "read_pixels",
            lambda self, window: windows.append(window) or read(self, window),
        )
        model, before, losses = pretrain_new()
        return before, read_weights(model), losses, windows


def read_weights(model):
    return {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}


def make_batches(site, statistics, **changes):
    settings = TrainSettings(**SHORT | changes)
    return HiddenBatches(
        list_unlabelled_tiles(site, SIZE),
        plan_squares(SIZE, 4),
        settings=settings,
        statistics=statistics,
    )


def unfold(targets, stride):
    """Return targets (tiles, h, w, stride^2 * channels) as (tiles, H, W, channels)."""
    num, height, width, depth = targets.shape
    cut = targets.reshape(num, height, width, stride, stride, depth // stride**2)
    return cut.swapaxes(2, 3).reshape(num, height * stride, width * stride, -1)


def list_moved(model, before):
    return compare(read_weights(model), before)


def compare(after, before):
    return {path for path, value in after.items() if (value != before[path]).any()}


def test_every_variable_of_the_encoder_moves_and_no_other(pretrained):
    before, after, losses, _ = pretrained

    encoder = {path for path in before if path.startswith("encoder_")}
    assert compare(after, before) == encoder
    assert any(path.endswith("moving_mean") for path in encoder)
    assert len(losses) == 4
    assert all(np.isfinite(losses))


@pytest.mark.slow
def test_locked_layers_are_trained_and_stay_locked(pretrain_new):
    def lock(model):
        for layer in model.layers:
            layer.trainable = layer.name == "head"

    model, before, _ = pretrain_new(prepare=lock)

    assert "encoder_1_conv_1/kernel" in list_moved(model, before)
    assert [v.path for v in model.trainable_variables] == ["head/kernel", "head/bias"]


@pytest.mark.slow
def test_equal_calls_give_equal_bits_for_any_number_of_workers(pretrain_new):
    model, _, losses = pretrain_new(workers=1)
    same, _, same_losses = pretrain_new(workers=2)
    other, _, other_losses = pretrain_new(seed=1)

    assert same_losses == losses
    assert list_moved(same, read_weights(model)) == set()
    assert other_losses != losses
    assert "encoder_1_conv_1/kernel" in list_moved(other, read_weights(model))


@pytest.mark.slow
def test_bfloat16_leaves_float32_weights_in_the_encoder_alone(pretrain_new):
    model, before, _ = pretrain_new(precision="bfloat16")

    assert list_moved(model, before) == {p for p in before if p.startswith("encoder_")}
    assert {v.dtype for v in model.weights} == {"float32"}


@pytest.mark.slow
def test_the_loss_falls_below_that_of_the_best_constant(
    area_1, statistics, pretrain_new
):
    changes = {"batch_size": 4, "steps_per_epoch": 40, "learning_rate": 0.01}
    batches = make_batches(area_1, statistics, **changes)
    truth = np.concatenate([batches[k][1].reshape(-1, 6) for k in range(80)])
    truth = truth[truth[:, -1] == 1, :-1]
    of_mean = np.abs(truth).mean()
    of_median = np.abs(truth - np.median(truth, axis=0)).mean()

    _, _, losses = pretrain_new(**changes)

    last = np.mean(losses[-10:])
    assert last < 0.9 * of_mean
    assert last < 0.95 * of_median


def test_no_pixel_of_val_or_test_is_read(area_1, pretrained):
    *_, windows = pretrained

    assert windows
    for window in windows:
        parts = area_1.require_split().read_parts(area_1.scenes[0].grid, window)
        assert not np.isin(parts, (PARTS.index("val"), PARTS.index("test"))).any()


@pytest.mark.slow
def test_every_step_is_reported(pretrain_new):
    steps = []

    _, _, losses = pretrain_new(show_progress=lambda *args: steps.append(args))

    assert [(done, total) for done, total, _ in steps] == [(n, 4) for n in range(1, 5)]
    assert steps[-1][2] == f"pretraining, loss {losses[-1]:.3f}"


@pytest.mark.slow
def test_the_loss_of_a_step_is_that_of_its_batch(
    area_1, statistics, pretrain_new, monkeypatch
):
    ops = keras.ops
    monkeypatch.setattr(
        pretrain,
        "_bind_loss",
        lambda _: lambda targets, guess: ops.mean(targets) + 0 * ops.mean(guess),
    )
    batches = make_batches(area_1, statistics)

    _, _, losses = pretrain_new()

    assert losses == pytest.approx([batches[k][1].mean() for k in range(4)], rel=1e-4)


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_leaves_the_model_as_it_was(
    pretrain_new, monkeypatch
):
    monkeypatch.setattr(
        pretrain, "_bind_loss", lambda _: lambda _, guess: keras.ops.mean(guess) / 0.0
    )
    seen = []

    with pytest.raises(DivergedError, match=r"at step 1 of pretraining.*learning-rate"):
        pretrain_new(prepare=seen.append)

    start_run(0)
    network = build_network("unet", "classic_tiny", num_bands=5, num_classes=4)
    new = dict(
        zip((v.path for v in network.weights), network.get_weights(), strict=True)
    )
    assert list_moved(seen[0], new) == set()


def test_batch_k_is_a_function_of_seed_and_k(area_1, statistics):
    forwards = make_batches(area_1, statistics)
    expected = [forwards[k] for k in range(3)]
    backwards = make_batches(area_1, statistics)

    for k in (2, 0, 1):
        for values, others in zip(backwards[k], expected[k], strict=True):
            np.testing.assert_array_equal(values, others)
    other = make_batches(area_1, statistics, seed=1)[0]
    assert (expected[0][0] != expected[1][0]).any()
    assert (expected[0][0] != other[0]).any()


def test_a_batch_hides_what_it_asks_for_and_nothing_else(area_1, statistics):
    batches = make_batches(area_1, statistics, batch_size=8)
    mean, std = (np.array(item, np.float32) for item in statistics)
    views = list_views(area_1)
    invalid = 0

    for k in range(5):
        images, targets = batches[k]
        targets = unfold(targets, 4)
        counts = targets[..., -1].astype(bool)
        for image, truth, counted in zip(
            images, targets[..., :-1], counts, strict=True
        ):
            restored = np.where(counted[..., None], truth * std + mean, image)
            values, valid = find_view(views, restored, counted)
            np.testing.assert_array_equal(
                image[counted], np.broadcast_to(mean, image[counted].shape)
            )
            np.testing.assert_array_equal(
                image[~valid], np.broadcast_to(mean, image[~valid].shape)
            )
            assert not counted[~valid].any()
            shown = valid & ~counted
            np.testing.assert_array_equal(image[shown], values[shown])
            invalid += int((~valid).sum())
    assert invalid


def list_views(site):
    """Return the eight views of all tiles, values and validity."""
    tiles = list_unlabelled_tiles(site, SIZE)
    views = []
    for index in range(len(tiles)):
        pixels = tiles.read(index)
        for turns in range(4):
            values = np.rot90(pixels.values, turns)
            valid = np.rot90(pixels.valid, turns)
            views += [(values, valid), (values[::-1], valid[::-1])]
    return views


def find_view(views, restored, counted):
    """Return the view that has the values that were asked for, where they were."""
    for values, valid in views:
        if np.allclose(restored[counted], values[counted], atol=0.01):
            return values, valid
    return pytest.fail("this is no view of a tile")


@pytest.mark.slow
def test_all_eight_views_and_all_tiles_come_up(area_1, statistics):
    views = list_views(area_1)
    batches = make_batches(area_1, statistics, batch_size=8)
    mean, std = (np.array(item, np.float32) for item in statistics)
    found = set()

    for k in range(40):
        targets = unfold(batches[k][1], 4)
        for target in targets:
            counted = target[..., -1] == 1
            restored = target[..., :-1] * std + mean
            found.add(
                next(
                    n
                    for n, (values, _) in enumerate(views)
                    if np.allclose(restored[counted], values[counted], atol=0.01)
                )
            )

    assert {n % 8 for n in found} == set(range(8))
    assert {n // 8 for n in found} == set(range(len(views) // 8))


@pytest.mark.parametrize(
    ("tile_size", "stride", "side"),
    [
        (256, 16, 32),
        (256, 32, 32),
        (128, 32, 32),
        (64, 16, 16),
        (64, 32, 32),
        (32, 4, 8),
    ],
)
def test_squares_hide_three_fifths_of_a_tile(tile_size, stride, side):
    squares = plan_squares(tile_size, stride)

    hidden = squares.hide(np.random.default_rng(0))

    assert squares.side == side
    assert hidden.shape == (tile_size, tile_size)
    count = (tile_size // side) ** 2
    assert hidden.mean() == pytest.approx(round(0.6 * count) / count)
    cut = hidden.reshape(tile_size // side, side, -1, side)
    assert (cut.any(axis=(1, 3)) == cut.all(axis=(1, 3))).all()


def test_squares_that_do_not_divide_a_tile_are_cut_at_its_edge():
    squares = plan_squares(80, 16)
    assert (squares.side, 80 % squares.side) == (32, 16)

    hidden = squares.hide(np.random.default_rng(1))

    assert hidden.shape == (80, 80)
    assert 0.3 < hidden.mean() < 0.9


@pytest.mark.parametrize(("tile_size", "stride"), [(32, 32), (40, 16)])
def test_a_tile_that_the_encoder_cannot_divide_is_refused(tile_size, stride):
    with pytest.raises(
        UsageError, match=f"Tile size {tile_size} .*multiple of {stride}"
    ):
        plan_squares(tile_size, stride)


def test_folding_puts_the_pixels_of_a_feature_in_one_place():
    values = np.arange(8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)

    folded = plan_squares(8, 4).fold(values)

    assert folded.shape == (2, 2, 48)
    np.testing.assert_array_equal(folded[1, 0], values[4:, :4].ravel())
    np.testing.assert_array_equal(unfold(folded[None], 4)[0], values)


def test_the_loss_is_the_mean_error_of_the_pixels_that_count():
    compute_error = pretrain._bind_loss(2)
    # Two pixels under one feature: (band 1, band 2, counts) each.
    targets = np.array([[[[1.0, 2.0, 1.0, 5.0, 5.0, 0.0]]]])
    guesses = np.array([[[[0.5, 4.0, -100.0, 100.0]]]])

    assert float(compute_error(targets, guesses)) == pytest.approx((0.5 + 2) / 2)
    assert float(compute_error(targets * 0, guesses)) == 0
