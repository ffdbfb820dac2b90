"""Puts the demo's figures and a picture of its report where people see them first.

    make demo && make readme

Writes the table between the markers in README.md, and docs/report.png, a screenshot by headless Chromium.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from condensec.report import Report, read_report
from condensec.report import format as fmt

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- demo: begin -->", "<!-- demo: end -->"
BROWSER = (
    "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--blink-settings=preferredColorScheme=1 --force-device-scale-factor=1.5 --window-size=1180,1240"
)


def table(demo: dict[str, Any], report: Report) -> str:
    """The demo's table as Markdown, and where it was measured."""
    columns = demo["columns"]
    rows = {
        "parameters": lambda c: fmt.count(c["parameters"]),
        "multiply-accumulates": lambda c: fmt.count(c["macs"]),
        "file": lambda c: f"{fmt.size(c['bytes'])}, {c.get('precision', 'fp32')}",
        "latency of the original": _latency("before"),
        "latency": _latency("after"),
        "**ratio**, 95% interval": _ratio,
        f"accuracy on {demo['test_lines']} unseen lines": _accuracy,
        "change": _change,
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [
        f"| {label} | " + " | ".join(map(cell, columns.values())) + " |" for label, cell in rows.items()
    ]
    environment = report.environment
    where = f"onnxruntime {environment.get('onnxruntime')}, {environment.get('isa')}"
    said = f"One run of `make demo` on {report.created[:10]} ({where}): {demo['seconds']:.0f} s in all."
    return "\n".join([*lines, "", said])


def _latency(which: str) -> Any:
    def cell(c: dict[str, Any]) -> str:
        value = c.get("latency_ms", {}).get(which)
        return "" if value is None else f"{fmt.milliseconds(value)} ms"

    return cell


def _ratio(c: dict[str, Any]) -> str:
    if c.get("ratio") is None:
        return ""
    return " ".join(filter(None, (f"**{c['ratio']:.3f}**", fmt.interval(c["ratio_ci95"]), c["how"])))


def _accuracy(c: dict[str, Any]) -> str:
    low, high = c["accuracy_ci95"]
    return f"{100 * c['accuracy']:.2f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _change(c: dict[str, Any]) -> str:
    return f"{c['change_points']:+.2f} ± {c['change_ci95']:.2f} points" if "change_points" in c else ""


def picture(page: Path, out: Path) -> None:
    """The top of the report, in 64 colours, which is enough for it and small."""
    executable, *flags = BROWSER.split()
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        places = (f"--user-data-dir={folder}/profile", f"--screenshot={shot}")
        command = [shutil.which(executable) or executable, *flags, *places, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(64).save(out, optimize=True)


def main() -> int:
    """Refresh README.md and docs/report.png from a demo's output folder."""
    folder = Path(sys.argv[1])
    demo = json.loads((folder / "demo.json").read_text("utf-8"))
    result = folder / "orientation.condensed"
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    figures = table(demo, read_report(result / "report.json"))
    readme.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}", "utf-8")
    picture(result / "report.html", ROOT / "docs" / "report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
