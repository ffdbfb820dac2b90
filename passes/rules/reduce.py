"""Reductions, softmax, pooling and resizing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from condensec.passes.arithmetic import names
from condensec.passes.context import Array, Context, Kept, Layout
from condensec.passes.rules import rule


@rule(
    *names(
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum",
        "ReduceLogSumExp ReduceSumSquare",
    ),
)
def reduce(ctx: Context, node: ir.Node) -> None:
    """The named axes collapse; a cut axis among them isn't mask-exact."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    axes = ctx.ints(node, 1, "axes")
    if axes is None and ctx.has(node, 1):
        ctx.freeze_all(data, f"{node.op_type} over axes chosen at run time")
    keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    if not axes:
        no_op = "noop_with_empty_axes" in node.attributes and node.attributes["noop_with_empty_axes"].as_int()
        axes = [] if no_op else list(range(len(layout)))
    reduced = {axis % len(layout) for axis in axes} if layout else set()
    for axis in sorted(reduced):
        ctx.reduces(node, 0, axis)
    result: Layout = [None if axis in reduced else term for axis, term in enumerate(layout)]
    if not keep:
        result = [term for axis, term in enumerate(result) if axis not in reduced]
    ctx.set(node.outputs[0], result)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(ctx: Context, node: ir.Node) -> None:
    """Normalizes one axis (from opset 13), or everything from an axis on (before)."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    rank = len(layout)
    old = ctx.opset < 13
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else (1 if old else -1)) % rank
    for reduced in range(axis, rank) if old else (axis,):
        ctx.reduces(node, 0, reduced)
    ctx.set(node.outputs[0], layout)


@rule("ArgMax", "ArgMin", "CumSum")
def ranking(ctx: Context, node: ir.Node) -> None:
    """The result names positions on the axis, or runs along it: that axis can't be cut."""
    data = ctx.operand(node, 0)
    layout = list(ctx.layout(data))
    if node.op_type == "CumSum":
        axes = ctx.ints(node, 1, "axis") or list(range(len(layout)))
    else:
        axes = [node.attributes["axis"].as_int() if "axis" in node.attributes else 0]
    for axis in axes:
        ctx.freeze(layout[axis], f"{node.op_type} runs along this axis")
        layout[axis] = None
    if node.op_type.startswith("Arg") and not _keepdims(node):
        layout = [t for i, t in enumerate(layout) if i != axes[0] % len(layout)]
    for output in node.outputs:
        ctx.set(output, layout)


def _keepdims(node: ir.Node) -> bool:
    return bool(node.attributes["keepdims"].as_int()) if "keepdims" in node.attributes else True


@rule(
    *names(
        "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool MaxRoiPool RoiAlign",
        "GridSample",
    ),
    "com.microsoft::NhwcMaxPool",
)
def pool(ctx: Context, node: ir.Node) -> None:
    """Channels pass; space is pooled, and can't be cut there."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    channel = len(layout) - 1 if node.op_type.startswith("Nhwc") else 1
    ctx.freeze_but(data, (0, channel), f"{node.op_type} pools over this axis")
    for extra in node.inputs[1:]:
        ctx.freeze_all(extra, f"regions of {node.op_type}")
    batch = None if "Roi" in node.op_type else layout[0]
    result = [batch, *[layout[a] if a == channel else None for a in range(1, len(layout))]]
    for output in node.outputs:
        ctx.set(output, result)


@rule("Resize", "Upsample")
def resize(ctx: Context, node: ir.Node) -> None:
    """Axes whose size stays pass; the others are interpolated and can't be cut."""
    data, output = ctx.operand(node, 0), node.outputs[0]
    layout, before, after = list(ctx.layout(data)), ctx.shape(data), ctx.shape(output)
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new or axis not in (0, 1):
            ctx.freeze(layout[axis], f"{node.op_type} interpolates along this axis")
            layout[axis] = None
    ctx.set(output, layout)
    listed = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else range(len(before))
    if node.op_type == "Resize" and ctx.has(node, 3):
        terms = [layout[axis] for axis in listed]

        def new_sizes(kept: Kept, old: Array) -> Array:
            return np.array(
                [o if t is None else kept.size(t) for o, t in zip(old, terms, strict=True)], old.dtype
            )

        ctx.input(node, 3, new_sizes)
