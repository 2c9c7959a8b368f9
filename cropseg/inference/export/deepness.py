"""What the QGIS plugin Deepness reads from an ONNX file, to configure itself. No Keras.

The plugin divides raw values by 255, subtracts `standardization_mean` and divides by
`standardization_std`. Our models take raw values, as normalisation is inside them; so
the mean is 0 and the standard deviation 1/255, which gives raw values back.

References:
    Deepness, "Adding metadata to ONNX model",
    https://qgis-plugin-deepness.readthedocs.io/en/latest/creators/creators_add_metadata_to_model.html,
    and `src/deepness/processing/models/model_base.py` of the plugin, which reads the
    keys `tile_size` and `standardization_*` that the page does not list.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from cropseg.inference.tiles.tile_shape import TileShape
from cropseg.models.card import Card

_BYTE_RANGE: Final = 255
"""What the plugin divides every value by, whatever its type."""

_CM_PER_M: Final = 100


def list_metadata(card: Card, shape: TileShape) -> dict[str, str]:
    """Return the keys of the plugin and their values, which are JSON.

    Args:
        card: Card of the model.
        shape: Shape of the tiles that the file takes. The plugin cuts half of the
            overlap off every tile, so that the overlap is twice the context.

    Returns:
        Values by key. Those of the plugin's table come first; `cropseg_bands` and
        `cropseg_card` are for people and other programs.
    """
    num_bands = len(card.bands)
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(card.class_names)),
        "resolution": card.gsd_m * _CM_PER_M,
        "tile_size": shape.size,
        "tiles_size": shape.size,  # the name in the plugin's documentation
        "tiles_overlap": math.ceil(2 * shape.context / shape.size * 100),
        # The most probable class counts, however probable, and small ones stay.
        "seg_thresh": 0,
        "seg_small_segment": 0,
        "standardization_mean": [0.0] * num_bands,
        "standardization_std": [1 / _BYTE_RANGE] * num_bands,
        "cropseg_bands": card.bands,
        "cropseg_card": card.model_dump(mode="json"),
    }
    return {name: json.dumps(value) for name, value in values.items()}
