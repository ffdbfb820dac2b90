"""ResNet-20 or -56 on CIFAR-10 at fewer MACs: accuracy on test images, beside what each part earns.

    python benchmarks/quality/cifar.py --data DIR --depth 56 --fewer 2.11 --minutes 20 [--runs condensec ...]
        [--torch PYTHON]

--minutes 3 --depth 20 --train 5000 gives the whole table in less than an hour, to see that all commands work.

--fewer 2.11 asks for 1/2.11 of the MACs, in any widths (`--align 1`): MACs are the goal here, not this
machine. Published with a full fine-tune in PyTorch (Fang et al. 2023, DepGraph, table of ResNet-56): 0.07
points lost at 2.11x, 0.17 at 2.51x. With --torch, the Python of an environment with torch and torch-pruning,
the same network is pruned there and trained for as long by the same loss (`torch_pruning_cifar.py`). DIR as
for cifar_resnet.py; the test images are every second one of `val.npz`, the others are the guard's.

Options that this script doesn't know go to condensec as they are, to all runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import cifar_resnet
import common
import controls

IMPORTANCES = ("magnitude", "taylor")


def beside(task: controls.Task, options: Any, data: Mapping[str, Path], importance: str) -> dict[str, object]:
    """The same by Torch-Pruning in PyTorch."""
    out = task.output / f"torch-pruning-{importance}.onnx"
    command = [
        str(options.torch), str(Path(__file__).with_name("torch_pruning_cifar.py")), str(task.model),
        "--train", str(data["train"]), "--val", str(data["validation"]), "--macs", f"{1 / options.fewer:.4f}",
        "--minutes", f"{task.minutes:g}", "--importance", importance, "--seed", str(task.seed),
        "--out", str(out), "--threads", str(len(os.sched_getaffinity(0))),
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"torch_pruning_cifar.py ended with exit code {done.returncode}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    row = {"run": f"Torch-Pruning, {importance}", "MACs": found["macs"], "samples/s": found["rate"]}
    return {**row, "seconds": round(time.monotonic() - started), **task.judge(out)}


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="quality")
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_CIFAR"), metavar="DIR")
    parser.add_argument("--depth", type=int, choices=(20, 56), default=56)
    parser.add_argument("--fewer", type=float, default=2.11)
    parser.add_argument("--minutes", type=float, default=20, help="of training in each run (default: 20)")
    parser.add_argument("--train", type=int, default=50000, help="training images used (default: all)")
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1, help="so many, from --seed on, and their medians")
    parser.add_argument("--torch", type=Path, metavar="PYTHON", help="beside Torch-Pruning")
    parser.add_argument("--runs", nargs="+", choices=controls.NAMES, default=list(controls.NAMES))
    options, further = parser.parse_known_args()
    if options.data is None:
        parser.error("no data: give --data DIR or set CONDENSEC_CIFAR")
    name = f"cifar-resnet{options.depth}-{options.fewer:g}x"
    output = options.output / name
    data = cifar_resnet.prepare(options.data, output / "data", options.train, options.seed)
    model = options.data / f"resnet{options.depth}.onnx"
    _, before = cifar_resnet.judge(model, data["test"])

    def judge(graph: Path) -> Mapping[str, object]:
        row, _ = cifar_resnet.judge(graph, data["test"], None if graph == model else before)
        return row

    task = controls.Task(
        model, ["--data", str(data["train"]), "--val", str(data["validation"]), "--metric", "top1"],
        f"macs<={1 / options.fewer:.4f}x", options.minutes, judge, output, options.seed, options.step,
    )  # fmt: skip

    def compared(one: controls.Task) -> list[dict[str, object]]:
        rows = controls.compare(one, options.runs, options.fewer**-0.5, ["--align", "1", *further])
        return rows + [beside(one, options, data, name) for name in IMPORTANCES if options.torch]

    rows = controls.seeded(task, options.seeds, compared)
    print(f"\nResNet-{options.depth}, CIFAR-10, {options.fewer:g}x fewer MACs\n\n{common.table(rows)}")
    common.write_json(options.output / f"{name}.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
