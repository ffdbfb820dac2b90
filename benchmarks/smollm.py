"""SmolLM2-135M: a fifth of its parameters gone by heads, neurons and layers, in closed form only.

    python benchmarks/smollm.py --data .cache/models [--budget 'params<=0.8x'] [--controls magnitude random]

`--data` is the folder that export_smollm.py wrote: smollm2.onnx and smollm2.npz. condensec gets texts of its
own; the perplexity is counted here on other texts, on the first 128 tokens of each. The controls have the
same budget and other options: units by magnitude or at random, without repair; condensec without repair.
The time is that of one text of 128 tokens on this machine, measured by condensec.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

INPUTS = ("input_ids", "attention_mask")
RUNS: dict[str, list[str]] = {
    "condensec": ["--heal", "closed-form"],
    "no repair": ["--heal", "off"],
    "magnitude": ["--heal", "off", "--criterion", "magnitude"],
    "random": ["--heal", "off", "--criterion", "random"],
    "magnitude, repaired": ["--heal", "closed-form", "--criterion", "magnitude"],
}


def perplexity(model: Path, packed: Path, most: int) -> float:
    """Of the test texts (exp of the mean loss of a token)."""
    with np.load(packed, allow_pickle=False) as data:
        inputs = {name: data[f"{name}_test"][:most] for name in INPUTS}
    found = common.outputs(model, inputs, batch=4)
    return float(np.exp(found.astype(np.float64).sum() / inputs["attention_mask"][:, 1:].sum()))


def prepare(packed: Path, folder: Path) -> list[str]:
    """Options that name calibration and validation texts."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with np.load(packed, allow_pickle=False) as data:
        for flag, split in (("--data", "train"), ("--val", "dev")):
            path = folder / f"{split}.npz"
            np.savez(path, **{name: data[f"{name}_{split}"] for name in INPUTS})
            found += [flag, str(path)]
    return found


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="smollm")
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_MODELS"), metavar="DIR")
    parser.add_argument("--budget", default="params<=0.8x")
    parser.add_argument("--patterns", default="heads,neurons,layers")
    parser.add_argument("--step", default="1", help="share of the units a cycle (default: 1, one cycle)")
    parser.add_argument("--test", type=int, default=200, help="texts the perplexity is counted on")
    parser.add_argument("--controls", nargs="*", choices=[*RUNS][1:], default=["magnitude", "random"])
    options, further = parser.parse_known_args()
    if options.data is None:
        parser.error("no data: give --data DIR or set CONDENSEC_MODELS")
    model, packed = Path(options.data) / "smollm2.onnx", Path(options.data) / "smollm2.npz"
    given = prepare(packed, options.output / "data")
    rows: list[dict[str, Any]] = [
        {"run": "dense", "params": 1.0, "perplexity": perplexity(model, packed, options.test)}
    ]
    print(common.table(rows), file=sys.stderr, flush=True)
    for name in ("condensec", *options.controls):
        done = common.condensec(
            model, options.output / name.replace(", ", "-").replace(" ", "-"), *given,
            "--metric", "smollm_metric:cost", "--max-drop", "inf", "--budget", options.budget,
            "--patterns", options.patterns, "--step", options.step, "--seed", str(options.seed),
            *RUNS[name], *further, path=[Path(__file__).parent],
        )  # fmt: skip
        report = done.report
        target = report["targets"].get("host", {})
        rows.append(
            {
                "run": name,
                "params": report["after"]["params"] / report["before"]["params"],
                "perplexity": perplexity(done.graph(), packed, options.test),
                "time": target.get("ratio"),
                "95%": common.span(target.get("ci95")),
                "status": report["status"],
                "seconds": round(done.seconds),
            }
        )
        print(common.table(rows), file=sys.stderr, flush=True)
    print(common.table(rows))
    common.write_json(options.output / "smollm.json", {"budget": options.budget, "rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
