"""The losses that a model can be trained with.

All take integer labels of shape (B, H, W), 255 for unknown, and logits of shape
(B, H, W, C). A pixel with an unknown label has exactly no influence: neither its
logits, whatever they are, nor its place in a tile changes a gradient. A mean is
over the known pixels of the whole batch, so that a batch of few labels weighs as
much as a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cropseg.errors import DataError, UsageError
from cropseg.runtime import keras
from cropseg.sites.classes import IGNORE
from cropseg.training.settings import LOSSES

ops = keras.ops
Tensor = Any
"""A tensor of the Keras backend."""

_RANK = 4
"""Axes of logits: batch, row, column, class."""


def build_loss(
    name: str, *, class_weights: NDArray[np.floating] | None
) -> SegmentationLoss:
    """Build a loss for `model.compile`.

    Args:
        name: One of `LOSSES`.
        class_weights: A weight per class, 0 or greater, of shape (C,); see
            `compute_class_weights`. None weighs all classes alike.

    Returns:
        A Keras loss that returns one number a batch.

    Raises:
        UsageError: If there is no loss of this name, or if the weights are no
            vector of finite numbers of 0 or more.
    """
    return SegmentationLoss(name, class_weights=class_weights)


def compute_class_weights(
    class_pixels: Sequence[int] | NDArray[np.integer], power: float = 0.5
) -> NDArray[np.float64]:
    """Weigh classes by their inverse frequency to a power.

    Args:
        class_pixels: Label pixels of each class, of shape (C,).
        power: 0 weighs all pixels alike, 1 all classes alike. 0.5 is between.

    Returns:
        A weight per class, of shape (C,). The mean over label pixels is 1, so that
        the loss keeps its size. A class without a pixel has 0.

    Raises:
        DataError: If no class has a pixel, or if a number is negative.
        UsageError: If `power` is negative or not finite.

    Example:
        The weights 1 and 2 go with 1 to 1/4 of the pixels, before scaling.

        >>> compute_class_weights([80, 20, 0]).round(3).tolist()
        [0.833, 1.667, 0.0]
    """
    if not (np.isfinite(power) and power >= 0):
        raise UsageError(
            f"The power of class weights is {power}; give 0 (all pixels alike) to 1 "
            "(all classes alike)."
        )
    pixels = np.asarray(class_pixels, dtype=np.float64)
    if pixels.ndim != 1 or (pixels < 0).any() or not pixels.sum() > 0:
        raise DataError(
            f"Class weights need pixel counts of the classes and got {class_pixels!r}. "
            "Check that the training part has labels."
        )
    weights = np.zeros_like(pixels)
    present = pixels > 0
    frequency = pixels / pixels.sum()
    weights[present] = frequency[present] ** -power
    scaled: NDArray[np.float64] = weights / (frequency * weights).sum()
    return scaled


class SegmentationLoss(keras.losses.Loss):
    """Sum of the terms that `LOSSES` names.

    A label that is neither a class nor 255 makes the loss NaN. Keras raises for it
    on a CPU and not on a GPU (HAZARDS 17); the run must not go on with it.
    """

    def __init__(
        self, name: str, *, class_weights: NDArray[np.floating] | None = None
    ) -> None:
        """Check the options; `build_loss` says what they are."""
        if name not in LOSSES:
            raise UsageError(
                f"There is no loss {name!r}. Choose one of: {', '.join(LOSSES)}."
            )
        # float32 whatever the precision: bfloat16 would turn label 255 into 256.
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.class_weights = _check_weights(class_weights)
        self._held: Any = None

    def hold_weights(self) -> None:
        """Keep class weights in a variable, so that a traced step can take others."""
        if self.class_weights is not None:
            self._held = keras.Variable(
                self.class_weights, trainable=False, name="class_weights"
            )

    def take_weights(self, other: SegmentationLoss) -> None:
        """Take the class weights of another loss, also where a step was traced.

        Args:
            other: A loss with as many class weights as this one.
        """
        self.class_weights = other.class_weights
        if self._held is not None:
            self._held.assign(self.class_weights)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of a batch, as a scalar.

        Args:
            y_true: Labels, of shape (B, H, W) or (B, H, W, 1). Any numeric type.
            y_pred: Logits, of shape (B, H, W, C).
        """
        logits = ops.cast(y_pred, "float32")
        labels = _match_labels(ops.cast(y_true, "int32"), logits)
        num_classes = logits.shape[-1]
        known = ops.not_equal(labels, IGNORE)
        wrong = ops.logical_and(
            known, ops.logical_or(labels < 0, labels >= num_classes)
        )
        known = ops.logical_and(known, ops.logical_not(wrong))
        # Replaced, and not only multiplied by 0: 0 times an infinite logit is NaN.
        labels = ops.where(known, labels, 0)
        logits = ops.where(ops.expand_dims(known, -1), logits, 0.0)
        mask = ops.cast(known, "float32")
        total = ops.zeros((), "float32")
        for term in LOSSES[self.name]:
            if term == "dice":
                total = total + _dice(labels, logits, mask)
            else:
                weights = mask * self._weigh(labels, num_classes)
                gamma = 2.0 if term == "focal" else 0.0
                total = total + _cross_entropy(labels, logits, weights, gamma)
        return ops.where(ops.any(wrong), float("nan"), total)

    def _weigh(self, labels: Tensor, num_classes: int) -> Tensor:
        if self.class_weights is None:
            return 1.0
        if len(self.class_weights) != num_classes:
            raise UsageError(
                f"There are {len(self.class_weights)} class weights and the model has "
                f"{num_classes} classes. Give one weight a class."
            )
        held = self.class_weights if self._held is None else self._held
        return ops.take(ops.convert_to_tensor(held), labels)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss again."""
        weights = self.class_weights
        return {
            "name": self.name,
            "class_weights": None if weights is None else weights.tolist(),
        }


def _cross_entropy(
    labels: Tensor, logits: Tensor, weights: Tensor, gamma: float
) -> Tensor:
    """Return the weighted mean of (1 - p)^gamma (-log p), p being the label's.

    `gamma` 0 is cross-entropy, 2 the focal loss. The divisor is the sum of
    `weights` for both.

    References:
        Lin, T.-Y. et al. (2017): Focal Loss for Dense Object Detection. ICCV,
        equation 5. DOI 10.1109/ICCV.2017.324
    """
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    if gamma:
        losses = losses * (1.0 - ops.exp(-losses)) ** gamma
    return ops.divide_no_nan(ops.sum(weights * losses), ops.sum(weights))


def _dice(labels: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """Return 1 minus the mean soft Dice of the classes with a label in the batch.

    Sums run over the batch. The Dice of a class is 2 sum(p g) / (sum(p^2) +
    sum(g^2)), with p the probability and g 1 where the label is the class. Each
    class counts alike, so class weights have no part in it.

    References:
        Milletari, F. et al. (2016): V-Net: Fully Convolutional Neural Networks for
        Volumetric Medical Image Segmentation. 3DV, section 3. DOI
        10.1109/3DV.2016.79
    """
    mask = ops.expand_dims(mask, -1)
    truth = ops.one_hot(labels, logits.shape[-1], dtype="float32") * mask
    probabilities = ops.softmax(logits, axis=-1) * mask
    axes = (0, 1, 2)
    num_labelled = ops.sum(truth, axis=axes)  # truth is 0 or 1, hence its square too
    overlap = ops.sum(probabilities * truth, axis=axes)
    size = ops.sum(ops.square(probabilities), axis=axes) + num_labelled
    present = ops.cast(num_labelled > 0, "float32")
    losses = present * (1.0 - ops.divide_no_nan(2.0 * overlap, size))
    return ops.divide_no_nan(ops.sum(losses), ops.sum(present))


def _match_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels of shape (B, H, W), or say that the shapes do not fit."""
    if len(logits.shape) == _RANK and len(labels.shape) == _RANK:
        if labels.shape[-1] == 1:
            return ops.squeeze(labels, axis=-1)
    elif len(logits.shape) == _RANK and len(labels.shape) == _RANK - 1:
        return labels
    raise UsageError(
        f"Labels have the shape {tuple(labels.shape)} and logits "
        f"{tuple(logits.shape)}; expected (B, H, W) and (B, H, W, C)."
    )


def _check_weights(
    weights: NDArray[np.floating] | None,
) -> NDArray[np.float32] | None:
    if weights is None:
        return None
    array = np.asarray(weights, dtype=np.float32)
    if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any():
        raise UsageError(
            f"Class weights are {np.asarray(weights).tolist()}; expected one finite "
            "number of 0 or more for each class."
        )
    return array
