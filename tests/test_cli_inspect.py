"""`cropseg inspect`: what any model file is, before and after Keras is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cropseg.cli.inspect import inspect
from cropseg.cli.show import Output
from cropseg.errors import ModelError, UsageError
from cropseg.models.foreign import ForeignDescription
from cropseg.models.load import load_source

LEGACY = Path(__file__).parents[2] / "shared" / "data" / "legacy_keras"
NAIP = LEGACY / "naip_unet_keras2.3.1.h5"
needs_legacy = pytest.mark.skipif(
    not NAIP.exists(), reason="the old Keras files lie beside the project only"
)


@pytest.fixture
def run_json(capsys):
    """Give a function that inspects a file and returns the document."""

    def run(path, **options):
        inspect(path, output=Output(as_json=True), **options)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def model_path(tmp_path):
    """A small foreign model."""
    from cropseg.runtime import keras

    layers = keras.layers
    image = keras.Input((32, 32, 4))
    fine = layers.Conv2D(4, 3, padding="same", name="down")(image)
    low = layers.Conv2D(5, 3, strides=2, padding="same", name="low")(fine)
    value = layers.Concatenate()([layers.UpSampling2D()(low), fine])
    value = layers.Conv2D(4, 3, padding="same", name="up")(value)
    model = keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(value))
    model.save(tmp_path / "net.keras")
    return tmp_path / "net.keras"


def test_a_foreign_model_is_described(model_path, run_json):
    document = run_json(model_path)
    assert document["kind"] == "keras"
    assert document["input_shape"] == [None, 32, 32, 4]
    assert document["output_shape"] == [None, 32, 32, 3]
    assert (document["num_bands"], document["num_classes"]) == (4, 3)
    assert document["tile_multiple"] == 2
    assert [(s["name"], s["stride"], s["layers"]) for s in document["stages"]] == [
        ("encoder_1", 1, ["down"]),
        ("encoder_2", 2, ["low"]),
        ("decoder_1", 1, ["up"]),
        ("head", 1, ["head"]),
    ]
    assert [text.split()[0].rstrip(":") for text in document["needs"]] == [
        "--bands",
        "--classes",
        "--normalization",
    ]
    assert document["problem"] is None


def test_the_stages_that_it_writes_can_be_edited_and_read(
    model_path, tmp_path, run_json
):
    path = tmp_path / "stages.yaml"
    run_json(model_path, stages_out=path)
    stages = yaml.safe_load(path.read_text())
    stages[0]["layers"] += stages.pop(1)["layers"]
    path.write_text(yaml.safe_dump(stages))
    described = ForeignDescription.from_options(
        bands="a,b,c,d", classes="x,y,z", normalization="none", stages=path
    )
    source = load_source(model_path, described, gsd_m=1)
    assert [stage.layers for stage in source.stages] == [
        ("down", "low"),
        ("up",),
        ("head",),
    ]


@needs_legacy
def test_old_weights_are_listed_without_keras(run_json):
    document = run_json(LEGACY / "unet_weights_only_keras2.3.0.h5")
    assert document["kind"] == "weights"
    assert document["layers"][0] == {
        "name": "conv2d_1",
        "class": None,
        "shapes": [[3, 3, 3, 8], [8]],
    }
    assert any(text.startswith("--architecture") for text in document["needs"])


@needs_legacy
def test_an_old_model_is_described(run_json):
    document = run_json(NAIP)
    assert (document["kind"], document["keras_version"]) == ("hdf5", "2.3.1")
    assert (document["tile_multiple"], len(document["stages"])) == (16, 10)


def test_stages_of_weights_only_are_not_to_be_had(tmp_path):
    from cropseg.runtime import keras

    image = keras.Input((8, 8, 2))
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(image))
    path = tmp_path / "net.weights.h5"
    model.save_weights(path)
    with pytest.raises(UsageError, match="--stages-out"):
        inspect(path, output=Output(), stages_out=tmp_path / "stages.yaml")


def test_a_model_that_cannot_be_a_start_says_why(tmp_path, run_json):
    from cropseg.runtime import keras

    image = keras.Input((8, 8, 2))
    model = keras.Model(image, keras.layers.Conv2D(1, 1, activation="sigmoid")(image))
    model.save(tmp_path / "net.keras")
    document = run_json(tmp_path / "net.keras")
    assert "sigmoid" in document["problem"]
    assert document["stages"] == []
    with pytest.raises(ModelError, match="sigmoid"):
        run_json(tmp_path / "net.keras", stages_out=tmp_path / "stages.yaml")


def test_people_see_tables(model_path, capsys):
    inspect(model_path, output=Output())
    shown = capsys.readouterr().out
    for words in ("not of cropseg", "32 x 32 x 4", "encoder_2", "--bands"):
        assert words in shown


@pytest.mark.parametrize(("content", "code"), [(b"<html>", 4), (b"", 4)])
def test_a_file_that_is_no_model_is_refused_before_keras_starts(
    content, code, tmp_path
):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    program = (
        "import sys; sys.modules['keras'] = None\n"
        f"sys.argv = ['cropseg', 'inspect', {str(path)!r}]\n"
        "from cropseg.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr
