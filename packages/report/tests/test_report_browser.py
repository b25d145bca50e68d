"""The pages in a real browser: no error in its console, tables that sort, themes, links, and no scrolling sideways.

Chromium is driven through a pair of pipes (`--remote-debugging-pipe`: JSON texts with a zero byte behind each), for
which the standard library is enough. Run it with `make test ARGS="-m browser"`; Debian's package is called chromium.
"""

import csv
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

import pytest

from kit_report import write_report

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 600.0  # on a machine that does much else; it only guards against waiting for ever
PHONE = (375, 800)
DESK = (1280, 900)


def repository() -> Path:
    return next(folder for folder in Path(__file__).resolve().parents if (folder / "poetry.lock").exists())


# The browser expects its ends of the pipes as descriptors 3 and 4; a shell can only name those below 10.
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab of a headless Chromium, and what its console said since the page was opened."""

    def __init__(self, program: str, profile: Path) -> None:
        there, self._write = os.pipe()
        self._read, back = os.pipe()
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(there), str(back), *command],
            pass_fds=(there, back),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.said: list[str] = []
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, path: Path, size: tuple[int, int] = DESK, dark: bool = False) -> None:
        """Open a file in a window of this size and wait until it is loaded."""
        self.said = []
        phone = size == PHONE
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events = []
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)  # it ends when its pipe does
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            got = os.read(self._read, 1 << 20)
            assert got, "the browser ended"
            self._buffer += got
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.consoleAPICalled" or method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(parameters)[:500])
        elif method == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "data:")):
            self.said.append(f"asked the network for {parameters['request']['url']}")
        return message


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of this repository's own results, with made-up runs that have all that a run can have."""
    runs = tmp_path_factory.mktemp("runs")
    names = [f"class number {number}" for number in range(40)]
    summary = {
        "metric": "macro_f1", "score": 0.5, "interval": [0.4, 0.6], "n": 100, "seconds": 12.5, "parameters": 123456,
        "genre": {"classes": names, "f1": [i / 40 for i in range(40)], "confusion": [[i % 7 for i in range(40)]] * 40},
        "by_size": {f"{10 * i} to {10 * i + 9}": {"n": i, "tau": 0.5} for i in range(5)},
    }  # fmt: skip
    for name, program in (
        ("x", "ntua-lab"),
        ("a-name-that-is-so-long-that-no-phone-could-ever-show-it-on-one-line", "pytest"),
    ):
        folder = runs / name
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"preset": "p", "config": {"key" * 40: "value" * 60, "list": [1] * 90}})
        )
        (folder / "manifest.json").write_text(json.dumps({"argv": [program, "train", "/long/path" * 20]}))
        lines = [
            {"part": f"fold{k}/" + "n" * 60, "step": s, "loss": 1 / (s + k + 1)} for k in range(9) for s in range(9)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "DONE").write_text("")
    out = tmp_path_factory.mktemp("report") / "report"
    assert not write_report(repository(), out, [runs]).warnings
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed; on Debian: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_every_page_loads_without_a_word_in_the_console_and_fits_a_phone(browser: Browser, report: Path) -> None:
    pages = sorted(report.rglob("*.html"))
    assert len(pages) == 9
    for path in pages:
        for size in (PHONE, DESK):
            browser.open(path, size)
            assert not browser.said, (path, browser.said)
            width = browser.ask("document.documentElement.scrollWidth")
            assert width <= size[0], f"{path} is {width} px wide in a window of {size[0]}"
        assert browser.ask("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert browser.ask("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size") == browser.ask(
            "document.querySelectorAll('[id]').length"
        )


def test_every_link_leads_to_a_page(browser: Browser, report: Path) -> None:
    seen, waiting = set(), [report / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        browser.open(path)
        for url in browser.ask("[...document.querySelectorAll('a[href]')].map((a) => a.href.split('#')[0])"):
            assert url.startswith("file://"), url
            target = Path(url.removeprefix("file://"))
            assert target.is_file(), f"{path}: {url}"
            if target.suffix == ".html":
                waiting.append(target)
    assert seen == set(report.rglob("*.html"))


def test_a_table_sorts_by_numbers_both_ways_and_says_so(browser: Browser, report: Path) -> None:
    with (repository() / "solutions" / "ai4code" / "RESULTS.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["folds"] == "5 by ancestor"]
    browser.open(report / "ai4code" / "index.html")
    table = "[...document.querySelectorAll('table')].find((t) => t.textContent.includes('lambdarank'))"

    def click(name: str) -> None:
        clicked = browser.ask(
            f"(() => {{ const b = [...{table}.querySelectorAll('th button')].find((b) => b.textContent === {name!r});"
            " b.focus(); b.click(); return document.activeElement === b })()"
        )
        assert clicked, "a heading is a button that can have the focus"

    def order() -> list[str]:
        found: list[str] = browser.ask(f"[...{table}.tBodies[0].rows].map((r) => r.cells[0].textContent)")
        return found

    def sorting() -> list[str | None]:
        found: list[str | None] = browser.ask(f"[...{table}.querySelectorAll('th[aria-sort]')].map((t) => t.ariaSort)")
        return found

    by_seconds = [row["preset"] for row in sorted(rows, key=lambda row: float(row["seconds"]))]
    assert sorting() == []
    click("seconds")
    assert (order(), sorting()) == (by_seconds[::-1], ["descending"])
    click("seconds")
    assert (order(), sorting()) == (by_seconds, ["ascending"])
    click("preset")
    assert (order(), sorting()) == (sorted(row["preset"] for row in rows), ["ascending"])
    assert not browser.said


def test_empty_cells_sort_last_in_both_directions(browser: Browser, report: Path) -> None:
    browser.open(report / "yandex-artists" / "index.html")
    script = """(() => {
      const table = document.querySelector('table.sortable');
      const button = [...table.querySelectorAll('th button')].find((b) => b.textContent === 'public');
      const column = button.parentElement.cellIndex;
      const read = () => [...table.tBodies[0].rows].map((r) => r.cells[column].textContent);
      button.click(); const down = read(); button.click(); return [down, read()];
    })()"""
    down, up = browser.ask(script)
    assert down == ["0.529", "0.491", "0.485", "0.482", ""]
    assert up == ["0.482", "0.485", "0.491", "0.529", ""]


def test_the_theme_follows_the_system_until_somebody_chooses(browser: Browser, report: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    button = "document.querySelector('[data-theme-button]')"
    browser.open(report / "index.html")
    light = browser.ask(paper)
    browser.open(report / "index.html", dark=True)
    dark = browser.ask(paper)
    assert light != dark
    chosen = [
        (browser.ask(f"{button}.click()"), browser.ask(f"{button}.textContent"), browser.ask(paper)) for _ in range(3)
    ]
    assert [one[1:] for one in chosen] == [
        ("Theme: light", light), ("Theme: dark", dark), ("Theme: as the system", dark),
    ]  # fmt: skip
    assert not browser.said


def test_text_can_be_read_in_both_themes(browser: Browser, report: Path) -> None:
    """Contrast of text and its ground, as WCAG 2 defines it: 4.5 for text, 3 for marks beside words."""
    script = """(() => {
      const style = getComputedStyle(document.documentElement);
      const parts = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi)
        .map((x) => parseInt(x, 16) / 255);
      const light = (c) => c.map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
      const contrast = (a, b) => { const [x, y] = [light(parts(a)), light(parts(b))].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05); };
      const grounds = ["--paper", "--raised", "--shade"];
      const least = (names) => Math.min(...names.flatMap((n) => grounds.map((g) => contrast(n, g))));
      return [least(["--ink", "--soft", "--accent"]), least(["--floor", "--seed", "--public", "--ours"])];
    })()"""
    for dark in (False, True):
        browser.open(report / "index.html", dark=dark)
        text, marks = browser.ask(script)
        assert text >= 4.5
        assert marks >= 3.0
