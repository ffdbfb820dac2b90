"""Is the latency that comes out the one that was asked for? A budget for each model, on this machine.

    python benchmarks/asked_latency.py MODEL.onnx [MODEL.onnx ...] [--ask 0.6] [--again]

Each model is compressed under `--budget latency<=0.6x`, without healing (weights don't matter for time), and
what was emitted is timed against the original once more by this script, in pairs and by itself. `--again`
times what an earlier run wrote.

- report: the ratio in the report;
- measured: this script's, with its 95% interval; off %: how far that is from what was asked for. Above
  zero means slower than asked. The bar is 5%, and never slower than the original.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import common

from condensec.hardware import bench
from condensec.hardware.protocol import Protocol

PROTOCOL = Protocol(pairs=60, min_seconds=2.0, max_seconds=20.0)
BAR = 5.0  # percent


def examine(model: Path, folder: Path, ask: float, seed: int, again: bool) -> dict[str, object]:
    """One model, asked for a share of its latency."""
    done = (
        common.Compiled(folder, common.read_json(folder / "report.json"), 0, 0.0)
        if again
        else common.condensec(
            model, folder, "--target", "host", "--budget", f"latency<={ask:g}x", "--heal", "off",
            "--max-drop", "inf", "--jobs", "1", "--seed", str(seed),
        )
    )  # fmt: skip
    found = bench.compare(model, done.graph("host"), protocol=PROTOCOL)
    said = done.report["budgets"][0]
    return {
        "model": model.stem,
        "ms": 1e3 * found.a.seconds,
        "asked": ask,
        "report": said["value"],
        "measured": found.ratio,
        "95%": common.span(found.ci95),
        "off %": 100 * (found.ratio / ask - 1),
        "clock": found.basis,
        "s": round(done.seconds),
    }


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="asked_latency")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--ask", type=float, default=0.6, help="share of the latency (default: 0.6)")
    parser.add_argument("--again", action="store_true", help="time what an earlier run wrote")
    options = parser.parse_args()
    rows = []
    for model in options.models:
        folder = options.output / f"{model.stem}_{options.ask:g}"
        rows.append(examine(model, folder, options.ask, options.seed, options.again))
        print(rows[-1], file=sys.stderr, flush=True)
    off = [float(str(row["off %"])) for row in rows]
    print(f"\nasked for {options.ask:g} of the latency on this machine\n\n{common.table(rows)}")
    print(f"\nwithin {BAR:g}%: {sum(abs(x) <= BAR for x in off)} of {len(off)}; slower than that: "
          f"{sum(x > BAR for x in off)}")  # fmt: skip
    common.write_json(options.output / "asked_latency.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
