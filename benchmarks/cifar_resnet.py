"""ResNet-20 or -56 on CIFAR-10: MACs, measured latency, accuracy before, after the cut and after healing.

    python benchmarks/cifar_resnet.py --depth 20 --data DIR [--budget 'macs<=0.73x'] [condensec options]

DIR (or the environment variable CONDENSEC_CIFAR) holds `resnet20.onnx` / `resnet56.onnx` (input `input`
[N, 3, 32, 32], output `logits`), and `train.npz` and `val.npz` with arrays `input`, `labels`; or `unpack.py`
beside packed files, which is then run once. The images of `val.npz` were never trained on: the first half
is the validation set that the guard looks at, the second half is the test set, which condensec never sees.

Options that this script doesn't know go to condensec as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from masked import save_masked


def prepare(source: Path, folder: Path, train: int, seed: int) -> dict[str, Path]:
    """Writes train, validation and test .npz (arrays `input`, `labels`) and returns where.

    `train` images are drawn from the training set with the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(source / "train.npz", allow_pickle=False) as packed:
        unpacked = "input" in packed.files
    if not unpacked:
        subprocess.run([sys.executable, str(source / "unpack.py"), str(folder / "unpacked")], check=True)
        source = folder / "unpacked"
    with np.load(source / "train.npz", allow_pickle=False) as data:
        x, labels = data["input"], data["labels"]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:train])
    sets = {"train": (x[chosen], labels[chosen])}
    with np.load(source / "val.npz", allow_pickle=False) as data:
        x, labels = data["input"], data["labels"]
    half = len(x) // 2
    sets["validation"], sets["test"] = (x[:half], labels[:half]), (x[half:], labels[half:])
    paths = {}
    for name, (images, classes) in sets.items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], input=images, labels=classes)
    return paths


def judge(model: Path, test: Path, before: Any = None) -> tuple[dict[str, object], Any]:
    """Accuracy of one graph on the test set, and its change against `before`; hits for the next call."""
    with np.load(test, allow_pickle=False) as data:
        hits = common.outputs(model, {"input": data["input"]}).argmax(axis=1) == data["labels"]
    row: dict[str, object] = {
        "top-1 %": 100 * float(hits.mean()),
        "95% interval": common.span(common.wilson(hits), ".1f", 100),
    }
    if before is not None:
        change, interval = common.paired_change(before, hits)
        row |= {"change": f"{change:+.2f}", "of it, 95%": common.span(interval, "+.2f")}
    return row, hits


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="cifar_resnet")
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_CIFAR"), metavar="DIR")
    parser.add_argument("--depth", type=int, choices=(20, 56), default=20)
    parser.add_argument("--train", type=int, default=20000, help="training images used (default: 20000)")
    parser.add_argument("--target", default="host")
    parser.add_argument("--budget", default="macs<=0.73x")
    parser.add_argument("--max-drop", default="1")
    options, further = parser.parse_known_args()
    if options.data is None:
        parser.error("no data: give --data DIR or set CONDENSEC_CIFAR")

    model = options.data / f"resnet{options.depth}.onnx"
    data = prepare(options.data, options.output / "data", options.train, options.seed)
    done = common.condensec(
        model, options.output / f"resnet{options.depth}.condensed",
        "--target", options.target, "--data", str(data["train"]), "--val", str(data["validation"]),
        "--budget", options.budget, "--max-drop", options.max_drop, "--seed", str(options.seed), *further,
    )  # fmt: skip

    report = done.report
    plan = common.read_json(done.folder / "plan.json")
    cut = save_masked(model, plan, options.output / "masked.onnx")
    dense, hits = judge(model, data["test"])
    rows: list[dict[str, object]] = [
        {"model": "dense", **common.size(report["before"]), **dense},
        {"model": "cut, not healed", **common.size(report["after"]), **judge(cut, data["test"], hits)[0]},
        {"model": "healed", **common.size(report["after"]), **judge(done.graph(), data["test"], hits)[0]},
    ]
    for name, target in report["targets"].items():
        row = {
            "model": f"for {name}, {target['precision']}",
            **common.size(report["after"]),
            **common.latency(target),
        }
        rows.append({**row, **judge(done.graph(name), data["test"], hits)[0]})
    print(f"\nResNet-{options.depth}, CIFAR-10, {len(hits)} test images; status: {report['status']}\n")
    print(common.table(rows))
    print("\n" + common.table(common.stations(report)))
    payload = {"rows": rows, "stations": common.stations(report), "seconds": done.seconds, "report": report}
    common.write_json(options.output / f"cifar_resnet{options.depth}.json", payload, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
