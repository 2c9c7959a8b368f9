"""The page in a headless Chromium, steered through a pipe: keys, sizes, requests."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import numpy as np
import pytest

from cropseg.comparison.report import write_report

pytestmark = pytest.mark.browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
    "--force-color-profile=srgb",
)
TIMEOUT_S = 60


class Browser:
    """One page in one browser.

    Attributes:
        requests: Addresses that the page asked for, its own not among them.
        problems: What the console says, errors that nothing caught, and reports of the
            page's policy.
    """

    def __init__(self, profile):
        # Chromium reads commands from descriptor 3 and answers on 4.
        command_read, self._write = os.pipe()
        self._read, answer_write = os.pipe()
        redirect = f'exec "$@" 3<&{command_read} 4>&{answer_write}'
        self._process = subprocess.Popen(
            [
                *("bash", "-c", redirect, "chromium"),
                *(CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        self._rest, self._number, self._session = b"", 0, None
        self.requests, self.problems, self._events = [], [], []
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(item["targetId"] for item in pages if item["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.send("Browser.close")
        self._process.wait(TIMEOUT_S)
        os.close(self._write)
        os.close(self._read)

    def send(self, method, **params):
        """Send a command, and return its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self._note(found)

    def wait(self, event):
        """Wait until something was reported."""
        while event not in self._events:
            self._note(self._receive())

    def open(self, path, *, width=1280, height=900):
        """Open a file in a window of this size, in pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.requests, self.problems, self._events = [], [], []
        self.send("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")
        self.requests.remove(path.as_uri())

    def run(self, script):
        """Return what a script gives in the page."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key, code):
        """Press a key, as a person does."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
            )

    def _receive(self):
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError("Chromium did not answer.")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise TimeoutError("Chromium ended.")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif method in {
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        }:
            self.problems.append(json.dumps(params))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def large_page(large_folder):
    return write_report(large_folder)


def test_no_request_leaves_the_page_and_no_error_is_told(browser, large_page):
    browser.open(large_page)

    broken = "[...document.images].filter(item => !item.naturalWidth).length"
    assert browser.requests == []
    assert browser.problems == []
    assert browser.run("document.images.length") > 60
    assert browser.run(broken) == 0


@pytest.mark.parametrize(
    "planted",
    [
        '<img src="http://a.example/b.png">',
        "<script>fetch('http://a.example')</script>",
        '<img src="data:," onerror="alert(1)">',
        "<style>main { background: url(http://a.example/c.png) }</style>",
    ],
)
def test_a_request_or_a_foreign_script_is_refused_and_seen(
    browser, large_page, tmp_path, planted
):
    path = tmp_path / "page.html"
    page = large_page.read_text(encoding="utf-8")
    path.write_text(page.replace("</main>", f"{planted}</main>"), encoding="utf-8")

    browser.open(path)

    browser.run("new Promise(done => setTimeout(done, 100))")
    assert "Content Security Policy" in "".join(browser.problems)


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
@pytest.mark.parametrize(
    "options",
    [
        {"side": 256},
        {"measures": False},
        {
            "classes": {f"{'a very long name ' * 4}{i}": "#123456" for i in "ab"},
            "renamed": {
                "full": "freeze_layers:" + "encoder_1_*," * 12,
                "joint": "m" * 60,
            },
            "budgets": (4,),
        },
    ],
    ids=["large", "bare", "long names"],
)
def test_the_page_is_no_wider_than_its_window(browser, make_folder, options, width):
    path = write_report(make_folder(**options))

    browser.open(path, width=width)

    root = "document.documentElement"
    assert browser.run("innerWidth") == width
    assert browser.run(f"{root}.scrollWidth") <= browser.run(f"{root}.clientWidth")


def read_stage(browser):
    """Return how much of the left picture is cut off, and what both pictures are."""
    script = """(() => {
      const left = document.getElementById("stage-left");
      const right = document.getElementById("stage-right");
      return [getComputedStyle(left).clipPath, left.alt, right.alt,
              left.naturalWidth > 0 && right.naturalWidth > 0];
    })()"""
    return browser.run(script)


def shoot_stage(browser):
    """Return the pixels of the stage."""
    import base64
    import io

    from matplotlib.image import imread

    box = browser.run(
        """(() => {
        const box = document.querySelector(".stage").getBoundingClientRect();
        return {x: box.x + scrollX, y: box.y + scrollY, width: box.width,
                height: box.height, scale: 1}; })()"""
    )
    shot = browser.send("Page.captureScreenshot", clip=box, captureBeyondViewport=True)
    return imread(io.BytesIO(base64.b64decode(shot["data"])), format="png")


def test_the_slider_moves_by_keyboard_and_changes_the_picture(browser, large_page):
    browser.open(large_page, width=360)
    browser.run("document.getElementById('wipe').focus()")
    before, picture = read_stage(browser), shoot_stage(browser)

    for _ in range(20):
        browser.press("ArrowRight", 39)

    after, moved = read_stage(browser), shoot_stage(browser)
    assert before[0] == "inset(0px 50% 0px 0px)"
    assert after[0] == "inset(0px 30% 0px 0px)"
    differs = (picture != moved)[20:-20, 20:-20].any(axis=(0, 2))  # no round corners
    columns = (np.nonzero(differs)[0] + 20) / picture.shape[1]
    assert 0.48 < columns.min() < 0.52
    assert 0.68 < columns.max() < 0.72
    told = "document.getElementById('wipe').getAttribute('aria-valuetext')"
    assert browser.run(told) == "70 per cent labels, the rest prediction"
    browser.press("Home", 36)
    assert read_stage(browser)[0] == "inset(0px 100% 0px 0px)"


def test_the_slider_is_reached_by_tab_and_has_a_label(browser, large_page):
    browser.open(large_page)
    browser.run("document.getElementById('panel-mode').focus()")

    browser.press("Tab", 9)

    label = "document.activeElement.labels[0].textContent"
    assert browser.run("document.activeElement.id") == "wipe"
    assert "arrow keys" in browser.run(label)


def test_mode_side_and_budget_of_the_map_can_be_chosen(browser, large_page):
    browser.open(large_page)
    first = read_stage(browser)

    browser.run(
        """for (const [id, value] of [
          ["panel-left", "image"], ["panel-right", "errors"], ["panel-mode", "2-1"]
        ]) {
          const item = document.getElementById(id);
          item.value = value;
          item.dispatchEvent(new Event("change"));
        }"""
    )

    second = read_stage(browser)
    assert first[1:3] == ["Labels of the panel", "Prediction of full with 20 tiles"]
    assert second[1] == "Image of the panel"
    assert second[2].startswith("Errors of lp_ft with 2 tiles")
    assert first[3]
    assert second[3]


def test_the_confusion_of_the_chosen_mode_alone_is_shown(browser, large_page):
    browser.open(large_page)
    shown = """[...document.querySelectorAll("[data-pane^=confusion]")].filter(
        item => item.checkVisibility()).map(item => item.dataset.pane)"""
    assert browser.run(shown) == ["confusion-0"]

    browser.run("document.getElementById('confusion-mode').focus()")
    browser.press("ArrowDown", 40)

    assert browser.run(shown) == ["confusion-1"]


def test_a_mode_is_lit_up_in_every_figure_and_dark_again(browser, large_page):
    browser.open(large_page)
    count = "document.querySelectorAll('.chart .faint').length"
    lit = "document.querySelectorAll('.chart [data-series=\"2\"].faint').length"

    browser.run("document.querySelector('[data-key=\"2\"]').click()")

    assert browser.run(count) > 50
    assert browser.run(lit) == 0
    browser.run("document.querySelector('[data-key=\"2\"]').click()")
    assert browser.run(count) == 0


def test_all_that_is_folded_but_marked_for_print_is_on_paper(browser, large_page):
    browser.open(large_page)
    count = "document.querySelectorAll('details.print:not([open])').length"
    assert browser.run(count) > 0

    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(count) == 0

    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(count) > 0


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d");
  const measure = (color, below) => {
    for (const style of [below, color]) {
      canvas.fillStyle = style; canvas.fillRect(0, 0, 1, 1);
    }
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].map(value => value / 255);
    const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92
                                : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrasts = [];
  for (const place of [".wide", "body"]) {
    const below = getComputedStyle(document.querySelector(place)).backgroundColor;
    for (const item of document.querySelectorAll("td, th, caption, p, dt, .name")) {
      const style = getComputedStyle(item);
      const ink = item.closest("svg") ? style.fill : style.color;
      const pair = [measure(style.backgroundColor, below), measure(ink, below)];
      contrasts.push((Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05));
    }
  }
  return Math.min(...contrasts);
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_told_from_their_ground(browser, large_page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.send("Emulation.setEmulatedMedia", features=features)
    browser.open(large_page)

    contrast = browser.run(CONTRAST)

    browser.send("Emulation.setEmulatedMedia", features=[])
    assert contrast >= 4.5  # WCAG 2.2, 1.4.3
