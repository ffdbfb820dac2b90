"""A stronger x86 machine in place of a weaker one: what can be said there of int8 that can't be timed.

Without VNNI an int8 product takes several instructions for one, so int8 gains less. How much less was
measured by hiding CPU features, for 128 channels, by kind of layer. A graph's factor is the mean of its
layers', by their multiply-accumulates, and a margin: with AVX-512 hidden EfficientNet-Lite0's int8 share of
the fp32 time grew 1.40-fold (1.32 by the table), ResNet-56's 1.48-fold (1.79), `benchmarks/x86_levels.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from condensec.hardware import isa
from condensec.hardware.target import Target
from condensec.hardware.work import node_macs

if TYPE_CHECKING:
    import onnx_ir as ir

    from condensec.data import Samples

# int8 over fp32 time, by kind of layer and by level
_INT8: Mapping[str, Mapping[str, float]] = {
    "kernel": {"avx512_vnni": 0.30, "avx512": 0.65, "avx2": 0.54},  # 3x3 convolutions
    "point": {"avx512_vnni": 0.77, "avx512": 1.12, "avx2": 1.00},  # 1x1 and depthwise ones
    "product": {"avx512_vnni": 0.53, "avx512": 0.90, "avx2": 0.71},  # of matrices
}
_MARGIN = 1.1


def int8_penalty(target: Target, model: Path, samples: Samples) -> float | None:
    """Factor between int8's share of the fp32 time on a target and here; None where nothing can be said.

    Args:
        target: where the graph will run.
        model: the fp32 graph.
        samples: say how large what is open is.
    """
    here = isa.detect()
    onnxruntime = target.latency == "table" and target.runtime == "onnxruntime"
    if not onnxruntime or target.isa == here or not isa.at_least(here, target.isa):
        return None
    if any(level not in _INT8["kernel"] for level in (here, target.isa)):
        return None
    factors = {kind: row[target.isa] / row[here] for kind, row in _INT8.items()}
    kinds, work = _kinds(model), node_macs(model, samples)
    total = sum(work.values())
    if not total:
        return _MARGIN * max(factors.values())
    return _MARGIN * sum(count * factors[kinds.get(name, "kernel")] for name, count in work.items()) / total


def _kinds(model: Path) -> dict[str, str]:
    """Kind of layer of each product, by name."""
    import onnx_ir as ir

    return {node.name or "": _kind(node) for node in ir.load(model).graph if len(node.inputs) > 1}


def _kind(node: ir.Node) -> str:
    if "Conv" not in node.op_type:
        return "product"
    weight = node.inputs[1]
    shape = () if weight is None or weight.shape is None else weight.shape.numpy()
    grouped = "group" in node.attributes and node.attributes["group"].as_int() > 1
    return "point" if grouped or all(size == 1 for size in shape[2:]) else "kernel"
