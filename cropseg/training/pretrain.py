"""Training an encoder without labels: hide squares of tiles, and guess what is there.

This is SimMIM for a convolutional encoder. Hidden pixels hold the mean of their
band, one 1 x 1 convolution guesses them from the encoder's last features, and the
loss is the absolute error there. Only the encoder is kept. It learns on a copy, so
that a training that diverges or is interrupted leaves the model as it was.

References:
    Xie, Zhang, Cao, Lin, Bao, Yao, Dai and Hu, 2022, arXiv:2111.09886.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import DivergedError, UsageError
from cropseg.models.precision import copy_with_precision
from cropseg.models.stages import Stage, find_encoder_end
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import keras, resolve_precision
from cropseg.sites.raster import Pixels
from cropseg.sites.site import Site
from cropseg.sites.unlabelled import UnlabelledTiles, list_unlabelled_tiles
from cropseg.training.settings import TrainSettings
from cropseg.training.trainer import build_schedule, compile_network

HIDDEN_SHARE = 0.6
"""Share of a tile's squares that are hidden, as in the paper."""
HIDDEN_SIDE = 32
"""Side of a square, in pixels, as in the paper; less in small tiles."""

_MIN_SQUARES = 4
"""Squares on the side of a tile, at least, as far as the encoder's stride allows."""

_STREAM = 1
"""Sets the random numbers of these batches apart from those of a training."""

_CACHE_BYTES = 2**30
"""Memory in which tiles are kept. What does not fit is read again."""


def pretrain_encoder(
    model: Any,
    stages: Sequence[Stage],
    site: Site,
    settings: TrainSettings,
    *,
    statistics: tuple[Sequence[float], Sequence[float]],
    show_progress: ShowProgress = show_nothing,
) -> tuple[float, ...]:
    """Train the encoder of a model on tiles of a site, without labels.

    Tiles are those of `list_unlabelled_tiles`. Each is turned and mirrored at random;
    it is not zoomed, and has no noise added, which nobody could guess. The learning
    rate, batch size, seed and number of steps are those of the settings. Batch
    normalisations of the encoder run.

    Args:
        model: The model of a bundle. Its encoder holds the result.
        stages: Its stages.
        site: The site, with the bands of the model.
        settings: How it is trained.
        statistics: Mean and standard deviation of each band, as the model's
            normalisation has them.
        show_progress: Called after every step.

    Returns:
        The loss of every step: mean absolute error, in standard deviations of a band.

    Raises:
        DataError: If the site has no tile outside val and test.
        DivergedError: If a loss is not finite.
        ModelError: If the stages do not tell where the encoder ends.
        UsageError: If a tile is smaller than two of the encoder's last pixels.
    """
    encoder_stages = [stage for stage in stages if stage.part == "encoder"]
    squares = plan_squares(settings.tile_size, encoder_stages[-1].stride)
    batches = HiddenBatches(
        list_unlabelled_tiles(site, settings.tile_size),
        squares,
        settings=settings,
        statistics=statistics,
    )
    encoder = _copy_encoder(model, find_encoder_end(model, stages), settings.precision)
    trainer = _build_trainer(encoder, squares, settings, num_bands=len(site.bands))
    record = _Record(settings.num_steps, show_progress)
    # Builds loss and metrics. On JAX, `fit` would take a batch to do so and lose it.
    trainer.test_on_batch(*batches[0])
    trainer.fit(
        batches,
        epochs=1,
        steps_per_epoch=settings.num_steps,
        shuffle=False,
        verbose=0,
        callbacks=[record],
    )
    for layer in encoder.layers:
        if layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return tuple(record.losses)


@dataclass(frozen=True, kw_only=True)
class Squares:
    """How a tile is divided into squares that are hidden or shown."""

    tile_size: int
    """Side of a tile, in pixels."""
    side: int
    """Side of a square, in pixels: a multiple of the stride. The last of a row may
    reach over the edge."""
    stride: int
    """Pixels per pixel of the encoder's last features, on a side."""

    def hide(self, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Return which pixels are hidden, (tile_size, tile_size)."""
        count = math.ceil(self.tile_size / self.side)
        squares = np.zeros(count**2, np.bool_)
        squares[: round(HIDDEN_SHARE * count**2)] = True
        hidden = rng.permutation(squares).reshape(count, count)
        pixels = hidden.repeat(self.side, axis=0).repeat(self.side, axis=1)
        return pixels[: self.tile_size, : self.tile_size]

    def fold(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Put the pixels under each pixel of the features one behind the other.

        Args:
            values: (tile_size, tile_size, channels).

        Returns:
            (tile_size / stride, tile_size / stride, stride * stride * channels).
        """
        size, step = self.tile_size // self.stride, self.stride
        cut = values.reshape(size, step, size, step, -1).swapaxes(1, 2)
        return cut.reshape(size, size, -1)


def plan_squares(tile_size: int, stride: int) -> Squares:
    """Choose the size of squares for a tile and an encoder.

    Args:
        tile_size: Side of a tile, in pixels, a multiple of the stride.
        stride: Pixels per pixel of the encoder's last features, on a side.

    Raises:
        UsageError: If a tile has one such pixel on a side, or a part of one.
    """
    if tile_size < 2 * stride or tile_size % stride:
        raise UsageError(
            f"Tile size {tile_size} does not fit an encoder whose last features have "
            f"a pixel for {stride} x {stride} pixels; to hide some and show others, "
            f"give a multiple of {stride}, {2 * stride} or greater."
        )
    wanted = min(HIDDEN_SIDE, tile_size // _MIN_SQUARES)
    side = stride * math.ceil(wanted / stride)
    return Squares(tile_size=tile_size, side=side, stride=stride)


def _copy_encoder(model: Any, end: str, precision: str) -> Any:
    """Return a model from raw values to the encoder's end that shares no variable."""
    outputs: dict[str, Any] = {}

    def record(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs[operation.name] = operation(*args, **kwargs)
        return outputs[operation.name]

    copy = keras.models.clone_model(model, call_function=record)
    copy.set_weights(model.get_weights())
    encoder = keras.Model(copy.inputs[0], outputs[end])
    encoder = copy_with_precision(encoder, resolve_precision(precision))
    for layer in encoder.layers:
        layer.trainable = True  # whatever a mode locks later
    return encoder


def _build_trainer(
    encoder: Any, squares: Squares, settings: TrainSettings, *, num_bands: int
) -> Any:
    guess = keras.layers.Conv2D(
        squares.stride**2 * num_bands,
        1,
        kernel_initializer=keras.initializers.GlorotUniform(seed=settings.seed),
        dtype="float32",
        name="guess",
    )
    return compile_network(
        keras.Model(encoder.inputs[0], guess(encoder.outputs[0])),
        rate=build_schedule(settings.learning_rate, settings.num_steps),
        loss=_bind_loss(num_bands),
        rates={},
    )


def _bind_loss(num_bands: int) -> Callable[[Any, Any], Any]:
    def compute_error(targets: Any, guesses: Any) -> Any:
        """Return the mean absolute error over hidden pixels with data."""
        truth = keras.ops.reshape(targets, (-1, num_bands + 1))
        error = keras.ops.abs(
            truth[:, :-1] - keras.ops.reshape(guesses, (-1, num_bands))
        )
        counts = truth[:, -1:]
        total = keras.ops.maximum(keras.ops.sum(counts), 1.0) * num_bands
        return keras.ops.sum(error * counts) / total

    return compute_error


class HiddenBatches(keras.utils.PyDataset):
    """Endless batches of tiles with hidden squares; batch k depends on (seed, k)."""

    def __init__(
        self,
        tiles: UnlabelledTiles,
        squares: Squares,
        *,
        settings: TrainSettings,
        statistics: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Prepare batches.

        Args:
            tiles: The tiles.
            squares: What is hidden of a tile.
            settings: Batch size, seed and workers.
            statistics: Mean and standard deviation of each band, in raw units.
        """
        super().__init__(workers=settings.workers, max_queue_size=2 * settings.workers)
        self._tiles = tiles
        self._squares = squares
        self._batch_size = settings.batch_size
        self._seed = settings.seed
        self._mean, self._std = (np.asarray(item, np.float32) for item in statistics)
        self._kept: dict[int, Pixels] = {}
        self._room = _CACHE_BYTES

    @property
    def num_batches(self) -> int | None:
        """None: the batches never end."""
        return None

    def __getitem__(
        self, index: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return a batch.

        Returns:
            Raw values, (tiles, side, side, bands), float32, with the mean of their
            band where they are hidden or not valid; and what was there, folded as
            `Squares.fold` does: standardised values, and behind those of each pixel
            a 1 where it counts and a 0 elsewhere.
        """
        rng = np.random.default_rng([_STREAM, self._seed, index])
        views = [self._draw_view(rng) for _ in range(self._batch_size)]
        images, targets = zip(*views, strict=True)
        return np.stack(images), np.stack(targets)

    def _draw_view(
        self, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        pixels = self._get(int(rng.integers(len(self._tiles))))
        turns, mirrors = int(rng.integers(4)), bool(rng.integers(2))
        hidden = self._squares.hide(rng)
        image = _turn(pixels.values, turns, mirrors=mirrors).astype(np.float32)
        valid = _turn(pixels.valid, turns, mirrors=mirrors)
        counts = (hidden & valid)[..., None].astype(np.float32)
        target = np.where(valid[..., None], (image - self._mean) / self._std, 0)
        target = np.concatenate([target, counts], axis=-1, dtype=np.float32)
        image[hidden | ~valid] = self._mean
        return image, self._squares.fold(target)

    def _get(self, index: int) -> Pixels:
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self._tiles.read(index)
            num_bytes = pixels.values.nbytes + pixels.valid.nbytes
            if num_bytes <= self._room:  # two threads may both keep it: once in memory
                self._kept[index] = pixels
                self._room -= num_bytes
        return pixels


def _turn(array: npt.NDArray[Any], turns: int, *, mirrors: bool) -> npt.NDArray[Any]:
    """Return one of the eight views of a tile, as a new array or not."""
    turned = np.rot90(array, turns)
    return turned[:, ::-1] if mirrors else turned


class _Record(keras.callbacks.Callback):
    """Records the losses, and ends a training that diverges."""

    def __init__(self, num_steps: int, show_progress: ShowProgress) -> None:
        super().__init__()
        self._num_steps = num_steps
        self._show_progress = show_progress
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Forget the last batch, so that the loss in `logs` is that of this one."""
        del batch, logs
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record the loss."""
        del batch
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise DivergedError(
                f"The loss is {loss} at step {len(self.losses) + 1} of pretraining. "
                "No model was saved. Try a lower --learning-rate, and look at the "
                "data with `cropseg check`."
            )
        self.losses.append(loss)
        done = len(self.losses)
        self._show_progress(done, self._num_steps, f"pretraining, loss {loss:.3f}")
