"""Operators that only move data: Reshape and Transpose spell them out."""

from __future__ import annotations

import numpy as np

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


@legalizes("DepthToSpace")
def depth_to_space(node: Node, e: Emitter) -> None:
    """[N, b*b*C, H, W] -> [N, C, bH, bW]; the block is outside (DCR) or inside (CRD) the channel."""
    n, c, h, w = e.shape(node.inputs[0])
    b = node.attribute("blocksize")
    inner = c // (b * b)
    if node.attribute("mode", "DCR") == "DCR":
        split = e.reshape(node.inputs[0], (n, b, b, inner, h, w))
        moved = e.op("Transpose", split, perm=[0, 3, 4, 1, 5, 2])
    else:
        split = e.reshape(node.inputs[0], (n, inner, b, b, h, w))
        moved = e.op("Transpose", split, perm=[0, 1, 4, 2, 5, 3])
    e.reshape(moved, (n, inner, h * b, w * b), out=node.outputs[0])


@legalizes("SpaceToDepth")
def space_to_depth(node: Node, e: Emitter) -> None:
    """[N, C, bH, bW] -> [N, b*b*C, H, W], the block outside the channel."""
    n, c, h, w = e.shape(node.inputs[0])
    b = node.attribute("blocksize")
    split = e.reshape(node.inputs[0], (n, c, h // b, b, w // b, b))
    moved = e.op("Transpose", split, perm=[0, 3, 5, 1, 2, 4])
    e.reshape(moved, (n, c * b * b, h // b, w // b), out=node.outputs[0])


@legalizes("Split")
def split(node: Node, e: Emitter) -> None:
    """As slices where a part is never read: the gradient kernel then joins the other parts wrongly."""
    used = e.graph.consumers()
    wanted = [o for o in node.outputs if o and (o in used or o in e.graph.outputs)]
    if len(wanted) == len(node.outputs):
        return
    axis = node.attribute("axis", 0)
    start = 0
    for name in node.outputs:
        size = e.shape(name)[axis] if name else 0
        if name in wanted:
            e.op("Slice", node.inputs[0], e.ints([start]), e.ints([start + size]), e.ints([axis]), out=name)
        start += size


@legalizes("Pad")
def pad(node: Node, e: Emitter) -> None:
    """Edge, reflect and wrap padding as a Gather of each padded axis; zeros are differentiable."""
    mode = node.attribute("mode", "constant")
    if mode == "constant":
        return
    pads = e.graph.constants.get(node.inputs[1])
    if pads is None:
        raise NotLegal(f"Pad ({mode}) by an amount that is computed")
    shape = e.shape(node.inputs[0])
    axes = e.graph.constants.get(node.input(3), np.arange(len(shape)))
    amounts = pads.reshape(2, -1)
    x, last = node.inputs[0], None
    for i, axis in enumerate(axes.reshape(-1)):
        before, after = int(amounts[0, i]), int(amounts[1, i])
        if before == 0 and after == 0:
            continue
        grow = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode]
        index = np.pad(np.arange(shape[axis]), (max(before, 0), max(after, 0)), mode=grow)  # type: ignore[call-overload]
        index = index[max(-before, 0) : len(index) - max(-after, 0)]
        last = x = e.op("Gather", x, e.const(index, np.int64), axis=int(axis))
    if last is None:
        e.op("Identity", x, out=node.outputs[0])
    else:
        e.nodes[-1].output[0] = node.outputs[0]


@legalizes("ReverseSequence", "NonZero", "Compress", "Unique", "RoiAlign", "MaxRoiPool", "GridSample",
           "NonMaxSuppression", "DeformConv", "MaxUnpool", "AffineGrid", "Det", "STFT", "DFT")  # fmt: skip
def without_gradient(node: Node, e: Emitter) -> None:
    """Data-dependent positions: left as they are."""
    raise NotLegal(f"{node.op} has no gradient")
