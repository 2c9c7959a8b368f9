"""From the runs of a comparison to what `summary.json` says. No Keras."""
