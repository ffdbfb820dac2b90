"""The three ready recipes on one model: what each makes of it, for docs/recipes.md.

    python benchmarks/recipes.py MODEL.onnx --data TRAIN.npz --val VAL.npz [--levels 1 2 3] [--minutes X]

`--minutes` shortens (or lengthens) the training of each recipe to so many minutes in all, shared out as the
recipe does. In the table: latency on this machine beside the original, and the metric on condensec's own test
split, which neither training nor the guard has seen. Unknown options go to condensec.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import common


def heal(level: str, minutes: float | None) -> list[str]:
    """`--heal` of a recipe with other minutes; nothing where they are its own."""
    from condensec import recipes

    if minutes is None:
        return []
    _, *shares = str(recipes.ready(level)["heal"]).split(",")
    return ["--heal", ",".join([f"minutes={minutes:g}", *shares])]


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="recipes")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--val", type=Path, metavar="NPZ")
    parser.add_argument("--levels", nargs="+", choices=("1", "2", "3"), default=["1", "2", "3"])
    parser.add_argument("--minutes", type=float, help="of training in each (default: the recipe's own)")
    options, further = parser.parse_known_args()
    rows: list[dict[str, object]] = []
    for level in options.levels:
        given = ["--data", str(options.data), *(["--val", str(options.val)] if options.val else [])]
        done = common.condensec(
            options.model, options.output / f"{options.model.stem}.O{level}", f"-O{level}", *given,
            *heal(level, options.minutes), "--seed", str(options.seed), *further,
        )  # fmt: skip
        before, after = done.report["before"], done.report["after"]
        if not rows:
            rows.append({"recipe": "original", "metric": before["metric"]["value"]})
        for name, target in done.report["targets"].items():
            rows.append(
                {
                    "recipe": f"-O{level}",
                    "target": name,
                    "time": target["ratio"],
                    "95%": common.span(target["ci95"]),
                    "precision": target["precision"],
                    "parameters": after["params"] / before["params"],
                    "MACs": after["macs"] / before["macs"],
                    "bytes": target["bytes"] / before["bytes"],
                    "metric": target["metric"],
                    "minutes": round(done.seconds / 60, 1),
                    "status": done.report["status"],
                }
            )
        print(common.table(rows), file=sys.stderr, flush=True)
    print(common.table(rows))
    path = options.output / f"recipes_{options.model.stem}.json"
    common.write_json(path, {"minutes": options.minutes, "rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
