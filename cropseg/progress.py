"""How long work says how far it is. Library code calls it; the caller shows it."""

from __future__ import annotations

from collections.abc import Callable

ShowProgress = Callable[[int, int, str], None]
"""Called with the units done, the units in all, and what is going on."""


def show_nothing(done: int, total: int, text: str) -> None:
    """Show no progress."""
    del done, total, text
