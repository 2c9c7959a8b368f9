"""`cropseg modes`: the ways of reusing a model."""

from __future__ import annotations

from cropseg import tables
from cropseg.cli.options import Seed
from cropseg.cli.show import Output, console


def modes(*, output: Output, seed: Seed = None) -> None:
    """List the transfer modes."""
    del seed
    document = tables.list_modes()
    output.show(document, lambda: tables.show_modes(console, document))
