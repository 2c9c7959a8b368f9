"""Loading what people start from: a bundle, a foreign model, or weights only.

Whatever it was, it comes out in one form: a flat network from raw values over
`band_normalization` and `head` to `probabilities`, with a card. Code in a file is
never run, its training config never read (HAZARDS 12 to 14).
"""

from __future__ import annotations

import colorsys
import contextlib
import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cropseg.errors import ModelError, UnsafeFileError
from cropseg.files import hash_file
from cropseg.models.bundle import add_normalization, hash_weights, load_bundle
from cropseg.models.card import Card, CardClass, CardStage, Lineage, check_archive
from cropseg.models.foreign import ForeignDescription, InputScaling, Unknowns
from cropseg.models.header import Kind, ModelHeader, read_header
from cropseg.models.propose import find_tile_multiple, propose_stages, resolve_stages
from cropseg.models.rebuild import form_network
from cropseg.models.stages import Stage
from cropseg.models.stored_weights import load_stored_weights
from cropseg.models.zoo import build_network, find_stages
from cropseg.runtime import keras

FOREIGN = "foreign"
"""Architecture and encoder on the card of a model that the zoo did not build."""

DEFAULT_TILE_SIZE = 256
"""Side of the tiles of a foreign model that works at any size, in pixels."""


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A model to start from."""

    model: Any
    """A flat Keras model: raw values in, `band_normalization` first, logits from
    `head`, `probabilities` out. Uncompiled, float32."""
    card: Card
    """Its card; for a foreign model made from its description."""
    stages: tuple[Stage, ...]
    """Its stages, from input to output."""
    kind: Kind
    """What its file was."""
    sha256: str
    """SHA-256 of its file; of its weights where there is none."""

    @property
    def is_foreign(self) -> bool:
        """Whether the zoo cannot build its network: then it is rebuilt."""
        return self.card.architecture == FOREIGN


def load_source(
    path: str | Path,
    description: ForeignDescription | None = None,
    *,
    network: Any = None,
    gsd_m: float | None = None,
) -> SourceModel:
    """Load a model to start from.

    Args:
        path: A bundle, a foreign `.keras`, a full model in HDF5, or weights only. The
            content decides, not the ending.
        description: What the file does not say. Not used for a bundle.
        network: For weights only: a network to put them into, in place of one of the
            zoo's that the description names. It is changed.
        gsd_m: GSD of the site that it is for, taken for a foreign model whose
            description has none, in metres.

    Raises:
        ModelFileNotFoundError: If there is no such file.
        ModelError: If it is damaged, does not fit its description, or has no form that
            can be used.
        UnsafeFileError: If building or reading it could do harm.
        ResourceError: If it may not be read.
    """
    header = read_header(path)
    if header.kind == "bundle":
        bundle = load_bundle(header.path)
        stages = tuple(Stage(**stage.model_dump()) for stage in bundle.card.stages)
        return SourceModel(
            model=bundle.model,
            card=bundle.card,
            stages=stages,
            kind=header.kind,
            sha256=hash_file(header.path),
        )
    unknowns = Unknowns.of_header(header)
    if network is not None:
        unknowns = replace(unknowns, needs_network=False)
    description = unknowns.require(description)
    pair = None
    if header.kind == "weights" and network is None:
        pair = (str(description.architecture), str(description.encoder))
        network = build_network(
            *pair,
            num_bands=len(description.bands or ()),
            num_classes=len(description.classes or ()),
        )
    model = load_network(header, network)
    source = adopt_network(
        model, description, gsd_m=gsd_m, name=header.path.stem, pair=pair
    )
    digest = hash_file(header.path)
    changes = {
        "fingerprint": digest[:12],
        "versions": {"keras": header.keras_version or "unknown"},
    }
    card = source.card.model_copy(update=changes)
    return replace(source, card=card, kind=header.kind, sha256=digest)


def adopt_network(
    model: Any,
    description: ForeignDescription,
    *,
    gsd_m: float | None = None,
    name: str | None = None,
    pair: tuple[str, str] | None = None,
) -> SourceModel:
    """Take a network from memory as a model to start from, with the weights it has.

    Args:
        model: A functional or sequential Keras model, as built in a script.
        description: What it takes and gives.
        gsd_m: GSD of the site that it is for, if the description has none, in metres.
        name: What to call it; None for its own name.
        pair: Architecture and encoder, for a network of the zoo.

    Raises:
        ModelError: If it does not fit its description, or has no form that can be
            used.
    """
    form = form_network(model)
    name = name or str(model.name)
    unknowns = Unknowns(
        name=f"Model {name!r}",
        num_bands=form.network.inputs[0].shape[-1],
        num_classes=form.network.outputs[0].shape[-1],
    )
    description = unknowns.require(description)
    gsd_m = description.gsd_m or gsd_m
    if gsd_m is None:
        raise ModelError(
            f"{unknowns.name} does not say the GSD of the images that it was trained "
            "on. Give `gsd_m` in the file of --card."
        )
    bands = description.bands or ()
    mean, std = _join_scaling(description.normalization, form.normalization, len(bands))
    whole = add_normalization(form.network, mean=mean, std=std)
    multiple = find_tile_multiple(whole)
    if description.stages is not None:
        stages = resolve_stages(whole, description.stages)
    else:
        stages = find_stages(whole, *pair) if pair else propose_stages(whole)
    digest = hash_weights(whole)
    card = Card(
        site=name,
        classes=tuple(_list_classes(description.classes or ())),
        bands=bands,
        gsd_m=gsd_m,
        architecture=pair[0] if pair else FOREIGN,
        encoder=pair[1] if pair else FOREIGN,
        tile_size=_choose_tile_size(model, description.tile_size, multiple),
        tile_multiple=multiple,
        band_mean=mean,
        band_std=std,
        nodata_fill=mean,
        stages=tuple(CardStage(**asdict(stage)) for stage in stages),
        seed=0,
        lineage=Lineage(mode=FOREIGN),
        fingerprint=digest[:12],
        weights_sha256=digest,
        versions={"keras": keras.__version__},
    )
    return SourceModel(
        model=whole, card=card, stages=stages, kind="network", sha256=digest
    )


def load_network(header: ModelHeader, network: Any = None) -> Any:
    """Load a foreign network as it is: of its own form, with its weights.

    Args:
        header: The header of its file, which is no bundle.
        network: For weights only: the network to put them into. It is changed.

    Raises:
        ModelError: If it is damaged, or the weights do not fit.
    """
    if header.kind == "keras":
        model = _load_archive(header.path)
    else:
        model = network if network is not None else _build_from_config(header)
        load_stored_weights(model, header.weights.layers, header.path)
    bad = [v.path for v in model.weights if not np.isfinite(np.asarray(v)).all()]
    if bad:
        raise ModelError(
            f"{len(bad)} variables of {header.path}, {bad[0]} first, are not finite. "
            "Its training diverged, or the file is damaged: take an earlier one."
        )
    return model


@contextlib.contextmanager
def _told_as_model_error(path: Path) -> Iterator[None]:
    """Turn what Keras raises over a file into errors of cropseg."""
    try:
        yield
    except (ModelError, UnsafeFileError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        # Keras tells the cause last, behind the whole config.
        cause = str(error).rpartition("Exception encountered:")[2]
        text = " ".join(cause.split())[:300]
        raise ModelError(
            f"Keras {keras.__version__} cannot load {path}: {text}. Load it with the "
            "Keras that wrote it, and save it again: as `model.keras` with Keras 3, as "
            "`model.h5` with Keras 2."
        ) from error


def _load_archive(path: Path) -> Any:
    with check_archive(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ModelError(f"{path} is damaged in {damaged}. Copy it again.")
    with (
        tempfile.TemporaryDirectory() as folder,
        _told_as_model_error(path),
    ):
        named = Path(folder) / "model.keras"  # Keras goes by the ending
        named.symlink_to(path.absolute())
        return keras.models.load_model(named, compile=False, safe_mode=True)


def _build_from_config(header: ModelHeader) -> Any:
    if header.config is None:
        raise ModelError(
            f"{header.path} holds weights only. Name the network for them with "
            "--architecture and --encoder, or hand one over in a script."
        )
    is_chain = header.config["class_name"] == "Sequential"
    kind = keras.Sequential if is_chain else keras.Model
    with _told_as_model_error(header.path):
        # Keras takes what it has read out of the config.
        return kind.from_config(copy.deepcopy(header.config["config"]))


def _join_scaling(
    scaling: InputScaling | None, inner: Any, num_bands: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Join what the user did to raw values and what the network did after that."""
    mean, std = map(np.asarray, (scaling or InputScaling()).spread(num_bands))
    if inner is not None:
        mean, std = mean + std * inner[0], std * inner[1]
    return tuple(map(float, mean)), tuple(map(float, std))


def _choose_tile_size(model: Any, wanted: int | None, multiple: int) -> int:
    """Return the side that is asked for, the network's own, or the default."""
    own = model.inputs[0].shape[1] or DEFAULT_TILE_SIZE
    size = int(wanted or -(-own // multiple) * multiple)
    if size % multiple:
        raise ModelError(
            f"`tile_size` is {size}, but this model takes multiples of {multiple}."
        )
    return size


def _list_classes(names: Sequence[str]) -> Iterator[CardClass]:
    """Give the classes colours around the colour wheel."""
    for index, name in enumerate(names):
        rgb = colorsys.hsv_to_rgb(index / len(names), 0.6, 0.85)
        color = "#" + "".join(f"{round(255 * value):02x}" for value in rgb)
        yield CardClass(name=name, color=color, train_pixels=0)
