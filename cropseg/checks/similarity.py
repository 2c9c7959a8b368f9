"""How far two sites are apart: band by band, and in the shares of their classes.

Bands are compared by name. Whether two of them changed places is asked as well: a
swapped band order gives wrong maps and no error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.errors import DataError, join_problems

QUANTILES: Final = tuple((index + 0.5) / 20 for index in range(20))
"""The quantiles of a band summary: the middles of 20 equal shares of the pixels."""

DISTANCE_LEVELS: Final = {"near": 0.25, "apart": 1.0, "far": math.inf}
"""Names of distances, each with the distance in source stds that it ends below."""

MAX_SWAP_COST: Final = 0.6
"""Bands changed places if that costs at most this share of what their names cost."""

MIN_SWAP_GAIN: Final = 0.1
"""And if it costs less by this much, in squared logarithms of a factor."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BandSummary:
    """What is known of the values of one band of a site."""

    name: str
    """Its name."""
    mean: float
    """Mean, in raw units."""
    std: float
    """Standard deviation, in raw units, above 0."""
    quantiles: tuple[float, ...] | None = None
    """Its values at `QUANTILES`, or None where only mean and std are known."""
    correlations: Mapping[str, float] | None = None
    """Correlation with each other band of the site, by name, or None if unknown."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        problems = []
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            problems.append(
                f"`mean` is {self.mean} and `std` {self.std}; expected finite numbers, "
                "and a std above 0. Give a constant band a std of 1."
            )
        values = self.quantiles
        if values is not None and (
            len(values) != len(QUANTILES)
            or list(values) != sorted(values)
            or not all(map(math.isfinite, values))
        ):
            problems.append(
                f"`quantiles` are {values}; expected {len(QUANTILES)} rising values, "
                "at `QUANTILES`."
            )
        if problems:
            raise DataError(join_problems(f"Band {self.name} cannot be", problems))


@dataclass(frozen=True, kw_only=True)
class BandDistance:
    """How far a band of the target is from the source's band of that name."""

    name: str
    """The band."""
    distance: float
    """2-Wasserstein distance, in stds of the source; 0 for equal values."""

    @property
    def level(self) -> str:
        """The distance in a word, one of `DISTANCE_LEVELS`."""
        return next(
            name for name, end in DISTANCE_LEVELS.items() if self.distance < end
        )


@dataclass(frozen=True, kw_only=True)
class BandSwap:
    """Bands of the target that look as if they had changed places."""

    names: tuple[str, ...]
    """The bands, as the target calls them."""
    look_like: tuple[str, ...]
    """For each the band of the source that it looks like."""
    cost_ratio: float
    """What it costs to match them that way, as a share of what their names cost."""


@dataclass(frozen=True, kw_only=True)
class BandComparison:
    """How the bands of a target compare to those of a source."""

    distances: tuple[BandDistance, ...]
    """Of each band that both have, in the order of the source."""
    missing: tuple[str, ...]
    """Bands of the source that the target lacks."""
    new: tuple[str, ...]
    """Bands of the target that the source lacks."""
    swaps: tuple[BandSwap, ...]
    """Bands that changed places, or nothing."""
    ambiguous: tuple[tuple[str, str], ...]
    """Pairs of shared bands that would not be noticed if they changed places."""


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """How the share of one class differs between two sites."""

    name: str
    """The class."""
    source_share: float
    """Its share of the source's labelled pixels, 0 to 1."""
    target_share: float
    """Its share of the target's labelled pixels, 0 to 1."""

    @property
    def change(self) -> float:
        """The target's share less the source's."""
        return self.target_share - self.source_share


@dataclass(frozen=True, kw_only=True)
class ClassComparison:
    """How the class shares of two sites differ."""

    total_variation: float
    """Share of the pixels that would have to change their class, 0 to 1."""
    changes: tuple[ClassChange, ...]
    """Every class of either site, the largest change first."""


def compare_bands(
    source: Sequence[BandSummary], target: Sequence[BandSummary]
) -> BandComparison:
    """Compare the bands of two sites, by name.

    Args:
        source: Bands of the site, or of the model, that is compared to.
        target: Bands of the other site.

    Returns:
        Distances, bands that only one has, and bands that changed places.

    Raises:
        DataError: If a side names a band twice.
    """
    sides = []
    for side, bands in (("source", source), ("target", target)):
        names = [band.name for band in bands]
        if len(set(names)) < len(names):
            raise DataError(
                f"The {side} has bands {', '.join(names)}; expected each name once. "
                "Rename the bands in the manifest."
            )
        sides.append(dict(zip(names, bands, strict=True)))
    ours, theirs = sides
    shared = [name for name in ours if name in theirs]
    costs, names = _measure_costs(
        [ours[name] for name in shared], [theirs[name] for name in shared]
    )
    return BandComparison(
        distances=tuple(
            BandDistance(name=name, distance=_measure(ours[name], theirs[name]))
            for name in shared
        ),
        missing=tuple(name for name in ours if name not in theirs),
        new=tuple(name for name in theirs if name not in ours),
        swaps=_find_swaps(costs, names),
        ambiguous=_find_ambiguous(costs, names, shared),
    )


def compare_class_shares(
    source: Mapping[str, float], target: Mapping[str, float]
) -> ClassComparison:
    """Compare how much of two sites each class takes.

    Args:
        source: Labelled pixels (or hectares) of each class of one site.
        target: The same of the other; matched by name.

    Returns:
        Each class's shares, and the total variation: half the sum of all changes.

    Raises:
        DataError: If a site has no labelled pixel, or a negative count.

    Example:
        >>> shift = compare_class_shares({"corn": 30, "hay": 10}, {"corn": 1})
        >>> shift.total_variation
        0.25
    """
    for side, counts in (("source", source), ("target", target)):
        if not sum(counts.values()) > 0 or min(counts.values()) < 0:
            raise DataError(
                f"Class pixels of the {side} are {dict(counts)}; expected counts from "
                "0, and one above 0. Label some pixels first."
            )
    totals = sum(source.values()), sum(target.values())
    changes = [
        ClassChange(
            name=name,
            source_share=source.get(name, 0) / totals[0],
            target_share=target.get(name, 0) / totals[1],
        )
        for name in dict.fromkeys([*source, *target])
    ]
    return ClassComparison(
        total_variation=sum(abs(item.change) for item in changes) / 2,
        changes=tuple(sorted(changes, key=lambda item: -abs(item.change))),
    )


def _measure(source: BandSummary, target: BandSummary) -> float:
    """Return the 2-Wasserstein distance of two bands, in stds of the source.

    From quantiles the root mean square of their differences, which leaves out the
    outermost 2.5 % on either side. Without quantiles that of two normal distributions
    (Dowson and Landau 1982, doi:10.1016/0047-259X(82)90077-X).
    """
    if source.quantiles and target.quantiles:
        differences = np.subtract(target.quantiles, source.quantiles)
        distance = math.sqrt(float((differences**2).mean()))
    else:
        distance = math.hypot(target.mean - source.mean, target.std - source.std)
    return float(distance / source.std)


def _measure_costs(
    source: Sequence[BandSummary], target: Sequence[BandSummary]
) -> tuple[Floats, list[str]]:
    """Return what it costs to take a target band for a source band, and their names.

    Costs are (source bands, target bands). A band is known by the logarithms of mean
    and std and by its mean correlation with the others. Their means over all bands are
    taken off, so that a common factor (another light, another unit) costs nothing.
    """
    kept = [
        (one, other)
        for one, other in zip(source, target, strict=True)
        if one.mean > 0 and other.mean > 0
    ]
    names = [one.name for one, _ in kept]
    if not names:
        return np.zeros((0, 0)), names
    ours = _describe([one for one, _ in kept])
    theirs = _describe([other for _, other in kept])
    num_features = min(ours.shape[1], theirs.shape[1])
    differences = ours[:, None, :num_features] - theirs[:, :num_features]
    return np.asarray((differences**2).sum(axis=-1)), names


def _describe(bands: Sequence[BandSummary]) -> Floats:
    """Return two features of each band, or three where correlations are known."""
    features = [[math.log(band.mean), math.log(band.std)] for band in bands]
    names = {band.name for band in bands}
    others = [names - {band.name} for band in bands]
    if len(bands) > 1 and all(
        rest <= set(band.correlations or ())
        for band, rest in zip(bands, others, strict=True)
    ):
        for feature, band, rest in zip(features, bands, others, strict=True):
            known = band.correlations or {}
            feature.append(sum(known[name] for name in rest) / len(rest))
    table = np.array(features)
    return np.asarray(table - table.mean(axis=0))


def _is_swap(swapped: float, named: float) -> bool:
    return swapped <= MAX_SWAP_COST * named and named - swapped >= MIN_SWAP_GAIN


def _find_swaps(costs: Floats, names: Sequence[str]) -> tuple[BandSwap, ...]:
    """Match all bands at the least cost and name the groups that change places."""
    from scipy.optimize import linear_sum_assignment

    _, matched = linear_sum_assignment(costs)
    swaps = []
    left = {index for index, match in enumerate(matched.tolist()) if match != index}
    while left:
        group = [min(left)]
        while (match := int(matched[group[-1]])) != group[0]:
            group.append(match)
        left -= set(group)
        places = np.array(sorted(group))
        swapped = float(costs[places, matched[places]].sum())
        named = float(costs[places, places].sum())
        if _is_swap(swapped, named):
            swaps.append(
                BandSwap(
                    names=tuple(names[matched[place]] for place in places),
                    look_like=tuple(names[place] for place in places),
                    cost_ratio=swapped / named,
                )
            )
    return tuple(swaps)


def _find_ambiguous(
    costs: Floats, names: Sequence[str], shared: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """List the pairs that cost too little to be noticed if they changed places."""
    index = {name: place for place, name in enumerate(names)}
    pairs = []
    for one, other in itertools.combinations(shared, 2):
        if one in index and other in index:
            i, j = index[one], index[other]
            as_named = costs[i, i] + costs[j, j]
            crossed = costs[i, j] + costs[j, i]
            # Whichever order is the true one, the other has to cost clearly more.
            low, high = sorted((as_named, crossed))
            if _is_swap(low, high):
                continue
        pairs.append((one, other))
    return tuple(pairs)
