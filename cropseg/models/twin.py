"""Networks that are alike: one copy is traced, and runs with the weights of all.

Only where runs share something; see `share_between_runs`.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from cropseg.runtime import get_shared_networks, keras


def describe_structure(model: Any) -> str:
    """Return what two models have in common that compute the same from equal weights.

    Constants in layers, such as the statistics of the bands, are part of it. The name
    of the model and what of it is locked are not.
    """
    description = json.loads(model.to_json(), object_hook=_drop_locks)
    description["config"].pop("name", None)
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _drop_locks(item: dict[str, Any]) -> dict[str, Any]:
    item.pop("trainable", None)
    return item


def find_twin(model: Any, purpose: str) -> Any:
    """Return a copy of the first model like this one, traced already, or the model.

    A copy, so that no model ever loses its weights to another. Give it those of the
    model by `copy_variables` before it is used.

    Args:
        model: A functional model.
        purpose: What it is traced for.
    """
    shared = get_shared_networks()
    if shared is None:
        return model
    key = ("twin", purpose, describe_structure(model))
    twin = shared.get(key)
    if twin is None:
        state = random.getstate()  # its initialisers draw seeds, which a run would miss
        twin = keras.models.clone_model(model)
        random.setstate(state)
        shared.keep(key, twin)
    return twin


def copy_variables(model: Any, twin: Any) -> None:
    """Give a twin the values that a model has now."""
    if twin is model:
        return
    for ours, theirs in zip(model.variables, twin.variables, strict=True):
        theirs.assign(ours)
