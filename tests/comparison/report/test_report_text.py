"""The text in Markdown, the commands, and the small parts of figures."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess

import pytest
import yaml

from cropseg.comparison.report import write_report
from cropseg.comparison.report.chart import make_axis, make_log_axis, spread_out
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.folder import read_folder
from cropseg.comparison.report.markdown import escape_markdown
from cropseg.comparison.report.reproduce import list_commands

EVIL = "<script>alert(1)</script>"
TRICKY = (
    EVIL,
    "a|b",
    "`code` ``",
    "*a* _b_ __c__ ~~d~~",
    "[x](javascript:alert(1)) ![y](http://a.example)",
    "http://a.example www.a.example <http://a.example>",
    "# heading",
    "1. list",
    "- list",
    "&lt; &amp; \\",
    "$x_1$ a_b_c",
    "0.595 to -0.600",
    "-0.05",
    "- - -",
    "===",
    "2) b",
    "two\nlines\n\n---",
)


@pytest.fixture(scope="module")
def render():
    """Return what renders Markdown as GitHub does: tables, links, strikethrough."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable(
        ["table", "strikethrough"]
    )


def read_cells(tokens):
    return [
        token.content
        for before, token in itertools.pairwise(tokens)
        if before.type in {"td_open", "th_open"}
    ]


@pytest.mark.parametrize("text", TRICKY)
def test_an_escaped_text_is_nothing_but_text(render, text):
    table = f"| a | b |\n|---|---|\n| {escape_markdown(text)} | end |"
    for source in (escape_markdown(text), f"- {escape_markdown(text)}", table):
        tokens = render.parse(source)
        inline = [token for token in tokens if token.type == "inline"]
        parts = [part for token in inline for part in token.children]
        known = {"text", "text_special"}
        assert {part.type for part in parts} <= known
        said = ["".join(part.content for part in token.children) for token in inline]
        assert " ".join(text.split()) in said
    assert read_cells(render.parse(table))[3] == "end"


def test_the_text_has_answer_tables_method_and_commands(large_folder, render):
    write_report(large_folder)
    text = (large_folder / "report.md").read_text(encoding="utf-8")
    summary = json.loads((large_folder / "summary.json").read_text(encoding="utf-8"))

    plain = re.sub(r"\\(.)", r"\1", text)
    assert plain.index(summary["answer"]) < plain.index("|")
    assert "](comparison.svg)" in text
    assert "](report.html)" in text
    cells = read_cells(render.parse(text))
    for budget in summary["budgets"]:
        for mode in budget["modes"]:
            assert mode["mode"] in cells
            assert f"{mode['miou_mean']:.3f}" in cells
    assert "cropseg compare area_2.yaml" in text
    assert "Errors of the labels themselves." in text
    assert "p after Holm" in cells
    assert "on one scale" not in text


def test_names_cannot_leave_the_text(make_folder, render):
    names = dict.fromkeys(TRICKY[:6], "#123456")
    folder = make_folder(
        classes=names, renamed={"full": EVIL, "joint": "a|b", "lp_ft": "`x`"}
    )
    write_report(folder)

    tokens = render.parse((folder / "report.md").read_text(encoding="utf-8"))

    assert not [token for token in tokens if token.type == "html_block"]
    children = [part for token in tokens for part in token.children or ()]
    assert not [part for part in children if part.type == "html_inline"]
    addresses = [
        part.attrs.get("href") or part.attrs.get("src")
        for part in children
        if part.type in {"link_open", "image"}
    ]
    assert addresses == ["comparison.svg", "report.html"]
    rows = [index for index, token in enumerate(tokens) if token.type == "tr_open"]
    assert len(rows) > 30


def test_a_plot_is_linked_only_where_there_is_one(make_folder):
    folder = make_folder(modes={"full": 0.6}, budgets=(4,))
    (folder / "comparison.svg").unlink()

    write_report(folder)

    assert "![" not in (folder / "report.md").read_text(encoding="utf-8")


def read_commands(folder):
    return list_commands(ReportData(files=read_folder(folder)))


def change_record(folder, **changes):
    path = folder / "compare.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(record | changes), encoding="utf-8")


def test_the_commands_give_every_setting_that_was_used(make_folder):
    text, notes = read_commands(make_folder())
    first, rest = text.split("\n", maxsplit=1)

    words = shlex.split(rest.replace("\\\n", " "))

    assert words[:3] == ["cropseg", "compare", "area_2.yaml"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--from"] == "runs/area_1/model.keras"
    assert options["--source"] == "area_1.yaml"
    assert options["--labels"] == "2tiles,8tiles,20tiles"
    assert options["--modes"].split(",")[:2] == ["full", "lp_ft"]
    assert options["--folds"] == "none"
    assert options["--steps-per-epoch"] == "50"
    assert options["--learning-rate"] == "0.001"
    assert options["--config"] == "settings.yaml"
    assert shlex.split(first)[:3] == ["printf", "%s\\n", "class_weight_power: 0.25"]
    assert any("21995bfb5392" in note for note in notes)


def test_every_option_of_the_commands_exists(make_folder):
    import typer

    from cropseg.cli import app

    folder = make_folder(modes={"full": 0.6}, budgets=(4,))
    reuse = {"normalization": "target", "bands_from": "site", "gsd": "accept"}
    change_record(folder, until_flat=True, reuse=reuse | {"synonyms": {"a": ["b"]}})
    change_record(folder, from_card={"bands": ["red", "nir"]})

    text, notes = read_commands(folder)

    command = typer.main.get_command(app).commands["compare"]
    known = {name for option in command.params for name in option.opts}
    used = set(re.findall(r"--[a-z-]+", text))
    assert {"--accept-gsd", "--until-flat", "--synonyms", "--bands-from"} <= used
    assert "--card" in used
    assert any("`from_card`" in note for note in notes)
    assert used <= known


def test_what_a_shell_makes_of_the_commands_is_what_was_compared(make_folder, tmp_path):
    folder = make_folder(modes={"full": 0.6}, budgets=(4,))
    model = f"a 'b' \"c\" $HOME `id` $(id); {EVIL}\n.keras"
    settings = {"seed": 3, "class_weight_power": 0.0}
    change_record(folder, settings=settings, **{"from": model})
    script = tmp_path / "cropseg"
    script.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n", encoding="utf-8")
    script.chmod(0o700)

    text, _ = read_commands(folder)

    said = subprocess.run(
        ["sh", "-c", text],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.split("\0")
    assert said[said.index("--from") + 1] == model
    assert said[said.index("--seed") + 1] == "3"
    written = (tmp_path / "settings.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(written) == {"class_weight_power": 0.0}


def test_plans_from_files_are_asked_for_by_their_files(make_folder):
    folder = make_folder(modes={"full": 0.6}, budgets=(4,))
    plans = {"full": {"file": "plans/mine.yaml", "plan": {}}}
    change_record(folder, plans=plans)

    text, _ = read_commands(folder)

    assert "--modes plans/mine.yaml" in text


@pytest.mark.parametrize(
    "values", [(0.31, 0.69), (0.4851, 0.4853), (-0.2, 0.3), (0.0,), (5.0,), (1e-9, 1.0)]
)
def test_an_axis_holds_its_values_and_has_round_ticks_with_different_texts(values):
    axis = make_axis(values, "x")

    assert axis.low < min(values)
    assert max(values) < axis.high
    texts = [text for _, text in axis.ticks]
    assert 2 <= len(texts) == len(set(texts)) <= 8
    for value, text in axis.ticks:
        number = float(text.replace("\N{MINUS SIGN}", "-"))
        assert number == pytest.approx(value, abs=1e-12)
        assert -1e-9 <= axis.place(value) <= 1 + 1e-9


@pytest.mark.parametrize("values", [(0.1, 300), (120, 160), (1.0,), (0.35, 1.7)])
def test_a_logarithmic_axis_holds_its_values_and_has_ticks(values):
    axis = make_log_axis(values, "x")

    assert axis.low < min(values)
    assert max(values) < axis.high
    assert 1 <= len(axis.ticks) <= 9
    for value, text in axis.ticks:
        assert float(text.replace(",", "")) == pytest.approx(value)
        assert 0 <= axis.place(value) <= 1
    middle = (axis.low * axis.high) ** 0.5
    assert axis.place(middle) == pytest.approx(0.5)


def test_names_are_moved_apart_in_their_order_and_no_more_than_needed():
    heights = [50.0, 10.0, 52.0, 51.0]

    placed = spread_out(heights, gap=15)

    assert placed == pytest.approx([36.0, 10.0, 66.0, 51.0])
