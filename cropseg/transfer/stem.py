"""Filters that read the bands, matched by band name.

The filters of shared bands are kept. A new band starts from their mean, and all are
rescaled so that what comes out keeps its size. Bands are standardised before they
reach the network, so the size of what comes out is the size of the filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cropseg.errors import ModelError
from cropseg.models.bundle import NORMALIZATION_LAYER
from cropseg.models.stages import read_graph
from cropseg.runtime import keras

Array = npt.NDArray[Any]

_SINGLE = (keras.layers.BatchNormalization, keras.layers.DepthwiseConv2D)
"""Layers that treat each band alone."""


def find_band_variables(model: Any) -> frozenset[str]:
    """Return the paths of the variables that have values for each band.

    These are the kernels of the layers that read the normalised bands. A layer that
    treats each band alone, such as the batch normalisation of the bands that the
    ResNets of segmentation-models have, or a depthwise convolution, has them all, and
    so do those that read it.

    Args:
        model: A flat model with `band_normalization` in front.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    passed = {NORMALIZATION_LAYER}
    paths: set[str] = set()
    for name, sources in read_graph(model).items():
        if name in passed or not passed.intersection(sources):
            continue
        layer = layers.get(name)
        is_single = isinstance(layer, _SINGLE)
        if layer is None or is_single:
            passed.add(name)
        if layer is not None:
            paths |= {v.path for v in layer.weights if is_single or "kernel" in v.name}
    return frozenset(paths)


def match_bands(
    theirs: Array, initial: Array, source: Sequence[str], target: Sequence[str]
) -> tuple[Array, str]:
    """Return the values of a variable for other bands, and how they came about.

    Args:
        theirs: Its values in the source: (height, width, bands, filters), or (bands,)
            for a batch normalisation of the bands.
        initial: Its values in the new model, of the same form.
        source: Bands of the source.
        target: Bands of the new model.

    Raises:
        ModelError: If no band is shared, or a filter does not read the bands alone.
    """
    shared = [band for band in target if band in source]
    if not shared:
        raise ModelError(
            f"The model knows the bands {', '.join(source)}; the site has "
            f"{', '.join(target)}. None is shared, and bands are matched by name."
        )
    axis = 0 if theirs.ndim == 1 else theirs.ndim - 2
    sizes = (theirs.shape[axis], initial.shape[axis])
    if sizes != (len(source), len(target)):
        raise ModelError(
            f"A filter of the first layer has {sizes[0]} channels for {len(source)} "
            f"bands and {sizes[1]} for {len(target)}: it does not read the bands "
            "alone, so bands cannot be matched. Use the bands of the model."
        )
    places = [source.index(band) for band in shared]
    mean = np.take(theirs, places, axis).mean(axis)
    layers = [
        np.take(theirs, source.index(band), axis) if band in source else mean
        for band in target
    ]
    values = np.stack(layers, axis)
    new = [band for band in target if band not in source]
    reason = f"by band name: {', '.join(shared)}"
    if new:
        reason += f"; from their mean: {', '.join(new)}"
    if theirs.ndim > 1:
        size = np.sqrt(np.square(values, dtype=np.float64).sum())
        scale = np.sqrt(np.square(theirs, dtype=np.float64).sum()) / size if size else 1
        if not np.isclose(scale, 1, rtol=1e-6):
            values = values * scale
            reason += f"; all times {scale:.3g}"
    return values.astype(theirs.dtype), reason
