"""A scene of 1.6 gigapixels is mapped in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo.cogeo import cog_validate

SIDE = 40_000

RUN = """
import sys
from cropseg.inference.mapping.predict import predict_scenes
from cropseg.memory import read_peak_memory
(path,) = predict_scenes(
    sys.argv[1], [sys.argv[2]], out_dir=sys.argv[3], engine="keras", precision="float32"
)
print(read_peak_memory())
"""


@pytest.mark.slow
def test_a_large_scene_takes_no_more_memory_than_a_part_of_it(
    model_path, site, tmp_path
):
    """Most of it has no data, so that it ends in minutes; a corner and a strip have."""
    path = tmp_path / "large.tif"
    values = np.random.default_rng(0).integers(1, 3000, (5, 700, 900), "int16")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=SIDE,
        width=SIDE,
        count=5,
        dtype="int16",
        nodata=-9999,
        crs="EPSG:32614",
        transform=Affine(site.gsd_m, 0, 300_000, 0, -site.gsd_m, 5_200_000),
        tiled=True,
        compress="deflate",
        sparse_ok=True,
        bigtiff="yes",
    ) as dataset:
        dataset.descriptions = site.bands
        dataset.write(values, window=((SIDE - 700, SIDE), (SIDE - 900, SIDE)))
        dataset.write(values[:, :300], window=((20_000, 20_300), (100, 1_000)))
    command = [sys.executable, "-c", RUN, model_path, path, tmp_path / "maps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3e9
    found = tmp_path / "maps" / "large_classes.tif"
    assert cog_validate(found, strict=True)[0]
    with rasterio.open(found) as dataset:
        assert dataset.shape == (SIDE, SIDE)
        corner = dataset.read(1, window=((SIDE - 1000, SIDE), (SIDE - 1000, SIDE)))
        strip = dataset.read(1, window=((20_000, 20_300), (0, 1_100)))
        elsewhere = dataset.read(1, window=((0, 5_000), (0, 5_000)))
    assert (corner[300:, 100:] < 4).all()
    assert (corner[:300] == 255).all()
    assert (strip[:, 100:1_000] < 4).all()
    assert (elsewhere == 255).all()
