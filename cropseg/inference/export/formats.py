"""The formats that a model can be exported to. No Keras."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cropseg.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A format."""

    ending: str
    """What the file's name ends with; empty for a folder."""
    packages: tuple[str, ...]
    """Packages that it takes, as they are imported."""
    extra: str
    """The extra of cropseg that installs them; empty if cropseg needs them anyway."""


EXPORT_FORMATS: Final = {
    "openvino": ExportFormat(ending=".xml", packages=("openvino",), extra="openvino"),
    "onnx": ExportFormat(
        ending=".onnx", packages=("onnx", "onnxruntime", "tf2onnx"), extra="onnx"
    ),
    "saved_model": ExportFormat(ending="", packages=("tensorflow",), extra=""),
}
"""Every format, by its name on the command line."""


def check_export_path(path: Path, file_format: str) -> None:
    """Check that a model can be exported to a format, under a path.

    Raises:
        UsageError: If the format is unknown, its packages are not installed, or the
            path ends otherwise.
    """
    known = EXPORT_FORMATS.get(file_format)
    if known is None:
        raise UsageError(
            f"--format is {file_format}; it must be one of {', '.join(EXPORT_FORMATS)}."
        )
    missing = [n for n in known.packages if importlib.util.find_spec(n) is None]
    if missing:
        raise UsageError(
            f"To export to {file_format}, {', '.join(missing)} must be installed. "
            f"Install with `pip install 'cropseg[{known.extra}]'`."
        )
    # Of `.` and `..` there is no name to hide and to replace.
    if path.suffix != known.ending or path.name in {"", ".."}:
        wanted = f"end with {known.ending}" if known.ending else "be a folder's name"
        raise UsageError(
            f"--out is {path}; for --format {file_format} it must {wanted}, such as "
            f"model{known.ending}."
        )
