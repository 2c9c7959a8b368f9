"""Tiles: what reading and augmenting costs, beside plain reads and a training step.

Prints ratios of one run. A scene of 4,096 x 4,096 pixels with four uint16 bands is
made up, with fields of 60 pixels, deflated in blocks of 512 pixels.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import rasterio
import yaml
from affine import Affine

from cropseg import open_site
from cropseg.checks.check import check_site
from cropseg.runtime import keras, start_run
from cropseg.sites.budget import open_pool
from cropseg.sites.grid import Window
from cropseg.sites.site import Site
from cropseg.training.batches import TileBatches
from cropseg.training.losses import build_loss

SIDE_PX = 4096
TILE_PX = 256
BANDS = ("red", "green", "blue", "nir")
FIELD_PX = 60
NUM_TILES = 120
NUM_STEPS = 6
BATCH_SIZE = 4


def main() -> None:
    """Measure, and print ratios with what they should be."""
    with tempfile.TemporaryDirectory() as folder:
        site = open_site(write_site(Path(folder)))
        windows = choose_windows()
        compare_reads(site, windows)
        compare_check(site)
        compare_with_step(site)


def write_site(folder: Path) -> Path:
    """Write a scene, its labels and a manifest."""
    rng = np.random.default_rng(0)
    cells = rng.integers(1, 7, (SIDE_PX // FIELD_PX + 1,) * 2, dtype=np.uint8)
    labels = cells.repeat(FIELD_PX, 0).repeat(FIELD_PX, 1)[:SIDE_PX, :SIDE_PX]
    levels = rng.integers(400, 4000, (7, len(BANDS)), dtype=np.uint16)
    profile = {
        "driver": "GTiff",
        "height": SIDE_PX,
        "width": SIDE_PX,
        "crs": "EPSG:32633",
        "transform": Affine(1, 0, 500_000, 0, -1, 5_400_000),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
    }
    with rasterio.open(
        folder / "scene.tif",
        "w",
        count=len(BANDS),
        dtype="uint16",
        nodata=0,
        interleave="pixel",
        **profile,
    ) as image:
        for row in range(0, SIDE_PX, 512):
            part = levels[labels[row : row + 512]].astype(np.float32)
            part += rng.normal(0, 60, part.shape)
            window = rasterio.windows.Window(0, row, SIDE_PX, 512)
            values = np.moveaxis(part.clip(1, 10_000).astype(np.uint16), -1, 0)
            image.write(values, window=window)
    with rasterio.open(
        folder / "labels.tif", "w", count=1, dtype="uint8", **profile
    ) as raster:
        raster.write(labels, 1)
    manifest = {
        "site": "benchmark",
        "bands": list(BANDS),
        "classes": [
            {"name": f"crop {v}", "color": f"#{v * 2:02x}8040", "values": [v]}
            for v in range(1, 7)
        ],
        "scenes": [{"image": "scene.tif", "labels": "labels.tif"}],
        "split": {"block_m": 512, "train": 0.6, "val": 0.2, "test": 0.2},
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return path


def choose_windows() -> list[Window]:
    """Return windows of a tile, at random places, in an order as training has it."""
    rng = np.random.default_rng(1)
    places = rng.integers(0, SIDE_PX - TILE_PX, (NUM_TILES, 2)).tolist()
    return [Window(row=r, col=c, height=TILE_PX, width=TILE_PX) for r, c in places]


def measure(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the least wall-clock time of some runs, in s."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compare_reads(site: Site, windows: list[Window]) -> None:
    """Read windows as cropseg does, with validity, and plainly."""
    scene = site.scenes[0]

    def read_plainly() -> None:
        with rasterio.open(scene.image_path) as dataset:
            for w in windows:
                area = rasterio.windows.Window(w.col, w.row, w.width, w.height)
                dataset.read(window=area)

    def read() -> None:
        with site.open_scene(scene) as reader:
            for window in windows:
                reader.read_pixels(window)

    plain, ours = measure(read_plainly), measure(read)
    print(f"plain rasterio: {NUM_TILES / plain:.0f} tiles/s of {TILE_PX} px")
    print(f"reading, by plain rasterio: {ours / plain:.2f} (at most 1.3)")


def compare_check(site: Site) -> None:
    """Check the site, and read its files once."""
    scene = site.scenes[0]

    def read_once() -> None:
        for path in (scene.image_path, scene.labels_path):
            with rasterio.open(path) as dataset:
                for _, window in dataset.block_windows(1):
                    dataset.read(window=window)

    check_site(site, tile_size=TILE_PX)  # its imports are not what is measured
    ratio = measure(read_once) / measure(lambda: check_site(site, tile_size=TILE_PX))
    print(f"speed of a check, by reading its files once: {ratio:.2f} (at least 0.5)")


def compare_with_step(site: Site) -> None:
    """Prepare tiles, and train a U-Net with ResNet34 on as many."""
    start_run(0)
    with contextlib.redirect_stdout(io.StringIO()):
        from cropseg.models.zoo import build_network

        network = build_network(
            "unet", "resnet34", num_bands=len(BANDS), num_classes=len(site.classes)
        )
    pool = open_pool(site, TILE_PX)
    statistics = ([1000.0] * len(BANDS), [500.0] * len(BANDS))

    # Every tile is read for the first time: a site that fits into memory is decoded
    # once, by one thread for all workers.
    def open_batches() -> TileBatches:
        return TileBatches(
            pool, batch_size=BATCH_SIZE, seed=0, statistics=statistics, workers=1
        )

    open_batches()[0]  # its imports are not what is measured
    rates, cpus = {}, {}
    for workers in (1, 2):
        batches = open_batches()
        start, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(batches.__getitem__, range(NUM_TILES // BATCH_SIZE)))
        rates[workers] = NUM_TILES / (time.perf_counter() - start)
        cpus[workers] = (time.process_time() - cpu) / NUM_TILES

    network.compile(
        optimizer="adam", loss=build_loss("cross_entropy", class_weights=None)
    )
    images, labels = batches[0]
    network.train_on_batch(images, labels)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(NUM_STEPS):
        network.train_on_batch(images, labels)
    appetite = NUM_STEPS * BATCH_SIZE / (time.perf_counter() - start)
    step_cpu = (time.process_time() - cpu) / (NUM_STEPS * BATCH_SIZE)
    keras.backend.clear_session()
    for workers, rate in rates.items():
        times = rate / appetite
        print(
            f"reading and augmenting, {workers} worker(s): {rate:.0f} tiles/s,", end=" "
        )
        print(f"{times:.0f} times what the training step takes")
    for workers, cpu in cpus.items():
        print(f"CPU of a tile, {workers} worker(s): {cpu * 1e3:.1f} ms,", end=" ")
        print(f"of its training step: {cpu / step_cpu:.1%} (at most 3 %)")


if __name__ == "__main__":
    main()
