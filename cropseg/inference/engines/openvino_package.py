"""OpenVINO, where it is installed; the one file that imports it. No Keras.

OpenVINO counts its imports and conversions by sending them over the network where it
finds the package `openvino_telemetry`. Here it does not find it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cropseg.errors import UsageError

_TELEMETRY: Final = "openvino_telemetry"
_INSTALL: Final = "Install it with `pip install 'cropseg[openvino]'`"


def has_openvino() -> bool:
    """Whether the package is installed. It is not imported."""
    return importlib.util.find_spec("openvino") is not None


def get_openvino_version() -> str:
    """Return the version of the package, without importing it."""
    return importlib.metadata.version("openvino")


def import_openvino() -> Any:
    """Return OpenVINO, which sends nothing over the network.

    Raises:
        UsageError: If it is not installed, or does not work here.
    """
    if not has_openvino():
        raise UsageError(
            f"The package openvino is not installed. {_INSTALL}, or use --engine keras."
        )
    try:
        with _hide_telemetry():
            import openvino
            import openvino.passes
    except ImportError as error:
        raise UsageError(
            f"The package openvino cannot be imported: {error}. {_INSTALL} again, or "
            "use --engine keras."
        ) from error
    return openvino


@contextmanager
def _hide_telemetry() -> Iterator[None]:
    """Make an import of the telemetry fail, as where it is not installed.

    OpenVINO imports it with itself and never again, and has a stand-in for it.
    """
    known = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if known is not None:
            sys.modules[_TELEMETRY] = known
