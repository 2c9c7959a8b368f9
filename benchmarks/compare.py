"""What a comparison costs beside its training steps. Prints ratios of one run.

The first part compares six modes of three draws, 100 steps each, with the classic
encoder, batches of eight 128-pixel tiles with seven bands and six classes, as `cropseg
compare --source` does. All that is not a training step counts as overhead: imports,
decoding, building and tracing networks, scoring on both sites, plots and files. The
pure time of a run is the number of its steps times their median time, for each phase.

The second part compares short runs with the tiny encoder, in a process of its own, and
prints how memory grows with their number. What a run could leave behind are its traces
and its tiles, which the tiny encoder has as well.

The sites are made up: 1,280 x 1,280 pixels of 30 m, fields of 20 pixels. After each run
the southern tenth of area 2 is scored, and that of area 1 for what was forgotten: four
tiles of 512 pixels each. With more pixels to score the overhead is more.

Usage: python benchmarks/compare.py [STEPS]
"""

import time

STARTED_AT = time.perf_counter()

import json  # noqa: E402 - the imports are part of what is measured
import multiprocessing  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import re  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import rasterio  # noqa: E402
import yaml  # noqa: E402
from affine import Affine  # noqa: E402

from cropseg import open_site  # noqa: E402
from cropseg.comparison.compare import compare_modes  # noqa: E402
from cropseg.training.train import train_site  # noqa: E402

IMPORT_S = time.perf_counter() - STARTED_AT

MODES = ("scratch", "full", "full_bn_source", "frozen_encoder", "lp_ft", "joint")
DRAWS = 3
BUDGET = "8tiles"
SIDE_PX = 1280
FIELD_PX = 20
PIXEL_M = 30
WEST_M, NORTH_M = 400_000, 5_380_000
BANDS = ("coastal", "blue", "green", "red", "nir", "swir1", "swir2")
NUM_CLASSES = 6
TILE_PX = 128

MEMORY_MODE = "full"
MEMORY_RUNS = 30
FIRST_RUN = 3
"""The run from which memory may not grow: the first ones still load what all use."""


def main(num_steps: int = 100) -> None:
    """Measure, and print ratios with what they should be."""
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        areas = [write_site(folder / f"area_{number}", number) for number in (1, 2)]
        model = train_source(areas[0], folder, "classic", TILE_PX)
        measure_overhead(areas, model, folder / "comparison", num_steps)
        tiny = train_source(areas[0], folder, "classic_tiny", TILE_PX // 2)
        arguments = (areas[1], tiny, folder / "memory")
        # A fresh process, so that the peaks are not those of the first part.
        child = multiprocessing.get_context("spawn").Process(
            target=measure_memory, args=arguments
        )
        child.start()
        child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)


def write_site(folder: Path, number: int) -> Path:
    """Write a scene, its labels and a manifest, and return the manifest's path."""
    folder.mkdir()
    rng = np.random.default_rng(number)
    shape = (SIDE_PX // FIELD_PX,) * 2
    cells = rng.integers(1, NUM_CLASSES + 1, shape, dtype=np.uint8)
    labels = cells.repeat(FIELD_PX, 0).repeat(FIELD_PX, 1)
    levels = np.random.default_rng(0).integers(400, 4000, (NUM_CLASSES + 1, len(BANDS)))
    image = levels[labels] + rng.normal(0, 400, (*labels.shape, len(BANDS)))
    profile = {
        "driver": "GTiff",
        "height": SIDE_PX,
        "width": SIDE_PX,
        "crs": "EPSG:32614",
        "transform": Affine(PIXEL_M, 0, WEST_M, 0, -PIXEL_M, NORTH_M),
        "tiled": True,
        "compress": "deflate",
    }
    with rasterio.open(
        folder / "scene.tif",
        "w",
        count=len(BANDS),
        dtype="uint16",
        nodata=0,
        **profile,
    ) as raster:
        values = image.clip(1, 10_000).astype(np.uint16)
        raster.write(np.moveaxis(values, -1, 0))
    with rasterio.open(
        folder / "labels.tif", "w", count=1, dtype="uint8", **profile
    ) as raster:
        raster.write(labels, 1)
    text = json.dumps(list_regions())
    (folder / "split.geojson").write_text(text, encoding="utf-8")
    manifest = {
        "site": folder.name,
        "bands": list(BANDS),
        "classes": [
            {"name": f"crop {v}", "color": f"#{v * 2:02x}8040", "values": [v]}
            for v in range(1, NUM_CLASSES + 1)
        ],
        "scenes": [{"image": "scene.tif", "labels": "labels.tif"}],
        "split": {"regions": "split.geojson", "block_m": SIDE_PX * PIXEL_M // 10},
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return path


def list_regions() -> dict[str, Any]:
    """Return the northern half as training part, the southern tenth as test."""
    features = []
    for part, first, end in (("train", 0.0, 0.5), ("test", 0.9, 1.0)):
        west, east = WEST_M, WEST_M + SIDE_PX * PIXEL_M
        north = NORTH_M - first * SIDE_PX * PIXEL_M
        south = NORTH_M - end * SIDE_PX * PIXEL_M
        ring = [[west, north], [east, north], [east, south], [west, south]]
        ring.append(ring[0])
        features.append(
            {
                "type": "Feature",
                "properties": {"part": part},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
            }
        )
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32614"}}
    return {"type": "FeatureCollection", "crs": crs, "features": features}


def train_source(manifest: Path, folder: Path, encoder: str, tile_px: int) -> Path:
    """Return a model of area 1. It is not measured, and hardly trained."""
    run = train_site(
        open_site(manifest),
        out_dir=folder / encoder,
        encoder=encoder,
        tile_size=tile_px,
        batch_size=2,
        epochs=1,
        steps_per_epoch=2,
    )
    return run.model_path


class StepClock:
    """Notes when each training step of a comparison ends, by its run."""

    def __init__(self) -> None:
        self.ends: dict[str, list[float]] = {}

    def __call__(self, done: int, total: int, text: str) -> None:
        """Take what `compare_modes` shows after every step."""
        found = re.search(r"(\S+) loss", text)
        if found:
            self.ends.setdefault(found[1], []).append(time.perf_counter())

    def add_up(self, phases: Mapping[str, Sequence[int]]) -> float:
        """Return the pure time of all runs, in s.

        Args:
            phases: Steps of each phase of a run, by its mode.
        """
        total = 0.0
        for name, ends in self.ends.items():
            seconds = np.diff(ends)
            first = 0
            for num_steps in phases[name.split("-")[0]]:
                # Between two steps, so that the first one has no time of its own.
                steps = seconds[first : first + num_steps - 1]
                total += num_steps * statistics.median(steps.tolist())
                first += num_steps
        return total


def measure_overhead(
    areas: Sequence[Path], model: Path, out_dir: Path, num_steps: int
) -> None:
    """Compare the modes, and print what is not a training step."""
    clock = StepClock()
    begun_at = time.perf_counter()
    comparison = compare_modes(
        open_site(areas[1]),
        model,
        modes=MODES,
        labels=[BUDGET],
        draws=DRAWS,
        out_dir=out_dir,
        source_site=open_site(areas[0]),
        show_progress=clock,
        batch_size=8,
        epochs=2,
        steps_per_epoch=num_steps // 2,
    )
    seconds = time.perf_counter() - begun_at + IMPORT_S
    phases = {
        result.cell.mode: [
            phase["steps"] for phase in result.run.metrics["training"]["phases"]
        ]
        for result in comparison.results
        if result.run
    }
    pure = clock.add_up(phases)
    num_runs = len(clock.ends)
    print(f"{num_runs} runs of {num_steps} steps: {seconds:.0f} s, of which ", end="")
    print(f"{pure:.0f} s are training steps and {IMPORT_S:.1f} s imports")
    print(f"overhead, by pure steps: {seconds / pure - 1:.1%} (at most 15 %)")
    print(f"overhead of a run: {(seconds - pure) / num_runs:.1f} s")


def measure_memory(manifest: Path, model: Path, out_dir: Path) -> None:
    """Compare many short runs, and print how much their peak memory grows."""
    comparison = compare_modes(
        open_site(manifest),
        model,
        modes=[MEMORY_MODE],
        labels=[BUDGET],
        draws=MEMORY_RUNS,
        out_dir=out_dir,
        batch_size=2,
        epochs=1,
        steps_per_epoch=4,
    )
    peaks = [
        result.run.metrics["training"]["peak_memory_bytes"]
        for result in comparison.results
        if result.run
    ]
    if None in peaks:
        print("memory: not measured; this system does not tell")
        return
    early, late = peaks[FIRST_RUN - 1], peaks[-1]
    print(f"peak memory of run {FIRST_RUN}: {early / 2**20:.0f} MiB, ", end="")
    print(f"of run {len(peaks)}: {late / 2**20:.0f} MiB")
    print(f"growth of peak memory: {late / early - 1:+.1%} (under 5 %)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
