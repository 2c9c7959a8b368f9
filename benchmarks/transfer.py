"""What a step of a transfer costs, by mode. Prints ratios of one run.

U-Net with ResNet34, batches of four 256-pixel tiles with four bands and six classes, of
the site that `tiles.py` makes up. Trainers are built as `cropseg transfer` builds them,
and take turns, so that other work on the machine slows all of them down.

Usage: python benchmarks/transfer.py [STEPS]
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tiles import BANDS, TILE_PX, measure, write_site

from cropseg import open_site
from cropseg.models.bundle import add_normalization
from cropseg.models.zoo import build_network, find_stages
from cropseg.runtime import keras, start_run
from cropseg.sites.budget import LabelPool, open_pool
from cropseg.training import trainer as training
from cropseg.training.batches import LaterBatches, TileBatches
from cropseg.training.features import CachedFeatures, split_at_head
from cropseg.training.locks import list_norms
from cropseg.training.phases import FitPhase
from cropseg.training.settings import TrainSettings
from cropseg.transfer.modes import PLANS, get_plan
from cropseg.transfer.phases import resolve_phases

STATISTICS = ((1000.0,) * len(BANDS), (500.0,) * len(BANDS))
SETTINGS = TrainSettings(
    encoder="resnet34", tile_size=TILE_PX, batch_size=4, precision="float32"
)
ROUNDS = 4
MODES = (*PLANS, "freeze_first:2", "freeze_layers:stage1_*")
PRODUCT_SIDE = 1024


class ConstantBatches(keras.utils.PyDataset):
    """One batch, endlessly."""

    def __init__(self, batch: tuple[Any, Any]) -> None:
        super().__init__(workers=1)
        self.batch = batch

    @property
    def num_batches(self) -> None:
        """Endless."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.batch


class Clock(keras.callbacks.Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


@dataclass(kw_only=True)
class Contestant:
    """A trainer, its batches, and the seconds of its steps."""

    trainer: Any
    batches: Any
    seconds: list[float] = field(default_factory=list)
    """Mean of the steps of each round."""

    def run(self, first: int, num_steps: int) -> None:
        """Fit from a batch on, and time all steps but the first."""
        clock = Clock()
        self.trainer.fit(
            LaterBatches(self.batches, first),
            epochs=1,
            steps_per_epoch=num_steps + 1,
            shuffle=False,
            verbose=0,
            callbacks=[clock],
        )
        self.seconds.append((clock.ends[-1] - clock.ends[0]) / num_steps)


def main(num_steps: int = 6) -> None:
    """Measure, and print ratios with what they should be."""
    with tempfile.TemporaryDirectory() as folder:
        pool = open_pool(open_site(write_site(Path(folder))), TILE_PX)
        count_gradients(pool)
        start_run(0)
        contestants = build_contestants(pool)
        for contestant in contestants.values():  # traces are not what is measured
            contestant.run(0, 1)
            contestant.seconds.clear()
        for number in range(ROUNDS):
            for contestant in contestants.values():
                contestant.run((1 + number) * (num_steps + 1), num_steps)
    print_ratios({name: min(item.seconds) for name, item in contestants.items()})


def build_model(pool: LabelPool) -> Any:
    """Return a model with random weights; a step costs the same with others."""
    network = build_network(
        SETTINGS.architecture,
        SETTINGS.encoder,
        num_bands=len(BANDS),
        num_classes=len(pool.site.classes),
    )
    mean, std = STATISTICS
    return add_normalization(network, mean=mean, std=std)


def list_phases(model: Any, mode: str) -> tuple[FitPhase, ...]:
    """Return the phases of a mode for a model."""
    stages = find_stages(model, SETTINGS.architecture, SETTINGS.encoder)
    norms = list_norms(model)
    return resolve_phases(get_plan(mode), stages, norms, num_steps=SETTINGS.num_steps)


def count_gradients(pool: LabelPool) -> None:
    """Print for how many variables each mode takes gradients."""
    start_run(0)
    model = build_model(pool)
    print("variables with gradients, by phase")
    for mode in MODES:
        counts = [
            len(training.build_network(model, phase, "float32").trainable_variables)
            for phase in list_phases(model, mode)
        ]
        print(f"  {mode:<24}{', '.join(map(str, counts)) or 'none'}")


def build_contestants(pool: LabelPool) -> dict[str, Contestant]:
    """Build what is compared. Each has a model of its own, for locks are a model's."""
    tiles = TileBatches(
        pool,
        batch_size=SETTINGS.batch_size,
        seed=0,
        statistics=STATISTICS,
        workers=SETTINGS.workers,
    )
    constant = ConstantBatches(tiles[0])
    contestants = {
        mode: Contestant(trainer=build_trainer(pool, mode), batches=constant)
        for mode in ("full", "frozen_encoder", "head_only")
    }
    contestants["tiles"] = Contestant(
        trainer=contestants["full"].trainer, batches=tiles
    )
    features, head = build_head_trainer(pool)
    contestants["cached"] = Contestant(
        trainer=head, batches=CachedFeatures(tiles, features, num_steps=2)
    )
    if has_bfloat16():
        contestants["bfloat16"] = Contestant(
            trainer=build_trainer(pool, "full", precision="bfloat16"), batches=constant
        )
    return contestants


def build_trainer(pool: LabelPool, mode: str, precision: str = "float32") -> Any:
    """Return the trainer of the first phase of a mode."""
    model = build_model(pool)
    return training.build_trainer(
        model,
        list_phases(model, mode)[0],
        build_rate(),
        settings=SETTINGS.change(precision=precision),
        pool=pool,
    )


def build_head_trainer(pool: LabelPool) -> tuple[Any, Any]:
    """Return the model of the features of `head_only`, and the trainer of its head."""
    model = build_model(pool)
    phase = list_phases(model, "head_only")[0]
    features, head = split_at_head(training.build_network(model, phase, "float32"))
    loss = training.build_pool_loss(SETTINGS, pool)
    return features, training.compile_network(
        head, rate=build_rate(), loss=loss, rates=phase.rates
    )


def build_rate() -> Any:
    """Return the schedule of the learning rate."""
    return training.build_schedule(SETTINGS.learning_rate, SETTINGS.num_steps)


def has_bfloat16() -> bool:
    """Tell whether the CPU says that it has AVX512-BF16."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "avx512_bf16" in path.read_text(encoding="utf-8")


def compare_products() -> float:
    """Return the time of a matrix product at bfloat16, by that at float32."""
    values = np.random.default_rng(0).normal(size=(PRODUCT_SIDE, PRODUCT_SIDE))

    def time_product(dtype: str) -> float:
        matrix = keras.ops.convert_to_tensor(values, dtype)

        def multiply() -> None:
            corner = keras.ops.matmul(matrix, matrix)[0, 0]
            keras.ops.convert_to_numpy(keras.ops.cast(corner, "float32"))

        multiply()
        return measure(multiply, repeats=20)

    return time_product("bfloat16") / time_product("float32")


def print_ratios(seconds: Mapping[str, float]) -> None:
    """Print the ratios and what they should be."""
    full = seconds["full"]
    print(f"step of full: {full:.2f} s")
    print(f"frozen_encoder, by full: {seconds['frozen_encoder'] / full:.2f}", end=" ")
    print("(at most 0.60)")
    print(f"head_only, by full: {seconds['head_only'] / full:.2f}")
    print(f"head_only, features kept, by full: {seconds['cached'] / full:.3f}", end=" ")
    print("(at most 0.03)")
    print(f"step rate with tiles, by one batch: {full / seconds['tiles']:.2f}", end=" ")
    print("(at least 0.95)")
    if "bfloat16" not in seconds:
        print("bfloat16: not measured; this CPU does not say that it has AVX512-BF16")
        return
    print(f"bfloat16, by float32: {seconds['bfloat16'] / full:.2f}", end=" ")
    print("(at most 0.90 where the next line is well below 1; else out of reach)")
    print(f"matrix product at bfloat16, by float32: {compare_products():.2f}")
    print("whether bfloat16 keeps the mIoU is not measured here")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
