"""Is a model that was cut to half its multiply-accumulates ever slower than the whole one, on this machine?

    python benchmarks/host_speed.py MODELS [--only NAME ...] [--macs 0.5] [--from 0 --count 14]
    python benchmarks/host_speed.py MODELS --beside CUT --only NAME   and CUT/NAME.onnx, cut by another tool
    python benchmarks/host_speed.py MODELS --by compress              widths that `condensec` itself chooses

For every .onnx in MODELS: find the groups, keep the same share of every group on the target's grid, as
large as the share of MACs allows, cut, no healing, and time the cut graph against the whole one in pairs
(`hardware/protocol`: interleaved, one pinned core, bootstrap interval). Weights don't matter for time, so
any units go. A cut that the grid can't bring down to the share is made as small as it gets. `--by compress`
runs `condensec --budget macs<=SHARE` instead, without data, healing or guard, and times what it emitted.

- ratio: time of the cut graph over the whole one's, with its 95% interval;
- beside: of the other tool's graph, and its MACs. Use `--macs` of about that for a fair comparison.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common

from condensec import io
from condensec.hardware import bench
from condensec.hardware.protocol import Protocol
from condensec.hardware.target import Target, get
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import prune
from condensec.passes.select import carried
from condensec.stages.goals import op_kind

PROTOCOL = Protocol(pairs=30, min_seconds=1.0, max_seconds=12.0)
STEPS = 200  # shares that are tried


def levels(analysis: Analysis, target: Target, whole_blocks: bool) -> dict[str, list[int]]:
    """Counts of units that the target likes, of every group, descending."""
    found = {}
    for group in analysis.groups:
        many, kind = carried(analysis, group), op_kind(analysis, group)
        if many == 1:
            allowed = target.levels(group.size, kind)
        else:
            step = target.alignment(kind)
            allowed = tuple(n for n in range(group.size, 0, -1) if n == group.size or n * many % step == 0)
        blocks = [n for n in allowed if n == group.size or n * many % target.grid == 0]
        wanted = blocks if whole_blocks and len(blocks) > 1 else allowed
        found[group.id] = [n for n in wanted if n >= group.least]
    return found


def widths(analysis: Analysis, target: Target, macs: float, blocks: bool) -> tuple[dict[str, int], float]:
    """The largest uniform share with few enough MACs: units of every group, and the share of MACs."""
    grid, whole = levels(analysis, target, blocks), max(1, analysis.macs())
    for step in range(STEPS, 0, -1):
        share = step / STEPS
        kept = {
            g.id: next((n for n in grid[g.id] if n <= max(share * g.size, grid[g.id][-1])), g.size)
            for g in analysis.groups
        }
        left = macs_left(analysis, kept) / whole
        if left <= macs:
            break
    return kept, left


def macs_left(analysis: Analysis, kept: Mapping[str, int]) -> int:
    """MACs at these counts."""
    sizes = {a.id: a.size * kept[g.id] // g.size for g in analysis.groups for a in g.atoms}
    return analysis.macs(sizes)


def compressed(path: Path, folder: Path, target: Target, macs: float) -> Path:
    """What `condensec` emits under a budget of MACs."""
    done = common.condensec(
        path, folder / path.stem, "--target", target.name, "--budget", f"macs<={macs:g}x", "--heal", "off",
        "--max-drop", "inf", "--jobs", "1",
    )  # fmt: skip
    return done.graph(target.name)


def examine(path: Path, target: Target, macs: float, beside: Path | None, options: Any) -> dict[str, object]:
    """One model."""
    row: dict[str, object] = {"model": path.stem}
    feeds = bench.make_feeds(path)
    analysis = analyze(io.load(path), {name: array.shape for name, array in feeds.items()})
    cut: Any
    if options.by == "compress":
        cut = compressed(path, options.output, target, macs)
        left = analyze(io.load(cut)).macs() / max(1, analysis.macs())
    else:
        kept, left = widths(analysis, target, macs, options.whole_blocks)
        cut = prune(analysis, {name: list(range(count)) for name, count in kept.items()}).model
    row["MACs kept %"] = round(100 * left, 1)
    found = bench.compare(path, cut, feeds, protocol=PROTOCOL)
    row |= {
        "ms": round(1e3 * found.a.seconds, 3),
        "ratio": round(found.ratio, 3),
        "low": round(found.ci95[0], 3),
        "high": round(found.ci95[1], 3),
        "verdict": found.verdict,
        "clock": found.basis,
    }
    if beside is not None and (other := beside / path.name).is_file():
        theirs = bench.compare(path, other, feeds, protocol=PROTOCOL)
        row["beside"], row["times faster"] = round(theirs.ratio, 3), round(1 / found.ratio, 2)
        row["beside MACs %"] = round(100 * analyze(io.load(other)).macs() / max(1, analysis.macs()), 1)
    return row


def main() -> None:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="host_speed")
    parser.add_argument("models", type=Path, metavar="MODELS")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--target", default="host")
    parser.add_argument("--by", choices=("share", "compress"), default="share", help="who chooses widths")
    parser.add_argument(
        "--whole-blocks", action="store_true", help="multiples of the grid, also of small groups"
    )
    parser.add_argument("--from", dest="first", type=int, default=0, help="skip so many models")
    parser.add_argument("--count", type=int, default=1000, help="and stop after so many")
    parser.add_argument("--beside", type=Path, metavar="CUT", help="folder of graphs that another tool cut")
    options = parser.parse_args()
    paths = [p for p in sorted(options.models.glob("*.onnx")) if not options.only or p.stem in options.only]
    rows: list[dict[str, object]] = []
    for path in paths[options.first : options.first + options.count]:
        try:
            row = examine(path, get(options.target), options.macs, options.beside, options)
        except Exception as error:
            row = {
                "model": path.stem,
                "failure": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}",
            }
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    slower = [str(r["model"]) for r in rows if r.get("verdict") == "slower" and float(str(r["ms"])) > 1]
    print(common.table(rows))
    print(f"slower than the whole model, of those over 1 ms: {', '.join(slower) or 'none'}")
    name = f"host_speed_{options.first}.json" if options.first else "host_speed.json"
    common.write_json(options.output / name, {"rows": rows, "slower": slower}, started)


if __name__ == "__main__":
    main()
