"""What a band looks like: against NumPy over all pixels, and at any tiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropseg.checks import summary
from cropseg.checks.similarity import QUANTILES, BandSummary
from cropseg.checks.summary import NUM_BINS, BandCounts

NAMES = ("red", "nir", "swir1")


def draw_pixels(height=61, width=83, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.gamma(3, 200, (height, width, 3)).astype("int16")
    values[..., 1] += values[..., 0]
    valid = rng.random((height, width)) < 0.8
    values[~valid] = -9999
    return values, valid


def count(values, valid, step=20):
    counts = BandCounts(NAMES)
    for row in range(0, len(values), step):
        counts.add(values[row : row + step], valid[row : row + step])
    return counts


@given(step=st.integers(1, 70), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_numbers_are_those_of_all_valid_pixels_at_any_tiling(step, seed):
    values, valid = draw_pixels(seed=seed)

    bands = count(values, valid, step).finish()

    assert tuple(band.name for band in bands) == NAMES
    for band, pixels in zip(bands, values[valid].T, strict=True):
        assert (band.lowest, band.highest) == (pixels.min(), pixels.max())
        assert band.mean == pytest.approx(pixels.mean())
        assert band.std == pytest.approx(pixels.std())
        np.testing.assert_allclose(band.quantiles, np.quantile(pixels, QUANTILES))
        assert len(band.bin_edges) == NUM_BINS + 1
        assert sum(band.bin_shares) == pytest.approx(1)
        low, high = np.quantile(pixels, (0.001, 0.999))
        shares, _ = np.histogram(pixels.clip(low, high), NUM_BINS, (low, high))
        np.testing.assert_allclose(band.bin_shares, shares / len(pixels), atol=1e-9)


def test_correlations_are_those_of_numpy():
    values, valid = draw_pixels()

    correlations = count(values, valid).correlate()

    expected = np.corrcoef(values[valid].T.astype(float))
    for row, name in enumerate(NAMES):
        others = {NAMES[col]: expected[row, col] for col in range(3) if col != row}
        assert correlations[name] == pytest.approx(others)


def test_a_large_site_is_sampled_evenly_and_its_range_is_exact(monkeypatch):
    monkeypatch.setattr(summary, "_MAX_SAMPLE", 1000)
    ramp = np.arange(90_000, dtype="float32").reshape(300, 300, 1).repeat(3, axis=-1)

    counts = count(ramp.reshape(900, 100, 3), np.ones((900, 100), bool), step=1)
    band = counts.finish()[0]

    assert counts._num_sampled <= 1000
    assert counts._num_sampled == pytest.approx(90_000 / counts._stride, rel=0.02)
    assert (band.lowest, band.highest) == (0, 89_999)
    assert band.mean == pytest.approx(45_000, rel=0.02)
    np.testing.assert_allclose(band.quantiles, np.multiply(QUANTILES, 9e4), atol=900)


def test_nothing_valid_is_no_band():
    values, valid = draw_pixels()

    counts = count(values, valid & False)

    assert counts.finish() == ()
    assert counts.correlate() == {}


def test_a_constant_band_can_be_compared():
    values, valid = draw_pixels()
    values[..., 2] = 7

    counts = count(values, valid)
    band = counts.finish()[2]

    assert (band.lowest, band.highest, band.std) == (7, 7, 0)
    assert band.bin_shares[0] == 1
    correlations = counts.correlate()["swir1"]
    assert correlations == {"red": 0, "nir": 0}
    assert isinstance(band.summarize(correlations), BandSummary)
