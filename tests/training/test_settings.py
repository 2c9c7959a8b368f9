"""Settings: every problem is listed, and a mistyped key finds its neighbour."""

from __future__ import annotations

import dataclasses

import pytest

from cropseg.errors import UsageError
from cropseg.inference.engines.engine import PRECISIONS
from cropseg.training.settings import (
    LOSSES,
    TrainSettings,
    list_setting_names,
    read_settings_file,
)

BAD = {
    "tile_size": 7,
    "batch_size": 0,
    "epochs": 0,
    "steps_per_epoch": -1,
    "learning_rate": 1.0,
    "loss": "hinge",
    "class_weight_power": -0.5,
    "precision": "float8",
    "workers": 0,
    "seed": -3,
}
FREE = {"architecture", "encoder"}
"""Settings that the zoo checks, which needs Keras."""


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_cannot_be_used_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"`{name}` is .*{BAD[name]}"):
        TrainSettings(**{name: BAD[name]})


def test_every_setting_has_a_check():
    assert set(BAD) | FREE == set(list_setting_names())


def test_all_problems_are_listed_at_once():
    with pytest.raises(UsageError) as caught:
        TrainSettings(**BAD)

    assert all(f"`{name}`" in str(caught.value) for name in BAD)
    assert len(str(caught.value).splitlines()) == 1 + len(BAD)


@pytest.mark.parametrize("rate", [0, -0.1, 1, float("nan"), float("inf")])
def test_a_learning_rate_lies_between_0_and_1(rate):
    with pytest.raises(UsageError, match="learning_rate"):
        TrainSettings(learning_rate=rate)


def test_the_values_allowed_are_named():
    with pytest.raises(UsageError) as caught:
        TrainSettings(loss="hinge", precision="half")

    assert all(name in str(caught.value) for name in (*LOSSES, *PRECISIONS))


def test_what_decides_the_result_is_all_but_the_workers():
    settings = TrainSettings(epochs=3, workers=1)

    assert settings.to_json() == TrainSettings(epochs=3, workers=2).to_json()
    assert set(settings.to_json()) == set(list_setting_names()) - {"workers"}


def test_changed_settings_are_checked_too():
    settings = TrainSettings(epochs=3, steps_per_epoch=5)

    assert settings.num_steps == 15
    assert settings.change(epochs=4).num_steps == 20
    assert settings.epochs == 3
    with pytest.raises(UsageError, match="`epochs`"):
        settings.change(epochs=0)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("epoch", "epochs"), ("lerning_rate", "learning_rate"), ("batch", "batch_size")],
)
def test_an_unknown_key_of_a_file_is_answered_with_the_nearest(tmp_path, key, nearest):
    path = tmp_path / "settings.yaml"
    path.write_text(f"{key}: 1\nloss: dice\n", encoding="utf-8")

    with pytest.raises(UsageError, match=f"`{key}` is no setting.*`{nearest}`"):
        read_settings_file(path)


def test_all_unknown_keys_of_a_file_are_listed(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("epoch: 1\nlos: dice\n7: 8\n", encoding="utf-8")

    with pytest.raises(UsageError, match="3 problem") as caught:
        read_settings_file(path)

    assert all(f"`{key}` is no setting" in str(caught.value) for key in ("epoch", "7"))


@pytest.mark.parametrize(
    "content", [b"- epochs\n", b"epochs: [1\n", b"\xff\xfe", b"text", None]
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UsageError, match=r"settings\.yaml"):
        read_settings_file(path)


@pytest.mark.parametrize(
    "text", ["epochs: many", "batch_size: [4]", "seed: null", "learning_rate: 1e-3"]
)
def test_a_value_of_another_type_is_refused(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(UsageError, match=text.partition(":")[0]):
        TrainSettings(**read_settings_file(path))


def test_every_setting_can_stand_in_a_file(tmp_path):
    path = tmp_path / "settings.yaml"
    given = dataclasses.asdict(TrainSettings(epochs=3, learning_rate=0.02))
    path.write_text(
        "".join(f"{key}: {value}\n" for key, value in given.items()), encoding="utf-8"
    )

    assert read_settings_file(path) == given


def test_an_empty_file_changes_no_setting(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing\n", encoding="utf-8")

    assert read_settings_file(path) == {}
