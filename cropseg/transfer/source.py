"""The model that a transfer starts from: a bundle, a foreign file, or one in memory."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropseg.errors import UsageError
from cropseg.files import hash_file
from cropseg.models.card import Card, read_card
from cropseg.models.foreign import ForeignDescription, Unknowns
from cropseg.models.header import ModelHeader, read_header
from cropseg.sites.site import Site

if TYPE_CHECKING:
    from cropseg.models.bundle import Bundle

_MAX_SEEDS = 10_000
"""Initialisers of a network, at most, whose seeds are counted."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to start from, of which the card is known and the rest not loaded."""

    title: str
    """What records call it: its path, or `a model in memory`."""
    sha256: str
    """SHA-256 of its file, or of its weights."""
    card: Card
    """Its card."""
    run_dir: Path | None
    """The folder that its file lies in."""
    load: Callable[[], Bundle]
    """Loads it."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What its user said of it, as `--card` takes it. Empty for a bundle, whose file
    says it all."""


def find_source(
    model_path: str | Path | None,
    *,
    model: Any = None,
    description: ForeignDescription | None = None,
    site: Site | None = None,
) -> Source:
    """Find the model to start from.

    A bundle is not loaded yet, so that all checks come before Keras starts.

    Args:
        model_path: A bundle, or any Keras file with `description`.
        model: A functional Keras model, in place of `model_path`.
        description: A `ForeignDescription` of a model that is no bundle.
        site: The target, whose GSD a model without one is taken to have.

    Raises:
        UsageError: If none or both are given, or a bundle is described.
        ModelError: If the file cannot be used.
    """
    if (model_path is None) == (model is None):
        raise UsageError("Give either the path of a model or a model.")
    header = None if model_path is None else read_header(model_path)
    if header is not None and header.kind == "bundle":
        if description is not None:
            raise UsageError(
                f"{model_path} has a card that says its bands, classes and "
                "normalisation. Leave the description out."
            )
        path = header.path
        sha256 = hash_file(path)
        return Source(
            title=str(model_path),
            sha256=sha256,
            card=read_card(path),
            run_dir=path.parent,
            load=functools.partial(_load_bundle, path, sha256),
        )
    return _load_foreign(header, model, description, site)


def _load_bundle(path: Path, sha256: str) -> Bundle:
    """Load a bundle, or return the one that an earlier run of the process loaded.

    Nobody changes a source. Keras draws a seed from the process for each initialiser
    that it builds, so that as many are drawn where nothing is built: random weights
    are then the same.
    """
    from cropseg.models.bundle import load_bundle
    from cropseg.runtime import get_shared

    shared = get_shared()
    if shared is None:
        return load_bundle(path)
    key = ("source", path, sha256)
    kept: tuple[Bundle, int] | None = shared.get(key)
    if kept is None:
        before = random.getstate()
        bundle = load_bundle(path)
        num_seeds = _count_seeds(before)
        if num_seeds is not None:
            shared.keep(key, (bundle, num_seeds))
        return bundle
    bundle, num_seeds = kept
    for _ in range(num_seeds):
        _draw_seed()
    return bundle


def _count_seeds(before: tuple[Any, ...]) -> int | None:
    """Return how many seeds were drawn since a state; None if it was something else."""
    now = random.getstate()
    random.setstate(before)
    try:
        for count in range(_MAX_SEEDS):
            if random.getstate() == now:
                return count
            _draw_seed()
    finally:
        random.setstate(now)
    return None


def _draw_seed() -> None:
    """Draw a seed as Keras 3.15 does for an initialiser without one."""
    random.randint(1, int(1e9))  # noqa: S311 - no secret


def _load_foreign(
    header: ModelHeader | None,
    model: Any,
    description: ForeignDescription | None,
    site: Site | None,
) -> Source:
    """Load a model that brings no card: what it is cannot be known before."""
    if header is not None:  # what is missing is told before Keras starts
        Unknowns.of_header(header).require(description)
    from cropseg.models.bundle import Bundle
    from cropseg.models.load import adopt_network, load_source

    gsd_m = site.gsd_m if site else None
    if header is not None:
        found = load_source(header.path, description, gsd_m=gsd_m)
    else:
        known = description or ForeignDescription()
        found = adopt_network(model, known, gsd_m=gsd_m)
    bundle = Bundle(model=found.model, card=found.card)
    return Source(
        title=str(header.path) if header else "a model in memory",
        sha256=found.sha256,
        card=found.card,
        run_dir=header.path.parent if header else None,
        load=lambda: bundle,
        told=description.model_dump(mode="json", exclude_none=True)
        if description
        else {},
    )
