"""ResNet-20 or -56 on CIFAR-10: MACs, measured latency, accuracy before, after the cut and after healing.

    python benchmarks/cifar_resnet.py --depth 20 --data DIR [--budget 'macs<=0.73x'] [condensec options]

DIR (or the environment variable CONDENSEC_CIFAR) holds `resnet20.onnx` / `resnet56.onnx` (input `input`
[N, 3, 32, 32], output `logits`), and `train.npz` and `val.npz` with arrays `input`, `labels`; or `unpack.py`
beside packed files, which is then run once. The images of `val.npz` were never trained on: every
second one is in the validation set that the guard looks at, the others are the test set, which condensec
never sees.

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


def unpacked(source: Path, folder: Path) -> Path:
    """The folder with arrays `input`, `labels` in train.npz and val.npz; packed ones are unpacked once."""
    with np.load(source / "train.npz", allow_pickle=False) as packed:
        if "input" in packed.files:
            return source
    if not (folder / "val.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(source / "unpack.py"), str(folder)], check=True)
    return folder


def prepare(source: Path, folder: Path, train: int, seed: int) -> dict[str, Path]:
    """Writes train, validation and test .npz (arrays `input`, `labels`) and returns where.

    `train` images are drawn from the training set with the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = unpacked(source, folder / "unpacked")
    with np.load(source / "train.npz", allow_pickle=False) as data:
        x, labels = data["input"], data["labels"]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(x))[:train])
    sets = {"train": (x[chosen], labels[chosen])}
    with np.load(source / "val.npz", allow_pickle=False) as data:
        x, labels = data["input"], data["labels"]
    # Every second image, not the first half: the file isn't shuffled, and the halves differ by 5 points.
    sets["validation"], sets["test"] = (x[::2], labels[::2]), (x[1::2], labels[1::2])
    paths = {}
    for name, (images, classes) in sets.items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], input=images, labels=classes)
    return paths


def judge(model: Path, test: Path, before: Any = None) -> tuple[dict[str, object], Any]:
    """Accuracy of one graph on the test set, and its change against `before`; hits for the next call."""
    with np.load(test, allow_pickle=False) as data:
        hits = common.outputs(model, {"input": data["input"]}).argmax(axis=1) == data["labels"]
    return common.hit_row("top-1 %", hits, before), hits


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

    cut = save_masked(model, common.read_json(done.folder / "plan.json"), options.output / "masked.onnx")
    dense, hits = judge(model, data["test"])
    rows = common.result_rows(done, dense, lambda graph: judge(graph, data["test"], hits)[0])
    size = common.size(done.report["after"])
    rows.insert(1, {"model": "cut, not healed", **size, **judge(cut, data["test"], hits)[0]})
    title = f"ResNet-{options.depth}, CIFAR-10, {len(hits)} test images"
    common.publish(options.output / f"cifar_resnet{options.depth}.json", title, done, rows, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
