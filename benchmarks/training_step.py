"""What a training step costs: precision, XLA, augmentation. Prints ratios.

U-Net `classic`, 7 bands, 11 classes, 128-pixel tiles, batches of 8, as on the prairie
pair. Ratios are to the float32 step without XLA of the same run of this script.

Usage: python benchmarks/training_step.py [STEPS]
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cropseg.models.precision import copy_with_precision
from cropseg.models.zoo import build_network
from cropseg.runtime import keras, start_run
from cropseg.training.augment import build_augmentation
from cropseg.training.losses import build_loss

TILE, BANDS, CLASSES, BATCH = 128, 7, 11, 8
WARM_UP = 3


def time_calls(call: Callable[[], Any], num_calls: int) -> float:
    """Return the median seconds of a call, after a warm-up."""
    seconds = []
    for index in range(WARM_UP + num_calls):
        started_at = time.perf_counter()
        call()
        if index >= WARM_UP:
            seconds.append(time.perf_counter() - started_at)
    return float(np.median(seconds))


def time_step(precision: str, *, jit_compile: bool, num_steps: int) -> float:
    """Return the median seconds of a training step."""
    start_run(0)
    network = build_network("unet", "classic", num_bands=BANDS, num_classes=CLASSES)
    logits = keras.Model(network.inputs, network.get_layer("head").output)
    model = copy_with_precision(logits, precision)
    loss = build_loss("cross_entropy", class_weights=None)
    model.compile("adam", loss=loss, jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, TILE, TILE, BANDS)).astype("float32")
    labels = rng.integers(0, CLASSES, (BATCH, TILE, TILE))
    return time_calls(lambda: model.train_on_batch(images, labels), num_steps)


def time_augmentation(num_batches: int) -> float:
    """Return the median seconds of augmenting a batch, on one thread."""
    augmentation = build_augmentation(tile_size=TILE, num_bands=BANDS)
    rng = np.random.default_rng(0)
    side = TILE + TILE // 2
    image = rng.normal(size=(side, side, BANDS)).astype("float32")
    labels = rng.integers(0, CLASSES, (side, side)).astype("uint8")

    def augment() -> None:
        for seed in range(BATCH):
            augmentation.augment(image, labels, seed)

    return time_calls(augment, num_batches)


def main(num_steps: int = 10) -> None:
    """Time everything in one run and print it."""
    base = time_step("float32", jit_compile=False, num_steps=num_steps)
    rows = {
        "step, float32": base,
        "step, float32, XLA": time_step(
            "float32", jit_compile=True, num_steps=num_steps
        ),
        "step, bfloat16": time_step("bfloat16", jit_compile=False, num_steps=num_steps),
        "augmenting its batch, one thread": time_augmentation(num_steps),
    }
    for name, seconds in rows.items():
        print(f"{name:<34}{seconds:8.3f} s  {seconds / base:6.2f} of a float32 step")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
