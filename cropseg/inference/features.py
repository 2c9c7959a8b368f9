"""What a network's encoder sees in a site: statistics of its last features.

Two sites whose features have the same mean and spread look alike to the encoder,
whatever their pixel values are. No labels are needed for that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.models.bundle import Bundle
from cropseg.models.card import CardFeatures
from cropseg.models.stages import find_encoder_end
from cropseg.models.twin import copy_variables, find_twin
from cropseg.runtime import compile_for_predict, keras
from cropseg.sites.grid import Window
from cropseg.sites.site import Site
from cropseg.sites.split import PARTS

MAX_TILES: Final = 64
"""Tiles that are looked at: as many as a training sees in eight batches or so."""

_MIN_TILES: Final = 2
"""Fewer tiles do not tell how far their mean may be off."""

_NUM_CUTS: Final = 8
"""Directions in which a site is cut in halves."""

_BATCH_SIZE: Final = 4
_MIN_USABLE: Final = 0.5
_HELD_OUT: Final = (PARTS.index("val"), PARTS.index("test"))

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class PlacedTile(Protocol):
    """A tile of a site."""

    @property
    def scene(self) -> int:
        """Position of its scene in the site."""

    @property
    def window(self) -> Window:
        """Its pixels, which may reach over the edge of the scene."""


@dataclass(frozen=True, kw_only=True)
class TileMoments:
    """The features of some tiles."""

    num_cells: Floats
    """Places with features in each tile, above 0, (tiles,)."""
    mean: Floats
    """Mean of each channel in each tile, (tiles, channels)."""
    variance: Floats
    """Variance of each channel inside each tile, (tiles, channels)."""
    centre_m: Floats
    """East and north coordinate of each tile's centre, (tiles, 2)."""

    def take(self, index: npt.NDArray[np.integer]) -> TileMoments:
        """Return some of the tiles."""
        return TileMoments(
            num_cells=self.num_cells[index],
            mean=self.mean[index],
            variance=self.variance[index],
            centre_m=self.centre_m[index],
        )


def measure_features(
    bundle: Bundle, site: Site, tiles: Sequence[PlacedTile]
) -> CardFeatures | None:
    """Measure the encoder's last features over tiles of a site.

    Up to `MAX_TILES` of them are read, always the same ones. A place counts if half of
    its pixels or more are valid and neither in the val nor in the test part.

    Args:
        bundle: The model and its card.
        site: The site, with the model's bands in the model's order.
        tiles: Tiles of the size that the model was trained on.

    Returns:
        Mean and spread of each channel, or None where fewer than two tiles have a
        place that counts, or the encoder of a foreign network has no one end.

    Raises:
        DataError: If a file cannot be read.
    """
    order = np.random.default_rng([0, len(tiles)]).permutation(len(tiles))
    chosen = [tiles[index] for index in sorted(order[:MAX_TILES].tolist())]
    try:
        end = find_encoder_end(bundle.model, bundle.card.stages)
    except ModelError:
        return None
    moments = _measure_tiles(bundle, site, chosen, end)
    if len(moments.num_cells) < _MIN_TILES:
        return None
    return summarize_moments(moments)


def summarize_moments(moments: TileMoments) -> CardFeatures:
    """Return mean and spread of each channel, and how far the halves are apart.

    Args:
        moments: Of two tiles or more.
    """
    halves = _measure_halves(moments)
    return _estimate(moments).model_copy(update={"half_distance": halves})


def compare_features(one: CardFeatures, other: CardFeatures) -> float:
    """Return how far the features of one network are apart on two sites.

    It is the Frechet distance of two normal distributions with diagonal covariance
    (Dowson and Landau 1982, equation 16), squared and summed over channels, by the sum
    of the channels' mean variances, and the root of that. So it is in standard
    deviations, does not grow with the number of channels, and channels that hardly
    ever fire count little. With few tiles, means and spreads differ by chance; what
    that adds on average, the variances of the four estimates, is taken off.

    Args:
        one: Features of a network on one site.
        other: Features of the same network on another site.

    Returns:
        0 or greater, 0 for equal sites.

    References:
        Dowson and Landau, 1982, https://doi.org/10.1016/0047-259X(82)90077-X
    """
    return math.sqrt(max(0.0, _measure_square(one, other)))


def _measure_tiles(
    bundle: Bundle, site: Site, tiles: Sequence[PlacedTile], end: str
) -> TileMoments:
    """Run the encoder over tiles."""
    model = bundle.model
    output = next(item for item in model.operations if item.name == end).output
    own = keras.Model(model.inputs[0], output)
    encoder = compile_for_predict(find_twin(own, "features"))
    copy_variables(own, encoder)
    found = []
    reading = _read_tiles(bundle, site, tiles)
    while batch := list(itertools.islice(reading, _BATCH_SIZE)):
        images = np.zeros((_BATCH_SIZE, *batch[0][1].shape), np.float32)
        images[: len(batch)] = [image for _, image, _ in batch]
        outputs = np.asarray(encoder.predict_on_batch(images), np.float64)
        for (tile, _, is_usable), features in zip(batch, outputs, strict=False):
            cells = features[_shrink(is_usable, features.shape[:2])]
            if len(cells):
                centre = _find_centre(site, tile)
                found.append(
                    (len(cells), cells.mean(axis=0), cells.var(axis=0), centre)
                )
    counts, means, variances, centres = zip(*found, strict=True) if found else [()] * 4
    channels = int(output.shape[-1])
    return TileMoments(
        num_cells=np.array(counts, np.float64),
        mean=np.array(means, np.float64).reshape(-1, channels),
        variance=np.array(variances, np.float64).reshape(-1, channels),
        centre_m=np.array(centres, np.float64).reshape(-1, 2),
    )


def _read_tiles(
    bundle: Bundle, site: Site, tiles: Sequence[PlacedTile]
) -> Iterator[tuple[PlacedTile, npt.NDArray[np.float32], Mask]]:
    """Yield each tile, its raw values with nodata filled, and where it may be used."""
    fill = np.asarray(bundle.card.nodata_fill, np.float32)
    for number, group in itertools.groupby(tiles, key=lambda tile: tile.scene):
        scene = site.scenes[number]
        with site.open_scene(scene) as reader:
            for tile in group:
                pixels = reader.read_pixels(tile.window)
                image = pixels.values.astype(np.float32)
                image[~pixels.valid] = fill
                is_usable = pixels.valid
                if site.split is not None:
                    parts = site.split.read_parts(scene.grid, tile.window)
                    is_usable = is_usable & ~np.isin(parts, _HELD_OUT)
                yield tile, image, is_usable


def _shrink(is_usable: Mask, shape: tuple[int, ...]) -> Mask:
    """Return which cells of a coarser grid have enough pixels that may be used."""
    height, width = shape
    cells = is_usable.reshape(
        height, is_usable.shape[0] // height, width, is_usable.shape[1] // width
    )
    return np.asarray(cells.mean(axis=(1, 3)) >= _MIN_USABLE)


def _find_centre(site: Site, tile: PlacedTile) -> tuple[float, float]:
    window = tile.window
    col, row = window.col + window.width / 2, window.row + window.height / 2
    x, y = site.scenes[tile.scene].grid.transform @ (col, row)
    return float(x), float(y)


def _estimate(moments: TileMoments) -> CardFeatures:
    """Return mean and spread of each channel, and how far these may be off.

    Tiles are samples and pixels are not, since neighbours are alike. So a variance
    is that inside tiles plus an unbiased one between their means, and what tiles
    differ by tells how far an estimate may be off.
    """
    weights = moments.num_cells / moments.num_cells.sum()
    concentration = float((weights**2).sum())  # 1 / tiles, where all weigh the same
    mean = weights @ moments.mean
    shift = (moments.mean - mean) ** 2
    between = weights @ shift / (1 - concentration)
    variance = weights @ moments.variance + between
    spread = moments.variance + shift
    scatter = weights @ (spread - weights @ spread) ** 2 / (1 - concentration)
    std = np.sqrt(variance)
    # d std = d variance / (2 std)
    slope = np.divide(0.5, std, out=np.zeros_like(std), where=std > 0)
    return CardFeatures(
        mean=_round(mean),
        std=_round(std),
        mean_error=_round(np.sqrt(concentration * between)),
        std_error=_round(slope * np.sqrt(concentration * scatter)),
        num_tiles=len(weights),
    )


def _round(values: Floats) -> tuple[float, ...]:
    """Return numbers with the digits that are worth a place in the card."""
    return tuple(float(f"{value:.6g}") for value in values)


def _measure_square(one: CardFeatures, other: CardFeatures) -> float:
    """Return the squared distance, which is below 0 where chance alone is more."""
    total = np.sum(np.subtract(one.mean, other.mean) ** 2)
    total += np.sum(np.subtract(one.std, other.std) ** 2)
    for item in (one, other):
        total -= np.sum(np.square(item.mean_error)) + np.sum(np.square(item.std_error))
    variance = (np.sum(np.square(one.std)) + np.sum(np.square(other.std))) / 2
    return float(total / variance) if variance > 0 else 0.0


def _measure_halves(moments: TileMoments) -> float | None:
    """Return how far the two sides of a site are apart.

    Random halves differ by chance alone. So a line through the middle cuts the site,
    in several directions, and the squared distances are averaged.
    """
    if len(moments.num_cells) < 2 * _MIN_TILES:
        return None
    squares = []
    for cut in range(_NUM_CUTS):
        angle = math.pi * cut / _NUM_CUTS
        along = moments.centre_m @ np.array([math.cos(angle), math.sin(angle)])
        near, far = np.array_split(np.argsort(along, kind="stable"), 2)
        squares.append(
            _measure_square(_estimate(moments.take(near)), _estimate(moments.take(far)))
        )
    return float(f"{math.sqrt(max(0.0, float(np.mean(squares)))):.6g}")
