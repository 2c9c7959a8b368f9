"""Quantiles of the bands: of the training part, whatever lies elsewhere."""

from __future__ import annotations

import numpy as np
import rasterio

from cropseg.sites.quantiles import QUANTILES, measure_quantiles
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS


def test_they_are_those_of_the_valid_training_pixels(tmp_path, make_site):
    site = open_site(make_site(tmp_path))
    scene = site.scenes[0]

    found = measure_quantiles(site, 32)

    with rasterio.open(scene.image_path) as dataset:
        values = np.moveaxis(dataset.read(), 0, -1).astype(float)
        valid = dataset.dataset_mask() > 0
    parts = site.require_split().read_parts(scene.grid, scene.grid.window)
    wanted = values[valid & (parts == PARTS.index("train"))]
    # Tiles without a training label are not read: here these are few.
    expected = np.quantile(wanted, QUANTILES, axis=0).T
    np.testing.assert_allclose(found, expected, rtol=0.02)
