"""What the values of a band look like: range, mean, quantiles, histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cropseg.checks.similarity import QUANTILES, BandSummary

NUM_BINS: Final = 64
"""Bins of a histogram, from the 0.1 % to the 99.9 % quantile."""

_MAX_SAMPLE: Final = 200_000
_TAIL: Final = 0.001


@dataclass(frozen=True, kw_only=True)
class BandReport:
    """The values of one band over all valid pixels of a site."""

    name: str
    """Its name."""
    lowest: float
    """Its least value, in raw units."""
    highest: float
    """Its greatest value, in raw units."""
    mean: float
    """Mean of the sample, in raw units."""
    std: float
    """Standard deviation of the sample, in raw units."""
    quantiles: tuple[float, ...]
    """Its values at `QUANTILES`, of the sample."""
    bin_edges: tuple[float, ...]
    """Edges of the bins, in raw units, (`NUM_BINS` + 1,)."""
    bin_shares: tuple[float, ...]
    """Share of the sample in each bin, 0 to 1. Values beyond are in the last ones."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        document = asdict(self)
        for name, value in document.items():
            if isinstance(value, tuple):
                document[name] = [write_number(number) for number in value]
            elif isinstance(value, float):
                document[name] = write_number(value)
        return document

    def summarize(self, correlations: dict[str, float]) -> BandSummary:
        """Return what sites are compared by."""
        return BandSummary(
            name=self.name,
            mean=self.mean,
            std=self.std or 1.0,
            quantiles=self.quantiles,
            correlations=correlations,
        )


def write_number(value: float | None) -> float | str | None:
    """Return a number as JSON has it: NaN and infinity have no number there."""
    if value is None or math.isfinite(value):
        return value
    return str(value)


class BandCounts:
    """Takes the pixels of a site, and keeps the range and an even sample."""

    def __init__(self, names: Sequence[str]) -> None:
        """Start with nothing seen."""
        self._names = names
        self._lowest = np.full(len(names), np.inf)
        self._highest = np.full(len(names), -np.inf)
        self._sample: list[npt.NDArray[np.float64]] = []
        self._num_sampled = 0
        self._stride = 1
        self._first = 0

    def add(self, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
        """Add pixels: values (height, width, bands) and their validity."""
        if not valid.any():
            return
        for band, plane in enumerate(np.moveaxis(values, -1, 0)):
            used = plane if valid.all() else plane[valid]
            self._lowest[band] = min(self._lowest[band], float(used.min()))
            self._highest[band] = max(self._highest[band], float(used.max()))
        places = np.flatnonzero(valid)
        chosen = places[self._first :: self._stride]
        self._first = (self._first - len(places)) % self._stride
        flat = values.reshape(-1, values.shape[-1])
        self._sample.append(flat[chosen].astype(np.float64))
        self._num_sampled += len(chosen)
        if self._num_sampled > _MAX_SAMPLE:
            kept = np.concatenate(self._sample)[::2]
            self._sample, self._num_sampled = [kept], len(kept)
            self._stride *= 2

    def finish(self) -> tuple[BandReport, ...]:
        """Return what was found, or nothing where no pixel was valid."""
        if not self._sample:
            return ()
        sample = np.concatenate(self._sample)
        return tuple(
            self._describe(band, sample[:, band]) for band in range(len(self._names))
        )

    def correlate(self) -> dict[str, dict[str, float]]:
        """Return the correlation of each band with each other one, by name."""
        if not self._sample:
            return {}
        sample = np.concatenate(self._sample)
        sample = sample[:, :] - sample.mean(axis=0)
        norms = np.sqrt((sample**2).sum(axis=0))
        norms[norms == 0] = 1.0
        table = (sample / norms).T @ (sample / norms)
        return {
            name: {
                other: float(table[row, col])
                for col, other in enumerate(self._names)
                if col != row
            }
            for row, name in enumerate(self._names)
        }

    def _describe(self, band: int, sample: npt.NDArray[np.float64]) -> BandReport:
        low, high = np.quantile(sample, (_TAIL, 1 - _TAIL))
        edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
        counts, _ = np.histogram(np.clip(sample, edges[0], edges[-1]), edges)
        return BandReport(
            name=self._names[band],
            lowest=float(self._lowest[band]),
            highest=float(self._highest[band]),
            mean=float(sample.mean()),
            std=float(sample.std()),
            quantiles=tuple(np.quantile(sample, QUANTILES).tolist()),
            bin_edges=tuple(edges.tolist()),
            bin_shares=tuple((counts / len(sample)).tolist()),
        )
