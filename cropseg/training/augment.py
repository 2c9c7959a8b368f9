"""Random views of a training tile.

A view is a function of the tile and a seed, and of nothing else: not of the
thread, nor of what was augmented before. A view shows only what the tile and its
surroundings hold: nothing is padded, and no class is invented.

Images come standardised (mean 0, standard deviation 1 a band), so a brightness
change of 0.1 means a tenth of a band's standard deviation whatever the sensor.
Values are never clipped.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass
from typing import Any

# Before the import, which otherwise asks the package index for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError, UsageError

ZOOM_RANGE = (0.8, 1.25)
"""Smallest and greatest zoom. Half of the zooms are below 1, as far as a tile's
surroundings reach: they have to fill the view."""
ZOOM_PROBABILITY = 0.5
"""Share of views that are zoomed. The rest keep the pixels as they were read:
zooming smooths an image, and no image is smoothed when a scene is mapped."""
COMMON_OFFSET_SD = 0.1
"""Brightness that all bands share, in standard deviations of a band."""
BAND_OFFSET_SD = 0.05
"""Brightness that differs from band to band, in the same unit."""
GAIN_RANGE = (0.9, 1.1)
"""Contrast about the band's mean, drawn for each band."""
MAX_NOISE_SD = 0.05
"""Noise of a pixel, at most, in standard deviations of a band."""

_OPENCV_BANDS = 4
"""Bands that OpenCV warps at once, at most."""

_threads = threading.local()


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Flips, quarter turns, zoom, shift, brightness, contrast and noise."""

    tile_size: int
    """Rows and columns of a view, pixels."""
    num_bands: int
    """Bands of an image."""

    def augment(
        self, image: NDArray[np.float32], labels: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a random view of a tile. Threads may call this at once.

        Args:
            image: Standardised values, of shape (S, S, num_bands), S being
                `tile_size` or more. The surplus is real surroundings, for shift
                and zoom. Pixels without data are 0 in all bands, and stay so.
            labels: Class ids, of shape (S, S), 255 for unknown and without data.
            seed: 0 or greater. Equal seeds give equal views.

        Returns:
            The image, of shape (tile_size, tile_size, num_bands), float32, and its
            labels, of shape (tile_size, tile_size), uint8. Both are new arrays.

        Raises:
            DataError: If a shape or a type is another.
            UsageError: If the seed is negative.
        """
        self._check(image, labels)
        if seed < 0:
            raise UsageError(f"The seed of a view is {seed}; give 0 or greater.")
        pipeline = _get_pipeline(self.tile_size)
        # Not `set_random_seed`: it starts every transform with this same seed, so
        # that the zoom and both flips would always be done together or not at all.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        view = pipeline(image=image, mask=labels)
        return np.array(view["image"], order="C"), np.array(view["mask"], order="C")

    def _check(self, image: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        side = max(image.shape[0] if image.ndim else 0, self.tile_size)
        expected = (side, side, self.num_bands)
        if image.shape != expected or labels.shape != expected[:2]:
            raise DataError(
                f"A tile has an image of shape {image.shape} and labels of "
                f"{labels.shape}; expected (S, S, {self.num_bands}) and (S, S), with "
                f"S of {self.tile_size} pixels or more."
            )
        if image.dtype != np.float32 or labels.dtype != np.uint8:
            raise DataError(
                f"A tile has an image of {image.dtype} and labels of {labels.dtype}; "
                "expected standardised float32 and class ids as uint8."
            )


def build_augmentation(*, tile_size: int, num_bands: int) -> Augmentation:
    """Build the augmentation of a training.

    Args:
        tile_size: Rows and columns of a view, pixels.
        num_bands: Bands of an image.

    Raises:
        UsageError: If a number is below 1.
    """
    if tile_size < 1 or num_bands < 1:
        raise UsageError(
            f"Augmentation of tiles of {tile_size} pixels and {num_bands} bands is "
            "not possible; give 1 or more of both."
        )
    return Augmentation(tile_size=tile_size, num_bands=num_bands)


class ZoomCrop(albumentations.DualTransform):
    """Cut a window of random size at a random place, and zoom it to the tile size.

    albumentations' `Affine` zooms the whole input about its centre and pads what is
    then missing. Here the window lies inside the input, so nothing is missing, and
    only the pixels of the view are computed.
    """

    def __init__(self, tile_size: int) -> None:
        """Keep the rows and columns of a view."""
        super().__init__(p=1.0)
        self.tile_size = tile_size

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the zoom, and the window's first row and column, in pixels."""
        side = params["shape"][0]
        zoom = self._draw_zoom(side)
        room = max(side - self.tile_size / zoom, 0.0)
        if zoom == 1.0:  # whole pixels, so that they are cut and not resampled
            row, column = (self.py_random.randint(0, int(room)) for _ in range(2))
            return {"zoom": zoom, "row": row, "column": column}
        row, column = (self.py_random.uniform(0.0, room) for _ in range(2))
        return {"zoom": zoom, "row": row, "column": column}

    def _draw_zoom(self, side: int) -> float:
        if self.py_random.random() >= ZOOM_PROBABILITY:
            return 1.0
        smallest = max(ZOOM_RANGE[0], self.tile_size / side)
        ends = self.py_random.choice([(smallest, 1.0), (1.0, ZOOM_RANGE[1])])
        return float(self.py_random.uniform(*ends))

    def apply(
        self,
        img: NDArray[Any],
        zoom: float,
        row: float,
        column: float,
        **_params: object,
    ) -> NDArray[Any]:
        """Return the view of an image, bilinear."""
        return self._cut(img, _place(zoom, row, column), cv2.INTER_LINEAR)

    def apply_to_mask(
        self,
        mask: NDArray[Any],
        zoom: float,
        row: float,
        column: float,
        **_params: object,
    ) -> NDArray[Any]:
        """Return the view of labels, nearest: a mean of two classes is a third."""
        return self._cut(mask, _place(zoom, row, column), cv2.INTER_NEAREST)

    def _cut(
        self, array: NDArray[Any], matrix: NDArray[np.float64], interpolation: int
    ) -> NDArray[Any]:
        if matrix[0, 0] == 1.0:
            column, row = (-matrix[:, 2]).astype(int)
            return array[row : row + self.tile_size, column : column + self.tile_size]
        bands = array.reshape(*array.shape[:2], -1)
        chunks = [
            cv2.warpAffine(
                bands[..., first : first + _OPENCV_BANDS],
                matrix,
                (self.tile_size, self.tile_size),
                flags=interpolation,
                borderMode=cv2.BORDER_REPLICATE,  # for the outer half of edge pixels
            ).reshape(self.tile_size, self.tile_size, -1)
            for first in range(0, bands.shape[-1], _OPENCV_BANDS)
        ]
        view: NDArray[Any] = np.concatenate(chunks, axis=-1)
        return view.reshape(self.tile_size, self.tile_size, *array.shape[2:])


def _place(zoom: float, row: float, column: float) -> NDArray[np.float64]:
    """Return the affine map from a tile's pixels (x, y) to those of its view.

    Pixel centres lie at half pixels: view + 0.5 = (tile + 0.5 - first) * zoom.
    """
    return np.array(
        [
            [zoom, 0.0, (0.5 - column) * zoom - 0.5],
            [0.0, zoom, (0.5 - row) * zoom - 0.5],
        ]
    )


class BandBrightnessContrast(albumentations.ImageOnlyTransform):
    """Change brightness and contrast of each band, about the band's mean."""

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw an offset and a gain per band, of shape (bands,)."""
        num_bands = data["image"].shape[-1]
        rng = self.random_generator
        offset = rng.normal(0.0, COMMON_OFFSET_SD)
        offset = offset + rng.normal(0.0, BAND_OFFSET_SD, num_bands)
        gain = rng.uniform(*GAIN_RANGE, num_bands)
        return {"offset": offset.astype(np.float32), "gain": gain.astype(np.float32)}

    def apply(
        self,
        img: NDArray[np.float32],
        offset: NDArray[np.float32],
        gain: NDArray[np.float32],
        **_params: object,
    ) -> NDArray[np.float32]:
        """Return the changed image; pixels without data stay 0."""
        # Along whole rows of pixels NumPy is much faster than along a few bands.
        width = img.shape[1]
        changed: NDArray[np.float32] = img.reshape(len(img), -1) * np.tile(gain, width)
        changed += np.tile(offset, width)
        changed = changed.reshape(img.shape)
        changed[_find_fill(img)] = 0
        return changed


class BandNoise(albumentations.ImageOnlyTransform):
    """Add noise that is independent in each pixel and band."""

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the noise, of the image's shape."""
        # Uniform, and not normal: a quarter of the time, with the same deviation.
        rng = self.random_generator
        noise = rng.random(data["image"].shape, dtype=np.float32)
        noise -= np.float32(0.5)
        noise *= np.float32(rng.uniform(0.0, MAX_NOISE_SD) * np.sqrt(12.0))
        return {"noise": noise}

    def apply(
        self, img: NDArray[np.float32], noise: NDArray[np.float32], **_params: object
    ) -> NDArray[np.float32]:
        """Return the image with the noise; pixels without data stay 0."""
        noisy: NDArray[np.float32] = img + noise
        noisy[_find_fill(img)] = 0
        return noisy


def _find_fill(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where an image shows nothing: 0 in all bands.

    Prediction fills such pixels with exactly 0 too, so training keeps them so.
    """
    fill: NDArray[np.bool_] = image[..., 0] == 0
    for band in range(1, image.shape[-1]):
        fill &= image[..., band] == 0
    return fill


def _get_pipeline(tile_size: int) -> albumentations.Compose:
    """Return this thread's own pipeline: a `Compose` holds random state."""
    pipelines: dict[int, albumentations.Compose] = _threads.__dict__.setdefault(
        "pipelines", {}
    )
    if tile_size not in pipelines:
        pipelines[tile_size] = _build_pipeline(tile_size)
    return pipelines[tile_size]


def _build_pipeline(tile_size: int) -> albumentations.Compose:
    return albumentations.Compose(
        [
            ZoomCrop(tile_size),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.VerticalFlip(p=0.5),
            albumentations.RandomRotate90(p=1.0),  # one of four turns, none included
            BandBrightnessContrast(p=1.0),
            BandNoise(p=1.0),
        ]
    )
