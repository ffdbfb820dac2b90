"""Random graphs, cut at random, each cut proved against the masked original.

    python benchmarks/random_graphs.py [--count 2000] [--seed 0]

A graph grows from its seed: branches, residuals, concatenations, splits, reshapes, shuffles, shared
weights, grouped convolutions, gates, norms, attention, bodies of If, Loop and Scan (tests/random_models.py).
Every group keeps a random share of its units. In the table: graphs, how many lost units, the largest error of
all proofs (relative to the largest output), and what failed. A failure names its seed; `--count 1 --seed N`
repeats it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import common
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def examine(seed: int) -> dict[str, object]:
    """One graph: what it lost, and how far it's off."""
    from cutting import trial
    from random_models import random_model

    keep = float(np.random.default_rng(seed).uniform(0.15, 0.85))
    try:
        found = trial(random_model(seed), seed=seed, keep=keep)
    except Exception as error:  # every kind of failure is a result here
        return {"seed": seed, "failure": f"{type(error).__name__}: {(str(error).splitlines() or ['?'])[0]}"}
    row: dict[str, object] = {
        "seed": seed,
        "nodes": len(found.original.graph.node),
        "groups": len(found.analysis.groups),
        "removed": found.removed,
        "error": found.proof.relative_error,
        "frozen": [f.reason for f in found.analysis.frozen],
    }
    if not found.proof.passed:
        row["failure"] = f"error {found.proof.relative_error:.2g}"
    return row


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="random_graphs")
    parser.add_argument("--count", type=int, default=2000, help="graphs (default: 2000)")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seed, options.seed + options.count):
        rows.append(examine(seed))
        if "failure" in rows[-1]:
            print(f"seed {seed}: {rows[-1]['failure']}", file=sys.stderr, flush=True)
    good = [r for r in rows if "failure" not in r]
    errors = [float(str(r["error"])) for r in good]
    reasons = Counter(reason for r in good for reason in r["frozen"])  # type: ignore[attr-defined]
    summary = {
        "graphs": len(rows),
        "failed": len(rows) - len(good),
        "cut": sum(int(str(r["removed"])) > 0 for r in good),
        "units removed": sum(int(str(r["removed"])) for r in good),
        "nodes": sum(int(str(r["nodes"])) for r in good),
        "largest error": f"{max(errors, default=0):.1e}",
        "seconds": round(time.time() - started, 1),
    }
    print(common.table([summary], list(summary)))
    result = {
        "summary": summary,
        "frozen": dict(reasons.most_common(20)),
        "failures": [r for r in rows if "failure" in r],
    }
    common.write_json(options.output / "random_graphs.json", result, started)
    return 0 if len(good) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
