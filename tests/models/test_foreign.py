"""What a user says of a foreign model: read, checked, and asked for by option."""

from __future__ import annotations

import pytest
import yaml

from cropseg.errors import ModelError, UsageError
from cropseg.models.foreign import ForeignDescription, InputScaling, Unknowns
from cropseg.models.stage_file import StageEntry

FULL = Unknowns(name="old.h5", num_bands=4, num_classes=3)
WEIGHTS = Unknowns(name="w.h5", num_bands=None, num_classes=None, needs_network=True)
OPTIONS = {
    "bands": "red, green,blue,nir",
    "classes": "wheat,spring corn,water",
    "normalization": "divide:255",
}


def test_options_become_a_description():
    described = ForeignDescription.from_options(**OPTIONS, tile_size=64, encoder=None)
    assert described.bands == ("red", "green", "blue", "nir")
    assert described.classes == ("wheat", "spring corn", "water")
    assert described.normalization == InputScaling(mean=0, std=255)
    assert described.tile_size == 64
    assert FULL.require(described) == described


@pytest.mark.parametrize(
    "normalization",
    [None, "none", "divide:255", "divide:100,200,3,4", "mean:1,2,3,4 std:0.5"],
)
def test_a_description_says_itself_in_options(normalization):
    given = {**OPTIONS, "normalization": normalization, "encoder": "resnet18"}
    described = ForeignDescription.from_options(**given)
    words = described.list_options()
    options = zip(words[::2], words[1::2], strict=True)
    again = {name.removeprefix("--"): text for name, text in options}
    assert ForeignDescription.from_options(**again) == described
    assert "card" not in again
    more = described.model_copy(update={"tile_size": 64})
    assert more.list_options() == [*words, "--card", "FILE"]


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("none", (0, 0), (1, 1)),
        ("None", (0, 0), (1, 1)),
        ("divide:255", (0, 0), (255, 255)),
        ("divide:100,200", (0, 0), (100, 200)),
        ("mean:1,-2 std:3,4.5", (1, -2), (3, 4.5)),
        ("mean:127.5 std:127.5", (127.5, 127.5), (127.5, 127.5)),
    ],
)
def test_every_form_of_normalization_is_read(text, mean, std):
    scaling = ForeignDescription.from_options(normalization=text).normalization
    assert scaling.spread(2) == (mean, std)


@pytest.mark.parametrize(
    "text", ["", "255", "divide:", "divide:x", "mean:1", "mean:1 mean:2", "minmax",
             "divide:2 std:3", "divide:0", "std:nan", "divide:-1", "source"]
)  # fmt: skip
def test_other_forms_of_normalization_are_refused(text):
    with pytest.raises(UsageError, match="normalization"):
        ForeignDescription.from_options(normalization=text)


def test_one_number_too_few_for_the_bands_is_told():
    given = OPTIONS | {"normalization": "mean:1,2,3 std:1,1,1"}
    with pytest.raises(ModelError, match="3 numbers, but the model takes 4 bands"):
        FULL.require(ForeignDescription.from_options(**given))


def test_all_that_is_missing_is_asked_for_by_option():
    with pytest.raises(ModelError) as error:
        FULL.require(None)
    text = str(error.value)
    assert "--bands red,green,blue,nir" in text
    assert "the model takes 4 bands" in text
    assert "--classes NAME,NAME,...: the model gives 3 classes" in text
    assert "--normalization" in text
    assert "--card FILE" in text
    assert "--architecture" not in text
    assert error.value.exit_code == 4


def test_only_what_is_missing_is_asked_for():
    described = ForeignDescription.from_options(bands=OPTIONS["bands"])
    with pytest.raises(ModelError) as error:
        FULL.require(described)
    assert "--bands" not in str(error.value)


def test_weights_only_need_a_network():
    described = ForeignDescription.from_options(**OPTIONS, encoder="classic")
    with pytest.raises(ModelError, match="--architecture: the file holds weights only"):
        WEIGHTS.require(described)
    WEIGHTS.require(described.model_copy(update={"architecture": "unet"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bands": "red,green,blue"}, "names 3 .*the model takes 4 bands"),
        ({"classes": "a,b,c,d"}, "names 4 .*the model gives 3 classes"),
    ],
)
def test_another_number_of_names_than_the_model_has_is_told(change, words):
    with pytest.raises(ModelError, match=words):
        FULL.require(ForeignDescription.from_options(**(OPTIONS | change)))


@pytest.mark.parametrize(
    "change",
    [{"bands": "red,red"}, {"bands": "red,,nir"}, {"classes": "one"}, {"tile_size": 4}],
)
def test_names_that_cannot_be_are_refused(change):
    with pytest.raises(UsageError, match="do not describe a model"):
        ForeignDescription.from_options(**(OPTIONS | change))


def test_a_file_says_the_same_as_options_and_options_win(tmp_path):
    path = tmp_path / "card.yaml"
    document = {
        "bands": ["red", "nir"],
        "classes": ["a", "b"],
        "normalization": {"mean": [1, 2], "std": 3},
        "gsd_m": 0.6,
    }
    path.write_text(yaml.safe_dump(document))
    described = ForeignDescription.from_options(card=path, classes="c,d")
    assert (described.bands, described.classes) == (("red", "nir"), ("c", "d"))
    assert described.normalization.spread(2) == ((1, 2), (3, 3))
    assert described.gsd_m == 0.6


@pytest.mark.parametrize("value", ["none", "divide:255", {"divide": 255}])
def test_a_file_may_name_the_normalization_as_options_do(value, tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({"normalization": value}))
    scaling = ForeignDescription.from_options(card=path).normalization
    assert scaling.std == (1 if value == "none" else 255)


@pytest.mark.parametrize(
    ("text", "error"),
    [("- a", ModelError), ("bands: [", ModelError), ("band: [red]", UsageError)],
)
def test_a_file_that_is_none_is_told(text, error, tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(error, match="bands"):
        ForeignDescription.from_options(card=path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="Cannot read the card"):
        ForeignDescription.from_options(card=tmp_path / "card.yaml")


def test_stages_come_from_their_file(tmp_path):
    path = tmp_path / "stages.yaml"
    path.write_text("- {name: encoder_1, part: encoder, layers: ['down_*']}")
    described = ForeignDescription.from_options(stages=path)
    assert described.stages == (
        StageEntry(name="encoder_1", part="encoder", layers=("down_*",)),
    )
