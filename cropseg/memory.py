"""Memory of this process. No Keras."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path

_log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What sets the peak back to the memory in use (Linux, proc_pid_clear_refs(5))."""


def reset_peak_memory() -> None:
    """Count the peak from now on, where the system can."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:  # not Linux, or not allowed in this container
        _log.debug("The peak of memory counts from the start of the process.")


def read_peak_memory() -> int | None:
    """Return the largest resident memory since the reset, in bytes.

    None where the system does not tell. Memory of other processes is not counted.
    """
    return _read_bytes("VmHWM")


def read_memory() -> int | None:
    """Return the resident memory in use, in bytes; None where it is not told."""
    return _read_bytes("VmRSS")


def release_memory() -> None:
    """Give what was freed back to the system, where the C library can do so.

    glibc keeps it, for each thread apart. It takes 20 ms, so do it now and then.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _read_bytes(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
