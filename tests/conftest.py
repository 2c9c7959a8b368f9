"""Tiny rasters, sites and models without any symmetry, for the tests of every folder.

Rows and columns differ, so do the sides of a pixel, so that no swapped axis can
hide. What a class looks like depends on its name and the bands' names alone: a
second site may list the same classes in another order and stay learnable.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import signal
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from rasterio.warp import transform_geom

from cropseg.sites.site import open_site

CLASS_VALUES: Final = {
    "soybeans": [5],
    "wheat": [22, 23],
    "grassland": [176],
    "water": [111],
    "corn": [1],
    "fallow": [61],
}
"""Label values of the classes that a made-up site can have."""

BAND_NAMES: Final = ("blue", "green", "red", "nir", "swir1", "swir2", "coastal")
UNKNOWN: Final = 0
"""The label value that means "unknown"; the site's lowest rows and every 29th field."""
NODATA: Final = -9999
"""What the image holds in its nodata stripe."""
STRIPE: Final = slice(40, 47)
"""Columns of a scene that hold nodata in every band."""
FIELD: Final = (12, 16)
"""Rows and columns of a field, in pixels."""
TINY_FIT: Final = {"batch_size": 2, "epochs": 1, "steps_per_epoch": 3}
"""Settings of a training that is over in seconds."""


def pytest_collection_finish():
    """Leave what was imported out of every later search for garbage.

    Keras searches at the start of every run. TensorFlow alone is a million objects,
    which are never garbage: that took a quarter of a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def write_raster():
    """Return a function that writes a GeoTIFF; see `_write_raster`."""
    return _write_raster


@pytest.fixture(scope="session")
def make_site():
    """Return a function that writes a small trainable site; see `_make_site`.

    Example:
        manifest_path = make_site(tmp_path)
        area_2 = make_site(tmp_path / "2", class_names=("water", "corn"), seed=1)
    """
    return _make_site


@pytest.fixture(scope="session")
def settings():
    """Return the settings of a short transfer."""
    return dict(TINY_FIT)


@pytest.fixture(scope="session")
def area_1(make_site, tmp_path_factory):
    """Return the site that models are trained on first. No test may change it."""
    return open_site(make_site(tmp_path_factory.mktemp("sites") / "area_1"))


@pytest.fixture(scope="session")
def source_path(area_1, tmp_path_factory):
    """Return a model of area 1, trained for a moment."""
    from cropseg.training.train import train_site

    folder = tmp_path_factory.mktemp("runs") / "source"
    given = TINY_FIT | {"encoder": "classic_tiny", "tile_size": 32, "seed": 5}
    return train_site(area_1, out_dir=folder, **given).model_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a command: exit code, stdout, stderr."""
    from cropseg import cli

    handler = signal.getsignal(signal.SIGTERM)
    handlers = list(logging.getLogger().handlers)

    def run_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["cropseg", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    yield run_command
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="session")
def write_imagenet(tmp_path_factory):
    """Return a function that writes the weights of an encoder, as ImageNet's come.

    They are random, in the format of the `_no_top.h5` files that are published. It
    returns the path, and the arrays by their path in the zoo's networks.
    """
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    from cropseg.models import zoo
    from cropseg.runtime import keras, start_run

    folder = tmp_path_factory.mktemp("imagenet")

    def write(encoder):
        start_run(3)
        with zoo._segmentation_models() as package:
            names = ("backend", "layers", "models", "utils")
            model = package.backbones.backbones_factory.Backbones.get_backbone(
                encoder,
                input_shape=(None, None, 3),
                weights=None,
                include_top=False,
                **{name: getattr(keras, name) for name in names},
            )
        path = folder / f"{encoder}_no_top.h5"
        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
        return path, {v.path: np.asarray(v) for v in model.weights}

    return write


@pytest.fixture(scope="session")
def build_bundle():
    """Return a function that makes a model with random weights; see `_build_bundle`."""
    return _build_bundle


def _build_bundle(
    *,
    mean: Sequence[float],
    std: Sequence[float],
    encoder: str = "classic_tiny",
    seed: int,
    **card: Any,
) -> Any:
    """Build a `unet` with random weights and its card.

    Args:
        mean: Mean of each band; nodata is filled with it.
        std: Standard deviation of each band.
        encoder: The encoder.
        seed: Decides the weights.
        **card: The entries of the card that the network does not decide: `site`,
            `classes`, `bands`, `gsd_m`, `lineage`, `fingerprint` at the least.

    Returns:
        The bundle, in memory.
    """
    from cropseg.models import zoo
    from cropseg.models.bundle import (
        Bundle,
        add_normalization,
        hash_weights,
        list_versions,
    )
    from cropseg.models.card import Card, CardStage
    from cropseg.runtime import start_run

    start_run(seed)
    sizes = {"num_bands": len(card["bands"]), "num_classes": len(card["classes"])}
    network = zoo.build_network("unet", encoder, **sizes)
    model = add_normalization(network, mean=mean, std=std)
    stages = zoo.find_stages(model, "unet", encoder)
    filled = Card(
        architecture="unet",
        encoder=encoder,
        tile_size=64,
        tile_multiple=zoo.get_tile_multiple("unet", encoder),
        band_mean=mean,
        band_std=std,
        nodata_fill=mean,
        stages=tuple(CardStage(**asdict(stage)) for stage in stages),
        seed=seed,
        weights_sha256=hash_weights(model),
        versions=list_versions(),
        **card,
    )
    return Bundle(model=model, card=filled)


def _write_raster(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """Write an array (height, width) or (height, width, bands) as a GeoTIFF.

    By default pixels are 10 m wide and 8 m high, north up, in EPSG:32614. `profile`
    goes to rasterio, `descriptions` are the bands' names.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, count = values.shape
    descriptions = profile.pop("descriptions", ())
    profile = {"crs": "EPSG:32614", "transform": make_transform()} | profile
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=count,
        dtype=values.dtype,
        **profile,
    ) as dataset:
        if descriptions:
            dataset.descriptions = descriptions
        dataset.write(np.moveaxis(values, -1, 0))
    return path


def make_transform(
    *,
    x: float = 600_005.0,
    y: float = 5_200_003.0,
    xres: float = 10.0,
    yres: float = 8.0,
    degrees: float = 0.0,
    south_up: bool = False,
) -> Affine:
    """Return a transform that starts at (x, y), turned by some degrees."""
    scale = Affine.scale(xres, yres if south_up else -yres)
    return Affine.translation(x, y) @ Affine.rotation(degrees) @ scale


def _make_site(
    folder: Path,
    *,
    height: int = 192,
    width: int = 256,
    bands: int | Sequence[str] = 5,
    class_names: Sequence[str] = ("soybeans", "wheat", "grassland", "water"),
    num_scenes: int = 1,
    split: str | Mapping[str, Any] | None = "blocks",
    degrees: float = 0.0,
    south_up: bool = False,
    crs: str = "EPSG:32614",
    xres: float = 10.0,
    yres: float = 8.0,
    dtype: str = "int16",
    gain: float = 1.0,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write the files of a small trainable site and return its manifest's path.

    The landscape is fields of 12 x 16 pixels. A class has a value of its own in every
    band, with little noise, so that a pixel's values tell its class. The columns of
    `STRIPE` are nodata; `UNKNOWN` labels lie in some fields and the last five rows.

    Args:
        folder: Where to write; made if it is not there.
        height: Rows of a scene.
        width: Columns of a scene.
        bands: Number of bands (up to 7), or their names in file order.
        class_names: Classes in the order of their ids, of `CLASS_VALUES`.
        num_scenes: Scenes, side by side from west to east, with no gap.
        split: `blocks` (320 m, so 40 x 32 pixels; 0.6, 0.2, 0.2), `regions` (a GeoJSON
            file: half, a fifth and the rest of the width for train, val and test),
            the mapping of a manifest, or None for no split.
        degrees: Turns the grid counter-clockwise.
        south_up: Whether the first row is the southernmost.
        crs: CRS of all files.
        xres: Width of a pixel, in units of the CRS.
        yres: Height of a pixel, in units of the CRS.
        dtype: Of the image. A float image holds NaN as nodata, an unsigned one 0.
        gain: Factor on all image values: another sensor, another light.
        seed: Decides which field has which class.
        **changes: Top-level entries of the manifest that replace or extend those
            written here; None leaves one out. Example: `ignore="rest"`.

    Returns:
        Path of `site.yaml`; beside it are `scene_0.tif`, `scene_0_labels.tif`, ...
        and, with `regions`, `split.geojson`.
    """
    names = BAND_NAMES[:bands] if isinstance(bands, int) else tuple(bands)
    rng = np.random.default_rng(seed)
    origin = make_transform(xres=xres, yres=yres, degrees=degrees, south_up=south_up)
    for index in range(num_scenes):
        class_ids, labels = _draw_labels((height, width), class_names, rng)
        image = _draw_image(class_ids, class_names, names, dtype, gain, rng)
        where = {
            "crs": crs,
            "transform": origin @ Affine.translation(index * width, 0),
        }
        nodata = {"f": math.nan, "u": 0}.get(np.dtype(dtype).kind, NODATA)
        image[:, STRIPE] = nodata
        _write_raster(
            folder / f"scene_{index}.tif",
            image,
            nodata=nodata,
            descriptions=names,
            **where,
        )
        _write_raster(folder / f"scene_{index}_labels.tif", labels, **where)
    if split == "blocks":
        split = {"block_m": 320, "train": 0.6, "val": 0.2, "test": 0.2, "seed": 0}
    elif split == "regions":
        regions = _make_regions(height, width * num_scenes, origin, crs)
        (folder / "split.geojson").write_text(json.dumps(regions))
        split = {"regions": "split.geojson", "block_m": 320}
    colors = ("#267300", "#d8b56b", "#e8ffbf", "#4a6fa3", "#ffd300", "#bfbf77")
    manifest = {
        "site": folder.name,
        "sensor": "made up",
        "bands": list(names),
        "classes": [
            {"name": name, "color": color, "values": CLASS_VALUES[name]}
            for name, color in zip(class_names, colors, strict=False)
        ],
        "ignore": [UNKNOWN],
        "scenes": [
            {"image": f"scene_{index}.tif", "labels": f"scene_{index}_labels.tif"}
            for index in range(num_scenes)
        ],
        "split": split,
    } | changes
    written = {key: entry for key, entry in manifest.items() if entry is not None}
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    return path


def _draw_labels(
    shape: tuple[int, int], class_names: Sequence[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = (
        np.arange(size) // step for size, step in zip(shape, FIELD, strict=True)
    )
    num_rows, num_cols = rows[-1] + 1, cols[-1] + 1
    fields = np.resize(np.arange(len(class_names)), num_rows * num_cols)
    fields = rng.permutation(fields).reshape(num_rows, num_cols)
    class_ids = fields[np.ix_(rows, cols)]
    # A class of one value has it twice: either is as likely.
    table = np.array([(CLASS_VALUES[name] * 2)[:2] for name in class_names], "uint8")
    labels = table[class_ids, rng.integers(0, 2, class_ids.shape)]
    unknown = np.arange(num_rows * num_cols).reshape(num_rows, num_cols) % 29 == 28
    labels[unknown[np.ix_(rows, cols)]] = UNKNOWN
    labels[-5:] = UNKNOWN
    return class_ids, labels


def _draw_image(
    class_ids: np.ndarray,
    class_names: Sequence[str],
    band_names: Sequence[str],
    dtype: str,
    gain: float,
    rng: np.random.Generator,
) -> np.ndarray:
    top = 200 if np.dtype(dtype) == np.uint8 else 4000
    spectra = np.array(
        [[_get_level(name, band) for band in band_names] for name in class_names]
    )
    noise = rng.normal(0, 0.03, (*class_ids.shape, len(band_names)))
    image = gain * top * (spectra[class_ids] + noise)
    return image.clip(1, 250 if top == 200 else 30_000).astype(dtype)


def _get_level(class_name: str, band_name: str) -> float:
    """Return how bright a class is in a band, 0.1 to 1, the same in every site."""
    code = zlib.crc32(f"{band_name} of {class_name}".encode())
    return 0.1 + 0.9 * (code % 997) / 997


def _make_regions(
    height: int, width: int, transform: Affine, crs: str
) -> dict[str, Any]:
    features = []
    for part, left, right in (
        ("train", 0.0, 0.5),
        ("val", 0.5, 0.7),
        ("test", 0.7, 1.0),
    ):
        corners = [(left, 0), (right, 0), (right, 1), (left, 1), (left, 0)]
        ring = [transform @ (col * width, row * height) for col, row in corners]
        polygon = {"type": "Polygon", "coordinates": [ring]}
        features.append(
            {
                "type": "Feature",
                "properties": {"part": part},
                "geometry": transform_geom(crs, "EPSG:4326", polygon),
            }
        )
    return {"type": "FeatureCollection", "features": features}
