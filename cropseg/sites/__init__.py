"""Where the pixels come from: manifests, rasters, tiles and splits. No Keras."""
