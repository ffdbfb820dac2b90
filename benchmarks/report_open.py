"""How long the HTML report of a large model takes to open in Chromium, and how large the file is.

    python benchmarks/report_open.py [MODEL.onnx ...] [--runs 5] [--limit 2]

For each model: planned at half of every group's units (nothing is trained), the report written, then opened
by headless Chromium in a fresh browser each time. Seconds run from the navigation until everything is drawn
twice; `draw s` is what writing the file took. Beside the models stands a made-up report of 500 layers, each
with a strip, a row and a box. With `--limit`, exit code 1 if a median is larger.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import BROWSER, MISSING, Browser
from report_tools import large_report


def planned(model: Path) -> Any:
    """The report of a dry run."""
    import condensec

    return condensec.compress(model, keep=0.5, criterion="magnitude", dry_run=True)


def measured(report: Any, name: str, runs: int) -> dict[str, object]:
    """Write and open one report."""
    from condensec.report.html import write_html

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        started = time.perf_counter()
        write_html(report, page)
        drawing = time.perf_counter() - started
        times = []
        for run in range(runs):
            with Browser(Path(folder) / f"profile{run}") as browser:
                times.append(browser.open(page))
                assert browser.console == [], browser.console
                elements = browser.run("document.querySelectorAll('*').length")
        return {
            "report": name,
            "nodes": report.model.nodes,
            "boxes": len(report.graph),
            "layers": len(report.layers),
            "elements": elements,
            "kB": round(page.stat().st_size / 1000),
            "draw s": drawing,
            "open s": statistics.median(times),
            "slowest s": max(times),
        }


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="report_open")
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, help="seconds that a report may take to open")
    options = parser.parse_args()
    if BROWSER is None:
        print(MISSING, file=sys.stderr)
        return 1
    rows = [measured(large_report(500), "made up", options.runs)]
    rows += [measured(planned(model), model.stem, options.runs) for model in options.models]
    print(common.table(rows))
    common.write_json(options.output / "report_open.json", {"runs": options.runs, "rows": rows}, started)
    slow = [str(row["report"]) for row in rows if options.limit and float(str(row["open s"])) > options.limit]
    if slow:
        print(f"slower than {options.limit} s: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
