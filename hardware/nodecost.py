"""What decides how long a weighted node takes, and how to read it off a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from condensec.hardware.isolate import Isolated

_PRODUCTS = frozenset({"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"})


@dataclass(frozen=True)
class NodeCost:
    """One weighted node at some widths, for one sample.

    Attributes:
        name: the node's name in the model.
        op: operator type.
        macs: multiply-accumulates.
        in_channels: input channels or features; 0 for a product of two activations.
        out_channels: output channels or features.
        groups: convolution groups.
        kernel_elems: positions of the kernel.
        positions: output positions (pixels, tokens).
    """

    name: str
    op: str
    macs: int
    in_channels: int
    out_channels: int
    groups: int = 1
    kernel_elems: int = 1
    positions: int = 1

    @property
    def kind(self) -> str:
        """Which of a target's alignments applies: "conv", "depthwise" or "matmul"."""
        if "Conv" not in self.op:
            return "matmul"
        return "depthwise" if 1 < self.groups == self.in_channels else "conv"


def attributes(node: Any) -> dict[str, Any]:
    """Attribute values by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def channel_axis(node: Any, rank: int) -> int:
    """The axis of a weight that counts output channels: it has one scale an entry."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm" and attributes(node).get("transB", 0):
        return 0
    return rank - 1


def cost_of(isolated: Isolated) -> NodeCost | None:
    """The cost of a node, or None if it's no matrix product or convolution."""
    node = isolated.node
    if node.op_type not in _PRODUCTS or len(node.input) < 2 or not isolated.outputs:
        return None
    x, w = (isolated.arguments.get(name) for name in node.input[:2])
    if x is None or w is None:
        return None
    out, given = isolated.outputs[0], attributes(node)
    if "Conv" in node.op_type:
        return _conv(node, w.array.shape, out, int(given.get("group", 1)))
    if min(x.array.ndim, w.array.ndim, len(out)) < 1:
        return None
    inner = x.array.shape[-2] if given.get("transA") and x.array.ndim > 1 else x.array.shape[-1]
    elements = int(np.prod(out))
    features = out[-1] if w.array.ndim > 1 else 1
    return NodeCost(
        node.name,
        node.op_type,
        elements * inner,
        inner if w.constant else 0,
        features,
        positions=elements // max(1, features),
    )


def _conv(node: Any, weight: Sequence[int], out: tuple[int, ...], groups: int) -> NodeCost:
    kernel = int(np.prod(weight[2:]))
    transposed = node.op_type == "ConvTranspose"
    ins, outs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    positions = out[0] * int(np.prod(out[2:]))
    return NodeCost(
        node.name,
        node.op_type,
        positions * ins * outs // groups * kernel,
        ins,
        outs,
        groups,
        kernel,
        positions,
    )


def nearest_weighted(
    nodes: Iterable[Isolated], names: Sequence[str | None], sizes: Mapping[str, int]
) -> list[str | None]:
    """For each node the weighted node whose output, further up, it works on.

    Args:
        nodes: a graph's nodes in topological order.
        names: for each node, its name if it's weighted.
        sizes: elements of each value; where a node has several inputs, the largest one counts.

    Returns:
        Names; None above the first weighted node.
    """
    origin: dict[str, str | None] = {}
    found: list[str | None] = []
    for node, name in zip(nodes, names, strict=True):
        if name is None:
            inputs = [value for value in node.node.input if origin.get(value)]
            name = origin[max(inputs, key=lambda v: sizes.get(v, 0))] if inputs else None
        origin.update(dict.fromkeys(node.node.output, name))
        found.append(name)
    return found
