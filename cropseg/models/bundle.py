"""The bundle: a plain `.keras` file with normalisation inside and a card.

Anybody can load it with `keras.models.load_model` and nothing of cropseg.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.errors import ModelError
from cropseg.files import write_whole
from cropseg.models.card import CARD_NAME, Card, check_archive, read_card
from cropseg.models.header import check_bundle
from cropseg.runtime import keras

NORMALIZATION_LAYER = "band_normalization"
"""Name of the first layer of every bundle."""

HEAD_LAYER = "head"
"""Name of the layer whose output are the logits."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model and its card."""

    model: Any
    """The Keras model: raw pixel values in, class probabilities out."""
    card: Card
    """Its card."""


def add_normalization(
    network: Any, *, mean: Sequence[float], std: Sequence[float]
) -> Any:
    """Put band normalisation in front of a network.

    Args:
        network: A functional model on normalised bands.
        mean: Mean of each band, in raw units.
        std: Standard deviation of each band, in raw units.

    Returns:
        A flat functional model on raw values, whose layers keep their names.
    """
    layer = keras.layers.Normalization(
        mean=list(mean),
        variance=[value**2 for value in std],
        name=NORMALIZATION_LAYER,
        dtype="float32",
    )
    entry = network.inputs[0].name
    normalized: list[Any] = []  # called once, however many layers read the input

    def put_in_front(value: Any) -> Any:
        if getattr(value, "name", None) != entry:  # a constant has none
            return value
        if not normalized:
            normalized.append(layer(value))
        return normalized[0]

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(put_in_front, (args, kwargs))
        return operation(*args, **kwargs)

    # `keras.Model(pixels, network(layer(pixels)))` would nest the network, and
    # `network.call` leaves a bare operation in the graph.
    model = keras.models.clone_model(network, call_function=call)
    model.set_weights(network.get_weights())
    return model


def hash_weights(model: Any) -> str:
    """Return the SHA-256 of all weights of a model, in order."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def list_versions() -> dict[str, str]:
    """Return the versions that decide what a model does."""
    names = ["cropseg", "keras", "numpy", "albumentations", "segmentation-models"]
    backend = keras.backend.backend()
    names.append({"torch": "torch"}.get(backend, backend))
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {"backend": backend, "python": platform.python_version()}


def save_bundle(model: Any, card: Card, path: Path) -> None:
    """Save a model and its card as one `.keras` file.

    Args:
        model: A float32 functional model; it is saved uncompiled.
        card: Its card.
        path: Where to, ending in `.keras`.

    Raises:
        ModelError: If a weight is not finite. Nothing is written then.
        ResourceError: If the file cannot be written.
    """
    bad = [v.path for v in model.variables if not np.isfinite(np.asarray(v)).all()]
    if bad:
        raise ModelError(
            f"{len(bad)} variables, {bad[0]} first, are not finite; the model is not "
            "saved. Train with a lower --learning-rate."
        )
    # One tensor and no list: Keras warns where a list of one is called with a tensor.
    plain = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    with write_whole(path, verify=_verify) as part:
        plain.save(part)
        with zipfile.ZipFile(part, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(CARD_NAME, card.model_dump_json(indent=2))


def _verify(path: Path) -> None:
    with check_archive(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ModelError(f"{path} was written with a damaged member: {damaged}.")


def load_bundle(path: str | Path) -> Bundle:
    """Load a model that cropseg saved.

    Raises:
        ModelFileNotFoundError: If there is no such file.
        ModelError: If it is no bundle, is damaged, or holds other weights than its
            card says.
        UnsafeFileError: If it declares more than it holds, which could fill the memory.
    """
    path = Path(path)
    card = read_card(path)
    check_bundle(path)
    with check_archive(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ModelError(f"{path} is damaged in {damaged}. Copy it again.")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"Keras cannot load {path}: {error}") from error
    if model.input_shape[-1] != len(card.bands):
        raise ModelError(
            f"{path} takes {model.input_shape[-1]} bands, its card names "
            f"{len(card.bands)}. The card belongs to another model."
        )
    if model.output_shape[-1] != len(card.classes):
        raise ModelError(
            f"{path} tells {model.output_shape[-1]} classes apart, its card names "
            f"{len(card.classes)}. The card belongs to another model."
        )
    if hash_weights(model) != card.weights_sha256:
        raise ModelError(
            f"The weights of {path} are not those that its card was written for. "
            "Give the file as cropseg saved it."
        )
    return Bundle(model=model, card=card)
