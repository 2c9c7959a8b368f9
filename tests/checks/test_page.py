"""The page: complete, self-contained, safe against names, and fit for a browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from cropseg.checks.check import check_manifest
from cropseg.checks.page import write_page
from cropseg.checks.reference import describe_site
from cropseg.sites.site import open_site

TILE = 64
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "rect"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
CHROMIUM_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
    *("--virtual-time-budget=5000", "--dump-dom"),
)
FRAME = """<body><iframe width="{width}" height="900" srcdoc="{page}"></iframe><script>
onload = () => {{
  const frame = document.querySelector("iframe");
  const page = frame.contentDocument, root = page.documentElement;
  const images = [...page.images];
  document.title = JSON.stringify({{
    width: frame.contentWindow.innerWidth,
    overflow: root.scrollWidth - root.clientWidth,
    images: images.length,
    broken: images.filter(image => !image.naturalWidth).length,
    heading: page.querySelector("h1").textContent,
  }});
}};
</script>"""
"""A page of another width, which reports what became of the page in it."""


class Reader(HTMLParser):
    """Reads tags, addresses and text, and that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text = [], [], [], ""
        self.open_tags = []
        self.feed(page)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open_tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "srcset", "action", "data"}:
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def manifest(make_site, tmp_path_factory):
    """Return the manifest of a site with names that try to get out of the page."""
    folder = tmp_path_factory.mktemp("page") / "a<b>&'q'"
    path = make_site(folder)
    text = path.read_text(encoding="utf-8")
    return_path = folder / "site <img src=x onerror=y>.yaml"
    return_path.write_text(
        text.replace("name: wheat", f"name: {EVIL}").replace("nir\n", "n<i>r\n"),
        encoding="utf-8",
    )
    return return_path


@pytest.fixture(scope="module")
def report(manifest, make_site, tmp_path_factory):
    source = make_site(tmp_path_factory.mktemp("source") / "s<o>urce", gain=1.4)
    reference = describe_site(open_site(source), TILE)
    return check_manifest(manifest, tile_size=TILE, reference=reference)


@pytest.fixture(scope="module")
def page_path(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "report.html"
    write_page(report, path)
    return path


@pytest.fixture(scope="module")
def page(page_path):
    return page_path.read_text(encoding="utf-8")


def test_a_page_needs_nothing_but_itself(page):
    reader = Reader(page)

    assert len(reader.addresses) == 4
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", Reader(page).text)
    assert not {"script", "link", "iframe", "object", "form"} & set(reader.tags)
    assert "default-src 'none'" in page


def test_names_are_text_and_no_tags(page):
    reader = Reader(page)

    assert EVIL in reader.text
    assert "a<b>&'q'" in reader.text
    assert "n<i>r" in reader.text
    assert "site <img src=x onerror=y>.yaml" not in page
    assert reader.handlers == []
    assert "script" not in reader.tags


def test_a_page_shows_every_finding_class_band_and_file(page, report):
    text = " ".join(Reader(page).text.split())

    assert report.findings
    for finding in report.findings:
        assert finding.code in text
        assert finding.message in text
        assert finding.remedy in text
    for row in report.list_classes():
        assert row["name"] in text
        assert f"{row['test']['pixels']:,}" in text
    for band in report.bands:
        assert f"{band.highest:,.5g}" in text
    for file in report.files:
        assert file.path in text
    assert "EPSG:32614" in text
    assert "Against s<o>urce" in text
    assert "GSD ratio 1." in text


def read_picture(address):
    kind, data = address.removeprefix("data:image/").split(";base64,")
    with io.BytesIO(base64.b64decode(data)) as stream:
        picture = matplotlib.image.imread(stream, format=kind)
    if picture.dtype != np.uint8:
        picture = np.rint(picture * 255).astype(np.uint8)
    return picture[..., :3]


def test_the_pictures_of_a_page_are_those_of_the_scene(page, report):
    pictures = [read_picture(address) for address in Reader(page).addresses]

    panels = report.looks[0].list_panels()
    assert [picture.shape for picture in pictures] == [(192, 256, 3)] * 4
    np.testing.assert_array_equal(pictures[1], panels[1].picture)
    for place, picture in enumerate(pictures):  # JPEG changes them a little
        errors = [np.abs(picture.astype(int) - p.picture).mean() for p in panels]
        assert np.argmin(errors) == place
        assert errors[place] < 16


def test_bars_of_a_histogram_have_the_shares_of_the_bins(page, report):
    heights = [float(h) for h in re.findall(r'width="4"\s+height="([\d.]+)"', page)]

    shares = np.array([band.bin_shares for band in report.bands])
    expected = shares / shares.max(axis=1, keepdims=True) * 44
    np.testing.assert_allclose(heights, expected.ravel(), atol=0.051)


def test_a_site_that_cannot_be_opened_has_a_page_with_the_reason(tmp_path, make_site):
    path = make_site(tmp_path)
    (tmp_path / "scene_0.tif").unlink()
    report = check_manifest(path)
    write_page(report, tmp_path / "report.html")

    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert "not ok" in reader.text
    assert "No file at" in reader.text
    assert "table" not in reader.tags


def test_a_site_without_labels_and_split_shows_its_images_alone(tmp_path, make_site):
    scenes = [{"image": "scene_0.tif"}]
    path = make_site(tmp_path, split=None, scenes=scenes)
    write_page(check_manifest(path, tile_size=TILE), tmp_path / "report.html")

    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert len(reader.addresses) == 1
    assert "split:" not in reader.text


def test_classes_of_a_site_without_a_split_have_one_count(tmp_path, make_site):
    report = check_manifest(make_site(tmp_path, split=None), tile_size=TILE)
    write_page(report, tmp_path / "report.html")

    text = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text

    assert "all, pixels" in text
    assert "train, pixels" not in text
    for row in report.list_classes():
        assert f"{row['all']['pixels']:,}" in text


def test_at_most_twelve_scenes_are_shown_and_the_rest_counted(tmp_path, make_site):
    path = make_site(tmp_path, num_scenes=14, height=24, width=64, split=None)
    write_page(check_manifest(path, tile_size=TILE), tmp_path / "report.html")

    reader = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))

    assert len(reader.addresses) == 3 * 12
    assert "2 more scenes are not shown" in reader.text


# In a browser.


def browse(path, folder):
    """Open a page in Chromium. Return its document and its console's lines."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *CHROMIUM_FLAGS, profile, path.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
def test_chromium_opens_the_page_without_an_error_or_a_request(page_path, tmp_path):
    document, console = browse(page_path, tmp_path)

    assert console == []  # the page's own policy reports every request there
    assert "&lt;script&gt;alert(1)" in document


@pytest.mark.browser
def test_a_request_and_an_error_would_be_seen(page, tmp_path):
    path = tmp_path / "page.html"
    picture = '<img src="http://a.example/b.png"></main>'
    path.write_text(page.replace("</main>", picture), encoding="utf-8")

    _, console = browse(path, tmp_path)

    assert "Content Security Policy" in "".join(console)


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [390, 1200])
def test_the_page_is_no_wider_than_its_window(page, tmp_path, width_px):
    path = tmp_path / "frame.html"
    frame = FRAME.format(width=width_px, page=html.escape(page))
    path.write_text(frame, encoding="utf-8")

    document, _ = browse(path, tmp_path)

    (title,) = re.findall("<title>(.*?)</title>", document)
    found = json.loads(html.unescape(title))
    assert found == {
        "width": width_px,
        "overflow": 0,
        "images": 4,
        "broken": 0,
        "heading": "a<b>&'q'",
    }
