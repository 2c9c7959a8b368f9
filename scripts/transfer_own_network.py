"""Transfer a network of your own, with layers locked by name.

Usage: python scripts/transfer_own_network.py MANIFEST_1 MANIFEST_2 OUT_DIR
"""

import sys
from typing import Any

import cropseg
from cropseg.runtime import keras  # plain Keras, with threads set


def build_network(num_bands: int, num_classes: int) -> Any:
    """Build a small encoder and decoder, as anybody would in Keras."""
    conv = {"padding": "same", "activation": "relu"}
    pixels = keras.Input((None, None, num_bands))
    fine = keras.layers.Conv2D(16, 3, name="down_1", **conv)(pixels)
    coarse = keras.layers.MaxPooling2D()(fine)
    coarse = keras.layers.Conv2D(32, 3, name="down_2", **conv)(coarse)
    up = keras.layers.Conv2DTranspose(16, 2, strides=2, name="up_1")(coarse)
    both = keras.layers.Concatenate()([fine, up])
    both = keras.layers.Conv2D(16, 3, name="up_2", **conv)(both)
    return keras.Model(pixels, keras.layers.Conv2D(num_classes, 1, name="head")(both))


def main(path_1: str, path_2: str, out_dir: str, **settings: Any) -> None:
    """Train on area 1 from random weights, then on area 2 with `down_*` locked."""
    area_1, area_2 = cropseg.open_site(path_1), cropseg.open_site(path_2)
    network = build_network(len(area_1.bands), len(area_1.classes))
    about = cropseg.ForeignDescription(
        bands=area_1.bands, classes=area_1.classes.names, normalization="none"
    )
    first = cropseg.transfer_to_site(
        area_1,
        model=network,
        description=about,
        reuse=cropseg.ReuseOptions(normalization="target"),
        mode="scratch",
        out_dir=f"{out_dir}/area_1",
        **settings,
    )
    second = cropseg.transfer_to_site(
        area_2,
        first.model_path,
        mode="freeze_layers:down_*",
        out_dir=f"{out_dir}/area_2",
        **settings,
    )
    print(f"{second.model_path}: mIoU {second.metrics['test']['miou']:.3f}")
    for row in second.read_weight_report().rows:
        print(f"  {row.variable:<24}{row.action:<12}{row.training}")


if __name__ == "__main__":
    main(*sys.argv[1:])
