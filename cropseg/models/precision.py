"""bfloat16 layer by layer, for training and prediction; never saved.

It pays where a processor multiplies faster in bfloat16, for the convolutions are most
of a step and the other layers gain nothing. On some processors it does not
(docs/decisions/0003-float32-on-cpu.md).
"""

from __future__ import annotations

from typing import Any

from cropseg.runtime import keras

_FLOAT32_LAYERS = ("band_normalization", "head", "probabilities")


def copy_with_precision(model: Any, precision: str) -> Any:
    """Return the model itself at float32, or a copy that computes in bfloat16.

    Variables stay float32. Normalisation, head and softmax compute in float32 too:
    under bfloat16 the normalisation alone errs by up to 0.04 standard deviations.
    """
    if precision == "float32":
        return model

    def rebuild(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name not in _FLOAT32_LAYERS:
            config["dtype"] = "mixed_bfloat16"
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=rebuild)
    copy.set_weights(model.get_weights())
    return copy
