"""The HTML report in a real browser: headless Chromium, no console error, light and dark, on paper."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from condensec.report import html, read_report

SAMPLE = Path(__file__).parent / "data" / "report.json"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on PATH; install the Debian package 'chromium'"
)


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """Open a page; what it printed, and its console messages."""
    profile.mkdir()
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def page(tmp_path) -> Path:
    html.write_html(read_report(SAMPLE), tmp_path / "report.html")
    return tmp_path / "report.html"


def test_the_dom_is_complete_and_the_console_silent(page, tmp_path):
    dom, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert console == []
    assert dom.rstrip().endswith("</html>")
    report = read_report(SAMPLE)
    assert dom.count('class="strip') == len(report.layers)
    assert dom.count('class="chart"') == 3
    for heading in (
        "targets",
        "cycles",
        "sensitivity",
        "layers",
        "groups",
        "proof",
        "healing",
        "time",
        "again",
    ):
        assert f'<h2 id="{heading}">' in dom


def test_a_broken_page_would_be_noticed(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><title>x</title><script>no.such.thing()</script>")
    assert browse(bad, tmp_path / "profile", "--dump-dom")[1]
    blocked = tmp_path / "blocked.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    blocked.write_text(f"<!DOCTYPE html>{policy}<title>x</title><img src='x.png'>")
    assert browse(blocked, tmp_path / "profile2", "--dump-dom")[1]


def test_it_is_bright_in_light_and_dim_in_dark(page, tmp_path):
    brightness = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{name}.png"
        flags = (
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={shot}",
            "--window-size=1280,1600",
        )
        _, console = browse(page, tmp_path / name, *flags)
        assert console == []
        with Image.open(shot) as image:
            assert image.size == (1280, 1600)
            brightness[name] = ImageStat.Stat(image.convert("L")).mean[0]
    assert brightness["light"] > 215
    assert brightness["dark"] < 50


def test_it_prints_on_a_few_pages(page, tmp_path):
    paper = tmp_path / "report.pdf"
    browse(page, tmp_path / "profile", f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF")
    pages = paper.read_bytes().count(b"/Type /Page\n")
    assert 3 <= pages <= 10
