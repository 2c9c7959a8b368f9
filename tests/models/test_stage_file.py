"""The file of stages: written as proposed, and read as the user left it."""

from __future__ import annotations

import pytest

from cropseg.errors import ModelError
from cropseg.models.stage_file import (
    StageEntry,
    choose_layers,
    read_stage_file,
    write_stage_file,
)

LAYERS = ("down_a", "down_b", "up_a", "up_b", "head")


def make_entries(*stages):
    return tuple(
        StageEntry(name=name, part=part, layers=layers) for name, part, layers in stages
    )


GOOD = make_entries(
    ("encoder_1", "encoder", ("down_*",)),
    ("decoder_1", "decoder", ("up_b", "up_a")),
    ("head", "head", ("head",)),
)


def test_stages_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "stages.yaml"
    write_stage_file(GOOD, path)
    assert read_stage_file(path) == GOOD


def test_patterns_choose_layers_in_the_order_of_the_network():
    assert choose_layers(GOOD, LAYERS) == [
        ("down_a", "down_b"),
        ("up_a", "up_b"),
        ("head",),
    ]


def replace_decoder(*layers):
    return (GOOD[0], *make_entries(("d", "decoder", layers)), GOOD[2])


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (GOOD[:1] + GOOD[2:], "up_a is in no stage"),
        (replace_decoder("*_a", "up_b"), "down_a is in encoder_1 and d"),
        (replace_decoder("up_*", "x*"), "'x\\*' names no layer"),
        ((GOOD[1], GOOD[0], GOOD[2]), "from encoder over decoder to head"),
        (GOOD[:2], "No stage of part head"),
        ((GOOD[0], *GOOD), "encoder_1 stands there more than once"),
        (
            (*GOOD[:2], StageEntry(name="top", part="head", layers=("head",))),
            "is called `head`",
        ),
    ],
)
def test_stages_that_do_not_divide_the_network_are_refused(stages, words):
    with pytest.raises(ModelError, match=words):
        choose_layers(stages, LAYERS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: b",
        "- [",
        "- {name: x, part: encoder}",
        "- {name: x, part: neck, layers: [a]}",
        "- {name: x, part: head, layers: []}",
        "- {name: x, part: head, layers: [a], more: 1}",
    ],
)
def test_a_file_of_something_else_is_told(text, tmp_path):
    path = tmp_path / "stages.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"stages\.yaml"):
        read_stage_file(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="Cannot read stages"):
        read_stage_file(tmp_path / "stages.yaml")
