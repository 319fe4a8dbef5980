"""The report in headless Chromium: every section, no error in the console, keyboard, phone, dark, paper, axe-core.

Skipped where no Chromium is found (Debian: `apt-get install chromium`). The check by axe-core is skipped where it isn't
installed; `npm pack axe-core && tar xzf axe-core-*.tgz` and SYNTHGEN_AXE=package/axe.min.js, or `npm install axe-core` in
the project's root, bring it. SYNTHGEN_SHOTS=FOLDER keeps screenshots to look at.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthgen import storage
from synthgen.config.load import load
from synthgen.jobs.order import Order
from synthgen.jobs.reports import compare, make_report
from synthgen.types import DatasetSpec
from tests.contract.test_report import SECTIONS, fake_run
from tests.contract.test_report_data import LONG, STRANGE

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
AXE = Path(os.environ.get("SYNTHGEN_AXE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")
SHOTS = os.environ.get("SYNTHGEN_SHOTS")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip
LAUNCH = """
import os, sys
reads, writes = map(int, sys.argv[1:3])
os.dup2(reads, 63), os.dup2(writes, 64), os.dup2(63, 3), os.dup2(64, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium takes commands on descriptor 3 and answers on 4."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")


class Browser:
    """One tab of headless Chromium, spoken to by its DevTools protocol over pipes."""

    def __init__(self, home: Path) -> None:
        reads, self.to = os.pipe()
        self.of, writes = os.pipe()
        command = [sys.executable, "-c", LAUNCH, str(reads), str(writes), str(CHROMIUM), *FLAGS, f"--user-data-dir={home}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "about:blank"], pass_fds=(reads, writes), **quiet)
        os.close(reads), os.close(writes)
        self.number, self.buffer, self.session, self.events = 0, b"", "", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        data = json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.of], [], [], 60)[0], "Chromium doesn't answer"
            found = os.read(self.of, 2**20)
            assert found, "Chromium is gone"
            self.buffer += found
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events = []
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def key(self, name: str) -> None:
        codes = {"Tab": 9, "Escape": 27, "End": 35, "ArrowRight": 39}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=codes[name])

    def shot(self, name: str) -> None:
        if SHOTS:
            data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
            storage.write_bytes(Path(SHOTS) / f"{name}.png", base64.b64decode(data))

    def faults(self) -> list[str]:
        """What the console holds, what was thrown, what asked a question, and what was fetched beside the page itself."""
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening")
        found = [json.dumps(event)[:500] for event in self.events if event.get("method") in told]
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return found + [url[:200] for url in urls[1:] if not url.startswith("data:")]

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self.to), os.close(self.of)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The report of a run whose classes and generators have names of every kind, and a comparison of two."""
    rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("runs")
    spec = DatasetSpec("toy", (3, 8, 8), ("cat", LONG, STRANGE, "W" * 300), False, "f" * 64)
    images, labels = rng.integers(0, 256, (80, 3, 8, 8), dtype=np.uint8), rng.integers(0, 4, 80)
    runs = [fake_run(folder / name, spec, images, labels, ("vae", "<b>generator " + "x" * 120)) for name in ("one", "two")]
    page = make_report(Order(load("digits-smoke")), runs[0])
    compare(runs, folder / "compared")
    return {"report": page, "compared": folder / "compared" / "index.html"}


@pytest.mark.parametrize("page", ["report", "compared"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_a_page_opens_from_disk_without_a_word_in_the_console(browser, pages, page, width, dark):
    browser.open(pages[page], width, dark)
    browser.shot(f"{page}-{width}{'-dark' if dark else ''}")
    assert browser.faults() == []
    assert browser.run("document.documentElement.scrollWidth") <= width  # nothing makes the page itself scroll sideways
    charts, drawn = browser.run(
        "['.chart', '.chart > .js-plotly-plot, .chart.js-plotly-plot'].map(s => document.querySelectorAll(s).length)"
    )
    assert charts == drawn >= 1
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(21, 23, 27)") == dark
    ink = browser.run("document.querySelector('.chart .xtick text').style.fill")
    assert ink == ("rgb(232, 230, 225)" if dark else "rgb(29, 31, 35)")


def test_a_phone_says_which_tables_go_on_and_shows_figures_first(browser, pages):
    browser.open(pages["report"], 390)
    shadows = browser.run(
        "[...document.querySelectorAll('.wide')].filter(w => w.scrollWidth > w.clientWidth)"
        ".map(w => getComputedStyle(w).backgroundAttachment)"
    )
    assert set(shadows) == {"local, local, scroll, scroll"}
    assert browser.run("getComputedStyle(document.querySelector('.costs tbody .barcell')).display") == "none"
    heads = browser.run("[...document.querySelectorAll('.arms thead tr:last-child th')].map(h => h.innerText)")
    assert heads.index("Difference") < heads.index("Recipe")


def test_every_section_can_be_seen(browser, pages):
    browser.open(pages["report"])
    heights = browser.run(f"{json.dumps(SECTIONS)}.map(id => document.getElementById(id).getBoundingClientRect().height)")
    assert min(heights) > 60
    assert browser.run("document.querySelectorAll('.tile').length") > 100
    assert browser.run(
        "[...document.querySelectorAll('.tile')].every(t => getComputedStyle(t).backgroundImage.startsWith('url'))"
    )
    assert browser.run("document.querySelectorAll('section b, section img').length") == 0


def test_scores_appear_under_the_pointer_and_under_the_keyboards_focus(browser, pages):
    browser.open(pages["report"])
    tip = "(() => { const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.innerText; })()"
    assert browser.run(tip) == ""
    at = browser.run(
        "(() => { const t = document.querySelectorAll('.tile.kept')[1]; t.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const r = t.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    told = browser.run(tip)
    assert "3fa9c1d2-" in told
    assert "kept" in told
    assert "threshold 0.85" in told
    assert browser.run("document.querySelectorAll('.tip .tile').length") == 2  # the sample, and the real image nearest to it
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    time.sleep(0.4)
    assert browser.run(tip) == ""

    browser.run("document.querySelector('.tiles .tile[tabindex=\"0\"]').focus()")
    first = browser.run(tip)
    assert "real, from train" in first
    browser.key("ArrowRight")
    second = browser.run(tip)
    assert second not in ("", first)
    browser.key("End")
    assert browser.run(tip) not in ("", first, second)
    browser.key("Escape")
    assert browser.run(tip) == ""
    browser.run("document.querySelector('.tiles .tile[tabindex=\"0\"]').focus()")
    row = browser.run("document.activeElement.parentElement.getAttribute('aria-label')")
    browser.key("Tab")
    assert browser.run("document.activeElement.parentElement.getAttribute('aria-label')") != row  # a stop of Tab for each row
    assert "3fa9c1d2-" in browser.run(tip)


def test_the_keyboard_goes_through_the_page_in_its_order(browser, pages):
    browser.open(pages["report"])
    seen = []
    for _ in range(14):
        browser.key("Tab")
        seen.append(browser.run("[document.activeElement.className || document.activeElement.tagName.toLowerCase(),"
                                "document.activeElement.getBoundingClientRect().top + scrollY]"))  # fmt: skip
    assert seen[0][0] == "skip"
    tops = [top for _, top in seen[1:]]
    assert tops == sorted(tops)
    assert len(set(tops)) >= 3


def test_paper_is_white_and_has_everything_open(browser, pages):
    browser.open(pages["report"], dark=True)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.run("document.querySelectorAll('details').length") >= 3
    assert browser.run("getComputedStyle(document.body).color") == "rgb(29, 31, 35)"
    assert browser.run("document.querySelector('.chart .xtick text').style.fill") == "rgb(29, 31, 35)"
    assert (
        browser.run("Math.max(...[...document.querySelectorAll('.chart .main-svg')].map(s => s.getBoundingClientRect().width))")
        <= 680
    )
    assert browser.run("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") >= 1
    browser.open(pages["report"])
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert browser.faults() == []


@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm pack axe-core, unpack it, SYNTHGEN_AXE=package/axe.min.js")
@pytest.mark.parametrize("page", ["report", "compared"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_no_fault(browser, pages, page, width, dark):
    browser.open(pages[page], width, dark)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.run(AXE.read_text(encoding="utf-8"))
    found = browser.run(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))"
    )
    assert [fault for fault in found if fault[0] in ("serious", "critical")] == []
