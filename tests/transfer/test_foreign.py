"""A model that somebody saved with Keras 2, as the start of a transfer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.bundle import load_bundle
from cropseg.models.foreign import ForeignDescription
from cropseg.models.load import load_source
from cropseg.sites.site import open_site
from cropseg.transfer.transfer import transfer_to_site

NAIP = Path(__file__).parents[3] / "shared/data/legacy_keras/naip_unet_keras2.3.1.h5"
ABOUT = ForeignDescription(
    bands=("red", "green", "blue", "nir"),
    classes=("water", "trees", "grassland", "bare", "built"),
    normalization="divide:255",
    tile_size=64,
)
LOCKED = {
    "full": (),
    "frozen_encoder": ("conv2d_1", "conv2d_15"),
    "freeze_layers:conv2d_1,conv2d_2": ("conv2d_1", "conv2d_2"),
    "head_only": ("conv2d_1", "conv2d_31"),
}
"""Some layers that a mode locks."""

pytestmark = pytest.mark.skipif(
    not NAIP.exists(), reason="shared/data does not lie beside the project"
)


@pytest.fixture(scope="module")
def site(make_site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites") / "four_bands"
    bands = ("nir", "red", "green", "blue")
    return open_site(make_site(folder, bands=bands, class_names=("water", "corn")))


@pytest.mark.slow
@pytest.mark.parametrize("mode", LOCKED)
def test_an_old_model_is_a_starting_point(mode, site, tmp_path):
    run = transfer_to_site(
        site,
        NAIP,
        mode=mode,
        description=ABOUT,
        out_dir=tmp_path / "run",
        labels="2tiles",
        batch_size=2,
        epochs=1,
        steps_per_epoch=1,
    )

    theirs = {
        v.path: np.asarray(v) for v in load_source(NAIP, ABOUT, gsd_m=1).model.weights
    }
    model = load_bundle(run.model_path).model
    for name in ("conv2d_1", "conv2d_2", "conv2d_15", "conv2d_31"):
        kernel = np.asarray(model.get_layer(name).kernel)
        is_equal = np.array_equal(kernel, theirs[f"{name}/kernel"])
        locked = name in LOCKED[mode] or mode == "head_only"
        locked |= mode == "frozen_encoder" and name == "conv2d_2"
        assert is_equal == locked, name
    rows = {row.variable: row for row in run.read_weight_report().rows}
    assert "by class name: water; initialised: corn" in rows["head/kernel"].reason
    assert rows["head/kernel"].training == "trained"


def test_what_it_does_not_say_is_asked_for_by_the_name_of_the_option(site, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)--bands.*--classes.*--normalization"):
        transfer_to_site(site, NAIP, mode="full", out_dir=tmp_path / "run")
