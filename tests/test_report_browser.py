"""The HTML report in a real browser: console, light and dark, paper, mouse, and for screen readers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, MISSING, Browser
from PIL import Image, ImageStat
from report_tools import full_report, large_report

from condensec.report import html

AXE = "axe-core@4.14.1"
CACHE = Path(__file__).parent.parent / ".cache" / "axe"
pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    html.write_html(full_report(), path)
    return path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path / "profile") as opened:
        yield opened


def test_the_page_is_complete_and_the_console_silent(page: Path, browser: Browser) -> None:
    browser.open(page)
    report = full_report()
    assert browser.console == []
    assert browser.requests == [page.as_uri()], "nothing but the file itself is loaded"
    counts = browser.run(
        "['.strip', '.chart', '.box', '.heat tbody tr', 'section h2[id]']"
        ".map(s => document.querySelectorAll(s).length)"
    )
    assert counts == [len(report.layers), 4, len(report.graph), len(report.sensitivity), 12]
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_broken_page_would_be_noticed(tmp_path: Path, browser: Browser, page: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><title>x</title><script>no.such.thing()</script>")
    browser.open(bad)
    assert browser.console
    browser.console.clear()
    tampered = tmp_path / "tampered.html"
    tampered.write_text(page.read_text().replace('"use strict";', '"use strict"; document.title = "gone";'))
    browser.open(tampered)
    assert any("Content Security Policy" in line for line in browser.console)
    assert browser.run("document.title") != "gone"
    assert browser.run("getComputedStyle(document.querySelector('.graph')).display") == "block", "still drawn"


def test_it_is_bright_in_light_and_dim_in_dark(page: Path, browser: Browser, tmp_path: Path) -> None:
    brightness = {}
    for name in ("light", "dark"):
        browser.scheme(name)
        browser.open(page)
        browser.shot(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (1280, 900)
            brightness[name] = ImageStat.Stat(image.convert("L")).mean[0]
    assert browser.console == []
    assert brightness["light"] > 215
    assert brightness["dark"] < 50


def test_it_prints_on_a_few_pages(page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(page)
    browser.paper(tmp_path / "report.pdf")
    paper = (tmp_path / "report.pdf").read_bytes()
    assert paper.startswith(b"%PDF")
    assert 3 <= paper.count(b"/Type /Page\n") <= 12
    browser.scheme("light", "print")
    hidden = "['nav', '.tools'].map(s => getComputedStyle(document.querySelector(s)).display)"
    assert browser.run(hidden) == ["none", "none"]


def test_it_fits_a_telephone(page: Path, browser: Browser) -> None:
    browser.resize(390, 800)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") == 390


def view(browser: Browser) -> list[float]:
    text: str = browser.run("document.querySelector('svg.graph').getAttribute('viewBox')")
    return [float(part) for part in text.split()]


def test_the_graph_is_moved_zoomed_and_searched(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    html.write_html(large_report(500), path)
    browser.open(path)
    browser.run("document.documentElement.style.scrollBehavior = 'auto'")
    browser.run("document.getElementById('graph').scrollIntoView()")
    frame: dict[str, float] = browser.run(
        "document.getElementById('graph-stage').getBoundingClientRect().toJSON()"
    )
    x, y = frame["x"] + 300, frame["y"] + 200
    start = view(browser)
    browser.mouse("Pressed", x, y, clickCount=1)
    browser.mouse("Moved", x, y - 150)
    browser.mouse("Released", x, y - 150, clickCount=1)
    moved = view(browser)
    scale = frame["width"] / start[2]
    assert moved[1] - start[1] == pytest.approx(150 / scale, abs=1)
    assert moved[2:] == start[2:]
    browser.mouse("Wheel", x, y, deltaX=0, deltaY=-200)  # the click has focused the drawing
    assert view(browser)[2] < moved[2]
    browser.run("document.getElementById('graph-all').click()")
    whole = view(browser)
    last: float = browser.run("(b => b.y + b.height)([...document.querySelectorAll('.box')].pop().getBBox())")
    assert whole[1] <= 0
    assert whole[1] + whole[3] >= last
    browser.run(
        "field = document.getElementById('graph-find'); field.value = 'layers.321/';"
        "field.dispatchEvent(new Event('input'))"
    )
    assert browser.run("document.getElementById('graph-found').textContent") == "1 of 1"
    box: list[float] = browser.run("(b => [b.y, b.height])(document.querySelector('.box.hit').getBBox())")
    found = view(browser)
    assert found[1] < box[0] < box[0] + box[1] < found[1] + found[3], "the box found is in sight"
    assert browser.console == []


def axe() -> str:
    """The accessibility checker's source; fetched by name once, never part of the project."""
    source = CACHE / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"no npm on PATH to fetch {AXE} with; install the Debian package 'npm'")
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(CACHE), "--no-save", "--no-audit", "--no-fund", AXE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            pytest.skip(f"npm could not fetch {AXE}")
    return source.read_text()


def violations(browser: Browser) -> list[Any]:
    browser.run(axe() + "\n;1")
    found: list[Any] = browser.run("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screen_readers_and_weak_eyes_can_read_it(page: Path, browser: Browser, scheme: str) -> None:
    source = axe()
    assert "axe" in source
    browser.scheme(scheme)
    browser.open(page)
    assert violations(browser) == []


def test_the_checker_would_find_something(browser: Browser, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    text = page.read_text()
    bad.write_text(text.replace("--soft: #566171", "--soft: #c6c9d1").replace('<html lang="en">', "<html>"))
    browser.open(bad)
    assert {name for name, _ in violations(browser)} >= {"html-has-lang", "color-contrast"}
