"""Memory of this process."""

from __future__ import annotations

import platform
import sys

import numpy as np
import pytest

from cropseg.memory import (
    read_memory,
    read_peak_memory,
    release_memory,
    reset_peak_memory,
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells"
)

_BYTES = 64 * 1024**2


def _use_memory() -> None:
    assert np.ones(_BYTES, np.uint8).any()


def test_the_peak_holds_what_was_freed_again() -> None:
    reset_peak_memory()
    before = read_memory()
    _use_memory()

    peak = read_peak_memory()

    assert before is not None
    assert peak is not None
    assert peak - before > 0.9 * _BYTES


def test_a_reset_forgets_an_earlier_peak() -> None:
    _use_memory()
    first = read_peak_memory()

    reset_peak_memory()

    second = read_peak_memory()
    assert first is not None
    assert second is not None
    assert first - second > 0.5 * _BYTES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_what_was_freed_goes_back_to_the_system() -> None:
    pieces = [bytearray(2**16) for _ in range(_BYTES // 2**16)]
    held = pieces[-1]  # what lies above it cannot be the end of the heap
    del pieces
    before = read_memory()

    release_memory()

    after = read_memory()
    assert before is not None
    assert after is not None
    assert before - after > 0.9 * _BYTES
    assert len(held) == 2**16
