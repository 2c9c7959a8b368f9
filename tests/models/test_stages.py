"""Where an encoder ends: what is measured there, and what is trained without labels."""

from __future__ import annotations

import numpy as np
import pytest

from cropseg.errors import ModelError
from cropseg.models.stages import Stage, find_encoder_end
from cropseg.models.zoo import build_network, find_stages
from cropseg.runtime import keras


@pytest.mark.parametrize(
    ("architecture", "encoder", "end"),
    [
        ("unet", "classic_tiny", "encoder_3_relu_2"),
        ("unet", "resnet18", "relu1"),
        ("linknet", "vgg16", "block5_conv3"),
        pytest.param("fpn", "mobilenetv2", "out_relu", marks=pytest.mark.slow),
        pytest.param("unet", "inceptionv3", "mixed10", marks=pytest.mark.slow),
        pytest.param(
            "unet", "efficientnetb0", "top_activation", marks=pytest.mark.slow
        ),
    ],
)
def test_the_end_of_an_encoder_is_found(architecture, encoder, end):
    network = build_network(architecture, encoder, num_bands=3, num_classes=4, width=4)
    stages = find_stages(network, architecture, encoder)

    found = find_encoder_end(network, stages)

    assert found == end
    stride = [s for s in stages if s.part == "encoder"][-1].stride
    features = keras.Model(network.inputs[0], network.get_layer(found).output)
    assert features(np.zeros((1, 64, 64, 3))).shape[1] == 64 // stride


def test_an_encoder_that_ends_in_several_layers_is_refused():
    network = build_network("unet", "classic_tiny", num_bands=3, num_classes=4)
    layers = ("encoder_3_conv_1", "head")
    stages = [
        Stage(name="encoder_1", layers=(*layers, "no_such"), stride=4, part="encoder")
    ]

    with pytest.raises(
        ModelError, match=r"last encoder stage lead to: encoder_3_conv_1"
    ):
        find_encoder_end(network, stages)
