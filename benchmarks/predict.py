"""Mapping: how near it is to what the engine alone can do, and what it needs.

U-Net with ResNet34 and random weights, four uint16 bands, six classes. Each figure
comes from a process of its own; ratios are between runs of this script, and that to
the bare engine is within one process. The bare engine is timed before and after.

Usage: python benchmarks/predict.py [--side PX] [--small N] [--memory PX PX]
    [--tiles N]

The engines map, by default, one scene of 10,000 x 10,000 pixels: the one of interest
first and last, as a machine may become faster or slower. The faster precision of
OpenVINO then maps 500 scenes of 256 pixels, which stand for 5,000.
Memory is measured on two scenes that are mostly nodata.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

BANDS = ("red", "green", "blue", "nir")
NUM_CLASSES = 6
FIELD_PX = 60
BLOCK_PX = 512
SMALL_PX = 256
DATA_PX = 512
"""Columns with data of the scenes that memory is measured on."""
ENGINES = {
    "openvino bfloat16": {"engine": "openvino", "precision": "bfloat16"},
    "openvino float32": {"engine": "openvino", "precision": "float32"},
    "keras float32": {"engine": "keras", "precision": "float32"},
}
REDUCED = "openvino bfloat16"
REFERENCE = "keras float32"
TURNS = (REDUCED, "openvino float32", REFERENCE, REDUCED)


def main() -> None:
    """Make a model and scenes, measure, and print figures with what they should be."""
    given = parse_arguments()
    started_at = time.perf_counter()
    describe_machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model.keras"
        ask(folder, "make_model", path=str(model))
        # The first use at bfloat16 converts the model and compares it with float32.
        first = write_scene(folder / "first.tif", BLOCK_PX)
        ask_to_map(folder, model, [first], num_tiles=0, **ENGINES[REDUCED])
        big = write_scene(folder / "big.tif", given.side)
        print(f"A scene of {given.side} x {given.side} pixels, ", end="")
        rates = compare_engines(folder, model, big, num_tiles=given.tiles)
        big.unlink()
        show_context(given.side)
        fastest = max(set(rates) - {REFERENCE}, key=lambda name: rates[name])
        options, rate = ENGINES[fastest], rates[fastest]
        print(f"What follows is measured with {fastest}.\n")
        show_start(ask(folder, "start", model=str(model), **options))
        show_small(folder, model, given.small, rate=rate, options=options)
        show_memory(folder, model, given.memory, options)
    print(f"\n{time.perf_counter() - started_at:.0f} s in all")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--small", type=int, default=500)
    parser.add_argument("--memory", type=int, nargs=2, default=(5_000, 20_000))
    parser.add_argument("--tiles", type=int, default=24)
    return parser.parse_args()


def describe_machine() -> None:
    """Say where this runs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model n")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    kinds = [k for k in ("avx512f", "avx512_bf16", "amx_bf16") if k in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("cropseg", "keras", "tensorflow", "openvino", "rasterio")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    print(f"{models[0] if models else 'unknown CPU'} ({', '.join(kinds)})")
    print(f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, load ", end="")
    print(f"{os.getloadavg()[0]:.1f} before it began; {', '.join(versions)}\n")


# What the figures mean.


def compare_engines(
    folder: Path, model: Path, scene: Path, *, num_tiles: int
) -> dict[str, float]:
    """Map one scene with every engine, and return their rates."""
    print("tiles of 512 with 64 of context:", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in ENGINES}
    for name in TURNS:
        options = ENGINES[name]
        row = ask_to_map(folder, model, [scene], num_tiles=num_tiles, **options)
        rates[name].append(row["map_rate"])
        print(
            f"  {name:<18} {row['map_rate']:.3f} megapixels/s end to end, "
            f"{row['of_bare']:.2f} of the bare engine (at least 0.90)",
            flush=True,
        )
    means = {name: sum(found) / len(found) for name, found in rates.items()}
    ratio = means[REDUCED] / means[REFERENCE]
    print(f"  {REDUCED} by {REFERENCE}: {ratio:.2f} (at least 3)\n")
    return means


def show_start(row: dict[str, Any]) -> None:
    """Show how long a cached engine takes to its first tile."""
    imported = ", ".join(row["imported"]) or "neither TensorFlow nor Keras"
    print(f"Start-up with a cached engine: {row['seconds']:.1f} s (under 5),")
    print(f"  importing {imported} (neither)\n")


def show_context(side: int) -> None:
    """Show how many pixels are computed for one that is kept."""
    for tile, most in ((512, 1.8), (1024, 1.35)):
        core = tile - 128
        whole = (-(-side // core) * tile / side) ** 2
        print(f"Tiles of {tile}: {(tile / core) ** 2:.2f} pixels computed", end="")
        print(f" per pixel (at most {most}); with the edges of this scene {whole:.2f}")
    print()


def show_small(
    folder: Path, model: Path, count: int, *, rate: float, options: dict[str, Any]
) -> None:
    """Map many small scenes."""
    scenes = [
        write_scene(folder / "small" / f"s{index}.tif", SMALL_PX)
        for index in range(count)
    ]
    row = ask_to_map(folder, model, scenes, num_tiles=0, **options)
    print(f"{count} scenes of {SMALL_PX} pixels: {row['map_rate']:.3f} megapixels/s")
    print(f"  by the rate on the large scene: {row['map_rate'] / rate:.2f}", end="")
    print(" (at least 0.8)\n")


def show_memory(
    folder: Path, model: Path, sides: tuple[int, int], options: dict[str, Any]
) -> None:
    """Map two scenes that are mostly nodata, and compare their peaks."""
    peaks = []
    for side in sides:
        scene = write_scene(folder / f"wide_{side}.tif", side, data_px=DATA_PX)
        row = ask_to_map(folder, model, [scene], num_tiles=0, **options)
        peaks.append(row["peak"])
        above = (row["peak"] - row["model"]) / 2**30
        print(f"Peak memory, {side} x {side} pixels: {row['peak'] / 2**30:.2f} GiB,")
        print(f"  {above:.2f} above the loaded model (at most 1.5)")
        scene.unlink()
    print(f"  ratio of the peaks: {peaks[1] / peaks[0]:.2f} (0.9 to 1.1)")


# In this process: scenes, and processes to ask.


def write_scene(path: Path, side: int, *, data_px: int | None = None) -> Path:
    """Write a scene of fields, with data in its first columns alone or everywhere."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(side)
    levels = rng.integers(400, 4000, (NUM_CLASSES, len(BANDS)), dtype=np.uint16)
    width = data_px or side
    cells = rng.integers(0, NUM_CLASSES, (side // FIELD_PX + 1, width // FIELD_PX + 1))
    cols = np.arange(width) // FIELD_PX
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=side,
        width=side,
        count=len(BANDS),
        dtype="uint16",
        nodata=0,
        crs="EPSG:32633",
        transform=Affine(1, 0, 500_000, 0, -1, 5_400_000),
        tiled=True,
        blockxsize=BLOCK_PX,
        blockysize=BLOCK_PX,
        compress="deflate",
        zlevel=1,
        interleave="pixel",
        sparse_ok=True,
        bigtiff="if_safer",
    ) as image:
        image.descriptions = BANDS
        for row in range(0, side, BLOCK_PX):
            rows = np.arange(row, min(row + BLOCK_PX, side)) // FIELD_PX
            part = levels[cells[np.ix_(rows, cols)]]
            part += rng.integers(0, 120, part.shape, dtype=np.uint16)
            window = rasterio.windows.Window(0, row, width, len(rows))
            image.write(np.moveaxis(part, -1, 0), window=window)
    return path


def ask_to_map(
    folder: Path, model: Path, scenes: list[Path], *, num_tiles: int, **options: Any
) -> dict[str, Any]:
    """Map scenes in a process of their own, from files that the system has in memory.

    Where the disk had to be waited for first, one run began seven seconds later than
    the next, which is no matter of the engine.
    """
    for path in (model, *scenes):
        path.read_bytes()
    listed = folder / "scenes.csv"
    listed.write_text("\n".join(["image", *map(str, scenes)]), encoding="utf-8")
    return ask(
        folder,
        "map_scenes",
        model=str(model),
        scenes=str(listed),
        num_tiles=num_tiles,
        **options,
    )


def ask(folder: Path, task: str, **given: Any) -> dict[str, Any]:
    """Call a function of this file in a process of its own."""
    given |= {"folder": str(folder), "started_at": time.time()}
    command = [sys.executable, __file__, "--task", task, json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# In a process of its own.


def make_model(path: str, **_: Any) -> dict[str, Any]:
    """Save a model with random weights."""
    from cropseg.models import zoo
    from cropseg.models.bundle import (
        add_normalization,
        hash_weights,
        list_versions,
        save_bundle,
    )
    from cropseg.models.card import Card, CardClass, Lineage
    from cropseg.runtime import start_run

    start_run(0)
    network = zoo.build_network(
        "unet", "resnet34", num_bands=len(BANDS), num_classes=NUM_CLASSES
    )
    mean, std = (2000.0,) * len(BANDS), (1000.0,) * len(BANDS)
    model = add_normalization(network, mean=mean, std=std)
    colors = [f"#{index * 40:02x}8040" for index in range(NUM_CLASSES)]
    card = Card(
        site="benchmark",
        classes=tuple(
            CardClass(name=f"crop {index}", color=color, train_pixels=1)
            for index, color in enumerate(colors)
        ),
        bands=BANDS,
        gsd_m=1.0,
        architecture="unet",
        encoder="resnet34",
        tile_size=256,
        tile_multiple=zoo.get_tile_multiple("unet", "resnet34"),
        band_mean=mean,
        band_std=std,
        nodata_fill=mean,
        stages=(),
        seed=0,
        lineage=Lineage(mode="train"),
        fingerprint="benchmark",
        weights_sha256=hash_weights(model),
        versions=list_versions(),
    )
    save_bundle(model, card, Path(path))
    return {}


def map_scenes(
    *,
    folder: str,
    model: str,
    scenes: str,
    num_tiles: int,
    engine: str,
    precision: str,
    **_: Any,
) -> dict[str, Any]:
    """Map scenes as a user does, and time the bare engine beside it.

    Opening the engine is timed apart: it is done once, whatever is mapped.
    """
    import cropseg
    from cropseg.inference.mapping.jobs import EngineSettings
    from cropseg.memory import read_memory, read_peak_memory, reset_peak_memory

    opened: dict[str, Any] = {}
    real_open = EngineSettings.open

    def open_engine(settings: EngineSettings) -> Any:
        started_at = time.perf_counter()
        found = opened["engine"] = real_open(settings)
        time_tiles(found, num_tiles=4)
        opened["memory"] = read_memory()
        opened["bare"] = time_tiles(found, num_tiles=num_tiles)
        reset_peak_memory()
        opened["seconds"] = time.perf_counter() - started_at
        return found

    EngineSettings.open = open_engine  # type: ignore[method-assign]
    out_dir = Path(folder) / f"maps-{time.time_ns()}"
    started_at = time.perf_counter()
    cropseg.predict_scenes(
        model,
        [scenes],
        out_dir=out_dir,
        engine=engine,
        precision=precision,
        min_agreement=0.0,  # of random weights
    )
    seconds = time.perf_counter() - started_at - opened["seconds"]
    peak = read_peak_memory()
    pixels, computed = count_pixels(out_dir)
    bare = (opened["bare"] + time_tiles(opened["engine"], num_tiles=num_tiles)) / 2
    return {
        "map_rate": pixels / 1e6 / seconds,
        "of_bare": computed * bare / seconds,
        "seconds": seconds,
        "model": opened["memory"],
        "peak": peak,
    }


def time_tiles(engine: Any, *, num_tiles: int) -> float:
    """Return the seconds that the bare engine takes for a tile of the default."""
    if not num_tiles:
        return 0.0
    from cropseg.inference.tiles.tile_shape import choose_tile_shape

    shape = choose_tile_shape(engine.card.tile_multiple)
    rng = np.random.default_rng(0)
    planes = rng.uniform(400, 4000, (len(BANDS), shape.size, shape.size))
    tile = np.moveaxis(planes.astype(np.float32), 0, -1)
    tiles = ((index, tile) for index in range(num_tiles))
    started_at = time.perf_counter()
    for _ in engine.stream(tiles, margin=shape.find_margin(blend=False)):
        pass
    return (time.perf_counter() - started_at) / num_tiles


def count_pixels(out_dir: Path) -> tuple[int, int]:
    """Return the pixels of all maps, and the tiles of the default shape they took."""
    from cropseg.inference.tiles.tile_shape import choose_tile_shape

    core = choose_tile_shape(32).core_size
    pixels = tiles = 0
    for path in out_dir.glob("*_classes.tif"):
        with rasterio.open(path) as found:
            pixels += found.height * found.width
            tiles += -(-found.height // core) * -(-found.width // core)
    return pixels, tiles


def start(
    *, model: str, engine: str, precision: str, started_at: float, **_: Any
) -> dict[str, Any]:
    """Open an engine that is cached, and predict a tile."""
    from cropseg.inference.mapping.jobs import EngineSettings

    settings = EngineSettings(
        model_path=Path(model),
        engine=engine,
        precision=precision,
        tile_size=512,
        margin=64,
    )
    time_tiles(settings.open(), num_tiles=1)
    slow = [name for name in ("tensorflow", "keras") if name in sys.modules]
    return {"seconds": time.time() - started_at, "imported": slow}


TASKS = {task.__name__: task for task in (make_model, map_scenes, start)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        logging.basicConfig(level=logging.ERROR)
        print(json.dumps(TASKS[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        main()
