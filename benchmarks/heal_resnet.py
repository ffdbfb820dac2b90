"""What healing brings back on ResNet-20 or -56, CIFAR-10: dense, cut, repaired in closed form, trained on.

    python benchmarks/heal_resnet.py --data DIR [--depth 56] [--minutes 10] [--images 512]

Two cuts, each to half: the inner channels of every block, and every group. Units go by magnitude. The closed
form sees 512 training images without their labels; the training, if `--minutes` asks for it, distils on
unlabelled training images. Top-1 is counted on all images of `val.npz`; recovered: share of the lost points
that came back.

DIR as for cifar_resnet.py.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np


def inner(analysis: Any) -> set[str]:
    """Groups that one convolution alone produces: the channels inside of blocks, not those of the trunk."""
    found = set()
    for group in analysis.groups:
        producers = [a for a in group.axes if a.axis == 0 and len(analysis.weight_layouts[a.tensor]) == 4]
        if len(producers) == 1:
            found.add(group.id)
    return found


def halves(analysis: Any, chosen: set[str]) -> dict[str, list[int]]:
    """The better half of the units of some groups."""
    from condensec.passes.criteria import get
    from condensec.passes.select import unit_order

    order = unit_order(analysis, get("magnitude"))
    return {
        g.id: sorted(int(u) for u in order[g.id][: g.size // 2]) for g in analysis.groups if g.id in chosen
    }


def top1(model: Path, images: Any, labels: Any) -> float:
    """Percent right."""
    return 100 * float((common.outputs(model, {"input": images}).argmax(axis=1) == labels).mean())


def examine(
    model: Path, sets: dict[str, Any], which: str, options: Any, folder: Path
) -> list[dict[str, Any]]:
    """One cut and its healing, a row a stage."""
    from threadpoolctl import threadpool_limits

    from condensec import io
    from condensec.healing import HealOptions, closed_form, heal
    from condensec.passes.groups import analyze
    from condensec.passes.prune import prune, with_weights

    analysis = analyze(io.load(model), {"input": (1, 3, 32, 32)})
    groups = inner(analysis) if which == "inner" else {g.id for g in analysis.groups}
    cut = prune(analysis, halves(analysis, groups))
    dense = top1(model, *sets["test"])
    share = sum(cut_macs(analysis, cut).values()) / analysis.macs()
    rows: list[dict[str, Any]] = [{"cut": which, "stage": "dense", "MACs": 1.0, "top-1 %": dense}]

    def row(stage: str, graph: Any, seconds: float) -> Path:
        path = folder / f"{which}-{stage}.onnx"
        io.save(graph, path)
        found = {"cut": which, "stage": stage, "MACs": share, "top-1 %": top1(path, *sets["test"])}
        if len(rows) > 1:
            lost = dense - float(rows[1]["top-1 %"])
            found["recovered %"] = 100 * (float(found["top-1 %"]) - float(rows[1]["top-1 %"])) / lost
        rows.append({**found, "seconds": round(seconds, 1)})
        print(common.table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        return path

    row("cut", cut.model, 0.0)
    with threadpool_limits(1, user_api="blas"):
        fixed = closed_form.repair(analysis.model, cut.model, sets["few"], cut.plan, seed=options.seed)
    repaired = with_weights(cut.model, fixed.weights)
    path = row("closed form", repaired, fixed.seconds)
    if options.minutes:
        asked = HealOptions(minutes=options.minutes, jobs=2, seed=options.seed)
        done = heal(path, model, sets["train"], sets["validation"], asked, state=folder / f"{which}.state")
        row(f"{options.minutes:g} minutes more", with_weights(repaired, done.weights), done.seconds)
    return rows


def cut_macs(analysis: Any, cut: Any) -> dict[str, int]:
    """MACs by node at the widths of a cut."""
    kept = analysis.kept(cut.plan.kept())
    return dict(analysis.node_macs(kept.sizes))


def read(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Unlabelled training images, a few of them for the closed form, and all labelled test images."""
    from condensec.data import Samples

    with np.load(folder / "train.npz", allow_pickle=False) as data:
        images = data["input"]
    order = np.random.default_rng(seed).permutation(len(images))
    with np.load(folder / "val.npz", allow_pickle=False) as data:
        test = data["input"], data["labels"]
    few, held = np.sort(order[:count]), np.sort(order[count : count + 1000])
    return {
        "few": Samples({"input": images[few]}),
        "validation": Samples({"input": images[held]}),
        "train": Samples({"input": images[np.sort(order[count + 1000 :])]}),
        "test": test,
    }


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="heal_resnet")
    parser.add_argument("--data", type=Path, default=os.environ.get("CONDENSEC_CIFAR"), metavar="DIR")
    parser.add_argument("--depth", type=int, choices=(20, 56), default=56)
    parser.add_argument("--images", type=int, default=512, help="for the closed form (default: 512)")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training after it (default: none)")
    parser.add_argument("--cuts", nargs="+", choices=("inner", "every"), default=["inner", "every"])
    options = parser.parse_args()
    if options.data is None:
        parser.error("no data: give --data DIR or set CONDENSEC_CIFAR")
    from cifar_resnet import unpacked

    data = unpacked(options.data, options.output / "data")
    sets = read(data, options.images, options.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for which in options.cuts:
            model = options.data / f"resnet{options.depth}.onnx"
            rows += examine(model, sets, which, options, Path(folder))
    print(common.table(rows))
    common.write_json(options.output / f"heal_resnet{options.depth}.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
