"""Two made-up rural areas to try everything on."""
