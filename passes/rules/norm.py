"""Normalizations. Parameters lie on the axis they scale; statistics over a cut axis aren't mask-exact."""

from __future__ import annotations

import onnx_ir as ir

from condensec.passes.context import Context
from condensec.passes.rules import rule


@rule("BatchNormalization", "SpatialBN")
def batch_norm(ctx: Context, node: ir.Node) -> None:
    """Scale, bias, mean and variance lie on the channel axis."""
    _on_channels(ctx, node, 1, (1, 2, 3, 4))


@rule("InstanceNormalization")
def instance_norm(ctx: Context, node: ir.Node) -> None:
    """Like BatchNormalization, with statistics over the spatial axes of each sample."""
    data = ctx.operand(node, 0)
    for axis in range(2, len(ctx.layout(data))):
        ctx.reduces(node, 0, axis)
    _on_channels(ctx, node, 1, (1, 2))


def _on_channels(ctx: Context, node: ir.Node, axis: int, parameters: tuple[int, ...]) -> None:
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    for index in parameters:
        if ctx.has(node, index):
            parameter = ctx.operand(node, index)
            ctx.tie(layout[axis], ctx.layout(parameter)[0])
    for output in node.outputs:
        ctx.set(output, layout if output is node.outputs[0] else [layout[axis]])


@rule(
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "com.microsoft::SimplifiedLayerNormalization",
    "com.microsoft::LayerNormalization",
)
def layer_norm(ctx: Context, node: ir.Node) -> None:
    """Statistics over the last axes; scale and bias broadcast over them."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    rank = len(layout)
    first = (node.attributes["axis"].as_int() if "axis" in node.attributes else -1) % rank
    for axis in range(first, rank):
        ctx.reduces(node, 0, axis)
    for index in (1, 2):
        parameter = node.inputs[index] if ctx.has(node, index) else None
        if parameter is None:
            continue
        sizes = ctx.shape(parameter)
        for axis, size in enumerate(sizes, start=rank - len(sizes)):
            if size > 1:
                ctx.tie(layout[axis], ctx.layout(parameter)[axis - rank + len(sizes)])
    ctx.set(node.outputs[0], layout)
    for output in node.outputs[1:]:
        ctx.set(output, [*layout[:first], *[None] * (rank - first)])


@rule("GroupNormalization", "com.microsoft::GroupNorm", "com.microsoft::SkipGroupNorm")
def group_norm(ctx: Context, node: ir.Node) -> None:
    """Channels are ``groups x channels/groups``, with statistics over the inner factor and space.

    Scale and bias: one number a group (opset 18), or one a channel. onnxruntime's operators keep channels
    last, as a rule; SkipGroupNorm normalizes ``x + skip + bias``, and gives the sum as its second output.
    """
    data = ctx.operand(node, 0)
    layout, shape = ctx.layout(data), ctx.shape(data)
    fused = node.domain == "com.microsoft"
    flag = node.attributes["channels_last"].as_int() if "channels_last" in node.attributes else 1
    axis = len(shape) - 1 if fused and flag else 1
    ctx.freeze_but(data, (0, axis), f"{node.op_type} takes statistics over this axis")
    name = "groups" if fused else "num_groups"
    groups, channels = node.attributes[name].as_int(), shape[axis]
    group_axis = ctx.axes.atom(groups) if groups > 1 else None
    inner = ctx.axes.atom(channels // groups) if channels > groups else None
    whole = ctx.axes.product([t for t in (group_axis, inner) if t is not None])
    ctx.tie(layout[axis], whole)
    if inner is not None:  # each group's statistics are its own: only channels inside of groups are summed
        fixed = [ctx.axes.fixed(groups, "groups of a norm")] if groups > 1 else []
        ctx.reduces(node, 0, axis, ctx.axes.product([*fixed, inner]))
    for index in (1, 2):
        parameter = ctx.operand(node, index)
        size = ctx.shape(parameter)[0]
        ctx.tie(group_axis if size == groups != channels else whole, ctx.layout(parameter)[0])
    if node.op_type == "SkipGroupNorm":
        skip = ctx.operand(node, 3)
        ctx.freeze_but(skip, (0, axis if len(ctx.shape(skip)) == len(shape) else 1), "statistics over space")
        ctx.tie(whole, ctx.layout(skip)[axis if len(ctx.shape(skip)) == len(shape) else 1])
        if ctx.has(node, 4):
            ctx.tie(whole, ctx.layout(ctx.operand(node, 4))[0])
    if group_axis is not None:
        ctx.attribute(node, name, lambda kept: kept.size(group_axis))
    result = [whole if a == axis else t for a, t in enumerate(layout)]
    for output in node.outputs:
        ctx.set(output, result)


@rule("LpNormalization", "MeanVarianceNormalization")
def norm_without_parameters(ctx: Context, node: ir.Node) -> None:
    """Statistics over the named axes."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    if node.op_type == "LpNormalization":
        axes = [node.attributes["axis"].as_int() if "axis" in node.attributes else -1]
    else:
        axes = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else [0, 2, 3]
    for axis in axes:
        ctx.reduces(node, 0, axis % len(layout))
    ctx.set(node.outputs[0], layout)


@rule("LRN")
def local_response(ctx: Context, node: ir.Node) -> None:
    """Each channel is scaled by its neighbours: no channel can leave without changing the others."""
    data = ctx.operand(node, 0)
    layout = ctx.layout(data)
    ctx.freeze(layout[1], "LRN scales each channel by its neighbours")
    ctx.set(node.outputs[0], layout)
