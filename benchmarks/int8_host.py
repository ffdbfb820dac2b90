"""int8 on this machine over the pruned fp32 graph: ResNet-20, ResNet-56, EfficientNet-Lite0.

    python benchmarks/int8_host.py --cifar DIR [--models DIR --images DIR] [--keep 0.5] [--dense]

Each model is cut (half of every group, closed form, no guard; widths that suit int8), and the healed fp32
graph goes through `condensec quantize --quantize int8 --max-drop 0.5`, as a user would do it. The table
compares what that wrote with the fp32 graph, in interleaved pairs on one thread, and both on test samples
that neither has seen. `--dense` also does it with the uncut models. `--again` measures once more what an
earlier run wrote, on a quieter machine. EfficientNet-Lite0 keeps `--keep-efficientnet`: without training it
doesn't survive losing half.

--cifar and its contents are as for `cifar_resnet.py`, --models and --images as for `efficientnet_lite0.py`;
what isn't given is left out. EfficientNet-Lite0's pictures have no labels: the original's first choices are
taken for them, so that both the cut fp32 graph and the int8 one are judged by agreement with the original.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar_resnet
import common
import efficientnet_lite0
import numpy as np

from condensec.hardware import bench
from condensec.hardware.protocol import Protocol

PAIRED = Protocol(pairs=100, min_seconds=3.0, max_seconds=30.0)


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Attributes:
        name: for the table.
        model: the original.
        data: split -> .npz.
        metric: of condensec.
        keep: share of every group's units that stays.
    """

    name: str
    model: Path
    data: Mapping[str, Path]
    metric: str
    keep: str


def subjects(options: Any) -> list[Subject]:
    """The models whose files and data were given."""
    found = []
    if options.cifar is not None:
        data = cifar_resnet.prepare(options.cifar, options.output / "cifar", options.train, options.seed)
        found += [
            Subject(f"ResNet-{depth}", options.cifar / f"resnet{depth}.onnx", data, "top1", options.keep)
            for depth in (20, 56)
        ]
    if options.models is not None and options.images is not None:
        sizes = {"train": 400, "validation": 800, "test": 1000}
        data = efficientnet_lite0.prepare(options.images, options.output / "images", sizes, options.seed)
        model = options.models / "efficientnet_lite0.onnx"
        label(data, model)
        found.append(Subject("EfficientNet-Lite0", model, data, "top1", options.keep_efficientnet))
    return found


def label(data: Mapping[str, Path], model: Path) -> None:
    """Write the model's first choices as labels into every split."""
    for path in data.values():
        labels = efficientnet_lite0.choices(model, path)
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
        np.savez(path, **inputs, labels=labels)


def earlier(folder: Path) -> common.Compiled:
    """What an earlier run wrote."""
    return common.Compiled(folder, common.read_json(folder / "report.json"), 0, 0.0)


def quantized(model: Path, subject: Subject, folder: Path, again: bool) -> dict[str, Any]:
    """`condensec quantize` of a graph; what it printed, now or before."""
    printed = folder / "printed.json"
    if again:
        return dict(common.read_json(printed)["targets"]["host"])
    command = [
        str(Path(sys.executable).with_name("condensec")), "quantize", str(model), "--quantize", "int8",
        "--max-drop", "0.5", "--data", str(subject.data["train"]), "--val", str(subject.data["validation"]),
        "--metric", subject.metric, "-o", str(folder), "--json",
    ]  # fmt: skip
    print("$ condensec " + " ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    printed.write_bytes(done.stdout)
    return dict(json.loads(done.stdout)["targets"]["host"])


def hits(graph: Path, subject: Subject) -> Any:
    """Which test samples a graph gets right."""
    with np.load(subject.data["test"], allow_pickle=False) as data:
        name = next(n for n in data.files if n != "labels")
        inputs, labels = {name: data[name]}, data["labels"]
    return common.outputs(graph, inputs, 20).argmax(axis=1) == labels


def rows_of(subject: Subject, fp32: Path, int8: Mapping[str, Any], graph: Path) -> list[dict[str, object]]:
    """The fp32 graph and the one that `condensec quantize` wrote."""
    before, after = (hits(path, subject) for path in (fp32, graph))
    times = bench.compare(fp32, graph, protocol=PAIRED)
    low, high = times.ci95
    base = {"model": subject.name, "metric": subject.metric}
    return [
        {**base, "graph": "fp32", "ms": 1e3 * times.a.seconds, **common.hit_row("%", before)},
        {
            **base, "graph": f"{int8['precision']}, {int8['calibration']}", "ms": 1e3 * times.b.seconds,
            "faster": 1 / times.ratio, "speed, 95%": common.span((1 / high, 1 / low)),
            "in fp32": len(int8["in_fp32"]), **common.hit_row("%", after, before),
        },
    ]  # fmt: skip


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="int8_host")
    parser.add_argument("--cifar", type=Path, default=os.environ.get("CONDENSEC_CIFAR"), metavar="DIR")
    parser.add_argument("--models", type=Path, default=os.environ.get("CONDENSEC_MODELS"), metavar="DIR")
    parser.add_argument("--images", type=Path, default=os.environ.get("CONDENSEC_IMAGES"), metavar="DIR")
    parser.add_argument("--keep", default="0.5", help="of the ResNets")
    parser.add_argument("--keep-efficientnet", default="0.9", help="of EfficientNet-Lite0")
    parser.add_argument("--train", type=int, default=4000, help="training images used (default: 4000)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the three models")
    parser.add_argument("--again", action="store_true", help="measure what an earlier run wrote")
    parser.add_argument("--dense", action="store_true", help="the uncut models, too")
    options, further = parser.parse_known_args()
    found = [s for s in subjects(options) if not options.only or s.name in options.only]
    if not found:
        parser.error("no data: give --cifar DIR, or --models DIR and --images DIR")
    rows: list[dict[str, object]] = []
    for subject in found:
        rows += measured(subject, options, further)
    print(f"\nint8 over fp32 on this machine\n\n{common.table(rows)}")
    common.write_json(options.output / "int8_host.json", {"rows": rows}, started)
    return 0


def measured(subject: Subject, options: Any, further: Sequence[str]) -> list[dict[str, object]]:
    """Cut one model, quantize it, and compare."""
    folder = options.output / subject.name
    done = earlier(folder / "cut") if options.again else common.condensec(
        subject.model, folder / "cut", "--keep", subject.keep, "--quantize", "int8", "--heal", "closed-form",
        "--max-drop", "inf", "--data", str(subject.data["train"]), "--val", str(subject.data["validation"]),
        "--metric", subject.metric, "--seed", str(options.seed), *further,
    )  # fmt: skip
    int8 = quantized(done.graph(), subject, folder / "int8", options.again)
    rows = rows_of(subject, done.graph(), int8, folder / "int8" / "host" / "model.onnx")
    if options.dense:
        int8 = quantized(subject.model, subject, folder / "dense", options.again)
        graph = folder / "dense" / "host" / "model.onnx"
        rows += [
            {**row, "model": f"{subject.name}, uncut"} for row in rows_of(subject, subject.model, int8, graph)
        ]
    return rows


if __name__ == "__main__":
    sys.exit(main())
