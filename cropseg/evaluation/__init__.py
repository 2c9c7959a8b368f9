"""Confusion counts, and every score that comes from them. No Keras."""
