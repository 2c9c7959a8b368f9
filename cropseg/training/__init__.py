"""From tiles to a fitted model."""
