"""What computes a training: a precision, on a backend of Keras.

Settings do not say it: `auto` is bfloat16 on a GPU and float32 on a CPU, and Keras runs
on the backend of its process. Nor does the record of a run, which is checked before
Keras starts. So it stands in checkpoints and metrics. What is finished is as good
anywhere, but nothing goes on with what was computed in another way: a training would
be neither, and modes would differ by more than their plans.
"""

from __future__ import annotations

from collections.abc import Mapping

from cropseg.errors import ConflictError
from cropseg.runtime import keras, resolve_precision

_BEFORE = {"backend": "tensorflow", "precision": "float32"}
"""What `auto` meant, but for a GPU, to versions that did not write it down."""


def describe_computing(precision: str) -> dict[str, str]:
    """Return backend and precision, as checkpoints and `metrics.json` have them.

    Args:
        precision: That of the settings: auto, float32 or bfloat16.
    """
    return {
        "backend": keras.backend.backend(),
        "precision": resolve_precision(precision),
    }


def refuse_other_computing(
    found: Mapping[str, str] | None, precision: str, title: str
) -> None:
    """Check that this process computes as something was computed.

    Args:
        found: What `describe_computing` returned then, or a part of it; None where an
            earlier version left nothing.
        precision: That of the settings, which are equal.
        title: What it was that was computed.

    Raises:
        ConflictError: If it computes in another way.
    """
    now = describe_computing(precision)
    if found is None:
        found = _BEFORE if precision == "auto" else {"backend": _BEFORE["backend"]}
    changes = [
        f"{name} was {value}, is {now[name]}"
        for name, value in found.items()
        if value != now[name]
    ]
    if changes:
        raise ConflictError(
            f"{title} was computed in another way: {'; '.join(changes)}. Go on where "
            "it was begun: KERAS_BACKEND names the backend, and --precision auto is "
            "bfloat16 on a GPU and float32 on a CPU. Or choose another --out, or start "
            "again with --overwrite."
        )
