"""Whether a scene looks like what a model was trained on: units, bands, nodata, GSD.

A network gives an answer for any number. Values in other units, or bands that changed
places, make a wrong map and no error. So a few windows are read and compared with the
card. What warns is coarse on purpose: another season or a tile of lake alone is no
mistake. docs/decisions/0020 has the measurements behind the thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cropseg.checks.similarity import BandSummary, BandSwap, compare_bands
from cropseg.errors import DataError
from cropseg.inference.scenes.mapped_scene import MappedScene
from cropseg.inference.scenes.sample import read_sample
from cropseg.models.card import Card
from cropseg.sites.projection import measure_pixel
from cropseg.sites.quantiles import QUANTILES

MIN_FAMILIAR_SHARE: Final = 0.6
"""Least mean share of a scene's values within the model's 0.02 and 0.98 quantiles."""

MIN_FAMILIAR_BAND_SHARE: Final = 0.15
"""Least such share in any one band of a scene that is large enough to have all."""

MIN_BLANK_SHARE: Final = 0.05
"""Share of equal and unfamiliar pixels that looks like nodata."""

MAX_GSD_RATIO: Final = 1.5
"""How much coarser than the model's a GSD may be."""

MAX_SCENES: Final = 25
"""Scenes of a batch that are looked at together."""

_LARGE_PX: Final = 2**17  # 362 x 362: a tile of 256 may be half a lake
_FEWEST_PX: Final = 400
_GOOD_FIT: Final = 0.8
_FIT_GAIN: Final = 0.1
_ROUND_FACTORS: Final = (10, 100, 255, 257, 1000, 10_000, 65_535, 10_000 / 255)
_ROUND_TOLERANCE: Final = 0.15  # of a decimal logarithm
_SENTINEL_OFFSET: Final = 1000.0
_LOW, _MEDIAN, _HIGH = 0, len(QUANTILES) // 2, -1
_Z: Final = (-2.054, -0.674, 0.0, 0.674, 2.054)  # of a normal distribution

Floats = npt.NDArray[np.float64]


def is_telling(scene: MappedScene) -> bool:
    """Say whether a scene is large enough to be compared on its own."""
    grid = scene.image.grid
    return grid.height * grid.width >= _LARGE_PX


def check_scene(scene: MappedScene) -> tuple[str, ...]:
    """Compare a scene with what its model was trained on.

    A few dozen windows are read, which takes less than half a second. The same scene
    gives the same answer.

    Args:
        scene: The scene.

    Returns:
        Warnings: what was found, what was expected, the probable cause and what to do.
        Empty where nothing is amiss, or where too little was seen to tell.

    Raises:
        DataError: If the scene cannot be read.
    """
    sample = read_sample(scene)
    is_large = sample.num_valid >= _LARGE_PX
    return (
        *_check_gsd(scene),
        *_check_values(scene.card, "The scene", sample.values, is_large=is_large),
    )


def check_batch(scenes: Sequence[MappedScene]) -> tuple[str, ...]:
    """Compare many scenes, taken together, with what their model was trained on.

    A small scene may be a lake, and says little of the order of its bands. Some tens
    of them say as much as a large one.

    Args:
        scenes: Scenes for one model. At most 25, spread evenly, are looked at.

    Returns:
        Warnings, as those of `check_scene`, for all together.

    Raises:
        DataError: If a scene cannot be read.
    """
    places = np.linspace(0, len(scenes) - 1, min(len(scenes), MAX_SCENES))
    looked_at = [scenes[place] for place in places.astype(int)]
    if not looked_at:
        return ()
    samples = [read_sample(scene) for scene in looked_at]
    is_large = sum(sample.num_valid for sample in samples) >= _LARGE_PX
    values = np.concatenate([sample.values for sample in samples])
    noun = f"The batch of {len(scenes)} scenes"
    return tuple(_check_values(looked_at[0].card, noun, values, is_large=is_large))


def _read_expected(card: Card) -> Floats | None:
    """Return quantiles of each band in training, (bands, quantiles), or None."""
    if card.band_quantiles is not None and len(card.band_quantiles) == len(card.bands):
        return np.array(card.band_quantiles)
    mean, std = np.array(card.band_mean), np.array(card.band_std)
    if not mean.any() or (std <= 0).any():
        return None  # a model that divides by 255, for one, tells nothing of its data
    normal = mean[:, None] + std[:, None] * np.array(_Z)
    if (mean <= 0).any():
        return normal
    # Reflectance has a long tail and no values below 0: log-normal.
    sigma = np.sqrt(np.log1p((std / mean) ** 2))[:, None]
    return np.asarray(np.exp(np.log(mean)[:, None] - sigma**2 / 2 + sigma * _Z))


def _check_gsd(scene: MappedScene) -> Iterator[str]:
    try:
        gsd_m = math.sqrt(math.prod(measure_pixel(scene.image.native_grid)))
    except DataError:  # no place on the Earth
        return
    if gsd_m > MAX_GSD_RATIO * scene.card.gsd_m:
        yield (
            f"The scene has pixels of {gsd_m:.3g} m, and the model was trained at "
            f"{scene.card.gsd_m:.4g} m: what it looks for is too small to be seen "
            "there. Take finer images, or train at this GSD."
        )


def _find_blanks(values: Floats, expected: Floats) -> npt.NDArray[np.bool_]:
    """Return which pixels hold one unfamiliar number in all bands, the same in all."""
    first = values[:, 0]
    alike = np.ones(len(values), np.bool_)
    for band in values.T[1:]:
        alike &= band == first
    numbers, counts = np.unique(first[alike], return_counts=True)
    if not len(numbers) or counts.max() < MIN_BLANK_SHARE * len(values):
        return np.zeros(len(values), np.bool_)
    number = numbers[counts.argmax()]
    is_familiar = (expected[:, _LOW] <= number) & (number <= expected[:, _HIGH])
    return alike & (first == number) & ~is_familiar.any()


def _check_values(
    card: Card, noun: str, values: Floats, *, is_large: bool
) -> Iterator[str]:
    expected = _read_expected(card)
    if expected is None or len(values) < _FEWEST_PX:
        return
    blanks = _find_blanks(values, expected)
    if blanks.any():
        number = values[blanks][0, 0]
        yield (
            f"{blanks.mean():.0%} of the pixels that were looked at are {number:g} in "
            "all bands, and the model was not trained on such. It looks like nodata "
            "that the file does not declare, and is mapped as land. Declare it: "
            f"gdal_edit.py -a_nodata {number:g} FILE."
        )
    kept = values[~blanks]
    if len(kept) < _FEWEST_PX:
        return
    found = np.quantile(kept, QUANTILES, axis=0).T
    strange, cause = _find_cause(card, kept, found, expected, is_large=is_large)
    if strange:
        bands = "; ".join(_describe_band(card, n, found, expected) for n in strange)
        yield (
            f"{noun} does not look like what the model was trained on. Median, and "
            f"where most training values were: {bands}. {cause or _SOMETHING_ELSE}"
        )


def _find_cause(
    card: Card, values: Floats, found: Floats, expected: Floats, *, is_large: bool
) -> tuple[list[str], str | None]:
    """Return the bands that are strange, maybe none, and why, if that can be told."""
    inside = (values >= expected[:, _LOW]) & (values <= expected[:, _HIGH])
    familiar = inside.mean(axis=0)
    swaps = _find_swaps(card, values) if is_large else ()
    limit, cause = 0.0, None
    if familiar.mean() < MIN_FAMILIAR_SHARE:
        limit, cause = MIN_FAMILIAR_SHARE, _explain_units(card, found, expected)
    elif is_large:
        limit = MIN_FAMILIAR_BAND_SHARE
    if cause is None and swaps:
        names = [name for swap in swaps for name in swap.names]
        return names, _explain_swaps(card, swaps)
    strange = zip(card.bands, familiar, strict=True)
    return [name for name, share in strange if share < limit], cause


_SOMETHING_ELSE: Final = (
    "No factor, offset or order of the bands explains it: a picture stretched for "
    "display, another sensor or another season? Compare the image with those of the "
    "training site in QGIS before you trust the map."
)


def _describe_band(card: Card, name: str, found: Floats, expected: Floats) -> str:
    index = card.bands.index(name)
    low, high = (_write(expected[index, end], 4) for end in (_LOW, _HIGH))
    return f"{name} {_write(found[index, _MEDIAN], 4)} ({low} to {high})"


def _find_swaps(card: Card, values: Floats) -> tuple[BandSwap, ...]:
    if len(card.bands) == 1:
        return ()
    own = _summarize(card.bands, values.mean(axis=0), values.std(axis=0))
    return compare_bands(
        _summarize(card.bands, card.band_mean, card.band_std), own
    ).swaps


def _explain_swaps(card: Card, swaps: Sequence[BandSwap]) -> str:
    said = "; ".join(
        f"{', '.join(swap.names)} look like {', '.join(swap.look_like)}"
        for swap in swaps
    )
    return (
        f"Bands seem to have changed places: {said}. Put them in the model's order "
        f"({', '.join(card.stored_bands)}) with gdal_translate -b, or name them in the "
        "file."
    )


def _summarize(
    names: Sequence[str], mean: Sequence[float] | Floats, std: Sequence[float] | Floats
) -> list[BandSummary]:
    return [
        BandSummary(name=name, mean=float(m), std=max(float(s), 1e-12))
        for name, m, s in zip(names, mean, std, strict=True)
    ]


def _explain_units(card: Card, found: Floats, expected: Floats) -> str | None:
    """Say which factor or offset turns the training's values into these, or None.

    A line through the quantiles of all bands, found against expected; the simplest
    that fits: a factor, an offset, both.
    """
    stored = [
        place
        for place, name in enumerate(card.bands)
        # A band that was the same everywhere tells of no factor.
        if name not in card.derived and card.band_std[place] > 0
    ]
    if not stored:
        return None
    x, y = expected[stored].ravel(), found[stored].ravel()
    weights = np.repeat(1 / np.array(card.band_std)[stored], len(QUANTILES))
    x_terms = np.stack([np.ones_like(x), x], axis=1) * weights[:, None]
    (shift, slope), *_ = np.linalg.lstsq(x_terms, y * weights)
    factor = float((weights**2 * x * y).sum() / (weights**2 * x * x).sum())
    offset = float((weights**2 * (y - x)).sum() / (weights**2).sum())
    enough = _score(weights, y, shift + slope * x) - _FIT_GAIN
    if enough < _GOOD_FIT - _FIT_GAIN or slope <= 0:
        return None
    if factor > 0 and _score(weights, y, factor * x) > enough:
        return _explain_factor(factor)
    if _score(weights, y, x + offset) > enough:
        return _explain_offset(offset)
    return (
        f"The values are about {_write(shift, 2)} + {_write(slope, 2)} times those of "
        "the training: stored numbers whose scale and offset the file does not say "
        "(Landsat Collection 2 has 0.0000275 and -0.2), or an image stretched for the "
        "eye? Set what the values mean with gdal_edit.py -scale and -offset; --scale "
        "then gives the model's units."
    )


def _explain_factor(factor: float) -> str | None:
    if abs(math.log10(factor)) <= _ROUND_TOLERANCE:
        return None
    return (
        f"The values are about {_write(_round_factor(factor), 4)} times those of the "
        f"training: other units. Try --scale {_write(_round_factor(1 / factor), 4)}."
    )


def _explain_offset(offset: float) -> str:
    sentinel = ""
    if abs(offset / _SENTINEL_OFFSET - 1) <= _ROUND_TOLERANCE:
        offset = _SENTINEL_OFFSET
        sentinel = "Sentinel-2 has had such an offset since January 2022. "
    return (
        f"The values are about {_write(abs(offset), 2)} "
        f"{'higher' if offset > 0 else 'lower'} than those of the training. {sentinel}"
        f"Take it off: gdal_edit.py -offset {_write(-offset, 2)} FILE."
    )


def _write(number: float, digits: int) -> str:
    """Write a number with so many digits that count, and no exponent."""
    return f"{float(f'{number:.{digits}g}'):.10g}"


def _score(weights: Floats, y: Floats, fitted: Floats) -> float:
    """Return the share of the variance that a fit explains, weighted."""
    squares = weights**2
    mean = (squares * y).sum() / squares.sum()
    total = (squares * (y - mean) ** 2).sum()
    return float(1 - (squares * (y - fitted) ** 2).sum() / total) if total else 0.0


def _round_factor(factor: float) -> float:
    """Return the round factor that is near, else two digits."""
    for known in _ROUND_FACTORS:
        for value in (known, 1 / known):
            if abs(math.log10(factor / value)) <= _ROUND_TOLERANCE:
                return value
    return float(f"{factor:.2g}")
