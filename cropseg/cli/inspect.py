"""`cropseg inspect`: the card of a model file."""

from __future__ import annotations

from cropseg import tables
from cropseg.cli.options import Model, Seed
from cropseg.cli.show import Output, console
from cropseg.models.card import read_card


def inspect(model: Model, *, output: Output, seed: Seed = None) -> None:
    """Show what a model file says about itself."""
    del seed
    card = read_card(model)
    document = card.model_dump(mode="json")
    output.show(document, lambda: tables.show_card(console, card))
