"""Features that are computed once, for a training of the head alone.

Nothing below the head changes then, so its forward pass gives the same features for
the same tiles in every step, and is the whole cost of the step but for the head.
It is done once for the first batches of the stream, which then repeat: an exception
to the stream of augmented tiles that all modes share, for as long as there are more
steps than batches kept.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import UsageError
from cropseg.models.bundle import HEAD_LAYER
from cropseg.progress import ShowProgress, show_nothing
from cropseg.runtime import compile_for_predict, keras

_log = logging.getLogger(__name__)

_CACHE_BYTES = 2**30
"""Memory in which features are kept."""


def split_at_head(trainer: Any) -> tuple[Any, Any]:
    """Cut a trainer below its head.

    Both models share all variables with the trainer. The features are computed in
    inference mode: dropout below the head does nothing, unlike in a training that
    computes them in every step, and batch normalisation uses its statistics.

    Args:
        trainer: A functional model from pixels to the logits of its layer `head`,
            with everything below the head locked.

    Returns:
        The model from pixels to features, `(N, H, W, channels)`, and the model from
        features to logits, uncompiled.

    Raises:
        UsageError: If a variable or a batch statistic below the head is not locked.
    """
    below: list[Any] = []

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name == HEAD_LAYER:
            below.append(args[0])
        return layer(*args, **kwargs)

    # A shared layer has several inputs, so the head cannot be asked for its own.
    copy = keras.models.clone_model(
        trainer, clone_function=lambda layer: layer, call_function=call
    )
    feature_model = keras.Model(copy.inputs[0], below[0])
    changing = _list_changing(feature_model)
    if changing:
        raise UsageError(
            f"Features can be kept only where nothing below the head is trained; "
            f"{len(changing)} layers are, {changing[0]} first. Lock them, or compute "
            "the features in every step."
        )
    features = keras.Input(below[0].shape[1:], dtype=below[0].dtype, name="features")
    head_model = keras.Model(features, trainer.get_layer(HEAD_LAYER)(features))
    return compile_for_predict(feature_model), head_model


def _list_changing(model: Any) -> list[str]:
    """Return the names of layers with weights or batch statistics that change."""
    return [
        layer.name
        for layer in model.layers
        if layer.trainable_variables
        or (isinstance(layer, keras.layers.BatchNormalization) and layer.trainable)
    ]


class CachedFeatures(keras.utils.PyDataset):
    """Endless batches of features and labels: the first M of a stream, repeated.

    All are computed at the start, in the thread that asks: Keras predicts safely in
    one thread only, and batches are asked for by others.
    """

    def __init__(
        self,
        batches: Any,
        feature_model: Any,
        *,
        num_steps: int,
        first_step: int = 0,
        show_progress: ShowProgress = show_nothing,
    ) -> None:
        """Compute the features.

        Args:
            batches: Gives (images, labels) by index, from the first step of the
                phase on, also where it goes on after an interruption.
            feature_model: What `split_at_head` returned.
            num_steps: Steps of the phase. No more batches are computed.
            first_step: Steps of the phase that are already done.
            show_progress: Called after every batch.
        """
        super().__init__(workers=1)
        self._first_step = first_step
        features, labels = _compute(batches, feature_model, 0)
        self._kept = [(features, labels)]
        room = _CACHE_BYTES // (features.nbytes + labels.nbytes)
        count = max(1, min(room, num_steps))
        show_progress(1, count, "features")
        for index in range(1, count):
            self._kept.append(_compute(batches, feature_model, index))
            show_progress(index + 1, count, "features")
        if count < num_steps:
            _log.info(
                "Features of %d batches are kept; they repeat over %d steps.",
                *(count, num_steps),
            )

    @property
    def num_batches(self) -> int | None:
        """None: the batches never end."""
        return None

    @property
    def num_kept(self) -> int:
        """Number of different batches, M."""
        return len(self._kept)

    def __getitem__(
        self, index: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Return a batch.

        Returns:
            Features, (tiles, side, side, channels), in the dtype of the feature
            model, and class ids, (tiles, side, side), uint8.
        """
        return self._kept[(self._first_step + index) % len(self._kept)]


def _compute(
    batches: Any, feature_model: Any, index: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    images, labels = batches[index]
    features = feature_model.predict_on_batch(images)
    return np.asarray(features), labels
