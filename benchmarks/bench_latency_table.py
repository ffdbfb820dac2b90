"""How well latency is predicted: tables of nodes, interpolated widths and MACs against measurements.

    python benchmarks/bench_latency_table.py MODEL.onnx [MODEL.onnx ...] [--variants 12] [--target host]

Cuts every model at random: each group keeps 20% to all of its units, drawn anew, in every other variant on
the target's grid and else any number. Weights don't matter for time, so any units go. Each variant is timed
against the dense model in pairs; the error is that of the predicted time. Three predictors:

    table     isolated nodes of the variant's own optimised graph (what `predict` gives)
    widths    the sum that the choice of widths works with, which never sees the variant's graph
    macs      time in proportion to multiply-accumulates
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from numpy.typing import NDArray

from condensec import io
from condensec.hardware import bench
from condensec.hardware.latency import LatencyTable, NodeCost, latency_model
from condensec.hardware.target import Target, get
from condensec.passes.groups import Analysis, analyze
from condensec.passes.prune import prune
from condensec.passes.select import Goal, NodeShape, Widths

PREDICTORS = ("table", "widths", "macs")


def draw(analysis: Analysis, target: Target, aligned: bool, rng: np.random.Generator) -> dict[str, list[int]]:
    """Kept units of every group."""
    kept = {}
    for group in analysis.groups:
        wanted = max(1, round(group.size * rng.uniform(0.2, 1.0)))
        if aligned:
            wanted = min(target.levels(group.size), key=lambda level: abs(level - wanted))
        kept[group.id] = list(range(wanted))
    return kept


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def evaluate(path: Path, target: Target, variants: int, seed: int, folder: Path) -> list[dict[str, object]]:
    """One row a variant."""
    model = io.load(path)
    feeds = bench.make_feeds(path)
    analysis = analyze(model, {name: array.shape for name, array in feeds.items()})
    shapes = {name: array.shape for name, array in feeds.items()}
    started = time.perf_counter()
    predictor = latency_model(target, analysis.model, shapes, table=LatencyTable(folder=folder))
    seconds = time.perf_counter() - started

    def cost(node: NodeShape) -> float:
        return predictor.node_seconds(NodeCost(**vars(node)))

    goals = [Goal("latency", cost, 0.0), Goal("macs", lambda node: float(node.macs), 0.0)]
    dense = Widths(analysis, goals).totals
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(variants):
        kept = draw(analysis, target, number % 2 == 0, rng)
        cut = prune(analysis, kept).model
        measured = bench.compare(path, cut, feeds)
        widths = Widths(analysis, goals)
        started = time.perf_counter()
        for group in analysis.groups:
            widths.set(group, len(kept[group.id]))
        seconds += time.perf_counter() - started
        row = {
            "model": path.stem,
            "variant": "aligned" if number % 2 == 0 else "any",
            "measured": measured.ratio,
            "clock": measured.basis,
            "table": predictor.predict(cut, shapes) / predictor.dense_seconds,
            "widths": float(widths.totals[0] / dense[0]),
            "macs": float(widths.totals[1] / dense[1]),
            "dense_ms": predictor.dense_seconds * 1e3,
            "table_s": seconds,
        }
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, file=sys.stderr)
        rows.append(row)
    return rows


def summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Median error and rank correlation, a row for each model and predictor."""
    found: list[dict[str, object]] = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        measured = np.array([row["measured"] for row in mine], float)
        for predictor in PREDICTORS:
            guess = np.array([row[predictor] for row in mine], float)
            errors = np.abs(guess / measured - 1) * 100
            found.append(
                {
                    "model": name,
                    "predictor": predictor,
                    "median error %": float(np.median(errors)),
                    "largest error %": float(errors.max()),
                    "rank correlation": spearman(measured, guess),
                    "dense ms": mine[-1]["dense_ms"],
                    "table s": mine[-1]["table_s"],
                }
            )
    return found


def main() -> None:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="latency_table")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--variants", type=int, default=12)
    parser.add_argument("--target", default="host")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in options.models:
            rows += evaluate(path, get(options.target), options.variants, options.seed, Path(folder))
    table = summary(rows)
    print(common.table(table))
    common.write_json(options.output / "latency_table.json", {"rows": table, "variants": rows}, started)


if __name__ == "__main__":
    main()
