"""The page: complete, self-contained, safe against names, and never an error."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from cropseg.comparison.report import write_report
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.folder import read_folder
from cropseg.comparison.report.markdown import render_markdown
from cropseg.comparison.report.page import render_page
from cropseg.comparison.report.panels import encode_map

EVIL = "<script>alert(1)</script>"
QUOTES = "a\"b'c & <b> $x_1$"
PIPES = "|`*_[x](javascript:1)\n# h"
VOID = {"meta", "link", "img", "br", "input", "wbr"}
FILES = ("summary.json", "compare.yaml", "results.csv", "panel.npz")


class Reader(HTMLParser):
    """Reads tags, addresses and text, and that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.attributes, self.text = [], [], [], ""
        self.open_tags, self.ids = [], []
        self.feed(page)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open_tags.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self._note(attrs)

    def _note(self, attrs):
        for name, value in attrs:
            self.attributes.append(name)
            if name in {"src", "href", "srcset", "action", "data", "xlink:href"}:
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open_tags):
            self.text += data


def read_page(folder):
    return Reader(write_report(folder).read_text(encoding="utf-8"))


def flatten(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def page(large_folder):
    return write_report(large_folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evil_folder(make_folder):
    folder = make_folder(
        classes={EVIL: "#ff0000", QUOTES: "#00ff00", PIPES: 'red" onload="x'},
        renamed={"full": EVIL, "lp_ft": f"freeze_layers:{QUOTES}", "joint": PIPES},
    )
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary |= {"site": EVIL, "source_site": QUOTES, "manifest": f"{EVIL}.yaml"}
    summary["versions"] = {EVIL: QUOTES}
    summary["runs"][0]["name"] = EVIL
    summary["failed"] = [f"{EVIL}-2tiles-draw0"]
    summary["method"]["covers"] = [EVIL, QUOTES]
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def test_a_page_needs_nothing_but_itself(page):
    reader = Reader(page)

    kinds = {address.split(":")[0].split("#")[0] for address in reader.addresses}
    assert kinds == {"data", ""}  # pictures, and places of the page itself
    assert not re.search(r"https?:|@import|url\(", page)
    assert not {"link", "iframe", "object", "form", "base"} & set(reader.tags)
    assert reader.tags.count("script") == 1
    assert len(reader.ids) == len(set(reader.ids))


def test_only_the_pages_own_script_may_run(page):
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    policy = re.search(r'Security-Policy"\s+content="([^"]*)"', page)[1]

    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_a_large_page_is_smaller_than_three_megabytes(page):
    assert 500_000 < len(page.encode()) < 3_000_000


def test_pictures_of_the_largest_budget_stay_when_all_would_be_too_large(
    large_folder, monkeypatch
):
    monkeypatch.setattr("cropseg.comparison.report.panels.MAX_BYTES", 500_000)

    page = write_report(large_folder).read_text(encoding="utf-8")

    assert "All predictions with 2 tiles" not in page
    assert 'alt="Prediction of zero_shot with 20 tiles"' in page
    assert "2 budget(s) are left out here" in page


def test_the_answer_stands_before_everything_else(page, large_folder):
    summary = json.loads((large_folder / "summary.json").read_text(encoding="utf-8"))
    body = page[page.index("<body>") :]

    answer = body.index(summary["answer"])

    assert answer < min(
        body.index(tag) for tag in ("<svg", "<table", "<section", "<dl")
    )


def test_every_mode_budget_class_and_number_is_there(page, large_folder):
    summary = json.loads((large_folder / "summary.json").read_text(encoding="utf-8"))
    text = flatten(Reader(page).text).replace("\N{MINUS SIGN}", "-")

    for budget in summary["budgets"]:
        for mode in budget["modes"]:
            low, high = mode["interval"]
            assert mode["mode"] in text
            assert f"{mode['miou_mean']:.3f}" in text
            assert f"{low:.3f} to {high:.3f}" in text
            assert f"{mode['calibration']['ece']:.3f}" in text
            assert f"{mode['fields']['accuracy']:.0%}" in text
        for item in budget["differences"]:
            assert f"{item['miou']:+.3f}" in text
            assert f"{item['low']:+.3f} to {item['high']:+.3f}" in text
    for item in summary["classes"]:
        assert item["name"] in text
    for sentence in (
        *summary["method"]["covers"],
        *summary["method"]["does_not_cover"],
    ):
        assert sentence in text
    for text_of in ("families", "classes", "known"):
        assert summary["method"][text_of] in text
    assert "could have shown is 0.041" in text
    assert "It is this: what a test finds four times in five." in text
    assert "joint is without 2tiles" in text
    assert "joint lacks draw 1, which failed." in text
    assert "IoU of full minus that of scratch, with 20 tiles" in text
    assert "+0.062 -0.010 to +0.135" in text
    assert "Not design-based. The test blocks are no probability sample" in text
    assert "not reached" in text
    assert "2 run(s) failed" in text
    assert "No label pixel in the test blocks, so no score: hay." in text
    assert "keras" in text
    assert "21995bfb5392" in text
    assert "Not in this report" not in text


def test_all_figures_have_words_axes_and_a_caption(page):
    charts = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)

    assert len(charts) == 2 + 3 + 3 + 10 + 3
    for chart in charts:
        tree = ET.fromstring(chart)  # noqa: S314 - our own page
        texts = ["".join(item.itertext()) for item in tree.iter("text")]
        assert tree.get("role") == "img"
        assert len(tree.get("aria-label")) > 40
        assert any(
            re.search(r"mIoU|share that is right|training loss", text) for text in texts
        )
        assert any(
            re.search(r"tiles|seconds|mIoU|probability|steps", text) for text in texts
        )
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert all("<figcaption>" in figure for figure in figures)
    images = re.findall(r"<img[^>]*>", page)
    named = [image for image in images if 'id="stage' not in image]
    assert all(re.search(r'alt="[^"]+"', image) for image in named)


def test_modes_differ_by_more_than_colour(page):
    legend = re.search(r'<div class="keys".*?</div>', page, re.DOTALL)[0]
    signs = re.findall(r"<svg.*?</svg>", legend, re.DOTALL)

    plain = {
        re.sub(r'class="series c\d+|data-series="\d+"', "", sign) for sign in signs
    }

    assert len(signs) == len(plain) == 10


def test_names_are_text_in_the_page_and_in_its_figures(evil_folder):
    reader = read_page(evil_folder)
    page = (evil_folder / "report.html").read_text(encoding="utf-8")

    for name in (EVIL, QUOTES, " ".join(PIPES.split())):
        assert name in flatten(reader.text)
    assert not [name for name in reader.attributes if name.startswith("on")]
    assert reader.tags.count("script") == 1
    assert "b" not in reader.tags
    assert "<script>alert" not in page
    assert 'red"' not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)  # noqa: S314 - our own page


@pytest.mark.parametrize("content", [None, b"", b"\xff{[", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_damaged_file_is_told_and_no_error(
    small_folder, tmp_path, name, content
):
    folder = tmp_path / "folder"
    shutil.copytree(small_folder, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)

    text = flatten(read_page(folder).text)

    told = {
        "summary.json": "summary.json is missing or damaged",
        "compare.yaml": "compare.yaml is missing, which says what was compared",
        "results.csv": "full",
        "panel.npz": "panel.npz, or the runs' predictions for it, are missing",
    }
    assert told[name] in text


def test_damaged_runs_are_left_out(make_folder):
    folder = make_folder(modes={"full": 0.6, "scratch": 0.4}, budgets=(4,), draws=1)
    runs = sorted(folder.glob("runs/*"))
    (runs[0] / "history.csv").write_bytes(b"epoch,step\n1\n\xff")
    (runs[0] / "counts.npz").write_bytes(b"")
    np.savez(runs[1] / "counts.npz", panel=np.zeros((3, 3), np.uint8))
    (runs[1] / "history.csv").write_text("epoch,step,loss\n1,50,nan\n2,x,y\n3,150\n")

    text = flatten(read_page(folder).text)

    assert "How the runs learned: No run's history is there." in text
    assert "On the map: panel.npz, or the runs' predictions" in text


def test_an_empty_folder_has_a_page_that_says_so(tmp_path):
    text = flatten(read_page(tmp_path).text)

    assert "summary.json is missing or damaged, so there is no answer." in text
    assert "Not in this report" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.md",
    ]


def list_places(document, place=()):
    """Return the place of every value in a document, one for each set of keys."""
    yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from list_places(value, (*place, key))
    if isinstance(document, list) and document:
        yield from list_places(document[0], (*place, 0))


SLOW = ("x", [], {}, -1, [None], [[1], "x"])


@pytest.mark.parametrize(
    "value", [None, *(pytest.param(value, marks=pytest.mark.slow) for value in SLOW)]
)
def test_no_value_of_the_summary_is_needed(make_folder, value):
    folder = make_folder(
        modes={"full": 0.6, "zero_shot": 0.4},
        classes={"a": "#111111", "b": "#222222"},
        budgets=(2,),
        draws=1,
        side=16,
    )
    path = folder / "summary.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    files = read_folder(folder)
    places = [place for place in list_places(whole) if place]
    assert len(places) > 100
    for place in places:
        summary = json.loads(json.dumps(whole))
        holder = summary
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        data = ReportData(files=replace(files, summary=summary))
        assert render_page(data).endswith("</html>")
        assert render_markdown(data).startswith("# From")


@pytest.mark.parametrize("value", [None, "x", [], {}, -1])
def test_no_value_of_the_record_is_needed(make_folder, value):
    folder = make_folder(modes={"full": 0.6}, budgets=(2,), draws=1, side=32)
    path = folder / "compare.yaml"
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in whole:
        path.write_text(yaml.safe_dump(whole | {key: value}), encoding="utf-8")
        write_report(folder)


def test_a_summary_without_measures_has_a_page_without_their_parts(make_folder):
    text = flatten(read_page(make_folder(measures=False)).text)

    assert "full" in text
    assert "What is forgotten: Area 1 was not scored again" in text
    assert "Hectares per crop: No areas were estimated." in text
    assert "Bars go from the lowest to the highest draw, and are no intervals" in text
    assert "None" not in text


def test_few_blocks_show_a_range_and_no_interval(make_folder):
    text = flatten(read_page(make_folder(num_blocks=2, draws=2)).text)

    assert "no interval: there are 2 test blocks, and an interval needs 8" in text
    assert "95 % interval over" not in text
    assert "are no intervals" in text


def test_one_mode_at_one_budget_has_a_page(make_folder):
    reader = read_page(make_folder(modes={"full": 0.5}, budgets=(1,), draws=1))

    assert "With 1 tile" in flatten(reader.text)
    assert "logarithmic" not in flatten(reader.text)[: reader.text.index("What each")]


def test_a_comparison_of_which_every_run_failed_has_a_page(make_folder):
    folder = make_folder(
        modes={"full": 0.5}, budgets=(2, 4), failed=[("full", 2, 0), ("full", 4, 0)],
        draws=1,
    )  # fmt: skip

    text = flatten(read_page(folder).text)

    assert "No run finished." in text
    assert "2 run(s) failed" in text


@pytest.mark.parametrize(
    ("smallest", "sentence"),
    [
        (0.0412, "24 test blocks could have shown is 0.041"),
        (1, "no difference of mIoU could have been shown, however large"),
    ],
)
def test_the_smallest_difference_that_could_be_shown_is_told(
    make_folder, smallest, sentence
):
    folder = make_folder(modes={"full": 0.5, "scratch": 0.4}, budgets=(4,))
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["method"]["smallest_difference"] = smallest
    path.write_text(json.dumps(summary), encoding="utf-8")

    assert flatten(read_page(folder).text).count(sentence) == 2


def test_scores_of_an_oracle_are_marked(make_folder):
    folder = make_folder(modes={"full": 0.5}, budgets=(4,))
    path = folder / "summary.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"validation": "none"', '"validation": "oracle"'))

    assert "Oracle: the best epoch was chosen" in flatten(read_page(folder).text)


def test_a_report_written_twice_is_the_same(large_folder):
    first = write_report(large_folder).read_bytes()
    text = (large_folder / "report.md").read_bytes()

    assert write_report(large_folder).read_bytes() == first
    assert (large_folder / "report.md").read_bytes() == text


def read_picture(address):
    with io.BytesIO(base64.b64decode(address.split("base64,")[1])) as stream:
        picture = imread(stream, format="png")
    return np.rint(picture[..., :3] * 255).astype(np.uint8)


@pytest.mark.parametrize("num_colors", [2, 3, 5, 16, 17, 256])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 16)])
def test_a_map_has_the_colours_of_its_ids(num_colors, shape):
    random = np.random.default_rng(3)
    ids = random.integers(0, num_colors, shape).astype(np.uint8)
    colors = random.integers(0, 256, (num_colors, 3))

    picture = read_picture(encode_map(ids, [tuple(map(int, c)) for c in colors]))

    np.testing.assert_array_equal(picture, colors[ids])


def test_map_panels_show_classes_errors_and_their_share(make_folder):
    classes = {"a": "#ff0000", "b": "#00ff00"}
    folder = make_folder(modes={"full": 0.6}, budgets=(4,), draws=1, classes=classes)
    labels = np.array([[0, 1, 1], [255, 0, 1]], np.uint8)
    image = np.zeros((2, 3, 3), np.uint8)
    np.savez(folder / "panel.npz", image=image, labels=labels)
    predicted = np.array([[0, 1, 0], [255, 2, 1]], np.uint8)  # 2 is other
    for run in folder.glob("runs/*"):
        np.savez(run / "counts.npz", panel=predicted)

    page = write_report(folder).read_text(encoding="utf-8")

    found = {
        name: read_picture(re.search(rf'id="{name}" src="([^"]*)"', page)[1])
        for name in ("panel-labels", "prediction-0-0", "errors-0-0")
    }
    red, green, black, white = (255, 0, 0), (0, 255, 0), (16, 16, 16), (255,) * 3
    right, wrong = (0xD5, 0xDB, 0xE3), (0x9C, 0x17, 0x17)
    expected = {
        "panel-labels": [[red, green, green], [white, red, green]],
        "prediction-0-0": [[red, green, red], [white, black, green]],
        "errors-0-0": [[right, right, wrong], [white, wrong, right]],
    }
    for name, picture in found.items():
        np.testing.assert_array_equal(picture, expected[name])
    assert "60% of the labelled pixels are right" in page


def test_folders_outside_the_comparison_are_not_read(make_folder, tmp_path):
    folder = make_folder(modes={"full": 0.6}, budgets=(4,), draws=1)
    (run,) = folder.glob("runs/*")
    other = tmp_path / "secret"
    run.rename(other)
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["runs"][0]["folder"] = str(other)
    path.write_text(json.dumps(summary), encoding="utf-8")

    assert "No run's history is there." in flatten(read_page(folder).text)


def test_a_folder_of_the_older_version_has_a_page(make_folder):
    folder = make_folder(modes={"full": 0.6, "pixel_forest": 0.5}, measures=False)
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    kept = ("answer", "site", "source_site", "draws", "settings", "failed", "budgets")
    path.write_text(json.dumps({name: summary[name] for name in kept}))
    for run in summary["runs"]:
        record = {"labels": run["labels"], "draw": run["draw"], "command": "transfer"}
        key = "command" if run["mode"] == "pixel_forest" else "mode"
        text = yaml.safe_dump(record | {key: run["mode"]})
        (folder / run["folder"] / "run.yaml").write_text(text, encoding="utf-8")

    text = flatten(read_page(folder).text)

    assert "How the runs learned:" not in text  # it is there
    assert "small points are the single draws" in text
    assert "On the map:" not in text
    assert "soybeans" in text


@pytest.mark.parametrize(
    ("modes", "axis"),
    [
        (("full", "scratch", "zero_shot"), "mIoU gained over zero_shot"),
        (("full", "scratch"), "mIoU gained over scratch"),
        (("full", "head_only"), "mIoU on the new area"),
        (("full", "scratch that fails once"), "mIoU on the new area"),
    ],
)
def test_cost_stands_against_gain_over_the_simplest_baseline(make_folder, modes, axis):
    names = [mode.split()[0] for mode in modes]
    failed = [("scratch", 2, 0)] if "fails" in modes[1] else []
    folder = make_folder(
        modes=dict.fromkeys(names, 0.5), budgets=(2, 4), draws=1, failed=failed
    )

    page = write_report(folder).read_text(encoding="utf-8")

    charts = re.findall(r"<svg[^>]*Gain against seconds.*?</svg>", page, re.DOTALL)
    assert len(charts) == 2
    assert all(f">{axis}</text>" in chart for chart in charts)


def test_with_folds_no_block_is_called_unseen_by_all_runs(make_folder):
    folder = make_folder(modes={"full": 0.6}, budgets=(4,), side=16)
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))

    before = flatten(read_page(folder).text)
    path.write_text(json.dumps(summary | {"folds": 5}), encoding="utf-8")
    text = flatten(read_page(folder).text)

    assert "no run has seen" in before
    assert "no run has seen" not in text
    assert "the runs of this fold have not seen" in text


def test_intervals_of_differences_are_not_called_corrected(large_folder):
    text = flatten(read_page(large_folder).text)

    assert "Intervals are of single differences, without it." in text
