"""How long does the sensitivity map of a ResNet-50 take, and what does reusing prefixes save?

    analyze.py [MODEL --data SAMPLES.npz] [--samples 256] [--fraction 0.05 | --whole]

Without MODEL: a ResNet-50 v1 graph at 224x224 with seeded weights (its map says nothing, its cost is real).
Every group at the default ladder of kept shares. A fraction of the samples is measured, and the time for
all of them extrapolated: opening sessions is paid once, running them for every sample. Where other
programs take time from the same cores, the processor time over the number of threads says more. The same map
without reuse is measured at one share on half of these samples, for the speed-up and for the difference.
Losses that are known well before take fewer samples, so that the extrapolation is an upper bound; --whole
measures with all samples at hand, layers included, as `condensec analyze` does, and counts what was needed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from common import arguments, table, write_json
from onnx import TensorProto, helper, numpy_helper

from condensec import io
from condensec.data import Samples, load
from condensec.passes import criteria
from condensec.passes.groups import Analysis, analyze
from condensec.passes.select import unit_order
from condensec.passes.sensitivity import RATIOS, Sensitivity, measure

Clock = tuple[float, float]  # seconds on the wall, of the processor over threads
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


def main() -> None:
    options = _options()
    started = time.time()
    model = io.load(options.model) if options.model else ir.from_proto(resnet50(options.seed))
    signature = io.signature(model)
    few = options.samples if options.whole else max(8, round(options.samples * options.fraction))
    if options.data:
        samples = load(str(options.data), signature)
    else:
        rng = np.random.default_rng(options.seed)
        samples = Samples(inputs={"input": rng.normal(size=(few, 3, 224, 224)).astype(np.float32)})
    analysis = analyze(model, {n: (1, *a.shape[1:]) for n, a in samples.inputs.items()})
    order = unit_order(analysis, criteria.get("l2"))

    def timed(
        count: int, reuse: bool, ratios: tuple[float, ...], layers: bool = False
    ) -> tuple[Clock, Sensitivity]:
        begun = (time.monotonic(), time.process_time())
        found = measure(
            analysis,
            order,
            samples,
            ratios=ratios,
            threads=options.threads,
            seconds=1e9,
            most=count,
            reuse=reuse,
            layers=layers,
        )
        spent = (time.monotonic() - begun[0], (time.process_time() - begun[1]) / options.threads)
        return spent, found

    if options.whole:
        spent, found = timed(options.samples, True, RATIOS, layers=True)
        _told(options, analysis, spent, found, started)
        return
    half, share = few // 2, (0.5,)
    pairs = {reuse: timed(half, reuse, share) for reuse in (True, False)}
    short, _ = timed(half, True, RATIOS)
    long, full = timed(few, True, RATIOS)
    estimates = []
    for a, b in zip(short, long, strict=True):
        per_sample = (b - a) / (few - half)
        estimates.append((b - few * per_sample + options.samples * per_sample) / 60)
    with_reuse, without = pairs[True][1], pairs[False][1]
    differences = [
        abs(x - y) / max(y, 1e-6)
        for name, curve in with_reuse.curves.items()
        for x, y in zip(curve.loss, without.curves[name].loss, strict=True)
    ]
    row = {
        "groups": len(analysis.groups),
        "GMACs": analysis.macs() / 1e9,
        "measured, s": long[0],
        "samples": few,
        f"{options.samples} samples, min": estimates[0],
        "by processor time": estimates[1],
        "MACs reused": full.reused,
        "reuse speeds up": pairs[False][0][1] / pairs[True][0][1],
        "largest difference": max(differences),
    }
    print(table([row]))
    write_json(options.output / "analyze.json", {"row": row, "ratios": RATIOS}, started)


def _told(
    options: argparse.Namespace, analysis: Analysis, spent: Clock, found: Sensitivity, started: float
) -> None:
    """The whole map's row."""
    widest = [
        d / max(x, 1e-9)
        for c in found.curves.values()
        for x, d in zip(c.loss[1:], c.deviation[1:], strict=False)
    ]
    row = {
        "groups": len(analysis.groups),
        "layers": len(found.layers),
        "GMACs": analysis.macs() / 1e9,
        "samples": found.samples,
        "minutes": spent[0] / 60,
        "by processor time": spent[1] / 60,
        "standard error, median": float(np.median(widest)),
        "largest": max(widest),
    }
    print(table([row]))
    write_json(options.output / "analyze-whole.json", {"row": row, "ratios": RATIOS}, started)


def resnet50(seed: int) -> onnx.ModelProto:
    """ResNet-50 v1 (He et al. 2015, arXiv:1512.03385), batch norms folded, seeded weights."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1, relu: bool = True) -> str:
        scale = (2 / (cin * kernel * kernel)) ** 0.5
        shape = (cout, cin, kernel, kernel)
        weights.append(
            numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), f"{name}.w")
        )
        weights.append(numpy_helper.from_array(np.zeros(cout, np.float32), f"{name}.b"))
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node(
                "Conv", [x, f"{name}.w", f"{name}.b"], [name], name, kernel_shape=[kernel] * 2,
                strides=[stride] * 2, pads=pads,
            )
        )  # fmt: skip
        if not relu:
            return name
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], f"{name}.relu"))
        return f"{name}.relu"

    x = conv("input", "stem", 3, 64, 7, 2)
    nodes.append(
        helper.make_node("MaxPool", [x], ["pool"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    )
    x, cin = "pool", 64
    for s, (blocks, width) in enumerate(STAGES):
        for b in range(blocks):
            stride, name = 2 if s and not b else 1, f"s{s}b{b}"
            y = conv(x, f"{name}.1", cin, width, 1)
            y = conv(y, f"{name}.2", width, width, 3, stride)
            y = conv(y, f"{name}.3", width, 4 * width, 1, relu=False)
            side = x if b else conv(x, f"{name}.side", cin, 4 * width, 1, stride, relu=False)
            nodes.append(helper.make_node("Add", [y, side], [f"{name}.sum"], f"{name}.sum"))
            nodes.append(helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"], f"{name}.out"))
            x, cin = f"{name}.out", 4 * width
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flat"))
    weights.append(
        numpy_helper.from_array((rng.standard_normal((cin, 1000)) / cin**0.5).astype(np.float32), "fc.w")
    )
    nodes.append(helper.make_node("MatMul", ["flat", "fc.w"], ["logits"], "fc"))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "", name="analyze")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="to extrapolate to")
    parser.add_argument("--fraction", type=float, default=0.0625, help="of them that is measured")
    parser.add_argument("--whole", action="store_true", help="measure all of it")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
