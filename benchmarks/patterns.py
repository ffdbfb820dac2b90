"""Every pattern, stacked, beside the dense model: ResNet on CIFAR-10, or MiniLM on STS-B.

    python benchmarks/patterns.py resnet --data DIR [--depth 56] [--minutes 20] [--only 2:4 stack]
    python benchmarks/patterns.py minilm --data .cache/models [--minutes 20] [--only ...]

- unstructured: 90% zeros (ResNet), 70% (MiniLM); at most one point may be lost;
- 2:4: at most 0.3 points;
- stack: half the multiply-accumulates and int8 on this machine, time beside dense fp32; at most one point;
- layers: a third of MiniLM's residual blocks; at most 0.01 of Spearman's rank correlation (1 point here).

Each is one run of condensec without a guard, with `--minutes` of training, so that the pattern asked for is
there in full and the table says what it cost. `violations`, `zeros`: counted in the file by condensec. Labels
are used for the images; MiniLM learns from the original's embeddings of training sentences alone. Figures are
of test samples that condensec never sees, with the 95% interval of the change. Unknown options go to
condensec.

DIR is the folder of cifar_resnet.py; .cache/models that of export_models.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np


@dataclass(frozen=True)
class Task:
    """A model, its data as condensec's options, and what is counted of any graph."""

    model: Path
    given: list[str]
    judge: Callable[[Path], Mapping[str, object]]
    share: float
    stack: str


def resnet(options: Any) -> Task:
    """CIFAR-10: training images with labels, half of the test images for the metric, half for the figures."""
    import cifar_resnet

    paths = cifar_resnet.prepare(options.data, options.output / "data", options.train, options.seed)
    model = options.data / f"resnet{options.depth}.onnx"
    with np.load(paths["test"], allow_pickle=False) as data:
        images, labels = data["input"], data["labels"]
    right = common.outputs(model, {"input": images}).argmax(axis=1) == labels

    def judge(graph: Path) -> Mapping[str, object]:
        found = common.outputs(graph, {"input": images}).argmax(axis=1) == labels
        return common.hit_row("top-1 %", found, None if graph == model else right)

    given = ["--data", str(paths["train"]), "--val", str(paths["validation"]), "--augment", "flip,crop=4"]
    return Task(model, given, judge, 0.9, "macs<=0.5x")


def minilm(options: Any) -> Task:
    """STS-B: sentences without scores; cosine with the original's embeddings guides condensec."""
    import minilm_stsb

    model, packed = options.data / "minilm.onnx", options.data / "stsb.npz"
    data = minilm_stsb.prepare(packed, options.output / "data", options.train, options.seed)
    with np.load(packed, allow_pickle=False) as arrays:
        scores = arrays["scores_test"]
    dense = minilm_stsb.cosines(model, packed, "test")

    def judge(graph: Path) -> Mapping[str, object]:
        if graph == model:
            return minilm_stsb.judge(dense, scores)
        return minilm_stsb.judge(minilm_stsb.cosines(graph, packed, "test"), scores, dense)

    given = ["--data", str(data["train"]), "--val", str(data["validation"]), "--metric", "cosine"]
    return Task(model, given, judge, 0.7, "macs<=0.5x")


def variants(task: Task) -> dict[str, list[str]]:
    """Options by name of the pattern."""
    units = "channels,heads,neurons,layers"  # whatever costs least
    return {
        "unstructured": ["--patterns", f"unstructured={task.share:g}"],
        "2:4": ["--patterns", "2:4"],
        "stack": ["--patterns", units, "--budget", task.stack, "--quantize", "int8"],
        "layers": ["--patterns", "layers", "--keep", "0.67"],
    }


def row(name: str, done: common.Compiled, judge: Callable[[Path], Mapping[str, object]]) -> dict[str, object]:
    """One line of the table; a stack is judged as it is deployed."""
    report = done.report
    found = (report.get("patterns") or [{}])[0]
    target = report["targets"]["host"]
    return {
        "pattern": name,
        "MACs": report["after"]["macs"] / report["before"]["macs"],
        "zeros": found.get("share_reached"),
        "violations": found.get("violations"),
        "precision": target["precision"],
        "time": target["ratio"],
        "95%": common.span(target["ci95"]),
        **judge(done.graph("host" if name == "stack" else None)),
        "minutes": round(done.seconds / 60, 1),
    }


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="patterns")
    parser.add_argument("model", choices=("resnet", "minilm"))
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_CIFAR"), metavar="DIR")
    parser.add_argument("--depth", type=int, choices=(20, 56), default=56)
    parser.add_argument("--train", type=int, default=20000, help="training samples (default: 20000)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training in each run (default: 20)")
    parser.add_argument("--only", nargs="+", choices=("unstructured", "2:4", "stack", "layers"))
    options, further = parser.parse_known_args()
    if options.data is None:
        parser.error("no data: give --data DIR")
    task = resnet(options) if options.model == "resnet" else minilm(options)
    names = options.only or ["unstructured", "2:4", "stack", *["layers"][: options.model == "minilm"]]
    rows: list[dict[str, object]] = [{"pattern": "dense", **task.judge(task.model)}]
    for name in names:
        done = common.condensec(
            task.model, options.output / f"{task.model.stem}.{name.replace(':', '-')}", *task.given,
            "--target", "host", "--max-drop", "inf", "--heal", f"minutes={options.minutes:g}",
            "--seed", str(options.seed), *variants(task)[name], *further,
        )  # fmt: skip
        rows.append(row(name, done, task.judge))
        print(common.table(rows), file=sys.stderr, flush=True)
    print(common.table(rows))
    path = options.output / f"patterns_{task.model.stem}.json"
    common.write_json(path, {"minutes": options.minutes, "rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
