"""Formulas for the time of a node on hardware that isn't at hand. For ordering, not for promises.

ARM cores: counted instructions of onnxruntime's kernels (MLAS) over the core's peak. A matrix product runs
one vector multiply-add for every `lanes` MACs plus loads (a third more), on tiles of 4 rows and 16 columns;
a convolution with a kernel over 1x1 or a stride first copies its input (im2col: a load and a store an
element); a depthwise one is bound by loads, at about a quarter of the peak. Everything else loads, computes
and stores each element. None of these factors was checked on silicon.

GPUs: tiles and waves. ``t = max(t_tensor_cores, t_memory) + launch``, where the tensor cores need
``ceil(tiles / SMs)`` waves of the best tile; memory moves inputs, weights and outputs at 75% of
its bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Protocol

import numpy as np

from condensec.hardware.target import Peak, Target

if TYPE_CHECKING:
    from condensec.hardware.isolate import Isolated
    from condensec.hardware.nodecost import NodeCost

_FREE = frozenset(
    [
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Shape",
        "Constant",
        "ConstantOfShape",
        "Dropout",
    ]
)
_MOVES = frozenset(["Transpose", "Concat", "Split", "Slice", "Pad", "Gather", "Expand", "Resize"])
_COSTLY = frozenset(["Softmax", "Gelu", "FastGelu", "QuickGelu", "Erf", "Exp", "Tanh", "Sigmoid"])
_FUSED_ON_GPU = frozenset(["Relu", "Clip", "Add", "Mul", "Sigmoid", "HardSigmoid", "BatchNormalization"])


class Formula(Protocol):
    """Seconds of nodes."""

    def seconds(self, node: Isolated, cost: NodeCost | None) -> float:
        """Of a node of a graph."""

    def weighted(self, cost: NodeCost) -> float:
        """Of a weighted node described by its cost alone."""


def formula(target: Target) -> Formula:
    """The formula for a target."""
    if target.latency == "analytic":
        return Gpu(target.peak, "fp16" if "fp16" in target.peak.fma else "fp32")
    return Cpu(target.peak)


def in_blocks(cost: NodeCost, target: Target) -> NodeCost:
    """A node as the target computes it: channels filled up to whole blocks (an image's few aside)."""
    if not cost.in_channels or not cost.out_channels:
        return cost
    block, groups, ins = target.block(cost.kind), max(1, cost.groups), cost.in_channels
    outs = ceil(cost.out_channels / block) * block
    if cost.kind == "depthwise":
        ins = groups = outs
    elif groups == 1 and ins >= target.alignment(cost.kind):
        ins = ceil(ins / block) * block
    before = cost.out_channels * cost.in_channels / max(1, cost.groups)
    macs = round(cost.macs * outs * ins / groups / before)
    return replace(cost, macs=macs, in_channels=ins, out_channels=outs, groups=groups)


@dataclass(frozen=True)
class Cpu:
    """One core running onnxruntime, fp32.

    Attributes:
        peak: the core's figures.
        loads: loads and bookkeeping instructions a vector multiply-add.
        depthwise: share of the peak a depthwise convolution reaches.
        call: seconds a node costs by itself.
    """

    peak: Peak
    loads: float = 0.35
    depthwise: float = 0.25
    call: float = 1e-6

    def weighted(self, cost: NodeCost) -> float:
        """Compute or memory, whichever takes longer."""
        macs = float(cost.macs)
        weights = cost.macs / max(1, cost.positions)
        if cost.kind == "depthwise":
            instructions = macs / 4 / self.depthwise
        else:
            # tiles of 4 rows (positions or channels) and 16 columns are computed whole
            columns = cost.out_channels / max(1, cost.groups)
            waste = ceil(columns / 4) * 4 / max(1.0, columns)
            instructions = macs / 4 * (1 + self.loads) * waste
            if cost.kernel_elems > 1:
                instructions += 2 * cost.positions * cost.kernel_elems * cost.in_channels / 4
        moved = 4 * (weights + cost.positions * (cost.in_channels + cost.out_channels))
        return max(instructions / self.peak.vectors, moved / (self.peak.bandwidth_gbs * 1e9)) + self.call

    def seconds(self, node: Isolated, cost: NodeCost | None) -> float:
        """Of a node of a graph."""
        if cost is not None:
            return self.weighted(cost)
        op = node.node.op_type
        if op in _FREE:
            return self.call
        read, written = _elements(node)
        each = 0.5 if op in _MOVES else 6.0 if op in _COSTLY else 0.75  # vector instructions an element
        moved = 4 * (read + written) / (self.peak.bandwidth_gbs * 1e9)
        return max(each * max(read, written) / self.peak.vectors, moved) + self.call


@dataclass(frozen=True)
class Gpu:
    """TensorRT on one GPU: tiles and waves.

    Attributes:
        peak: the GPU's figures; ``units`` are its SMs.
        precision: which of the peak's multiply-add rates applies.
        efficiency: share of the peak inside a tile. A guess.
        launch: seconds a kernel launch costs. A guess.
    """

    peak: Peak
    precision: str = "fp16"
    efficiency: float = 0.8
    launch: float = 3e-6

    TILES = ((256, 128), (128, 128), (128, 64), (64, 64), (64, 32), (32, 64), (32, 32))
    SPLITS = (1, 2, 4, 8)

    @property
    def _bytes(self) -> int:
        return {"int8": 1, "fp16": 2}.get(self.precision, 4)

    def weighted(self, cost: NodeCost) -> float:
        """Best tile's waves, or memory."""
        step = 32 if self.precision == "int8" else 8
        groups = max(1, cost.groups)
        inner = cost.macs / max(1, cost.positions * cost.out_channels)
        weights = cost.macs / max(1, cost.positions)
        ins = cost.in_channels or inner
        moved = self._bytes * (weights + cost.positions * (ins + cost.out_channels))
        memory = moved / (0.75 * self.peak.bandwidth_gbs * 1e9)
        clock = self.efficiency * self.peak.clock_ghz * 1e9
        if cost.kind == "depthwise":  # no tensor cores: CUDA cores, nearly always bound by memory
            rate = self.peak.fma.get("fp32", 64) * clock * self.peak.units
            return max(cost.macs / rate, memory) + self.launch
        rows, columns = cost.positions, ceil(cost.out_channels / groups / step) * step
        depth = ceil(inner / step) * step
        rate = self.peak.fma.get(self.precision, 64) * clock
        compute = min(
            ceil(ceil(rows / tm) * ceil(columns / tn) * groups * split / self.peak.units)
            * tm
            * tn
            * (depth / split)
            / rate
            for tm, tn in self.TILES
            for split in self.SPLITS
        )
        return max(compute, memory) + self.launch

    def seconds(self, node: Isolated, cost: NodeCost | None) -> float:
        """Of a node of a graph: elementwise ones are fused into the product before them."""
        if cost is not None:
            return self.weighted(cost)
        op = node.node.op_type
        if op in _FREE or op in _FUSED_ON_GPU:
            return 0.0
        return self._bytes * sum(_elements(node)) / (0.75 * self.peak.bandwidth_gbs * 1e9) + self.launch


def _elements(node: Isolated) -> tuple[float, float]:
    """Elements read and written."""
    read = sum(a.array.size for a in node.arguments.values())
    return float(read), float(sum(np.prod(shape) for shape in node.outputs))
